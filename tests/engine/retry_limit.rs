//! Tests of the retry limit: `max_attempts` is exact, and an outage costs at most one dead letter.
//! Time is paused throughout.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering as Atomic};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::stream::{self, Stream, StreamExt};
use redrive::dead_letter::{Memory, Reason};
use redrive::observer::{Event, Observer, RecordEvent};
use redrive::pipeline::{Batch, Pipeline, RecordOrder};
use redrive::processor::{Attempt, BatchFailure};
use redrive::{
    BatchProcessor, BoxError, Failure, Record, RecordProcessor, Resilient, RetryPolicy, Settled, processor_fn,
};
use support::script::record;
use tokio::time::{Instant, sleep, sleep_until};

/// A processor that fails for payloads of "bad", and for all records while its database is down.
#[derive(Debug)]
struct Orders {
    down: Range<Instant>,
    /// Set if the error says that the database is at fault.
    says_so: bool,
    calls_for_bad: AtomicU32,
    calls_while_down: AtomicU32,
    stored: AtomicU32,
}

impl Orders {
    fn new(down: Range<u64>, says_so: bool) -> Arc<Self> {
        let at = |secs| Instant::now() + Duration::from_secs(secs);
        Arc::new(Orders {
            down: at(down.start)..at(down.end),
            says_so,
            calls_for_bad: AtomicU32::new(0),
            calls_while_down: AtomicU32::new(0),
            stored: AtomicU32::new(0),
        })
    }
}

impl RecordProcessor for Orders {
    type Error = BoxError;

    async fn process(&self, record: &Record, _: &Attempt<'_>) -> Result<(), BoxError> {
        sleep(Duration::from_millis(5)).await;
        if self.down.contains(&Instant::now()) {
            self.calls_while_down.fetch_add(1, Atomic::Relaxed);
            return Err(match self.says_so {
                true => Failure::transient("connection refused")
                    .with_dependency("database")
                    .into(),
                false => "could not store the order".into(),
            });
        }
        if record.payload() == "bad" {
            self.calls_for_bad.fetch_add(1, Atomic::Relaxed);
            return Err("could not store the order".into());
        }
        self.stored.fetch_add(1, Atomic::Relaxed);
        Ok(())
    }
}

/// Returns batches at `per_second` records per second. `of` returns the key and the payload of each record.
fn arriving(
    records: u64,
    per_second: u64,
    of: impl Fn(u64) -> (String, &'static str) + Send + 'static,
) -> impl Stream<Item = Batch> + Unpin {
    let start = Instant::now();
    let batch = (per_second / 10).max(1);
    let batches = stream::iter((0..records).step_by(batch as usize)).then(move |first| {
        let records: Vec<Record> = (first..records.min(first + batch))
            .map(|number| {
                let (key, payload) = of(number);
                record(number, &key, payload)
            })
            .collect();
        async move {
            sleep_until(start + Duration::from_millis(first * 1_000 / per_second)).await;
            Batch::from(records)
        }
    });
    Box::pin(batches)
}

fn policy(attempts: u32) -> RetryPolicy {
    RetryPolicy::exponential().max_attempts(attempts)
}

async fn run(orders: &Arc<Orders>, batches: impl Stream<Item = Batch> + Unpin + Send) -> Memory {
    let sink = Memory::new();
    let builder = Resilient::builder("billing", orders.clone()).dead_letters(sink.clone());
    let resilient = builder.seed(7).build().expect("valid");
    let finished = Pipeline::default().run(&resilient, batches).await;
    assert!(finished.expect("nothing halts").complete);
    sink
}

/// Checks the calls and the dead letter of a lone bad record.
fn check_lone(attempts: u32, calls: u32, sink: &Memory) {
    assert_eq!(calls, attempts);
    let letters = sink.letters();
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].reason, Reason::AttemptsExhausted);
    assert_eq!(
        (letters[0].attempts.count, letters[0].attempts.probes),
        (attempts, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn lone_record_is_called_max_attempts_times() {
    for attempts in [1, 3, 5, 50] {
        let calls = Arc::new(AtomicU32::new(0));
        let sink = Memory::new();
        let processor = processor_fn({
            let calls = calls.clone();
            move |_: Record| {
                calls.fetch_add(1, Atomic::Relaxed);
                async { Err::<(), _>(BoxError::from("no")) }
            }
        });
        let builder = Resilient::builder("billing", processor).dead_letters(sink.clone());
        let policy = policy(attempts).max_elapsed(Duration::from_secs(3_600));
        let resilient = builder.retry(policy).build().expect("valid");
        let settled = resilient.settle(&record(1, "a", "bad")).await;
        assert!(matches!(settled, Ok(Settled::DeadLettered(_))), "{settled:?}");
        check_lone(attempts, calls.load(Atomic::Relaxed), &sink);
    }
}

#[tokio::test(start_paused = true)]
async fn lone_record_in_the_pipeline_is_called_max_attempts_times() {
    for attempts in [1, 3, 5] {
        for ordering in [
            RecordOrder::PartitionKey,
            RecordOrder::Shard,
            RecordOrder::Unordered,
        ] {
            let orders = Orders::new(0..0, false);
            let sink = Memory::new();
            let builder = Resilient::builder("billing", orders.clone()).dead_letters(sink.clone());
            let resilient = builder.retry(policy(attempts)).build().expect("valid");
            let batches = arriving(1, 1, |_| ("a".to_owned(), "bad"));
            let finished = Pipeline::builder()
                .ordering(ordering)
                .build()
                .expect("valid")
                .run(&resilient, batches)
                .await;
            assert!(finished.expect("nothing halts").complete);
            check_lone(attempts, orders.calls_for_bad.load(Atomic::Relaxed), &sink);
        }
    }
}

/// The sizes of all batch calls. A batch fails as a whole if one of its records is bad.
#[derive(Debug, Default)]
struct Batches(Mutex<Vec<usize>>);

#[derive(Debug)]
struct Watched(Arc<Batches>);

impl BatchProcessor for Watched {
    type Error = BoxError;

    async fn process_batch(&self, records: &[Record], _: &Attempt<'_>) -> Result<(), BatchFailure<BoxError>> {
        self.0
            .0
            .lock()
            .expect("no panic while locked")
            .push(records.len());
        match records.iter().any(|record| record.payload() == "bad") {
            true => Err(BatchFailure::All("could not store the orders".into())),
            false => Ok(()),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn lone_record_in_a_batch_is_called_max_attempts_times() {
    for attempts in [1, 3, 5] {
        let batches = Arc::new(Batches::default());
        let sink = Memory::new();
        let builder =
            Resilient::builder("billing", Watched(batches.clone()).batched()).dead_letters(sink.clone());
        let resilient = builder.retry(policy(attempts)).build().expect("valid");
        let arriving = arriving(1, 1, |_| ("a".to_owned(), "bad"));
        let finished = Pipeline::default().run(&resilient, arriving).await;
        assert!(finished.expect("nothing halts").complete);
        let calls = batches.0.lock().expect("no panic while locked").len();
        check_lone(attempts, u32::try_from(calls).expect("few"), &sink);
    }
}

#[tokio::test(start_paused = true)]
async fn bad_record_among_good_ones_is_called_five_times() {
    let orders = Orders::new(0..0, false);
    let of = |number| {
        let payload = if number == 500 { "bad" } else { "good" };
        (format!("customer-{number}"), payload)
    };
    let sink = run(&orders, arriving(3_000, 100, of)).await;
    check_lone(5, orders.calls_for_bad.load(Atomic::Relaxed), &sink);
    assert_eq!(orders.stored.load(Atomic::Relaxed), 2_999);
}

#[tokio::test(start_paused = true)]
async fn one_percent_bad_records_get_at_most_ten_percent_more_calls() {
    const RECORDS: u64 = 60_000;
    // Good records follow the last bad one: failures without any later success look like an outage.
    const BAD_UNTIL: u64 = 40_000;
    let orders = Orders::new(0..0, false);
    let of = |number| {
        let is_bad = number % 100 == 7 && number < BAD_UNTIL;
        let payload = if is_bad { "bad" } else { "good" };
        (format!("customer-{number}"), payload)
    };
    let sink = run(&orders, arriving(RECORDS, 10_000, of)).await;
    let bad = BAD_UNTIL / 100;
    assert_eq!(sink.letters().len() as u64, bad);
    let calls = f64::from(orders.calls_for_bad.load(Atomic::Relaxed)) / bad as f64;
    println!("{calls:.2} calls of each bad record");
    assert!((5.0..=5.5).contains(&calls), "{calls}");
}

/// Without a scope, an outage is suspected only from the second failing record on, so the first may be
/// dead-lettered.
#[tokio::test(start_paused = true)]
async fn outage_costs_at_most_one_dead_letter() {
    for says_so in [false, true] {
        for (records, per_second, keys) in [(100_000, 10_000, 1_000), (120, 1, 1_000), (120, 1, 1)] {
            let orders = Orders::new(5..65, says_so);
            let of = move |number| (format!("customer-{}", number % keys), "good");
            let sink = run(&orders, arriving(records, per_second, of)).await;
            let letters = sink.letters().len();
            println!(
                "60 s outage, {per_second} records/s of {keys} keys, scope known: {says_so}: {letters} dead letters, {} \
                 calls while down",
                orders.calls_while_down.load(Atomic::Relaxed),
            );
            assert!(letters <= usize::from(!says_so), "{letters}");
            // The counts of an earlier, more complicated rule are the limit.
            let most = if per_second == 1 { 43 } else { 94 };
            assert!(orders.calls_while_down.load(Atomic::Relaxed) <= most);
            assert_eq!(
                orders.stored.load(Atomic::Relaxed) as usize + letters,
                records as usize
            );
        }
    }
}

/// Counts records that are held.
#[derive(Default)]
struct Held(AtomicU32);

impl Observer for Held {
    fn on(&self, event: &Event<'_>) {
        if matches!(
            event,
            Event::Record {
                event: RecordEvent::Held { .. },
                ..
            }
        ) {
            self.0.fetch_add(1, Atomic::Relaxed);
        }
    }
}

/// Two records fail and nothing succeeds, so an outage is suspected until other records succeed.
#[tokio::test(start_paused = true)]
async fn held_record_gets_all_attempts_once_another_succeeds() {
    let calls: HashMap<String, AtomicU32> = (1..=2)
        .map(|number: u64| (number.to_string(), AtomicU32::new(0)))
        .collect();
    let (calls, held, sink) = (Arc::new(calls), Arc::new(Held::default()), Memory::new());
    let processor = processor_fn({
        let calls = calls.clone();
        move |record: Record| {
            let of_bad = calls.get(record.sequence_number().as_str());
            of_bad.map(|calls| calls.fetch_add(1, Atomic::Relaxed));
            let is_bad = of_bad.is_some();
            async move {
                sleep(Duration::from_millis(1)).await;
                if is_bad { Err(BoxError::from("no")) } else { Ok(()) }
            }
        }
    });
    let builder = Resilient::builder("billing", processor).dead_letters(sink.clone());
    let builder = builder.observer(held.clone());
    let resilient = builder.retry(policy(3)).build().expect("valid");
    let mut settling = tokio::task::JoinSet::new();
    for number in [1, 2] {
        let resilient = resilient.clone();
        settling.spawn(async move {
            resilient
                .settle(&record(number, &number.to_string(), "bad"))
                .await
        });
    }
    sleep(Duration::from_secs(300)).await;
    assert_eq!(sink.letters().len(), 0, "held");
    assert_eq!(held.0.load(Atomic::Relaxed), 2, "each is reported once");
    // Others succeed from now on.
    let mut number = 3;
    while !settling.is_empty() {
        let good = record(number, &number.to_string(), "good");
        let settled = resilient.settle(&good).await;
        assert!(matches!(settled, Ok(Settled::Processed)));
        sleep(Duration::from_millis(20)).await;
        while let Some(settled) = settling.try_join_next() {
            assert!(matches!(settled, Ok(Ok(Settled::DeadLettered(_)))), "{settled:?}");
        }
        number += 1;
    }
    let letters = sink.letters();
    assert_eq!(letters.len(), 2);
    for letter in letters {
        let attempts = &letter.attempts;
        assert_eq!(
            attempts.count, 6,
            "three attempts before the hold and three after it"
        );
        assert!(attempts.probes > 1, "the record was probed while it was held");
        assert_eq!(
            attempts.calls(),
            calls[&letter.sequence_number.to_string()].load(Atomic::Relaxed)
        );
    }
}

/// A record fails for a reason of its own, and then, before its next attempt, an outage begins whose error names
/// the dependency. The records that succeeded before the outage say nothing about it.
#[tokio::test(start_paused = true)]
async fn outage_that_begins_between_two_attempts_costs_no_dead_letter() {
    let start = Instant::now();
    let (down, sink) = (
        start + Duration::from_secs(2)..start + Duration::from_secs(60),
        Memory::new(),
    );
    let is_first = Arc::new(AtomicU32::new(1));
    let processor = processor_fn(move |record: Record| {
        let (down, is_first) = (down.clone(), is_first.clone());
        async move {
            sleep(Duration::from_millis(5)).await;
            if record.payload() == "slow" && is_first.swap(0, Atomic::Relaxed) == 1 {
                // The next attempt is made during the outage.
                return Err(Failure::transient("slow").with_retry_after(Duration::from_secs(3)));
            }
            match down.contains(&Instant::now()) {
                true => Err(Failure::transient("refused").with_scope(redrive::Scope::Dependency)),
                false => Ok(()),
            }
        }
    });
    let builder = Resilient::builder("billing", processor).dead_letters(sink.clone());
    let resilient = builder.retry(policy(3)).build().expect("valid");
    let slow = tokio::spawn({
        let resilient = resilient.clone();
        async move { resilient.settle(&record(1, "1", "slow")).await }
    });
    sleep(Duration::from_secs(1)).await;
    let other = resilient.settle(&record(2, "2", "other")).await;
    assert!(matches!(other, Ok(Settled::Processed)), "{other:?}");
    let settled = slow.await.expect("no panic");
    assert!(matches!(settled, Ok(Settled::Processed)), "{settled:?}");
    assert!(start.elapsed() > Duration::from_secs(60), "after the outage");
    assert_eq!(sink.letters().len(), 0);
}
