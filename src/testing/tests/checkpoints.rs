//! Checkpoint stores with a fault.

use std::borrow::Cow;

use async_trait::async_trait;
use tokio::task::yield_now;

use super::caught;
use crate::checkpoint::{Checkpoint, CheckpointError, CheckpointStore, Memory, ShardKey};
use crate::checkpoint_conformance;
use crate::record::{Position, ShardId};
use crate::testing::checkpoints::Harness;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// Confirms a checkpoint before it is durable.
    Volatile,
    /// Writes the position first, and the other parts later.
    WritesInParts,
    ForgetsTimestamps,
    LoadsFewerResults,
    ListsFewerShards,
    ListsOtherStreams,
    HasANameOfTwoLines,
}

#[derive(Debug, Clone)]
struct Store {
    inner: Memory,
    fault: Fault,
}

fn harness(fault: Fault) -> Store {
    Store {
        inner: Memory::new(),
        fault,
    }
}

impl Harness for Store {
    type Store = Store;

    async fn open(&self) -> Store {
        match self.fault {
            Fault::Volatile => harness(self.fault),
            _ => self.clone(),
        }
    }
}

#[async_trait]
impl CheckpointStore for Store {
    async fn load(&self, shards: &[ShardKey]) -> Vec<Result<Option<Checkpoint>, CheckpointError>> {
        let mut loaded = self.inner.load(shards).await;
        if self.fault == Fault::LoadsFewerResults {
            loaded.truncate(100);
        }
        loaded
    }

    async fn save(&self, rows: &[(ShardKey, Checkpoint)]) -> Vec<Result<(), CheckpointError>> {
        let mut rows = rows.to_vec();
        if self.fault == Fault::ForgetsTimestamps {
            let is_timestamp = |row: &Checkpoint| matches!(row.position(), Position::AtTimestamp { .. });
            for (_, row) in rows.iter_mut().filter(|(_, row)| is_timestamp(row)) {
                *row = Checkpoint::at(Position::TrimHorizon);
            }
        }
        if self.fault == Fault::WritesInParts {
            let position = |(key, row): &(ShardKey, Checkpoint)| {
                let position = Checkpoint::at(row.position().clone());
                (key.clone(), position)
            };
            let positions: Vec<_> = rows.iter().map(position).collect();
            self.inner.save(&positions).await;
            yield_now().await;
        }
        self.inner.save(&rows).await
    }

    async fn list(
        &self,
        application: &str,
        stream: &str,
    ) -> Result<Option<Vec<(ShardId, Checkpoint)>>, CheckpointError> {
        let mut listed = self.inner.list(application, stream).await?;
        if let Some(listed) = &mut listed {
            match self.fault {
                Fault::ListsFewerShards => listed.truncate(100),
                Fault::ListsOtherStreams => {
                    let other = self.inner.list(application, "payments").await?;
                    listed.extend(other.unwrap_or_default());
                }
                _ => {}
            }
        }
        Ok(listed)
    }

    fn name(&self) -> Cow<'_, str> {
        match self.fault {
            Fault::HasANameOfTwoLines => "one\ntwo".into(),
            _ => self.inner.name(),
        }
    }
}

checkpoint_conformance!(without_a_fault, async { harness(Fault::None) });

caught! { checkpoints, harness,
    volatile_save_is_caught: Fault::Volatile => saved_checkpoints_survive_a_restart, "after a restart";
    save_in_parts_is_caught: Fault::WritesInParts => concurrent_saves_of_a_shard_do_not_mix, "parts of two checkpoints";
    dropped_save_in_parts_is_caught: Fault::WritesInParts => dropped_save_is_whole_or_nothing, "parts of two checkpoints";
    forgotten_timestamp_is_caught: Fault::ForgetsTimestamps => every_position_reads_back, "position reads back";
    missing_result_is_caught: Fault::LoadsFewerResults => many_shards_are_saved_at_once, "one result for each shard";
    incomplete_list_is_caught: Fault::ListsFewerShards => list_returns_the_shards_of_a_stream, "the list has 100 of 300";
    list_of_another_stream_is_caught: Fault::ListsOtherStreams => list_returns_the_shards_of_a_stream, "the list has 301 of 300";
    name_of_two_lines_is_caught: Fault::HasANameOfTwoLines => name_is_fit_for_a_log, "a single line";
}
