//! The happy path allocates nothing: counted, on the thread that runs it.
//!
//! What is counted is what the engine and the pipeline do for a record that succeeds the first time.
//! Records are made beforehand and kept, so that nothing of their own making or freeing is part of it.

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
use redrive::telemetry::{Emf, Metrics};
use redrive::{
    Attempt, Record, RecordProcessor, Resilient, Settled, dead_letter, processor_fn, processor_with,
};
use support::script::record;
use tokio::runtime::Runtime;

const ORDERINGS: [RecordOrder; 3] = [
    RecordOrder::Shard,
    RecordOrder::PartitionKey,
    RecordOrder::Unordered,
];

/// Gives way so often before it succeeds, as a handler that waits for something does.
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

/// Allocations while 1,000 records are settled one after the other, after one that warms up.
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
fn nor_does_one_whose_handler_waits_first() {
    assert_eq!(allocations_of_settle(Yields(1)), 0);
    assert_eq!(allocations_of_settle(Yields(3)), 0);
}

/// Metrics between two lines are added up in place.
#[test]
fn nor_does_one_that_is_measured() {
    let resilient = Resilient::builder("billing", Yields(0))
        .dead_letters(dead_letter::Memory::new())
        .observer(Emf::new("billing"))
        .observer(Metrics::new("billing"))
        .build()
        .expect("valid");
    assert_eq!(allocations_of(&resilient), 0);
}

/// A record that came as a `Vec` is cloned for a handler that wants its own: `Bytes` makes its shared
/// part with the first clone, one allocation. A payload that is shared already takes none.
#[test]
fn an_owned_record_costs_what_bytes_needs_to_be_shared() {
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

/// Batches made beforehand. Between warming up and being counted it pauses, so that the pipeline's
/// future comes back to the test.
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

/// Allocations for each of so many records that go through a pipeline which has seen as many before.
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
    let pipeline = Pipeline::new().ordering(ordering);
    let mut run = pin!(pipeline.run(&resilient, batches));
    // Up to the pause, and until everything before it is settled.
    runtime.block_on(async {
        poll_fn(|cx| {
            assert!(run.as_mut().poll(cx).is_pending(), "more is to come");
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
    let finished = finished.expect("it ran").expect("nothing halts");
    assert!(finished.complete && finished.unsettled == 0);
    counted.count_total
}

#[test]
fn a_record_that_succeeds_goes_through_the_pipeline_without_an_allocation() {
    for ordering in ORDERINGS {
        println!("{ordering:?}: {}", allocations_of_pipeline(Yields(0), ordering));
    }
}

#[test]
fn and_so_does_one_whose_handler_waits_first() {
    for ordering in ORDERINGS {
        println!("{ordering:?}: {}", allocations_of_pipeline(Yields(1), ordering));
    }
}
