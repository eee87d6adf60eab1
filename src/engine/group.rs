//! What goes to the handler: records of one shard, usually one.

use std::collections::HashSet;
use std::mem;

use tokio::time::Instant;

use super::Step;
use super::protection::Pass;
use super::retry_state::RetryState;
use crate::dead_letter::{Attempts, Reason};
use crate::idempotency::Claim;
use crate::protection::breaker::Round;
use crate::record::Record;
use crate::settlement::{Settled, Unsettled};

/// A record in a group.
pub(crate) struct Member {
    /// Its place in the window.
    pub(crate) ordinal: u64,
    /// The lane in which its order is kept, if it is.
    pub(crate) lane: Option<u64>,
    pub(crate) record: Record,
    pub(super) claim: Option<Claim>,
    /// Those that it was given in: of a group of which one is looked for not all are.
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

    /// The same, with the attempts that it was given in before.
    pub(crate) fn tried(self, attempts: Attempts) -> Self {
        Member { attempts, ..self }
    }

    /// Whether its order is kept in one of these lanes.
    pub(super) fn is_in(&self, lanes: &HashSet<u64>) -> bool {
        self.lane.is_some_and(|lane| lanes.contains(&lane))
    }

    /// It goes on by itself, where they were.
    pub(super) fn apart(&mut self, group: Option<&RetryState>) -> Box<RetryState> {
        let mut own = match group {
            Some(state) => state.part(),
            None => Box::new(RetryState::new()),
        };
        own.attempts = mem::take(&mut self.attempts);
        own.claim = self.claim.take();
        // What they failed for together need not have been this one.
        own.begin_again();
        own.forget_breaker();
        own
    }

    /// It is given back, and goes on where it was when it comes again with others.
    pub(super) fn given_back(&mut self, group: &RetryState) -> Box<RetryState> {
        let mut own = group.part();
        own.attempts = mem::take(&mut self.attempts);
        own.is_shared = true;
        own
    }
}

/// Records of one shard, in its order, that go to their handler together; usually one.
pub(crate) struct Group {
    pub(super) members: Vec<Member>,
    /// Among so many of the first there is one that fails: it is looked for. 0: none is known to be.
    suspects: usize,
    /// Where they are, once they have failed.
    pub(super) state: Option<Box<RetryState>>,
    /// Allows the next attempt.
    pub(super) pass: Pass,
}

impl Group {
    /// Records that go to their handler for the first time.
    pub(crate) fn of(members: Vec<Member>) -> Box<Self> {
        Box::new(Group {
            members,
            suspects: 0,
            state: None,
            pass: Pass::FREE,
        })
    }

    /// One record, which goes by itself from here on. What it went through with others is kept.
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

    /// The record, or the first of several.
    pub(crate) fn first(&self) -> Option<&Member> {
        self.members.first()
    }

    pub(crate) fn len(&self) -> usize {
        self.members.len()
    }

    pub(crate) fn has_several(&self) -> bool {
        self.members.len() > 1
    }

    /// Allows an attempt although a breaker is not closed.
    pub(crate) fn probes_with(&mut self, pass: Pass) {
        self.pass = pass;
    }

    /// Gives them up: they become dead letters without another attempt.
    pub(crate) fn given_up(mut self: Box<Self>, reason: Reason) -> Box<Self> {
        self.state = Some(RetryState::given_up(self.state, reason));
        self
    }

    /// When to go on; `None`: at once, and without an attempt.
    pub(crate) fn due(&self) -> Option<Instant> {
        match &self.state {
            Some(state) => state.due(),
            None => Some(Instant::now()),
        }
    }

    /// Whether going on calls the handler.
    pub(crate) fn calls_handler(&self) -> bool {
        self.state.as_ref().is_none_or(|state| state.calls_handler())
    }

    /// Whether they took part in one of these rounds of probes: others come first.
    pub(crate) fn has_probed(&self, rounds: &[Round]) -> bool {
        self.state.as_ref().is_some_and(|state| state.has_probed(rounds))
    }

    /// What is in their way, where they are given back.
    pub(crate) fn why_unsettled(&self) -> Unsettled {
        match &self.state {
            Some(state) => state.why_unsettled(),
            None => Unsettled::Deadline,
        }
    }

    /// Takes them apart, as they are given back: each record, and where it was if it was tried.
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

    /// Takes them apart, so that each goes on by itself, the first of each lane before the others. Also returns those
    /// that have not their turn.
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

    /// Takes out those that the handler is given next: all, or half of those among which one fails.
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

    /// Puts them back as they were.
    pub(super) fn put_back(&mut self, next: Next) {
        if next.are_suspects {
            self.suspects += next.members.len();
        }
        self.put_first(next.members);
    }

    /// Puts them back: one of them fails.
    pub(super) fn put_back_suspects(&mut self, next: Next) {
        self.suspects = next.members.len();
        self.put_first(next.members);
    }

    fn put_first(&mut self, mut first: Vec<Member>) {
        first.append(&mut self.members);
        self.members = first;
    }

    /// None is known to fail.
    pub(super) fn clear_suspicion(&mut self) {
        self.suspects = 0;
    }

    /// Takes out the one that is left of the suspects, or of all: it goes on by itself. And whether it is a suspect.
    pub(super) fn take_last(&mut self) -> Option<(Member, bool)> {
        if self.suspects != 1 && self.members.len() != 1 {
            return None;
        }
        let is_suspect = mem::take(&mut self.suspects) > 0;
        Some((self.members.remove(0), is_suspect))
    }

    /// Takes out those whose order is kept in this lane.
    pub(super) fn take_lane(&mut self, lane: u64) -> Vec<Member> {
        let suspects = self.members.iter().take(self.suspects);
        self.suspects -= suspects.filter(|member| member.lane == Some(lane)).count();
        self.members
            .extract_if(.., |member| member.lane == Some(lane))
            .collect()
    }
}

/// Those of a group that the handler is given next.
pub(super) struct Next {
    pub(super) members: Vec<Member>,
    are_suspects: bool,
}

impl Next {
    /// Whether one of them is known to fail, or of others with them.
    pub(super) fn are_suspects(&self) -> bool {
        self.are_suspects
    }
}

/// What a step came to for a record, or for several.
pub(crate) enum Fate {
    /// It is settled, or given back.
    Done(Member, Result<Settled, Unsettled>),
    /// They go on later.
    Later(Box<Group>),
    /// It comes again when the one before it in its lane is settled.
    Behind(Member),
}

impl Fate {
    pub(super) fn of(member: Member, step: Step) -> Self {
        match step {
            Step::Done(result) => Fate::Done(member, result),
            Step::Later(state) => Fate::Later(Group::with_state(vec![member], state)),
        }
    }
}

/// What a step with a group has come to so far.
pub(super) struct Parting {
    /// Those who are left.
    pub(super) group: Group,
    pub(super) fates: Vec<Fate>,
    /// Claims of those who do not get their turn.
    pub(super) unused: Vec<Claim>,
}

impl Parting {
    pub(super) fn of(group: Group) -> Self {
        Parting {
            group,
            fates: Vec::new(),
            unused: Vec::new(),
        }
    }

    /// It goes on by itself. Unless it is settled nobody who is left overtakes it.
    pub(super) fn leaves(&mut self, member: Member, step: Step) {
        if !matches!(step, Step::Done(Ok(_))) {
            self.stop_lane(&member);
        }
        self.fates.push(Fate::of(member, step));
    }

    /// Nobody who is left overtakes this one.
    pub(super) fn stop_lane(&mut self, of: &Member) {
        if let Some(lane) = of.lane {
            let behind = self.group.take_lane(lane);
            behind.into_iter().for_each(|member| self.waits(member));
        }
    }

    pub(super) fn waits(&mut self, mut member: Member) {
        self.unused.extend(member.claim.take());
        self.fates.push(Fate::Behind(member));
    }

    /// Those who are left go on together, as long as there are several of them, and no suspect is alone.
    pub(super) fn go_on(&mut self, mut state: Box<RetryState>) {
        while let Some((mut member, is_suspect)) = self.group.take_last() {
            let mut own = member.apart(Some(&state));
            if is_suspect {
                // The others have succeeded since it failed with them.
                own.share_breaker(&state);
            }
            self.leaves(member, Step::Later(own));
        }
        if !self.group.is_empty() {
            state.is_shared = true;
            let mut group = mem::replace(&mut self.group, *Group::of(Vec::new()));
            group.state = Some(state);
            self.fates.push(Fate::Later(Box::new(group)));
        }
    }
}
