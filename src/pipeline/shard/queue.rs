//! The records that wait for their turn.

use std::task::{Context, Poll};

use crate::engine::Group;
use crate::pipeline::backoff_queue::BackoffQueue;
use crate::pipeline::batch_builder::Gather;
use crate::pipeline::run_queue::RunQueue;
use crate::processor::Bounds;

pub(super) struct Queue {
    /// The records that may begin.
    pub(super) ready: RunQueue,
    /// The records that are in backoff.
    pub(super) delays: BackoffQueue<Box<Group>>,
    /// The batch that is being collected, for a batch processor.
    pub(super) gather: Option<Gather>,
}

impl Queue {
    pub(super) fn new(batches: Option<Bounds>) -> Self {
        Queue {
            ready: RunQueue::default(),
            delays: BackoffQueue::new(),
            gather: batches.map(Gather::new),
        }
    }

    /// Moves the records whose backoff is over to the records that may begin.
    #[inline]
    pub(super) fn wake_due(&mut self, cx: &mut Context<'_>) {
        while let Poll::Ready(group) = self.delays.poll_due(cx) {
            self.ready.push_again(group);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        let gathered = self.gather.as_ref().is_none_or(Gather::is_empty);
        self.ready.is_empty() && self.delays.is_empty() && gathered
    }

    /// Returns whether records wait for a permit.
    pub(super) fn waits_for_permit(&self) -> bool {
        let gather_waits = self.gather.as_ref().is_some_and(|gather| gather.waits_for_permit);
        !self.ready.is_empty() || gather_waits
    }

    /// Empties the queue. Returns the records that were tried before.
    pub(super) fn drain(&mut self) -> Vec<Group> {
        self.gather.iter_mut().for_each(|gather| drop(gather.take()));
        let waiting = self.ready.drain().chain(self.delays.drain());
        waiting.map(|group| *group).collect()
    }
}
