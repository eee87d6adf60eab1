//! The course of a seed: workers come and go, the last fault passes, the shares become even, all workers stop.

use std::collections::VecDeque;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::SmallRng;

use super::Fleet;
use super::oracle::{EVEN_WITHIN, READ_WITHIN, READ_WITHIN_PER_RESHARD, Status, WATCHED};
use super::plan::{End, LeaderFault, Life};
use super::worker::Worker;
use crate::Outcome;
use crate::fault::Fault;
use crate::oracle::Promise;
use crate::plan::{Options, stream};
use crate::world::BEAT_KEY;

/// The time in which a worker stops that is asked to stop.
const STOPS_WITHIN: Duration = Duration::from_secs(25);
/// The time after the last fault in which all records are settled. A processor call takes up to 28 s.
const SETTLED_WITHIN: Duration = Duration::from_secs(30 * 60);
/// The interval of the checks after the last fault.
const CHECKED_EVERY: Duration = Duration::from_secs(1);
/// The largest delay of the index after the last fault, in milliseconds.
const CALM_INDEX_DELAY: u64 = 500;

/// Runs a seed of a fleet to its end, or to the first broken promise.
pub fn simulate_fleet(options: &Options, print: bool) -> Outcome {
    let fleet = Fleet::new(options, print);
    let mut run = Run::new(fleet.clone());
    while !run.is_over() {
        run.step();
    }
    let (took, workers) = (run.now, run.next_worker);
    // The tasks of the workers end before their world.
    drop(run);
    let world = fleet.world();
    fleet.count_reads();
    let state = world.state();
    Outcome {
        violation: state.oracle.violation.clone(),
        counts: state.counts.clone(),
        trace: state.trace(),
        took,
        held: false,
        records: state.oracle.shards.iter().map(|shard| shard.len() as u64).sum(),
        calls: state.oracle.calls,
        letters: state.oracle.letters,
        workers: workers as u64,
    }
}

/// A machine and the worker that runs on it.
struct Slot {
    lives: VecDeque<Life>,
    worker: Option<Worker>,
    /// The planned end of the worker.
    ends: Option<(Duration, End)>,
    is_paused: bool,
}

/// The steps towards the end of a seed.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Phase {
    Faults,
    /// The last fault is over.
    Calm {
        was_read: bool,
        was_even: bool,
    },
    /// The shares are even since this time, after this number of moves.
    Even {
        since: Duration,
        moves: u64,
    },
    Stopping,
    Over,
}

struct Run {
    fleet: Fleet,
    slots: Vec<Slot>,
    now: Duration,
    next_check: Duration,
    /// The time since which nothing keeps the fleet from reading all open shards.
    calm: Duration,
    phase: Phase,
    leader: VecDeque<(Duration, LeaderFault)>,
    next_worker: usize,
    rng: SmallRng,
}

impl Run {
    fn new(fleet: Fleet) -> Self {
        let plan = fleet.plan();
        let slots = plan.machines.iter().map(|machine| Slot {
            lives: machine.lives.clone().into(),
            worker: None,
            ends: None,
            is_paused: false,
        });
        Run {
            slots: slots.collect(),
            now: Duration::ZERO,
            next_check: plan.base.calm,
            calm: plan.base.calm,
            phase: Phase::Faults,
            leader: plan.leader.clone().into(),
            next_worker: 0,
            rng: stream(plan.base.options.seed, "turns"),
            fleet,
        }
    }

    fn is_over(&self) -> bool {
        self.phase == Phase::Over || self.fleet.world().state().oracle.violation.is_some()
    }

    fn step(&mut self) {
        let (fleet, now) = (self.fleet.clone(), self.now);
        fleet.world().no_process_runs(now);
        while let Some((_, fault)) = self.leader.pop_front_if(|(at, _)| *at <= now) {
            fleet.leader_fails(fault);
        }
        let until = now + fleet.plan().turn;
        let (count, first) = (self.slots.len(), self.rng.random_range(0..self.slots.len()));
        for turn in 0..count {
            let machine = (first + turn) % count;
            self.come_and_go(machine);
            let slot = &mut self.slots[machine];
            let pauses = &fleet.plan().machines[machine].pauses;
            let is_paused = pauses.iter().any(|pause| pause.contains(&now));
            if is_paused && !slot.is_paused && slot.worker.is_some() {
                fleet.world().count(Fault::Paused);
            }
            slot.is_paused = is_paused;
            if let Some(worker) = &mut slot.worker
                && !is_paused
            {
                worker.run(&fleet, now, until);
                self.end_if_over(machine, until);
            }
            if self.is_over() {
                return;
            }
        }
        self.now = until;
        if until >= self.next_check {
            self.next_check = until + CHECKED_EVERY;
            self.check();
        }
    }

    /// Starts the worker of a machine, kills it or asks it to stop, as planned.
    fn come_and_go(&mut self, machine: usize) {
        let (fleet, now) = (&self.fleet, self.now);
        let slot = &mut self.slots[machine];
        if let Some(worker) = &mut slot.worker
            && let Some((_, end)) = slot.ends.take_if(|(at, _)| *at <= now)
        {
            match end {
                End::Killed => {
                    fleet.world().count(Fault::Killed);
                    fleet.world().state().note("killed", worker.index, 0);
                    slot.worker = None;
                }
                End::Stopped => {
                    fleet.world().count(Fault::Stopped);
                    fleet.world().state().note("stops", worker.index, 0);
                    Self::stop(fleet, worker, now);
                }
            }
        }
        if slot.worker.is_none()
            && self.phase == Phase::Faults
            && let Some(life) = slot.lives.pop_front_if(|life| life.joins <= now)
        {
            let index = self.next_worker;
            self.next_worker += 1;
            if index > 0 && life.joins > Duration::from_secs(10) {
                fleet.world().count(Fault::Joined);
            }
            if fleet.plan().machines[machine].skew.is_wrong() {
                fleet.world().count(Fault::ClockSkew);
            }
            fleet.world().state().note("joins", index, machine);
            slot.worker = Worker::start(fleet, index, machine, now);
            slot.ends = life.ends;
        }
    }

    /// Asks a worker to stop.
    fn stop(fleet: &Fleet, worker: &mut Worker, now: Duration) {
        fleet.state().oracle.leaving.insert(worker.index);
        worker.stop.cancel();
        worker.stopping = Some(now);
    }

    /// Removes a worker whose run has ended.
    fn end_if_over(&mut self, machine: usize, now: Duration) {
        let world = self.fleet.world();
        let slot = &mut self.slots[machine];
        let Some(worker) = &mut slot.worker else { return };
        match (worker.ended(), worker.stopping) {
            (Some(Ok(())), Some(_)) => {
                world.state().note("stopped", worker.index, 0);
                slot.worker = None;
            }
            (Some(ended), _) => {
                let what = format!("the run of w{:02} ended by itself: {ended:?}", worker.index);
                world.violated(Promise::GoesOn, what);
            }
            (None, Some(since)) => {
                let pauses = self.fleet.plan().machines[machine].pauses.iter();
                let paused = pauses.map(|pause| pause.end.saturating_sub(pause.start.max(since)));
                let limit = since + STOPS_WITHIN + paused.sum::<Duration>();
                if now > limit {
                    let what = format!("w{:02} takes more than 20 s to stop", worker.index);
                    world.violated(Promise::GoesOn, what);
                }
            }
            (None, None) => {}
        }
    }

    /// Checks what must hold after the last fault.
    fn check(&mut self) {
        let (fleet, now) = (self.fleet.clone(), self.now);
        let (world, plan) = (fleet.world(), fleet.plan());
        let living: Vec<usize> = self
            .slots
            .iter()
            .filter_map(|slot| Some(slot.worker.as_ref()?.index))
            .collect();
        if self.phase == Phase::Stopping {
            if living.is_empty() {
                world.check(fleet.check_stopped());
                self.phase = Phase::Over;
            }
            return;
        }
        if self.phase == Phase::Faults {
            let mut state = fleet.state();
            state.tables.settings.staleness = 0;
            state.tables.settings.index_delay = state.tables.settings.index_delay.min(CALM_INDEX_DELAY);
            world.state().note("calm", 0, 0);
            let (was_read, was_even) = (false, false);
            self.phase = Phase::Calm { was_read, was_even };
        }
        let (status, moves) = {
            let (state, outside) = (fleet.state(), world.state());
            let (fates, read_at) = (&outside.oracle.shards, &outside.read_at);
            let status = Status::of(&state.tables, &plan.base, fates, read_at, &living, now);
            (status, state.oracle.moves)
        };
        let reshards = plan
            .base
            .shards
            .iter()
            .filter(|shard| shard.closes.is_some())
            .count();
        let more = READ_WITHIN_PER_RESHARD * reshards as u32;
        if status.is_blocked {
            self.calm = now;
        }
        let since_calm = now - self.calm;
        if now > plan.base.calm + SETTLED_WITHIN {
            let checked = world.state().oracle.check_settled(BEAT_KEY);
            world.check(checked);
        }
        let is_read = status.unread.is_none();
        match self.phase {
            Phase::Calm { was_read, .. } if !is_read && !was_read && since_calm > READ_WITHIN + more => {
                let what = status.unread.unwrap_or_default();
                world.violated(
                    Promise::AllRead,
                    format!("{since_calm:?} after the last fault: {what}"),
                );
            }
            Phase::Calm { was_even, .. } if since_calm > EVEN_WITHIN + more => {
                let promise = if was_even { Promise::Stable } else { Promise::Even };
                world.violated(
                    promise,
                    format!("{since_calm:?} after the last fault: {status:?}"),
                );
            }
            Phase::Calm { .. } if is_read && status.is_even() && !status.is_blocked => {
                world.state().note("even", 0, 0);
                self.phase = Phase::Even { since: now, moves };
            }
            Phase::Calm { was_read, was_even } => {
                let was_read = was_read || is_read;
                self.phase = Phase::Calm { was_read, was_even };
            }
            // An earlier fault may still have effects: the lease of a worker that was suspended expires.
            Phase::Even { moves: before, .. } if moves != before || !is_read || !status.is_even() => {
                let (was_read, was_even) = (true, true);
                self.phase = Phase::Calm { was_read, was_even };
            }
            Phase::Even { since, .. }
                if now >= since + WATCHED && world.state().oracle.check_settled(BEAT_KEY).is_ok() =>
            {
                for worker in self.slots.iter_mut().filter_map(|slot| slot.worker.as_mut()) {
                    Self::stop(&fleet, worker, now);
                }
                self.phase = Phase::Stopping;
            }
            _ => {}
        }
    }
}
