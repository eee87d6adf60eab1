//! Records that go to their handler together: which do, and what becomes of them.

use std::collections::HashSet;
use std::task::Context;

use futures_core::Stream;

use super::super::Ordering;
use super::super::ready::Waiting;
use super::super::window::Ordinal;
use super::{Batch, Shard};
use crate::record::Record;
use crate::resilient::{Fate, Group, Member, Pass, RetryState, Stage, Stepped};
use crate::settled::Unsettled;

impl<S, F, M> Shard<'_, S, F, M>
where
    S: Stream<Item = Batch> + Unpin,
    F: Future<Output = Stepped>,
    M: Fn(Record, Option<Box<Stage>>) -> F,
{
    /// A record has been read whose place in its lane is behind this one. It goes with it, if that waits for others.
    #[inline]
    pub(super) fn join_behind(&mut self, ahead: Ordinal, ordinal: Ordinal) {
        if let Some(gather) = self.queue.gather.as_mut().filter(|gather| gather.contains(ahead)) {
            gather.join_behind(ordinal, self.settling.window.payload_len(ordinal));
        }
    }

    /// Gathers what is ready, and begins what is full.
    pub(super) fn gather_ready(&mut self, cx: &mut Context<'_>) {
        let may_begin = self.may_begin_all();
        let Some(gather) = &mut self.queue.gather else {
            return;
        };
        if !may_begin {
            // One by one, if at all.
            for ordinal in gather.dissolve().into_iter().rev() {
                self.queue.ready.push_front(ordinal);
            }
            return;
        }
        loop {
            let Some(gather) = &mut self.queue.gather else {
                return;
            };
            if gather.is_full() {
                if !self.begin_gathered(cx) {
                    return;
                }
                continue;
            }
            let Some(head) = self.queue.ready.pop_first() else {
                return;
            };
            if !gather.join(head, self.settling.window.payload_len(head)) {
                self.queue.ready.push_front(head);
                continue;
            }
            let mut last = head;
            while let Some(next) = self.settling.window.behind(last) {
                if !gather.join_behind(next, self.settling.window.payload_len(next)) {
                    break;
                }
                last = next;
            }
        }
    }

    /// Whether there is a record that has not been tried, and room for it.
    pub(super) fn has_to_gather(&self) -> bool {
        let has_room = self.queue.gather.as_ref().is_some_and(|gather| !gather.is_full());
        has_room && self.queue.ready.untried() > 0 && self.may_begin_all()
    }

    /// Nothing is to be read now: begins what is there, unless others are waited for. Whether it has.
    pub(super) fn begin_what_is_there(&mut self, more_may_come: bool, cx: &mut Context<'_>) -> bool {
        let may_begin = self.may_begin_all();
        let Some(gather) = &mut self.queue.gather else {
            return false;
        };
        if gather.is_empty() || !may_begin || more_may_come && gather.lingers(cx) {
            return false;
        }
        self.begin_gathered(cx)
    }

    fn begin_gathered(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(gather) = &mut self.queue.gather else {
            return false;
        };
        if self.running.permits.poll_take(cx).is_pending() {
            gather.waits_for_permit = true;
            return false;
        }
        let ordinals = gather.take();
        let ordered = self.pipeline.ordering != Ordering::Unordered;
        let mut members = Vec::with_capacity(ordinals.len());
        for ordinal in ordinals {
            // Only unsettled records are ever gathered.
            if let Some(record) = self.settling.window.take(ordinal) {
                let lane = ordered.then(|| self.settling.lanes.of(&record));
                let attempts = gather.tried.remove(&ordinal).unwrap_or_default();
                members.push(Member::new(ordinal, lane, record, attempts));
            }
        }
        match members.len() {
            0 => self.running.permits.give(),
            1 => {
                if let Some(member) = members.pop() {
                    let state = (member.attempts.calls() > 0).then(|| RetryState::after(member.attempts));
                    self.start_first(member.ordinal, member.record, state, Pass::FREE);
                }
            }
            _ => self.start_together(Group::of(members), None, Pass::FREE),
        }
        true
    }

    /// Begins a step of all of them. A permit has been taken.
    pub(super) fn start_together(&mut self, group: Group, state: Option<Box<RetryState>>, pass: Pass) {
        let Some(first) = group.members.first() else {
            return self.running.permits.give();
        };
        let (ordinal, place) = (first.ordinal, first.record.place());
        let stage = Stage { state, pass, group };
        self.start(ordinal, place, Some(Box::new(stage)));
    }

    /// A step of a group has ended.
    pub(super) fn parted(&mut self, mut fates: Vec<Fate>) {
        // First, so that they are found by whoever is settled before them.
        for fate in fates.extract_if(.., |fate| matches!(fate, Fate::Behind(_))) {
            if let Fate::Behind(member) = fate {
                self.put_back(member);
            }
        }
        for fate in fates {
            match fate {
                Fate::Alone(member, step) => self.advanced(member.ordinal, member.record, step),
                Fate::Together(group, state) => {
                    let Some(first) = group.members.first() else {
                        continue;
                    };
                    let (ordinal, record) = (first.ordinal, first.record.place());
                    self.wait(Waiting {
                        ordinal,
                        record,
                        state,
                        group,
                    });
                }
                Fate::Behind(_) => {}
            }
        }
    }

    /// Records are given back that were tried.
    pub(super) fn give_back_waiting(&mut self, waiting: Waiting, reason: impl Fn(&RetryState) -> Unsettled) {
        let Waiting {
            record, state, group, ..
        } = waiting;
        if group.is_empty() {
            let reason = reason(&state);
            return self.give_back(record, state, reason);
        }
        for mut member in group.members {
            let own = member.given_back(&state);
            self.give_back(member.record, own, reason(&state));
        }
    }

    /// It has not its turn, as if it had never been taken.
    fn put_back(&mut self, member: Member) {
        if let Some(gather) = self.queue.gather.as_mut().filter(|_| member.attempts.calls() > 0) {
            gather.tried.insert(member.ordinal, member.attempts);
        }
        self.settling.window.put_back(member.ordinal, member.record);
    }

    /// What a record went through before it was put back.
    pub(super) fn tried(&mut self, ordinal: Ordinal) -> Option<Box<RetryState>> {
        let attempts = self.queue.gather.as_mut()?.tried.remove(&ordinal)?;
        Some(RetryState::after(attempts))
    }

    /// Those of a group go on one by one, the first of each lane before the others.
    pub(super) fn part(&mut self, waiting: Waiting) -> Vec<Waiting> {
        let Waiting { state, group, .. } = waiting;
        let mut lanes = HashSet::new();
        let mut alone = Vec::new();
        for mut member in group.members {
            if member.lane.is_some_and(|lane| !lanes.insert(lane)) {
                self.put_back(member);
                continue;
            }
            let state = member.apart(Some(&state));
            alone.push(Waiting {
                ordinal: member.ordinal,
                record: member.record,
                state,
                group: Group::default(),
            });
        }
        alone
    }
}
