//! The memory of a leader, and its decisions.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::Instant;

use crate::checkpoint::{AnnouncedWorker, Assigner, SharedLease};
use crate::consumer::fleet::Shared;
use crate::consumer::fleet::plan::{Owner, PlannedLease, PlannedWorker, Planner, Step, WorkerName};
use crate::consumer::fleet::sightings::Sightings;
use crate::consumer::fleet::taker;
use crate::observer::FleetEvent;
use crate::record::{Position, ShardId};

/// The time between two surveys of the stream's shards, if the rows cover all hash keys.
const SURVEY: Duration = Duration::from_secs(5 * 60);
/// The time between two looks at the state of KCL's migration (KCL's default).
const ASSIGNER: Duration = Duration::from_secs(60);
/// The number of runs in a row after which uncovered hash keys call for a survey.
const UNCOVERED_RUNS: u32 = 2;

/// The time during which this worker is the leader.
pub(super) struct Term {
    pub(super) sightings: Sightings,
    planner: Planner,
    /// The time of the next run that may move leases.
    next_moves: Instant,
    next_survey: Instant,
    uncovered_runs: u32,
    assigner: Assigner,
    /// The time at which the assigner is asked for again.
    next_assigner: Instant,
}

impl Term {
    /// Begins with what this worker has seen before.
    pub(super) fn new(sightings: Sightings, now: Instant) -> Self {
        Term {
            planner: Planner::default(),
            // Until then the living workers have renewed the leases that they have taken up.
            next_moves: now + sightings.failover_time() / 2,
            sightings,
            next_survey: now,
            uncovered_runs: 0,
            assigner: Assigner::Leader,
            next_assigner: now,
        }
    }

    pub(super) fn is_assigner_due(&self, now: Instant) -> bool {
        now >= self.next_assigner
    }

    pub(super) fn note_assigner(&mut self, assigner: Assigner, now: Instant) {
        (self.assigner, self.next_assigner) = (assigner, now + ASSIGNER);
    }

    pub(super) fn observe(
        &mut self,
        leases: &[SharedLease],
        workers: &[AnnouncedWorker],
        now: Instant,
        shared: &Shared,
    ) {
        let expired = self.sightings.observe(leases, now);
        for expired in &expired {
            shared.report(FleetEvent::LeaseExpired {
                shard: &expired.shard,
                owner: &expired.owner,
            });
        }
        let changes = self.sightings.observe_workers(workers, &expired, now);
        let living = self.sightings.living();
        for worker in &changes.joined {
            shared.report(FleetEvent::WorkerJoined {
                worker,
                workers: living,
            });
        }
        for worker in &changes.left {
            shared.report(FleetEvent::WorkerLeft {
                worker,
                workers: living,
            });
        }
    }

    /// Returns true if the stream's shards are to be listed: at the start, every five minutes, and when the
    /// shards with rows do not cover all hash keys.
    pub(super) fn is_survey_due(&mut self, leases: &[SharedLease], now: Instant) -> bool {
        self.uncovered_runs = match covers_all_hash_keys(leases) {
            true => 0,
            false => self.uncovered_runs + 1,
        };
        let is_due = now >= self.next_survey || self.uncovered_runs >= UNCOVERED_RUNS;
        if is_due {
            self.next_survey = now + SURVEY;
            self.uncovered_runs = 0;
        }
        is_due
    }

    pub(super) fn plan(
        &mut self,
        leases: &[SharedLease],
        workers: &[AnnouncedWorker],
        now: Instant,
    ) -> Vec<Step> {
        let has_unannounced = self.sightings.has_unannounced(leases, workers, now);
        if has_unannounced || self.assigner == Assigner::Takers {
            return self.plan_as_takers(leases, workers, now);
        }
        let open: HashSet<&ShardId> = leases
            .iter()
            .filter(|lease| !is_ended(lease))
            .map(|lease| &lease.key.shard)
            .collect();
        let planned = leases.iter().filter_map(|lease| {
            let owner = self.sightings.owner(lease, now);
            // A shard that has ended, or that waits for its parents, needs no owner.
            let is_needed = !is_ended(lease) && !lease.parents.iter().any(|parent| open.contains(parent));
            (is_needed || owner != Owner::None).then(|| PlannedLease {
                shard: lease.key.shard.clone(),
                owner,
                is_ended: is_ended(lease),
                throughput: lease.throughput,
            })
        });
        let planned: Vec<PlannedLease> = planned.collect();
        let live = self.live(workers.iter());
        if now < self.next_moves {
            return self.planner.assign(&planned, &live);
        }
        self.next_moves = now + self.sightings.failover_time();
        self.planner.plan(&planned, &live)
    }

    fn plan_as_takers(
        &mut self,
        leases: &[SharedLease],
        workers: &[AnnouncedWorker],
        now: Instant,
    ) -> Vec<Step> {
        let planned = leases.iter().map(|lease| PlannedLease {
            shard: lease.key.shard.clone(),
            owner: self.sightings.owner(lease, now),
            is_ended: is_ended(lease),
            throughput: lease.throughput,
        });
        let ours = workers.iter().filter(|worker| worker.is_native);
        let ours = self.live(ours);
        // KCL 2 looks every other failover time.
        let may_move = now >= self.next_moves;
        if may_move {
            self.next_moves = now + self.sightings.failover_time() * 2;
        }
        let steps = taker::plan(&planned.collect::<Vec<_>>(), &ours, may_move);
        // Workers of KCL 2 know no requests: a lease is taken from them, and they notice at their next write.
        let knows_requests = |from: &WorkerName| ours.iter().any(|worker| worker.name == *from);
        let step = |step| match step {
            Step::Move { shard, from, to } if !knows_requests(&from) => Step::Assign { shard, to },
            step => step,
        };
        steps.into_iter().map(step).collect()
    }

    fn live<'a>(&self, workers: impl Iterator<Item = &'a AnnouncedWorker>) -> Vec<PlannedWorker> {
        let live = workers.filter(|worker| self.sightings.lives(&worker.name));
        let live = live.map(|worker| PlannedWorker {
            name: worker.name.as_str().into(),
            max_leases: worker.max_leases.unwrap_or(usize::MAX),
        });
        live.collect()
    }
}

fn is_ended(lease: &SharedLease) -> bool {
    *lease.checkpoint.position() == Position::ShardEnd
}

/// Returns true if the shards that have not ended cover all hash keys, as far as the rows state them.
fn covers_all_hash_keys(leases: &[SharedLease]) -> bool {
    let mut ranges = Vec::with_capacity(leases.len());
    for lease in leases.iter().filter(|lease| !is_ended(lease)) {
        match &lease.hash_keys {
            Some(range) => ranges.push((*range.start(), *range.end())),
            // Rows of KCL 1 do not state them.
            None => return true,
        }
    }
    ranges.sort_unstable();
    let mut next = Some(0);
    for (first, last) in ranges {
        match next {
            Some(key) if first > key => return false,
            Some(key) => next = last.checked_add(1).map(|after| after.max(key)),
            None => break,
        }
    }
    next.is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{Checkpoint, ShardKey};

    fn lease(name: &str, keys: (u128, u128), position: Position) -> SharedLease {
        let key = ShardKey::new("billing", "orders", name.into());
        SharedLease {
            hash_keys: Some(keys.0..=keys.1),
            ..SharedLease::new(key, Checkpoint::at(position))
        }
    }

    #[test]
    fn rows_that_lack_a_shard_do_not_cover_all_hash_keys() {
        let open = |name, keys| lease(name, keys, Position::TrimHorizon);
        let ended = |name, keys| lease(name, keys, Position::ShardEnd);
        let (half, last) = (u128::MAX / 2, u128::MAX);
        let covers = |leases: &[SharedLease]| covers_all_hash_keys(leases);
        assert!(!covers(&[]));
        assert!(covers(&[open("a", (0, last))]));
        assert!(covers(&[open("b", (half + 1, last)), open("a", (0, half))]));
        assert!(!covers(&[open("a", (0, half))]));
        assert!(!covers(&[open("a", (1, last))]));
        assert!(!covers(&[ended("a", (0, last)), open("b", (0, half))]));
        assert!(covers(&[
            ended("a", (0, last)),
            open("b", (0, half)),
            open("c", (half + 1, last))
        ]));
        let unknown = SharedLease {
            hash_keys: None,
            ..open("a", (0, half))
        };
        assert!(covers(&[unknown]));
    }
}

#[cfg(test)]
mod scale;
