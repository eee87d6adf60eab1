//! After a failure: classify, decide, wait, try again. The cold path, boxed.

use std::any::type_name;
use std::time::Duration;

use tokio::time::{sleep_until, timeout_at};

use super::attempt::{How, Stumble, Term};
use super::blame::Others;
use super::claims::{Claims, NoTurn, WaitsFor};
use super::letter::{Crashed, HeldTooLong};
use super::protection::{Pass, Run};
use super::recovery::{Phase, RECHECK, Recovery, Stage};
use super::{Inner, Step};
use crate::breaker::Round;
use crate::dead_letter::{DeadLetter, Reason};
use crate::failure::{Class, Failure, Scope};
use crate::idempotency::{Claim, PayloadMismatch};
use crate::observer::{Event, Interest, Redacted};
use crate::processor::RecordProcessor;
use crate::record::Record;
use crate::retry::{Jitter, RetryBudget};
use crate::sabotage::Sabotage;
use crate::settled::{Settled, Unsettled};

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
        let step = self.stumbled(record, None, stumble, pass, term.run);
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
                            let why = recovery.why_unsettled();
                            self.interrupted.keep(record, recovery);
                            return Err(why);
                        }
                        sleep_until(due).await;
                        if !self.protection.is_clear() {
                            pass = match self.admitted(Some(&recovery), term).await {
                                Ok(pass) => pass,
                                Err(why) => {
                                    self.interrupted.keep(record, recovery);
                                    return Err(why);
                                }
                            };
                        }
                    }
                    let recovery = Some(recovery);
                    step = self.resume(record, Stage { recovery, pass }, term).await;
                }
            }
        }
    }

    /// As `settle`, for when a breaker is not closed or the record's key must be claimed.
    pub(super) async fn settle_when_admitted(
        &self,
        record: &Record,
        term: Term<'_>,
    ) -> Result<Settled, Unsettled> {
        let pass = match self.protection.is_clear() {
            true => Pass::FREE,
            false => self.admitted(None, term).await?,
        };
        let step = match self.interrupted.take(record) {
            Some(recovery) => Step::Later(recovery),
            None => self.try_once(record, None, pass, term).await,
        };
        self.go_on(record, step, term).await
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
        let Some(mut recovery) = recovery.or_else(|| self.interrupted.take(record)) else {
            return self.try_once(record, None, pass, term).await;
        };
        match recovery.phase {
            Phase::Retry { .. } => {
                // A probe is what a breaker asks for, and there are few. Whoever waits for its key has withdrawn.
                if pass.is_free() && recovery.waits.is_none() && !self.withdraw(&mut recovery) {
                    let refused = recovery.refused;
                    let delay = self.draw(|rng| Jitter::Equal.delay(&RECHECK, refused, Duration::ZERO, rng));
                    recovery.refused = refused.saturating_add(1);
                    self.tell(Interest::FAILURES, || Event::RetryDelayed { record, delay });
                    return recovery.retry_after(delay);
                }
                self.try_once(record, Some(recovery), pass, term).await
            }
            Phase::GivenUp(reason) => {
                let failure = match reason {
                    Reason::CrashLoop => Failure::permanent(Crashed).with_scope(Scope::Record),
                    _ => Failure::transient(HeldTooLong),
                };
                self.give_up(record, recovery, reason, failure.with_code(reason.as_str()))
            }
            Phase::Letter(ref letter) => match self.conclude(record, &recovery, letter, term).await {
                Ok(result) => Step::Done(result),
                // The verdict is kept.
                Err(why) => {
                    self.interrupted.keep(record, recovery);
                    Step::Done(Err(why))
                }
            },
        }
    }

    /// Writes the letter, when it may be written. An error if the time is over first.
    async fn conclude(
        &self,
        record: &Record,
        recovery: &Recovery,
        letter: &(DeadLetter, Failure),
        term: Term<'_>,
    ) -> Result<Result<Settled, Unsettled>, Unsettled> {
        if Sabotage::RunAfterVerdict.is_committed() {
            let _ = self.attempt(record, 1, term).await;
        }
        let allowed = async {
            if letter.0.reason != Reason::Expiring {
                self.may_give_up(record, term.run).await;
            }
        };
        let written = self.write(record, &letter.0, &letter.1, recovery.attempts.count);
        let result = match term.finish_by {
            None => {
                allowed.await;
                written.await
            }
            Some(deadline) => match timeout_at(deadline, allowed).await {
                Ok(()) => timeout_at(deadline, written)
                    .await
                    .map_err(|_| Unsettled::SinkDown)?,
                Err(_) if self.protection.is_open() => return Err(Unsettled::BreakerOpen),
                Err(_) => return Err(Unsettled::GuardStopped),
            },
        };
        if let (Some(claims), Some(claim), Ok(_)) = (&self.claims, &recovery.claim, &result) {
            let released = claims.release(claim);
            match term.finish_by {
                None => released.await,
                // The letter is confirmed, whatever becomes of the key.
                Some(deadline) => drop(timeout_at(deadline, released).await),
            }
        }
        Ok(result)
    }

    pub(super) async fn try_once(
        &self,
        record: &Record,
        mut recovery: Option<Box<Recovery>>,
        pass: Pass,
        term: Term<'_>,
    ) -> Step {
        let number = recovery.as_ref().map_or(0, |recovery| recovery.attempts.count) + 1;
        let mut claim = match &self.claims {
            None => None,
            Some(claims) => match self.claim(claims, record, &mut recovery, term).await {
                Ok(claim) => Some((claims, claim)),
                // What a probe's attempt would have shown, another's will.
                Err(NoTurn::Completed) => return Step::Done(Ok(self.duplicate(record, number - 1))),
                Err(NoTurn::Mismatch) => {
                    let failure = Failure::permanent(PayloadMismatch).with_scope(Scope::Record);
                    let failure = failure.with_code("payload_mismatch");
                    let recovery = recovery.unwrap_or_else(|| Box::new(Recovery::new()));
                    return self.give_up(record, recovery, Reason::Permanent, failure);
                }
                Err(NoTurn::Wait(_, delay)) => {
                    let recovery = recovery.unwrap_or_else(|| Box::new(Recovery::new()));
                    return recovery.retry_after(delay);
                }
            },
        };
        if let Some(blame) = recovery.as_mut().and_then(|recovery| recovery.blame.as_mut()) {
            blame.attempt_begins();
        }
        match self.attempt(record, number, term).await {
            Ok(()) => {
                self.protection.succeeded(record, pass);
                if let Some((claims, claim)) = &mut claim {
                    claims.complete(record, claim, term).await;
                }
                Step::Done(Ok(self.processed(record, number, term.run)))
            }
            Err(stumble) => {
                let step = self.stumbled(record, recovery, stumble, pass, term.run);
                match claim {
                    Some((claims, claim)) => give_back(claims, claim, step).await,
                    None => step,
                }
            }
        }
    }

    /// Claims the record's key, before an attempt.
    async fn claim(
        &self,
        claims: &Claims,
        record: &Record,
        recovery: &mut Option<Box<Recovery>>,
        term: Term<'_>,
    ) -> Result<Claim, NoTurn> {
        let last = recovery.as_mut().and_then(|recovery| recovery.claim.take());
        let mut claim = last.unwrap_or_else(|| claims.of(&self.application, record));
        let waits = recovery.as_ref().and_then(|recovery| recovery.waits);
        let looks = waits.map_or(0, |(_, looks)| looks);
        let turn = claims.claim(&mut claim, self.policy.timeout(), looks, term).await;
        let Err(NoTurn::Wait(what, delay)) = turn else {
            if let Some(recovery) = recovery {
                recovery.waits = None;
            }
            return turn.map(|()| claim);
        };
        if what == WaitsFor::Claim {
            self.tell(Interest::FAILURES, || Event::ClaimedElsewhere { record, delay });
        }
        let recovery = recovery.get_or_insert_with(|| Box::new(Recovery::new()));
        recovery.claim = Some(claim);
        recovery.waits = Some((what, looks.saturating_add(1)));
        Err(NoTurn::Wait(what, delay))
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
        run: &Run,
    ) -> Step {
        let mut recovery = recovery.unwrap_or_else(|| Box::new(Recovery::new()));
        let timed_out = matches!(stumble.how, How::TimedOut);
        let Some(failure) = self.failure(stumble.how, &mut recovery.panics) else {
            // Nothing is known of it that was not before.
            if recovery.attempts.count > 0 {
                self.interrupted.keep(record, recovery);
            }
            return Step::Done(Err(Unsettled::Deadline));
        };
        let number = recovery.attempts.count + 1;
        self.tell(Interest::FAILURES, || Event::AttemptFailed {
            record,
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
            return recovery.retry_after(Duration::ZERO);
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
            Some(reason) if certain => self.give_up(record, recovery, reason, failure),
            None if certain || first => {
                recovery.spent = spent;
                recovery.delay = delay;
                self.tell(Interest::FAILURES, || Event::RetryScheduled {
                    record,
                    attempt: recovery.attempts.count + 1,
                    delay,
                });
                recovery.retry_after(delay)
            }
            _ if run.is_expiring(record) => self.give_up(record, recovery, Reason::Expiring, failure),
            _ => self.doubt(record, recovery, reason, failure, others),
        }
    }
}

/// The attempt has failed. Its key is for others to claim while it waits for the next one; not while its letter is on
/// the way, after which there is none.
async fn give_back(claims: &Claims, mut claim: Claim, mut step: Step) -> Step {
    match &mut step {
        Step::Later(recovery) if !recovery.calls_handler() => recovery.claim = Some(claim),
        Step::Later(recovery) => {
            claims.release(&claim).await;
            Claims::begin_anew(&mut claim);
            recovery.claim = Some(claim);
        }
        Step::Done(_) => claims.release(&claim).await,
    }
    step
}
