//! Tests of held records that the stream is about to drop.
//!
//! By default they stay held. With [`ExpiryPolicy::DeadLetter`] they become dead letters in time. The age of
//! a record is measured from its arrival. Time is paused throughout.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use futures_util::stream;
use redrive::dead_letter::{Memory, Reason};
use redrive::pipeline::{Batch, ExpiryPolicy, Pipeline};
use redrive::processor::Attempt;
use redrive::{Failure, Record, RecordProcessor, Resilient};
use tokio::time::{sleep, timeout};

const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// The number of partition keys. Failures of this many keys are an outage, which is held until it ends.
const KEYS: u64 = 50;

/// A processor that fails for every record while its database is down.
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

/// Runs the records for `time`. Returns each dead letter: its record, its reason and its number of attempts.
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
async fn expiring_records_behind_a_breaker_are_dead_lettered_in_order() {
    let old = (0..200).map(|number| record_of_age(number, 23 * HOUR));
    let young = (200..300).map(|number| record_of_age(number, 20 * HOUR));
    let records: Vec<Record> = old.chain(young).collect();
    let builder = Pipeline::builder().retention(DAY);

    let database = Database::default();
    let pipeline = builder.clone().build().expect("valid");
    let held = held_for(HOUR, pipeline, &database, records.clone()).await;
    assert_eq!(held, [], "by default the records stay held");

    let builder = builder.expiry_policy(ExpiryPolicy::DeadLetter);
    let database = Database::default();
    let pipeline = builder.clone().build().expect("valid");
    let letters = held_for(HOUR, pipeline, &database, records.clone()).await;
    assert_eq!(letters.len(), 200);
    assert!(
        letters
            .iter()
            .all(|(number, reason, _)| *number < 200 && *reason == Reason::Expiring)
    );
    assert!(each_key_is_in_order(&letters));
    let untried = letters.iter().filter(|(.., attempts)| *attempts == 0).count();
    assert!(untried >= 100, "only {untried} of them were never tried");

    let pipeline = builder.retention(20 * DAY).build().expect("valid");
    let unknown = held_for(HOUR, pipeline, &Database::default(), records).await;
    assert_eq!(unknown, [], "the retention is long");
}

/// The age of a record does not matter while nothing keeps it from being processed.
#[tokio::test(start_paused = true)]
async fn old_records_are_processed_while_nothing_fails() {
    let database = Database::default();
    database.up.store(true, SeqCst);
    let records = (0..500).map(|number| record_of_age(number, 23 * HOUR)).collect();
    let pipeline = Pipeline::builder()
        .retention(DAY)
        .expiry_policy(ExpiryPolicy::DeadLetter)
        .build()
        .expect("valid");
    let letters = held_for(HOUR, pipeline, &database, records).await;
    assert_eq!(letters, []);
    assert_eq!(database.stored.lock().expect("no panic").len(), 500);
}

#[tokio::test(start_paused = true)]
async fn younger_records_are_stored_after_an_outage() {
    let database = Database::default();
    let records = (0..40).map(|number| record_of_age(number, if number < 20 { 23 } else { 1 } * HOUR));
    let sink = Memory::new();
    let resilient = resilient(&database, &sink);
    let back = database.up.clone();
    tokio::spawn(async move {
        sleep(Duration::from_secs(15 * 60)).await;
        back.store(true, SeqCst);
    });
    let pipeline = Pipeline::builder()
        .retention(DAY)
        .expiry_policy(ExpiryPolicy::DeadLetter)
        .build()
        .expect("valid");
    let batches = stream::iter([Batch::from(records.collect::<Vec<_>>())]);
    let finished = pipeline.run(&resilient, batches).await.expect("nothing halts");
    assert!(finished.complete);
    assert_eq!(sink.letters().len(), 20);
    let mut stored = database.stored.lock().expect("no panic").clone();
    stored.sort_unstable();
    assert_eq!(stored, (20..40).collect::<Vec<_>>());
}

/// A service that catches up after a day has only old records. A short outage makes no dead letters of them.
#[tokio::test(start_paused = true)]
async fn short_outage_makes_no_dead_letters_of_old_records() {
    let database = Database::default();
    let back = database.up.clone();
    tokio::spawn(async move {
        sleep(Duration::from_secs(3 * 60)).await;
        back.store(true, SeqCst);
    });
    let records = (0..500).map(|number| record_of_age(number, 23 * HOUR)).collect();
    let pipeline = Pipeline::builder()
        .retention(DAY)
        .expiry_policy(ExpiryPolicy::DeadLetter)
        .build()
        .expect("valid");
    let letters = held_for(HOUR, pipeline, &database, records).await;
    assert_eq!(letters, []);
    assert_eq!(database.stored.lock().expect("no panic").len(), 500);
}

/// The guard has stopped a flood of dead letters, and no operator has resumed the shard.
#[tokio::test(start_paused = true)]
async fn guard_does_not_stop_expiring_records() {
    let database = Database {
        permanent: true,
        ..Database::default()
    };
    let records: Vec<Record> = (0..400)
        .map(|number| record_of_age(number, if number < 300 { 23 } else { 1 } * HOUR))
        .collect();
    let builder = Pipeline::builder().retention(DAY);
    let pipeline = builder.clone().build().expect("valid");
    let held = held_for(HOUR, pipeline, &database, records.clone()).await;
    assert!(
        (100..150).contains(&held.len()),
        "{} passed the guard",
        held.len()
    );

    let pipeline = builder.expiry_policy(ExpiryPolicy::DeadLetter);
    let pipeline = pipeline.build().expect("valid");
    let letters = held_for(HOUR, pipeline, &database, records).await;
    assert_eq!(letters.len(), 300);
    assert!(letters.iter().all(|(number, ..)| *number < 300));
    assert!(each_key_is_in_order(&letters));
    assert!(letters.iter().any(|(_, reason, _)| *reason == Reason::Expiring));
}

/// Two records fail while nothing else succeeds, so an outage is suspected.
#[tokio::test(start_paused = true)]
async fn expiring_records_of_a_suspected_outage_are_dead_lettered() {
    let pipeline = Pipeline::builder()
        .retention(DAY)
        .expiry_policy(ExpiryPolicy::DeadLetter)
        .build()
        .expect("valid");
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

/// Without a sink the record can only be held.
#[tokio::test(start_paused = true)]
async fn expiring_record_without_a_sink_stays_held() {
    let resilient = Resilient::builder("billing", Database::default())
        .without_dead_letters()
        .build()
        .expect("valid");
    let records: Vec<Record> = (0..20).map(|number| record_of_age(number, 23 * HOUR)).collect();
    let pipeline = Pipeline::builder()
        .retention(DAY)
        .expiry_policy(ExpiryPolicy::DeadLetter)
        .build()
        .expect("valid");
    let run = pipeline.run(&resilient, stream::iter([Batch::from(records)]));
    assert!(
        timeout(Duration::from_secs(5 * 60), run).await.is_err(),
        "the run waits"
    );
}

#[test]
fn consumer_builder_sets_the_expiry_policy() {
    let config = aws_sdk_kinesis::Config::builder()
        .behavior_version_latest()
        .build();
    let client = aws_sdk_kinesis::Client::from_conf(config);
    let builder = redrive::Consumer::builder(client, "orders").pipeline(
        Pipeline::builder()
            .expiry_policy(ExpiryPolicy::DeadLetter)
            .build()
            .expect("valid"),
    );
    assert!(
        format!("{builder:?}").contains("on_expiring: DeadLetter"),
        "{builder:?}"
    );
}

/// The dead letters that waited for the resumption are written as expiring, so no dead letter asks to resume.
#[tokio::test(start_paused = true)]
async fn stopped_shard_resumes_without_a_waiting_dead_letter() {
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
    let running = tokio::spawn(async move {
        let pipeline = Pipeline::builder()
            .retention(DAY)
            .expiry_policy(ExpiryPolicy::DeadLetter)
            .build()
            .expect("valid");
        let batches = stream::iter([Batch::from(records)]);
        let finished = pipeline.run(&resilient, batches).await;
        finished.is_ok_and(|finished| finished.complete)
    });
    sleep(HOUR).await;
    assert_eq!(sink.letters().len(), 300);
    assert_eq!(guard.state().len(), 1);

    database.up.store(true, SeqCst);
    guard.resume();
    let complete = timeout(HOUR, running)
        .await
        .expect("the shard resumes")
        .expect("no panic");
    assert!(complete);
    assert_eq!(database.stored.lock().expect("no panic").len(), 100);
    assert!(guard.state().is_empty());
    assert_eq!(resumptions.load(SeqCst), 1, "the resumption is reported once");
}

struct Resumptions(Arc<AtomicU32>);

impl redrive::observer::Observer for Resumptions {
    fn on(&self, event: &redrive::observer::Event<'_>) {
        if matches!(
            event,
            redrive::observer::Event::Record {
                event: redrive::observer::RecordEvent::DeadLetterGuardResumed { .. },
                ..
            }
        ) {
            self.0.fetch_add(1, SeqCst);
        }
    }
}
