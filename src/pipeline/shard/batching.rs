//! Batching: which records go to a batch processor together.

use std::task::Context;

use futures_core::Stream;

use crate::dead_letter::Attempts;
use crate::engine::{Group, Member, Permission, Stepped};
use crate::pipeline::RecordOrder;
use crate::pipeline::shard::{Batch, Shard};
use crate::pipeline::window::Ordinal;
use crate::record::Record;

impl<S, F, M> Shard<'_, S, F, M>
where
    S: Stream<Item = Batch> + Unpin,
    F: Future<Output = Stepped>,
    M: Fn(Ordinal, Record, Option<Box<Group>>) -> F,
{
    /// Adds a record that was just read to the batch being collected, if that batch contains the record ahead
    /// of it.
    #[inline]
    pub(super) fn join_behind(&mut self, ahead: Ordinal, ordinal: Ordinal) {
        if let Some(gather) = self.queue.gather.as_mut().filter(|gather| gather.contains(ahead)) {
            gather.join_behind(ordinal, self.settling.window.payload_len(ordinal));
        }
    }

    /// Collects ready records into batches, and begins each batch that is full.
    pub(super) fn gather_ready(&mut self, cx: &mut Context<'_>) {
        let may_begin = self.may_begin_all();
        let Some(gather) = &mut self.queue.gather else {
            return;
        };
        if !may_begin {
            // Records begin one by one, if at all, while a breaker is not closed or the guard has stopped the
            // shard.
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

    /// Returns whether an untried record is ready, may begin, and has room in the batch.
    pub(super) fn has_to_gather(&self) -> bool {
        let has_room = self.queue.gather.as_ref().is_some_and(|gather| !gather.is_full());
        has_room && self.queue.ready.untried() > 0 && self.may_begin_all()
    }

    /// Begins the batch although it is not full, as there is nothing to read now. A batch that waits for more
    /// records does not begin. Returns whether a batch began.
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
        let ordered = self.pipeline.ordering != RecordOrder::Unordered;
        let mut members = Vec::with_capacity(ordinals.len());
        for ordinal in ordinals {
            // Always found: only unsettled records are collected.
            if let Some(record) = self.settling.window.take(ordinal) {
                let lane = ordered.then(|| self.settling.lanes.of(&record));
                let attempts = gather.tried.remove(&ordinal).unwrap_or_default();
                members.push(Member::new(ordinal, lane, record).tried(attempts));
            }
        }
        match members.len() {
            0 => self.running.permits.give(),
            1 => members
                .into_iter()
                .for_each(|one| self.start_first(one, Permission::FREE)),
            _ => self.start_again(Group::of(members), Permission::FREE),
        }
        true
    }

    /// Puts a record back into the window, as if it had never been taken. Its attempts are kept.
    pub(super) fn put_back(&mut self, member: Member) {
        if let Some(gather) = self.queue.gather.as_mut().filter(|_| member.attempts.calls() > 0) {
            gather.tried.insert(member.ordinal, member.attempts);
        }
        self.settling.window.put_back(member.ordinal, member.record);
    }

    /// Takes the attempts that a record had before it was put back.
    pub(super) fn tried(&mut self, ordinal: Ordinal) -> Attempts {
        let tried = self
            .queue
            .gather
            .as_mut()
            .and_then(|gather| gather.tried.remove(&ordinal));
        tried.unwrap_or_default()
    }
}
