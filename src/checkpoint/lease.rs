//! Leases: one of several processes owns a shard, and renews its lease while it lives.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use async_trait::async_trait;

use super::{Checkpoint, CheckpointError, ShardKey, Sharing};
use crate::record::ShardId;

/// The leases of a store whose shards several processes share.
///
/// At most one store *owns* a shard, and [renews](Leases::renew) its lease while its process lives. An owner
/// that has not renewed for the [failover time](Leases::failover_time) loses the shard to the others. No
/// store takes a shard from a living owner, unless an operator [forces it](Leases::seize).
///
/// An implementation makes these promises:
/// - A write to a shard that this store does not own fails with [`CheckpointError::LeaseLost`], also in
///   [`save`](super::CheckpointStore::save). The same holds for a call that was cancelled and arrives late.
/// - The store measures time on this machine's monotonic clock. No process trusts the wall clock of another.
/// - Two stores, in one process or in two, never count as the same owner.
#[async_trait]
pub trait Leases: Send + Sync + fmt::Debug {
    /// Returns the time without a renewal after which an owner loses its shard: 1 s to 24 h.
    fn failover_time(&self) -> Duration;

    /// Creates rows for shards that have none. An existing row stays as it is.
    ///
    /// The store keeps the order of `shards`: a row comes after the rows of the parents that precede it in
    /// `shards`.
    async fn create(&self, shards: &[NewShard]) -> Vec<Result<(), CheckpointError>>;

    /// Takes each shard that has no owner, or whose owner has done nothing for the failover time. The store
    /// needs two calls to see that an owner does nothing.
    async fn take(&self, shards: &[ShardKey]) -> Vec<Result<LeaseOutcome, CheckpointError>>;

    /// Returns the owner of each shard without taking it; `None` if the shard has no owner or no row. This
    /// call counts as one of the two that [`take`](Leases::take) needs to see that an owner does nothing.
    async fn holders(&self, shards: &[ShardKey]) -> Vec<Result<Option<Holder>, CheckpointError>>;

    /// Takes a shard from any owner, even a shard that is settled to its end. Callers use it when an operator
    /// asks for it, and for the ended row of an earlier stream of the same name. The previous owner notices
    /// at its next write, as with any lost lease. Never returns [`LeaseOutcome::Elsewhere`] or
    /// [`LeaseOutcome::Ended`].
    async fn seize(&self, shard: &ShardKey) -> Result<LeaseOutcome, CheckpointError>;

    /// Renews the lease of this shard, which shows the other processes that the owner lives.
    async fn renew(&self, shard: &ShardKey) -> Result<Renewal, CheckpointError>;

    /// Returns the last confirmed write with which this store renewed the lease of this shard. A saved checkpoint
    /// is such a write. The consumer calls [`renew`](Leases::renew) a third of the failover time after it. This
    /// method makes no call to the store. Default: `None`, the store does not remember its writes, and the
    /// consumer renews every third of the failover time.
    fn last_renewal(&self, _shard: &ShardKey) -> Option<LastRenewal> {
        None
    }

    /// Stores the names of the shard's children in its row. This store must own the shard.
    async fn name_children(&self, shard: &ShardKey, children: &[ShardId]) -> Result<(), CheckpointError>;

    /// Releases the shard, so that another worker can take it at once. If a worker has requested the shard,
    /// this call hands the shard over to that worker. Does nothing if this store does not own the shard.
    async fn give_up(&self, shard: &ShardKey) -> Result<(), CheckpointError>;

    /// Returns the part of the store that shares the shards evenly among the workers. Default: `None`: the
    /// worker that starts first takes all shards, and the others stand by.
    fn sharing(&self) -> Option<&dyn Sharing> {
        None
    }
}

const _: Option<&dyn Leases> = None;

/// A shard that has no row yet.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NewShard {
    /// The key of the shard's row.
    pub key: ShardKey,
    /// The checkpoint at which the shard starts.
    pub checkpoint: Checkpoint,
    /// The parent shards, which were split or merged into this shard.
    pub parents: Vec<ShardId>,
    /// The range of hash keys that the shard takes, if known.
    pub hash_keys: Option<RangeInclusive<u128>>,
}

impl NewShard {
    /// Creates a shard without parents, whose range of hash keys is unknown.
    pub fn new(key: ShardKey, checkpoint: Checkpoint) -> Self {
        NewShard {
            key,
            checkpoint,
            parents: Vec::new(),
            hash_keys: None,
        }
    }
}

/// The owner of a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Holder {
    /// The owner's name, in the store's terms.
    pub name: String,
    /// A number that changes each time the owner shows that it lives.
    pub sign: u64,
}

impl Holder {
    /// Creates an owner with this name and this sign of life.
    pub fn new(name: impl Into<String>, sign: u64) -> Self {
        Holder {
            name: name.into(),
            sign,
        }
    }
}

/// The outcome of an attempt to take a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
#[allow(clippy::large_enum_variant, reason = "a worker takes few shards at a time")]
pub enum LeaseOutcome {
    /// This store owns the shard from now on. The shard continues at this checkpoint.
    Leased(Checkpoint),
    /// Another worker owns the shard.
    Elsewhere {
        /// The owner's name, in the store's terms.
        owner: String,
    },
    /// The shard is settled to its end and needs no owner.
    Ended,
    /// The shard has no row: [create](Leases::create) the row first.
    Missing,
}

/// The outcome of a renewal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Renewal {
    /// This store still owns the shard.
    Leased,
    /// This store still owns the shard, and another worker waits for it. Stop reading, store the checkpoint,
    /// and [give the shard up](Leases::give_up).
    Wanted,
    /// Another worker owns the shard, or the shard's row is gone.
    Lost,
}

/// The last confirmed write that renewed a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct LastRenewal {
    /// The time since the store sent the write.
    pub age: Duration,
    /// True if another worker waited for the shard at the time of the write: see [`Renewal::Wanted`].
    pub is_wanted: bool,
}

impl LastRenewal {
    /// Creates a write that was sent this long ago, when no other worker waited for the shard.
    pub fn new(age: Duration) -> Self {
        LastRenewal {
            age,
            is_wanted: false,
        }
    }
}
