//! A lease table in memory, and the stores of several workers that share it.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::oneshot;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep};

use super::fleet_table::Fleet;
use crate::checkpoint::{
    Checkpoint, CheckpointError, CheckpointStore, Holder, LeaseOutcome, Leases, NewShard, Renewal, ShardKey,
    Sharing,
};
use crate::record::{Position, ShardId};
use crate::testing::checkpoints::Harness;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    None,
    AllWorkersHaveOneName,
    WritesWithoutALease,
    NamesChildrenWithoutALease,
    GivesUpForOthers,
    StartsAtTheHorizon,
    KeepsWhatIsGivenUp,
    IgnoresRenewals,
    SavesWithoutASign,
    TakesAtFirstSight,
    NeverTakesOver,
    HoldersTake,
    HoldersDoNotCount,
    CreateOverwrites,
    CreatesChildrenFirst,
    TakesEndedShards,
    TakeCreatesRows,
    SeizeRespectsOwners,
    SeizeRefusesEndedShards,
    /// Reads the row and takes it in two steps.
    TakesInTwoSteps,
    /// Checks the lease before a write. The write of a cancelled call arrives a moment later.
    WritesLate,
    ReversesResults,
    // Faults of the part that shares the shards.
    FindsNoShards,
    AdoptsAnyShard,
    AdoptsDuringHandOvers,
    AdoptsNoEndedShards,
    IgnoresRequests,
    RequestsAsTheOwner,
    RequestsAgain,
    AssignsOldRows,
    AssignsInTwoSteps,
    AssignsNothing,
    LeavesHandOversOpen,
    DeletesChangedRows,
    DeletesNothing,
    ForgetsParents,
    ReversesRows,
    AnnouncesNothing,
    WithdrawsNothing,
    ForgetsNewAnnouncements,
    ManyLead,
    LeadsInTwoSteps,
    ResignsNever,
    LeadsForEver,
    LeadsTooBriefly,
    IsNeverLate,
    IsAlwaysLate,
    HasNoPatience,
}

pub(super) const FAILOVER: Duration = Duration::from_millis(60);

#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) owner: Option<String>,
    /// The worker that hands the shard over to `owner`.
    pub(super) handed_over_by: Option<String>,
    pub(super) counter: u64,
    pub(super) checkpoint: Checkpoint,
    pub(super) parents: Vec<ShardId>,
    pub(super) children: Vec<ShardId>,
    pub(super) hash_keys: Option<RangeInclusive<u128>>,
}

impl Row {
    /// Returns the worker that works on the shard.
    fn holder(&self) -> Option<&str> {
        self.handed_over_by.as_deref().or(self.owner.as_deref())
    }
}

/// The table that the workers of a test share.
#[derive(Debug)]
pub(super) struct Table {
    rows: Arc<Mutex<HashMap<ShardKey, Row>>>,
    fleet: Arc<Mutex<Fleet>>,
    workers: AtomicU64,
    fault: Fault,
}

pub(super) fn table(fault: Fault) -> Table {
    Table {
        rows: Arc::default(),
        fleet: Arc::default(),
        workers: AtomicU64::new(0),
        fault,
    }
}

impl Harness for Table {
    type Store = Worker;

    async fn open(&self) -> Worker {
        let number = match self.fault {
            Fault::AllWorkersHaveOneName => 0,
            _ => self.workers.fetch_add(1, Ordering::Relaxed),
        };
        Worker {
            rows: self.rows.clone(),
            fleet: self.fleet.clone(),
            name: format!("worker-{number}"),
            seen: Mutex::default(),
            free_since: Mutex::default(),
            fault: self.fault,
        }
    }
}

/// The store of one worker.
#[derive(Debug)]
pub(super) struct Worker {
    rows: Arc<Mutex<HashMap<ShardKey, Row>>>,
    pub(super) fleet: Arc<Mutex<Fleet>>,
    pub(super) name: String,
    /// The time since when this worker sees no leader.
    pub(super) free_since: Mutex<Option<Instant>>,
    /// The owner and the counter of other workers' rows, and the time since when they are unchanged.
    seen: Mutex<HashMap<ShardKey, (String, u64, Instant)>>,
    pub(super) fault: Fault,
}

impl Worker {
    pub(super) fn rows(&self) -> MutexGuard<'_, HashMap<ShardKey, Row>> {
        self.rows.lock().expect("no panic while locked")
    }

    fn lost<T>(shard: &ShardKey) -> Result<T, CheckpointError> {
        Err(CheckpointError::LeaseLost {
            shard: shard.shard.clone(),
        })
    }

    fn owns(&self, shard: &ShardKey) -> bool {
        let rows = self.rows();
        let holder = rows.get(shard).and_then(Row::holder);
        holder == Some(&*self.name)
    }

    /// Changes the row if this worker owns it.
    fn write(&self, shard: &ShardKey, change: impl FnOnce(&mut Row)) -> Result<(), CheckpointError> {
        if !self.owns(shard) {
            return Self::lost(shard);
        }
        let mut rows = self.rows();
        let Some(row) = rows.get_mut(shard) else {
            return Self::lost(shard);
        };
        row.counter += 1;
        change(row);
        Ok(())
    }

    /// Returns true if the owner has done nothing for the failover time.
    fn has_left(&self, shard: &ShardKey, owner: &str, counter: u64) -> bool {
        if self.fault == Fault::TakesAtFirstSight {
            return true;
        }
        let mut seen = self.seen.lock().expect("no panic while locked");
        let counter = match self.fault {
            Fault::IgnoresRenewals => 0,
            _ => counter,
        };
        match seen.get(shard) {
            Some((by, at, since)) if by == owner && *at == counter => {
                since.elapsed() >= FAILOVER && self.fault != Fault::NeverTakesOver
            }
            _ => {
                seen.insert(shard.clone(), (owner.to_owned(), counter, Instant::now()));
                false
            }
        }
    }

    /// Makes this worker the owner of a row.
    pub(super) fn claim(&self, shard: &ShardKey) -> LeaseOutcome {
        let mut rows = self.rows();
        let Some(row) = rows.get_mut(shard) else {
            return LeaseOutcome::Missing;
        };
        row.owner = Some(self.name.clone());
        row.handed_over_by = None;
        row.counter += 1;
        LeaseOutcome::Leased(match self.fault {
            Fault::StartsAtTheHorizon => Checkpoint::at(Position::TrimHorizon),
            _ => row.checkpoint.clone(),
        })
    }

    async fn take_one(&self, shard: &ShardKey) -> LeaseOutcome {
        if self.fault == Fault::TakeCreatesRows {
            let new = NewShard::new(shard.clone(), Checkpoint::at(Position::TrimHorizon));
            self.create(&[new]).await;
        }
        let row = self.rows().get(shard).cloned();
        let Some(row) = row else {
            return LeaseOutcome::Missing;
        };
        if *row.checkpoint.position() == Position::ShardEnd && self.fault != Fault::TakesEndedShards {
            return LeaseOutcome::Ended;
        }
        if let Some(owner) = row.owner
            && owner != self.name
            && !self.has_left(shard, &owner, row.counter)
        {
            return LeaseOutcome::Elsewhere { owner };
        }
        if self.fault == Fault::TakesInTwoSteps {
            yield_now().await;
        }
        self.claim(shard)
    }
}

#[async_trait]
impl CheckpointStore for Worker {
    async fn load(&self, shards: &[ShardKey]) -> Vec<Result<Option<Checkpoint>, CheckpointError>> {
        let rows = self.rows();
        let checkpoint = |shard| rows.get(shard).map(|row| row.checkpoint.clone());
        shards.iter().map(|shard| Ok(checkpoint(shard))).collect()
    }

    async fn save(&self, checkpoints: &[(ShardKey, Checkpoint)]) -> Vec<Result<(), CheckpointError>> {
        let mut saved = Vec::new();
        for (shard, checkpoint) in checkpoints {
            let checkpoint = checkpoint.clone();
            saved.push(match self.fault {
                Fault::WritesWithoutALease => {
                    if let Some(row) = self.rows().get_mut(shard) {
                        row.checkpoint = checkpoint;
                    }
                    Ok(())
                }
                Fault::WritesLate if self.owns(shard) => {
                    let (rows, shard) = (self.rows.clone(), shard.clone());
                    let (confirm, confirmed) = oneshot::channel::<()>();
                    let written = tokio::spawn(async move {
                        if confirmed.await.is_err() {
                            sleep(Duration::from_millis(10)).await;
                        }
                        let mut rows = rows.lock().expect("no panic while locked");
                        rows.get_mut(&shard).expect("a row").checkpoint = checkpoint;
                    });
                    yield_now().await;
                    confirm.send(()).expect("the write waits");
                    written.await.expect("written");
                    Ok(())
                }
                _ => self.write(shard, |row| {
                    row.checkpoint = checkpoint;
                    row.counter -= u64::from(self.fault == Fault::SavesWithoutASign);
                }),
            });
        }
        saved
    }

    fn leases(&self) -> Option<&dyn Leases> {
        Some(self)
    }
}

#[async_trait]
impl Leases for Worker {
    fn failover_time(&self) -> Duration {
        FAILOVER
    }

    async fn create(&self, shards: &[NewShard]) -> Vec<Result<(), CheckpointError>> {
        let mut order: Vec<&NewShard> = shards.iter().collect();
        if self.fault == Fault::CreatesChildrenFirst {
            order.reverse();
        }
        for shard in order {
            let row = Row {
                owner: None,
                handed_over_by: None,
                counter: 0,
                checkpoint: shard.checkpoint.clone(),
                parents: shard.parents.clone(),
                children: Vec::new(),
                hash_keys: shard.hash_keys.clone(),
            };
            match self.fault {
                Fault::CreateOverwrites => {
                    self.rows().insert(shard.key.clone(), row);
                }
                _ => {
                    self.rows().entry(shard.key.clone()).or_insert(row);
                }
            }
            yield_now().await;
        }
        shards.iter().map(|_| Ok(())).collect()
    }

    async fn take(&self, shards: &[ShardKey]) -> Vec<Result<LeaseOutcome, CheckpointError>> {
        let mut taken = Vec::new();
        for shard in shards {
            taken.push(Ok(self.take_one(shard).await));
        }
        if self.fault == Fault::ReversesResults {
            taken.reverse();
        }
        taken
    }

    async fn holders(&self, shards: &[ShardKey]) -> Vec<Result<Option<Holder>, CheckpointError>> {
        let holder = |shard: &ShardKey| {
            let row = self.rows().get(shard).cloned()?;
            let owner = row.owner?;
            if self.fault != Fault::HoldersDoNotCount {
                self.has_left(shard, &owner, row.counter);
            }
            if self.fault == Fault::HoldersTake {
                self.claim(shard);
            }
            Some(Holder::new(owner, row.counter))
        };
        shards.iter().map(|shard| Ok(holder(shard))).collect()
    }

    async fn seize(&self, shard: &ShardKey) -> Result<LeaseOutcome, CheckpointError> {
        match self.fault {
            Fault::SeizeRespectsOwners => Ok(self.take_one(shard).await),
            Fault::SeizeRefusesEndedShards => match self.take_one(shard).await {
                LeaseOutcome::Ended => Ok(LeaseOutcome::Ended),
                _ => Ok(self.claim(shard)),
            },
            _ => Ok(self.claim(shard)),
        }
    }

    async fn renew(&self, shard: &ShardKey) -> Result<Renewal, CheckpointError> {
        let mut is_wanted = false;
        let renewed = self.write(shard, |row| is_wanted = row.handed_over_by.is_some());
        Ok(match renewed {
            Ok(()) if is_wanted && self.fault != Fault::IgnoresRequests => Renewal::Wanted,
            Ok(()) => Renewal::Leased,
            Err(_) => Renewal::Lost,
        })
    }

    async fn name_children(&self, shard: &ShardKey, children: &[ShardId]) -> Result<(), CheckpointError> {
        match self.fault {
            Fault::NamesChildrenWithoutALease => Ok(()),
            _ => self.write(shard, |row| row.children = children.to_vec()),
        }
    }

    async fn give_up(&self, shard: &ShardKey) -> Result<(), CheckpointError> {
        match self.fault {
            Fault::GivesUpForOthers => {
                if let Some(row) = self.rows().get_mut(shard) {
                    row.owner = None;
                }
            }
            Fault::KeepsWhatIsGivenUp => {}
            _ => {
                let _ = self.write(shard, |row| {
                    if row.handed_over_by.take().is_none() {
                        row.owner = None;
                    }
                });
            }
        }
        Ok(())
    }

    fn sharing(&self) -> Option<&dyn Sharing> {
        Some(self)
    }
}
