//! Lists the shards of a stream with an application's checkpoints.

use aws_sdk_kinesis::types::Shard;

use super::{OperatorError, Shards};
use crate::aws::FailedCall;
use crate::aws::shard_list::{is_closed, list_shards, parents};
use crate::checkpoint::{Checkpoint, CheckpointError, Holder, ShardKey, SharedLease};
use crate::record::ShardId;

/// A shard of the stream, with the application's position in it.
#[derive(Debug)]
#[non_exhaustive]
pub struct ShardStatus {
    /// The shard.
    pub shard: ShardId,
    /// The parents of the shard, including parents that the stream no longer has.
    pub parents: Vec<ShardId>,
    /// True if the shard receives no more records because it was split or merged.
    pub closed: bool,
    /// The checkpoint of the shard. `None` if none is stored; an error if what is stored cannot be read.
    pub checkpoint: Result<Option<Checkpoint>, CheckpointError>,
    /// The owner of the lease, running or not. `None` if no worker owns the lease, or the store has no
    /// leases.
    pub holder: Option<Holder>,
    /// The worker to which the owner is handing the shard over.
    pub handed_over_to: Option<String>,
}

/// The workers that a row names.
#[derive(Debug, Default)]
struct Owners {
    holder: Option<Holder>,
    handed_over_to: Option<String>,
}

impl Owners {
    fn of(row: &SharedLease) -> Self {
        Owners {
            holder: row.holder().map(|holder| Holder::new(holder, row.counter)),
            handed_over_to: row.handed_over_by.as_ref().and(row.owner.clone()),
        }
    }
}

impl Shards {
    /// Returns the shards of the stream in the order of their names. Takes no lease and moves no shard.
    pub async fn list(&self) -> Result<Vec<ShardStatus>, OperatorError> {
        let shards = self.listed().await?;
        let keys: Vec<ShardKey> = shards
            .iter()
            .map(|shard| self.key(shard.shard_id().into()))
            .collect();
        let rows = self.rows(&keys).await;
        if rows.len() != keys.len() {
            let error = "the store did not return one result for each shard";
            return Err(CheckpointError::unavailable(error).into());
        }
        let rows = shards.iter().zip(keys).zip(rows);
        rows.map(|((shard, key), row)| {
            let (checkpoint, lease) = match row {
                // An error of the store as a whole, not of this row.
                Err(error @ CheckpointError::Unavailable(_)) => return Err(error.into()),
                Err(error) => (Err(error), Owners::default()),
                Ok((checkpoint, lease)) => (Ok(checkpoint), lease),
            };
            Ok(ShardStatus {
                shard: key.shard,
                parents: parents(shard).map(ShardId::from).collect(),
                closed: is_closed(shard),
                checkpoint,
                holder: lease.holder,
                handed_over_to: lease.handed_over_to,
            })
        })
        .collect()
    }

    /// Returns the checkpoint and the owners of each of these shards.
    async fn rows(&self, keys: &[ShardKey]) -> Vec<Result<(Option<Checkpoint>, Owners), CheckpointError>> {
        if let Some(sharing) = self.sharing() {
            let rows = sharing.rows(keys).await.into_iter();
            let row = |row: SharedLease| (Some(row.checkpoint.clone()), Owners::of(&row));
            return rows
                .map(|found| Ok(found?.map(row).unwrap_or_default()))
                .collect();
        }
        let stored = self.store.load(keys).await;
        let holders = match self.store.leases() {
            Some(leases) => leases.holders(keys).await,
            None => keys.iter().map(|_| Ok(None)).collect(),
        };
        let rows = stored.into_iter().zip(holders);
        rows.map(|(stored, holder)| {
            let owners = Owners {
                holder: holder?,
                handed_over_to: None,
            };
            Ok((stored?, owners))
        })
        .collect()
    }

    /// Returns the child shards of this shard.
    pub(super) async fn children(&self, of: &ShardId) -> Result<Vec<ShardId>, OperatorError> {
        let shards = self.listed().await?;
        let children = shards
            .iter()
            .filter(|shard| parents(shard).any(|it| it == of.as_str()));
        Ok(children.map(|shard| shard.shard_id().into()).collect())
    }

    async fn listed(&self) -> Result<Vec<Shard>, OperatorError> {
        self.check_stream()?;
        let listed = list_shards(&self.client, &self.stream).await;
        listed.map_err(|error| match FailedCall::code(&*error) {
            Some("ResourceNotFoundException") => self.not_found(error),
            _ => self.unreadable(error),
        })
    }
}
