//! Which rows this worker holds, and what it has seen of those that it does not.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use super::calls::{Change, Table, Written};
use super::row::{self, Row};
use crate::checkpoint::{Checkpoint, CheckpointError, Holder, LeaseOutcome, Renewal, ShardKey};
use crate::record::{Position, ShardId};

/// What the clones of a store share.
#[derive(Debug, Default)]
pub(super) struct Holding {
    pub(super) table: OnceCell<Table>,
    shards: Mutex<HashMap<ShardId, Arc<Shard>>>,
}

#[derive(Debug, Default)]
struct Shard {
    /// What the row's counter is while it is held. One write at a time: the next one's condition is what this
    /// one leaves.
    held: tokio::sync::Mutex<Option<u64>>,
    seen: Mutex<Option<Seen>>,
}

/// Another worker's row, as it was first seen like this.
#[derive(Debug)]
struct Seen {
    holder: String,
    counter: u64,
    since: Instant,
}

/// How often in a row a write may find that an earlier one of ours had been done though its answer was lost.
const LOST_ANSWERS: u32 = 3;
/// How often a row may change under one that seizes it. Its holder writes a few times in a failover time.
const SEIZES: u32 = 10;

impl Holding {
    fn shard(&self, shard: &ShardKey) -> Arc<Shard> {
        let mut shards = self.shards.lock().unwrap_or_else(PoisonError::into_inner);
        shards.entry(shard.shard.clone()).or_default().clone()
    }

    pub(super) async fn take(
        &self,
        table: &Table,
        shards: &[ShardKey],
        failover_time: Duration,
    ) -> Vec<Result<LeaseOutcome, CheckpointError>> {
        let rows = table.read(shards).await;
        join_all(shards.iter().zip(rows).map(|(key, row)| async move {
            match row? {
                Some(row) => self.take_row(table, key, row, failover_time).await,
                None => Ok(LeaseOutcome::Missing),
            }
        }))
        .await
    }

    async fn take_row(
        &self,
        table: &Table,
        key: &ShardKey,
        row: Row,
        failover_time: Duration,
    ) -> Result<LeaseOutcome, CheckpointError> {
        if *row.checkpoint.position() == Position::ShardEnd {
            return Ok(LeaseOutcome::Ended);
        }
        let elsewhere = |owner: &str| {
            let owner = owner.to_owned();
            Ok(LeaseOutcome::Elsewhere { owner })
        };
        if let Some(holder) = row.holder().filter(|holder| *holder != &*table.worker)
            && !self.shard(key).has_left(holder, row.counter, failover_time)
        {
            return elsewhere(holder);
        }
        // Free, left, or ours: a take whose answer was lost.
        match self.claim(table, key, &row).await? {
            Some(checkpoint) => Ok(LeaseOutcome::Leased(checkpoint)),
            // Somebody was faster; the next look says who.
            None => elsewhere(row.holder().unwrap_or("another")),
        }
    }

    /// Makes the row ours, if it is still as it was read.
    async fn claim(
        &self,
        table: &Table,
        key: &ShardKey,
        row: &Row,
    ) -> Result<Option<Checkpoint>, CheckpointError> {
        let shard = self.shard(key);
        let mut held = shard.held.lock().await;
        let mut change = Change::of(row.counter);
        change.only_if_still(row::OWNER, row.owner.as_deref().map(row::string));
        change.set(row::OWNER, row::string(&table.worker));
        change.remove(row::CHECKPOINT_OWNER);
        change.set(row::STREAM, row::string(&key.stream));
        if row.owner.as_deref().is_some_and(|owner| owner != &*table.worker) {
            change.add(row::SWITCHES, 1);
        }
        let Written::Done(item) = table.write(key, change).await? else {
            return Ok(None);
        };
        let row = Row::read(key, &item)?;
        *held = Some(row.counter);
        Ok(Some(row.checkpoint))
    }

    pub(super) async fn seize(&self, table: &Table, key: &ShardKey) -> Result<LeaseOutcome, CheckpointError> {
        // A holder that lives may write in between.
        for _ in 0..SEIZES {
            let Some(row) = table.read_one(key).await? else {
                return Ok(LeaseOutcome::Missing);
            };
            if let Some(checkpoint) = self.claim(table, key, &row).await? {
                return Ok(LeaseOutcome::Leased(checkpoint));
            }
        }
        Err(CheckpointError::unavailable("the row changes all the time"))
    }

    pub(super) async fn holders(
        &self,
        table: &Table,
        shards: &[ShardKey],
        failover_time: Duration,
    ) -> Vec<Result<Option<Holder>, CheckpointError>> {
        let rows = table.read(shards).await;
        let held = shards.iter().zip(rows).map(|(key, row)| {
            let Some(row) = row? else { return Ok(None) };
            Ok(row.holder().map(|holder| {
                if holder != &*table.worker {
                    // Only for the time at which it was seen.
                    self.shard(key).has_left(holder, row.counter, failover_time);
                }
                Holder::new(holder, row.counter)
            }))
        });
        held.collect()
    }

    pub(super) async fn renew(&self, table: &Table, key: &ShardKey) -> Result<Renewal, CheckpointError> {
        match self.write(table, key, Change::of).await {
            Ok(row) if row.checkpoint_owner.is_some() => Ok(Renewal::Wanted),
            Ok(_) => Ok(Renewal::Leased),
            Err(CheckpointError::LeaseLost { .. }) => Ok(Renewal::Lost),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn save(
        &self,
        table: &Table,
        checkpoints: &[(ShardKey, Checkpoint)],
    ) -> Vec<Result<(), CheckpointError>> {
        let saves = checkpoints.iter().map(async |(key, checkpoint)| {
            let saved = self.write(table, key, |counter| {
                let mut change = Change::of(counter);
                let (position, sub) = row::columns(checkpoint.position());
                change.set(row::CHECKPOINT, position);
                change.set(row::SUB, sub);
                change.set(row::SWITCHES, row::numeral(0));
                match checkpoint.ahead() {
                    Some(ahead) => change.set(row::AHEAD, row::blob(ahead.to_bytes())),
                    None => change.remove(row::AHEAD),
                }
                match checkpoint.read_until_millis() {
                    Some(millis) => change.set(row::READ_UNTIL, row::numeral(millis)),
                    None => change.remove(row::READ_UNTIL),
                }
                match checkpoint.stream_created_millis() {
                    Some(millis) => change.set(row::STREAM_CREATED, row::numeral(millis)),
                    None => change.remove(row::STREAM_CREATED),
                }
                match checkpoint.starts() {
                    Some(starts) => change.set(row::STARTS, row::string(&starts.to_string())),
                    None => change.remove(row::STARTS),
                }
                row::PENDING.iter().for_each(|column| change.remove(column));
                change
            });
            saved.await.map(drop)
        });
        join_all(saves).await
    }

    pub(super) async fn name_children(
        &self,
        table: &Table,
        key: &ShardKey,
        children: &[ShardId],
    ) -> Result<(), CheckpointError> {
        let Some(children) = row::names(children) else {
            return Ok(());
        };
        let named = self.write(table, key, |counter| {
            let mut change = Change::of(counter);
            change.set(row::CHILDREN, children.clone());
            change
        });
        named.await.map(drop)
    }

    pub(super) async fn give_up(&self, table: &Table, key: &ShardKey) -> Result<(), CheckpointError> {
        // Two ways, and the row may turn from one to the other in between.
        for _ in 0..LOST_ANSWERS {
            let Some(row) = self.look(table, key).await? else {
                return Ok(());
            };
            let handed_over = row.checkpoint_owner.is_some();
            let mut change = Change::of(row.counter);
            change.only_if_still(row::OWNER, row.owner.as_deref().map(row::string));
            change.only_if_still(
                row::CHECKPOINT_OWNER,
                row.checkpoint_owner.as_deref().map(row::string),
            );
            match handed_over {
                true => change.remove(row::CHECKPOINT_OWNER),
                false => change.remove(row::OWNER),
            }
            let shard = self.shard(key);
            let mut held = shard.held.lock().await;
            if let Written::Done(_) = table.write(key, change).await? {
                *held = None;
                return Ok(());
            }
        }
        Err(CheckpointError::unavailable("the row changes all the time"))
    }

    /// The row, if it is ours.
    async fn look(&self, table: &Table, key: &ShardKey) -> Result<Option<Row>, CheckpointError> {
        let shard = self.shard(key);
        let mut held = shard.held.lock().await;
        if held.is_none() {
            return Ok(None);
        }
        let row = table.read_one(key).await?;
        let is_held = |row: &Row| {
            let counter = *held;
            let lost_answer = counter.map(|counter| counter.saturating_add(1));
            row.holder() == Some(&*table.worker) && [counter, lost_answer].contains(&Some(row.counter))
        };
        let ours = row.filter(is_held);
        *held = ours.as_ref().map(|row| row.counter);
        Ok(ours)
    }

    /// Changes a row that is held. The row after it.
    async fn write(
        &self,
        table: &Table,
        key: &ShardKey,
        change: impl Fn(u64) -> Change,
    ) -> Result<Row, CheckpointError> {
        let lost = || CheckpointError::LeaseLost {
            shard: key.shard.clone(),
        };
        let shard = self.shard(key);
        let mut held = shard.held.lock().await;
        for _ in 0..=LOST_ANSWERS {
            let counter = held.ok_or_else(lost)?;
            let mut change = change(counter);
            // During a hand-over the row has another owner already.
            let ours = [row::OWNER, row::CHECKPOINT_OWNER];
            change.only_if_any(&ours, row::string(&table.worker));
            if let Written::Done(item) = table.write(key, change).await? {
                let row = Row::read(key, &item)?;
                *held = Some(row.counter);
                return Ok(row);
            }
            // An earlier write of this holding may have been done though its answer was lost: it raised the counter by one.
            // With any other counter the row was taken since, and given to this worker again: another holding writes to it.
            let row = table.read_one(key).await?;
            let is_lost_answer =
                |row: &Row| row.holder() == Some(&*table.worker) && row.counter == counter.saturating_add(1);
            if !row.as_ref().is_some_and(is_lost_answer) {
                let found = row.as_ref().map(|row| (row.holder(), row.counter));
                tracing::warn!(shard = %key.shard, counter, ?found, "lease lost: its row changed");
            }
            *held = row.filter(is_lost_answer).map(|row| row.counter);
        }
        Err(CheckpointError::unavailable("the row changes all the time"))
    }
}

impl Shard {
    /// Whether the row has been seen like this for the failover time. If it has changed, the time begins anew.
    fn has_left(&self, holder: &str, counter: u64, failover_time: Duration) -> bool {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match &*seen {
            Some(before) if before.holder == holder && before.counter == counter => {
                before.since.elapsed() >= failover_time
            }
            _ => {
                *seen = Some(Seen {
                    holder: holder.to_owned(),
                    counter,
                    since: Instant::now(),
                });
                false
            }
        }
    }
}
