//! The leader's task: becomes the leader if there is none, and assigns the shards to living workers.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use rand::rngs::SmallRng;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use self::term::Term;
use super::finished::is_finished;
use super::plan::Step;
use super::sightings::Sightings;
use super::{Repeated, Shared, call, jittered};
use crate::checkpoint::{AnnouncedWorker, Leadership, SharedLease, Sharing};
use crate::failure::BoxError;
use crate::observer::FleetEvent;
use crate::record::ShardId;

mod term;

/// The time for which a free leadership is left to a living worker of KCL, which looks for one every 30 s.
const HEAD_START: Duration = Duration::from_secs(45);
/// The number of failed runs after which the leader resigns.
const FAILED_RUNS: u32 = 3;
/// The time for which the row of a shard that has ended stays unchanged before it is deleted (KCL looks as often).
const DELETED_AFTER: Duration = Duration::from_secs(5 * 60);
/// The number of rows that are deleted in one run.
const MOST_DELETED: usize = 20;

/// The rows of the fleet.
type ByShard<'a> = HashMap<&'a ShardId, &'a SharedLease>;

pub(super) struct Leader {
    shared: Arc<Shared>,
    leaving: CancellationToken,
    leading: Repeated,
    watching: Repeated,
    running: Repeated,
    /// The memory of a leader. `None`: another worker is the leader.
    term: Option<Term>,
    /// The rows as this worker has seen them while the leader is late. `None`: the leader is not late.
    watched: Option<Watched>,
    /// True if no leader is known.
    is_vacant: bool,
    rng: SmallRng,
}

/// The rows as a worker sees them that may become the leader.
struct Watched {
    sightings: Sightings,
    /// The time of the last scan. A fleet has many workers that watch, so each scans less often than a leader.
    scanned: Instant,
}

impl Leader {
    pub(super) fn new(shared: Arc<Shared>, leaving: CancellationToken, mut rng: SmallRng) -> Self {
        Leader {
            shared,
            leaving,
            leading: Repeated::new("become the leader", &mut rng),
            watching: Repeated::new("read the leases", &mut rng),
            running: Repeated::new("assign the shards", &mut rng),
            term: None,
            watched: None,
            is_vacant: true,
            rng,
        }
    }

    pub(super) async fn run(mut self) {
        let (shared, leaving) = (self.shared.clone(), self.leaving.clone());
        let Some(sharing) = shared.sharing() else { return };
        while !leaving.is_cancelled() {
            self.take_turn(sharing).await;
            // A leader looks often enough to notice a dead worker in little more than the failover time.
            let interval = match self.term.is_some() || self.watched.is_some() {
                true => shared.failover_time / 4,
                false => shared.failover_time,
            };
            let interval = jittered(interval, &mut self.rng);
            tokio::select! {
                biased;
                () = leaving.cancelled() => {}
                () = shared.run.notified() => {}
                () = sleep(interval) => {}
            }
        }
        if self.term.is_some() {
            // Its shards are released: the other workers get them now.
            self.assign(sharing).await;
            let _ = call(sharing.resign()).await;
            self.set_leader(sharing, false);
        }
    }

    async fn take_turn(&mut self, sharing: &dyn Sharing) {
        let was_vacant = self.is_vacant;
        let mut led = self.lead(sharing).await;
        if !was_vacant && matches!(led, Ok(Leadership::Follower { leader: None, .. })) {
            // The leadership has become free.
            self.is_vacant = true;
            led = self.lead(sharing).await;
        }
        match self.leading.note(led, &self.shared) {
            Some(Leadership::Leader) => self.set_leader(sharing, true),
            Some(Leadership::Follower { leader, is_late }) => {
                self.is_vacant = leader.is_none();
                self.set_leader(sharing, false);
                match self.is_vacant || is_late {
                    true => self.watch(sharing).await,
                    false => self.watched = None,
                }
            }
            // The leadership may be lost. That costs balance at most.
            None => {}
        }
        if self.term.is_none() {
            return;
        }
        self.assign(sharing).await;
        if self.running.failures() >= FAILED_RUNS {
            // Another worker may be able to read and write.
            let _ = call(sharing.resign()).await;
            self.set_leader(sharing, false);
        }
    }

    async fn lead(&self, sharing: &dyn Sharing) -> Result<Leadership, BoxError> {
        let patience = match (self.term.is_some(), self.is_vacant) {
            (true, _) => Duration::ZERO,
            // Whether a worker of KCL lives is read only when the leadership is free.
            (false, false) => HEAD_START,
            (false, true) => head_start(&call(sharing.workers()).await.unwrap_or_default()),
        };
        call(sharing.lead(patience)).await
    }

    fn set_leader(&mut self, sharing: &dyn Sharing, is_leader: bool) {
        if is_leader == self.term.is_some() {
            return;
        }
        let worker = sharing.worker();
        let now = Instant::now();
        let watched = self.watched.take();
        self.term = is_leader.then(|| {
            let sightings = watched.map(|watched| watched.sightings);
            Term::new(
                sightings.unwrap_or_else(|| Sightings::new(self.shared.failover_time)),
                now,
            )
        });
        self.shared.report(match is_leader {
            true => FleetEvent::LeaderGained { worker },
            false => FleetEvent::LeaderLost { worker },
        });
        self.shared.view.send_modify(|view| view.is_leader = is_leader);
    }

    /// Notes which leases are renewed, because this worker may become the leader.
    async fn watch(&mut self, sharing: &dyn Sharing) {
        let failover_time = self.shared.failover_time;
        let last = self.watched.as_ref().map(|watched| watched.scanned);
        if last.is_some_and(|last| last.elapsed() < failover_time / 2) {
            return;
        }
        let read = call(sharing.leases(&self.shared.application, &self.shared.stream)).await;
        let Some(leases) = self.watching.note(read, &self.shared) else {
            return;
        };
        let now = Instant::now();
        let watched = self.watched.get_or_insert_with(|| Watched {
            sightings: Sightings::new(failover_time),
            scanned: now,
        });
        watched.sightings.watch(&leases, now);
        watched.scanned = now;
    }

    /// Looks at the fleet, and makes and carries out a plan.
    async fn assign(&mut self, sharing: &dyn Sharing) {
        let Some((leases, workers)) = self.read(sharing).await else {
            return;
        };
        let now = Instant::now();
        self.ask_for_assigner(sharing, now).await;
        let Some(term) = &mut self.term else { return };
        term.observe(&leases, &workers, now, &self.shared);
        if term.is_survey_due(&leases, now) {
            self.shared.view.send_modify(|view| view.surveys += 1);
        }
        let steps = term.plan(&leases, &workers, now);
        let by_shard = leases.iter().map(|lease| (&lease.key.shard, lease)).collect();
        let result = self.carry_out(sharing, &steps, &by_shard, now).await;
        self.running.note(result, &self.shared);
        self.delete_finished(sharing, &leases, &by_shard, now).await;
        let to_me = |step: &Step| matches!(step, Step::Assign { to, .. } if **to == *sharing.worker());
        if steps.iter().any(to_me) {
            self.shared.look.notify_one();
        }
    }

    /// Reads the rows and the announcements, and deletes announcements of workers that are long gone.
    async fn read(&mut self, sharing: &dyn Sharing) -> Option<(Vec<SharedLease>, Vec<AnnouncedWorker>)> {
        let (application, stream) = (&self.shared.application, &self.shared.stream);
        let read = tokio::join!(call(sharing.leases(application, stream)), call(sharing.workers()));
        let read = match read {
            (Ok(leases), Ok(workers)) => Ok((leases, workers)),
            (Err(error), _) | (_, Err(error)) => Err(error),
        };
        let (leases, mut workers) = self.running.note(read, &self.shared)?;
        if self.leaving.is_cancelled() {
            // The scan may be older than the withdrawal of this worker.
            workers.retain(|worker| worker.name != sharing.worker());
        }
        for gone in workers.iter().filter(|worker| worker.is_gone) {
            // The next run repeats a call that fails.
            let _ = call(sharing.forget(gone)).await;
        }
        Some((leases, workers))
    }

    async fn ask_for_assigner(&mut self, sharing: &dyn Sharing, now: Instant) {
        let Some(term) = self.term.as_mut().filter(|term| term.is_assigner_due(now)) else {
            return;
        };
        let assigner = call(sharing.assigner()).await;
        if let Some(assigner) = self.running.note(assigner, &self.shared) {
            term.note_assigner(assigner, now);
        }
    }

    async fn carry_out(
        &self,
        sharing: &dyn Sharing,
        steps: &[Step],
        leases: &ByShard<'_>,
        now: Instant,
    ) -> Result<(), BoxError> {
        let shared = &self.shared;
        let is_stuck = |lease| {
            self.term
                .as_ref()
                .is_some_and(|term| term.sightings.is_stuck(lease, now))
        };
        let taken = steps.iter().map(async |step| {
            let (Step::Assign { shard, to } | Step::Move { shard, to, .. }) = step;
            let lease = leases[shard];
            if is_stuck(lease)
                && let Some(from) = lease.holder()
            {
                shared.report(FleetEvent::HandOverForced { shard, from });
            }
            // A row that has changed is checked in the next run.
            match step {
                Step::Assign { .. } => {
                    if call(sharing.assign(lease, to)).await? {
                        shared.report(FleetEvent::LeaseAssigned { shard, to });
                    }
                }
                Step::Move { from, .. } => {
                    if call(sharing.request(lease, to)).await? {
                        shared.report(FleetEvent::HandOverRequested { shard, from, to });
                    }
                }
            }
            Ok(())
        });
        join_all(taken).await.into_iter().collect()
    }

    /// Deletes rows of shards that have ended and that are not needed any more.
    async fn delete_finished(
        &mut self,
        sharing: &dyn Sharing,
        leases: &[SharedLease],
        by_shard: &ByShard<'_>,
        now: Instant,
    ) {
        let Some(term) = &self.term else { return };
        let finished = leases.iter().filter(|lease| {
            let is_free = lease.owner.is_none() && term.sightings.is_untouched_for(lease, DELETED_AFTER, now);
            is_free && is_finished(lease, by_shard)
        });
        // The order does not matter: the rows of children are deleted in a later run.
        for lease in finished.take(MOST_DELETED) {
            let deleted = call(sharing.delete(lease)).await;
            self.running.note(deleted, &self.shared);
        }
    }
}

/// Returns the time for which a free leadership is left to the living workers of KCL, if there are any.
fn head_start(workers: &[AnnouncedWorker]) -> Duration {
    let is_other = |worker: &AnnouncedWorker| worker.is_recent && !worker.is_native;
    match workers.iter().any(is_other) {
        true => HEAD_START,
        false => Duration::ZERO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_leadership_is_left_to_a_living_worker_of_kcl() {
        let native = AnnouncedWorker::new("redrive", 1);
        let java = AnnouncedWorker {
            is_native: false,
            ..AnnouncedWorker::new("java", 1)
        };
        let failed = AnnouncedWorker {
            is_recent: false,
            ..java.clone()
        };
        assert_eq!(head_start(&[]), Duration::ZERO);
        assert_eq!(head_start(&[native.clone(), failed]), Duration::ZERO);
        assert_eq!(head_start(&[native, java]), HEAD_START);
    }
}
