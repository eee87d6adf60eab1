//! What an attempt that did not succeed leads to.

use std::any::type_name;
use std::time::Duration;

use super::attempt::{How, Stumble};
use super::blame::Others;
use super::doubt::Doubted;
use super::protection::{Pass, Run};
use super::recovery::Recovery;
use super::{Inner, Step};
use crate::dead_letter::Reason;
use crate::failure::{Class, Failure, Scope};
use crate::observer::{Event, Interest, Redacted};
use crate::processor::RecordProcessor;
use crate::record::Record;
use crate::sabotage::Sabotage;
use crate::settled::Unsettled;

/// What is to be done after an attempt that failed.
pub(super) enum Sentence {
    /// Nothing is known that was not before: it was cut short.
    Cut(Box<Recovery>),
    /// Another attempt: a breaker was not closed, or is not. Whose fault the last one was.
    Held(Box<Recovery>, Scope),
    /// Another attempt. Whose fault the last one was.
    Again(Box<Recovery>, Scope),
    /// It would be given up, or not yet, if that were known to help.
    Doubted(Box<Recovery>, Doubted),
    /// A letter.
    GivenUp(Box<Recovery>, Reason, Failure),
}

impl Sentence {
    pub(super) fn recovery(&mut self) -> &mut Recovery {
        match self {
            Sentence::Cut(recovery)
            | Sentence::Held(recovery, _)
            | Sentence::Again(recovery, _)
            | Sentence::Doubted(recovery, _)
            | Sentence::GivenUp(recovery, ..) => recovery,
        }
    }
}

impl<P: RecordProcessor> Inner<P> {
    /// An attempt did not succeed: what now?
    pub(super) fn stumbled(
        &self,
        record: &Record,
        recovery: Option<Box<Recovery>>,
        stumble: Stumble<P::Error>,
        pass: Pass,
        run: &Run,
    ) -> Step {
        let sentence = self.judge(record, 1, recovery, stumble, pass, run);
        self.sentenced(record, sentence)
    }

    /// What becomes of a record after it.
    pub(super) fn sentenced(&self, record: &Record, sentence: Sentence) -> Step {
        match sentence {
            Sentence::Cut(recovery) => {
                // Nothing is known of it that was not before.
                if recovery.attempts.count > 0 {
                    self.interrupted.keep(record, recovery);
                }
                Step::Done(Err(Unsettled::Deadline))
            }
            Sentence::Held(recovery, _) | Sentence::Again(recovery, _) => Step::Later(recovery),
            Sentence::Doubted(recovery, doubted) => match self.doubt(record, recovery, doubted) {
                Ok(recovery) => Step::Later(recovery),
                Err((recovery, reason, failure)) => self.give_up(record, recovery, reason, failure),
            },
            Sentence::GivenUp(recovery, reason, failure) => self.give_up(record, recovery, reason, failure),
        }
    }

    /// An attempt with so many records, of which this is the first, did not succeed.
    pub(super) fn judge(
        &self,
        record: &Record,
        records: usize,
        recovery: Option<Box<Recovery>>,
        stumble: Stumble<P::Error>,
        pass: Pass,
        run: &Run,
    ) -> Sentence {
        let mut recovery = recovery.unwrap_or_else(|| Box::new(Recovery::new()));
        let timed_out = matches!(stumble.how, How::TimedOut);
        let Some(failure) = self.failure(stumble.how, &mut recovery.panics) else {
            return Sentence::Cut(recovery);
        };
        let number = recovery.attempts.count + 1;
        self.tell(Interest::FAILURES, || Event::AttemptFailed {
            record,
            records,
            attempt: number,
            failure: Redacted(&failure),
            error_type: type_name::<P::Error>(),
        });
        recovery.attempts.push(stumble.took, &failure);
        let verdict = failure.verdict();
        let blamed = self.protection.blamed(verdict);
        // What a sick dependency fails, uses up nothing.
        let in_health = pass.is_free()
            && self.protection.is_clear()
            && blamed.is_none_or(|breaker| breaker.is_closed_for(stumble.took));
        if !pass.is_free() {
            recovery.probed = pass.rounds();
        }
        let others = recovery.others(blamed, timed_out);
        let beside = others != Others::Unknown;
        // What a record shows that is in doubt beside others' successes is known already.
        let counts = blamed.filter(|_| recovery.doubt.is_none() || !beside);
        self.protection.failed(record, pass, counts, beside);

        let is_final = verdict.class() == Class::Permanent && blamed.is_none();
        let out_of_patience = !in_health && recovery.is_out_of_patience();
        let expiring = !in_health && run.is_expiring(record);
        if !in_health
            && !is_final
            && !out_of_patience
            && !expiring
            && !Sabotage::CountHeldAttempts.is_committed()
        {
            if let Some(blame) = &mut recovery.blame {
                blame.forget();
            }
            return Sentence::Held(recovery.retry_after(Duration::ZERO), verdict.scope());
        }
        let certain = others == Others::Succeed || out_of_patience || expiring;
        if certain {
            recovery.doubt = None;
        }
        let first = recovery.used == 0;
        if certain || first || Sabotage::CountHeldAttempts.is_committed() {
            recovery.used += 1;
            // A process that stood still meanwhile is not the record's fault.
            recovery.spent += stumble.took.min(self.policy.timeout());
        }
        let used = recovery.used;
        let delay = self.draw(|rng| {
            let asked = verdict.retry_after();
            self.policy.delay(used, recovery.delay, asked, rng)
        });
        let spent = recovery.spent.saturating_add(delay);
        let reason = match verdict.class() {
            _ if recovery.panics >= 2 => Some(Reason::Panicked),
            Class::Permanent => Some(Reason::Permanent),
            Class::Transient if self.policy.attempts_exhausted(used) => Some(Reason::AttemptsExhausted),
            Class::Transient if out_of_patience => Some(self.out_of(&recovery)),
            Class::Transient if expiring => Some(Reason::Expiring),
            Class::Transient if self.policy.time_exhausted(used, spent) => Some(Reason::TimeExhausted),
            Class::Transient => None,
        };
        match reason {
            Some(reason) if certain => Sentence::GivenUp(recovery, reason, failure),
            None if certain || first => {
                recovery.spent = spent;
                recovery.delay = delay;
                self.tell(Interest::FAILURES, || Event::RetryScheduled {
                    record,
                    attempt: recovery.attempts.count + 1,
                    delay,
                });
                Sentence::Again(recovery.retry_after(delay), verdict.scope())
            }
            _ if run.is_expiring(record) => Sentence::GivenUp(recovery, Reason::Expiring, failure),
            _ => Sentence::Doubted(
                recovery,
                Doubted {
                    reason,
                    failure,
                    others,
                },
            ),
        }
    }
}
