//! The member's task: announces this worker, finds the shards that are assigned to it, and renews leases whose
//! shards are not read.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::SmallRng;
use tokio::time::{Instant, sleep};

use super::finished::is_finished;
use super::{Repeated, Shared, call, jittered};
use crate::checkpoint::{Leases, Renewal, ShardKey, SharedLease, Sharing};
use crate::consumer::calls::{STORE, answer};
use crate::observer::FleetEvent;
use crate::record::{Position, ShardId};

/// The interval between announcements (KCL's default).
const ANNOUNCE: Duration = Duration::from_secs(30);

/// The interval between looks for rows that may be deleted (KCL's default).
const FINISHED: Duration = Duration::from_secs(60);

pub(super) struct Member {
    shared: Arc<Shared>,
    announcing: Repeated,
    looking: Repeated,
    renewing: Repeated,
    announced: Option<Instant>,
    is_index_missing: bool,
    /// The last look for rows that may be deleted.
    looked: Option<Instant>,
    rng: SmallRng,
}

impl Member {
    pub(super) fn new(shared: Arc<Shared>, mut rng: SmallRng) -> Self {
        Member {
            shared,
            announcing: Repeated::new("announce this worker", &mut rng),
            looking: Repeated::new("find the assigned shards", &mut rng),
            renewing: Repeated::new("renew a lease", &mut rng),
            announced: None,
            is_index_missing: false,
            looked: None,
            rng,
        }
    }

    pub(super) async fn run(mut self) {
        let shared = self.shared.clone();
        let Some(leases) = shared.leases() else { return };
        let Some(sharing) = leases.sharing() else { return };
        loop {
            self.announce(sharing).await;
            self.look(sharing).await;
            self.renew_kept(leases).await;
            self.delete_finished(sharing).await;
            let interval = jittered(shared.failover_time / 3, &mut self.rng);
            tokio::select! {
                biased;
                () = shared.look.notified() => {}
                () = sleep(interval) => {}
            }
        }
    }

    async fn announce(&mut self, sharing: &dyn Sharing) {
        if self.announced.is_some_and(|at| at.elapsed() < ANNOUNCE) {
            return;
        }
        let now = Instant::now();
        let announced = call(sharing.announce()).await;
        if self.announcing.note(announced, &self.shared).is_some() {
            self.announced = Some(now);
        }
    }

    async fn look(&mut self, sharing: &dyn Sharing) {
        let found = call(sharing.assigned(&self.shared.application, &self.shared.stream)).await;
        let Some(found) = self.looking.note(found, &self.shared) else {
            return;
        };
        if found.scanned && !self.is_index_missing {
            self.is_index_missing = true;
            self.shared.report(FleetEvent::IndexMissing);
        }
        let assigned: BTreeSet<ShardId> = found.shards.into_iter().collect();
        self.shared.view.send_if_modified(|view| {
            let is_new = view.assigned != assigned;
            view.assigned = assigned;
            is_new
        });
    }

    /// Deletes the rows of shards that have ended and that are not needed any more. KCL's leader assigns such
    /// shards like any other, and their owner deletes the row.
    async fn delete_finished(&mut self, sharing: &dyn Sharing) {
        let kept: Vec<ShardKey> = self
            .shared
            .kept()
            .iter()
            .map(|shard| self.shared.key(shard.clone()))
            .collect();
        if kept.is_empty() || self.looked.is_some_and(|at| at.elapsed() < FINISHED) {
            return;
        }
        self.looked = Some(Instant::now());
        let found = self.rows(sharing, &kept).await;
        let ended = found
            .iter()
            .filter(|row| *row.checkpoint.position() == Position::ShardEnd);
        for row in ended {
            let relatives = row.children.iter().chain(&row.parents);
            let relatives: Vec<ShardKey> = relatives.map(|shard| self.shared.key(shard.clone())).collect();
            let relatives = match relatives.is_empty() {
                true => Vec::new(),
                false => self.rows(sharing, &relatives).await,
            };
            let by_shard = relatives.iter().map(|row| (&row.key.shard, row)).collect();
            if row.owner.as_deref() == Some(sharing.worker()) && is_finished(row, &by_shard) {
                let deleted = call(sharing.delete(row)).await;
                if self.renewing.note(deleted, &self.shared) == Some(true) {
                    self.shared.kept().remove(&row.key.shard);
                }
            }
        }
    }

    /// Returns the readable ones of these rows.
    async fn rows(&self, sharing: &dyn Sharing, keys: &[ShardKey]) -> Vec<SharedLease> {
        let rows = answer(STORE, sharing.rows(keys)).await.unwrap_or_default();
        rows.into_iter().filter_map(|row| row.ok().flatten()).collect()
    }

    /// Renews the leases whose shards this worker does not read, and hands over those that are requested.
    async fn renew_kept(&mut self, leases: &dyn Leases) {
        let kept: Vec<ShardId> = self.shared.kept().iter().cloned().collect();
        for shard in kept {
            // The shard may be read by now.
            if !self.shared.kept().contains(&shard) {
                continue;
            }
            let renewed = call(leases.renew(&self.shared.key(shard.clone()))).await;
            match self.renewing.note(renewed, &self.shared) {
                Some(Renewal::Wanted) if self.shared.kept().contains(&shard) => {
                    self.shared.give_up(&shard).await;
                }
                Some(Renewal::Lost) => drop(self.shared.kept().remove(&shard)),
                Some(Renewal::Leased | Renewal::Wanted) | None => {}
            }
        }
    }
}
