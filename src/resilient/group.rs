//! Records that go to their handler together.

use std::collections::HashSet;
use std::mem;

use super::Step;
use super::retry_state::RetryState;
use crate::dead_letter::Attempts;
use crate::idempotency::Claim;
use crate::record::Record;

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
    pub(crate) fn new(ordinal: u64, lane: Option<u64>, record: Record, attempts: Attempts) -> Self {
        Member {
            ordinal,
            lane,
            record,
            claim: None,
            attempts,
        }
    }

    /// Whether its order is kept in one of these lanes.
    pub(super) fn is_in(&self, lanes: &HashSet<u64>) -> bool {
        self.lane.is_some_and(|lane| lanes.contains(&lane))
    }

    /// It goes on by itself, where they were.
    pub(crate) fn apart(&mut self, group: Option<&RetryState>) -> Box<RetryState> {
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
    pub(crate) fn given_back(&mut self, group: &RetryState) -> Box<RetryState> {
        let mut own = group.part();
        own.attempts = mem::take(&mut self.attempts);
        own.is_shared = true;
        own
    }
}

/// Records of one shard, in its order, that go to their handler together.
#[derive(Default)]
pub(crate) struct Group {
    pub(crate) members: Vec<Member>,
    /// Among so many of the first there is one that fails: it is looked for. 0: none is known to be.
    suspects: usize,
}

impl Group {
    pub(crate) fn of(members: Vec<Member>) -> Self {
        Group { members, suspects: 0 }
    }

    pub(crate) fn is_empty(&self) -> bool {
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

/// What became of a record that went to its handler with others, or of several.
pub(crate) enum Fate {
    /// It is settled, or goes on by itself.
    Alone(Member, Step),
    /// They go on together.
    Together(Group, Box<RetryState>),
    /// It comes again when the one before it in its lane is settled.
    Behind(Member),
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
        self.fates.push(Fate::Alone(member, step));
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
            let group = mem::take(&mut self.group);
            self.fates.push(Fate::Together(group, state));
        }
    }
}
