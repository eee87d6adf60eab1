//! One attempt: the hot path. Nothing here allocates, locks or reads a clock if the processor is ready at
//! once.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::Span;

use super::{Run, spans};
use crate::external::{Panicked, poll_caught};
use crate::observer::{Event, Interest, Observers, RecordEvent};
use crate::processor::{Attempt, AttemptContext, BatchFailure, Handler};
use crate::record::Record;
use crate::stopwatch::Stopwatch;

/// The outer limits within which a record is settled.
#[derive(Clone, Copy)]
pub(crate) struct Term<'a> {
    /// The state that the record shares with the other records of its shard.
    pub(crate) run: &'a Run,
    /// The latest end of an attempt: no attempt runs past this time.
    pub(crate) deadline: Option<Instant>,
    /// The time by which dead letters and completions must be written: the deadline, or later.
    pub(crate) finish_by: Option<Instant>,
    /// Tells the processor that its result is no longer wanted.
    pub(crate) cancelled: Option<&'a CancellationToken>,
}

impl<'a> Term<'a> {
    /// Creates the term of a record that only its run limits.
    pub(crate) fn of(run: &'a Run) -> Self {
        Term {
            run,
            deadline: run.deadline(),
            finish_by: run.within.map(|within| within.finish_by),
            cancelled: None,
        }
    }
}

/// One call of the processor.
struct Call<'a> {
    /// The record, or the first record of a batch.
    first: &'a Record,
    records: usize,
    attempt: &'a Attempt<'a>,
    /// Measures the call from its start, if an observer wants its duration.
    began: Option<Stopwatch>,
}

/// A failed attempt.
pub(super) struct FailedAttempt<E> {
    pub(super) error: AttemptError<E>,
    /// The duration of the attempt, counted from the first time that the processor waited for something.
    pub(super) took: Duration,
}

pub(super) enum AttemptError<E> {
    Returned(E),
    TimedOut,
    Panicked(Panicked),
    /// The term's deadline interrupted the attempt, which shows nothing about the record.
    Interrupted,
}

/// Calls the user's processor, and limits each call by the attempt timeout.
pub(super) struct AttemptRunner<P> {
    pub(super) processor: P,
    context: AttemptContext,
    observers: Observers,
}

impl<P: Handler> AttemptRunner<P> {
    pub(super) fn new(processor: P, timeout: Duration, observers: Observers) -> Self {
        AttemptRunner {
            processor,
            context: AttemptContext::new(timeout),
            observers,
        }
    }

    /// Returns the maximum duration of an attempt.
    pub(super) fn timeout(&self) -> Duration {
        self.context.timeout()
    }

    /// Returns whether the processor works on another thread than the one that polls it. This is known once
    /// the processor has been called.
    pub(super) fn runs_elsewhere(&self) -> bool {
        self.context.runs_elsewhere()
    }

    /// Makes a record's first attempt, which ends at `deadline` at the latest. If it succeeds, the caller
    /// reports it: the result measures it from its start, if an observer wants its duration.
    #[inline]
    pub(super) fn run_first(
        &self,
        record: &Record,
        deadline: Option<Instant>,
    ) -> impl Future<Output = Result<Option<Stopwatch>, FailedAttempt<P::Error>>> + Send {
        self.call(record, Attempt::new(1, &self.context, deadline, None))
    }

    /// Calls the processor once, in a span of its own.
    pub(super) async fn run_in_span(
        &self,
        record: &Record,
        number: u32,
        term: Term<'_>,
    ) -> Result<(), FailedAttempt<P::Error>> {
        let attempt = Attempt::new(number, &self.context, term.deadline, term.cancelled);
        let call = async {
            let began = self.call(record, attempt).await?;
            self.tell_ended(record, 1, number, began, true);
            Ok(())
        };
        spans::attempted(call, spans::of_attempt(number)).await
    }

    /// Starts to measure a call if an observer wants the duration of attempts.
    #[inline(always)]
    fn start_if_asked(&self) -> Option<Stopwatch> {
        let asked = self.observers.want(Interest::ATTEMPTS);
        asked.then(Stopwatch::start)
    }

    fn tell_ended(
        &self,
        record: &Record,
        records: usize,
        attempt: u32,
        began: Option<Stopwatch>,
        succeeded: bool,
    ) {
        if let Some(began) = began {
            let event = RecordEvent::AttemptEnded {
                records,
                attempt,
                took: began.elapsed(),
                succeeded,
            };
            let event = Event::Record { record, event };
            self.observers.tell_of(Interest::ATTEMPTS, &event);
        }
    }

    #[cold]
    fn tell_failed(&self, call: &Call<'_>) {
        let (record, attempt) = (call.first, call.attempt.number());
        self.tell_ended(record, call.records, attempt, call.began, false);
    }

    /// Not an `async fn`: that would store every argument twice, and every running call is as large as this
    /// future.
    #[allow(clippy::manual_async_fn, reason = "see above")]
    #[inline]
    fn call(
        &self,
        record: &Record,
        attempt: Attempt<'_>,
    ) -> impl Future<Output = Result<Option<Stopwatch>, FailedAttempt<P::Error>>> + Send {
        async move {
            let attempt = &attempt;
            let mut this = Call {
                first: record,
                records: 1,
                attempt,
                began: self.start_if_asked(),
            };
            // The call is inside the async block, so that a panic before the first await is caught as well.
            let mut call = pin!(async move { self.processor.handle(record, attempt).await });
            let mut timer = pin!(None);
            poll_fn(move |cx| match poll_caught(call.as_mut(), cx) {
                Poll::Ready(result) => Poll::Ready(self.ended(&this, result)),
                Poll::Pending => self.poll_late(&mut this, timer.as_mut(), cx),
            })
            .await
        }
    }

    /// Calls the processor once with a batch. `first` is the place of the batch's first record.
    pub(super) async fn run_batch(
        &self,
        first: &Record,
        batch: &[Record],
        number: u32,
        span: Span,
        term: Term<'_>,
    ) -> Result<(), FailedAttempt<BatchFailure<P::Error>>> {
        let attempt = &Attempt::new(number, &self.context, term.deadline, term.cancelled);
        let call = async move {
            let mut this = Call {
                first,
                records: batch.len(),
                attempt,
                began: self.start_if_asked(),
            };
            let mut call = pin!(async move { self.processor.handle_batch(batch, attempt).await });
            let mut timer = pin!(None);
            poll_fn(move |cx| match poll_caught(call.as_mut(), cx) {
                Poll::Ready(result) => Poll::Ready(self.ended(&this, result)),
                Poll::Pending => self.poll_late(&mut this, timer.as_mut(), cx),
            })
            .await
            .map(|began| self.tell_ended(first, batch.len(), number, began, true))
        };
        spans::attempted(call, span).await
    }

    /// Handles an attempt that has ended by itself. The caller reports a success: the result
    /// measures the attempt from its start.
    #[inline(always)]
    fn ended<E>(
        &self,
        call: &Call<'_>,
        result: Result<Result<(), E>, Panicked>,
    ) -> Result<Option<Stopwatch>, FailedAttempt<E>> {
        let error = match result {
            Ok(Ok(())) => return Ok(call.began),
            Ok(Err(error)) => AttemptError::Returned(error),
            Err(panicked) => AttemptError::Panicked(panicked),
        };
        self.tell_failed(call);
        let took = call.attempt.took();
        Err(FailedAttempt { error, took })
    }

    /// Handles an attempt that has not ended: ends the attempt if its time is over.
    #[inline]
    fn poll_late<E>(
        &self,
        call: &mut Call<'_>,
        mut timer: Pin<&mut Option<Sleep>>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Stopwatch>, FailedAttempt<E>>> {
        let attempt = call.attempt;
        // Only a processor that waits can be late, so the timer is armed after the first `Pending`.
        if timer.is_none() {
            if let Some(began) = &mut call.began {
                began.wait();
            }
            timer.set(Some(sleep_until(attempt.deadline())));
        }
        match timer.as_pin_mut().map(|timer| timer.poll(cx)) {
            Some(Poll::Ready(())) => {
                if attempt.is_stuck() {
                    let (record, attempt) = (call.first, attempt.number());
                    self.observers.report(Interest::FAILURES, || Event::Record {
                        record,
                        event: RecordEvent::HandlerStuck { attempt },
                    });
                }
                self.tell_failed(call);
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
