//! The path after a failure: wait, retry, write the dead letter. It is rarely taken, and therefore boxed.

use std::slice;

use tokio::time::{sleep_until, timeout_at};

use super::attempt::{FailedAttempt, Term};
use super::claims::{ClaimRefused, Claims, WaitsFor};
use super::decision::Decision;
use super::give_up::{Crashed, HeldTooLong};
use super::protection::Permission;
use super::retry_state::{Phase, RetryState};
use super::{Engine, Run, Step};
use crate::dead_letter::{DeadLetter, Reason};
use crate::failure::{Failure, Scope};
use crate::idempotency::{Claim, PayloadMismatch};
use crate::observer::{Event, Interest, RecordEvent};
use crate::processor::Handler;
use crate::protection::breaker::Round;
use crate::record::Record;
use crate::sabotage::Sabotage;
use crate::settlement::{Halt, Settled, Unsettled};

impl<P: Handler> Engine<P> {
    /// Continues after a failed first attempt, until the record is settled or its term is over.
    pub(super) async fn recover(
        &self,
        record: &Record,
        failed: FailedAttempt<P::Error>,
        permission: Permission,
        term: Term<'_>,
    ) -> Result<Settled, Unsettled> {
        let step = self.attempt_failed(record, None, failed, permission, term.run);
        let result = self.go_on(record, step, term).await;
        self.tell_unsettled(record, &result);
        result
    }

    /// Returns the next step after a failed attempt with this record alone.
    pub(super) fn attempt_failed(
        &self,
        record: &Record,
        state: Option<Box<RetryState>>,
        failed: FailedAttempt<P::Error>,
        permission: Permission,
        run: &Run,
    ) -> Step {
        let (state, decision) = self.decisions.decide(record, 1, state, failed, permission, run);
        self.follow(record, state, decision)
    }

    /// Returns the next step that a decision leads to.
    pub(super) fn follow(&self, record: &Record, state: Box<RetryState>, decision: Decision) -> Step {
        match decision {
            Decision::Interrupted => {
                if state.attempts.calls() > 0 {
                    self.interrupted.keep(record, state);
                }
                Step::Done(Err(Unsettled::Deadline))
            }
            Decision::Retry(_) | Decision::Hold(_) => Step::Later(state),
            Decision::GiveUp(reason, failure) => self.give_up(record, state, reason, failure),
        }
    }

    /// Gives up the record. The verdict is kept from here on: the processor is not called again.
    fn give_up(&self, record: &Record, mut state: Box<RetryState>, reason: Reason, failure: Failure) -> Step {
        let Some(writer) = &self.dead_letters else {
            return Step::Done(Err(Unsettled::Halted(Halt::WithoutDeadLetters(failure))));
        };
        let letter = writer.letter(record, &state, reason, &failure);
        state.phase = Phase::Letter(Box::new((letter, failure)));
        Step::Later(state)
    }

    fn tell_unsettled(&self, record: &Record, result: &Result<Settled, Unsettled>) {
        if let Err(reason) = result {
            self.protection
                .observers
                .report(Interest::FAILURES, || Event::Record {
                    record,
                    event: RecordEvent::Unsettled { reason },
                });
        }
    }

    async fn go_on(&self, record: &Record, mut step: Step, term: Term<'_>) -> Result<Settled, Unsettled> {
        loop {
            match step {
                Step::Done(result) => return result,
                Step::Later(state) => {
                    let mut permission = Permission::FREE;
                    if let Some(due) = state.due() {
                        // An attempt that would begin at its deadline is not made.
                        if term.deadline.is_some_and(|deadline| due >= deadline) {
                            let why = state.why_unsettled();
                            self.interrupted.keep(record, state);
                            return Err(why);
                        }
                        sleep_until(due).await;
                        if !self.protection.is_clear() {
                            permission = match self.admitted(Some(&state), term).await {
                                Ok(permission) => permission,
                                Err(why) => {
                                    self.interrupted.keep(record, state);
                                    return Err(why);
                                }
                            };
                        }
                    }
                    step = self.resume(record, Some(state), permission, term).await;
                }
            }
        }
    }

    /// Settles a record like `settle`, if a breaker is not closed or the record needs more than a plain first
    /// attempt.
    pub(super) async fn settle_when_admitted(
        &self,
        record: &Record,
        term: Term<'_>,
    ) -> Result<Settled, Unsettled> {
        let settling = async {
            let permission = match self.protection.is_clear() {
                true => Permission::FREE,
                false => self.admitted(None, term).await?,
            };
            let step = match self.interrupted.take(record) {
                Some(state) => Step::Later(state),
                None => self.try_once(record, None, permission, term).await,
            };
            self.go_on(record, step, term).await
        };
        let result = settling.await;
        self.tell_unsettled(record, &result);
        result
    }

    /// Waits until the breakers admit an attempt.
    async fn admitted(&self, state: Option<&RetryState>, term: Term<'_>) -> Result<Permission, Unsettled> {
        let may = |rounds: &Vec<Round>| state.is_none_or(|state| !state.has_probed(rounds));
        let admitted = async {
            loop {
                let change = self.protection.change();
                // Checks the rounds before it takes a probe, because an unused probe wakes all waiting
                // records.
                let rounds = self.protection.rounds().filter(may);
                match rounds.and_then(|_| self.protection.permission()) {
                    Some(permission) => return permission,
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

    /// Takes the step that the record's phase asks for.
    pub(super) async fn resume(
        &self,
        record: &Record,
        state: Option<Box<RetryState>>,
        permission: Permission,
        term: Term<'_>,
    ) -> Step {
        let Some(mut state) = state.or_else(|| self.interrupted.take(record)) else {
            return self.try_once(record, None, permission, term).await;
        };
        match state.phase {
            Phase::Retry { .. } => {
                if let Some(delay) = self.decisions.budget_refuses(record, &mut state, &permission) {
                    return Step::Later(state.retry_after(delay));
                }
                self.try_once(record, Some(state), permission, term).await
            }
            Phase::GivenUp(reason) => {
                let failure = match reason {
                    Reason::CrashLoop => Failure::permanent(Crashed).with_scope(Scope::Record),
                    _ => Failure::transient(HeldTooLong),
                };
                self.give_up(record, state, reason, failure.with_code(reason.as_str()))
            }
            Phase::Letter(ref letter) => match self.conclude(record, &state, letter, term).await {
                Ok(result) => Step::Done(result),
                // Keeps the verdict for the next delivery.
                Err(why) => {
                    self.interrupted.keep(record, state);
                    Step::Done(Err(why))
                }
            },
        }
    }

    /// Writes the dead letter once it may be written.
    ///
    /// # Errors
    ///
    /// The term is over first.
    async fn conclude(
        &self,
        record: &Record,
        state: &RetryState,
        letter: &(DeadLetter, Failure),
        term: Term<'_>,
    ) -> Result<Result<Settled, Unsettled>, Unsettled> {
        if Sabotage::RunAfterVerdict.is_committed() {
            let _ = self.attempts.run_in_span(record, 1, term).await;
        }
        let Some(writer) = &self.dead_letters else {
            // `give_up` creates no dead letter without a sink.
            return Err(Unsettled::Shutdown);
        };
        let allowed = async {
            if letter.0.reason != Reason::Expiring {
                writer.may_give_up(record, term.run).await;
            }
        };
        let written = writer.write(record, &letter.0, &letter.1, state.attempts.calls());
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
        if let (Some(claims), Some(claim), Ok(_)) = (&self.claims, &state.claim, &result) {
            let released = claims.release(slice::from_ref(claim));
            match term.finish_by {
                None => released.await,
                // The dead letter is confirmed, even if the release of the key fails.
                Some(deadline) => drop(timeout_at(deadline, released).await),
            }
        }
        Ok(result)
    }

    pub(super) async fn try_once(
        &self,
        record: &Record,
        mut state: Option<Box<RetryState>>,
        permission: Permission,
        term: Term<'_>,
    ) -> Step {
        let number = state.as_ref().map_or(0, |state| state.attempts.calls()) + 1;
        let claim = match &self.claims {
            None => None,
            Some(claims) => {
                let waits = state.as_mut().and_then(|state| state.waits.take());
                let looks = waits.map_or(0, |(_, looks)| looks);
                let last = state.as_mut().and_then(|state| state.claim.take());
                let mut claim = [last.unwrap_or_else(|| claims.of(&self.application, record))];
                let turn = claims
                    .claim(&mut claim, self.attempts.timeout(), looks, term)
                    .await
                    .pop();
                let [claim] = claim;
                if let Some(Err(no_turn)) = turn {
                    // The record leaves its probe to another record.
                    let mut state = state.unwrap_or_else(|| Box::new(RetryState::new()));
                    state.claim = Some(claim);
                    return self.no_turn(record, state, no_turn, looks);
                }
                Some((claims, claim))
            }
        };
        if let Some(state) = &mut state {
            state.attempt_begins(record);
        }
        match self.attempts.run_in_span(record, number, term).await {
            Ok(()) => {
                self.protection.succeeded(record, permission);
                if let Some((claims, claim)) = claim {
                    claims.complete(slice::from_ref(record), vec![claim], term).await;
                }
                Step::Done(Ok(self.processed(record, number, term.run)))
            }
            Err(failed) => {
                let step = self.attempt_failed(record, state, failed, permission, term.run);
                match claim {
                    Some((claims, claim)) => give_back(claims, claim, step).await,
                    None => step,
                }
            }
        }
    }

    /// Returns the next step of a record whose key cannot be claimed. `looks`: how many times in a row it
    /// could not be claimed before.
    pub(super) fn no_turn(
        &self,
        record: &Record,
        mut state: Box<RetryState>,
        no_turn: ClaimRefused,
        looks: u32,
    ) -> Step {
        match no_turn {
            ClaimRefused::Completed => Step::Done(Ok(self.duplicate(record, state.attempts.calls()))),
            ClaimRefused::Mismatch => {
                state.claim = None;
                let failure = Failure::permanent(PayloadMismatch).with_scope(Scope::Record);
                let failure = failure.with_code("payload_mismatch");
                self.give_up(record, state, Reason::Permanent, failure)
            }
            // The key stays claimed until the dead letter is confirmed.
            ClaimRefused::Crashes => Step::Later(RetryState::given_up(Some(state), Reason::CrashLoop)),
            ClaimRefused::Wait(what, delay) => {
                if what == WaitsFor::Claim {
                    self.protection
                        .observers
                        .report(Interest::FAILURES, || Event::Record {
                            record,
                            event: RecordEvent::ClaimedElsewhere { delay },
                        });
                }
                state.waits = Some((what, looks.saturating_add(1)));
                Step::Later(state.retry_after(delay))
            }
        }
    }
}

/// Releases the key after a failed attempt, so that other deliveries can claim it before the next attempt.
/// While a dead letter is written the key stays claimed, because no attempt follows.
pub(super) async fn give_back(claims: &Claims, mut claim: Claim, mut step: Step) -> Step {
    match &mut step {
        Step::Later(state) if !state.calls_handler() => state.claim = Some(claim),
        Step::Later(state) => {
            claims.release(slice::from_ref(&claim)).await;
            Claims::begin_anew(&mut claim);
            state.claim = Some(claim);
        }
        Step::Done(_) => claims.release(slice::from_ref(&claim)).await,
    }
    step
}
