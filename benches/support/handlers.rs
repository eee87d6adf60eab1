//! Handlers that do nothing, so that only the cost of the code around them is measured.

use std::future::poll_fn;
use std::hint::black_box;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;

use metrics::{Counter, Gauge, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use redrive::processor::Attempt;
use redrive::{Jitter, Record, RecordProcessor, Resilient, ResilientBuilder, RetryPolicy, dead_letter};

/// Completes at once. All contestants use the same handler.
pub async fn handle(record: &Record) -> Result<(), io::Error> {
    black_box(record.payload().len());
    Ok(())
}

/// Calls [`handle`] with an owned record.
pub async fn handle_owned(record: Record) -> Result<(), io::Error> {
    handle(&record).await
}

/// A processor that calls [`handle`].
pub struct Noop;

impl RecordProcessor for Noop {
    type Error = io::Error;

    async fn process(&self, record: &Record, _: &Attempt<'_>) -> Result<(), io::Error> {
        handle(record).await
    }
}

/// A processor that yields once: it is `Pending` and woken at once, like a socket whose data has just
/// arrived.
pub struct YieldOnce;

impl RecordProcessor for YieldOnce {
    type Error = io::Error;

    async fn process(&self, record: &Record, _: &Attempt<'_>) -> Result<(), io::Error> {
        let mut yielded = false;
        poll_fn(|cx| {
            if yielded {
                return Poll::Ready(());
            }
            yielded = true;
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
        handle(record).await
    }
}

/// Builds a `Resilient` with the settings of every contestant: exponential backoff from 100 ms to 10 s and 5
/// attempts.
pub fn resilient<P: RecordProcessor>(processor: P) -> Resilient<P> {
    builder(processor).build().expect("valid settings")
}

/// Builds the same `Resilient` with metrics. The recorder keeps sums, which is what an exporter needs.
pub fn measured<P: RecordProcessor>(processor: P) -> Resilient<P> {
    // The recorder is global: later calls in the same process keep the first one.
    let _ = metrics::set_global_recorder(Sums);
    let builder = builder(processor).observer(redrive::telemetry::Metrics::new());
    builder.build().expect("valid settings")
}

struct Sums;

#[derive(Default)]
struct Sum {
    bits: AtomicU64,
    count: AtomicU64,
}

impl HistogramFn for Sum {
    fn record(&self, value: f64) {
        // Only one thread records, so load and store need not be one atomic operation.
        let sum = f64::from_bits(self.bits.load(Ordering::Relaxed)) + value;
        self.bits.store(sum.to_bits(), Ordering::Relaxed);
        self.count.fetch_add(1, Ordering::Relaxed);
    }
}

impl Recorder for Sums {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(Arc::new(AtomicU64::new(0)))
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(Arc::new(AtomicU64::new(0)))
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(Arc::new(Sum::default()))
    }
}

/// Builds the same `Resilient` without the protections that all records share: circuit breaker, dead-letter
/// guard and retry budget.
pub fn unprotected<P: RecordProcessor>(processor: P) -> Resilient<P> {
    builder(processor)
        .without_breaker()
        .without_guard()
        .without_retry_budget()
        .build()
        .expect("valid settings")
}

fn builder<P: RecordProcessor>(processor: P) -> ResilientBuilder<P> {
    Resilient::builder("bench", processor)
        .retry(RetryPolicy::exponential().max_attempts(5).jitter(Jitter::Full))
        .dead_letters(dead_letter::Memory::new())
}
