//! A fleet of 1,000 shards and 50 workers in simulated time. Each test prints a table of the leader's runs: the
//! steps, the shares, and the table operations per second.

use std::collections::HashMap;

use super::*;
use crate::checkpoint::{Checkpoint, ShardKey};

const SHARDS: usize = 1_000;
const WORKERS: usize = 50;
/// The maximum number of leases that one run moves.
const MOST_MOVES: usize = SHARDS / 10;
/// The default.
const FAILOVER: Duration = Duration::from_secs(10);
/// The time between two runs, without jitter.
const INTERVAL: Duration = Duration::from_millis(2_500);
/// The time that a hand-off takes: the owner notices the request when it renews the lease, and the receiver when
/// it looks for its shards.
const HAND_OVER: Duration = Duration::from_millis(6_600);
const ANNOUNCE: Duration = Duration::from_secs(30);

/// The rows, the workers and the leader. The first worker leads.
struct Scale {
    leases: Vec<SharedLease>,
    workers: Vec<Simulated>,
    term: Term,
    start: Instant,
    now: Instant,
    /// The hand-offs under way, and when each ends.
    requested: HashMap<ShardId, Instant>,
    runs: Vec<Run>,
}

struct Simulated {
    name: String,
    lives: bool,
}

/// One run of the leader.
#[derive(Debug)]
struct Run {
    at: Duration,
    assigned: usize,
    moved: usize,
    /// The hand-offs that have ended since the run before.
    ended: usize,
    /// The fewest and the most leases of a living worker, with those that it is about to receive.
    shares: (usize, usize),
    reads: f64,
    writes: f64,
}

impl Scale {
    /// Creates a fleet in which this worker owns each shard; `None`: the table is empty.
    fn new(owner: Option<fn(usize) -> usize>) -> Self {
        let name = |number: usize| format!("worker-{number:03}");
        let now = Instant::now();
        let leases = (0..SHARDS).map(|number| {
            let shard = format!("shardId-{number:012}");
            let key = ShardKey::new("billing", "orders", shard.as_str().into());
            SharedLease {
                owner: owner.map(|owner| name(owner(number))),
                ..SharedLease::new(key, Checkpoint::at(Position::TrimHorizon))
            }
        });
        let workers = (0..WORKERS).map(|number| Simulated {
            name: name(number),
            lives: true,
        });
        Scale {
            leases: leases.collect(),
            workers: workers.collect(),
            term: Term::new(Sightings::new(FAILOVER), now),
            start: now,
            now,
            requested: HashMap::new(),
            runs: Vec::new(),
        }
    }

    /// Advances the time to the next run of the leader, and carries out its plan.
    fn run(&mut self) {
        let before = self.now;
        if !self.runs.is_empty() {
            self.now += INTERVAL;
        }
        let ended = self.end_hand_overs();
        self.renew(before);
        let announced = self.announced();
        let expired = self.term.sightings.observe(&self.leases, self.now);
        self.term
            .sightings
            .observe_workers(&announced, &expired, self.now);
        let steps = self.term.plan(&self.leases, &announced, self.now);
        for step in &steps {
            let (Step::Assign { shard, to } | Step::Move { shard, to, .. }) = step;
            let lease = self.leases.iter_mut().find(|lease| lease.key.shard == *shard);
            let lease = lease.expect("a lease of this fleet");
            if let Step::Move { .. } = step {
                lease.handed_over_by = lease.owner.take();
                self.requested.insert(shard.clone(), self.now + HAND_OVER);
            } else {
                lease.handed_over_by = None;
                lease.counter += 1;
            }
            lease.owner = Some(to.to_string());
        }
        let moved = steps
            .iter()
            .filter(|step| matches!(step, Step::Move { .. }))
            .count();
        let assigned = steps.len() - moved;
        let (reads, writes) = self.operations(&steps, ended);
        self.runs.push(Run {
            at: self.now - self.start,
            assigned,
            moved,
            ended,
            shares: self.shares(),
            reads,
            writes,
        });
    }

    fn end_hand_overs(&mut self) -> usize {
        let now = self.now;
        let due = |_: &ShardId, end: &mut Instant| *end <= now;
        let ended: HashSet<ShardId> = self.requested.extract_if(due).map(|(shard, _)| shard).collect();
        for lease in self
            .leases
            .iter_mut()
            .filter(|lease| ended.contains(&lease.key.shard))
        {
            lease.handed_over_by = None;
            lease.counter += 1;
        }
        ended.len()
    }

    /// Renews the leases of living workers, if a renewal is due since `before`.
    fn renew(&mut self, before: Instant) {
        let renewals = |time: Instant| (time - self.start).as_millis() / (FAILOVER / 3).as_millis();
        if renewals(before) == renewals(self.now) {
            return;
        }
        let living: HashSet<&str> = living(&self.workers).collect();
        for lease in &mut self.leases {
            if lease.holder().is_some_and(|holder| living.contains(holder)) {
                lease.counter += 1;
            }
        }
    }

    /// Returns the announcements; that of a dead worker stays as it was.
    fn announced(&self) -> Vec<AnnouncedWorker> {
        let announcements = (self.now - self.start).as_secs() / ANNOUNCE.as_secs();
        let workers = self.workers.iter();
        let sign = |worker: &Simulated| if worker.lives { announcements } else { 0 };
        workers
            .map(|worker| AnnouncedWorker::new(worker.name.as_str(), sign(worker)))
            .collect()
    }

    /// Returns the reads and writes of all workers per second, until the next run.
    fn operations(&self, steps: &[Step], ended: usize) -> (f64, f64) {
        let per_second = |count: usize, interval: Duration| count as f64 / interval.as_secs_f64();
        let living: HashSet<&str> = living(&self.workers).collect();
        let workers = living.len();
        let is_renewed = |lease: &&SharedLease| lease.holder().is_some_and(|holder| living.contains(holder));
        let renewed = self.leases.iter().filter(is_renewed).count();
        let receivers: HashSet<&str> = steps
            .iter()
            .map(|step| match step {
                Step::Assign { to, .. } | Step::Move { to, .. } => &**to,
            })
            .collect();
        let moved = steps
            .iter()
            .filter(|step| matches!(step, Step::Move { .. }))
            .count();
        // The leader scans the leases and the workers in each run, and the others look at its item. Each worker
        // queries the index. A receiver reads its new rows twice in one batch. An owner reads a row that it
        // releases.
        let reads = per_second(2, INTERVAL)
            + per_second(workers - 1, FAILOVER)
            + per_second(workers, FAILOVER / 3)
            + per_second(2 * receivers.len() + ended, INTERVAL);
        // The leader writes its item, and one row per step. The receiver adopts the row. The owner stores the
        // last checkpoint of a shard that it hands over, and releases the row.
        let writes = per_second(1, FAILOVER)
            + per_second(workers, ANNOUNCE)
            + per_second(renewed, FAILOVER / 3)
            + per_second(steps.len() + (steps.len() - moved) + 3 * ended, INTERVAL);
        (reads, writes)
    }

    fn shares(&self) -> (usize, usize) {
        let mut shares: HashMap<&str, usize> = living(&self.workers).map(|worker| (worker, 0)).collect();
        for owner in self.leases.iter().filter_map(|lease| lease.owner.as_deref()) {
            if let Some(share) = shares.get_mut(owner) {
                *share += 1;
            }
        }
        let counts = || shares.values().copied();
        (counts().min().unwrap_or(0), counts().max().unwrap_or(0))
    }

    /// Returns true if each shard is read by a living worker, and the shares differ by one at most.
    fn is_even(&self) -> bool {
        let living: HashSet<&str> = living(&self.workers).collect();
        let is_read = |lease: &SharedLease| {
            let owner = lease.owner.as_deref().filter(|owner| living.contains(owner));
            owner.is_some() && lease.handed_over_by.is_none()
        };
        let (fewest, most) = self.shares();
        self.leases.iter().all(is_read) && most - fewest <= 1
    }

    /// Runs the leader until the fleet is even, and for a minute more, in which nothing moves. Returns the runs until
    /// the fleet is even.
    fn settle(&mut self, what: &str) -> usize {
        let first = self.runs.len();
        while !self.is_even() || self.runs.len() == first {
            self.run();
            assert!(self.runs.len() - first < 200, "{what}: not even after 200 runs");
        }
        let settled = self.runs.len();
        let start = first
            .checked_sub(1)
            .map_or(Duration::ZERO, |last| self.runs[last].at);
        println!("\n{what}: {SHARDS} shards, {WORKERS} workers, failover time {FAILOVER:?}");
        println!("   time  assigned  moved  handed over  fewest  most  reads/s  writes/s");
        for run in &self.runs[first..] {
            println!(
                "{:5.1} s  {:8}  {:5}  {:11}  {:6}  {:4}  {:7.1}  {:8.1}",
                (run.at - start).as_secs_f64(),
                run.assigned,
                run.moved,
                run.ended,
                run.shares.0,
                run.shares.1,
                run.reads,
                run.writes,
            );
        }
        while self.runs[settled - 1].at + Duration::from_secs(60) > self.now - self.start {
            self.run();
        }
        let later = self.runs[settled..].iter();
        assert!(
            later.clone().all(|run| run.assigned == 0 && run.moved == 0),
            "{what}: no rest"
        );
        assert!(self.is_even());
        let (moves, runs) = (self.moves(first), settled - first);
        println!(
            "even after {runs} runs; {} moves in {} of them",
            moves.iter().sum::<usize>(),
            moves.len()
        );
        runs
    }

    /// Returns the moves of each run with moves.
    fn moves(&self, first: usize) -> Vec<usize> {
        let moves = self.runs[first..].iter().map(|run| run.moved);
        moves.filter(|moved| *moved > 0).collect()
    }
}

fn living(workers: &[Simulated]) -> impl Iterator<Item = &str> {
    let living = workers.iter().filter(|worker| worker.lives);
    living.map(|worker| worker.name.as_str())
}

#[test]
fn an_empty_table_is_shared_in_one_run() {
    let mut fleet = Scale::new(None);
    let runs = fleet.settle("an empty table");
    assert_eq!(runs, 1);
    assert_eq!(fleet.shares(), (20, 20));
    assert!(fleet.moves(0).is_empty());
    // Renewals are nearly all that a fleet at rest writes.
    let rest = fleet.runs.last().expect("a run");
    assert!((300.0..305.0).contains(&rest.writes), "{rest:?}");
}

#[test]
fn workers_that_join_get_their_shares_in_ten_runs() {
    let mut fleet = Scale::new(Some(|_| 0));
    let runs = fleet.settle("one worker owns all, 49 join");
    let moves = fleet.moves(0);
    assert_eq!(
        moves.iter().sum::<usize>(),
        SHARDS - SHARDS / WORKERS,
        "no lease moves twice"
    );
    assert_eq!(moves.len(), 10);
    assert!(moves.iter().all(|moves| *moves <= MOST_MOVES), "{moves:?}");
    // The moves begin in the third run: by then each lease has been renewed once. One run in four moves leases. The
    // last hand-offs end three runs later.
    assert!(runs <= 2 + 9 * 4 + 1 + 3, "{runs} runs");
    assert_eq!(fleet.shares(), (20, 20));
}

#[test]
fn shards_of_a_dead_worker_are_shared_when_they_expire() {
    let mut fleet = Scale::new(Some(|number| number % WORKERS));
    while fleet.runs.len() < 10 {
        fleet.run();
    }
    assert!(fleet.is_even() && fleet.moves(0).is_empty());
    fleet.workers[WORKERS - 1].lives = false;
    let died = fleet.now;
    fleet.settle("one of 50 workers dies");
    let runs = fleet.runs[10..].iter();
    let assigned: Vec<&Run> = runs.filter(|run| run.assigned > 0).collect();
    assert_eq!(assigned.len(), 1, "all its shards are assigned in one run");
    assert_eq!(assigned[0].assigned, SHARDS / WORKERS);
    let after = fleet.start + assigned[0].at - died;
    assert!(after <= FAILOVER + INTERVAL, "{after:?}");
    assert!(fleet.moves(10).is_empty(), "{:?}", fleet.moves(10));
    assert_eq!(fleet.shares(), (20, 21));
}
