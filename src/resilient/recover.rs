//! After a failure: classify, decide, wait, write the letter. The cold path, boxed.

use std::any::type_name;
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout_at};

use super::attempt::{AttemptTimedOut, How, Stumble, Term};
use super::outbox::Refused;
use super::{Inner, Step};
use crate::dead_letter::{Attempts, DeadLetter, Reason};
use crate::failure::{Class, Failure, Verdict};
use crate::observer::{Event, Interest, Redacted};
use crate::processor::RecordProcessor;
use crate::record::Record;
use crate::settled::{Halt, Settled, Unsettled};

/// Where a record stands that has failed and is not settled yet.
pub(crate) struct Recovery {
    attempts: Attempts,
    /// Attempts and backoffs; nothing else counts.
    spent: Duration,
    delay: Duration,
    panics: u32,
    phase: Phase,
}

enum Phase {
    /// Another attempt, at this time.
    Retry { at: Instant },
    /// The verdict is reached and kept: only the letter is left to write.
    Letter(Box<(DeadLetter, Failure)>),
}

impl Recovery {
    fn new() -> Self {
        Recovery {
            attempts: Attempts::default(),
            spent: Duration::ZERO,
            delay: Duration::ZERO,
            panics: 0,
            phase: Phase::Retry { at: Instant::now() },
        }
    }

    /// When to go on; `None`: at once.
    pub(crate) fn due(&self) -> Option<Instant> {
        match self.phase {
            Phase::Retry { at } => Some(at),
            Phase::Letter(_) => None,
        }
    }

    /// Whether going on calls the handler.
    pub(crate) fn calls_handler(&self) -> bool {
        matches!(self.phase, Phase::Retry { .. })
    }
}

impl<P: RecordProcessor> Inner<P> {
    /// Goes on after a first attempt that did not succeed, until the record is settled or its term is
    /// over.
    pub(super) async fn recover(
        &self,
        record: &Record,
        stumble: Stumble<P::Error>,
        term: Term<'_>,
    ) -> Result<Settled, Unsettled> {
        let result = self
            .go_on(record, self.stumbled(record, None, stumble), term)
            .await;
        if let Err(reason) = &result {
            self.tell(Interest::FAILURES, || Event::Unsettled { record, reason });
        }
        result
    }

    async fn go_on(&self, record: &Record, mut step: Step, term: Term<'_>) -> Result<Settled, Unsettled> {
        loop {
            match step {
                Step::Done(result) => return result,
                Step::Later(recovery) => {
                    if let Some(due) = recovery.due() {
                        // An attempt that begins when it must end is none.
                        if term.deadline.is_some_and(|deadline| due >= deadline) {
                            return Err(Unsettled::Deadline);
                        }
                        sleep_until(due).await;
                    }
                    step = self.resume(record, recovery, term).await;
                }
            }
        }
    }

    /// What its phase asks for, once.
    pub(super) async fn resume(&self, record: &Record, recovery: Box<Recovery>, term: Term<'_>) -> Step {
        match recovery.phase {
            Phase::Retry { .. } => {
                let number = recovery.attempts.count + 1;
                match self.attempt(record, number, term).await {
                    Ok(()) => Step::Done(Ok(self.processed(record, number))),
                    Err(stumble) => self.stumbled(record, Some(recovery), stumble),
                }
            }
            Phase::Letter(letter) => {
                let written = self.write(record, &letter.0, &letter.1, recovery.attempts.count);
                Step::Done(match term.deadline {
                    None => written.await,
                    Some(deadline) => match timeout_at(deadline, written).await {
                        Ok(result) => result,
                        Err(_) => Err(Unsettled::Deadline),
                    },
                })
            }
        }
    }

    /// An attempt did not succeed: what now?
    pub(super) fn stumbled(
        &self,
        record: &Record,
        recovery: Option<Box<Recovery>>,
        stumble: Stumble<P::Error>,
    ) -> Step {
        let mut recovery = recovery.unwrap_or_else(|| Box::new(Recovery::new()));
        let failure = match stumble.how {
            How::Cut => return Step::Done(Err(Unsettled::Deadline)),
            How::Failed(error) => self.classifiers.judge(error),
            How::TimedOut => {
                let after = self.policy.timeout();
                Failure::transient(AttemptTimedOut { after }).with_code("attempt_timed_out")
            }
            How::Panicked(panicked) => {
                recovery.panics += 1;
                // Once may be chance, such as a poisoned connection; twice is the record.
                let verdict = if recovery.panics < 2 {
                    Verdict::transient()
                } else {
                    Verdict::permanent()
                };
                Failure::new(panicked, verdict.with_code("panicked"))
            }
        };
        recovery.attempts.push(stumble.took, &failure);
        recovery.spent += stumble.took;
        let failed = recovery.attempts.count;
        self.tell(Interest::FAILURES, || Event::AttemptFailed {
            record,
            attempt: failed,
            failure: Redacted(&failure),
            error_type: type_name::<P::Error>(),
        });
        if failure.verdict().class() == Class::Permanent {
            let reason = if recovery.panics >= 2 {
                Reason::Panicked
            } else {
                Reason::Permanent
            };
            return self.give_up(record, recovery, reason, failure);
        }
        if self.policy.attempts_exhausted(failed) {
            return self.give_up(record, recovery, Reason::AttemptsExhausted, failure);
        }
        let delay = self.draw(|rng| {
            let asked = failure.verdict().retry_after();
            self.policy.delay(failed, recovery.delay, asked, rng)
        });
        if self
            .policy
            .time_exhausted(failed, recovery.spent.saturating_add(delay))
        {
            return self.give_up(record, recovery, Reason::TimeExhausted, failure);
        }
        recovery.spent += delay;
        recovery.delay = delay;
        let now = Instant::now();
        recovery.phase = Phase::Retry {
            at: now.checked_add(delay).unwrap_or(now),
        };
        self.tell(Interest::FAILURES, || Event::RetryScheduled {
            record,
            attempt: failed + 1,
            delay,
        });
        Step::Later(recovery)
    }

    /// The verdict is reached. It is kept from here on: the handler is not called again.
    fn give_up(
        &self,
        record: &Record,
        mut recovery: Box<Recovery>,
        reason: Reason,
        failure: Failure,
    ) -> Step {
        if self.outbox.is_none() {
            return Step::Done(Err(Unsettled::Halted(Halt::WithoutDeadLetters(failure))));
        }
        let letter = DeadLetter::new(&self.application, record, reason, &failure).with_attempts(
            recovery.attempts.clone(),
            type_name::<P::Error>(),
            &self.name,
            self.version.as_deref(),
        );
        recovery.phase = Phase::Letter(Box::new((letter, failure)));
        Step::Later(recovery)
    }

    /// Writes the letter, however long the sink is down.
    async fn write(
        &self,
        record: &Record,
        letter: &DeadLetter,
        failure: &Failure,
        attempts: u32,
    ) -> Result<Settled, Unsettled> {
        let Some(outbox) = &self.outbox else {
            // `give_up` writes no letter without a sink.
            return Err(Unsettled::Shutdown);
        };
        match outbox.write(letter).await {
            Ok(receipt) => {
                self.tell(Interest::FAILURES, || Event::DeadLettered {
                    record,
                    id: letter.id,
                    reason: letter.reason.as_str(),
                    failure: Redacted(failure),
                    location: &receipt.location,
                });
                let settled = Settled::DeadLettered(letter.id);
                self.tell_settled(record, settled, attempts);
                Ok(settled)
            }
            Err(Refused { size, limit, source }) => {
                Err(Unsettled::Halted(Halt::DeadLetterRefused { size, limit, source }))
            }
        }
    }
}
