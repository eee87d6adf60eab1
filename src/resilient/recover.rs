//! After a failure: wait, try again, write the letter. The cold path, boxed.

use std::slice;
use std::time::Duration;

use tokio::time::{sleep_until, timeout_at};

use super::attempt::{Stumble, Term};
use super::claims::{Claims, NoTurn, WaitsFor};
use super::group::Group;
use super::letter::{Crashed, HeldTooLong};
use super::protection::Pass;
use super::recovery::{Phase, RECHECK, Recovery};
use super::stage::Stage;
use super::{Inner, Step};
use crate::breaker::Round;
use crate::dead_letter::{DeadLetter, Reason};
use crate::failure::{Failure, Scope};
use crate::idempotency::{Claim, PayloadMismatch};
use crate::observer::{Event, Interest};
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
        self.tell_unsettled(record, &result);
        result
    }

    fn tell_unsettled(&self, record: &Record, result: &Result<Settled, Unsettled>) {
        if let Err(reason) = result {
            self.tell(Interest::FAILURES, || Event::Unsettled { record, reason });
        }
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
                    let group = Group::default();
                    let stage = Stage {
                        recovery,
                        pass,
                        group,
                    };
                    step = self.resume(record, stage, term).await;
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
        let settling = async {
            let pass = match self.protection.is_clear() {
                true => Pass::FREE,
                false => self.admitted(None, term).await?,
            };
            let step = match self.interrupted.take(record) {
                Some(recovery) => Step::Later(recovery),
                None => self.try_once(record, None, pass, term).await,
            };
            self.go_on(record, step, term).await
        };
        let result = settling.await;
        self.tell_unsettled(record, &result);
        result
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
        let Stage { recovery, pass, .. } = stage;
        let Some(mut recovery) = recovery.or_else(|| self.interrupted.take(record)) else {
            return self.try_once(record, None, pass, term).await;
        };
        match recovery.phase {
            Phase::Retry { .. } => {
                if let Some(delay) = self.budget_refuses(record, &mut recovery, &pass) {
                    return Step::Later(recovery.retry_after(delay));
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
            let _ = self.attempt_in_span(record, 1, term).await;
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
            let released = claims.release(slice::from_ref(claim));
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
        let claim = match &self.claims {
            None => None,
            Some(claims) => {
                let waits = recovery.as_mut().and_then(|recovery| recovery.waits.take());
                let looks = waits.map_or(0, |(_, looks)| looks);
                let last = recovery.as_mut().and_then(|recovery| recovery.claim.take());
                let mut claim = [last.unwrap_or_else(|| claims.of(&self.application, record))];
                let turn = claims
                    .claim(&mut claim, self.policy.timeout(), looks, term)
                    .await
                    .pop();
                let [claim] = claim;
                if let Some(Err(no_turn)) = turn {
                    // What a probe's attempt would have shown, another's will.
                    let mut recovery = recovery.unwrap_or_else(|| Box::new(Recovery::new()));
                    recovery.claim = Some(claim);
                    return self.no_turn(record, recovery, no_turn, looks);
                }
                Some((claims, claim))
            }
        };
        if let Some(blame) = recovery.as_mut().and_then(|recovery| recovery.blame.as_mut()) {
            blame.attempt_begins();
        }
        match self.attempt_in_span(record, number, term).await {
            Ok(()) => {
                self.protection.succeeded(record, pass);
                if let Some((claims, claim)) = claim {
                    claims.complete(slice::from_ref(record), vec![claim], term).await;
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

    /// What becomes of a record whose key cannot be claimed. `looks`: how often in a row before.
    pub(super) fn no_turn(
        &self,
        record: &Record,
        mut recovery: Box<Recovery>,
        no_turn: NoTurn,
        looks: u32,
    ) -> Step {
        match no_turn {
            NoTurn::Completed => Step::Done(Ok(self.duplicate(record, recovery.attempts.count))),
            NoTurn::Mismatch => {
                recovery.claim = None;
                let failure = Failure::permanent(PayloadMismatch).with_scope(Scope::Record);
                let failure = failure.with_code("payload_mismatch");
                self.give_up(record, recovery, Reason::Permanent, failure)
            }
            // The key stays claimed until the letter is confirmed.
            NoTurn::Crashes => Step::Later(Recovery::given_up(Some(recovery), Reason::CrashLoop)),
            NoTurn::Wait(what, delay) => {
                if what == WaitsFor::Claim {
                    self.tell(Interest::FAILURES, || Event::ClaimedElsewhere { record, delay });
                }
                recovery.waits = Some((what, looks.saturating_add(1)));
                Step::Later(recovery.retry_after(delay))
            }
        }
    }

    /// How long the next attempt must wait, if the budget does not pay for it.
    pub(super) fn budget_refuses(
        &self,
        record: &Record,
        recovery: &mut Recovery,
        pass: &Pass,
    ) -> Option<Duration> {
        // A probe is what a breaker asks for, and there are few. Whoever waits for its key has withdrawn.
        if !pass.is_free() || recovery.waits.is_some() || self.withdraw(recovery) {
            return None;
        }
        let refused = recovery.refused;
        let delay = self.draw(|rng| Jitter::Equal.delay(&RECHECK, refused, Duration::ZERO, rng));
        recovery.refused = refused.saturating_add(1);
        self.tell(Interest::FAILURES, || Event::RetryDelayed { record, delay });
        Some(delay)
    }

    fn withdraw(&self, recovery: &mut Recovery) -> bool {
        let granted = self.protection.budget.as_ref().is_none_or(RetryBudget::withdraw);
        if granted {
            recovery.refused = 0;
        }
        granted
    }
}

/// The attempt has failed. Its key is for others to claim while it waits for the next one; not while its letter is on
/// the way, after which there is none.
pub(super) async fn give_back(claims: &Claims, mut claim: Claim, mut step: Step) -> Step {
    match &mut step {
        Step::Later(recovery) if !recovery.calls_handler() => recovery.claim = Some(claim),
        Step::Later(recovery) => {
            claims.release(slice::from_ref(&claim)).await;
            Claims::begin_anew(&mut claim);
            recovery.claim = Some(claim);
        }
        Step::Done(_) => claims.release(slice::from_ref(&claim)).await,
    }
    step
}
