//! Starting the steps of records, within the permits and as far as breakers and the dead-letter guard allow.

use std::task::Context;

use futures_core::Stream;

use crate::dead_letter::Reason;
use crate::engine::{Group, Member, Permission, Stepped};
use crate::pipeline::run_queue::Next;
use crate::pipeline::shard::Shard;
use crate::pipeline::window::Ordinal;
use crate::record::Record;

impl<S, F, M> Shard<'_, S, F, M>
where
    S: Stream<Item = super::Batch> + Unpin,
    F: Future<Output = Stepped>,
    M: Fn(Ordinal, Record, Option<Box<Group>>) -> F,
{
    /// Returns whether a record may skip the queue: it waits for no batch, no record is ready before it, and
    /// a permit is free. If so, the permit is taken.
    #[inline]
    pub(super) fn may_run_at_once(&mut self, cx: &mut Context<'_>) -> bool {
        self.queue.gather.is_none()
            && self.queue.ready.is_empty()
            && self.may_begin_all()
            && self.running.permits.poll_take(cx).is_ready()
    }

    /// Returns whether every breaker is closed and the dead-letter guard has not stopped the shard.
    #[inline]
    pub(super) fn may_begin_all(&self) -> bool {
        self.run.is_clear() && !self.run.is_stopped()
    }

    pub(super) fn start_ready(&mut self, cx: &mut Context<'_>) {
        if self.run.gives_up() && !self.may_begin_all() {
            self.give_up_expiring();
        }
        if self.queue.gather.is_none() {
            return self.start_ready_ones(cx);
        }
        loop {
            self.gather_ready(cx);
            self.start_ready_ones(cx);
            // Steps that ended meanwhile may have made more records ready.
            if !self.has_to_gather() {
                return;
            }
        }
    }

    #[inline]
    fn start_ready_ones(&mut self, cx: &mut Context<'_>) {
        while !self.queue.ready.is_empty()
            && !self.run.is_stopped()
            && self.running.permits.poll_take(cx).is_ready()
        {
            let next = if self.run.is_clear() {
                let next = match self.queue.gather {
                    None => self.queue.ready.pop(),
                    Some(_) => self.queue.ready.pop_again().map(Next::Again),
                };
                next.map(|next| (next, Permission::FREE))
            } else {
                self.next_probe()
            };
            let Some((next, permission)) = next else {
                self.running.permits.give();
                return;
            };
            match next {
                Next::First(ordinal) => match self.take(ordinal) {
                    Some(member) => self.start_first(member, permission),
                    // Never happens: only unsettled records are ready.
                    None => self.running.permits.give(),
                },
                Next::Again(group) => self.start_again(group, permission),
            }
        }
    }

    /// Gives up records that may not begin and that the stream is about to drop.
    #[cold]
    fn give_up_expiring(&mut self) {
        let run = self.run;
        for group in self.queue.ready.take_groups_if(|record| run.is_expiring(record)) {
            let (ones, behind) = group.into_ones();
            behind.into_iter().for_each(|member| self.put_back(member));
            for one in ones {
                self.queue.ready.push_again(Box::new(one));
            }
        }
        let window = &self.settling.window;
        let expires = |ordinal, record: Option<&Record>| {
            let record = record.or_else(|| window.record(ordinal));
            record.is_some_and(|record| run.is_expiring(record))
        };
        for next in self.queue.ready.take_if(expires) {
            let group = match next {
                Next::First(ordinal) => self.take(ordinal).map(Group::alone),
                Next::Again(group) => Some(group),
            };
            if let Some(group) = group {
                self.start_again(group.given_up(Reason::Expiring), Permission::FREE);
            }
        }
    }

    /// Returns the record that may be tried although a breaker is not closed. Lanes take turns.
    #[cold]
    fn next_probe(&mut self) -> Option<(Next, Permission)> {
        let rounds = self.run.rounds()?;
        let next = self.queue.ready.pop_if(|group| !group.has_probed(&rounds))?;
        match self.run.permission() {
            Some(permission) => Some((next, permission)),
            // Another shard took the probe.
            None => {
                match next {
                    Next::First(ordinal) => self.queue.ready.push_first(ordinal),
                    Next::Again(group) => self.queue.ready.push_again(group),
                }
                None
            }
        }
    }

    /// Takes an unsettled record out of the window.
    fn take(&mut self, ordinal: Ordinal) -> Option<Member> {
        let record = self.settling.window.take(ordinal)?;
        Some(Member::new(ordinal, None, record).tried(self.tried(ordinal)))
    }

    /// Begins the first step of a record, or its first step since it was put back.
    pub(super) fn start_first(&mut self, member: Member, permission: Permission) {
        match permission.is_free() && member.attempts.calls() == 0 {
            true => self.start(member.ordinal, member.record, None),
            false => self.start_again(Group::alone(member), permission),
        }
    }

    /// Begins the next step of records that were tried, or a step of several records. For a step that calls
    /// the processor, the caller has taken a permit.
    pub(super) fn start_again(&mut self, mut group: Box<Group>, permission: Permission) {
        group.probes_with(permission);
        match group.first() {
            Some(first) => self.start(first.ordinal, first.record.place(), Some(group)),
            None => self.running.permits.give(),
        }
    }

    /// Begins a step. For a step that calls the processor, the caller has taken a permit.
    #[inline]
    pub(super) fn start(&mut self, ordinal: Ordinal, record: Record, again: Option<Box<Group>>) {
        let permit = again.as_ref().is_none_or(|group| group.calls_handler());
        if let Some((tag, step)) = self.running.steps.begin(ordinal, permit, record, again) {
            self.stepped(tag, step);
        }
    }
}
