//! The simulated checkpoint store without leases.

use std::fmt;
use std::future::pending;
use std::time::Duration;

use async_trait::async_trait;
use redrive::ShardId;
use redrive::checkpoint::{Checkpoint, CheckpointError, CheckpointStore, ShardKey};
use tokio::time::sleep;

use super::fault::Fault;
use super::world::{World, shard_id};

pub struct Store(pub World);

impl Store {
    /// Simulates the request of a call, which may fail.
    async fn reach(&self) -> Result<(), CheckpointError> {
        let world = &self.0;
        world.contact("store", 0, 0).await;
        sleep(world.latency()).await;
        if world.is_down(Fault::StoreOutage) {
            return Err(CheckpointError::unavailable("down"));
        }
        if world.strikes(Fault::ServerError) || world.strikes(Fault::RequestLost) {
            return Err(CheckpointError::unavailable("internal failure"));
        }
        Ok(())
    }

    /// Simulates the response of a call, which may be lost or never arrive.
    async fn answer(&self) -> Result<(), CheckpointError> {
        let world = &self.0;
        world.contact("stored", 0, 0).await;
        if world.strikes(Fault::Silence) {
            return pending().await;
        }
        if world.strikes(Fault::ResponseLost) {
            return Err(CheckpointError::unavailable("connection reset"));
        }
        Ok(())
    }

    async fn save_one(&self, key: &ShardKey, checkpoint: &Checkpoint) -> Result<(), CheckpointError> {
        let world = &self.0;
        let shard = shard_index(key);
        let checked = world.state().oracle.checkpoint_sent(shard, checkpoint);
        world.check(checked);
        self.reach().await?;
        if world.strikes(Fault::LateWrite) {
            world.save_late(shard, checkpoint.clone());
            return pending().await;
        }
        world.save(shard, checkpoint.clone());
        if world.strikes(Fault::RequestDoubled) {
            world.save(shard, checkpoint.clone());
        }
        self.answer().await
    }
}

fn shard_index(key: &ShardKey) -> usize {
    key.shard
        .as_str()
        .trim_start_matches("shardId-")
        .parse()
        .unwrap_or(0)
}

#[async_trait]
impl CheckpointStore for Store {
    async fn load(&self, shards: &[ShardKey]) -> Vec<Result<Option<Checkpoint>, CheckpointError>> {
        let reached = async {
            self.reach().await?;
            self.answer().await
        };
        if reached.await.is_err() {
            let failed = |_| Err(CheckpointError::unavailable("down"));
            return shards.iter().map(failed).collect();
        }
        shards
            .iter()
            .map(|key| Ok(self.0.load(shard_index(key))))
            .collect()
    }

    async fn save(&self, rows: &[(ShardKey, Checkpoint)]) -> Vec<Result<(), CheckpointError>> {
        let mut results = Vec::new();
        for (key, checkpoint) in rows {
            results.push(self.save_one(key, checkpoint).await);
        }
        results
    }

    async fn list(&self, _: &str, _: &str) -> Result<Option<Vec<(ShardId, Checkpoint)>>, CheckpointError> {
        self.reach().await?;
        self.answer().await?;
        let shards = 0..self.0.plan().shards.len();
        let stored = shards.filter_map(|shard| Some((shard_id(shard).into(), self.0.listed(shard)?)));
        Ok(Some(stored.collect()))
    }

    fn write_interval(&self) -> Duration {
        self.0.plan().write_interval
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Store")
    }
}
