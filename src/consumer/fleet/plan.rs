//! The plan: which worker reads which shard. A pure function of what the leader has seen.
//!
//! Each open lease weighs 1, and its throughput relative to the average lease in addition: a fleet shares the
//! number of leases and the traffic alike. Little traffic weighs little. A lease at the shard's end weighs nothing.
//!
//! The plan assigns leases without an owner first, all of them. Then it moves leases from the worker with the
//! highest load to the worker with the lowest. Each move costs a hand-off, so moves are rare:
//! - A lease moves only if the loads differ by half an average lease more than the lease weighs. Two workers with
//!   3 and 2 leases are even, and two with 3 and 1 are not, although no two leases weigh the same.
//! - At most 10 % of the leases move in one run.
//! - A lease that moved stays where it is for three runs.
//! - Workers without live metrics neither give nor receive a lease.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::record::ShardId;
use crate::sabotage::Sabotage;

/// The number of runs during which a lease does not move again.
const REST: u64 = 3;
/// The smallest limit on the moves of one run.
const FEWEST_MOVES: usize = 2;
/// The throughput in KiB per second below which an average lease counts as quiet: 1 % of what a shard takes. The
/// difference between one record per second and none moves no lease.
const QUIET: f64 = 10.0;
/// The difference by which two loads still count as equal. Throughputs are sums of fractions.
const ROUNDING: f64 = 1e-9;

/// A worker's name, as it stands in the lease table.
pub(super) type WorkerName = Arc<str>;

/// A lease, as the leader sees it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct PlannedLease {
    pub(super) shard: ShardId,
    pub(super) owner: Owner,
    /// True if the shard is settled to its end.
    pub(super) is_ended: bool,
    /// The throughput in KiB per second, if the owner has reported one.
    pub(super) throughput: Option<f64>,
}

/// The owner of a lease, as the leader sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Owner {
    /// No worker owns the lease, or its owner has stopped to renew it.
    None,
    /// This worker renews the lease.
    Live(WorkerName),
    /// The lease is on its way to this worker: it is being handed over, or the worker has not taken it up yet.
    Receiving(WorkerName),
}

/// A worker that has live metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PlannedWorker {
    pub(super) name: WorkerName,
    /// The maximum number of open leases that the worker takes.
    pub(super) max_leases: usize,
}

/// One step of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// The worker becomes the owner of a lease that has none.
    Assign { shard: ShardId, to: WorkerName },
    /// A living owner hands the lease over to another worker.
    Move {
        shard: ShardId,
        from: WorkerName,
        to: WorkerName,
    },
}

/// Makes a plan in each run of the leader, and remembers which leases have moved lately.
#[derive(Debug, Default)]
pub(super) struct Planner {
    run: u64,
    /// The run in which each lease moved.
    moved: HashMap<ShardId, u64>,
}

impl Planner {
    /// Assigns the leases without an owner, and moves none.
    pub(super) fn assign(&self, leases: &[PlannedLease], workers: &[PlannedWorker]) -> Vec<Step> {
        Fleet::new(leases, workers).assign_orphans()
    }

    /// Returns the steps towards an even share. The result does not depend on the order of the arguments.
    pub(super) fn plan(&mut self, leases: &[PlannedLease], workers: &[PlannedWorker]) -> Vec<Step> {
        self.run += 1;
        self.moved.retain(|_, run| *run + REST > self.run);
        let mut fleet = Fleet::new(leases, workers);
        let mut steps = fleet.assign_orphans();
        let open = fleet.open;
        let most = open.div_ceil(10).max(FEWEST_MOVES);
        while steps
            .iter()
            .filter(|step| matches!(step, Step::Move { .. }))
            .count()
            < most
        {
            let moved = &self.moved;
            let Some((shard, from, to)) = fleet.next_move(|shard| moved.contains_key(shard)) else {
                break;
            };
            self.moved.insert(shard.clone(), self.run);
            steps.push(Step::Move { shard, from, to });
        }
        steps
    }
}

/// The fleet while a plan is made.
struct Fleet<'a> {
    workers: BTreeMap<WorkerName, Share<'a>>,
    orphans: Vec<Weighed<'a>>,
    /// The weight of an average open lease.
    average: f64,
    open: usize,
}

/// The leases of a worker.
#[derive(Default)]
struct Share<'a> {
    load: f64,
    /// The number of all leases, to spread those without weight.
    leases: usize,
    open: usize,
    max_leases: usize,
    /// The open leases that the worker may hand over.
    movable: Vec<Weighed<'a>>,
}

#[derive(Clone, Copy)]
struct Weighed<'a> {
    shard: &'a ShardId,
    weight: f64,
    is_ended: bool,
}

impl Share<'_> {
    fn add(&mut self, lease: Weighed<'_>) {
        self.load += lease.weight;
        self.leases += 1;
        self.open += usize::from(!lease.is_ended);
    }

    fn has_room_for(&self, lease: Weighed<'_>) -> bool {
        lease.is_ended || self.open < self.max_leases
    }
}

impl<'a> Fleet<'a> {
    fn new(leases: &'a [PlannedLease], workers: &[PlannedWorker]) -> Self {
        // Sums of fractions depend on the order of the summands.
        let mut leases: Vec<&PlannedLease> = leases.iter().collect();
        leases.sort_by(|a, b| a.shard.cmp(&b.shard));
        let is_open = |lease: &&&PlannedLease| !lease.is_ended;
        let open = leases.iter().filter(is_open);
        let known: Vec<f64> = open.clone().filter_map(|lease| lease.throughput).collect();
        let average = known.iter().sum::<f64>() / known.len().max(1) as f64;
        let weight_at = |throughput: f64| 1.0 + throughput / average.max(QUIET);
        let weight = |lease: &PlannedLease| match lease.is_ended {
            true => 0.0,
            // A lease whose throughput is unknown counts as an average one.
            false => weight_at(lease.throughput.unwrap_or(average)),
        };
        let mut fleet = Fleet {
            workers: BTreeMap::new(),
            orphans: Vec::new(),
            average: weight_at(average),
            open: open.count(),
        };
        for worker in workers {
            let share = fleet.workers.entry(worker.name.clone()).or_default();
            share.max_leases = worker.max_leases;
        }
        for lease in leases {
            let weighed = Weighed {
                shard: &lease.shard,
                weight: weight(lease),
                is_ended: lease.is_ended,
            };
            match &lease.owner {
                Owner::None => fleet.orphans.push(weighed),
                Owner::Live(name) => {
                    if let Some(share) = fleet.workers.get_mut(name) {
                        share.add(weighed);
                        if !lease.is_ended {
                            share.movable.push(weighed);
                        }
                    }
                }
                Owner::Receiving(name) => {
                    if let Some(share) = fleet.workers.get_mut(name) {
                        share.add(weighed);
                    }
                }
            }
        }
        fleet
    }

    /// Assigns each lease without an owner to the worker with the lowest load that has room.
    fn assign_orphans(&mut self) -> Vec<Step> {
        let mut orphans = std::mem::take(&mut self.orphans);
        // Heavy ones first: the light ones then level the loads.
        orphans.sort_by(|a, b| b.weight.total_cmp(&a.weight).then_with(|| a.shard.cmp(b.shard)));
        let mut steps = Vec::new();
        for lease in orphans {
            let rank = |share: &Share<'_>| (Load(share.load), share.leases);
            let with_room = self
                .workers
                .iter_mut()
                .filter(|(_, share)| share.has_room_for(lease));
            let Some((name, share)) = with_room.min_by_key(|(_, share)| rank(share)) else {
                continue;
            };
            share.add(lease);
            steps.push(Step::Assign {
                shard: lease.shard.clone(),
                to: name.clone(),
            });
        }
        steps
    }

    /// Makes the move that levels the loads most, if a move is worth its cost.
    fn next_move(&mut self, rests: impl Fn(&ShardId) -> bool) -> Option<(ShardId, WorkerName, WorkerName)> {
        let (to, low) = {
            let with_room = self
                .workers
                .iter()
                .filter(|(_, share)| share.open < share.max_leases);
            let (name, share) = with_room.min_by_key(|(_, share)| Load(share.load))?;
            (name.clone(), share.load)
        };
        // The worker with the highest load may have nothing to give, because its leases moved lately.
        let mut givers: Vec<&WorkerName> = self.workers.keys().filter(|name| **name != to).collect();
        givers.sort_by_key(|name| std::cmp::Reverse(Load(self.workers[*name].load)));
        let hysteresis = match Sabotage::PlanWithoutHysteresis.is_committed() {
            true => 0.0,
            false => self.average / 2.0,
        };
        let found = givers.into_iter().find_map(|from| {
            let share = &self.workers[from];
            let gap = share.load - low;
            let is_worth = |lease: &Weighed<'_>| gap - lease.weight >= hysteresis - ROUNDING;
            let movable = share.movable.iter().enumerate();
            let movable = movable.filter(|(_, lease)| is_worth(lease) && !rests(lease.shard));
            let left = |lease: &Weighed<'_>| Load((gap - 2.0 * lease.weight).abs());
            let (index, _) = movable.min_by_key(|(_, lease)| left(lease))?;
            Some((from.clone(), index))
        });
        let (from, index) = found?;
        let share = self.workers.get_mut(&from)?;
        let lease = share.movable.remove(index);
        share.load -= lease.weight;
        share.leases -= 1;
        share.open -= 1;
        self.workers.get_mut(&to)?.add(lease);
        Some((lease.shard.clone(), from, to))
    }
}

/// A load that has an order.
#[derive(Clone, Copy, PartialEq)]
struct Load(f64);

impl Eq for Load {}

impl PartialOrd for Load {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Load {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

#[cfg(test)]
mod tests;
