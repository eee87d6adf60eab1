//! Stores one shard's checkpoints, on a task of its own.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rand::rngs::SmallRng;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};

use super::crash_loop::{Mark, Request};
use crate::checkpoint::{Checkpoint, CheckpointError, CheckpointStore, ShardKey};
use crate::consumer::answer;
use crate::consumer::shards::lease::Hold;
use crate::failure::BoxError;
use crate::observer::{Event, Interest, Observers};
use crate::pipeline::{Progress, Published};
use crate::protection::{Backoff, Jitter};

/// Between writes that fail.
const BACKOFF: Backoff = Backoff::exponential();

/// The task that stores a shard's checkpoints.
pub(in crate::consumer) struct Checkpointer {
    pub(in crate::consumer) store: Arc<dyn CheckpointStore>,
    pub(in crate::consumer) key: ShardKey,
    pub(in crate::consumer) observers: Observers,
    pub(in crate::consumer) progress: Arc<Progress>,
    pub(in crate::consumer) rng: SmallRng,
    /// Where several processes share the store.
    pub(in crate::consumer) hold: Option<Arc<Hold>>,
    /// When the stream was created from which the shard is read.
    pub(in crate::consumer) stream_created: Option<SystemTime>,
    /// Where the shard begins: stored as it is, with the mark, until there is another.
    pub(in crate::consumer) from: Checkpoint,
    pub(in crate::consumer) mark: Arc<Mark>,
    pub(in crate::consumer) marks: mpsc::Receiver<Request>,
}

impl Checkpointer {
    /// Stores what the shard publishes, at most once in the store's interval unless it is urgent, until
    /// the last one is stored, or another process holds the shard.
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
            if self.store_latest(&mut latest).await {
                return;
            }
            match request {
                // Whoever asked may be gone.
                Some(request) => drop(request.send(())),
                None => {
                    is_due = false;
                    due.as_mut().reset(Instant::now() + interval);
                }
            }
        }
    }

    /// Stores the latest one, however long the store is down. Whether no other is to be stored.
    async fn store_latest(&mut self, latest: &mut watch::Receiver<Option<Published>>) -> bool {
        let mut failures = 0;
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
                    self.tell(|stream, shard| Event::Checkpointed {
                        stream,
                        shard,
                        position: checkpoint.position(),
                    });
                    return last;
                }
                Err(CheckpointError::LeaseLost { .. }) if self.hold.is_some() => {
                    self.hold.iter().for_each(|hold| hold.lose());
                    return true;
                }
                Err(error) => error.into(),
            };
            let delay = Jitter::Equal.delay(&BACKOFF, failures, Duration::ZERO, &mut self.rng);
            failures = failures.saturating_add(1);
            self.tell(|stream, shard| Event::CheckpointFailed {
                stream,
                shard,
                failures,
                error: &*error,
                delay,
            });
            let newest_is_last = |newest: &Option<Published>| newest.as_ref().is_some_and(|it| it.last);
            tokio::select! {
                biased;
                // A shutdown has less time than the backoff may take.
                _ = latest.wait_for(newest_is_last), if !last => {}
                () = sleep(delay) => {}
            }
            // What has settled meanwhile goes with it.
            self.progress.want_any();
        }
    }

    async fn save(&self, checkpoint: &Checkpoint) -> Result<(), CheckpointError> {
        let mut checkpoint = checkpoint.clone();
        if let Some(created) = self.stream_created {
            checkpoint = checkpoint.with_stream_created(created);
        }
        let rows = [(self.key.clone(), checkpoint)];
        let results = answer("the store", self.store.save(&rows)).await;
        let mut results = results.map_err(CheckpointError::unavailable)?;
        let result = results.pop();
        result.unwrap_or_else(|| Err(CheckpointError::unavailable("the store gave no result")))
    }

    fn tell<'a>(&'a self, event: impl FnOnce(&'a str, &'a crate::record::ShardId) -> Event<'a>) {
        if self.observers.want(Interest::SHARDS) {
            self.observers.tell(&event(&self.key.stream, &self.key.shard));
        }
    }
}
