//! The decision after a failed attempt: another attempt, a hold or a dead letter.
//!
//! The rule is in `docs/retries.md`. Every call counts, except calls while the breaker that the failure
//! counts for is not closed, and calls with a held record. A record that has exhausted its attempts becomes a
//! dead letter, or is held while an outage is suspected.

use std::any::type_name;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::rngs::SmallRng;

use super::attempt::FailedAttempt;
use super::classifiers::Classifiers;
use super::protection::{Permission, Protection, Run};
use super::retry_state::{Hold, RECHECK, RetryState};
use crate::dead_letter::Reason;
use crate::failure::{BoxError, Class, Failure, Scope};
use crate::observer::{Event, Interest, RecordEvent, Redacted};
use crate::protection::{CircuitBreaker, Jitter, RetryBudget, RetryPolicy};
use crate::record::Record;
use crate::sabotage::Sabotage;

/// The decision after a failed attempt.
pub(super) enum Decision {
    /// The deadline interrupted the attempt, which shows nothing new about the record.
    Interrupted,
    /// The record gets another attempt, at the time in its retry state. The scope is that of the failure.
    Retry(Scope),
    /// The record gets another attempt that does not count, because an outage is suspected.
    Hold(Scope),
    /// The record becomes a dead letter.
    GiveUp(Reason, Failure),
}

/// Decides what follows from failed attempts: the retry policy, the classifiers and the shared protections.
pub(super) struct Decisions<E> {
    policy: RetryPolicy,
    classifiers: Classifiers<E>,
    protection: Arc<Protection>,
    // Used only after a failure, so the success path takes no lock.
    rng: Mutex<SmallRng>,
}

impl<E: Into<BoxError> + 'static> Decisions<E> {
    pub(super) fn new(
        policy: RetryPolicy,
        classifiers: Classifiers<E>,
        protection: Arc<Protection>,
        rng: SmallRng,
    ) -> Self {
        Decisions {
            policy,
            classifiers,
            protection,
            rng: Mutex::new(rng),
        }
    }

    pub(super) fn policy(&self) -> &RetryPolicy {
        &self.policy
    }

    /// Decides what follows from a failed attempt with `records` records, of which `record` is the first.
    pub(super) fn decide(
        &self,
        record: &Record,
        records: usize,
        state: Option<Box<RetryState>>,
        failed: FailedAttempt<E>,
        permission: Permission,
        run: &Run,
    ) -> (Box<RetryState>, Decision) {
        let mut state = state.unwrap_or_else(|| Box::new(RetryState::new()));
        let Some(failure) = self
            .classifiers
            .failure(failed.error, self.policy.timeout(), &mut state.panics)
        else {
            return (state, Decision::Interrupted);
        };
        let verdict = failure.verdict();
        let scope = verdict.scope();
        let breaker = self.protection.blamed(verdict);
        let is_closed = breaker.is_none_or(|breaker| breaker.is_closed_for(failed.took));
        state.meets(breaker, scope);
        if !permission.is_free() {
            state.probed = permission.rounds();
        }
        let counts = is_closed && !state.is_suspected() || Sabotage::CountProbes.is_committed();
        state.attempts.push(failed.took, &failure, counts);
        self.protection
            .observers
            .report(Interest::FAILURES, || Event::Record {
                record,
                event: RecordEvent::AttemptFailed {
                    records,
                    attempt: state.attempts.calls(),
                    counts,
                    failure: Redacted(&failure),
                    error_type: type_name::<E>(),
                },
            });
        let others_succeed = breaker.is_some_and(|breaker| state.have_others_succeeded(breaker));
        self.protection
            .failed(record, permission, breaker, others_succeed);
        if let (Some(breaker), false) = (breaker, counts) {
            return self.probe_failed(record, state, breaker, is_closed, failure, run);
        }
        if state.hold.is_some() {
            // The breaker that held the record is closed again.
            state.begin_again();
            state.forget_breaker();
            state.meets(breaker, scope);
        }
        state.counted += 1;
        // A process that was suspended meanwhile is not the record's fault.
        state.spent += failed.took.min(self.policy.timeout());
        let delay = self.draw(|rng| {
            let asked = verdict.retry_after();
            self.policy.delay(state.counted, state.delay, asked, rng)
        });
        let spent = state.spent.saturating_add(delay);
        let reason = match verdict.class() {
            _ if state.panics >= 2 => Some(Reason::Panicked),
            Class::Permanent => Some(Reason::Permanent),
            Class::Transient if self.policy.attempts_exhausted(state.counted) => {
                Some(Reason::AttemptsExhausted)
            }
            Class::Transient if self.policy.time_exhausted(state.counted, spent) => {
                Some(Reason::TimeExhausted)
            }
            Class::Transient => None,
        };
        let Some(reason) = reason else {
            (state.spent, state.delay) = (spent, delay);
            self.protection
                .observers
                .report(Interest::FAILURES, || Event::Record {
                    record,
                    event: RecordEvent::RetryScheduled {
                        attempt: state.attempts.calls() + 1,
                        delay,
                    },
                });
            return (state.retry_after(delay), Decision::Retry(scope));
        };
        let is_suspected = |breaker: &&CircuitBreaker| {
            state.was_suspected(scope) || is_outage_suspected(record, scope, breaker, &state)
        };
        match breaker.filter(is_suspected) {
            Some(_) if run.is_expiring(record) => (state, Decision::GiveUp(Reason::Expiring, failure)),
            Some(breaker) => {
                state.suspect(breaker);
                self.hold(record, state, breaker, &failure)
            }
            None => (state, Decision::GiveUp(reason, failure)),
        }
    }

    /// Decides what follows from a failed call that does not count.
    fn probe_failed(
        &self,
        record: &Record,
        mut state: Box<RetryState>,
        breaker: &CircuitBreaker,
        is_closed: bool,
        failure: Failure,
        run: &Run,
    ) -> (Box<RetryState>, Decision) {
        let scope = failure.verdict().scope();
        let is_suspected = is_outage_suspected(record, scope, breaker, &state);
        let hold = state.hold.get_or_insert_with(Hold::by_breaker);
        if !is_closed {
            hold.is_by_breaker();
        } else if hold.is_over(breaker) || !is_suspected {
            let delay = self.draw(|rng| {
                let asked = failure.verdict().retry_after();
                self.policy.delay(1, Duration::ZERO, asked, rng)
            });
            // Does not forget that others have succeeded: two bad records would hold each other forever.
            state.begin_again();
            return (state.retry_after(delay), Decision::Retry(scope));
        }
        let is_out_of_patience = state.held_for() >= breaker.hold_at_most() && breaker.is_narrow();
        if is_out_of_patience || run.is_expiring(record) {
            let reason = match is_out_of_patience {
                false => Reason::Expiring,
                true if self.policy.attempts_exhausted(state.attempts.calls()) => Reason::AttemptsExhausted,
                true => Reason::TimeExhausted,
            };
            return (state, Decision::GiveUp(reason, failure));
        }
        match is_closed {
            true => self.hold(record, state, breaker, &failure),
            // The breaker decides when the next probe is made.
            false => (state.retry_after(Duration::ZERO), Decision::Hold(scope)),
        }
    }

    /// Holds a record while an outage is suspected. The next attempt comes at the breaker's pace.
    fn hold(
        &self,
        record: &Record,
        mut state: Box<RetryState>,
        breaker: &CircuitBreaker,
        failure: &Failure,
    ) -> (Box<RetryState>, Decision) {
        let (mut probes, mut is_first) = (0, false);
        if let Some(hold) = &mut state.hold {
            (probes, is_first) = (hold.probes, hold.probes == 0);
            hold.probes = hold.probes.saturating_add(1);
        }
        if is_first {
            self.protection
                .observers
                .report(Interest::FAILURES, || Event::Record {
                    record,
                    event: RecordEvent::Held {
                        failure: Redacted(failure),
                        at_most: breaker.hold_at_most(),
                    },
                });
        }
        let asked = failure.verdict().retry_after();
        let delay = self.draw(|rng| match asked {
            Some(_) => self.policy.delay(1, Duration::ZERO, asked, rng),
            None => Jitter::Equal.delay(&breaker.pause(), probes, Duration::ZERO, rng),
        });
        (
            state.retry_after(delay),
            Decision::Hold(failure.verdict().scope()),
        )
    }

    /// Returns how long the next attempt must wait if the retry budget refuses it.
    pub(super) fn budget_refuses(
        &self,
        record: &Record,
        state: &mut RetryState,
        permission: &Permission,
    ) -> Option<Duration> {
        // The breaker asks for its probes and limits them. A record that waits for its claim has already
        // withdrawn its retry.
        if !permission.is_free() || state.waits.is_some() || self.withdraw(state) {
            return None;
        }
        let refused = state.refused;
        let delay = self.draw(|rng| Jitter::Equal.delay(&RECHECK, refused, Duration::ZERO, rng));
        state.refused = refused.saturating_add(1);
        self.protection
            .observers
            .report(Interest::FAILURES, || Event::Record {
                record,
                event: RecordEvent::RetryDelayed { delay },
            });
        Some(delay)
    }

    fn withdraw(&self, state: &mut RetryState) -> bool {
        let granted = self.protection.budget.as_ref().is_none_or(RetryBudget::withdraw);
        if granted {
            state.refused = 0;
        }
        granted
    }

    fn draw<T>(&self, from: impl FnOnce(&mut SmallRng) -> T) -> T {
        from(&mut self.rng.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Returns true if an outage may be the reason why a record has exhausted its attempts.
fn is_outage_suspected(record: &Record, scope: Scope, breaker: &CircuitBreaker, state: &RetryState) -> bool {
    if Sabotage::HoldLoneRecord.is_committed() {
        return true;
    }
    match scope {
        // The error blames the dependency, and is believed as long as no other record succeeds there.
        Scope::Dependency => state.is_dependency_blamed(),
        _ => breaker.has_failed_beside(record),
    }
}
