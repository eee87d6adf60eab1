//! Waking the shard's task when a breaker or the dead-letter guard lets its records begin again.

use std::task::Context;

use futures_core::future::BoxFuture;

use crate::engine::Run;

#[derive(Default)]
pub(super) struct Wakers<'a> {
    /// The wait for a change of a breaker, while one is not closed.
    breaker_change: Option<BoxFuture<'a, ()>>,
    /// The wait for a resumption, while the dead-letter guard has stopped the shard.
    guard_resumed: Option<BoxFuture<'a, ()>>,
}

impl<'a> Wakers<'a> {
    pub(super) fn listen(&mut self, run: &'a Run, cx: &mut Context<'_>) {
        self.await_breakers(run, cx);
        self.await_guard(run, cx);
    }

    /// Wakes the task when the dead-letter guard resumes the shard. A dead letter that waits for the guard
    /// would wake the task too, but perhaps none is left.
    fn await_guard(&mut self, run: &'a Run, cx: &mut Context<'_>) {
        if !run.is_stopped() {
            self.guard_resumed = None;
            if run.was_stopped() {
                run.tell_resumed();
                cx.waker().wake_by_ref();
            }
            return;
        }
        let resumed = self.guard_resumed.get_or_insert_with(|| {
            // Another turn checks for a resumption before this moment.
            cx.waker().wake_by_ref();
            Box::pin(run.resumed())
        });
        if resumed.as_mut().poll(cx).is_ready() {
            self.guard_resumed = None;
            cx.waker().wake_by_ref();
        }
    }

    /// Wakes the task when a breaker that is not closed changes.
    fn await_breakers(&mut self, run: &'a Run, cx: &mut Context<'_>) {
        if run.is_clear() {
            self.breaker_change = None;
            return;
        }
        let change = self.breaker_change.get_or_insert_with(|| {
            // Another turn checks for a change before this moment.
            cx.waker().wake_by_ref();
            Box::pin(run.change())
        });
        if change.as_mut().poll(cx).is_ready() {
            self.breaker_change = None;
            cx.waker().wake_by_ref();
        }
    }
}
