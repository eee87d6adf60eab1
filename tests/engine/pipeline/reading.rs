//! Tests of how far a pipeline reads a shard, and of the memory that it reserves.
//!
//! The cases are a shutdown, an open breaker, a shard that the guard has stopped, and records that an earlier
//! run has settled. Time is paused throughout.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use futures_util::stream::{self, Stream, StreamExt};
use redrive::checkpoint::Checkpoint;
use redrive::pipeline::{Batch, Capacity, Finished, Pipeline, PipelineBuilder, Progress};
use redrive::{
    BoxError, CircuitBreaker, DeadLetterGuard, Position, Record, Resilient, dead_letter, processor_fn,
    processor_with,
};
use support::script::record;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

fn record_of_100_bytes(number: u64) -> Record {
    record(number, &number.to_string(), &"x".repeat(100))
}

/// Returns batches of two records, and a counter of the batches that were taken.
fn counted(batches: u64) -> (impl Stream<Item = Batch> + Unpin, Arc<AtomicUsize>) {
    let taken = Arc::new(AtomicUsize::new(0));
    let count = taken.clone();
    let batches = stream::iter(0..batches).map(move |number| {
        count.fetch_add(1, Relaxed);
        Batch::from(vec![
            record_of_100_bytes(2 * number + 1),
            record_of_100_bytes(2 * number + 2),
        ])
    });
    (batches, taken)
}

/// A handler that never returns.
async fn hang(_: Record) -> Result<(), BoxError> {
    std::future::pending().await
}

/// Runs records whose handler never returns, and shuts down after 5 s. Returns the result of the run and the
/// number of batches taken.
async fn shut_down(pipeline: PipelineBuilder, batches: u64) -> (Finished, usize) {
    let resilient = Resilient::builder("billing", processor_fn(hang));
    let resilient = resilient.without_dead_letters().build().expect("valid");
    let (batches, taken) = counted(batches);
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    tokio::spawn(async move {
        sleep(Duration::from_secs(5)).await;
        stop.cancel();
    });
    let (from, progress) = (Checkpoint::at(Position::TrimHorizon), Progress::new());
    let pipeline = pipeline.drain(Duration::from_secs(1)).build().expect("valid");
    let run = pipeline.run_from(&resilient, batches, from, &progress, &shutdown);
    (run.await.expect("nothing halts"), taken.load(Relaxed))
}

#[tokio::test(start_paused = true)]
async fn shutdown_stops_reading_and_reports_unsettled_records() {
    // The bound of records in flight is reached in the middle of a batch.
    let (finished, taken) = shut_down(Pipeline::builder().in_flight(3), 10).await;
    assert_eq!(taken, 2);
    assert_eq!((finished.unsettled, finished.complete), (4, false));
}

/// Reaching the end of the input is no completion while handlers hang: their records are not settled.
#[tokio::test(start_paused = true)]
async fn shutdown_at_the_end_of_the_input_is_not_complete() {
    let (finished, taken) = shut_down(Pipeline::builder(), 2).await;
    assert_eq!(taken, 2);
    assert_eq!((finished.unsettled, finished.complete), (4, false));
    assert_eq!(finished.checkpoint.position(), &Position::TrimHorizon);
}

/// Records that wait for a breaker are not read, except for a few that serve as probes.
#[tokio::test(start_paused = true)]
async fn few_batches_are_read_while_a_breaker_is_open() {
    let start = Instant::now();
    let down = async |start: Instant, _: Record| -> Result<(), BoxError> {
        match start.elapsed() < Duration::from_secs(60) {
            true => Err("the database is down".into()),
            false => Ok(()),
        }
    };
    let resilient = Resilient::builder("billing", processor_with(start, down))
        .dead_letters(dead_letter::Memory::new())
        .breaker(CircuitBreaker::default())
        .seed(3)
        .build()
        .expect("valid");
    let (batches, taken) = counted(1_000);
    let mut seen = Vec::new();
    let pipeline = Pipeline::default();
    let mut run = Box::pin(pipeline.run(&resilient, batches));
    for _ in 0..5 {
        assert!(
            timeout(Duration::from_secs(11), &mut run).await.is_err(),
            "the run does not end during the outage"
        );
        seen.push(taken.load(Relaxed));
    }
    // Five failures in a row open the breaker. Each round of probes tries at most five more records.
    assert!(seen.iter().all(|batches| *batches < 40), "{seen:?}");
    assert!(run.await.expect("nothing halts").complete);
    assert_eq!(taken.load(Relaxed), 1_000);
}

/// A shard that the dead-letter guard has stopped also reads no further records.
#[tokio::test(start_paused = true)]
async fn nothing_is_read_while_the_guard_has_stopped_a_shard() {
    async fn bad(_: Record) -> Result<(), BoxError> {
        Err(redrive::Failure::permanent("bad data").into())
    }
    let guard = DeadLetterGuard::builder()
        .share(0.5)
        .min_records(10)
        .window(Duration::from_secs(60))
        .build()
        .expect("valid");
    let resilient = Resilient::builder("billing", processor_fn(bad))
        .dead_letters(dead_letter::Memory::new())
        .guard(guard.clone())
        .build()
        .expect("valid");
    let (batches, taken) = counted(1_000);
    let pipeline = Pipeline::default();
    let mut run = Box::pin(pipeline.run(&resilient, batches));
    assert!(timeout(Duration::from_secs(600), &mut run).await.is_err());
    assert_eq!(guard.state().len(), 1);
    let before = taken.load(Relaxed);
    assert!(timeout(Duration::from_secs(600), &mut run).await.is_err());
    assert_eq!(taken.load(Relaxed), before);
    assert!(before < 1_000, "{before}");
}

/// Memory is released for every record, also for records that an earlier run has settled and for records that
/// share a buffer.
#[tokio::test(start_paused = true)]
async fn memory_is_released_for_every_record() {
    async fn ok(_: Record) -> Result<(), BoxError> {
        Ok(())
    }
    let resilient = Resilient::builder("billing", processor_fn(ok));
    let resilient = resilient.without_dead_letters().build().expect("valid");
    let inside = |number: u64, sub| {
        Record::builder("orders", "shardId-0".into(), number.into())
            .sub_sequence_number(sub)
            .partition_key(sub.to_string())
            .payload(vec![0; 100])
            .build()
    };
    // Each page reserves all but one byte, so the page before must release everything.
    const BYTES: usize = 10_000;
    let capacity = Capacity::builder()
        .running(64)
        .bytes(BYTES)
        .build()
        .expect("valid");
    let pipeline = Pipeline::builder()
        .capacity(capacity.clone())
        .build()
        .expect("valid");
    let records = [
        vec![record_of_100_bytes(1), record_of_100_bytes(2)],
        vec![inside(3, 0), inside(3, 1), inside(3, 2), record_of_100_bytes(4)],
        vec![
            inside(5, 0),
            inside(5, 1),
            inside(6, 0),
            inside(6, 1),
            record_of_100_bytes(7),
        ],
    ];
    for covered in [
        Position::TrimHorizon,
        record_of_100_bytes(2).position(),
        inside(3, 1).position(),
        inside(5, 0).position(),
        record_of_100_bytes(7).position(),
    ] {
        let pages = stream::iter(records.clone()).then(|records| async {
            let reservation = capacity.reserve(BYTES - 1).await;
            Batch::reserved(records, reservation)
        });
        let (progress, never) = (Progress::new(), CancellationToken::new());
        let from = Checkpoint::at(covered.clone());
        let run = pipeline.run_from(&resilient, Box::pin(pages), from, &progress, &never);
        let finished = timeout(Duration::from_secs(60), run).await;
        let finished = finished.unwrap_or_else(|_| panic!("from {covered}: memory is still reserved"));
        assert!(finished.expect("nothing halts").complete);
    }
}

/// A shard that the dead-letter guard has stopped keeps no permit to run, and leaves memory for other shards.
#[tokio::test(start_paused = true)]
async fn stopped_shard_takes_no_permit_and_not_all_memory() {
    async fn obey(record: Record) -> Result<(), BoxError> {
        tokio::time::sleep(Duration::from_millis(1)).await;
        match record.partition_key() {
            Some("bad") => Err(redrive::Failure::permanent("bad data").into()),
            _ => Ok(()),
        }
    }
    const BYTES: usize = 1 << 20;
    let capacity = Capacity::builder()
        .running(1)
        .bytes(BYTES)
        .build()
        .expect("valid");
    let guard = DeadLetterGuard::builder()
        .share(0.5)
        .min_records(10)
        .window(Duration::from_secs(60))
        .build()
        .expect("valid");
    let resilient = Resilient::builder("billing", processor_fn(obey))
        .dead_letters(dead_letter::Memory::new())
        .guard(guard.clone())
        .build()
        .expect("valid");
    let shard = |shard: &'static str, key: &'static str, pages: u64, payload: usize| {
        let (capacity, resilient) = (capacity.clone(), resilient.clone());
        let pipeline = Pipeline::builder()
            .ordering(redrive::pipeline::RecordOrder::Unordered)
            .capacity(capacity.clone())
            .build()
            .expect("valid");
        async move {
            let pages = stream::iter(0..pages).then(|page| {
                let capacity = capacity.clone();
                let records = (0..10).map(move |number| {
                    Record::builder("orders", shard.into(), (page * 10 + number + 1).into())
                        .partition_key(key)
                        .payload(vec![0; payload])
                        .build()
                });
                async move { Batch::reserved(records.collect(), capacity.reserve(BYTES / 2).await) }
            });
            pipeline.run(&resilient, Box::pin(pages)).await
        }
    };
    let stopped = tokio::spawn(shard("shardId-0", "bad", 1_000, BYTES / 16));
    let other = tokio::spawn(shard("shardId-1", "good", 1_000, 100));
    let finished = timeout(Duration::from_secs(3_600), other)
        .await
        .expect("the other shard is not blocked");
    assert!(finished.expect("no panic").expect("nothing halts").complete);
    assert_eq!(guard.state().len(), 1);
    assert_eq!(capacity.running(), 0);
    assert!(
        capacity.bytes() > BYTES / 2,
        "only {} bytes are free",
        capacity.bytes()
    );
    stopped.abort();
}
