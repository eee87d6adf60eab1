//! Tests of the circuit breaker, the dead-letter guard and the retry budget.
//!
//! An outage makes at most one dead letter, and the guard stops a flood of dead letters. A record that fails
//! alone does not block the others. Time is paused throughout.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering as Atomic};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::stream::{self, Stream, StreamExt};
use redrive::observer::{Event, Observer, ProtectionEvent, RecordEvent};
use redrive::pipeline::{Batch, Pipeline, RecordOrder};
use redrive::processor::Attempt;
use redrive::protection::CircuitBreakerState;
use redrive::{
    Backoff, BoxError, CircuitBreaker, DeadLetterGuard, Failure, Record, RecordProcessor, Resilient,
    ResilientBuilder, Scope, Settled, Unsettled, classify::Verdict, dead_letter,
};
use support::script::record;
use tokio::time::{Instant, sleep, sleep_until};

/// A processor whose database is down for a while. Its error does not say that the database is at fault.
#[derive(Debug)]
struct Database {
    down: std::ops::Range<Instant>,
    calls_while_down: AtomicU64,
    stored: Mutex<HashMap<String, u64>>,
}

impl Database {
    fn down(from: Duration, secs: u64) -> Arc<Self> {
        let from = Instant::now() + from;
        Arc::new(Database {
            down: from..from + Duration::from_secs(secs),
            calls_while_down: AtomicU64::new(0),
            stored: Mutex::default(),
        })
    }

    fn stored(&self) -> usize {
        self.stored.lock().expect("no panic while locked").len()
    }
}

#[derive(Debug, thiserror::Error)]
#[error("could not store the order")]
struct CouldNotStore;

impl RecordProcessor for Database {
    type Error = CouldNotStore;

    async fn process(&self, record: &Record, _: &Attempt<'_>) -> Result<(), CouldNotStore> {
        sleep(Duration::from_millis(5)).await;
        if self.down.contains(&Instant::now()) {
            self.calls_while_down.fetch_add(1, Atomic::Relaxed);
            return Err(CouldNotStore);
        }
        let mut stored = self.stored.lock().expect("no panic while locked");
        *stored.entry(record.sequence_number().to_string()).or_default() += 1;
        Ok(())
    }
}

/// Returns batches at `per_second` records per second: one batch per 100 ms, or single records at low rates.
fn arriving(records: u64, per_second: u64) -> impl Stream<Item = Batch> + Unpin {
    let start = Instant::now();
    let batch = (per_second / 10).max(1);
    let batches = stream::iter((0..records).step_by(batch as usize)).then(move |first| async move {
        sleep_until(start + Duration::from_millis(first * 1_000 / per_second)).await;
        let records = (first..records.min(first + batch))
            .map(|number| record(number, &format!("customer-{}", number % 1_000), "order"));
        Batch::from(records.collect::<Vec<_>>())
    });
    Box::pin(batches)
}

struct Outcome {
    letters: usize,
    stored: usize,
    calls_while_down: u64,
}

/// Processes `records` at a rate of `per_second` through an outage of 60 s.
async fn outage(
    per_second: u64,
    records: u64,
    set: impl FnOnce(ResilientBuilder<Arc<Database>>) -> ResilientBuilder<Arc<Database>>,
) -> Outcome {
    let database = Database::down(Duration::from_secs(5), 60);
    let sink = dead_letter::Memory::new();
    let builder = Resilient::builder("billing", database.clone()).dead_letters(sink.clone());
    let resilient = set(builder.seed(7)).build().expect("valid");
    let finished = Pipeline::default()
        .run(&resilient, arriving(records, per_second))
        .await;
    assert!(finished.expect("nothing halts").complete);
    Outcome {
        letters: sink.letters().len(),
        stored: database.stored(),
        calls_while_down: database.calls_while_down.load(Atomic::Relaxed),
    }
}

#[tokio::test(start_paused = true)]
async fn an_outage_makes_one_dead_letter_at_most() {
    for (per_second, records) in [(10_000, 100_000), (1, 120)] {
        let with = outage(per_second, records, |builder| builder).await;
        let without = outage(per_second, records, |builder| {
            builder.without_breaker().without_retry_budget().without_guard()
        })
        .await;
        println!(
            "60 s outage at {per_second} records/s: {} dead letters, {} calls while the database was down; \
             without breaker, budget and guard: {} dead letters, {} calls",
            with.letters, with.calls_while_down, without.letters, without.calls_while_down
        );
        assert!(with.letters <= 1, "{}", with.letters);
        assert_eq!(with.letters + with.stored, records as usize);
        assert!(
            without.letters > 1,
            "without protection the outage makes several dead letters"
        );
        assert_eq!(without.letters + without.stored, records as usize);
        assert!(with.calls_while_down < without.calls_while_down);
    }
}

/// Counts the events that need an operator: a shard stopped by the guard, and a held record.
#[derive(Default)]
struct Alarms(AtomicUsize);

impl Observer for Alarms {
    fn on(&self, event: &Event<'_>) {
        if matches!(
            event,
            Event::Record {
                event: RecordEvent::DeadLetterGuardStopped { .. } | RecordEvent::Held { .. },
                ..
            }
        ) {
            self.0.fetch_add(1, Atomic::Relaxed);
        }
    }
}

/// A bad deployment that fails every record until it is rolled back.
#[derive(Default)]
struct Deploy {
    mended: AtomicBool,
    panics: bool,
    processed: AtomicUsize,
}

impl RecordProcessor for Deploy {
    type Error = Failure;

    async fn process(&self, _: &Record, _: &Attempt<'_>) -> Result<(), Failure> {
        sleep(Duration::from_millis(1)).await;
        if self.mended.load(Atomic::Relaxed) {
            self.processed.fetch_add(1, Atomic::Relaxed);
            return Ok(());
        }
        assert!(!self.panics, "a bug");
        Err(Failure::permanent("cannot be read"))
    }
}

#[tokio::test(start_paused = true)]
async fn guard_stops_a_flood_of_dead_letters_until_resume() {
    const RECORDS: u64 = 5_000;
    for panics in [false, true] {
        let deploy = Arc::new(Deploy {
            panics,
            ..Deploy::default()
        });
        let (sink, alarms, guard) = (
            dead_letter::Memory::new(),
            Arc::new(Alarms::default()),
            DeadLetterGuard::default(),
        );
        let resilient = Resilient::builder("billing", deploy.clone())
            .dead_letters(sink.clone())
            .observer(alarms.clone())
            .guard(guard.clone())
            .build()
            .expect("valid");
        let running = tokio::spawn(async move {
            Pipeline::default()
                .run(&resilient, arriving(RECORDS, 10_000))
                .await
                .is_ok_and(|finished| finished.complete)
        });
        sleep(Duration::from_secs(3_600)).await;
        let letters = sink.letters().len();
        assert!((100..=200).contains(&letters), "{letters} (panics: {panics})");
        assert_eq!(guard.state().len(), 1);
        assert_eq!(alarms.0.load(Atomic::Relaxed), 1);

        deploy.mended.store(true, Atomic::Relaxed);
        guard.resume();
        assert!(running.await.expect("no panic"));
        let processed = deploy.processed.load(Atomic::Relaxed);
        assert_eq!(
            sink.letters().len() + processed,
            RECORDS as usize,
            "nothing is lost"
        );
        assert!(processed > 0);
    }
}

/// A processor whose calls for one tenant are refused.
struct Tenants;

impl RecordProcessor for Tenants {
    type Error = Failure;

    async fn process(&self, record: &Record, _: &Attempt<'_>) -> Result<(), Failure> {
        sleep(Duration::from_millis(2)).await;
        match record.partition_key() {
            Some("customer-7") => Err(Failure::permanent("access denied").with_scope(Scope::Dependency)),
            _ => Ok(()),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn refused_tenant_is_dead_lettered_and_others_continue() {
    let sink = dead_letter::Memory::new();
    let resilient = Resilient::builder("billing", Tenants)
        .dead_letters(sink.clone())
        .build()
        .expect("valid");
    let start = Instant::now();
    let finished = Pipeline::default().run(&resilient, arriving(20_000, 1_000)).await;
    assert!(finished.expect("nothing halts").complete);
    assert_eq!(sink.letters().len(), 20);
    assert!(
        sink.letters()
            .iter()
            .all(|letter| letter.partition_key.as_deref() == Some("customer-7"))
    );
    assert!(start.elapsed() < Duration::from_secs(25), "{:?}", start.elapsed());
    assert_eq!(
        resilient.breaker().map(CircuitBreaker::state),
        Some(CircuitBreakerState::Closed)
    );
}

/// Succeeds or fails as the payload of the record says.
async fn obey(record: Record) -> Result<(), BoxError> {
    match &record.payload()[..] {
        b"ok" => Ok(()),
        b"db" => Err(Failure::transient("no connection").with_dependency("db").into()),
        b"own" => Err(Failure::transient("too long").with_scope(Scope::Record).into()),
        b"refused" => Err(Failure::permanent("not allowed")
            .with_scope(Scope::Dependency)
            .into()),
        b"slow" => {
            sleep(Duration::from_millis(1)).await;
            Err("of unknown cause, after a while".into())
        }
        _ => Err("of unknown cause".into()),
    }
}

fn obedient(sink: &dead_letter::Memory) -> ResilientBuilder<impl RecordProcessor + use<>> {
    Resilient::builder("billing", redrive::processor_fn(obey)).dead_letters(sink.clone())
}

#[tokio::test(start_paused = true)]
async fn held_records_are_dead_lettered_after_hold_at_most() {
    let sink = dead_letter::Memory::new();
    let start = Instant::now();
    let resilient = obedient(&sink).build().expect("valid");
    let (first, second) = (record(0, "a", "unknown"), record(1, "b", "unknown"));
    let settled = tokio::join!(resilient.settle(&first), resilient.settle(&second));
    assert!(
        matches!(
            settled,
            (Ok(Settled::DeadLettered(_)), Ok(Settled::DeadLettered(_)))
        ),
        "{settled:?}"
    );
    let minutes = start.elapsed().as_secs_f64() / 60.0;
    assert!((15.0..17.0).contains(&minutes), "{minutes}");
}

#[tokio::test(start_paused = true)]
async fn failure_of_record_scope_is_not_held() {
    let sink = dead_letter::Memory::new();
    let start = Instant::now();
    let resilient = obedient(&sink).build().expect("valid");
    let settled = resilient.settle(&record(0, "a", "own")).await;
    assert!(matches!(settled, Ok(Settled::DeadLettered(_))));
    assert!(start.elapsed() < Duration::from_secs(2));
}

#[tokio::test(start_paused = true)]
async fn deadline_ends_the_wait_for_an_open_breaker() {
    let sink = dead_letter::Memory::new();
    let resilient = obedient(&sink).build().expect("valid");
    let soon = Instant::now() + Duration::from_secs(60);
    let (first, second) = (record(0, "a", "unknown"), record(1, "b", "unknown"));
    let results = tokio::join!(
        resilient.settle_by(&first, soon),
        resilient.settle_by(&second, soon)
    );
    assert!(
        matches!(
            results,
            (Err(Unsettled::BreakerOpen), Err(Unsettled::BreakerOpen))
        ),
        "{results:?}"
    );
    assert!(sink.letters().is_empty());
}

#[tokio::test(start_paused = true)]
async fn records_passed_to_settle_wait_for_the_end_of_an_outage() {
    let database = Database::down(Duration::ZERO, 60);
    let sink = dead_letter::Memory::new();
    // A round has more probes than there are records. A record that has probed waits for the next round.
    let breaker = CircuitBreaker::builder().keys_in_a_row(2).build().expect("valid");
    let builder = Resilient::builder("billing", database.clone()).dead_letters(sink.clone());
    let resilient = builder.breaker(breaker).build().expect("valid");
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..2 {
        let resilient = resilient.clone();
        tasks.spawn(async move { resilient.settle(&record(number, &number.to_string(), "")).await });
    }
    let settled = tasks.join_all().await;
    assert!(settled.iter().all(|one| matches!(one, Ok(Settled::Processed))));
    assert_eq!((sink.letters().len(), database.stored()), (0, 2));
}

#[tokio::test(start_paused = true)]
async fn record_that_fails_at_two_breakers_is_held() {
    // The database has worked for another processor. This record fails for an unknown cause first, and at
    // the database from then on.
    async fn changes_its_mind(record: Record) -> Result<(), BoxError> {
        static CALLS: AtomicU64 = AtomicU64::new(0);
        match (&record.payload()[..], CALLS.fetch_add(1, Atomic::Relaxed)) {
            (b"ok", _) => Ok(()),
            (_, 0) => Err("of unknown cause".into()),
            _ => Err(Failure::transient("no connection").with_dependency("db").into()),
        }
    }
    let (sink, db) = (dead_letter::Memory::new(), CircuitBreaker::default());
    let other = obedient(&sink).dependency_breaker("db", db.clone());
    let other = other.build().expect("valid");
    for number in 0..10 {
        let settled = other.settle(&record(number, &number.to_string(), "ok")).await;
        assert!(matches!(settled, Ok(Settled::Processed)));
    }
    let resilient = Resilient::builder("billing", redrive::processor_fn(changes_its_mind))
        .dead_letters(sink.clone())
        .dependency_breaker("db", db)
        .build()
        .expect("valid");
    let soon = Instant::now() + Duration::from_secs(60);
    let result = resilient.settle_by(&record(99, "a", ""), soon).await;
    assert!(matches!(result, Err(Unsettled::BreakerOpen)), "{result:?}");
    assert!(sink.letters().is_empty());
}

#[tokio::test(start_paused = true)]
async fn record_is_dead_lettered_while_others_succeed_at_its_breaker() {
    async fn changes_its_mind(_: Record) -> Result<(), BoxError> {
        static CALLS: AtomicU64 = AtomicU64::new(0);
        match CALLS.fetch_add(1, Atomic::Relaxed) {
            0 => Err("of unknown cause".into()),
            _ => Err(Failure::transient("no connection").with_dependency("db").into()),
        }
    }
    let (sink, db) = (dead_letter::Memory::new(), CircuitBreaker::default());
    let other = obedient(&sink).dependency_breaker("db", db.clone());
    let other = other.build().expect("valid");
    let resilient = Resilient::builder("billing", redrive::processor_fn(changes_its_mind))
        .dead_letters(sink.clone())
        .dependency_breaker("db", db)
        .build()
        .expect("valid");
    let start = Instant::now();
    let alone = tokio::spawn(async move { resilient.settle(&record(99, "a", "")).await });
    // Calls of another processor to the same database succeed during this time.
    for number in 0..60_000 {
        if alone.is_finished() {
            break;
        }
        let settled = other.settle(&record(number, &number.to_string(), "ok")).await;
        assert!(matches!(settled, Ok(Settled::Processed)));
        sleep(Duration::from_millis(10)).await;
    }
    assert!(matches!(alone.await, Ok(Ok(Settled::DeadLettered(_)))));
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    assert_eq!(sink.letters()[0].reason, dead_letter::Reason::AttemptsExhausted);
}

#[tokio::test(start_paused = true)]
async fn processors_share_the_breaker_of_a_dependency() {
    let sink = dead_letter::Memory::new();
    let db = CircuitBreaker::default();
    let first = obedient(&sink)
        .dependency_breaker("db", db.clone())
        .build()
        .expect("valid");
    let second = obedient(&sink)
        .dependency_breaker("db", db.clone())
        .build()
        .expect("valid");
    let third = obedient(&sink).build().expect("valid");
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..5 {
        let first = first.clone();
        tasks.spawn(async move { first.settle(&record(number, &number.to_string(), "db")).await });
    }
    sleep(Duration::from_millis(1)).await;
    assert_eq!(db.state(), CircuitBreakerState::Open);
    assert_eq!(
        first.breaker().map(CircuitBreaker::state),
        Some(CircuitBreakerState::Closed)
    );

    let start = Instant::now();
    assert!(matches!(
        third.settle(&record(9, "z", "ok")).await,
        Ok(Settled::Processed)
    ));
    assert_eq!(
        start.elapsed(),
        Duration::ZERO,
        "the third processor does not use the breaker"
    );
    assert!(matches!(
        second.settle(&record(9, "z", "ok")).await,
        Ok(Settled::Processed)
    ));
    assert!(
        start.elapsed() >= Duration::from_millis(500),
        "the second processor waits for the breaker"
    );
}

#[tokio::test(start_paused = true)]
async fn failing_lanes_do_not_keep_a_breaker_open() {
    let sink = dead_letter::Memory::new();
    let resilient = obedient(&sink).build().expect("valid");
    // The failing records outnumber the probes of a round, and they all precede the first good record.
    let records = (0..400)
        .map(|number| {
            record(
                number,
                &number.to_string(),
                if number < 20 { "unknown" } else { "ok" },
            )
        })
        .collect::<Vec<_>>();
    let start = Instant::now();
    let batches = stream::iter(
        records
            .chunks(50)
            .map(|some| Batch::from(some.to_vec()))
            .collect::<Vec<_>>(),
    );
    let finished = Pipeline::builder()
        .ordering(RecordOrder::PartitionKey)
        .build()
        .expect("valid")
        .run(&resilient, batches)
        .await;
    assert!(finished.expect("nothing halts").complete);
    assert_eq!(sink.letters().len(), 20);
    // Twenty failures in a row look like an outage. Some rounds of probes try failing records only.
    assert!(
        start.elapsed() < Duration::from_secs(600),
        "{:?}",
        start.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn scattered_bad_records_open_no_breaker() {
    let sink = dead_letter::Memory::new();
    let resilient = obedient(&sink).build().expect("valid");
    let script = |number| if number % 20 == 7 { "unknown" } else { "ok" };
    let records = (0..400).map(|number| record(number, &number.to_string(), script(number)));
    let start = Instant::now();
    let batches = stream::iter([Batch::from(records.collect::<Vec<_>>())]);
    let finished = Pipeline::default().run(&resilient, batches).await;
    assert!(finished.expect("nothing halts").complete);
    assert_eq!(sink.letters().len(), 20);
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    assert_eq!(
        resilient.breaker().map(CircuitBreaker::state),
        Some(CircuitBreakerState::Closed)
    );
}

/// Settles the records through `pipeline`. Returns the number of dead letters and the elapsed time.
async fn settle_all(
    records: &[(&str, &str)],
    pipeline: Pipeline,
    breaker: CircuitBreaker,
) -> (usize, Duration) {
    let sink = dead_letter::Memory::new();
    let resilient = obedient(&sink).breaker(breaker).build().expect("valid");
    let records = (0..).zip(records);
    let records: Vec<Record> = records
        .map(|(number, (key, text))| record(number, key, text))
        .collect();
    let start = Instant::now();
    let run = pipeline.run(&resilient, stream::iter([Batch::from(records)]));
    let finished = tokio::time::timeout(Duration::from_secs(24 * 60 * 60), run).await;
    let finished = finished.expect("the pipeline ends").expect("nothing halts");
    assert!(finished.complete);
    (sink.letters().len(), start.elapsed())
}

/// The keys that were tried in each round of probes.
#[derive(Default)]
struct Rounds(Mutex<Vec<Vec<String>>>);

impl Observer for Rounds {
    fn on(&self, event: &Event<'_>) {
        let mut rounds = self.0.lock().expect("no panic while locked");
        match event {
            Event::Protection(ProtectionEvent::BreakerHalfOpened { .. }) => rounds.push(Vec::new()),
            Event::Record {
                record,
                event: RecordEvent::AttemptFailed { .. },
            } => {
                let key = record.partition_key().unwrap_or_default().to_owned();
                rounds
                    .iter_mut()
                    .last()
                    .into_iter()
                    .for_each(|round| round.push(key.clone()));
            }
            _ => {}
        }
    }
}

#[tokio::test(start_paused = true)]
async fn probes_come_from_different_lanes_in_turn() {
    let database = Database::down(Duration::ZERO, 60);
    let rounds = Arc::new(Rounds::default());
    let resilient = Resilient::builder("billing", database.clone())
        .dead_letters(dead_letter::Memory::new())
        .observer(rounds.clone())
        .seed(5)
        .build()
        .expect("valid");
    // Two records of each of nine keys.
    let records = (0..18).map(|number| record(number, &(number % 9).to_string(), ""));
    let batches = stream::iter([Batch::from(records.collect::<Vec<_>>())]);
    let finished = Pipeline::default().run(&resilient, batches).await;
    assert!(finished.expect("nothing halts").complete);
    let mut rounds = rounds.0.lock().expect("no panic while locked").clone();
    rounds.retain(|round| !round.is_empty());
    assert!(rounds.len() > 4, "{rounds:?}");
    for round in &rounds {
        let different: std::collections::HashSet<&String> = round.iter().collect();
        assert_eq!(different.len(), round.len(), "a lane was tried twice: {round:?}");
    }
    let tried: std::collections::HashSet<&String> = rounds.iter().flatten().collect();
    assert_eq!(tried.len(), 9, "a lane was never probed: {rounds:?}");
}

#[test]
fn resilient_returns_its_settings() {
    let sink = dead_letter::Memory::new();
    let guard = DeadLetterGuard::builder()
        .share(0.25)
        .min_records(7)
        .window(Duration::from_secs(3))
        .build()
        .expect("valid");
    let budget = redrive::RetryBudget::builder()
        .share_of_successes(0.5)
        .per_second(3.0)
        .build()
        .expect("valid");
    let resilient = obedient(&sink)
        .guard(guard.clone())
        .retry_budget(budget.clone())
        .build()
        .expect("valid");
    assert_eq!(resilient.application(), "billing");
    assert_eq!(
        resilient.dead_letters().map(|sink| sink.name()).as_deref(),
        Some("memory")
    );
    assert_eq!(format!("{:?}", resilient.guard()), format!("{:?}", Some(guard)));
    assert_eq!(
        format!("{:?}", resilient.retry_budget()),
        format!("{:?}", Some(budget))
    );
    let without = obedient(&sink)
        .without_breaker()
        .without_guard()
        .without_retry_budget();
    let without = without.build().expect("valid");
    assert!(without.breaker().is_none() && without.guard().is_none() && without.retry_budget().is_none());
}

#[tokio::test(start_paused = true)]
async fn lone_failing_record_does_not_block_a_shard_forever() {
    for (how, least, most) in [("unknown", 0.0, 0.5), ("refused", 15.0, 17.5)] {
        // No other record can succeed meanwhile. A record that blames a dependency is held for
        // `hold_at_most`.
        let records = [("a", "ok"), ("b", how), ("c", "ok"), ("b", "ok")];
        let pipeline = Pipeline::builder()
            .ordering(RecordOrder::Shard)
            .build()
            .expect("valid");
        let (letters, took) = settle_all(&records, pipeline, CircuitBreaker::default()).await;
        assert_eq!(letters, 1, "{how}");
        let minutes = took.as_secs_f64() / 60.0;
        assert!((least..most).contains(&minutes), "{how}: {minutes}");
    }
}

#[tokio::test(start_paused = true)]
async fn round_of_probes_ends_with_fewer_records_than_probes() {
    // Only the two failing records are in flight, so no other record can probe.
    let records = [
        ("a", "slow"),
        ("b", "slow"),
        ("c", "ok"),
        ("d", "ok"),
        ("e", "ok"),
    ];
    let breaker = CircuitBreaker::builder().keys_in_a_row(2).build().expect("valid");
    let (letters, took) = settle_all(
        &records,
        Pipeline::builder().in_flight(2).build().expect("valid"),
        breaker,
    )
    .await;
    assert_eq!(letters, 2);
    assert!(took < Duration::from_secs(20 * 60), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn attempt_that_outlasts_an_outage_makes_no_dead_letter() {
    // Each attempt hangs for 5 s. Two records are too few to open the breaker.
    struct Hangs(Instant);
    impl RecordProcessor for Hangs {
        type Error = BoxError;
        async fn process(&self, _: &Record, _: &Attempt<'_>) -> Result<(), BoxError> {
            if Instant::now() < self.0 {
                std::future::pending().await
            }
            Ok(())
        }
    }
    let sink = dead_letter::Memory::new();
    let outage_ends = Instant::now() + Duration::from_secs(62);
    let policy = redrive::RetryPolicy::exponential()
        .attempt_timeout(Duration::from_secs(5))
        .max_attempts(2);
    let resilient = Resilient::builder("billing", Hangs(outage_ends))
        .dead_letters(sink.clone())
        .retry(policy)
        .seed(3)
        .build()
        .expect("valid");
    let batches = stream::iter([0, 1]).then(|number| async move {
        sleep(Duration::from_secs(2 * number)).await;
        Batch::from(vec![record(number, &number.to_string(), "")])
    });
    let batches: std::pin::Pin<Box<dyn Stream<Item = Batch>>> =
        Box::pin(batches.chain(stream::once(async move {
            // This record succeeds while the last attempts of the others still hang.
            sleep_until(outage_ends).await;
            Batch::from(vec![record(9, "other", "")])
        })));
    let finished = Pipeline::default().run(&resilient, batches).await;
    assert!(finished.expect("nothing halts").complete);
    assert_eq!(sink.letters(), []);
}

#[test]
fn invalid_protection_settings_are_refused() {
    let sink = dead_letter::Memory::new();
    let policy = redrive::RetryPolicy::exponential;
    for (policy, setting) in [
        (policy().max_attempts(0), "max_attempts"),
        (policy().attempt_timeout(Duration::ZERO), "attempt_timeout"),
        (policy().backoff(Backoff::exponential().factor(0.5)), "backoff"),
    ] {
        let refused = obedient(&sink).retry(policy).build().err();
        assert_eq!(refused.expect("refused").setting(), setting);
    }
    assert!(CircuitBreaker::builder().probes(4).build().is_err());
    assert!(DeadLetterGuard::builder().share(1.0).build().is_err());
    assert!(redrive::RetryBudget::builder().per_second(0.0).build().is_err());
    let _: Verdict = Verdict::transient().with_dependency("db");
}
