//! Tests of the allocations on the happy path, counted on the thread that runs it.
//!
//! The tests count the allocations of the engine and of the pipeline for records that succeed at the first
//! attempt. Records are created beforehand and kept, so that creating and dropping them does not count.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use allocation_counter::measure;
use futures_util::Stream;
use redrive::pipeline::{Batch, Pipeline, RecordOrder};
use redrive::processor::Attempt;
use redrive::telemetry::{Emf, Metrics};
use redrive::{Record, RecordProcessor, Resilient, Settled, dead_letter, processor_fn, processor_with};
use support::script::record;
use tokio::runtime::Runtime;

const ORDERINGS: [RecordOrder; 3] = [
    RecordOrder::Shard,
    RecordOrder::PartitionKey,
    RecordOrder::Unordered,
];

/// A handler that yields this number of times before it succeeds.
struct Yields(u32);

impl RecordProcessor for Yields {
    type Error = io::Error;

    async fn process(&self, _: &Record, _: &Attempt<'_>) -> io::Result<()> {
        let mut left = self.0;
        poll_fn(|cx| {
            if left == 0 {
                return Poll::Ready(Ok(()));
            }
            left -= 1;
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime")
}

fn resilient<P: RecordProcessor>(processor: P) -> Resilient<P> {
    Resilient::builder("billing", processor)
        .dead_letters(dead_letter::Memory::new())
        .build()
        .expect("valid")
}

fn record_of_200_bytes(number: u64) -> Record {
    record(number, &format!("customer-{}", number % 100), &"x".repeat(200))
}

/// Counts the allocations of settling 1,000 records one after the other, after one record to warm up.
fn allocations_of_settle<P: RecordProcessor>(processor: P) -> u64 {
    allocations_of(&resilient(processor))
}

fn allocations_of<P: RecordProcessor>(resilient: &Resilient<P>) -> u64 {
    let runtime = runtime();
    let records: Vec<Record> = (0..1_000).map(record_of_200_bytes).collect();
    let settle_all = async |records: &[Record]| {
        for record in records {
            let settled = resilient.settle(record).await.expect("succeeds");
            assert_eq!(settled, Settled::Processed);
        }
    };
    runtime.block_on(settle_all(&records[..1]));
    let counted = measure(|| runtime.block_on(settle_all(&records)));
    counted.count_total
}

#[test]
fn the_counter_counts() {
    let counted = measure(|| drop(std::hint::black_box(Box::new(7))));
    assert_eq!(counted.count_total, 1);
}

#[test]
fn settling_a_record_that_succeeds_allocates_nothing() {
    assert_eq!(allocations_of_settle(Yields(0)), 0);
}

#[test]
fn settling_with_a_pending_handler_allocates_nothing() {
    assert_eq!(allocations_of_settle(Yields(1)), 0);
    assert_eq!(allocations_of_settle(Yields(3)), 0);
}

/// Metrics are aggregated in place between two lines of output.
#[test]
fn settling_with_metrics_allocates_nothing() {
    let resilient = Resilient::builder("billing", Yields(0))
        .dead_letters(dead_letter::Memory::new())
        .observer(Emf::new())
        .observer(Metrics::new())
        .build()
        .expect("valid");
    assert_eq!(allocations_of(&resilient), 0);
}

/// A handler that takes an owned record gets a clone. The first clone of a payload that was a `Vec` makes the
/// `Bytes` shared, which is one allocation. A payload that is already shared needs none.
#[test]
fn owned_record_costs_at_most_one_allocation() {
    let function = || processor_fn(async |_: Record| -> io::Result<()> { Ok(()) });
    assert!(allocations_of_settle(function()) <= 1_000);
    let stateful = processor_with(Arc::new(()), async |_: Arc<()>, _: Record| -> io::Result<()> {
        Ok(())
    });
    assert!(allocations_of_settle(stateful) <= 1_000);
}

const BATCH: u64 = 2_000;
const WARM_UP: u64 = 10 * BATCH;
const COUNTED: u64 = 10 * BATCH;

/// A stream of batches created beforehand. It pauses after the warm-up, so that the future of the pipeline
/// returns to the test.
struct Batches {
    left: std::vec::IntoIter<Batch>,
    pause_at: usize,
    paused: Rc<Cell<bool>>,
}

impl Stream for Batches {
    type Item = Batch;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Batch>> {
        if self.left.len() == self.pause_at && !self.paused.replace(true) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(self.left.next())
    }
}

/// Counts the allocations of [`COUNTED`] records in a pipeline, after [`WARM_UP`] records.
fn allocations_of_pipeline<P: RecordProcessor>(processor: P, ordering: RecordOrder) -> u64 {
    let (runtime, resilient) = (runtime(), resilient(processor));
    let records: Vec<Record> = (0..WARM_UP + COUNTED).map(record_of_200_bytes).collect();
    let batches: Vec<Batch> = records
        .chunks(BATCH as usize)
        .map(|records| Batch::from(records.to_vec()))
        .collect();
    let paused = Rc::new(Cell::new(false));
    let batches = Batches {
        left: batches.into_iter(),
        pause_at: (COUNTED / BATCH) as usize,
        paused: paused.clone(),
    };
    let pipeline = Pipeline::builder().ordering(ordering).build().expect("valid");
    let mut run = pin!(pipeline.run(&resilient, batches));
    // Run up to the pause.
    runtime.block_on(async {
        poll_fn(|cx| {
            assert!(run.as_mut().poll(cx).is_pending(), "more batches follow");
            if paused.get() {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    });
    let mut finished = None;
    let counted = measure(|| finished = Some(runtime.block_on(&mut run)));
    let finished = finished.expect("the pipeline ran").expect("nothing halts");
    assert!(finished.complete && finished.unsettled == 0);
    counted.count_total
}

/// Allocations that do not grow with the number of records, such as that of a timer.
const CONSTANT: u64 = 16;

#[test]
fn pipeline_allocates_nothing_per_record() {
    for ordering in ORDERINGS {
        let count = allocations_of_pipeline(Yields(0), ordering);
        assert!(count <= CONSTANT, "{ordering:?}: {count} for {COUNTED} records");
    }
}

#[test]
fn pipeline_allocates_nothing_while_the_processor_waits() {
    for ordering in ORDERINGS {
        let count = allocations_of_pipeline(Yields(1), ordering);
        assert!(count <= CONSTANT, "{ordering:?}: {count} for {COUNTED} records");
    }
}
