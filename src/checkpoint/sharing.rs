//! Sharing: the workers of an application divide the shards of a stream among themselves.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use async_trait::async_trait;

use super::{Checkpoint, CheckpointError, LeaseOutcome, ShardKey};
use crate::record::ShardId;

/// The leases of a store whose workers share the shards evenly.
///
/// One worker is the *leader*. It assigns shards without an owner, and requests shards from workers that have
/// more than their share. The other workers take up the shards that are assigned to them. A shard that is
/// requested has two workers for a moment: its owner finishes the records in flight, stores the checkpoint
/// and [gives the shard up](super::Leases::give_up); then the new owner takes it up.
///
/// An implementation makes these promises:
/// - [`assign`](Sharing::assign) and [`request`](Sharing::request) change a row only if it is still as it was
///   read. Two leaders, or a leader with an old view, never give a shard to two workers.
/// - [`adopt`](Sharing::adopt) takes up a shard only if it is assigned to this worker and no other worker
///   still works on it.
/// - Results come in the order of the arguments.
#[async_trait]
pub trait Sharing: Send + Sync + fmt::Debug {
    /// Returns the name of this worker in the rows.
    fn worker(&self) -> &str;

    /// Returns the maximum number of open shards that this worker takes: at least 1. Default: no limit.
    fn max_leases(&self) -> usize {
        usize::MAX
    }

    /// Notes that a page with this many payload bytes was fetched from a shard that this worker reads. The store
    /// averages them, and stores the average with the next renewal or checkpoint: the leader reads it as
    /// [`SharedLease::throughput`]. This method makes no call to the store. Default: the store measures nothing,
    /// and the leader shares the number of shards alone.
    fn note_fetched(&self, _shard: &ShardKey, _bytes: usize) {}

    /// Announces that this worker lives and takes shards. Call it more often than every 30 s.
    async fn announce(&self) -> Result<(), CheckpointError>;

    /// Takes the announcement back: this worker gets no more shards.
    async fn withdraw(&self) -> Result<(), CheckpointError>;

    /// Returns the shards that are assigned to this worker. The answer may be a few seconds old.
    async fn assigned(&self, application: &str, stream: &str) -> Result<AssignedShards, CheckpointError>;

    /// Takes up each shard that is assigned to this worker and that no other worker works on, also a shard
    /// that is settled to its end. Never returns [`LeaseOutcome::Ended`].
    async fn adopt(&self, shards: &[ShardKey]) -> Vec<Result<LeaseOutcome, CheckpointError>>;

    /// Reads the rows of these shards; `None` for a shard without a row.
    async fn rows(&self, shards: &[ShardKey]) -> Vec<Result<Option<SharedLease>, CheckpointError>>;

    /// Returns all rows of this stream's shards, omitting unreadable ones. The answer may be a few seconds
    /// old.
    async fn leases(&self, application: &str, stream: &str) -> Result<Vec<SharedLease>, CheckpointError>;

    /// Returns the workers that have announced themselves.
    async fn workers(&self) -> Result<Vec<AnnouncedWorker>, CheckpointError>;

    /// Returns who assigns the shards, as the other workers of the application expect it. Default: the leader.
    async fn assigner(&self) -> Result<Assigner, CheckpointError> {
        Ok(Assigner::Leader)
    }

    /// Deletes the announcement of a worker, if the worker has not announced itself since it was read. Leaders
    /// call it for workers that are [long gone](AnnouncedWorker::is_gone).
    async fn forget(&self, worker: &AnnouncedWorker) -> Result<(), CheckpointError>;

    /// Becomes the leader if there is none, or stays the leader. Call it every third of the failover time. A
    /// leader that does not call it for three times the failover time loses the leadership.
    ///
    /// `patience`: the time for which this worker leaves a free leadership to other workers.
    async fn lead(&self, patience: Duration) -> Result<Leadership, CheckpointError>;

    /// Returns the name of the leader, which may have failed a moment ago; `None` if there is none.
    async fn leader(&self) -> Result<Option<String>, CheckpointError>;

    /// Gives the leadership up. Does nothing if this worker is not the leader.
    async fn resign(&self) -> Result<(), CheckpointError>;

    /// Makes `worker` the owner of a shard, whichever worker owns it. Returns false if the row has changed.
    async fn assign(&self, lease: &SharedLease, worker: &str) -> Result<bool, CheckpointError>;

    /// Deletes the row of a shard that has ended. Returns false if the row has changed.
    async fn delete(&self, lease: &SharedLease) -> Result<bool, CheckpointError>;

    /// Asks the owner of a shard to hand the shard over to `worker`. Returns false if the row has changed.
    async fn request(&self, lease: &SharedLease, worker: &str) -> Result<bool, CheckpointError>;
}

const _: Option<&dyn Sharing> = None;

/// The shards that are assigned to a worker.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct AssignedShards {
    /// The shards.
    pub shards: Vec<ShardId>,
    /// True if the store had to read the rows of other workers to find them, which costs more.
    pub scanned: bool,
}

impl AssignedShards {
    /// Creates the result of a store that found these shards without reading the rows of other workers.
    pub fn new(shards: Vec<ShardId>) -> Self {
        AssignedShards {
            shards,
            scanned: false,
        }
    }

    /// Notes that the store had to read the rows of other workers.
    #[must_use]
    pub fn scanned(mut self) -> Self {
        self.scanned = true;
        self
    }
}

/// A row, as the leader reads it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct SharedLease {
    /// The shard.
    pub key: ShardKey,
    /// The stored checkpoint.
    pub checkpoint: Checkpoint,
    /// The parent shards, which were split or merged into this shard.
    pub parents: Vec<ShardId>,
    /// The child shards, which this shard was split or merged into; empty before the shard has ended.
    pub children: Vec<ShardId>,
    /// The range of hash keys that the shard takes, if known.
    pub hash_keys: Option<RangeInclusive<u128>>,
    /// The worker that the shard is assigned to.
    pub owner: Option<String>,
    /// The worker that still works on the shard, and hands it over to `owner`.
    pub handed_over_by: Option<String>,
    /// A number that rises each time the worker that works on the shard shows that it lives.
    pub counter: u64,
    /// The throughput in KiB per second, if the owner has reported one.
    pub throughput: Option<f64>,
}

impl SharedLease {
    /// Creates a row without an owner.
    pub fn new(key: ShardKey, checkpoint: Checkpoint) -> Self {
        SharedLease {
            key,
            checkpoint,
            parents: Vec::new(),
            children: Vec::new(),
            hash_keys: None,
            owner: None,
            handed_over_by: None,
            counter: 0,
            throughput: None,
        }
    }

    /// Returns the worker that works on the shard.
    pub fn holder(&self) -> Option<&str> {
        self.handed_over_by.as_deref().or(self.owner.as_deref())
    }
}

/// A worker that has announced itself.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct AnnouncedWorker {
    /// The worker's name in the rows.
    pub name: String,
    /// A number that changes with each announcement.
    pub sign: u64,
    /// The maximum number of open shards that the worker takes, if it has stated one.
    pub max_leases: Option<usize>,
    /// True if the announcement is at most a minute old, by the wall clocks of the two machines. It counts only
    /// when a leader sees the worker for the first time. Later the leader uses its own clock.
    pub is_recent: bool,
    /// True if the announcement is more than a day old, by the wall clocks of the two machines: the worker has
    /// failed, and its announcement may be deleted.
    pub is_gone: bool,
    /// True if the worker announces that it takes no more shards.
    pub is_stopping: bool,
    /// True for a worker of this crate.
    pub is_native: bool,
}

impl AnnouncedWorker {
    /// Creates a worker of this crate that has just announced itself.
    pub fn new(name: impl Into<String>, sign: u64) -> Self {
        AnnouncedWorker {
            name: name.into(),
            sign,
            max_leases: None,
            is_recent: true,
            is_gone: false,
            is_stopping: false,
            is_native: true,
        }
    }
}

/// Who assigns shards to the workers of an application.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Assigner {
    /// The leader (KCL 3).
    #[default]
    Leader,
    /// Each worker takes shards for itself (KCL 2). The leader does so for the workers of this crate.
    Takers,
}

/// The leader of the fleet, as one worker sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Leadership {
    /// This worker.
    Leader,
    /// Another worker, or none. The name may belong to a leader that has failed.
    Follower {
        /// The last known leader. `None`: the leadership is free.
        leader: Option<String>,
        /// True if the leader has not called for half the time after which another worker may become the leader.
        /// The leader may have failed. The worker then watches the rows: if it becomes the leader, it knows which
        /// workers have failed.
        is_late: bool,
    },
}
