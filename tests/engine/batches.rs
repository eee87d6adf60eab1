//! Tests of batch processors: which records form a batch, and how they settle when the batch fails.
//! Time is paused throughout.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::{self, Stream, StreamExt};
use proptest::prelude::*;
use redrive::checkpoint::Checkpoint;
use redrive::dead_letter;
use redrive::idempotency::{self, Claim, Claimed, Completion, IdempotencyStore, Key, Status, StoreError};
use redrive::observer::{Event, Observer, RecordEvent};
use redrive::pipeline::{Batch, Finished, Pipeline, RecordOrder};
use redrive::processor::{Attempt, BatchFailure};
use redrive::{
    BatchProcessor, BoxError, DeadLetterGuard, Failure, Idempotency, Jitter, Position, Record, Resilient,
    ResilientBuilder, RetryPolicy, Scope, SequenceNumber, Settled,
};
use support::script::record;
use tokio::time::{Instant, advance, sleep};

/// A table that stores all rows of a batch, or none. The payload of a record says what its row does:
///
/// - `bad`: the call fails permanently, and the error blames a record.
/// - `own`: the call fails with a transient error that blames a record; `own:<n>`: the first `n` times.
/// - `odd`: the call fails for an unknown cause; `odd:<n>`: the first `n` times.
/// - `named`: the call names this record with a permanent error.
/// - `named:<n>`: the call names this record with an error of unknown cause, the first `n` times.
/// - `panic` and `hang`: the call panics or never returns.
/// - Any other payload is stored.
#[derive(Clone, Default)]
struct Table(Arc<State>);

#[derive(Default)]
struct State {
    calls: Mutex<Vec<Vec<u64>>>,
    at: Mutex<Vec<Instant>>,
    /// The stored rows, in the order in which they were last put.
    rows: Mutex<Vec<Record>>,
    letters: dead_letter::Memory,
    failed: Mutex<BTreeMap<u64, u32>>,
    is_down: AtomicBool,
    /// An outage whose errors do not say that the table is at fault.
    is_odd: AtomicBool,
    takes: Mutex<Duration>,
    /// The records whose order is checked. When the handler gets a record, all earlier records of its lane
    /// are settled or are in the same call.
    ordering: Mutex<Option<(RecordOrder, Vec<Record>)>>,
    broken: Mutex<Vec<String>>,
    running: AtomicUsize,
}

fn number(record: &Record) -> u64 {
    number_of(record.sequence_number())
}

fn number_of(sequence_number: &SequenceNumber) -> u64 {
    sequence_number.as_str().parse().expect("a small number")
}

impl Table {
    fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock().expect("no panic while locked")
    }

    fn calls(&self) -> Vec<Vec<u64>> {
        Table::lock(&self.0.calls).clone()
    }

    fn sizes(&self) -> Vec<usize> {
        self.calls().iter().map(Vec::len).collect()
    }

    fn rows(&self) -> BTreeSet<u64> {
        Table::lock(&self.0.rows).iter().map(number).collect()
    }

    /// The sequence numbers of all dead letters, from the lowest.
    fn letters(&self) -> Vec<u64> {
        let letters = self.0.letters.letters();
        let mut numbers: Vec<u64> = letters
            .iter()
            .map(|letter| number_of(&letter.sequence_number))
            .collect();
        numbers.sort_unstable();
        numbers
    }

    fn looks_at_order(&self, ordering: RecordOrder, records: &[Record]) {
        *Table::lock(&self.0.ordering) = Some((ordering, records.to_vec()));
    }

    fn look_at_order(&self, given: &[Record]) {
        let Some((ordering, all)) = &*Table::lock(&self.0.ordering) else {
            return;
        };
        let (rows, letters) = (self.rows(), self.letters());
        for (index, record) in given.iter().enumerate() {
            let with: BTreeSet<u64> = given[..index].iter().map(number).collect();
            for before in all.iter().take_while(|before| number(before) < number(record)) {
                let same_lane = match ordering {
                    RecordOrder::Shard => true,
                    RecordOrder::PartitionKey => before.partition_key() == record.partition_key(),
                    _ => false,
                };
                let before = number(before);
                if same_lane
                    && !rows.contains(&before)
                    && !letters.contains(&before)
                    && !with.contains(&before)
                {
                    let broken = format!("{} was given before {before} was settled", number(record));
                    Table::lock(&self.0.broken).push(broken);
                }
            }
        }
    }

    fn fails_again(&self, record: &Record, times: &str) -> bool {
        let mut failed = Table::lock(&self.0.failed);
        let failed = failed.entry(number(record)).or_default();
        *failed += 1;
        times.parse().is_ok_and(|times: u32| *failed <= times)
    }
}

fn all_failed(failure: Failure) -> Result<(), BatchFailure<BoxError>> {
    Err(BatchFailure::All(failure.into()))
}

impl BatchProcessor for Table {
    type Error = BoxError;

    async fn process_batch(&self, records: &[Record], _: &Attempt<'_>) -> Result<(), BatchFailure<BoxError>> {
        Table::lock(&self.0.calls).push(records.iter().map(number).collect());
        Table::lock(&self.0.at).push(Instant::now());
        self.look_at_order(records);
        self.0.running.fetch_add(1, SeqCst);
        let takes = *Table::lock(&self.0.takes);
        if !takes.is_zero() {
            sleep(takes).await;
        }
        self.0.running.fetch_sub(1, SeqCst);
        if self.0.is_odd.load(SeqCst) {
            return Err(BoxError::from("something is odd"))?;
        }
        if self.0.is_down.load(SeqCst) {
            return all_failed(Failure::transient("no connection").with_scope(Scope::Dependency));
        }
        let mut named = Vec::new();
        for (index, record) in records.iter().enumerate() {
            let word = std::str::from_utf8(record.payload()).expect("text");
            let (word, times) = word.split_once(':').unwrap_or((word, "9999"));
            match word {
                "bad" => return all_failed(Failure::permanent("a bad row")),
                "own" if self.fails_again(record, times) => {
                    return all_failed(Failure::transient("locked").with_scope(Scope::Record));
                }
                "odd" if self.fails_again(record, times) => return Err(BoxError::from("something is odd"))?,
                "named" if times == "9999" => named.push((index, Failure::permanent("a bad row").into())),
                "named" if self.fails_again(record, times) => named.push((index, "something is odd".into())),
                "panic" => panic!("scripted"),
                "hang" => std::future::pending().await,
                _ => {}
            }
        }
        let failed: BTreeSet<usize> = named.iter().map(|(index, _)| *index).collect();
        let put = records
            .iter()
            .enumerate()
            .filter(|(index, _)| !failed.contains(index));
        for (_, record) in put {
            let mut rows = Table::lock(&self.0.rows);
            rows.retain(|row| number(row) != number(record));
            rows.push(record.clone());
        }
        match named.is_empty() {
            true => Ok(()),
            false => Err(BatchFailure::of(named)),
        }
    }
}

/// Returns `count` records of different keys. `others` lists the records with a payload, and the payload.
fn records(count: u64, others: &[(u64, &str)]) -> Vec<Record> {
    let word = |number| {
        others
            .iter()
            .find(|(other, _)| *other == number)
            .map_or("", |(_, word)| word)
    };
    (0..count)
        .map(|number| record(number, &format!("key-{number}"), word(number)))
        .collect()
}

fn builder(table: &Table, size: usize) -> ResilientBuilder<redrive::processor::Batched<Table>> {
    Resilient::builder("billing", table.clone().batched().size(size))
        .retry(RetryPolicy::exponential().jitter(Jitter::None))
        .dead_letters(table.0.letters.clone())
        .without_guard()
        .seed(7)
}

fn whole(records: Vec<Record>) -> impl Stream<Item = Batch> + Unpin {
    stream::iter([Batch::from(records)])
}

async fn run(table: &Table, size: usize, records: Vec<Record>) -> Finished {
    let resilient = builder(table, size).build().expect("valid");
    Pipeline::default()
        .run(&resilient, whole(records))
        .await
        .expect("no halt")
}

fn all(count: u64) -> BTreeSet<u64> {
    (0..count).collect()
}

#[tokio::test(start_paused = true)]
async fn available_records_are_batched() {
    let table = Table::default();
    assert!(run(&table, 100, records(250, &[])).await.complete);
    assert_eq!(table.sizes(), [100, 100, 50]);
    assert_eq!(
        table.calls().concat(),
        (0..250).collect::<Vec<_>>(),
        "in the order of the shard"
    );
}

#[tokio::test(start_paused = true)]
async fn records_of_one_key_are_batched_in_order() {
    for ordering in [
        RecordOrder::Shard,
        RecordOrder::PartitionKey,
        RecordOrder::Unordered,
    ] {
        let table = Table::default();
        let records: Vec<Record> = (0..100).map(|number| record(number, "one", "")).collect();
        let pipeline = Pipeline::builder().ordering(ordering).build().expect("valid");
        let resilient = builder(&table, 40).build().expect("valid");
        assert!(
            pipeline
                .run(&resilient, whole(records))
                .await
                .expect("no halt")
                .complete
        );
        assert_eq!(table.sizes(), [40, 40, 20], "{ordering:?}");
        assert_eq!(table.calls().concat(), (0..100).collect::<Vec<_>>());
    }
}

#[tokio::test(start_paused = true)]
async fn only_records_of_the_same_key_wait_for_a_running_batch() {
    let table = Table::default();
    *Table::lock(&table.0.takes) = Duration::from_millis(10);
    let mut records: Vec<Record> = (0..20).map(|number| record(number, "one", "")).collect();
    records.extend((20..30).map(|number| record(number, "two", "")));
    assert!(run(&table, 10, records).await.complete);
    let at: Vec<u128> = {
        let at = Table::lock(&table.0.at);
        at.iter().map(|time| (*time - at[0]).as_millis()).collect()
    };
    let calls = table.calls();
    let of = |first: u64| {
        calls
            .iter()
            .position(|call| call[0] == first)
            .map(|index| at[index])
    };
    assert_eq!((of(0), of(20), of(10)), (Some(0), Some(0), Some(10)));
}

#[tokio::test(start_paused = true)]
async fn batch_bytes_are_bounded_and_a_large_record_goes_alone() {
    let table = Table::default();
    let sized = |number: u64, bytes: usize| record(number, &number.to_string(), &"x".repeat(bytes));
    let records = [400, 400, 400, 5_000, 100, 900, 1].iter().zip(0..);
    let records = records.map(|(bytes, number)| sized(number, *bytes)).collect();
    let resilient = Resilient::builder("billing", table.clone().batched().bytes(1_000))
        .dead_letters(table.0.letters.clone())
        .build()
        .expect("valid");
    Pipeline::default()
        .run(&resilient, whole(records))
        .await
        .expect("no halt");
    assert_eq!(table.calls(), [vec![0, 1], vec![2], vec![3], vec![4, 5], vec![6]]);
}

#[tokio::test(start_paused = true)]
async fn batch_waits_for_more_records_until_linger_ends() {
    let linger = Duration::from_millis(200);
    let table = Table::default();
    let start = Instant::now();
    // One record every 30 ms, fifteen in all. The stream then stays open for a minute.
    let trickle = stream::iter(records(15, &[])).then(|record| async move {
        sleep(Duration::from_millis(30)).await;
        Batch::from(vec![record])
    });
    let trickle = Box::pin(trickle.chain(stream::once(async {
        sleep(Duration::from_secs(60)).await;
        Batch::from(Vec::new())
    })));
    let resilient = Resilient::builder("billing", table.clone().batched().size(5).linger(linger))
        .dead_letters(table.0.letters.clone())
        .build()
        .expect("valid");
    Pipeline::default()
        .run(&resilient, trickle)
        .await
        .expect("no halt");
    assert_eq!(
        table.sizes(),
        [5, 5, 5],
        "each batch is full before its linger ends"
    );
    let at = Table::lock(&table.0.at)[0] - start;
    assert_eq!(at, Duration::from_millis(150));

    let table = Table::default();
    let start = Instant::now();
    let few = Box::pin(
        stream::iter([Batch::from(records(3, &[]))]).chain(stream::once(async {
            sleep(Duration::from_secs(60)).await;
            Batch::from(Vec::new())
        })),
    );
    let resilient = Resilient::builder("billing", table.clone().batched().size(5).linger(linger))
        .dead_letters(table.0.letters.clone())
        .build()
        .expect("valid");
    Pipeline::default().run(&resilient, few).await.expect("no halt");
    assert_eq!(table.sizes(), [3]);
    assert_eq!(
        Table::lock(&table.0.at)[0] - start,
        linger,
        "the batch does not wait for the end of the stream"
    );
}

#[tokio::test(start_paused = true)]
async fn bad_record_is_found_by_halving_without_a_retry() {
    for bad in [0, 1, 17, 62, 63] {
        let table = Table::default();
        let start = Instant::now();
        assert!(run(&table, 64, records(64, &[(bad, "bad")])).await.complete);
        assert_eq!(table.letters(), [bad]);
        let mut expected = all(64);
        expected.remove(&bad);
        assert_eq!(table.rows(), expected);
        assert_eq!(start.elapsed(), Duration::ZERO, "no backoff");
        let calls = table.calls().len();
        assert!(
            calls <= 1 + 6 + 2,
            "{calls} calls for 64 records: {:?}",
            table.sizes()
        );
    }
}

#[tokio::test(start_paused = true)]
async fn several_bad_records_are_each_found() {
    let table = Table::default();
    let bad = [(3, "bad"), (4, "bad"), (40, "bad"), (99, "bad")];
    assert!(run(&table, 100, records(100, &bad)).await.complete);
    assert_eq!(table.letters(), [3, 4, 40, 99]);
    assert_eq!(table.rows().len(), 96);
    let calls = table.calls().len();
    assert!(calls <= 4 * 9 + 2, "{calls}");
}

/// A batch that fails for an unknown cause has all its attempts before it is halved.
#[tokio::test(start_paused = true)]
async fn batch_of_unknown_cause_is_retried_before_it_is_halved() {
    let table = Table::default();
    assert!(run(&table, 64, records(128, &[(20, "odd")])).await.complete);
    assert_eq!(table.letters(), [20]);
    assert_eq!(table.rows().len(), 127);
    let sizes = table.sizes();
    let of_it: Vec<usize> = table
        .calls()
        .iter()
        .filter(|call| call.contains(&20))
        .map(Vec::len)
        .collect();
    assert_eq!(of_it[..5], [64; 5], "the five attempts of the whole batch");
    assert!(
        of_it[5..].iter().is_sorted_by(|a, b| a > b || **b == 1),
        "{of_it:?}"
    );
    let alone = of_it.iter().filter(|size| **size == 1).count();
    assert!(alone >= 5, "the record alone has all its attempts: {of_it:?}");
    assert!(sizes.len() - alone <= 5 + 6 + 6, "{sizes:?}");
    let letter = &table.0.letters.letters()[0];
    assert_eq!(
        letter.attempts.count as usize,
        of_it.len(),
        "the dead letter counts all attempts"
    );
}

#[tokio::test(start_paused = true)]
async fn batch_that_succeeds_on_retry_is_never_halved() {
    let table = Table::default();
    assert!(run(&table, 64, records(64, &[(20, "odd:3")])).await.complete);
    assert_eq!(table.sizes(), [64; 4]);
    assert!(table.letters().is_empty());
}

/// The record at fault is retried alone, and the other records do not wait for its retries.
#[tokio::test(start_paused = true)]
async fn record_at_fault_is_isolated_and_retried_alone() {
    let table = Table::default();
    let start = Instant::now();
    assert!(run(&table, 64, records(64, &[(20, "own:6")])).await.complete);
    assert!(table.letters().is_empty());
    assert_eq!(table.rows(), all(64));
    let late = Table::lock(&table.0.at).iter().filter(|at| **at > start).count();
    let of_it = table.calls().iter().filter(|call| call.contains(&20)).count();
    assert_eq!(of_it, 7);
    assert!(late < 5, "{late} calls after the search");
    let (calls, at) = (table.calls(), Table::lock(&table.0.at));
    let mut others = calls.iter().zip(&*at).filter(|(call, _)| !call.contains(&20));
    assert!(
        others.all(|(_, at)| *at == start),
        "the other records do not wait"
    );
}

#[tokio::test(start_paused = true)]
async fn dependency_outage_makes_no_dead_letters_of_a_batch() {
    let table = Table::default();
    table.0.is_down.store(true, SeqCst);
    let resilient = builder(&table, 64).build().expect("valid");
    let healed = table.clone();
    tokio::spawn(async move {
        sleep(Duration::from_secs(600)).await;
        healed.0.is_down.store(false, SeqCst);
    });
    let finished = Pipeline::default()
        .run(&resilient, whole(records(640, &[])))
        .await;
    assert!(finished.expect("no halt").complete);
    assert!(table.letters().is_empty());
    assert_eq!(table.rows(), all(640));
    let calls = table.calls().len();
    assert!(calls < 200, "{calls} calls in ten minutes with an open breaker");
}

/// An outage of unknown scope also makes no dead letters: the failures that halving finds open the breaker.
#[tokio::test(start_paused = true)]
async fn outage_of_unknown_scope_makes_no_dead_letters() {
    let table = Table::default();
    table.0.is_odd.store(true, SeqCst);
    let healed = table.clone();
    tokio::spawn(async move {
        sleep(Duration::from_secs(600)).await;
        healed.0.is_odd.store(false, SeqCst);
    });
    assert!(run(&table, 64, records(640, &[])).await.complete);
    let calls = table.calls().len();
    assert!(calls < 400, "{calls} calls");
    assert!(table.letters().is_empty());
    assert_eq!(table.rows(), all(640));
}

#[tokio::test(start_paused = true)]
async fn only_named_records_are_retried() {
    let table = Table::default();
    assert!(
        run(&table, 64, records(64, &[(5, "named"), (9, "named:2")]))
            .await
            .complete
    );
    assert_eq!(table.letters(), [5]);
    assert_eq!(table.rows().len(), 63);
    assert_eq!(table.sizes(), [64, 1, 1], "record 9 is retried alone");
}

#[tokio::test(start_paused = true)]
async fn records_of_the_key_of_a_named_record_follow_its_retry() {
    let table = Table::default();
    let batch = vec![
        record(0, "a", ""),
        record(1, "a", "named:1"),
        record(2, "b", ""),
        record(3, "a", ""),
        record(4, "a", ""),
    ];
    assert!(run(&table, 64, batch).await.complete);
    assert_eq!(table.calls(), [vec![0, 1, 2, 3, 4], vec![1], vec![3, 4]]);
    let last: Vec<u64> = Table::lock(&table.0.rows).iter().map(number).collect();
    assert_eq!(last, [0, 2, 1, 3, 4]);
}

#[tokio::test(start_paused = true)]
async fn index_outside_the_batch_fails_the_whole_batch() {
    struct Odd(AtomicUsize);
    impl BatchProcessor for Odd {
        type Error = BoxError;

        async fn process_batch(
            &self,
            records: &[Record],
            _: &Attempt<'_>,
        ) -> Result<(), BatchFailure<BoxError>> {
            match self.0.fetch_add(1, SeqCst) {
                0 => Err(BatchFailure::of([(records.len(), "off by one".into())])),
                _ => Ok(()),
            }
        }
    }
    let table = Table::default();
    let odd = Arc::new(Odd(AtomicUsize::new(0)));
    let resilient = Resilient::builder("billing", odd.clone().batched())
        .dead_letters(table.0.letters.clone())
        .build()
        .expect("valid");
    let finished = Pipeline::default().run(&resilient, whole(records(10, &[]))).await;
    assert!(finished.expect("no halt").complete);
    assert_eq!(odd.0.load(SeqCst), 2, "the whole batch was retried once");
}

#[tokio::test(start_paused = true)]
async fn records_that_panic_or_hang_are_isolated() {
    for (word, at_most) in [
        ("panic", Duration::from_millis(100)),
        ("hang", Duration::from_secs(3_600)),
    ] {
        let table = Table::default();
        let start = Instant::now();
        assert!(run(&table, 64, records(64, &[(20, word)])).await.complete);
        assert_eq!(table.letters(), [20], "{word}");
        assert_eq!(table.rows().len(), 63);
        assert!(start.elapsed() <= at_most);
    }
}

/// The guard counts records, not calls of the handler.
#[tokio::test(start_paused = true)]
async fn guard_counts_records_not_calls() {
    // One record in ten is bad: 90 of 100 succeed, in only a few calls.
    let bad: Vec<(u64, &str)> = (0..100).map(|tenth| (tenth * 10, "named")).collect();
    let table = Table::default();
    let resilient = Resilient::builder("billing", table.clone().batched().size(100))
        .dead_letters(table.0.letters.clone())
        .guard(DeadLetterGuard::default())
        .build()
        .expect("valid");
    let running = Pipeline::default();
    let running = running.run(&resilient, whole(records(1_000, &bad)));
    let finished = tokio::time::timeout(Duration::from_secs(60), running)
        .await
        .expect("the guard does not stop the shard");
    assert!(finished.expect("no halt").complete);
    assert_eq!(table.letters().len(), 100);
}

#[tokio::test(start_paused = true)]
async fn shutdown_reports_the_unsettled_records_of_a_batch() {
    let table = Table::default();
    *Table::lock(&table.0.takes) = Duration::from_millis(100);
    let resilient = builder(&table, 10).build().expect("valid");
    let from = Checkpoint::at(Position::TrimHorizon);
    let pipeline = Pipeline::default();
    let batches = whole(records(30, &[(15, "odd")]));
    let shutdown = sleep(Duration::from_millis(150));
    let running = pipeline.run_until(&resilient, batches, from, |_| async {}, shutdown);
    let finished = running.await.expect("no halt");
    assert_eq!(finished.unsettled, 10);
    assert_eq!(finished.first_unsettled, Some(10.into()));
    assert!(table.letters().is_empty());
    assert_eq!(table.rows(), (0..10).chain(20..30).collect());
    assert_eq!(*finished.checkpoint.position(), record(9, "", "").position());
    assert_eq!(table.0.running.load(SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn settle_calls_a_batch_processor_with_one_record() {
    let table = Table::default();
    let resilient = builder(&table, 10).build().expect("valid");
    for (word, settled) in [
        ("", "Processed"),
        ("odd:2", "Processed"),
        ("named", "DeadLettered"),
    ] {
        let record = record(table.calls().len() as u64, "a", word);
        let outcome = resilient.settle(&record).await.expect("settled");
        assert!(format!("{outcome:?}").starts_with(settled), "{outcome:?}");
    }
    assert_eq!(table.sizes(), [1, 1, 1, 1, 1]);
}

#[tokio::test(start_paused = true)]
async fn decorated_batch_processor_still_batches() {
    struct Counted<B>(B, Arc<AtomicUsize>);
    impl<B: BatchProcessor> BatchProcessor for Counted<B> {
        type Error = B::Error;

        async fn process_batch(
            &self,
            records: &[Record],
            attempt: &Attempt<'_>,
        ) -> Result<(), BatchFailure<B::Error>> {
            self.1.fetch_add(records.len(), SeqCst);
            self.0.process_batch(records, attempt).await
        }
    }
    let (table, counted) = (Table::default(), Arc::new(AtomicUsize::new(0)));
    let processor = Counted(table.clone(), counted.clone()).batched().size(8);
    let resilient = Resilient::builder("billing", processor)
        .dead_letters(table.0.letters.clone())
        .build()
        .expect("valid");
    let finished = Pipeline::default().run(&resilient, whole(records(20, &[]))).await;
    assert!(finished.expect("no halt").complete);
    assert_eq!(table.sizes(), [8, 8, 4]);
    assert_eq!(counted.load(SeqCst), 20);
}

#[tokio::test(start_paused = true)]
async fn boxed_batch_processor_still_batches() {
    let table = Table::default();
    let processor = Arc::new(table.clone()).batched().size(8).boxed();
    let resilient = Resilient::builder("billing", processor)
        .dead_letters(table.0.letters.clone())
        .build()
        .expect("valid");
    let batches = whole(records(16, &[(3, "named"), (12, "bad")]));
    assert!(
        Pipeline::default()
            .run(&resilient, batches)
            .await
            .expect("no halt")
            .complete
    );
    assert_eq!(table.sizes()[0], 8);
    assert_eq!(table.letters(), [3, 12]);
    assert_eq!(table.rows().len(), 14);
}

/// A store that counts its calls.
#[derive(Debug, Default)]
struct Counting {
    store: idempotency::Memory,
    claims: AtomicUsize,
    completions: AtomicUsize,
    releases: AtomicUsize,
    is_down: AtomicBool,
}

impl Counting {
    fn answers<T>(&self, count: usize, answers: Vec<Result<T, StoreError>>) -> Vec<Result<T, StoreError>> {
        match self.is_down.load(SeqCst) {
            true => (0..count).map(|_| Err(StoreError::unavailable("down"))).collect(),
            false => answers,
        }
    }
}

#[async_trait]
impl IdempotencyStore for Counting {
    async fn claim(&self, claims: &[Claim]) -> Vec<Result<Claimed, StoreError>> {
        self.claims.fetch_add(1, SeqCst);
        if self.is_down.load(SeqCst) {
            return self.answers(claims.len(), Vec::new());
        }
        self.store.claim(claims).await
    }

    async fn complete(&self, claims: &[Claim]) -> Vec<Result<Completion, StoreError>> {
        self.completions.fetch_add(1, SeqCst);
        if self.is_down.load(SeqCst) {
            return self.answers(claims.len(), Vec::new());
        }
        self.store.complete(claims).await
    }

    async fn release(&self, claims: &[Claim]) -> Vec<Result<(), StoreError>> {
        self.releases.fetch_add(1, SeqCst);
        self.store.release(claims).await
    }

    async fn status(
        &self,
        keys: &[Key],
        now: std::time::SystemTime,
    ) -> Vec<Result<Option<Status>, StoreError>> {
        self.store.status(keys, now).await
    }
}

#[tokio::test(start_paused = true)]
async fn keys_are_claimed_and_completed_together() {
    let (table, store) = (Table::default(), Arc::new(Counting::default()));
    let make = || {
        let idempotency = Idempotency::new(store.clone()).cache(0);
        builder(&table, 100)
            .idempotency(idempotency)
            .build()
            .expect("valid")
    };
    let batches = || whole(records(100, &[(7, "bad")]));
    assert!(
        Pipeline::default()
            .run(&make(), batches())
            .await
            .expect("no halt")
            .complete
    );
    assert_eq!((table.rows().len(), table.letters()), (99, vec![7]));
    let calls = table.calls().len();
    assert_eq!(
        store.claims.load(SeqCst),
        calls,
        "one claim call for each call of the handler"
    );
    assert_eq!(
        store.completions.load(SeqCst),
        calls - table.calls().iter().filter(|call| call.contains(&7)).count()
    );

    // A redelivery processes only the record that was dead-lettered.
    let before = table.calls().len();
    assert!(
        Pipeline::default()
            .run(&make(), batches())
            .await
            .expect("no halt")
            .complete
    );
    assert_eq!(table.calls()[before..], [vec![7]]);
}

#[tokio::test(start_paused = true)]
async fn key_claimed_elsewhere_delays_no_other_record() {
    let (table, store) = (Table::default(), Arc::new(Counting::default()));
    let by_field = || Idempotency::new(store.clone()).key(|record| Some(record.partition_key()?.to_owned()));
    // Another worker has claimed key-5 and takes 3 s.
    let slow = Table::default();
    *Table::lock(&slow.0.takes) = Duration::from_secs(3);
    let other = builder(&slow, 1).idempotency(by_field()).build().expect("valid");
    let first = tokio::spawn(async move { other.settle(&record(900, "key-5", "")).await });
    tokio::task::yield_now().await;
    let mut batch = records(50, &[]);
    batch.extend([record(50, "key-5", ""), record(51, "key-6", "")]);
    let mine = builder(&table, 100)
        .idempotency(by_field())
        .build()
        .expect("valid");
    let start = Instant::now();
    assert!(
        Pipeline::default()
            .run(&mine, whole(batch))
            .await
            .expect("no halt")
            .complete
    );
    assert_eq!(
        first.await.expect("no panic").expect("settled"),
        Settled::Processed
    );
    let first_call = Table::lock(&table.0.at)[0] - start;
    assert_eq!(first_call, Duration::ZERO);
    assert_eq!(
        table.sizes(),
        [49],
        "key-6 runs once, key-5 never: {:?}",
        table.calls()
    );
    let rows = table.rows();
    assert!(
        !rows.contains(&5) && !rows.contains(&50),
        "both are duplicates of the record of the other worker"
    );
}

#[tokio::test(start_paused = true)]
async fn batch_waits_while_the_idempotency_store_is_down() {
    let (table, store) = (Table::default(), Arc::new(Counting::default()));
    store.is_down.store(true, SeqCst);
    let mine = builder(&table, 64)
        .idempotency(Idempotency::new(store.clone()))
        .build()
        .expect("valid");
    let back = store.clone();
    tokio::spawn(async move {
        sleep(Duration::from_secs(60)).await;
        back.is_down.store(false, SeqCst);
    });
    assert!(
        Pipeline::default()
            .run(&mine, whole(records(64, &[])))
            .await
            .expect("no halt")
            .complete
    );
    assert_eq!(table.sizes(), [64]);
    assert!(store.claims.load(SeqCst) < 100);
}

/// Checks the events that an observer gets for a batch.
#[tokio::test(start_paused = true)]
async fn failed_batch_call_is_reported_once_with_its_size() {
    #[derive(Clone, Default)]
    struct Ears(Arc<Mutex<Vec<usize>>>, Arc<AtomicUsize>);
    impl Observer for Ears {
        fn on(&self, event: &Event<'_>) {
            match event {
                Event::Record {
                    event: RecordEvent::AttemptFailed { records, .. },
                    ..
                } => Table::lock(&self.0).push(*records),
                Event::Record {
                    event: RecordEvent::Settled { attempts, .. },
                    ..
                } => {
                    // Two attempts of the batch failed because of another record.
                    assert_eq!(*attempts, 3);
                    self.1.fetch_add(1, SeqCst);
                }
                _ => {}
            }
        }
    }
    let (table, ears) = (Table::default(), Ears::default());
    let resilient = builder(&table, 32).observer(ears.clone()).build().expect("valid");
    let batches = whole(records(32, &[(31, "named"), (4, "odd:2")]));
    assert!(
        Pipeline::default()
            .run(&resilient, batches)
            .await
            .expect("no halt")
            .complete
    );
    assert_eq!(*Table::lock(&ears.0), [32, 32, 1]);
    assert_eq!(ears.1.load(SeqCst), 32);
    advance(Duration::ZERO).await;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Each record becomes a row or a dead letter, and only records at fault become dead letters. The handler
    /// gets a record when all earlier records of its lane are settled or are in the same call.
    #[test]
    fn every_record_is_settled_in_its_order(
        words in prop::collection::vec((0usize..30, 0usize..6), 1..120),
        size in 1usize..40,
        lanes in 0usize..3,
        idempotent in any::<bool>(),
        takes in 0u64..3,
    ) {
        let ordering = [RecordOrder::Shard, RecordOrder::PartitionKey, RecordOrder::Unordered][lanes];
        let word = |word: usize| match word {
            0 => "bad",
            1 => "named",
            2 => "named:2",
            3 => "odd:1",
            4 => "own:2",
            5 => "panic",
            _ => "",
        };
        let records: Vec<Record> = words
            .iter()
            .zip(0u64..)
            .map(|((what, key), number)| record(number, &format!("key-{key}"), word(*what)))
            .collect();
        let expected: Vec<u64> = records
            .iter()
            .filter(|record| matches!(&**record.payload(), b"bad" | b"named" | b"panic"))
            .map(number)
            .collect();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime");
        let table = Table::default();
        table.looks_at_order(ordering, &records);
        *Table::lock(&table.0.takes) = Duration::from_millis(takes);
        let finished = runtime.block_on(async {
            let mut builder = builder(&table, size).without_breaker();
            if idempotent {
                builder = builder.idempotency(Idempotency::new(idempotency::Memory::new()));
            }
            let resilient = builder.build().expect("valid");
            let pipeline = Pipeline::builder().ordering(ordering).build().expect("valid");
            let (first, second) = records.split_at(records.len() / 2);
            let batches = stream::iter([Batch::from(first.to_vec()), Batch::from(second.to_vec())]);
            let running = pipeline.run(&resilient, batches);
            tokio::time::timeout(Duration::from_secs(7_200), running).await
        });
        let finished = finished.expect("the pipeline ends").expect("no halt");
        prop_assert!(finished.complete, "{finished:?}");
        prop_assert_eq!(table.letters(), expected.clone());
        prop_assert_eq!(table.rows().len(), records.len() - expected.len());
        for letter in table.0.letters.letters() {
            let number = number_of(&letter.sequence_number);
            let calls = table.calls().iter().filter(|call| call.contains(&number)).count() as u32;
            // A record behind a named record of its key was in the call, but that call was no attempt at it.
            let exact = ordering == RecordOrder::Unordered;
            let attempts = letter.attempts.count;
            prop_assert!(attempts <= calls && (!exact || attempts == calls), "{} {} {}", number, attempts, calls);
        }
        let broken = Table::lock(&table.0.broken).clone();
        prop_assert!(broken.is_empty(), "{:?} {:?}", broken, table.calls());
    }
}

#[test]
fn batches_without_room_for_a_record_are_refused() {
    for (processor, setting) in [
        (Table::default().batched().size(0), "size"),
        (Table::default().batched().bytes(0), "bytes"),
    ] {
        let builder = Resilient::builder("billing", processor.boxed());
        let refused = builder.dead_letters(dead_letter::Memory::new()).build();
        assert_eq!(refused.expect_err("refused").setting(), setting);
    }
}
