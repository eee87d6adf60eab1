//! What may begin: within the permits, and as far as breakers and the dead-letter guard let it.

use std::task::Context;

use futures_core::Stream;

use super::super::ready::Next;
use super::super::window::Ordinal;
use super::{Shard, Tag};
use crate::dead_letter::Reason;
use crate::record::Record;
use crate::resilient::{Group, Pass, RetryState, Stage, Stepped};

impl<S, F, M> Shard<'_, S, F, M>
where
    S: Stream<Item = super::Batch> + Unpin,
    F: Future<Output = Stepped>,
    M: Fn(Record, Option<Box<Stage>>) -> F,
{
    /// Whether a record need not queue: it waits for no others, nothing is ready before it, and it has a permit now.
    #[inline]
    pub(super) fn may_run_at_once(&mut self, cx: &mut Context<'_>) -> bool {
        self.queue.gather.is_none()
            && self.queue.ready.is_empty()
            && self.may_begin_all()
            && self.running.permits.poll_take(cx).is_ready()
    }

    /// Whether neither a breaker nor the dead-letter guard is against it.
    #[inline]
    pub(super) fn may_begin_all(&self) -> bool {
        self.engine.protection.is_clear() && !self.engine.run.is_stopped()
    }

    pub(super) fn start_ready(&mut self, cx: &mut Context<'_>) {
        if self.engine.run.gives_up() && !self.may_begin_all() {
            self.give_up_expiring();
        }
        if self.queue.gather.is_none() {
            return self.start_ready_ones(cx);
        }
        loop {
            self.gather_ready(cx);
            self.start_ready_ones(cx);
            // What has ended meanwhile has let others in.
            if !self.has_to_gather() {
                return;
            }
        }
    }

    #[inline]
    fn start_ready_ones(&mut self, cx: &mut Context<'_>) {
        while !self.queue.ready.is_empty()
            && !self.engine.run.is_stopped()
            && self.running.permits.poll_take(cx).is_ready()
        {
            let next = if self.engine.protection.is_clear() {
                let next = match self.queue.gather {
                    None => self.queue.ready.pop(),
                    Some(_) => self.queue.ready.pop_again().map(Next::Again),
                };
                next.map(|next| (next, Pass::FREE))
            } else {
                self.next_probe()
            };
            let Some((next, pass)) = next else {
                self.running.permits.give();
                return;
            };
            match next {
                Next::First(ordinal) => match self.settling.window.take(ordinal) {
                    Some(record) => {
                        let state = self.tried(ordinal);
                        self.start_first(ordinal, record, state, pass);
                    }
                    // Only unsettled records are ever ready.
                    None => self.running.permits.give(),
                },
                Next::Again(waiting) if !waiting.group.is_empty() => {
                    self.start_together(waiting.group, Some(waiting.state), pass);
                }
                Next::Again(waiting) => {
                    self.go_on_with(waiting.ordinal, waiting.record, waiting.state, pass);
                }
            }
        }
    }

    /// Lets go of what may not begin, and would be gone soon.
    #[cold]
    fn give_up_expiring(&mut self) {
        let run = self.engine.run;
        for waiting in self.queue.ready.take_groups_if(|record| run.is_expiring(record)) {
            for alone in self.part(waiting) {
                self.queue.ready.push_again(alone);
            }
        }
        let (window, run) = (&self.settling.window, self.engine.run);
        let expires = |ordinal, record: Option<&Record>| {
            let record = record.or_else(|| window.record(ordinal));
            record.is_some_and(|record| run.is_expiring(record))
        };
        for next in self.queue.ready.take_if(expires) {
            let (ordinal, record, state) = match next {
                Next::First(ordinal) => (ordinal, self.settling.window.take(ordinal), self.tried(ordinal)),
                Next::Again(waiting) => (waiting.ordinal, Some(waiting.record), Some(waiting.state)),
            };
            if let Some(record) = record {
                self.go_on_with(
                    ordinal,
                    record,
                    RetryState::given_up(state, Reason::Expiring),
                    Pass::FREE,
                );
            }
        }
    }

    /// The record that may be tried although a breaker is not closed: lanes have turns.
    #[cold]
    fn next_probe(&mut self) -> Option<(Next, Pass)> {
        let rounds = self.engine.protection.rounds()?;
        let next = self.queue.ready.pop_if(|state| !state.has_probed(&rounds))?;
        match self.engine.protection.pass() {
            Some(pass) => Some((next, pass)),
            // Another shard took it.
            None => {
                match next {
                    Next::First(ordinal) => self.queue.ready.push_first(ordinal),
                    Next::Again(waiting) => self.queue.ready.push_again(waiting),
                }
                None
            }
        }
    }

    /// Begins a record's first step, or the first since it was put back.
    pub(super) fn start_first(
        &mut self,
        ordinal: Ordinal,
        record: Record,
        state: Option<Box<RetryState>>,
        pass: Pass,
    ) {
        let is_plain = state.is_none() && pass.is_free();
        let stage = Stage {
            state,
            pass,
            group: Group::default(),
        };
        self.start(ordinal, record, (!is_plain).then(|| Box::new(stage)));
    }

    /// Begins a step. For one that calls the handler a permit has been taken.
    #[inline]
    pub(super) fn start(&mut self, ordinal: Ordinal, record: Record, stage: Option<Box<Stage>>) {
        let permit = stage.as_ref().is_none_or(|stage| stage.calls_handler());
        let step = || (self.running.step)(record, stage);
        if let Some((tag, step)) = self.running.slots.start(Tag { ordinal, permit }, step) {
            self.stepped(tag, step);
        }
    }

    pub(super) fn go_on_with(
        &mut self,
        ordinal: Ordinal,
        record: Record,
        state: Box<RetryState>,
        pass: Pass,
    ) {
        let (state, group) = (Some(state), Group::default());
        self.start(ordinal, record, Some(Box::new(Stage { state, pass, group })));
    }
}
