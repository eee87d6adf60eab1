//! Shards that several processes share: one of them holds each, and shows that it lives.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use async_trait::async_trait;

use super::{Checkpoint, CheckpointError, ShardKey};
use crate::record::ShardId;

/// What a store can do whose shards several processes share.
///
/// A shard is *held* by at most one of them, which [renews](Leases::renew) it while it lives. Whoever has not
/// renewed it for the [failover time](Leases::failover_time) has left it to the others. Nobody takes a shard
/// from a holder that lives, unless an operator [has it so](Leases::seize).
///
/// What an implementation promises:
/// - One that this store does not hold is not written to: [`CheckpointError::LeaseLost`], from
///   [`save`](super::CheckpointStore::save) as well. Not even by a call that was cancelled and arrives late.
/// - Time is measured on this machine's monotonic clock. No process trusts the wall clock of another.
/// - Two stores, of one process or of two, are never taken for the same holder.
#[async_trait]
pub trait Leases: Send + Sync + fmt::Debug {
    /// Who has not renewed a shard for so long holds it no more.
    fn failover_time(&self) -> Duration;

    /// Makes rows for shards that have none. A row that is there stays as it is.
    ///
    /// In this order: no row is made before those of its parents that are listed before it.
    async fn create(&self, shards: &[NewShard]) -> Vec<Result<(), CheckpointError>>;

    /// Takes those that nobody holds, and those whose holder has been seen to do nothing for the failover time:
    /// to see that takes two calls.
    async fn take(&self, shards: &[ShardKey]) -> Vec<Result<LeaseOutcome, CheckpointError>>;

    /// Who holds each of them, without taking any. `None`: nobody, or it has no row. It counts as a look, as
    /// [`take`](Leases::take) needs two.
    async fn holders(&self, shards: &[ShardKey]) -> Vec<Result<Option<Holder>, CheckpointError>>;

    /// Takes a shard whoever holds it, also one that is settled to its end: for an operator who says so. The holder
    /// learns of it at its next write, as of any lost lease. Never [`LeaseOutcome::Elsewhere`] nor [`LeaseOutcome::Ended`].
    async fn seize(&self, shard: &ShardKey) -> Result<LeaseOutcome, CheckpointError>;

    /// Shows that the holder of this shard lives.
    async fn renew(&self, shard: &ShardKey) -> Result<Renewal, CheckpointError>;

    /// Notes beside a shard that is held which shards came of it.
    async fn name_children(&self, shard: &ShardKey, children: &[ShardId]) -> Result<(), CheckpointError>;

    /// Lets another take the shard at once; hands it over to the one that has asked for it. Nothing, if it is not
    /// held.
    async fn give_up(&self, shard: &ShardKey) -> Result<(), CheckpointError>;
}

const _: Option<&dyn Leases> = None;

/// A shard that has no row yet.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NewShard {
    /// Whose.
    pub key: ShardKey,
    /// Where it begins.
    pub checkpoint: Checkpoint,
    /// The shards that it came of.
    pub parents: Vec<ShardId>,
    /// The hash keys that it holds, where they are known.
    pub hash_keys: Option<RangeInclusive<u128>>,
}

impl NewShard {
    /// One without parents, of which no more is known.
    pub fn new(key: ShardKey, checkpoint: Checkpoint) -> Self {
        NewShard {
            key,
            checkpoint,
            parents: Vec::new(),
            hash_keys: None,
        }
    }
}

/// Who holds a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Holder {
    /// Who, in the store's terms.
    pub name: String,
    /// Another one after each time that it has shown that it lives.
    pub sign: u64,
}

impl Holder {
    /// This one, which has given this sign.
    pub fn new(name: impl Into<String>, sign: u64) -> Self {
        Holder {
            name: name.into(),
            sign,
        }
    }
}

/// What came of the wish to hold a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum LeaseOutcome {
    /// This store holds it from now on, from here.
    Leased(Checkpoint),
    /// Another holds it.
    Elsewhere {
        /// Who, in the store's terms.
        owner: String,
    },
    /// It is settled to its end, and needs no holder.
    Ended,
    /// It has no row: [create](Leases::create) it.
    Missing,
}

/// What came of a renewal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Renewal {
    /// The store still holds the shard.
    Leased,
    /// It does, and another waits for it: end, store how far it is settled, and
    /// [give it up](Leases::give_up).
    Wanted,
    /// Another holds it, or its row is gone.
    Lost,
}
