//! Where the steps of a shard's records run: on the shard's own task, or on worker tasks.

use std::task::Context;

use crate::engine::{Group, Slots, Stepped, Tag, Workers};
use crate::pipeline::window::Ordinal;
use crate::record::Record;

/// The running steps.
pub(super) enum Steps<F, M> {
    /// On the shard's task. `step` creates the future of one step.
    Here {
        slots: Slots<F, Tag>,
        step: M,
    },
    OnWorkers(Workers),
}

impl<F, M> Steps<F, M>
where
    F: Future<Output = Stepped>,
    M: Fn(Ordinal, Record, Option<Box<Group>>) -> F,
{
    pub(super) fn is_empty(&self) -> bool {
        match self {
            Steps::Here { slots, .. } => slots.is_empty(),
            Steps::OnWorkers(workers) => workers.is_empty(),
        }
    }

    /// Begins a step. Returns its result if it ends at once.
    #[inline]
    pub(super) fn begin(
        &mut self,
        ordinal: Ordinal,
        permit: bool,
        record: Record,
        again: Option<Box<Group>>,
    ) -> Option<(Tag, Stepped)> {
        match self {
            Steps::Here { slots, step } => {
                let tag = Tag {
                    ordinal,
                    permit,
                    worker: 0,
                };
                slots.start(tag, || step(ordinal, record, again))
            }
            Steps::OnWorkers(workers) => {
                workers.begin(ordinal, permit, record, again);
                None
            }
        }
    }

    /// Polls the steps that were woken, and takes the steps that have ended. Returns the amount of work.
    pub(super) fn go_on(&mut self, cx: &mut Context<'_>, ended: &mut Vec<(Tag, Stepped)>) -> usize {
        match self {
            Steps::Here { slots, .. } => slots.poll_woken(ended),
            Steps::OnWorkers(workers) => workers.poll_ended(cx, ended),
        }
    }

    /// Returns true if [`go_on`](Steps::go_on) has something to do. Steps on workers wake the task for it.
    pub(super) fn has_woken(&self) -> bool {
        match self {
            Steps::Here { slots, .. } => slots.has_woken(),
            Steps::OnWorkers(_) => false,
        }
    }

    /// Stops waking the task: until `listen` the task checks for woken steps itself.
    pub(super) fn stop_listening(&self) {
        if let Steps::Here { slots, .. } = self {
            slots.stop_listening();
        }
    }

    /// Wakes the task for every step that is woken from now on.
    pub(super) fn listen(&self, cx: &Context<'_>) {
        if let Steps::Here { slots, .. } = self {
            slots.listen(cx);
        }
    }

    /// Ends the steps that still run, and waits until the workers have dropped them.
    pub(super) async fn close(&mut self) {
        if let Steps::OnWorkers(workers) = self {
            workers.close().await;
        }
    }
}
