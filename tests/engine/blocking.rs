//! Tests of handlers that block their thread: a record never has two calls at the same time.
//!
//! Threads ignore paused time. These tests wait for the threads and for short timeouts instead.

use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use redrive::observer::{Event, Observer, RecordEvent};
use redrive::{
    BoxError, Jitter, Record, Resilient, ResilientBuilder, RetryPolicy, Settled, dead_letter,
    processor_blocking,
};
use support::script::record;

/// Calls whose end and result the test controls.
#[derive(Clone)]
struct Calls {
    begun: Arc<AtomicU32>,
    running: Arc<AtomicU32>,
    most: Arc<AtomicU32>,
    ends: Arc<Mutex<Receiver<Result<(), &'static str>>>>,
    stuck: Arc<AtomicU32>,
}

impl Observer for Calls {
    fn on(&self, event: &Event<'_>) {
        if matches!(
            event,
            Event::Record {
                event: RecordEvent::HandlerStuck { .. },
                ..
            }
        ) {
            self.stuck.fetch_add(1, SeqCst);
        }
    }
}

impl Calls {
    fn new() -> (Self, Sender<Result<(), &'static str>>) {
        let (end, ends) = channel();
        let calls = Calls {
            begun: Arc::default(),
            running: Arc::default(),
            most: Arc::default(),
            ends: Arc::new(Mutex::new(ends)),
            stuck: Arc::default(),
        };
        (calls, end)
    }

    fn resilient(&self, timeout: Duration) -> ResilientBuilder<impl redrive::RecordProcessor + use<>> {
        let calls = self.clone();
        let handle = move |_: &Record| -> Result<(), BoxError> {
            calls.begun.fetch_add(1, SeqCst);
            let running = calls.running.fetch_add(1, SeqCst) + 1;
            calls.most.fetch_max(running, SeqCst);
            let end = calls.ends.lock().expect("no panic while locked").recv();
            calls.running.fetch_sub(1, SeqCst);
            match end.expect("the test sends a result") {
                Err("panic") => panic!("requested by the test"),
                end => Ok(end?),
            }
        };
        let policy = RetryPolicy::constant(Duration::from_millis(1)).jitter(Jitter::None);
        Resilient::builder("billing", processor_blocking(handle))
            .retry(policy.max_attempts(1_000).attempt_timeout(timeout))
            .dead_letters(dead_letter::Memory::new())
            .without_breaker()
            .observer(self.clone())
    }
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..3_000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not within 30 s: {what}");
}

#[tokio::test]
async fn attempt_returns_the_result_of_its_call() {
    let (calls, end) = Calls::new();
    let resilient = calls.resilient(Duration::from_secs(60)).build().expect("valid");
    for how in [Err("of unknown cause"), Err("panic"), Ok(())] {
        end.send(how).expect("a call receives");
    }
    assert_eq!(
        resilient.settle(&record(1, "a", "")).await.expect("settled"),
        Settled::Processed
    );
    assert_eq!(calls.begun.load(SeqCst), 3);
}

#[tokio::test]
async fn attempt_waits_for_a_stuck_call_and_takes_its_success() {
    let (calls, end) = Calls::new();
    let resilient = calls.resilient(Duration::from_millis(20)).build().expect("valid");
    let settling = tokio::spawn(async move { resilient.settle(&record(1, "a", "")).await });
    eventually("attempts wait, and that is reported", || {
        calls.stuck.load(SeqCst) >= 2
    })
    .await;
    assert_eq!(calls.begun.load(SeqCst), 1, "no second thread");
    end.send(Ok(())).expect("a call receives");
    let settled = settling.await.expect("no panic").expect("settled");
    assert_eq!(settled, Settled::Processed);
    assert_eq!((calls.begun.load(SeqCst), calls.most.load(SeqCst)), (1, 1));
}

#[tokio::test]
async fn next_call_begins_after_a_stuck_call_fails() {
    let (calls, end) = Calls::new();
    let resilient = calls.resilient(Duration::from_millis(20)).build().expect("valid");
    let settling = tokio::spawn(async move { resilient.settle(&record(1, "a", "")).await });
    for (begun, how) in [(1, Err("of unknown cause")), (2, Err("panic")), (3, Ok(()))] {
        eventually("a call has begun", || calls.begun.load(SeqCst) == begun).await;
        let stuck = calls.stuck.load(SeqCst);
        eventually("an attempt waits for it", || calls.stuck.load(SeqCst) > stuck).await;
        end.send(how).expect("a call receives");
    }
    let settled = settling.await.expect("no panic").expect("settled");
    assert_eq!(settled, Settled::Processed);
    assert_eq!((calls.begun.load(SeqCst), calls.most.load(SeqCst)), (3, 1));
}
