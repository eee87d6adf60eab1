//! One attempt: the hot path. Nothing here allocates, locks or reads a clock for a handler that is
//! ready at once.

use std::any::Any;
use std::fmt;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::{Inner, Run, trace};
use crate::observer::{Event, Interest};
use crate::processor::{Attempt, BatchFailure, RecordProcessor};
use crate::record::Record;

/// What bounds the settling of a record from outside.
#[derive(Clone, Copy)]
pub(crate) struct Term<'a> {
    /// What it shares with the other records of its shard.
    pub(crate) run: &'a Run,
    /// No attempt runs past it.
    pub(crate) deadline: Option<Instant>,
    /// By when letters and completions must be written: the deadline, or later.
    pub(crate) finish_by: Option<Instant>,
    /// Tells a handler that nobody wants its result any more.
    pub(crate) cancelled: Option<&'a CancellationToken>,
}

impl<'a> Term<'a> {
    /// As long as its run may last.
    pub(crate) fn of(run: &'a Run) -> Self {
        Term {
            run,
            deadline: run.within.map(|within| within.attempts_until),
            finish_by: run.within.map(|within| within.finish_by),
            cancelled: None,
        }
    }
}

/// An attempt that did not succeed.
pub(super) struct Stumble<E> {
    pub(super) how: How<E>,
    /// From the first time that the handler waited for something.
    pub(super) took: Duration,
}

pub(super) enum How<E> {
    Failed(E),
    TimedOut,
    Panicked(Panicked),
    /// The term's deadline cut it short: it says nothing about the record.
    Cut,
}

/// The handler did not finish in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the attempt timed out after {after:?}")]
pub struct AttemptTimedOut {
    /// The retry policy's `attempt_timeout`.
    pub after: Duration,
}

/// The handler panicked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Panicked {
    message: Option<String>,
}

impl fmt::Display for Panicked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.message {
            Some(message) => write!(f, "the handler panicked: {message}"),
            None => f.write_str("the handler panicked"),
        }
    }
}

impl std::error::Error for Panicked {}

impl From<Box<dyn Any + Send>> for Panicked {
    fn from(payload: Box<dyn Any + Send>) -> Self {
        let message = match payload.downcast::<String>() {
            Ok(message) => Some(*message),
            Err(payload) => payload
                .downcast::<&'static str>()
                .ok()
                .map(|text| text.to_string()),
        };
        Panicked { message }
    }
}

/// Polls, and makes a panic a value.
pub(super) fn poll_caught<T>(
    future: Pin<&mut impl Future<Output = T>>,
    cx: &mut Context<'_>,
) -> Poll<Result<T, Panicked>> {
    // After a panic the future is never polled again, and what it shares is the user's to keep sound,
    // as on any thread that may panic.
    match catch_unwind(AssertUnwindSafe(|| future.poll(cx))) {
        Ok(poll) => poll.map(Ok),
        Err(payload) => Poll::Ready(Err(payload.into())),
    }
}

impl<P: RecordProcessor> Inner<P> {
    /// Calls the handler once, in a span of its own if anybody wants spans at DEBUG.
    ///
    /// No `async fn`: that would keep every argument twice, and each place to run is as large as this
    /// future.
    pub(super) fn attempt(
        &self,
        record: &Record,
        number: u32,
        term: Term<'_>,
    ) -> impl Future<Output = Result<(), Stumble<P::Error>>> + Send {
        let attempt = Attempt::new(number, self.policy.timeout(), term.deadline, term.cancelled);
        async move {
            if self.protection.observers.want(Interest::ATTEMPTS) {
                attempt.begin();
            }
            if !trace::is_wanted() {
                return self.call(record, &attempt).await;
            }
            // Boxed, so that a place to run need not be twice as large for the sake of a span.
            let span = trace::of_attempt(attempt.number());
            Box::pin(trace::attempted(self.call(record, &attempt), span)).await
        }
    }

    #[inline(always)]
    fn tell_ended(&self, (record, records): (&Record, usize), attempt: &Attempt<'_>, succeeded: bool) {
        self.tell(Interest::ATTEMPTS, || Event::AttemptEnded {
            record,
            records,
            attempt: attempt.number(),
            took: attempt.took(),
            succeeded,
        });
    }

    async fn call(&self, record: &Record, attempt: &Attempt<'_>) -> Result<(), Stumble<P::Error>> {
        // The call itself stands inside, so that a panic before the first await is caught as well.
        let mut call = pin!(async move { self.processor.process(record, attempt).await });
        let mut timer = pin!(None);
        poll_fn(move |cx| match poll_caught(call.as_mut(), cx) {
            Poll::Ready(result) => Poll::Ready(self.ended((record, 1), result, attempt)),
            Poll::Pending => self.poll_late((record, 1), attempt, timer.as_mut(), cx),
        })
        .await
    }

    /// As [`attempt`](Inner::attempt), with a batch of records that begins with this one.
    pub(super) async fn attempt_batch(
        &self,
        first: &Record,
        batch: &[Record],
        number: u32,
        term: Term<'_>,
    ) -> Result<(), Stumble<BatchFailure<P::Error>>> {
        let attempt = &Attempt::new(number, self.policy.timeout(), term.deadline, term.cancelled);
        let span = self.traces.of_attempt(batch, number);
        let call = async move {
            let mut call = pin!(async move { self.processor.process_batch(batch, attempt).await });
            let mut timer = pin!(None);
            poll_fn(move |cx| match poll_caught(call.as_mut(), cx) {
                Poll::Ready(result) => Poll::Ready(self.ended((first, batch.len()), result, attempt)),
                Poll::Pending => self.poll_late((first, batch.len()), attempt, timer.as_mut(), cx),
            })
            .await
        };
        if self.protection.observers.want(Interest::ATTEMPTS) {
            attempt.begin();
        }
        trace::attempted(call, span).await
    }

    /// An attempt has ended by itself.
    #[inline(always)]
    fn ended<E>(
        &self,
        of: (&Record, usize),
        result: Result<Result<(), E>, Panicked>,
        attempt: &Attempt<'_>,
    ) -> Result<(), Stumble<E>> {
        let how = match result {
            Ok(Ok(())) => {
                self.tell_ended(of, attempt, true);
                return Ok(());
            }
            Ok(Err(error)) => How::Failed(error),
            Err(panicked) => How::Panicked(panicked),
        };
        self.tell_ended(of, attempt, false);
        let took = attempt.took();
        Err(Stumble { how, took })
    }

    /// It has not ended: is it too late?
    #[inline]
    fn poll_late<E>(
        &self,
        (record, records): (&Record, usize),
        attempt: &Attempt<'_>,
        mut timer: Pin<&mut Option<Sleep>>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Stumble<E>>> {
        // Only a handler that waits can be late: the timer is armed after the first `Pending`.
        if timer.is_none() {
            timer.set(Some(sleep_until(attempt.deadline())));
        }
        match timer.as_pin_mut().map(|timer| timer.poll(cx)) {
            Some(Poll::Ready(())) => {
                if attempt.is_stuck() {
                    let attempt = attempt.number();
                    self.tell(Interest::FAILURES, || Event::HandlerStuck { record, attempt });
                }
                self.tell_ended((record, records), attempt, false);
                Poll::Ready(Err(Stumble {
                    how: if attempt.is_cut_short() {
                        How::Cut
                    } else {
                        How::TimedOut
                    },
                    took: attempt.took(),
                }))
            }
            _ => Poll::Pending,
        }
    }
}
