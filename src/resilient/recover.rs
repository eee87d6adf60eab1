//! After a failure: classify, decide, wait, try again. The cold path, boxed.

use std::any::type_name;
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout_at};

use super::attempt::{AttemptTimedOut, How, Stumble, Term};
use super::protection::Pass;
use super::{Inner, Step};
use crate::breaker::{Breaker, Round};
use crate::dead_letter::{Attempts, DeadLetter, Reason};
use crate::failure::{Class, Failure, Scope, Verdict};
use crate::observer::{Event, Interest, Redacted};
use crate::processor::RecordProcessor;
use crate::record::Record;
use crate::retry::{Backoff, Jitter, RetryBudget};
use crate::settled::{Settled, Unsettled};

/// Between two tries of a record that is held, or whose retry the budget refused.
const RECHECK: Backoff = Backoff::exponential();

/// Where a record stands that has failed and is not settled yet.
pub(crate) struct Recovery {
    pub(super) attempts: Attempts,
    /// Attempts and backoffs; nothing else counts.
    spent: Duration,
    delay: Duration,
    panics: u32,
    /// The breaker that it blamed, and how many successes that had seen when the record failed first.
    blamed: Option<(Breaker, u64)>,
    held: Option<Held>,
    /// The rounds of probes that it has taken part in last.
    probed: Vec<Round>,
    /// How often in a row the budget refused its retry.
    refused: u32,
    pub(super) phase: Phase,
}

/// It is kept from being given up, as it may not be to blame.
struct Held {
    since: Instant,
    rechecks: u32,
}

/// What a record's next step goes on from; a first attempt that nothing stands against has none.
pub(crate) struct Stage {
    pub(crate) recovery: Option<Box<Recovery>>,
    pub(crate) pass: Pass,
}

pub(super) enum Phase {
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
            blamed: None,
            held: None,
            probed: Vec::new(),
            refused: 0,
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

    /// Whether it took part in one of these rounds of probes: others come first.
    pub(crate) fn has_probed(&self, rounds: &[Round]) -> bool {
        self.probed.iter().any(|round| rounds.contains(round))
    }

    /// Blames the breaker's dependency. Returns whether others have succeeded there since the first time.
    fn blames(&mut self, breaker: &Breaker) -> bool {
        let now = breaker.successes();
        match &self.blamed {
            Some((first, before)) if first.is(breaker) => now > *before,
            _ => {
                self.blamed = Some((breaker.clone(), now));
                false
            }
        }
    }

    fn retry_after(mut self: Box<Self>, delay: Duration) -> Step {
        let now = Instant::now();
        self.phase = Phase::Retry {
            at: now.checked_add(delay).unwrap_or(now),
        };
        Step::Later(self)
    }
}

impl<P: RecordProcessor> Inner<P> {
    /// Goes on after a first attempt that did not succeed, until the record is settled or its term is
    /// over.
    pub(super) async fn recover(
        &self,
        record: &Record,
        stumble: Stumble<P::Error>,
        pass: Pass,
        term: Term<'_>,
    ) -> Result<Settled, Unsettled> {
        let step = self.stumbled(record, None, stumble, pass);
        let result = self.go_on(record, step, term).await;
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
                    let mut pass = Pass::FREE;
                    if let Some(due) = recovery.due() {
                        // An attempt that begins when it must end is none.
                        if term.deadline.is_some_and(|deadline| due >= deadline) {
                            return Err(match recovery.held {
                                Some(_) => Unsettled::BreakerOpen,
                                None => Unsettled::Deadline,
                            });
                        }
                        sleep_until(due).await;
                        if !self.protection.is_clear() {
                            pass = self.admitted(Some(&recovery), term).await?;
                        }
                    }
                    let recovery = Some(recovery);
                    step = self.resume(record, Stage { recovery, pass }, term).await;
                }
            }
        }
    }

    /// As `settle`, for when a breaker is not closed.
    pub(super) async fn settle_when_admitted(
        &self,
        record: &Record,
        term: Term<'_>,
    ) -> Result<Settled, Unsettled> {
        let pass = self.admitted(None, term).await?;
        match self.attempt(record, 1, term).await {
            Ok(()) => {
                self.protection.succeeded(pass);
                Ok(self.processed(record, 1, term.run))
            }
            Err(stumble) => self.recover(record, stumble, pass, term).await,
        }
    }

    /// Waits until the breakers let an attempt through.
    async fn admitted(&self, recovery: Option<&Recovery>, term: Term<'_>) -> Result<Pass, Unsettled> {
        let may = |rounds: &Vec<Round>| recovery.is_none_or(|recovery| !recovery.has_probed(rounds));
        let admitted = async {
            loop {
                let change = self.protection.change();
                // Looked at before it is taken: a probe given back wakes all who wait for one.
                let rounds = self.protection.rounds().filter(may);
                match rounds.and_then(|_| self.protection.pass()) {
                    Some(pass) => return pass,
                    None => change.await,
                }
            }
        };
        match term.deadline {
            None => Ok(admitted.await),
            Some(deadline) => timeout_at(deadline, admitted)
                .await
                .map_err(|_| Unsettled::BreakerOpen),
        }
    }

    /// What its phase asks for, once.
    pub(super) async fn resume(&self, record: &Record, stage: Stage, term: Term<'_>) -> Step {
        let Stage { recovery, pass } = stage;
        let Some(mut recovery) = recovery else {
            return self.try_once(record, None, pass, term).await;
        };
        match recovery.phase {
            Phase::Retry { .. } => {
                // A probe is what a breaker asks for, and there are few.
                if pass.is_free() && !self.withdraw(&mut recovery) {
                    let refused = recovery.refused;
                    let delay = self.draw(|rng| Jitter::Equal.delay(&RECHECK, refused, Duration::ZERO, rng));
                    recovery.refused = refused.saturating_add(1);
                    self.tell(Interest::FAILURES, || Event::RetryDelayed { record, delay });
                    return recovery.retry_after(delay);
                }
                self.try_once(record, Some(recovery), pass, term).await
            }
            Phase::Letter(letter) => {
                let allowed = self.may_give_up(record, term.run);
                let written = self.write(record, &letter.0, &letter.1, recovery.attempts.count);
                Step::Done(match term.deadline {
                    None => {
                        allowed.await;
                        written.await
                    }
                    Some(deadline) => match timeout_at(deadline, allowed).await {
                        Ok(()) => match timeout_at(deadline, written).await {
                            Ok(result) => result,
                            Err(_) => Err(Unsettled::Deadline),
                        },
                        Err(_) if self.protection.is_open() => Err(Unsettled::BreakerOpen),
                        Err(_) => Err(Unsettled::GuardStopped),
                    },
                })
            }
        }
    }

    async fn try_once(
        &self,
        record: &Record,
        recovery: Option<Box<Recovery>>,
        pass: Pass,
        term: Term<'_>,
    ) -> Step {
        let number = recovery.as_ref().map_or(0, |recovery| recovery.attempts.count) + 1;
        match self.attempt(record, number, term).await {
            Ok(()) => {
                self.protection.succeeded(pass);
                Step::Done(Ok(self.processed(record, number, term.run)))
            }
            Err(stumble) => self.stumbled(record, recovery, stumble, pass),
        }
    }

    fn withdraw(&self, recovery: &mut Recovery) -> bool {
        let granted = self.protection.budget.as_ref().is_none_or(RetryBudget::withdraw);
        if granted {
            recovery.refused = 0;
        }
        granted
    }

    /// An attempt did not succeed: what now?
    pub(super) fn stumbled(
        &self,
        record: &Record,
        recovery: Option<Box<Recovery>>,
        stumble: Stumble<P::Error>,
        pass: Pass,
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
                    Verdict::transient().with_scope(Scope::Record)
                } else {
                    Verdict::permanent()
                };
                Failure::new(panicked, verdict.with_code("panicked"))
            }
        };
        let number = recovery.attempts.count + 1;
        self.tell(Interest::FAILURES, || Event::AttemptFailed {
            record,
            attempt: number,
            failure: Redacted(&failure),
            error_type: type_name::<P::Error>(),
        });
        // What a sick dependency fails, uses up nothing.
        let in_health = pass.is_free() && self.protection.is_clear();
        let verdict = failure.verdict();
        let blamed = self.protection.blamed(verdict);
        if !pass.is_free() {
            recovery.probed = pass.rounds();
        }
        let others_succeed = blamed.is_some_and(|breaker| recovery.blames(breaker));
        self.protection.failed(record, pass, blamed, others_succeed);

        let is_final = verdict.class() == Class::Permanent && blamed.is_none();
        if !in_health && !is_final {
            // What succeeded before that says nothing of the time after it.
            recovery.blamed = blamed.map(|breaker| (breaker.clone(), breaker.successes()));
            return recovery.retry_after(Duration::ZERO);
        }
        if recovery.held.is_none() {
            recovery.attempts.push(stumble.took, &failure);
            recovery.spent += stumble.took;
        }
        let failed = recovery.attempts.count;
        let delay = self.draw(|rng| {
            let asked = failure.verdict().retry_after();
            self.policy.delay(failed, recovery.delay, asked, rng)
        });
        let reason = if recovery.panics >= 2 {
            Reason::Panicked
        } else if failure.verdict().class() == Class::Permanent {
            Reason::Permanent
        } else if self.policy.attempts_exhausted(failed) {
            Reason::AttemptsExhausted
        } else if self
            .policy
            .time_exhausted(failed, recovery.spent.saturating_add(delay))
        {
            Reason::TimeExhausted
        } else {
            recovery.spent += delay;
            recovery.delay = delay;
            self.tell(Interest::FAILURES, || Event::RetryScheduled {
                record,
                attempt: failed + 1,
                delay,
            });
            return recovery.retry_after(delay);
        };
        match blamed {
            Some(breaker) if !others_succeed => {
                self.hold(record, recovery, reason, failure, breaker.hold_at_most())
            }
            _ => self.give_up(record, recovery, reason, failure),
        }
    }

    /// The record would be given up, but nothing else succeeds either: as long as that is so it is tried
    /// again, which uses up nothing.
    fn hold(
        &self,
        record: &Record,
        mut recovery: Box<Recovery>,
        reason: Reason,
        failure: Failure,
        at_most: Duration,
    ) -> Step {
        let now = Instant::now();
        let held = recovery.held.get_or_insert(Held {
            since: now,
            rechecks: 0,
        });
        if now.saturating_duration_since(held.since) >= at_most {
            return self.give_up(record, recovery, reason, failure);
        }
        // The first time it is only not known yet.
        if held.rechecks == 1 {
            self.tell(Interest::FAILURES, || Event::RecordHeld {
                record,
                failure: Redacted(&failure),
                at_most,
            });
        }
        let delay = self.draw(|rng| Jitter::Equal.delay(&RECHECK, held.rechecks, Duration::ZERO, rng));
        held.rechecks = held.rechecks.saturating_add(1);
        recovery.retry_after(delay)
    }
}
