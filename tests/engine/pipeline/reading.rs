//! Tests of how far a pipeline reads a shard: during a shutdown, behind an open breaker, and while the guard
//! has stopped the shard. Time is paused throughout.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use futures_util::stream::{self, Stream, StreamExt};
use redrive::checkpoint::Checkpoint;
use redrive::pipeline::{Batch, Finished, Pipeline, PipelineBuilder};
use redrive::{
    BoxError, CircuitBreaker, DeadLetterGuard, Position, Record, Resilient, dead_letter, processor_fn,
    processor_with,
};
use support::script::record;
use tokio::time::{Instant, sleep, timeout};

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
    let (from, shutdown) = (
        Checkpoint::at(Position::TrimHorizon),
        sleep(Duration::from_secs(5)),
    );
    let pipeline = pipeline.drain(Duration::from_secs(1)).build().expect("valid");
    let run = pipeline.run_until(&resilient, batches, from, |_| async {}, shutdown);
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
