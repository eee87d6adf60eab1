//! Several workers per shard: processor calls on several cores.

use std::collections::{HashMap, HashSet};
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use redrive::checkpoint::Checkpoint;
use redrive::pipeline::{Batch, Pipeline, RecordOrder};
use redrive::processor::Attempt;
use redrive::{
    Backoff, BoxError, Failure, Position, Record, RecordProcessor, Resilient, RetryPolicy, dead_letter,
};
use support::waiting::{eventually, finished};

fn records(count: u64, keys: u64) -> Vec<Record> {
    let record = |number: u64| {
        Record::builder("orders", "shardId-000000000000".into(), (number + 1).into())
            .partition_key(format!("key-{}", number % keys))
            .payload(number.to_string())
            .build()
    };
    (0..count).map(record).collect()
}

fn pipeline(ordering: RecordOrder) -> Pipeline {
    let pipeline = Pipeline::builder().ordering(ordering);
    pipeline.drain(Duration::from_secs(60)).build().expect("valid")
}

fn resilient<P: RecordProcessor + 'static>(processor: P) -> Resilient<P> {
    Resilient::builder("billing", processor)
        .workers(2)
        .retry(RetryPolicy::exponential().backoff(Backoff::exponential().base(Duration::from_millis(1))))
        .dead_letters(dead_letter::Memory::new())
        .build()
        .expect("valid")
}

/// A processor whose calls block their threads until two threads are in a call at the same time.
#[derive(Clone, Default)]
struct Meeting(Arc<(Mutex<HashSet<ThreadId>>, Condvar)>);

impl RecordProcessor for Meeting {
    type Error = BoxError;

    async fn process(&self, _: &Record, _: &Attempt<'_>) -> Result<(), BoxError> {
        let (present, arrival) = &*self.0;
        let mut present = present.lock().expect("no panic");
        present.insert(thread::current().id());
        arrival.notify_all();
        let long = Duration::from_secs(30);
        let (present, _) = arrival
            .wait_timeout_while(present, long, |present| present.len() < 2)
            .expect("no panic");
        match present.len() {
            2.. => Ok(()),
            _ => Err(Failure::permanent("no other thread made a call for 30 s").into()),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn calls_of_one_shard_run_on_several_threads() {
    for ordering in [RecordOrder::PartitionKey, RecordOrder::Unordered] {
        let meeting = Meeting::default();
        let batches = stream::iter([Batch::from(records(64, 64))]);
        let resilient = resilient(meeting.clone());
        let pipeline = pipeline(ordering);
        let run = pipeline.run(&resilient, batches);
        assert!(finished("the run", run).await.expect("nothing halts").complete);
        assert!(
            meeting.0.0.lock().expect("no panic").len() >= 2,
            "{ordering:?}: one thread"
        );
    }
}

/// Notes the calls that succeed. Some records fail at first, some wait, some make their worker wait, and some are
/// bad.
#[derive(Clone, Default)]
struct Notes {
    processed: Arc<Mutex<Vec<(String, u64)>>>,
    running: Arc<Mutex<HashSet<String>>>,
}

impl RecordProcessor for Notes {
    type Error = BoxError;

    async fn process(&self, record: &Record, attempt: &Attempt<'_>) -> Result<(), BoxError> {
        let key = record.partition_key().expect("a key").to_owned();
        let number: u64 = std::str::from_utf8(record.payload())?.parse()?;
        let is_alone = self.running.lock().expect("no panic").insert(key.clone());
        match number % 7 {
            1 => tokio::time::sleep(Duration::from_millis(1)).await,
            2 => thread::sleep(Duration::from_millis(1)),
            3 => tokio::task::yield_now().await,
            _ => {}
        }
        self.running.lock().expect("no panic").remove(&key);
        if !is_alone {
            return Err(Failure::permanent("two calls of one key at a time").into());
        }
        match number % 100 {
            13 if attempt.number() < 3 => return Err(Failure::transient("busy").into()),
            57 => return Err(Failure::permanent("bad data").into()),
            58 => panic!("a bug"),
            _ => {}
        }
        self.processed.lock().expect("no panic").push((key, number));
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn workers_keep_the_order_of_each_key_and_lose_nothing() {
    const RECORDS: u64 = 3_000;
    let notes = Notes::default();
    let sink = dead_letter::Memory::new();
    let resilient = Resilient::builder("billing", notes.clone())
        .workers(3)
        .retry(
            RetryPolicy::exponential()
                .max_attempts(3)
                .backoff(Backoff::exponential().base(Duration::from_millis(1))),
        )
        .dead_letters(sink.clone())
        .without_guard()
        .build()
        .expect("valid");
    let pages = records(RECORDS, 37);
    let pages: Vec<Batch> = pages.chunks(250).map(|page| page.to_vec().into()).collect();
    let pipeline = pipeline(RecordOrder::PartitionKey);
    let run = pipeline.run(&resilient, stream::iter(pages));
    let run = finished("the run", run).await.expect("nothing halts");
    assert!(run.complete);
    let last = records(RECORDS, 37).pop().expect("a record");
    assert_eq!(*run.checkpoint.position(), last.position());

    let processed = notes.processed.lock().expect("no panic");
    let mut last: HashMap<&str, u64> = HashMap::new();
    for (key, number) in processed.iter() {
        let before = last.insert(key, *number);
        assert!(
            before < Some(*number),
            "{number} of {key} is processed after {before:?}"
        );
    }
    let bad = (0..RECORDS)
        .filter(|number| matches!(number % 100, 57 | 58))
        .count();
    assert_eq!(sink.letters().len(), bad);
    assert_eq!(processed.len() + bad, RECORDS as usize);
}

/// Computes for 20 ms in each call.
#[derive(Clone, Default)]
struct Slow {
    begun: Arc<AtomicUsize>,
    ended: Arc<AtomicUsize>,
}

impl RecordProcessor for Slow {
    type Error = BoxError;

    async fn process(&self, _: &Record, _: &Attempt<'_>) -> Result<(), BoxError> {
        self.begun.fetch_add(1, Ordering::SeqCst);
        thread::sleep(Duration::from_millis(20));
        self.ended.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

/// Up to 64 calls are on their way to the workers when the shutdown begins. Only calls that run already are
/// waited for.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn shutdown_begins_no_call_that_waits_for_its_worker() {
    let slow = Slow::default();
    let resilient = resilient(slow.clone());
    let batches = stream::iter([Batch::from(records(1_000, 500))]).chain(stream::pending());
    let from = Checkpoint::at(Position::TrimHorizon);
    let some_calls = async {
        while slow.ended.load(Ordering::SeqCst) < 10 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let pipeline = pipeline(RecordOrder::PartitionKey);
    let run = pipeline.run_until(&resilient, batches, from, |_| async {}, some_calls);
    let run = finished("the run", run).await.expect("nothing halts");

    let (begun, ended) = (
        slow.begun.load(Ordering::SeqCst),
        slow.ended.load(Ordering::SeqCst),
    );
    assert_eq!(begun, ended, "a call outlives the run");
    assert_eq!(
        run.unsettled + ended,
        1_000,
        "the settled records are those processed"
    );
    assert!(
        ended < 40,
        "{ended} calls ended: those that had not begun were made, too"
    );
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(
        slow.begun.load(Ordering::SeqCst),
        begun,
        "a call began after the run"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn dropped_run_makes_no_more_calls() {
    let slow = Slow::default();
    let resilient = resilient(slow.clone());
    let batches = stream::iter([Batch::from(records(1_000, 500))]);
    {
        let pipeline = pipeline(RecordOrder::PartitionKey);
        let mut run = pin!(pipeline.run(&resilient, batches));
        let start = Instant::now();
        while slow.ended.load(Ordering::SeqCst) < 10 {
            assert!(start.elapsed() < Duration::from_secs(60), "no calls");
            let _ = tokio::time::timeout(Duration::from_millis(5), &mut run).await;
        }
    }
    eventually("each call that had begun has ended", || {
        slow.begun.load(Ordering::SeqCst) == slow.ended.load(Ordering::SeqCst)
    })
    .await;
    let begun = slow.begun.load(Ordering::SeqCst);
    assert!(begun < 40, "{begun} calls");
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(slow.begun.load(Ordering::SeqCst) <= begun + 2, "calls go on");
}

#[test]
fn invalid_number_of_workers_is_refused() {
    for workers in [0, 1_025] {
        let builder = Resilient::builder("billing", Slow::default()).workers(workers);
        let refused = builder.without_dead_letters().build().expect_err("refused");
        assert_eq!(refused.setting(), "workers");
    }
}
