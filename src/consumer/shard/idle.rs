//! Distinguishes a call that works from a call that only waits.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use tokio::time::{Instant, Sleep, sleep};

/// A future that is polled only after a wake-up, so that the time is known for which it only waits.
pub(in crate::consumer) struct Call<F> {
    future: Pin<Box<F>>,
    pub(in crate::consumer) woken: Arc<Woken>,
    waits: Pin<Box<Sleep>>,
    limit: Duration,
}

/// Records whether something has woken a call since its last poll.
pub(in crate::consumer) struct Woken {
    is_woken: AtomicBool,
    /// The waker of the task that polls the call.
    task: AtomicWaker,
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.is_woken.store(true, Ordering::Release);
        self.task.wake();
    }
}

impl<F: Future> Call<F> {
    /// Creates the call. It counts as waiting when nothing has woken it for `limit`.
    pub(in crate::consumer) fn new(future: F, limit: Duration) -> Self {
        Call {
            future: Box::pin(future),
            woken: Arc::new(Woken {
                is_woken: AtomicBool::new(true),
                task: AtomicWaker::new(),
            }),
            waits: Box::pin(sleep(limit)),
            limit,
        }
    }

    /// Polls the call until it completes, and returns its output. Returns `None` once the call has waited for
    /// longer than the limit.
    pub(in crate::consumer) async fn run(&mut self) -> Option<F::Output> {
        self.waits.as_mut().reset(Instant::now() + self.limit);
        poll_fn(|cx| {
            self.woken.task.register(cx.waker());
            if self.woken.is_woken.swap(false, Ordering::AcqRel) {
                let waker = Waker::from(self.woken.clone());
                if let Poll::Ready(output) = self.future.as_mut().poll(&mut Context::from_waker(&waker)) {
                    return Poll::Ready(Some(output));
                }
                self.waits.as_mut().reset(Instant::now() + self.limit);
            }
            self.waits.as_mut().poll(cx).map(|()| None)
        })
        .await
    }
}

impl Woken {
    /// Returns when something has woken the call. The call is not polled meanwhile.
    pub(in crate::consumer) async fn happened(&self) {
        poll_fn(|cx| {
            self.task.register(cx.waker());
            match self.is_woken.load(Ordering::Acquire) {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(2);

    #[tokio::test(start_paused = true)]
    async fn a_call_that_works_in_steps_does_not_count_as_waiting() {
        let steps = async {
            for _ in 0..10 {
                sleep(Duration::from_secs(1)).await;
            }
            "done"
        };
        assert_eq!(Call::new(steps, LIMIT).run().await, Some("done"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_waits_is_polled_again_only_on_request() {
        let begun = Instant::now();
        let mut call = Call::new(
            async {
                sleep(Duration::from_secs(60)).await;
                begun.elapsed()
            },
            LIMIT,
        );
        assert_eq!(call.run().await, None);
        assert_eq!(begun.elapsed(), LIMIT);
        call.woken.happened().await;
        assert_eq!(begun.elapsed(), Duration::from_secs(60));
        sleep(Duration::from_secs(5)).await;
        assert_eq!(call.run().await, Some(Duration::from_secs(65)));
    }
}
