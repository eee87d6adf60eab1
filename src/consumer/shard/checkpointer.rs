//! Stores the checkpoints of one shard, on a separate task.

use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};

use super::crash_loop::{Mark, Request};
use super::lease::LeaseState;
use crate::checkpoint::{Checkpoint, CheckpointError, CheckpointStore, ShardKey};
use crate::consumer::calls::{STORE, answer};
use crate::failure::BoxError;
use crate::observer::{Event, Interest, Observers, ShardEvent};
use crate::pipeline::{Progress, Published};
use crate::protection::RetryTimer;

/// The task that stores a shard's checkpoints.
pub(in crate::consumer) struct Checkpointer {
    pub(in crate::consumer) store: Arc<dyn CheckpointStore>,
    pub(in crate::consumer) key: ShardKey,
    pub(in crate::consumer) observers: Observers,
    pub(in crate::consumer) progress: Arc<Progress>,
    pub(in crate::consumer) retries: RetryTimer,
    /// The state of the shard's lease. `None` if the store is not shared by several processes.
    pub(in crate::consumer) lease: Option<Arc<LeaseState>>,
    /// The creation time of the stream that the shard belongs to.
    pub(in crate::consumer) stream_created: Option<SystemTime>,
    /// The checkpoint at which the shard starts. It is stored, with the mark, until the shard publishes
    /// another one.
    pub(in crate::consumer) from: Checkpoint,
    pub(in crate::consumer) mark: Arc<Mark>,
    pub(in crate::consumer) marks: mpsc::Receiver<Request>,
}

impl Checkpointer {
    /// Stores the checkpoints that the shard publishes: at most one per write interval of the store, unless a
    /// checkpoint is urgent. Returns when the last checkpoint is stored or the lease is lost.
    pub(in crate::consumer) async fn run(mut self) {
        let mut latest = self.progress.subscribe();
        let interval = self.store.write_interval();
        let due = sleep(interval);
        tokio::pin!(due);
        let mut is_due = false;
        loop {
            match is_due {
                true => self.progress.want_any(),
                false => self.progress.want_urgent(),
            }
            let request = tokio::select! {
                biased;
                changed = latest.changed() => match changed {
                    Ok(()) => None,
                    Err(_) => return,
                },
                Some(request) = self.marks.recv() => Some(request),
                () = &mut due, if !is_due => {
                    is_due = true;
                    continue;
                }
            };
            // Boxed: an idle shard needs no room for the call.
            if Box::pin(self.store_latest(&mut latest)).await {
                return;
            }
            match request {
                // The requester may be gone.
                Some(request) => drop(request.send(())),
                None => {
                    is_due = false;
                    due.as_mut().reset(Instant::now() + interval);
                }
            }
        }
    }

    /// Stores the latest checkpoint, and retries until the store takes it. Returns true if no further
    /// checkpoint is to be stored.
    async fn store_latest(&mut self, latest: &mut watch::Receiver<Option<Published>>) -> bool {
        self.retries.reset();
        loop {
            let published = latest.borrow_and_update().clone();
            let (checkpoint, last) = match published {
                Some(Published {
                    checkpoint,
                    last: true,
                    ..
                }) => (checkpoint, true),
                Some(Published { checkpoint, .. }) => (self.mark.beside(checkpoint), false),
                None => (self.mark.beside(self.from.clone()), false),
            };
            let error: BoxError = match self.save(&checkpoint).await {
                Ok(()) => {
                    self.report(|| ShardEvent::Checkpointed {
                        position: checkpoint.position(),
                    });
                    return last;
                }
                Err(CheckpointError::LeaseLost { .. }) if self.lease.is_some() => {
                    self.lease.iter().for_each(|lease| lease.mark_lost());
                    return true;
                }
                Err(error) => error.into(),
            };
            let delay = self.retries.next_delay();
            let failures = self.retries.failures();
            self.report(|| ShardEvent::CheckpointFailed {
                failures,
                error: &*error,
                delay,
            });
            let newest_is_last = |newest: &Option<Published>| newest.as_ref().is_some_and(|it| it.last);
            tokio::select! {
                biased;
                // A shutdown has less time than the backoff may take: the last checkpoint is not delayed.
                _ = latest.wait_for(newest_is_last), if !last => {}
                () = sleep(delay) => {}
            }
            // The next attempt also stores what has settled in the meantime.
            self.progress.want_any();
        }
    }

    async fn save(&self, checkpoint: &Checkpoint) -> Result<(), CheckpointError> {
        let mut checkpoint = checkpoint.clone();
        // The position after a change of the stream has the creation time of the new one.
        if let (None, Some(created)) = (checkpoint.stream_created(), self.stream_created) {
            checkpoint = checkpoint.with_stream_created(created);
        }
        let rows = [(self.key.clone(), checkpoint)];
        let results = answer(STORE, self.store.save(&rows)).await;
        let mut results = results.map_err(CheckpointError::unavailable)?;
        let result = results.pop();
        result.unwrap_or_else(|| Err(CheckpointError::unavailable("the store returned no result")))
    }

    fn report<'a>(&'a self, event: impl FnOnce() -> ShardEvent<'a>) {
        if self.observers.want(Interest::SHARDS) {
            self.observers.tell(&Event::Shard {
                stream: &self.key.stream,
                shard: &self.key.shard,
                event: event(),
            });
        }
    }
}
