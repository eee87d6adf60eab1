//! An attempt with several records, and the search for the record that makes the attempt fail.

use std::collections::HashSet;
use std::mem;
use std::time::Duration;

use super::attempt::{AttemptError, FailedAttempt, Term};
use super::claims::{ClaimRefused, Claims, WaitsFor};
use super::decision::Decision;
use super::group::{Group, Member, MemberStep, Next, Parting};
use super::protection::Permission;
use super::retry::give_back;
use super::retry_state::RetryState;
use super::{Engine, Step};
use crate::dead_letter::Reason;
use crate::failure::Scope;
use crate::idempotency::Claim;
use crate::processor::{BatchFailure, Handler};
use crate::record::Record;
use crate::settlement::{Settled, Unsettled};

/// One step of a group: an attempt with all of its records, or with half of the suspects.
pub(super) struct BatchStep<'a, P: Handler> {
    engine: &'a Engine<P>,
    term: Term<'a>,
    parting: Parting,
}

impl<'a, P: Handler> BatchStep<'a, P> {
    pub(super) async fn run(engine: &'a Engine<P>, mut group: Group, term: Term<'a>) -> Vec<MemberStep> {
        let (state, permission) = (
            group.state.take(),
            mem::replace(&mut group.permission, Permission::FREE),
        );
        let mut step = BatchStep {
            engine,
            term,
            parting: Parting::of(group),
        };
        if let Some(state) = step.take_turn(state, permission).await {
            step.parting.go_on(state);
        }
        let parting = step.parting;
        if let Some(claims) = engine.claims.as_ref().filter(|_| !parting.unused.is_empty()) {
            claims.release(&parting.unused).await;
        }
        parting.steps
    }

    /// Makes one attempt. Returns the state of the records that stay in the group; `None` if the deadline
    /// ended the step.
    async fn take_turn(
        &mut self,
        mut state: Option<Box<RetryState>>,
        permission: Permission,
    ) -> Option<Box<RetryState>> {
        if state.is_none() && self.engine.interrupted.has_any() {
            state = self.recall_together();
            if state.as_ref().is_some_and(|state| state.is_due_later()) {
                return state;
            }
        }
        if let (Some(waiting), Some(first)) = (&mut state, self.parting.group.members.first())
            && let Some(delay) = self
                .engine
                .decisions
                .budget_refuses(&first.record, waiting, &permission)
        {
            return state.map(|state| state.retry_after(delay));
        }
        let mut next = self.parting.group.take_next();
        if let Some(claims) = &self.engine.claims
            && let Err(down) = self.claim_together(claims, &mut next, &mut state).await
        {
            self.parting.group.put_back(next);
            return Some(down);
        }
        let Some(first) = next.members.first().map(|first| first.record.place()) else {
            return Some(at_once(state));
        };
        let number = state.as_ref().map_or(0, |state| state.attempts.calls()) + 1;
        if let Some(state) = &mut state {
            state.attempt_begins(&first);
        }
        let records: Vec<Record> = next.members.iter().map(|member| member.record.clone()).collect();
        let span = self.engine.traces.of_attempt_with(&records, number);
        let failed = match self
            .engine
            .attempts
            .run_batch(&first, &records, number, span, self.term)
            .await
        {
            Ok(()) => {
                self.engine.protection.succeeded(&first, permission);
                self.processed_together(next.members).await;
                return Some(at_once(state));
            }
            Err(failed) => failed,
        };
        let took = failed.took;
        let error = match failed.error {
            AttemptError::Returned(BatchFailure::Of(failed)) => match by_member(failed, records.len()) {
                Ok(failed) => {
                    let outcome = (failed, took);
                    self.some_failed(next.members, outcome, state.as_deref(), permission)
                        .await;
                    return Some(at_once(state));
                }
                Err(error) => AttemptError::Returned(error),
            },
            AttemptError::Returned(BatchFailure::All(error)) => AttemptError::Returned(error),
            AttemptError::TimedOut => AttemptError::TimedOut,
            AttemptError::Panicked(panicked) => AttemptError::Panicked(panicked),
            AttemptError::Interrupted => AttemptError::Interrupted,
        };
        let count = records.len();
        if let (Some(state), 1) = (&mut state, count) {
            // The group's failures came before this call, and need not have been this record's fault.
            state.begin_again();
            state.forget_breaker();
        }
        let counted = state.as_ref().map_or(0, |state| state.attempts.count);
        let failed = FailedAttempt { error, took };
        let (state, decision) =
            self.engine
                .decisions
                .decide(&first, count, state, failed, permission, self.term.run);
        if !matches!(decision, Decision::Interrupted) {
            let counts = state.attempts.count > counted;
            let members = next.members.iter_mut();
            members.for_each(|member| member.attempts.push_last_of(&state.attempts, counts));
        }
        if let Some(claims) = &self.engine.claims {
            let claimed: Vec<Claim> = next
                .members
                .iter()
                .filter_map(|member| member.claim.clone())
                .collect();
            claims.release(&claimed).await;
            let claims = next.members.iter_mut().filter_map(|member| member.claim.as_mut());
            claims.for_each(Claims::begin_anew);
        }
        self.all_failed(next, state, decision)
    }

    /// Restores the retry states of released records: shared state for the group, own state for each record
    /// alone.
    fn recall_together(&mut self) -> Option<Box<RetryState>> {
        let mut shared: Option<Box<RetryState>> = None;
        let (mut left, mut before, mut gone) = (Vec::new(), HashSet::new(), HashSet::new());
        for mut member in mem::take(&mut self.parting.group.members) {
            if member.is_in(&gone) {
                self.parting.waits(member);
                continue;
            }
            if let Some(mut state) = self.engine.interrupted.take(&member.record) {
                if !state.is_shared {
                    gone.extend(member.lane);
                    if member.is_in(&before) {
                        self.engine.interrupted.keep(&member.record, state);
                        self.parting.waits(member);
                    } else {
                        self.parting.leaves(member, Step::Later(state));
                    }
                    continue;
                }
                member.attempts = mem::take(&mut state.attempts);
                if shared
                    .as_ref()
                    .is_none_or(|shared| shared.counted <= state.counted)
                {
                    state.attempts = member.attempts.clone();
                    shared = Some(state);
                }
            }
            before.extend(member.lane);
            left.push(member);
        }
        self.parting.group = *Group::of(left);
        shared
    }

    /// Claims the keys of the next records. Records whose claim is refused leave the group.
    ///
    /// # Errors
    ///
    /// The store is down. The error is the state with which the group waits.
    async fn claim_together(
        &mut self,
        claims: &Claims,
        next: &mut Next,
        state: &mut Option<Box<RetryState>>,
    ) -> Result<(), Box<RetryState>> {
        let waits = state.as_mut().and_then(|state| state.waits.take());
        let looks = waits.map_or(0, |(_, looks)| looks);
        let of = |member: &mut Member| {
            let last = member.claim.take();
            last.unwrap_or_else(|| claims.of(&self.engine.application, &member.record))
        };
        let mut claimed: Vec<Claim> = next.members.iter_mut().map(of).collect();
        let turns = claims
            .claim(&mut claimed, self.engine.attempts.timeout(), looks, self.term)
            .await;
        for (member, claim) in next.members.iter_mut().zip(claimed) {
            member.claim = Some(claim);
        }
        // A single refusal may be one damaged entry of a store that works.
        let delays: Option<Vec<Duration>> = turns.iter().map(ClaimRefused::of_store).collect();
        if let Some(delays) = delays.filter(|delays| delays.len() > 1) {
            let delay = delays.into_iter().max().unwrap_or_default();
            let mut waiting = state.take().unwrap_or_else(|| Box::new(RetryState::new()));
            waiting.waits = Some((WaitsFor::Store, looks.saturating_add(1)));
            return Err(waiting.retry_after(delay));
        }
        let (mut before, mut gone) = (HashSet::new(), HashSet::new());
        for (mut member, turn) in mem::take(&mut next.members).into_iter().zip(turns) {
            let is_behind = member.is_in(&gone) || turn.is_err() && member.is_in(&before);
            match turn {
                Ok(()) if !is_behind => {
                    before.extend(member.lane);
                    next.members.push(member);
                }
                Ok(()) => self.parting.waits(member),
                Err(_) if is_behind => {
                    // The record waits for an earlier one of its lane, and the records behind wait for both.
                    gone.extend(member.lane);
                    self.parting.stop_lane(&member);
                    member.claim = None;
                    self.parting.waits(member);
                }
                Err(no_turn) => {
                    let own = member.apart(state.as_deref());
                    let step = self.engine.no_turn(&member.record, own, no_turn, looks);
                    if !matches!(step, Step::Done(Ok(_))) {
                        gone.extend(member.lane);
                    }
                    self.parting.leaves(member, step);
                }
            }
        }
        Ok(())
    }

    async fn processed_together(&mut self, mut members: Vec<Member>) {
        if let Some(claims) = &self.engine.claims {
            let claimed: Vec<Claim> = members
                .iter_mut()
                .filter_map(|member| member.claim.take())
                .collect();
            let records: Vec<Record> = members.iter().map(|member| member.record.place()).collect();
            claims.complete(&records, claimed, self.term).await;
        }
        self.term.run.tally.add_batch(members.len());
        for member in members {
            let attempts = member.attempts.calls() + 1;
            self.engine
                .tell_settled(&member.record, Settled::Processed, attempts);
            self.parting.leaves(member, Step::Done(Ok(Settled::Processed)));
        }
    }

    /// Handles an attempt of which the processor named the failed records. `errors` has one entry for each
    /// member. The others are processed, except those behind a failed record in its lane.
    async fn some_failed(
        &mut self,
        members: Vec<Member>,
        (errors, took): (Vec<Option<P::Error>>, Duration),
        state: Option<&RetryState>,
        mut permission: Permission,
    ) {
        self.parting.group.clear_suspicion();
        let (mut processed, mut failed, mut gone) = (Vec::new(), Vec::new(), HashSet::new());
        for (member, error) in members.into_iter().zip(errors) {
            match error {
                _ if member.is_in(&gone) => self.parting.waits(member),
                Some(error) => {
                    gone.extend(member.lane);
                    failed.push((member, error));
                }
                None => processed.push(member),
            }
        }
        if let Some(first) = processed.first() {
            // Some records succeeded, so the dependency works, whatever the others failed for.
            self.engine
                .protection
                .succeeded(&first.record, mem::replace(&mut permission, Permission::FREE));
            self.processed_together(processed).await;
        }
        for (mut member, error) in failed {
            let failed = FailedAttempt {
                error: AttemptError::Returned(error),
                took,
            };
            let claim = member.claim.take();
            let own = member.apart(state);
            let permission = mem::replace(&mut permission, Permission::FREE);
            let mut step =
                self.engine
                    .attempt_failed(&member.record, Some(own), failed, permission, self.term.run);
            if let (Some(claims), Some(claim)) = (&self.engine.claims, claim) {
                step = give_back(claims, claim, step).await;
            }
            self.parting.leaves(member, step);
        }
    }

    /// Handles an attempt that failed as a whole: retries the group, or searches for the record that fails.
    /// Returns the state of the records that stay in the group; `None` if the deadline ended the step.
    fn all_failed(
        &mut self,
        mut next: Next,
        mut state: Box<RetryState>,
        decision: Decision,
    ) -> Option<Box<RetryState>> {
        if next.members.len() == 1
            && let Some(found) = next.members.pop()
        {
            return self.one_failed(found, state, decision);
        }
        let is_searched = match decision {
            Decision::Interrupted => {
                self.parting.group.put_back(next);
                self.cut_short(&state);
                return None;
            }
            // One record is to blame, and is searched for at once. All records get their full count of
            // attempts.
            Decision::Retry(Scope::Record) | Decision::GiveUp(Reason::Permanent | Reason::Panicked, _) => {
                state.begin_again();
                true
            }
            // Once the search has begun, every call narrows it down.
            Decision::Retry(scope) => next.are_suspects() && scope == Scope::Unknown,
            // A dependency's failure is no record's fault, and a call while a breaker is not closed shows
            // nothing.
            Decision::Hold(scope) => state.is_suspected() && scope == Scope::Unknown,
            Decision::GiveUp(..) => true,
        };
        if is_searched {
            self.parting.group.put_back_suspects(next);
            return Some(state.retry_after(Duration::ZERO));
        }
        self.parting.group.put_back(next);
        Some(state)
    }

    /// Handles the record that the search has found: it continues alone, like any other record.
    fn one_failed(
        &mut self,
        mut found: Member,
        mut state: Box<RetryState>,
        decision: Decision,
    ) -> Option<Box<RetryState>> {
        let is_cut = matches!(decision, Decision::Interrupted);
        let mut left = state.part();
        left.attempts = mem::replace(&mut state.attempts, mem::take(&mut found.attempts));
        state.is_shared = false;
        let mut step = self.engine.follow(&found.record, state, decision);
        if let Step::Later(state) = &mut step {
            state.claim = found.claim.take();
        }
        self.parting.leaves(found, step);
        if is_cut {
            self.cut_short(&left);
            return None;
        }
        Some(left.retry_after(Duration::ZERO))
    }

    /// Releases all records that are left, because the deadline has come.
    fn cut_short(&mut self, state: &RetryState) {
        for mut member in mem::take(&mut self.parting.group.members) {
            if member.attempts.calls() > 0 {
                let own = member.given_back(state);
                self.engine.interrupted.keep(&member.record, own);
            }
            self.parting.leaves(member, Step::Done(Err(Unsettled::Deadline)));
        }
    }
}

/// Sorts the errors by their members' index. Returns an error whose index is out of range: it is then unknown
/// which members failed.
fn by_member<E>(named: Vec<(usize, E)>, count: usize) -> Result<Vec<Option<E>>, E> {
    let mut errors: Vec<Option<E>> = (0..count).map(|_| None).collect();
    for (index, error) in named {
        match errors.get_mut(index) {
            Some(place) => *place = Some(error),
            None => return Err(error),
        }
    }
    Ok(errors)
}

fn at_once(state: Option<Box<RetryState>>) -> Box<RetryState> {
    match state {
        Some(state) => state.retry_after(Duration::ZERO),
        None => Box::new(RetryState::new()),
    }
}
