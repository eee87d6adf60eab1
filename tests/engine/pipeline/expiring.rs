//! A record that is held, and that the stream is about to drop: by default it is held on, on demand it becomes a dead
//! letter in time. Time is paused throughout; the age of a record is by its arrival.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use futures_util::stream;
use redrive::dead_letter::{Memory, Reason};
use redrive::pipeline::{Batch, ExpiryPolicy, Pipeline, Progress};
use redrive::{Attempt, Failure, Record, RecordProcessor, Resilient};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// So many make an outage, which is held for however long it takes.
const KEYS: u64 = 50;

/// Fails for everybody while it is down.
#[derive(Clone, Default)]
struct Database {
    up: Arc<AtomicBool>,
    calls: Arc<AtomicU32>,
    stored: Arc<Mutex<Vec<u64>>>,
    permanent: bool,
}

impl RecordProcessor for Database {
    type Error = Failure;

    async fn process(&self, record: &Record, _: &Attempt<'_>) -> Result<(), Failure> {
        self.calls.fetch_add(1, SeqCst);
        if !self.up.load(SeqCst) {
            return Err(match self.permanent {
                true => Failure::permanent("cannot be stored"),
                false => Failure::transient("the database is down"),
            });
        }
        self.stored.lock().expect("no panic").push(number(record));
        Ok(())
    }
}

fn number(record: &Record) -> u64 {
    record.sequence_number().to_string().parse().expect("small")
}

fn record_of_age(number: u64, age: Duration) -> Record {
    Record::builder("orders", "shardId-0".into(), number.into())
        .partition_key((number % KEYS).to_string())
        .payload(number.to_string())
        .arrival(SystemTime::now() - age)
        .build()
}

fn resilient(database: &Database, sink: &Memory) -> Resilient<Database> {
    Resilient::builder("billing", database.clone())
        .dead_letters(sink.clone())
        .build()
        .expect("valid")
}

/// Runs on while the time that is given passes. Returns what had a letter by then, and why, in the order of the letters.
async fn held_for(
    time: Duration,
    pipeline: Pipeline,
    database: &Database,
    records: Vec<Record>,
) -> Vec<(u64, Reason, u32)> {
    let sink = Memory::new();
    let resilient = resilient(database, &sink);
    let batches = stream::iter([Batch::from(records)]);
    let _ = timeout(time, pipeline.run(&resilient, batches)).await;
    let letters = sink.letters();
    letters
        .iter()
        .map(|letter| {
            let number = letter.sequence_number.to_string().parse().expect("small");
            (number, letter.reason, letter.attempts.count)
        })
        .collect()
}

fn each_key_is_in_order(letters: &[(u64, Reason, u32)]) -> bool {
    (0..KEYS).all(|key| {
        let of_key = letters.iter().filter(|(number, ..)| number % KEYS == key);
        of_key.is_sorted_by_key(|(number, ..)| *number)
    })
}

#[tokio::test(start_paused = true)]
async fn behind_an_open_breaker_what_expires_becomes_letters_in_order_and_the_rest_is_held() {
    let old = (0..200).map(|number| record_of_age(number, 23 * HOUR));
    let young = (200..300).map(|number| record_of_age(number, 20 * HOUR));
    let records: Vec<Record> = old.chain(young).collect();
    let pipeline = Pipeline::new().retention(DAY);

    let database = Database::default();
    let held = held_for(HOUR, pipeline.clone(), &database, records.clone()).await;
    assert_eq!(held, [], "by default they are held on");

    let pipeline = pipeline.expiry_policy(ExpiryPolicy::DeadLetter);
    let database = Database::default();
    let letters = held_for(HOUR, pipeline.clone(), &database, records.clone()).await;
    assert_eq!(letters.len(), 200);
    assert!(
        letters
            .iter()
            .all(|(number, reason, _)| *number < 200 && *reason == Reason::Expiring)
    );
    assert!(each_key_is_in_order(&letters));
    let untried = letters.iter().filter(|(.., attempts)| *attempts == 0).count();
    assert!(untried >= 100, "{untried} of them never met the database");

    let unknown = held_for(HOUR, pipeline.retention(20 * DAY), &Database::default(), records).await;
    assert_eq!(unknown, [], "the stream keeps them for long");
}

/// However old they are: nothing is against trying them.
#[tokio::test(start_paused = true)]
async fn what_may_run_runs_however_old_it_is() {
    let database = Database::default();
    database.up.store(true, SeqCst);
    let records = (0..500).map(|number| record_of_age(number, 23 * HOUR)).collect();
    let pipeline = Pipeline::new()
        .retention(DAY)
        .expiry_policy(ExpiryPolicy::DeadLetter);
    let letters = held_for(HOUR, pipeline, &database, records).await;
    assert_eq!(letters, []);
    assert_eq!(database.stored.lock().expect("no panic").len(), 500);
}

#[tokio::test(start_paused = true)]
async fn when_the_database_is_back_the_younger_ones_are_stored() {
    let database = Database::default();
    let records = (0..40).map(|number| record_of_age(number, if number < 20 { 23 } else { 1 } * HOUR));
    let (sink, progress) = (Memory::new(), Progress::new());
    let resilient = resilient(&database, &sink);
    let back = database.up.clone();
    tokio::spawn(async move {
        sleep(Duration::from_secs(15 * 60)).await;
        back.store(true, SeqCst);
    });
    let pipeline = Pipeline::new()
        .retention(DAY)
        .expiry_policy(ExpiryPolicy::DeadLetter);
    let batches = stream::iter([Batch::from(records.collect::<Vec<_>>())]);
    let from = redrive::checkpoint::Checkpoint::at(redrive::Position::TrimHorizon);
    let finished = pipeline
        .run_from(&resilient, batches, from, &progress, &CancellationToken::new())
        .await
        .expect("nothing halts");
    assert!(finished.complete);
    assert_eq!(sink.letters().len(), 20);
    let mut stored = database.stored.lock().expect("no panic").clone();
    stored.sort_unstable();
    assert_eq!(stored, (20..40).collect::<Vec<_>>());
}

/// A service that catches up after a day has nothing but old records. A short outage then is as any other.
#[tokio::test(start_paused = true)]
async fn a_short_outage_makes_no_letters_of_old_records() {
    let database = Database::default();
    let back = database.up.clone();
    tokio::spawn(async move {
        sleep(Duration::from_secs(3 * 60)).await;
        back.store(true, SeqCst);
    });
    let records = (0..500).map(|number| record_of_age(number, 23 * HOUR)).collect();
    let pipeline = Pipeline::new()
        .retention(DAY)
        .expiry_policy(ExpiryPolicy::DeadLetter);
    let letters = held_for(HOUR, pipeline, &database, records).await;
    assert_eq!(letters, []);
    assert_eq!(database.stored.lock().expect("no panic").len(), 500);
}

/// The guard stops a flood of letters until somebody has looked. Nobody has.
#[tokio::test(start_paused = true)]
async fn the_guard_does_not_keep_what_expires() {
    let database = Database {
        permanent: true,
        ..Database::default()
    };
    let records: Vec<Record> = (0..400)
        .map(|number| record_of_age(number, if number < 300 { 23 } else { 1 } * HOUR))
        .collect();
    let pipeline = Pipeline::new().retention(DAY);
    let held = held_for(HOUR, pipeline.clone(), &database, records.clone()).await;
    assert!(
        (100..150).contains(&held.len()),
        "{} passed the guard",
        held.len()
    );

    let pipeline = pipeline.expiry_policy(ExpiryPolicy::DeadLetter);
    let letters = held_for(HOUR, pipeline, &database, records).await;
    assert_eq!(letters.len(), 300);
    assert!(letters.iter().all(|(number, ..)| *number < 300));
    assert!(each_key_is_in_order(&letters));
    assert!(letters.iter().any(|(_, reason, _)| *reason == Reason::Expiring));
}

/// Two records that fail while nothing else succeeds: an outage is suspected.
#[tokio::test(start_paused = true)]
async fn records_held_as_an_outage_is_suspected_are_given_up_as_well() {
    let pipeline = Pipeline::new()
        .retention(DAY)
        .expiry_policy(ExpiryPolicy::DeadLetter);
    let time = Duration::from_secs(10 * 60);
    let of_age = |age| (1..=2).map(|number| record_of_age(number, age)).collect();
    let database = Database::default();
    let old = held_for(time, pipeline.clone(), &database, of_age(23 * HOUR)).await;
    assert!(
        matches!(old[..], [(_, Reason::Expiring, 5), (_, Reason::Expiring, 5)]),
        "{old:?}"
    );
    let young = held_for(time, pipeline, &database, of_age(HOUR)).await;
    assert_eq!(young, []);
}

/// Without a sink there is nothing better than to hold it.
#[tokio::test(start_paused = true)]
async fn without_dead_letters_it_is_held() {
    let resilient = Resilient::builder("billing", Database::default())
        .without_dead_letters()
        .build()
        .expect("valid");
    let records: Vec<Record> = (0..20).map(|number| record_of_age(number, 23 * HOUR)).collect();
    let pipeline = Pipeline::new()
        .retention(DAY)
        .expiry_policy(ExpiryPolicy::DeadLetter);
    let run = pipeline.run(&resilient, stream::iter([Batch::from(records)]));
    assert!(
        timeout(Duration::from_secs(5 * 60), run).await.is_err(),
        "it waits"
    );
}

#[test]
fn a_consumer_is_told_as_well() {
    let config = aws_sdk_kinesis::Config::builder()
        .behavior_version_latest()
        .build();
    let client = aws_sdk_kinesis::Client::from_conf(config);
    let builder = redrive::Consumer::builder(client, "orders").expiry_policy(ExpiryPolicy::DeadLetter);
    assert!(
        format!("{builder:?}").contains("on_expiring: DeadLetter"),
        "{builder:?}"
    );
}

/// The dead letters that waited for the resumption are written as expiring, so that none is left which asks for it.
#[tokio::test(start_paused = true)]
async fn a_stopped_shard_resumes_though_no_dead_letter_waits() {
    let database = Database {
        permanent: true,
        ..Database::default()
    };
    let records: Vec<Record> = (0..400)
        .map(|number| record_of_age(number, if number < 300 { 23 } else { 1 } * HOUR))
        .collect();
    let (sink, resumptions) = (Memory::new(), Arc::new(AtomicU32::new(0)));
    let resilient = Resilient::builder("billing", database.clone())
        .dead_letters(sink.clone())
        .observer(Resumptions(resumptions.clone()))
        .build()
        .expect("valid");
    let guard = resilient.guard().expect("by default").clone();
    let progress = Arc::new(Progress::new());
    let running = tokio::spawn({
        let progress = progress.clone();
        async move {
            let pipeline = Pipeline::new()
                .retention(DAY)
                .expiry_policy(ExpiryPolicy::DeadLetter);
            let batches = stream::iter([Batch::from(records)]);
            let from = redrive::checkpoint::Checkpoint::at(redrive::Position::TrimHorizon);
            let never = CancellationToken::new();
            pipeline
                .run_from(&resilient, batches, from, &progress, &never)
                .await
                .is_ok_and(|finished| finished.complete)
        }
    });
    sleep(HOUR).await;
    assert_eq!(sink.letters().len(), 300);
    assert_eq!(guard.state().len(), 1);
    assert!(progress.is_stopped());

    database.up.store(true, SeqCst);
    guard.resume();
    let complete = timeout(HOUR, running)
        .await
        .expect("it resumes")
        .expect("no panic");
    assert!(complete);
    assert_eq!(database.stored.lock().expect("no panic").len(), 100);
    assert!(guard.state().is_empty() && !progress.is_stopped());
    assert_eq!(resumptions.load(SeqCst), 1, "it is reported once");
}

struct Resumptions(Arc<AtomicU32>);

impl redrive::observer::Observer for Resumptions {
    fn on(&self, event: &redrive::observer::Event<'_>) {
        if matches!(event, redrive::observer::Event::DeadLetterGuardResumed { .. }) {
            self.0.fetch_add(1, SeqCst);
        }
    }
}
