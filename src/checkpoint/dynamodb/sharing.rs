//! Even shares: the part of the store that a fleet uses.

use std::time::Duration;

use async_trait::async_trait;

use super::calls::{Change, Written};
use super::{DynamoDb, for_each};
use crate::checkpoint::{
    AnnouncedWorker, AssignedShards, Assigner, CheckpointError, Leadership, LeaseOutcome, ShardKey,
    SharedLease, Sharing,
};
use crate::record::ShardId;

#[async_trait]
impl Sharing for DynamoDb {
    fn worker(&self) -> &str {
        &self.worker
    }

    fn max_leases(&self) -> usize {
        self.max_leases
    }

    fn note_fetched(&self, shard: &ShardKey, bytes: usize) {
        self.holding.note_fetched(shard, bytes);
    }

    async fn announce(&self) -> Result<(), CheckpointError> {
        // A start that cannot use a table fails here, before a shard is read.
        self.table().await?;
        let fleet = self.fleet().await?;
        fleet.leader.ready().await?;
        let leader = fleet.leader.other_leader().await?;
        fleet.workers.announce(leader.as_deref()).await
    }

    async fn withdraw(&self) -> Result<(), CheckpointError> {
        self.fleet().await?.workers.withdraw().await
    }

    async fn assigned(&self, application: &str, stream: &str) -> Result<AssignedShards, CheckpointError> {
        let table = self.table().await?;
        if let Some(shards) = table.assigned().await? {
            return Ok(AssignedShards::new(shards));
        }
        let leases = Sharing::leases(self, application, stream).await?;
        let ours = leases
            .into_iter()
            .filter(|lease| lease.owner.as_deref() == Some(&*self.worker));
        Ok(AssignedShards::new(ours.map(|lease| lease.key.shard).collect()).scanned())
    }

    async fn adopt(&self, shards: &[ShardKey]) -> Vec<Result<LeaseOutcome, CheckpointError>> {
        match self.table().await {
            Ok(table) => self.holding.adopt(table, shards).await,
            Err(error) => for_each(shards, error),
        }
    }

    async fn rows(&self, shards: &[ShardKey]) -> Vec<Result<Option<SharedLease>, CheckpointError>> {
        match self.table().await {
            Ok(table) => {
                let rows = shards.iter().zip(table.read(shards).await);
                rows.map(|(key, row)| Ok(row?.map(|row| row.into_lease(key.clone()))))
                    .collect()
            }
            Err(error) => for_each(shards, error),
        }
    }

    async fn leases(&self, application: &str, stream: &str) -> Result<Vec<SharedLease>, CheckpointError> {
        // The scan reads the whole table, so its key names no shard.
        let stream = ShardKey::new(application, stream, ShardId::from(""));
        let rows = self.table().await?.scan(&stream, false).await?;
        let lease = |(shard, row): (ShardId, super::row::Row)| {
            let (application, stream) = (stream.application.clone(), stream.stream.clone());
            row.into_lease(ShardKey {
                application,
                stream,
                shard,
            })
        };
        Ok(rows.into_iter().map(lease).collect())
    }

    async fn workers(&self) -> Result<Vec<AnnouncedWorker>, CheckpointError> {
        self.fleet().await?.workers.list().await
    }

    async fn forget(&self, worker: &AnnouncedWorker) -> Result<(), CheckpointError> {
        self.fleet().await?.workers.forget(worker).await
    }

    async fn lead(&self, patience: Duration) -> Result<Leadership, CheckpointError> {
        self.fleet().await?.leader.lead(patience).await
    }

    async fn assigner(&self) -> Result<Assigner, CheckpointError> {
        self.fleet().await?.leader.assigner().await
    }

    async fn leader(&self) -> Result<Option<String>, CheckpointError> {
        self.fleet().await?.leader.leader().await
    }

    async fn resign(&self) -> Result<(), CheckpointError> {
        self.fleet().await?.leader.resign().await
    }

    async fn assign(&self, lease: &SharedLease, worker: &str) -> Result<bool, CheckpointError> {
        self.change(lease, Change::assignment(lease, worker)).await
    }

    async fn delete(&self, lease: &SharedLease) -> Result<bool, CheckpointError> {
        self.table().await?.delete(lease).await
    }

    async fn request(&self, lease: &SharedLease, worker: &str) -> Result<bool, CheckpointError> {
        self.change(lease, Change::request(lease, worker)).await
    }
}

impl DynamoDb {
    async fn change(&self, lease: &SharedLease, change: Change) -> Result<bool, CheckpointError> {
        let written = self.table().await?.write(&lease.key, change).await?;
        Ok(matches!(written, Written::Done(_)))
    }
}
