//! A group: the records of one shard that are passed to the processor together, usually one.

use std::collections::HashSet;
use std::mem;

use tokio::time::Instant;

use super::Step;
use super::protection::Permission;
use super::retry_state::RetryState;
use crate::dead_letter::{Attempts, Reason};
use crate::idempotency::Claim;
use crate::protection::breaker::Round;
use crate::record::Record;
use crate::settlement::{Settled, Unsettled};

/// A record in a group.
pub(crate) struct Member {
    /// The record's number in the shard's window.
    pub(crate) ordinal: u64,
    /// The lane in which the record's order is kept, if order is kept.
    pub(crate) lane: Option<u64>,
    pub(crate) record: Record,
    pub(super) claim: Option<Claim>,
    /// The attempts that included this record. Attempts in a search for a failing record include a part of
    /// the group.
    pub(crate) attempts: Attempts,
}

impl Member {
    pub(crate) fn new(ordinal: u64, lane: Option<u64>, record: Record) -> Self {
        Member {
            ordinal,
            lane,
            record,
            claim: None,
            attempts: Attempts::default(),
        }
    }

    /// Returns this member with the attempts that included it before.
    pub(crate) fn tried(self, attempts: Attempts) -> Self {
        Member { attempts, ..self }
    }

    /// Returns true if the record's order is kept in one of these lanes.
    pub(super) fn is_in(&self, lanes: &HashSet<u64>) -> bool {
        self.lane.is_some_and(|lane| lanes.contains(&lane))
    }

    /// Returns the state with which the record leaves its group and continues alone, with a full count of
    /// attempts.
    pub(super) fn apart(&mut self, group: Option<&RetryState>) -> Box<RetryState> {
        let mut own = match group {
            Some(state) => state.part(),
            None => Box::new(RetryState::new()),
        };
        own.attempts = mem::take(&mut self.attempts);
        own.claim = self.claim.take();
        // The group's failures need not have been this record's fault.
        own.begin_again();
        own.forget_breaker();
        own
    }

    /// Returns the state with which the released record resumes when it is delivered again with others.
    pub(super) fn given_back(&mut self, group: &RetryState) -> Box<RetryState> {
        let mut own = group.part();
        own.attempts = mem::take(&mut self.attempts);
        own.is_shared = true;
        own
    }
}

/// Records of one shard, in its order, that are passed to the processor together; usually one.
pub(crate) struct Group {
    pub(super) members: Vec<Member>,
    /// The number of suspects at the front: one of them fails. 0 if no record is known to fail.
    suspects: usize,
    /// The shared retry state, once the group has failed.
    pub(super) state: Option<Box<RetryState>>,
    /// Permission for the next attempt.
    pub(super) permission: Permission,
}

impl Group {
    /// Creates a group for its first attempt.
    pub(crate) fn of(members: Vec<Member>) -> Box<Self> {
        Box::new(Group {
            members,
            suspects: 0,
            state: None,
            permission: Permission::FREE,
        })
    }

    /// Creates a group of one record, which continues alone from here on. Its attempts with others are kept.
    pub(crate) fn alone(mut member: Member) -> Box<Self> {
        let state = (member.attempts.calls() > 0).then(|| {
            let mut state = Box::new(RetryState::new());
            state.attempts = mem::take(&mut member.attempts);
            state
        });
        let mut group = Group::of(vec![member]);
        group.state = state;
        group
    }

    fn with_state(members: Vec<Member>, state: Box<RetryState>) -> Box<Self> {
        let mut group = Group::of(members);
        group.state = Some(state);
        group
    }

    /// Returns the only record, or the first of several.
    pub(crate) fn first(&self) -> Option<&Member> {
        self.members.first()
    }

    pub(crate) fn len(&self) -> usize {
        self.members.len()
    }

    pub(crate) fn has_several(&self) -> bool {
        self.members.len() > 1
    }

    /// Sets the permission for an attempt while a breaker is not closed.
    pub(crate) fn probes_with(&mut self, permission: Permission) {
        self.permission = permission;
    }

    /// Gives up the records: they become dead letters without another attempt.
    pub(crate) fn given_up(mut self: Box<Self>, reason: Reason) -> Box<Self> {
        self.state = Some(RetryState::given_up(self.state, reason));
        self
    }

    /// Returns when the next step is due. `None`: at once, and the step makes no attempt.
    pub(crate) fn due(&self) -> Option<Instant> {
        match &self.state {
            Some(state) => state.due(),
            None => Some(Instant::now()),
        }
    }

    /// Returns true if the next step calls the processor.
    pub(crate) fn calls_handler(&self) -> bool {
        self.state.as_ref().is_none_or(|state| state.calls_handler())
    }

    /// Returns true if the records took part in one of these rounds of probes. Other records then come first.
    pub(crate) fn has_probed(&self, rounds: &[Round]) -> bool {
        self.state.as_ref().is_some_and(|state| state.has_probed(rounds))
    }

    /// Returns the reason that is reported if the records are released now.
    pub(crate) fn why_unsettled(&self) -> Unsettled {
        match &self.state {
            Some(state) => state.why_unsettled(),
            None => Unsettled::Deadline,
        }
    }

    /// Splits a released group into its records, each with its retry state if it was attempted.
    pub(super) fn into_records(self) -> impl Iterator<Item = (Record, Option<Box<RetryState>>)> {
        let is_alone = self.members.len() == 1;
        let mut state = self.state;
        self.members.into_iter().map(move |mut member| {
            let own = match &state {
                Some(_) if is_alone => state.take(),
                Some(shared) => Some(member.given_back(shared)),
                None => None,
            };
            (member.record, own)
        })
    }

    /// Splits the group, so that each record continues alone. Returns the first record of each lane as a
    /// group, and the records behind them, which must wait.
    pub(crate) fn into_ones(self) -> (Vec<Group>, Vec<Member>) {
        let mut lanes = HashSet::new();
        let (mut ones, mut behind) = (Vec::new(), Vec::new());
        for mut member in self.members {
            if member.lane.is_some_and(|lane| !lanes.insert(lane)) {
                behind.push(member);
                continue;
            }
            let state = member.apart(self.state.as_deref());
            ones.push(*Group::with_state(vec![member], state));
        }
        (ones, behind)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Takes out the records for the next attempt: all, or half of the suspects.
    pub(super) fn take_next(&mut self) -> Next {
        let next = match self.suspects {
            0 => self.members.len(),
            suspects => suspects.div_ceil(2),
        };
        let rest = self.members.split_off(next.min(self.members.len()));
        let suspects = std::mem::take(&mut self.suspects);
        self.suspects = suspects.saturating_sub(next);
        Next {
            members: mem::replace(&mut self.members, rest),
            are_suspects: suspects > 0,
        }
    }

    /// Puts the records back, as they were.
    pub(super) fn put_back(&mut self, next: Next) {
        if next.are_suspects {
            self.suspects += next.members.len();
        }
        self.put_first(next.members);
    }

    /// Puts the records back as suspects: one of them fails.
    pub(super) fn put_back_suspects(&mut self, next: Next) {
        self.suspects = next.members.len();
        self.put_first(next.members);
    }

    fn put_first(&mut self, mut first: Vec<Member>) {
        first.append(&mut self.members);
        self.members = first;
    }

    /// Clears the suspicion: no record is known to fail.
    pub(super) fn clear_suspicion(&mut self) {
        self.suspects = 0;
    }

    /// Takes out the only suspect, or the only record left, which then continues alone. Also returns whether
    /// the record is a suspect.
    pub(super) fn take_last(&mut self) -> Option<(Member, bool)> {
        if self.suspects != 1 && self.members.len() != 1 {
            return None;
        }
        let is_suspect = mem::take(&mut self.suspects) > 0;
        Some((self.members.remove(0), is_suspect))
    }

    /// Takes out the records whose order is kept in this lane.
    pub(super) fn take_lane(&mut self, lane: u64) -> Vec<Member> {
        let suspects = self.members.iter().take(self.suspects);
        self.suspects -= suspects.filter(|member| member.lane == Some(lane)).count();
        self.members
            .extract_if(.., |member| member.lane == Some(lane))
            .collect()
    }
}

/// The records of a group for its next attempt.
pub(super) struct Next {
    pub(super) members: Vec<Member>,
    are_suspects: bool,
}

impl Next {
    /// Returns true if the records are suspects: one of them fails, or one of the other suspects does.
    pub(super) fn are_suspects(&self) -> bool {
        self.are_suspects
    }
}

/// The result of a step for one record or several.
pub(crate) enum MemberStep {
    /// The record is settled or released.
    Done(Member, Result<Settled, Unsettled>),
    /// The records take another step later.
    Later(Box<Group>),
    /// The record waits until the record before it in its lane is settled.
    Behind(Member),
}

impl MemberStep {
    pub(super) fn of(member: Member, step: Step) -> Self {
        match step {
            Step::Done(result) => MemberStep::Done(member, result),
            Step::Later(state) => MemberStep::Later(Group::with_state(vec![member], state)),
        }
    }
}

/// The results of a step with a group, as far as they are known.
pub(super) struct Parting {
    /// The records that are left in the group.
    pub(super) group: Group,
    pub(super) steps: Vec<MemberStep>,
    /// The claims of records that are not attempted in this step.
    pub(super) unused: Vec<Claim>,
}

impl Parting {
    pub(super) fn of(group: Group) -> Self {
        Parting {
            group,
            steps: Vec::new(),
            unused: Vec::new(),
        }
    }

    /// Takes a record out of the step. Unless it is settled, the records behind it in its lane wait.
    pub(super) fn leaves(&mut self, member: Member, step: Step) {
        if !matches!(step, Step::Done(Ok(_))) {
            self.stop_lane(&member);
        }
        self.steps.push(MemberStep::of(member, step));
    }

    /// Makes the remaining records behind this one in its lane wait.
    pub(super) fn stop_lane(&mut self, of: &Member) {
        if let Some(lane) = of.lane {
            let behind = self.group.take_lane(lane);
            behind.into_iter().for_each(|member| self.waits(member));
        }
    }

    pub(super) fn waits(&mut self, mut member: Member) {
        self.unused.extend(member.claim.take());
        self.steps.push(MemberStep::Behind(member));
    }

    /// Keeps the remaining records together. The only suspect, or the only record left, continues alone.
    pub(super) fn go_on(&mut self, mut state: Box<RetryState>) {
        while let Some((mut member, is_suspect)) = self.group.take_last() {
            let mut own = member.apart(Some(&state));
            if is_suspect {
                // The other suspects have succeeded since this record failed with them.
                own.share_breaker(&state);
            }
            self.leaves(member, Step::Later(own));
        }
        if !self.group.is_empty() {
            state.is_shared = true;
            let mut group = mem::replace(&mut self.group, *Group::of(Vec::new()));
            group.state = Some(state);
            self.steps.push(MemberStep::Later(Box::new(group)));
        }
    }
}
