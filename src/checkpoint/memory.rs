//! A checkpoint store in memory, for tests.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use super::{Checkpoint, CheckpointError, CheckpointStore, ShardKey};
use crate::record::ShardId;

/// Keeps checkpoints in memory. They are lost with the process: a restart begins at the trim horizon. Clones
/// share the checkpoints.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    rows: Arc<Mutex<HashMap<ShardKey, Checkpoint>>>,
}

impl Memory {
    /// Creates an empty store.
    pub fn new() -> Self {
        Memory::default()
    }

    fn rows(&self) -> MutexGuard<'_, HashMap<ShardKey, Checkpoint>> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl CheckpointStore for Memory {
    async fn load(&self, shards: &[ShardKey]) -> Vec<Result<Option<Checkpoint>, CheckpointError>> {
        let rows = self.rows();
        shards.iter().map(|shard| Ok(rows.get(shard).cloned())).collect()
    }

    async fn list(
        &self,
        application: &str,
        stream: &str,
    ) -> Result<Option<Vec<(ShardId, Checkpoint)>>, CheckpointError> {
        let rows = self.rows();
        let own = rows
            .iter()
            .filter(|(key, _)| &*key.application == application && &*key.stream == stream);
        Ok(Some(
            own.map(|(key, row)| (key.shard.clone(), row.clone())).collect(),
        ))
    }

    async fn save(&self, checkpoints: &[(ShardKey, Checkpoint)]) -> Vec<Result<(), CheckpointError>> {
        let mut rows = self.rows();
        checkpoints
            .iter()
            .map(|(shard, checkpoint)| {
                rows.insert(shard.clone(), checkpoint.clone());
                Ok(())
            })
            .collect()
    }

    fn name(&self) -> Cow<'_, str> {
        "memory".into()
    }
}
