use std::collections::HashSet;

use proptest::prelude::*;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use super::*;

/// A fleet whose members obey each plan at once.
struct World {
    leases: Vec<PlannedLease>,
    workers: Vec<PlannedWorker>,
    planner: Planner,
}

fn worker(number: usize) -> PlannedWorker {
    PlannedWorker {
        name: format!("worker-{number:03}").into(),
        max_leases: usize::MAX,
    }
}

fn lease(number: usize, owner: Owner) -> PlannedLease {
    PlannedLease {
        shard: format!("shardId-{number:012}").as_str().into(),
        owner,
        is_ended: false,
        throughput: None,
    }
}

fn open(leases: &[PlannedLease]) -> impl Iterator<Item = &PlannedLease> {
    leases.iter().filter(|lease| !lease.is_ended)
}

impl World {
    fn new(leases: usize, workers: usize) -> Self {
        World {
            leases: (0..leases).map(|number| lease(number, Owner::None)).collect(),
            workers: (0..workers).map(worker).collect(),
            planner: Planner::default(),
        }
    }

    /// Gives each lease to the worker that this function names.
    fn owned(mut self, owner: impl Fn(usize) -> usize) -> Self {
        for (number, lease) in self.leases.iter_mut().enumerate() {
            lease.owner = Owner::Live(worker(owner(number)).name);
        }
        self
    }

    fn run(&mut self) -> Vec<Step> {
        let steps = self.planner.plan(&self.leases, &self.workers);
        for step in &steps {
            let (Step::Assign { shard, to } | Step::Move { shard, to, .. }) = step;
            let lease = self.leases.iter_mut().find(|lease| lease.shard == *shard);
            lease.expect("a lease of this fleet").owner = Owner::Live(to.clone());
        }
        steps
    }

    /// The number of open leases of each worker.
    fn counts(&self) -> Vec<usize> {
        let of = |worker: &PlannedWorker| {
            let is_owner = |lease: &&PlannedLease| lease.owner == Owner::Live(worker.name.clone());
            open(&self.leases).filter(is_owner).count()
        };
        self.workers.iter().map(of).collect()
    }

    /// The difference between the most and the fewest open leases of a worker.
    fn spread(&self) -> usize {
        let counts = self.counts();
        counts.iter().max().unwrap_or(&0) - counts.iter().min().unwrap_or(&0)
    }

    /// Runs until a plan has no steps. Returns the moves of each run.
    fn settle(&mut self) -> Vec<usize> {
        let mut moves = Vec::new();
        for _ in 0..1_000 {
            let run = moves_of(&self.run());
            // Leases that rest may keep one run empty.
            if moves.iter().rev().take(REST as usize).all(|moves| *moves == 0) && run == 0 && moves.len() > 3
            {
                return moves;
            }
            moves.push(run);
        }
        panic!("no end after 1,000 runs: {:?}", self.counts());
    }
}

fn moves_of(steps: &[Step]) -> usize {
    let is_move = |step: &&Step| matches!(step, Step::Move { .. });
    steps.iter().filter(is_move).count()
}

#[test]
fn six_shards_are_shared_by_three_workers_in_one_run() {
    let mut world = World::new(6, 3);
    assert_eq!(world.run().len(), 6);
    assert_eq!(world.counts(), [2, 2, 2]);
}

#[test]
fn two_workers_that_join_share_six_shards_in_two_runs() {
    let mut world = World::new(6, 3).owned(|_| 0);
    world.run();
    world.run();
    assert_eq!(world.counts(), [2, 2, 2]);
}

#[test]
fn three_and_two_leases_are_even() {
    let mut world = World::new(5, 2).owned(|number| number % 2);
    assert_eq!(world.counts(), [3, 2]);
    assert!(world.run().is_empty());
}

#[test]
fn leases_of_a_worker_without_metrics_stay() {
    let mut world = World::new(8, 3).owned(|_| 2);
    world.workers.truncate(2);
    assert!(world.run().is_empty());
}

#[test]
fn a_worker_takes_at_most_its_maximum() {
    let mut world = World::new(6, 2);
    world.workers[0].max_leases = 1;
    world.run();
    assert_eq!(world.counts(), [1, 5]);
    world.workers[1].max_leases = 2;
    // No worker may take the lease: it stays without an owner.
    world.leases[0].owner = Owner::None;
    world.leases[1].owner = Owner::None;
    for lease in &mut world.leases[2..] {
        lease.owner = Owner::Live(worker(1).name);
    }
    assert_eq!(world.run().len(), 1);
}

#[test]
fn ended_leases_have_no_weight() {
    let mut world = World::new(10, 2).owned(|number| usize::from(number >= 8));
    for lease in &mut world.leases[..6] {
        lease.is_ended = true;
    }
    // 2 open leases each, although one worker has 8 leases.
    assert!(world.run().is_empty());
}

#[test]
fn a_lease_in_a_hand_off_counts_for_its_receiver_and_stays() {
    let mut world = World::new(4, 2).owned(|_| 0);
    for lease in &mut world.leases[..2] {
        lease.owner = Owner::Receiving(worker(1).name);
    }
    assert!(world.run().is_empty());
}

#[test]
fn a_hot_shard_is_not_joined_by_as_many_others() {
    let mut world = World::new(10, 2);
    for lease in &mut world.leases {
        lease.throughput = Some(10.0);
    }
    world.leases[3].throughput = Some(810.0);
    world.run();
    let hot = world.leases[3].owner.clone();
    let with_it = world.leases.iter().filter(|lease| lease.owner == hot).count();
    assert_eq!(with_it, 1, "{:?}", world.counts());
}

#[test]
fn little_traffic_does_not_outweigh_the_number_of_leases() {
    let mut world = World::new(6, 3);
    for lease in &mut world.leases {
        lease.throughput = Some(0.0);
    }
    // One record of 1 KiB per second.
    world.leases[2].throughput = Some(1.0);
    world.run();
    assert_eq!(world.counts(), [2, 2, 2]);
    assert_eq!(world.settle().iter().sum::<usize>(), 0);
}

#[test]
fn unequal_leases_are_shared_evenly_from_one_worker() {
    for scale in [1.0, 1_000.0] {
        let mut world = World::new(6, 3).owned(|_| 0);
        for (number, lease) in world.leases.iter_mut().enumerate() {
            lease.throughput = Some(scale * (1.0 + number as f64 / 10.0));
        }
        world.settle();
        assert_eq!(world.counts(), [2, 2, 2], "{scale}");
    }
}

#[test]
fn a_lease_that_moved_stays_for_three_runs() {
    let mut world = World::new(4, 2).owned(|_| 0);
    let moved: HashSet<ShardId> = world
        .run()
        .into_iter()
        .filter_map(|step| match step {
            Step::Move { shard, .. } => Some(shard),
            Step::Assign { .. } => None,
        })
        .collect();
    assert_eq!(moved.len(), 2);
    // A worker leaves and another joins: the plan would move these leases again.
    for lease in &mut world.leases {
        lease.owner = Owner::Live(worker(1).name);
    }
    for _ in 0..2 {
        let again = world.planner.plan(&world.leases, &world.workers);
        let is_moved = |step: &Step| matches!(step, Step::Move { shard, .. } if moved.contains(shard));
        assert!(!again.iter().any(is_moved));
    }
    assert!(moves_of(&world.run()) > 0);
}

#[test]
fn a_thousand_shards_become_even_in_bounded_runs() {
    let mut world = World::new(1_000, 50).owned(|number| number % 10);
    let moves = world.settle();
    assert!(world.spread() <= 1, "{:?}", world.counts());
    // 800 leases must move, 100 in a run.
    assert_eq!(moves.iter().sum::<usize>(), 800);
    assert_eq!(moves.iter().filter(|moves| **moves > 0).count(), 8, "{moves:?}");
}

proptest! {
    #[test]
    fn plans_end_even_within_one_lease(
        leases in 1_usize..200,
        workers in 1_usize..20,
        seed in any::<u64>(),
    ) {
        let rng = std::cell::RefCell::new(SmallRng::seed_from_u64(seed));
        let mut world = World::new(leases, workers).owned(|_| rng.borrow_mut().random_range(0..workers));
        // Each run moves at least one lease while the loads are apart.
        let moves = world.settle();
        prop_assert!(world.spread() <= 1, "{:?}", world.counts());
        prop_assert!(moves.len() <= leases + 10, "{moves:?}");
        let most = leases.div_ceil(10).max(FEWEST_MOVES);
        prop_assert!(moves.iter().all(|moves| *moves <= most));
    }

    #[test]
    fn an_even_fleet_does_not_move(leases in 0_usize..200, workers in 1_usize..20) {
        let mut world = World::new(leases, workers).owned(|number| number % workers);
        prop_assert!(world.run().is_empty());
    }

    #[test]
    fn plans_do_not_depend_on_the_order_of_their_input(
        leases in 1_usize..60,
        workers in 1_usize..8,
        seed in any::<u64>(),
    ) {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut world = World::new(leases, workers);
        for lease in &mut world.leases {
            lease.owner = match rng.random_range(0..4) {
                0 => Owner::None,
                1 => Owner::Receiving(worker(rng.random_range(0..workers)).name),
                _ => Owner::Live(worker(rng.random_range(0..workers)).name),
            };
            lease.is_ended = rng.random_bool(0.2);
            lease.throughput = rng.random_bool(0.7).then(|| rng.random_range(0.0..1_000.0));
        }
        let expected = Planner::default().plan(&world.leases, &world.workers);
        world.leases.shuffle(&mut rng);
        world.workers.shuffle(&mut rng);
        prop_assert_eq!(Planner::default().plan(&world.leases, &world.workers), expected);
    }

    #[test]
    fn noise_in_the_throughput_moves_no_lease(
        each in 1_usize..30,
        workers in 2_usize..8,
        seed in any::<u64>(),
    ) {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut world = World::new(each * workers, workers).owned(|number| number % workers);
        for _ in 0..20 {
            for lease in &mut world.leases {
                lease.throughput = Some(100.0 * rng.random_range(0.9..1.1));
            }
            prop_assert!(world.run().is_empty());
        }
    }

    #[test]
    fn each_move_levels_the_loads(
        leases in 1_usize..60,
        workers in 2_usize..8,
        seed in any::<u64>(),
    ) {
        let rng = std::cell::RefCell::new(SmallRng::seed_from_u64(seed));
        let mut world = World::new(leases, workers).owned(|_| rng.borrow_mut().random_range(0..workers));
        for lease in &mut world.leases {
            lease.throughput = Some(rng.borrow_mut().random_range(0.0_f64..8.0).exp());
        }
        // Loads that ever become more level come to an end.
        world.settle();
    }
}
