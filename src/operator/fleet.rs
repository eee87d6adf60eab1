//! Shows the workers that share the shards of a stream.

use std::collections::BTreeMap;

use super::{OperatorError, Shards};
use crate::checkpoint::{AnnouncedWorker, Sharing};
use crate::record::Position;

/// The workers that share the shards of a stream, as the checkpoint store knows them.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FleetStatus {
    /// The workers in the order of their names: those that have announced themselves, and those that own a
    /// shard.
    pub workers: Vec<WorkerStatus>,
}

/// A worker that shares the shards of a stream, or that owns one.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkerStatus {
    /// The name of the worker in the checkpoint store.
    pub name: String,
    /// The number of open shards that the worker works on. A shard that is being handed over counts for the
    /// worker that hands it over.
    pub open_shards: usize,
    /// The last announcement of the worker.
    pub announcement: Announcement,
    /// The maximum number of open shards that the worker takes, if it has stated one.
    pub max_leases: Option<usize>,
    /// True if the announcement is that of a worker of this crate. False for a worker of KCL, and for one that
    /// has not announced itself.
    pub is_native: bool,
    /// True for the leader, which may have failed a moment ago.
    pub is_leader: bool,
}

/// The last announcement of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Announcement {
    /// The announcement is at most a minute old, by the wall clocks of the two machines.
    Recent,
    /// The announcement is older. The worker has stopped or failed, and gets no more shards.
    Old,
    /// The announcement is recent and states that the worker takes no more shards.
    Stopping,
    /// There is none: the worker does not share its shards, or has withdrawn its announcement to stop.
    Missing,
}

impl Announcement {
    fn of(worker: &AnnouncedWorker) -> Self {
        match (worker.is_recent, worker.is_stopping) {
            (false, _) => Announcement::Old,
            (true, true) => Announcement::Stopping,
            (true, false) => Announcement::Recent,
        }
    }
}

impl FleetStatus {
    /// Returns the leader, which assigns the shards. `None` if no worker is the leader.
    pub fn leader(&self) -> Option<&WorkerStatus> {
        self.workers.iter().find(|worker| worker.is_leader)
    }

    /// Returns the worker with this name.
    pub(super) fn worker(&self, name: &str) -> Option<&WorkerStatus> {
        self.workers.iter().find(|worker| worker.name == name)
    }
}

impl WorkerStatus {
    pub(super) fn new(name: &str) -> Self {
        WorkerStatus {
            name: name.to_owned(),
            open_shards: 0,
            announcement: Announcement::Missing,
            max_leases: None,
            is_native: false,
            is_leader: false,
        }
    }

    /// Returns true if the announcement of the worker is recent.
    pub(super) fn is_recent(&self) -> bool {
        matches!(self.announcement, Announcement::Recent | Announcement::Stopping)
    }

    /// Returns true if the worker takes shards.
    pub fn takes_shards(&self) -> bool {
        self.announcement == Announcement::Recent
    }
}

impl Shards {
    /// Returns the workers that share the shards of the stream. `None` if the checkpoint store does not share
    /// its shards. The result may be a few seconds old.
    ///
    /// This operator neither announces itself as a worker nor becomes the leader.
    pub async fn fleet(&self) -> Result<Option<FleetStatus>, OperatorError> {
        self.check_stream()?;
        match self.sharing() {
            Some(sharing) => Ok(Some(self.fleet_of(sharing).await?)),
            None => Ok(None),
        }
    }

    pub(super) fn sharing(&self) -> Option<&dyn Sharing> {
        self.store.leases()?.sharing()
    }

    pub(super) async fn fleet_of(&self, sharing: &dyn Sharing) -> Result<FleetStatus, OperatorError> {
        let stream = self.stream.shared_name();
        let (leases, announced, leader) = tokio::try_join!(
            sharing.leases(&self.application, &stream),
            sharing.workers(),
            sharing.leader()
        )?;
        let mut workers: BTreeMap<String, WorkerStatus> = BTreeMap::new();
        for worker in &announced {
            let status = entry(&mut workers, &worker.name);
            status.announcement = Announcement::of(worker);
            status.max_leases = worker.max_leases;
            status.is_native = worker.is_native;
        }
        for lease in &leases {
            let Some(holder) = lease.holder() else { continue };
            let is_open = *lease.checkpoint.position() != Position::ShardEnd;
            entry(&mut workers, holder).open_shards += usize::from(is_open);
        }
        if let Some(leader) = &leader {
            entry(&mut workers, leader).is_leader = true;
        }
        Ok(FleetStatus {
            workers: workers.into_values().collect(),
        })
    }
}

fn entry<'a>(workers: &'a mut BTreeMap<String, WorkerStatus>, name: &str) -> &'a mut WorkerStatus {
    workers
        .entry(name.to_owned())
        .or_insert_with(|| WorkerStatus::new(name))
}
