//! One attempt: the hot path. Nothing here allocates, locks or reads a clock for a handler that is
//! ready at once.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::Span;

use super::{Run, spans};
use crate::external::{Panicked, poll_caught};
use crate::observer::{Event, Interest, Observers};
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
            deadline: run.deadline(),
            finish_by: run.within.map(|within| within.finish_by),
            cancelled: None,
        }
    }
}

/// One call of the handler.
struct Call<'a> {
    /// The record; of a batch the first.
    first: &'a Record,
    records: usize,
    attempt: &'a Attempt<'a>,
    /// If somebody asks how long it takes.
    began: Option<Instant>,
}

/// An attempt that did not succeed.
pub(super) struct FailedAttempt<E> {
    pub(super) error: AttemptError<E>,
    /// From the first time that the handler waited for something.
    pub(super) took: Duration,
}

pub(super) enum AttemptError<E> {
    Returned(E),
    TimedOut,
    Panicked(Panicked),
    /// The term's deadline cut it short: it says nothing about the record.
    Interrupted,
}

/// The handler did not finish in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the attempt timed out after {after:?}")]
pub struct AttemptTimedOut {
    /// The retry policy's `attempt_timeout`.
    pub after: Duration,
}

/// Calls the user's handler, and limits each call by the attempt timeout.
pub(super) struct AttemptRunner<P> {
    pub(super) processor: P,
    timeout: Duration,
    observers: Observers,
}

impl<P: RecordProcessor> AttemptRunner<P> {
    pub(super) fn new(processor: P, timeout: Duration, observers: Observers) -> Self {
        AttemptRunner {
            processor,
            timeout,
            observers,
        }
    }

    /// The most that an attempt may take.
    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Makes a record's first attempt, which ends at this time at the latest.
    #[inline]
    pub(super) fn run_first(
        &self,
        record: &Record,
        deadline: Option<Instant>,
    ) -> impl Future<Output = Result<(), FailedAttempt<P::Error>>> + Send {
        self.call(record, Attempt::new(1, self.timeout, deadline, None))
    }

    /// Calls the handler once, in a span of its own.
    pub(super) async fn run_in_span(
        &self,
        record: &Record,
        number: u32,
        term: Term<'_>,
    ) -> Result<(), FailedAttempt<P::Error>> {
        let attempt = Attempt::new(number, self.timeout, term.deadline, term.cancelled);
        spans::attempted(self.call(record, attempt), spans::of_attempt(number)).await
    }

    /// The clock, if somebody asks how long an attempt takes.
    #[inline(always)]
    fn now_if_asked(&self) -> Option<Instant> {
        let asked = self.observers.want(Interest::ATTEMPTS);
        asked.then(Instant::now)
    }

    #[inline(always)]
    fn tell_ended(&self, call: &Call<'_>, succeeded: bool) {
        if let Some(began) = call.began {
            let event = Event::AttemptEnded {
                record: call.first,
                records: call.records,
                attempt: call.attempt.number(),
                took: began.elapsed(),
                succeeded,
            };
            self.observers.tell_of(Interest::ATTEMPTS, &event);
        }
    }

    /// No `async fn`: that would keep every argument twice, and each place to run is as large as this future.
    #[allow(clippy::manual_async_fn, reason = "see above")]
    #[inline]
    fn call(
        &self,
        record: &Record,
        attempt: Attempt<'_>,
    ) -> impl Future<Output = Result<(), FailedAttempt<P::Error>>> + Send {
        async move {
            let attempt = &attempt;
            let this = Call {
                first: record,
                records: 1,
                attempt,
                began: self.now_if_asked(),
            };
            // The call itself stands inside, so that a panic before the first await is caught as well.
            let mut call = pin!(async move { self.processor.process(record, attempt).await });
            let mut timer = pin!(None);
            poll_fn(move |cx| match poll_caught(call.as_mut(), cx) {
                Poll::Ready(result) => Poll::Ready(self.ended(&this, result)),
                Poll::Pending => self.poll_late(&this, timer.as_mut(), cx),
            })
            .await
        }
    }

    /// Calls the handler once with a batch of records that begins with this one.
    pub(super) async fn run_batch(
        &self,
        first: &Record,
        batch: &[Record],
        number: u32,
        span: Span,
        term: Term<'_>,
    ) -> Result<(), FailedAttempt<BatchFailure<P::Error>>> {
        let attempt = &Attempt::new(number, self.timeout, term.deadline, term.cancelled);
        let call = async move {
            let this = Call {
                first,
                records: batch.len(),
                attempt,
                began: self.now_if_asked(),
            };
            let mut call = pin!(async move { self.processor.process_batch(batch, attempt).await });
            let mut timer = pin!(None);
            poll_fn(move |cx| match poll_caught(call.as_mut(), cx) {
                Poll::Ready(result) => Poll::Ready(self.ended(&this, result)),
                Poll::Pending => self.poll_late(&this, timer.as_mut(), cx),
            })
            .await
        };
        spans::attempted(call, span).await
    }

    /// An attempt has ended by itself.
    #[inline(always)]
    fn ended<E>(
        &self,
        call: &Call<'_>,
        result: Result<Result<(), E>, Panicked>,
    ) -> Result<(), FailedAttempt<E>> {
        let error = match result {
            Ok(Ok(())) => {
                self.tell_ended(call, true);
                return Ok(());
            }
            Ok(Err(error)) => AttemptError::Returned(error),
            Err(panicked) => AttemptError::Panicked(panicked),
        };
        self.tell_ended(call, false);
        let took = call.attempt.took();
        Err(FailedAttempt { error, took })
    }

    /// It has not ended: is it too late?
    #[inline]
    fn poll_late<E>(
        &self,
        call: &Call<'_>,
        mut timer: Pin<&mut Option<Sleep>>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), FailedAttempt<E>>> {
        let attempt = call.attempt;
        // Only a handler that waits can be late: the timer is armed after the first `Pending`.
        if timer.is_none() {
            timer.set(Some(sleep_until(attempt.deadline())));
        }
        match timer.as_pin_mut().map(|timer| timer.poll(cx)) {
            Some(Poll::Ready(())) => {
                if attempt.is_stuck() {
                    let (record, attempt) = (call.first, attempt.number());
                    self.observers
                        .report(Interest::FAILURES, || Event::HandlerStuck { record, attempt });
                }
                self.tell_ended(call, false);
                Poll::Ready(Err(FailedAttempt {
                    error: if attempt.is_cut_short() {
                        AttemptError::Interrupted
                    } else {
                        AttemptError::TimedOut
                    },
                    took: attempt.took(),
                }))
            }
            _ => Poll::Pending,
        }
    }
}
