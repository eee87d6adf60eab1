//! The rows that this worker owns, and its observations of the rows that other workers own.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use super::calls::{Change, LeaseTable, Written};
use super::leader::LeaderLock;
use super::row::{self, Row};
use super::throughput::Throughput;
use super::workers::Workers;
use crate::checkpoint::{Checkpoint, CheckpointError, Holder, LastRenewal, LeaseOutcome, Renewal, ShardKey};
use crate::record::{Position, ShardId};
use crate::sabotage::Sabotage;

/// The state that all clones of a store share.
#[derive(Debug, Default)]
pub(super) struct Holding {
    pub(super) table: OnceLock<LeaseTable>,
    pub(super) fleet: OnceCell<FleetTables>,
    shards: Mutex<HashMap<ShardId, Arc<Shard>>>,
}

/// The tables of a fleet.
#[derive(Debug)]
pub(super) struct FleetTables {
    pub(super) workers: Workers,
    pub(super) leader: LeaderLock,
}

#[derive(Debug, Default)]
struct Shard {
    /// The row's counter while this worker owns the row. The lock admits one write at a time, because the
    /// condition of each write is the counter that the previous write left.
    held: tokio::sync::Mutex<Option<u64>>,
    /// The last confirmed write of this worker while it owns the row.
    renewed: Mutex<Option<Renewed>>,
    /// The throughput of the shard since this worker took the row.
    throughput: Mutex<Option<Throughput>>,
    seen: Mutex<Option<Seen>>,
}

/// A confirmed write to a row that this worker owns. Every such write raises the counter, which renews the lease.
#[derive(Debug, Clone, Copy)]
struct Renewed {
    sent: Instant,
    is_wanted: bool,
}

/// Another worker's row, and the time at which this store first saw it in this state.
#[derive(Debug)]
struct Seen {
    holder: String,
    counter: u64,
    since: Instant,
}

/// The maximum number of repetitions of a write after lost answers: each time an earlier write took effect
/// although its answer was lost.
const LOST_ANSWERS: u32 = 3;
/// The maximum number of attempts to seize a row that changes meanwhile. The owner of a row writes a few
/// times per failover time.
const SEIZES: u32 = 10;

impl Holding {
    fn shard(&self, shard: &ShardKey) -> Arc<Shard> {
        let mut shards = self.shards.lock().unwrap_or_else(PoisonError::into_inner);
        shards.entry(shard.shard.clone()).or_default().clone()
    }

    pub(super) async fn take(
        &self,
        table: &LeaseTable,
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
        table: &LeaseTable,
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
        // The row is free, abandoned, or ours after a take whose answer was lost.
        match self.claim(table, key, &row).await? {
            Some(checkpoint) => Ok(LeaseOutcome::Leased(checkpoint)),
            // Another worker was faster; the next call names that worker.
            None => elsewhere(row.holder().unwrap_or("another")),
        }
    }

    /// Makes this worker the owner of the row, if the row is still as it was read.
    async fn claim(
        &self,
        table: &LeaseTable,
        key: &ShardKey,
        row: &Row,
    ) -> Result<Option<Checkpoint>, CheckpointError> {
        let shard = self.shard(key);
        let mut held = shard.held.lock().await;
        let mut change = Change::of(row.counter);
        change.only_if_still(row::OWNER, row.owner.as_deref().map(row::string));
        change.only_if_still(
            row::CHECKPOINT_OWNER,
            row.checkpoint_owner.as_deref().map(row::string),
        );
        change.set(row::OWNER, row::string(&table.worker));
        change.remove(row::CHECKPOINT_OWNER);
        change.set(row::STREAM, row::string(&key.stream));
        if row.owner.as_deref().is_some_and(|owner| owner != &*table.worker) {
            change.add(row::SWITCHES, 1);
        }
        let sent = Instant::now();
        let Written::Done(item) = table.write(key, change).await? else {
            return Ok(None);
        };
        let row = Row::read(key, &item)?;
        *held = Some(row.counter);
        shard.note_renewal(sent, &row);
        *shard.throughput() = Some(Throughput::continued(row.throughput, sent));
        Ok(Some(row.checkpoint))
    }

    /// Takes up the rows that are assigned to this worker and that no other worker works on.
    pub(super) async fn adopt(
        &self,
        table: &LeaseTable,
        shards: &[ShardKey],
    ) -> Vec<Result<LeaseOutcome, CheckpointError>> {
        let rows = table.read(shards).await;
        join_all(shards.iter().zip(rows).map(|(key, row)| async move {
            let Some(row) = row? else {
                return Ok(LeaseOutcome::Missing);
            };
            let is_free = row.checkpoint_owner.is_none() || Sabotage::ReadDuringHandOver.is_committed();
            let is_ours = row.owner.as_deref() == Some(&*table.worker) && is_free;
            let claimed = match is_ours || Sabotage::AdoptAnyRow.is_committed() {
                true => self.claim(table, key, &row).await?,
                false => None,
            };
            Ok(match claimed {
                Some(checkpoint) => LeaseOutcome::Leased(checkpoint),
                None => LeaseOutcome::Elsewhere {
                    owner: row.holder().unwrap_or("none").to_owned(),
                },
            })
        }))
        .await
    }

    pub(super) async fn seize(
        &self,
        table: &LeaseTable,
        key: &ShardKey,
    ) -> Result<LeaseOutcome, CheckpointError> {
        // A living owner may write between the read and the write.
        for _ in 0..SEIZES {
            let Some(row) = table.read_one(key).await? else {
                return Ok(LeaseOutcome::Missing);
            };
            if let Some(checkpoint) = self.claim(table, key, &row).await? {
                return Ok(LeaseOutcome::Leased(checkpoint));
            }
        }
        Err(CheckpointError::unavailable("the lease row keeps changing"))
    }

    pub(super) async fn holders(
        &self,
        table: &LeaseTable,
        shards: &[ShardKey],
        failover_time: Duration,
    ) -> Vec<Result<Option<Holder>, CheckpointError>> {
        let rows = table.read(shards).await;
        let held = shards.iter().zip(rows).map(|(key, row)| {
            let Some(row) = row? else { return Ok(None) };
            Ok(row.holder().map(|holder| {
                if holder != &*table.worker {
                    // Called only to note the time at which the row was seen like this.
                    self.shard(key).has_left(holder, row.counter, failover_time);
                }
                Holder::new(holder, row.counter)
            }))
        });
        held.collect()
    }

    pub(super) async fn renew(&self, table: &LeaseTable, key: &ShardKey) -> Result<Renewal, CheckpointError> {
        match self.write(table, key, Change::of).await {
            Ok(_) if Sabotage::IgnoreRequest.is_committed() => Ok(Renewal::Leased),
            Ok(row) if row.checkpoint_owner.is_some() => Ok(Renewal::Wanted),
            Ok(_) => Ok(Renewal::Leased),
            Err(CheckpointError::LeaseLost { .. }) => Ok(Renewal::Lost),
            Err(error) => Err(error),
        }
    }

    pub(super) fn last_renewal(&self, key: &ShardKey) -> Option<LastRenewal> {
        let shard = self.shard(key);
        let renewed = *shard.renewed.lock().unwrap_or_else(PoisonError::into_inner);
        renewed.map(|renewed| LastRenewal {
            age: renewed.sent.elapsed(),
            is_wanted: renewed.is_wanted && !Sabotage::IgnoreRequest.is_committed(),
        })
    }

    pub(super) fn note_fetched(&self, key: &ShardKey, bytes: usize) {
        if let Some(throughput) = &mut *self.shard(key).throughput() {
            throughput.note_fetched(bytes);
        }
    }

    pub(super) async fn save(
        &self,
        table: &LeaseTable,
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
        table: &LeaseTable,
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

    pub(super) async fn give_up(&self, table: &LeaseTable, key: &ShardKey) -> Result<(), CheckpointError> {
        // The owner releases the row or hands it over, and the row may change from one case to the other
        // meanwhile.
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
                shard.forget_renewal();
                return Ok(());
            }
        }
        Err(CheckpointError::unavailable("the lease row keeps changing"))
    }

    /// Reads the row. Returns `None` if this worker does not own it.
    async fn look(&self, table: &LeaseTable, key: &ShardKey) -> Result<Option<Row>, CheckpointError> {
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

    /// Changes a row that this worker owns, and returns the row after the change.
    async fn write(
        &self,
        table: &LeaseTable,
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
            // During a hand-over, `leaseOwner` is the other worker already.
            let ours = [row::OWNER, row::CHECKPOINT_OWNER];
            change.only_if_any(&ours, row::string(&table.worker));
            let sent = Instant::now();
            let average = shard
                .throughput()
                .as_mut()
                .and_then(|throughput| throughput.average(sent));
            if let Some(average) = average {
                change.set(row::THROUGHPUT, row::kib_per_second(average));
            }
            if let Written::Done(item) = table.write(key, change).await? {
                let row = Row::read(key, &item)?;
                *held = Some(row.counter);
                shard.note_renewal(sent, &row);
                return Ok(row);
            }
            // An earlier write under this lease may have taken effect although its answer was lost: that
            // write raised the counter by one. Any other counter means that the row was taken meanwhile. If
            // this worker is its owner again, another lease of this worker writes to the row.
            let row = table.read_one(key).await?;
            let is_lost_answer =
                |row: &Row| row.holder() == Some(&*table.worker) && row.counter == counter.saturating_add(1);
            if !row.as_ref().is_some_and(is_lost_answer) {
                let found = row.as_ref().map(|row| (row.holder(), row.counter));
                // The consumer reports the loss of a lease whose shard it reads.
                tracing::debug!(shard = %key.shard, counter, ?found, "lease lost: its row changed");
                shard.forget_renewal();
            }
            *held = row.filter(is_lost_answer).map(|row| row.counter);
        }
        Err(CheckpointError::unavailable("the lease row keeps changing"))
    }
}

impl Shard {
    fn throughput(&self) -> MutexGuard<'_, Option<Throughput>> {
        self.throughput.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_renewal(&self, sent: Instant, row: &Row) {
        let is_wanted = row.checkpoint_owner.is_some();
        let mut renewed = self.renewed.lock().unwrap_or_else(PoisonError::into_inner);
        *renewed = Some(Renewed { sent, is_wanted });
    }

    fn forget_renewal(&self) {
        *self.renewed.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Returns true if the row has not changed for the failover time. A change restarts the time.
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
