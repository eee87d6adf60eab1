//! Handlers that do nothing, so that what is left is the price of what stands around them.

use std::future::poll_fn;
use std::hint::black_box;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;

use metrics::{Counter, Gauge, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use redrive::{
    Attempt, Jitter, Record, RecordProcessor, Resilient, ResilientBuilder, RetryPolicy, dead_letter,
};

/// Ready at once. The same for every contestant.
pub async fn handle(record: &Record) -> Result<(), io::Error> {
    black_box(record.payload().len());
    Ok(())
}

/// The same with a record of its own.
pub async fn handle_owned(record: Record) -> Result<(), io::Error> {
    handle(&record).await
}

/// [`handle`] as a processor.
pub struct Noop;

impl RecordProcessor for Noop {
    type Error = io::Error;

    async fn process(&self, record: &Record, _: &Attempt<'_>) -> Result<(), io::Error> {
        handle(record).await
    }
}

/// Gives way once: `Pending` and woken at once, as by a socket that has the answer already.
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

/// With what every contestant has: exponential backoff from 100 ms to 10 s, 5 attempts.
pub fn resilient<P: RecordProcessor>(processor: P) -> Resilient<P> {
    builder(processor).build().expect("valid settings")
}

/// The same with metrics, of which a recorder keeps what an exporter needs: sums.
pub fn measured<P: RecordProcessor>(processor: P) -> Resilient<P> {
    // One for all benches of a process.
    let _ = metrics::set_global_recorder(Sums);
    let builder = builder(processor).observer(redrive::telemetry::Metrics::new("bench"));
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
        // One thread: nothing comes between.
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

/// The same without what looks at all records together: breaker, dead-letter guard, retry budget.
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
