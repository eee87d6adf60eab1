//! The part of the lease table in memory that shares the shards among the workers.

use std::collections::BTreeMap;
use std::sync::MutexGuard;
use std::time::Duration;

use async_trait::async_trait;
use tokio::task::yield_now;
use tokio::time::Instant;

use super::lease_table::{FAILOVER, Fault, Row, Worker};
use crate::checkpoint::{
    AnnouncedWorker, AssignedShards, CheckpointError, Leadership, LeaseOutcome, ShardKey, SharedLease,
    Sharing,
};
use crate::record::Position;

/// The announcements and the leader.
#[derive(Debug, Default)]
pub(super) struct Fleet {
    /// The sign of each announced worker.
    announced: BTreeMap<String, u64>,
    announcements: u64,
    /// The leader, and the time of its last call.
    leader: Option<(String, Instant)>,
}

impl Worker {
    fn fleet(&self) -> MutexGuard<'_, Fleet> {
        self.fleet.lock().expect("no panic while locked")
    }

    fn lease(&self, key: &ShardKey, row: &Row) -> SharedLease {
        SharedLease {
            parents: match self.fault {
                Fault::ForgetsParents => Vec::new(),
                _ => row.parents.clone(),
            },
            children: row.children.clone(),
            hash_keys: row.hash_keys.clone(),
            owner: row.owner.clone(),
            handed_over_by: row.handed_over_by.clone(),
            counter: row.counter,
            ..SharedLease::new(key.clone(), row.checkpoint.clone())
        }
    }

    fn has_the_owners_of(row: &Row, lease: &SharedLease) -> bool {
        row.owner == lease.owner && row.handed_over_by == lease.handed_over_by
    }

    /// Returns true if the row is still as it was read.
    fn is_unchanged(&self, lease: &SharedLease) -> bool {
        let rows = self.rows();
        let row = rows.get(&lease.key);
        row.is_some_and(|row| row.counter == lease.counter && Self::has_the_owners_of(row, lease))
    }

    fn adopt_one(&self, shard: &ShardKey) -> LeaseOutcome {
        let Some(row) = self.rows().get(shard).cloned() else {
            return LeaseOutcome::Missing;
        };
        let is_free = row.handed_over_by.is_none() || self.fault == Fault::AdoptsDuringHandOvers;
        let is_ours = row.owner.as_deref() == Some(&*self.name) && is_free;
        if *row.checkpoint.position() == Position::ShardEnd && self.fault == Fault::AdoptsNoEndedShards {
            return LeaseOutcome::Ended;
        }
        match is_ours || self.fault == Fault::AdoptsAnyShard {
            true => self.claim(shard),
            false => LeaseOutcome::Elsewhere {
                owner: row.owner.unwrap_or_else(|| "none".to_owned()),
            },
        }
    }
}

#[async_trait]
impl Sharing for Worker {
    fn worker(&self) -> &str {
        &self.name
    }

    async fn announce(&self) -> Result<(), CheckpointError> {
        let mut fleet = self.fleet();
        fleet.announcements += 1;
        let sign = fleet.announcements;
        if self.fault != Fault::AnnouncesNothing {
            fleet.announced.insert(self.name.clone(), sign);
        }
        Ok(())
    }

    async fn withdraw(&self) -> Result<(), CheckpointError> {
        if self.fault != Fault::WithdrawsNothing {
            self.fleet().announced.remove(&self.name);
        }
        Ok(())
    }

    async fn assigned(&self, _: &str, _: &str) -> Result<AssignedShards, CheckpointError> {
        let rows = self.rows();
        let ours = rows
            .iter()
            .filter(|(_, row)| row.owner.as_deref() == Some(&*self.name));
        Ok(AssignedShards::new(match self.fault {
            Fault::FindsNoShards => Vec::new(),
            _ => ours.map(|(key, _)| key.shard.clone()).collect(),
        }))
    }

    async fn adopt(&self, shards: &[ShardKey]) -> Vec<Result<LeaseOutcome, CheckpointError>> {
        shards.iter().map(|shard| Ok(self.adopt_one(shard))).collect()
    }

    async fn rows(&self, shards: &[ShardKey]) -> Vec<Result<Option<SharedLease>, CheckpointError>> {
        let rows = Worker::rows(self);
        let row = |shard| Ok(rows.get(shard).map(|row| self.lease(shard, row)));
        let mut found: Vec<_> = shards.iter().map(row).collect();
        if self.fault == Fault::ReversesRows {
            found.reverse();
        }
        found
    }

    async fn leases(&self, _: &str, _: &str) -> Result<Vec<SharedLease>, CheckpointError> {
        let rows = Worker::rows(self);
        Ok(rows.iter().map(|(key, row)| self.lease(key, row)).collect())
    }

    async fn workers(&self) -> Result<Vec<AnnouncedWorker>, CheckpointError> {
        let fleet = self.fleet();
        let announced = fleet.announced.iter();
        Ok(announced
            .map(|(name, sign)| AnnouncedWorker::new(name, *sign))
            .collect())
    }

    async fn forget(&self, worker: &AnnouncedWorker) -> Result<(), CheckpointError> {
        let mut fleet = self.fleet();
        let is_unchanged = fleet.announced.get(&worker.name) == Some(&worker.sign);
        if is_unchanged || self.fault == Fault::ForgetsNewAnnouncements {
            fleet.announced.remove(&worker.name);
        }
        Ok(())
    }

    async fn lead(&self, patience: Duration) -> Result<Leadership, CheckpointError> {
        let lasts = match self.fault {
            Fault::LeadsForEver => Duration::MAX,
            Fault::LeadsTooBriefly => Duration::ZERO,
            _ => FAILOVER * 3,
        };
        let seen = self.fleet().leader.clone();
        let other = seen.filter(|(name, called)| *name != self.name && called.elapsed() < lasts);
        if let Some((leader, called)) = other.filter(|_| self.fault != Fault::ManyLead) {
            *self.free_since.lock().expect("no panic while locked") = None;
            return Ok(Leadership::Follower {
                leader: Some(leader),
                is_late: match self.fault {
                    Fault::IsNeverLate => false,
                    Fault::IsAlwaysLate => true,
                    _ => called.elapsed() >= FAILOVER * 3 / 2,
                },
            });
        }
        let is_ours = self
            .fleet()
            .leader
            .as_ref()
            .is_some_and(|(name, _)| *name == self.name);
        let since = *self
            .free_since
            .lock()
            .expect("no panic while locked")
            .get_or_insert_with(Instant::now);
        if !is_ours && since.elapsed() < patience && self.fault != Fault::HasNoPatience {
            return Ok(Leadership::Follower {
                leader: None,
                is_late: false,
            });
        }
        if self.fault == Fault::LeadsInTwoSteps {
            yield_now().await;
        }
        self.fleet().leader = Some((self.name.clone(), Instant::now()));
        Ok(Leadership::Leader)
    }

    async fn leader(&self) -> Result<Option<String>, CheckpointError> {
        Ok(self.fleet().leader.as_ref().map(|(name, _)| name.clone()))
    }

    async fn resign(&self) -> Result<(), CheckpointError> {
        let mut fleet = self.fleet();
        let is_leader = fleet.leader.as_ref().is_some_and(|(name, _)| *name == self.name);
        if is_leader && self.fault != Fault::ResignsNever {
            fleet.leader = None;
        }
        Ok(())
    }

    async fn assign(&self, lease: &SharedLease, worker: &str) -> Result<bool, CheckpointError> {
        if !self.is_unchanged(lease) && self.fault != Fault::AssignsOldRows {
            return Ok(false);
        }
        if self.fault == Fault::AssignsInTwoSteps {
            yield_now().await;
        }
        if let Some(row) = Worker::rows(self).get_mut(&lease.key)
            && self.fault != Fault::AssignsNothing
        {
            row.owner = Some(worker.to_owned());
            row.counter += 1;
            if self.fault != Fault::LeavesHandOversOpen {
                row.handed_over_by = None;
            }
        }
        Ok(true)
    }

    async fn delete(&self, lease: &SharedLease) -> Result<bool, CheckpointError> {
        if !self.is_unchanged(lease) && self.fault != Fault::DeletesChangedRows {
            return Ok(false);
        }
        if self.fault != Fault::DeletesNothing {
            Worker::rows(self).remove(&lease.key);
        }
        Ok(true)
    }

    async fn request(&self, lease: &SharedLease, worker: &str) -> Result<bool, CheckpointError> {
        let mut rows = Worker::rows(self);
        let Some(row) = rows.get_mut(&lease.key) else {
            return Ok(false);
        };
        if !Self::has_the_owners_of(row, lease) && self.fault != Fault::RequestsAgain {
            return Ok(false);
        }
        row.handed_over_by = row.owner.replace(worker.to_owned());
        row.counter += u64::from(self.fault == Fault::RequestsAsTheOwner);
        Ok(true)
    }
}
