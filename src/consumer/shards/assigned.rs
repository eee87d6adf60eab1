//! The shards that a fleet has assigned to this worker, from their rows: a member of a fleet does not list the
//! stream's shards.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use aws_sdk_kinesis::types::{HashKeyRange, Shard};
use tokio::time::Instant;

use super::discovery::{Discovery, Problem, all_of};
use super::lease_rows::TakenLease;
use super::lineage::Lineage;
use crate::checkpoint::{ShardKey, SharedLease, Sharing};
use crate::consumer::calls::{STORE, answer};
use crate::failure::BoxError;
use crate::record::ShardId;

impl Discovery<'_> {
    /// Returns these shards and their parents, as far as they have rows. A row is created after the rows of the
    /// shard's parents, and deleted when the shard's children are being read: a parent without a row is settled
    /// to its end.
    pub(in crate::consumer) async fn assigned(
        &self,
        sharing: &dyn Sharing,
        shards: &[ShardId],
    ) -> Result<Lineage, Problem> {
        self.refresh_facts().await?;
        let mut found = Lineage::new(Vec::new());
        let rows = self.rows(sharing, shards.iter().cloned(), &mut found).await?;
        let own: BTreeSet<&ShardId> = shards.iter().collect();
        let parents: BTreeSet<&ShardId> = rows.iter().flat_map(|row| &row.parents).collect();
        let parents = parents.difference(&own).map(|&parent| parent.clone());
        let parents = self.rows(sharing, parents, &mut found).await?;
        for row in rows.into_iter().chain(parents) {
            found
                .shards
                .push(shard(&row.key, &row.parents, row.hash_keys.as_ref()));
            found.checkpoints.insert(row.key.shard, row.checkpoint);
        }
        found.set_aside(|checkpoint| self.facts.is_outdated(checkpoint));
        Ok(found)
    }

    async fn rows(
        &self,
        sharing: &dyn Sharing,
        shards: impl Iterator<Item = ShardId>,
        found: &mut Lineage,
    ) -> Result<Vec<SharedLease>, Problem> {
        let keys: Vec<ShardKey> = shards.map(|shard| self.key(shard)).collect();
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let rows = answer(STORE, sharing.rows(&keys)).await;
        let rows = rows
            .and_then(|rows| all_of(rows, keys.len()))
            .map_err(Problem::Passing)?;
        let mut readable = Vec::with_capacity(rows.len());
        for (key, row) in keys.iter().zip(rows) {
            readable.extend(self.readable(&key.shard, row, found)?);
            if found.unreadable.contains(&key.shard) {
                // Listed without a checkpoint: its children wait.
                found.shards.push(shard(key, &[], None));
            }
        }
        Ok(readable)
    }

    /// Takes up these shards, if they are assigned to this worker and no other worker works on them.
    pub(in crate::consumer) async fn adopt(
        &self,
        sharing: &dyn Sharing,
        shards: Vec<ShardId>,
    ) -> Result<Vec<TakenLease>, BoxError> {
        let keys: Vec<ShardKey> = shards.iter().map(|shard| self.key(shard.clone())).collect();
        let asked = Instant::now();
        let taken = answer(STORE, sharing.adopt(&keys)).await?;
        TakenLease::each(shards, asked, taken)
    }
}

/// Returns a shard as a listing would describe it, as far as its row states it.
fn shard(key: &ShardKey, parents: &[ShardId], hash_keys: Option<&RangeInclusive<u128>>) -> Shard {
    let mut parents = parents.iter().map(|parent| parent.as_str().to_owned());
    let shard = Shard::builder()
        .shard_id(key.shard.as_str())
        .set_parent_shard_id(parents.next())
        .set_adjacent_parent_shard_id(parents.next())
        .set_hash_key_range(hash_keys.and_then(range));
    shard.build().expect("a shard has a name")
}

fn range(keys: &RangeInclusive<u128>) -> Option<HashKeyRange> {
    let range = HashKeyRange::builder().starting_hash_key(keys.start().to_string());
    range.ending_hash_key(keys.end().to_string()).build().ok()
}
