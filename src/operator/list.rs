//! Where an application stands in each shard.

use aws_sdk_kinesis::types::Shard;

use super::{OperatorError, Shards};
use crate::aws::FailedCall;
use crate::aws::shard_list::{is_closed, list_shards, parents};
use crate::checkpoint::{Checkpoint, CheckpointError, Holder, ShardKey};
use crate::record::ShardId;

/// A shard that the stream has, and where the application stands in it.
#[derive(Debug)]
#[non_exhaustive]
pub struct ShardStatus {
    /// The shard.
    pub shard: ShardId,
    /// Those that it came of, also such as the stream has no more.
    pub parents: Vec<ShardId>,
    /// Whether nothing is put into it any more, as it was split or merged.
    pub closed: bool,
    /// How far it is settled. `None` if nothing is stored of it; an error if what is stored cannot be understood.
    pub checkpoint: Result<Option<Checkpoint>, CheckpointError>,
    /// Who holds it, alive or not. `None` if nobody does, or the store has no leases.
    pub holder: Option<Holder>,
}

impl Shards {
    /// The stream's shards, in the order of their names. Nothing is taken or moved.
    pub async fn list(&self) -> Result<Vec<ShardStatus>, OperatorError> {
        let shards = self.listed().await?;
        let keys: Vec<ShardKey> = shards
            .iter()
            .map(|shard| self.key(shard.shard_id().into()))
            .collect();
        let stored = self.store.load(&keys).await;
        let holders = match self.store.leases() {
            Some(leases) => leases.holders(&keys).await,
            None => keys.iter().map(|_| Ok(None)).collect(),
        };
        if stored.len() != keys.len() || holders.len() != keys.len() {
            let error = "the store did not give one result for each shard";
            return Err(CheckpointError::unavailable(error).into());
        }
        let rows = shards.iter().zip(keys).zip(stored.into_iter().zip(holders));
        rows.map(|((shard, key), (stored, holder))| {
            let (checkpoint, holder) = match (stored, holder) {
                // Of the store, and not of this row.
                (Err(error @ CheckpointError::Unavailable(_)), _)
                | (_, Err(error @ CheckpointError::Unavailable(_))) => return Err(error.into()),
                (Err(error), _) | (_, Err(error)) => (Err(error), None),
                (Ok(checkpoint), Ok(holder)) => (Ok(checkpoint), holder),
            };
            Ok(ShardStatus {
                shard: key.shard,
                parents: parents(shard).map(ShardId::from).collect(),
                closed: is_closed(shard),
                checkpoint,
                holder,
            })
        })
        .collect()
    }

    /// The shards that came of this one.
    pub(super) async fn children(&self, of: &ShardId) -> Result<Vec<ShardId>, OperatorError> {
        let shards = self.listed().await?;
        let children = shards
            .iter()
            .filter(|shard| parents(shard).any(|it| it == of.as_str()));
        Ok(children.map(|shard| shard.shard_id().into()).collect())
    }

    async fn listed(&self) -> Result<Vec<Shard>, OperatorError> {
        let listed = list_shards(&self.client, &self.stream).await;
        listed.map_err(|error| match FailedCall::code(&*error) {
            Some("ResourceNotFoundException") => self.not_found(error),
            _ => self.unreadable(error),
        })
    }
}
