//! The events of a fleet: the workers that share the shards of a stream.

use std::error::Error;
use std::time::Duration;

use crate::record::ShardId;

/// An event of the workers that share a stream's shards. The leader reports what it sees and decides; each
/// worker reports its own troubles. New variants may be added.
#[derive(Debug)]
#[non_exhaustive]
pub enum FleetEvent<'a> {
    /// This worker is the leader from now on.
    #[non_exhaustive]
    LeaderGained {
        /// This worker.
        worker: &'a str,
    },
    /// This worker is no longer the leader.
    #[non_exhaustive]
    LeaderLost {
        /// This worker.
        worker: &'a str,
    },
    /// The leader sees a new worker.
    #[non_exhaustive]
    WorkerJoined {
        /// The worker.
        worker: &'a str,
        /// The number of living workers.
        workers: usize,
    },
    /// The leader does not see a worker any more: the worker has stopped, or has failed.
    #[non_exhaustive]
    WorkerLeft {
        /// The worker.
        worker: &'a str,
        /// The number of living workers.
        workers: usize,
    },
    /// The leader has assigned a shard without an owner to a worker.
    #[non_exhaustive]
    LeaseAssigned {
        /// The shard.
        shard: &'a ShardId,
        /// The new owner.
        to: &'a str,
    },
    /// The leader has asked the owner of a shard to hand the shard over.
    #[non_exhaustive]
    HandOverRequested {
        /// The shard.
        shard: &'a ShardId,
        /// The owner.
        from: &'a str,
        /// The new owner.
        to: &'a str,
    },
    /// The owner of a shard has not handed the shard over in time. The leader assigns the shard.
    #[non_exhaustive]
    HandOverForced {
        /// The shard.
        shard: &'a ShardId,
        /// The worker that has not handed the shard over.
        from: &'a str,
    },
    /// The owner of a shard has not renewed its lease for the failover time.
    #[non_exhaustive]
    LeaseExpired {
        /// The shard.
        shard: &'a ShardId,
        /// The owner.
        owner: &'a str,
    },
    /// The checkpoint store has no index of the owners, so this worker reads the rows of all shards to find its
    /// own. Reported once.
    IndexMissing,
    /// A call to the checkpoint store failed and is retried. Shards are read on; they may be shared unevenly
    /// in the meantime.
    #[non_exhaustive]
    Failed {
        /// The task that failed.
        task: &'static str,
        /// The number of consecutive failures.
        failures: u32,
        /// The error.
        error: &'a (dyn Error + Send + Sync + 'static),
        /// The time until the retry.
        delay: Duration,
    },
}
