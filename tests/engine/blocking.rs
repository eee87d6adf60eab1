//! Handlers that block their thread: never two for a record, whatever the attempts do.
//!
//! Threads know nothing of paused time, so that these tests wait for each other, and for short timeouts.

use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use redrive::observer::{Event, Observer};
use redrive::{
    BoxError, Jitter, Record, Resilient, ResilientBuilder, RetryPolicy, Settled, dead_letter,
    processor_blocking,
};
use support::script::record;

/// Calls that end when they are told to, and how.
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
        if matches!(event, Event::HandlerStuck { .. }) {
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
            match end.expect("it is told") {
                Err("panic") => panic!("as it was told"),
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
async fn what_a_call_returns_is_the_attempts_result() {
    let (calls, end) = Calls::new();
    let resilient = calls.resilient(Duration::from_secs(60)).build().expect("valid");
    for how in [Err("of unknown cause"), Err("panic"), Ok(())] {
        end.send(how).expect("it listens");
    }
    assert_eq!(
        resilient.settle(&record(1, "a", "")).await.expect("settled"),
        Settled::Processed
    );
    assert_eq!(calls.begun.load(SeqCst), 3);
}

#[tokio::test]
async fn an_attempt_waits_for_the_call_before_it_and_takes_its_success() {
    let (calls, end) = Calls::new();
    let resilient = calls.resilient(Duration::from_millis(20)).build().expect("valid");
    let settling = tokio::spawn(async move { resilient.settle(&record(1, "a", "")).await });
    eventually("attempts wait, and that is told", || {
        calls.stuck.load(SeqCst) >= 2
    })
    .await;
    assert_eq!(calls.begun.load(SeqCst), 1, "no second thread");
    end.send(Ok(())).expect("it listens");
    let settled = settling.await.expect("no panic").expect("settled");
    assert_eq!(settled, Settled::Processed);
    assert_eq!((calls.begun.load(SeqCst), calls.most.load(SeqCst)), (1, 1));
}

#[tokio::test]
async fn behind_a_call_that_fails_the_next_one_begins() {
    let (calls, end) = Calls::new();
    let resilient = calls.resilient(Duration::from_millis(20)).build().expect("valid");
    let settling = tokio::spawn(async move { resilient.settle(&record(1, "a", "")).await });
    for (begun, how) in [(1, Err("of unknown cause")), (2, Err("panic")), (3, Ok(()))] {
        eventually("a call has begun", || calls.begun.load(SeqCst) == begun).await;
        let stuck = calls.stuck.load(SeqCst);
        eventually("an attempt waits for it", || calls.stuck.load(SeqCst) > stuck).await;
        end.send(how).expect("it listens");
    }
    let settled = settling.await.expect("no panic").expect("settled");
    assert_eq!(settled, Settled::Processed);
    assert_eq!((calls.begun.load(SeqCst), calls.most.load(SeqCst)), (3, 1));
}
