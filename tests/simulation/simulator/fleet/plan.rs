//! The plan of a fleet that is drawn from a seed: the stream, the machines, the tables and their faults.

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use redrive::RetryPolicy;

use super::tables::Kind;
use crate::fault::Fault;
use crate::lineage;
use crate::plan::{Behaviour, Options, Plan, Planned, log_uniform, millis, stream};
use crate::world::Skew;

/// The end of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Killed,
    Stopped,
}

/// The life of one worker on a machine.
#[derive(Debug, Clone)]
pub struct Life {
    pub joins: Duration,
    /// The end of the worker. `None`: the worker runs until the end of the simulation.
    pub ends: Option<(Duration, End)>,
}

/// A machine, on which one worker runs at a time.
#[derive(Debug, Clone)]
pub struct Machine {
    pub lives: Vec<Life>,
    /// The times at which the machine makes no progress.
    pub pauses: Vec<Range<Duration>>,
    pub skew: Skew,
}

/// An act of another program on the leader's item.
#[derive(Debug, Clone, Copy)]
pub enum LeaderFault {
    Deleted,
    /// The item says that another worker is the leader, for this time.
    Replaced(Duration),
    Released,
}

/// The reply of a table that is down.
#[derive(Debug, Clone, Copy)]
pub enum Outage {
    Throttled,
    Fails,
    Unreachable,
}

#[derive(Debug)]
pub struct FleetPlan {
    /// The stream, and the faults of single calls.
    pub base: Plan,
    pub machines: Vec<Machine>,
    pub leader: Vec<(Duration, LeaderFault)>,
    pub outages: Vec<(Kind, Outage, Range<Duration>)>,
    /// The time for which a worker runs before the next worker runs. Within this time, the clocks of two workers
    /// may differ.
    pub turn: Duration,
    /// The time that each half of a call to a table takes, in milliseconds.
    pub latency: Range<u64>,
    /// The largest age of what a read without strong consistency returns, in milliseconds.
    pub staleness: u64,
    /// The largest delay of the index, in milliseconds.
    pub index_delay: u64,
    pub has_index: bool,
    /// The number of items on a page of Scan or Query.
    pub page: usize,
}

const TURNS: [Duration; 3] = [Duration::from_millis(40), Duration::from_millis(80), LONGEST_TURN];
const LONGEST_TURN: Duration = Duration::from_millis(120);

/// The largest delay of the index in a seed without disturbances, in milliseconds: a quarter of the failover time.
const INDEX_DELAY_OF_UNDISTURBED: u64 = 2_500;

/// The faults of single calls that a fleet meets.
const CALL_FAULTS: [Fault; 13] = [
    Fault::Throttled,
    Fault::ServerError,
    Fault::RequestLost,
    Fault::ResponseLost,
    Fault::Silence,
    Fault::RequestDoubled,
    Fault::SlowResponse,
    Fault::LateWrite,
    Fault::ExpiredIterator,
    Fault::EmptyPage,
    Fault::PartialListing,
    Fault::RepeatedListing,
    Fault::NoNextIterator,
];

/// The faults that can keep a worker from renewing its leases. Some seeds have none of them.
const DISTURBANCES: [Fault; 11] = [
    Fault::Throttled,
    Fault::ServerError,
    Fault::RequestLost,
    Fault::ResponseLost,
    Fault::Silence,
    Fault::RequestDoubled,
    Fault::SlowResponse,
    Fault::LateWrite,
    Fault::TableOutage,
    Fault::Killed,
    Fault::Paused,
];

impl FleetPlan {
    pub fn new(options: &Options) -> Self {
        let seed = options.seed;
        let mut options = options.clone();
        if stream(seed, "disturbed").random_bool(0.2) {
            options.without.extend(DISTURBANCES);
        }
        let options = &options;
        let wanted = |fault: Fault| !options.without.contains(&fault);
        let mut rng = stream(seed, "fleet");
        let workers = rng.random_range(3..=8);
        let calm = millis(&mut rng, 60_000..200_000);
        let mut plan = FleetPlan {
            base: base(options, &mut rng, calm),
            machines: Vec::new(),
            leader: Vec::new(),
            outages: Vec::new(),
            turn: *TURNS.choose(&mut rng).unwrap_or(&LONGEST_TURN),
            latency: [1..10, 1..40, 10..400].choose(&mut rng).cloned().unwrap_or(1..40),
            staleness: rng.random_range(1..5_000),
            index_delay: rng.random_range(1..10_000),
            has_index: true,
            page: *[2, 5, 20].choose(&mut rng).unwrap_or(&5),
        };
        if !wanted(Fault::StaleRead) {
            plan.staleness = 0;
        }
        if !wanted(Fault::IndexLate) {
            plan.index_delay = 0;
        }
        if plan.is_undisturbed() {
            // A worker finds a new lease in the index, and must do so before the lease expires.
            plan.index_delay = plan.index_delay.min(INDEX_DELAY_OF_UNDISTURBED);
        }
        plan.has_index = !(rng.random_bool(0.1) && wanted(Fault::IndexMissing));
        plan.machines = (0..workers)
            .map(|machine| machine_of(seed, machine, calm, &wanted))
            .collect();
        plan.draw_leader(&wanted);
        plan.draw_outages(&wanted);
        plan
    }

    fn draw_leader(&mut self, wanted: &impl Fn(Fault) -> bool) {
        let mut rng = stream(self.base.options.seed, "leader");
        for _ in 0..rng.random_range(0..=4) {
            let at = millis(&mut rng, 1..self.base.calm.as_millis() as u64);
            let lasts = millis(&mut rng, 5_000..30_000);
            let (kind, fault) = match rng.random_range(0..3) {
                0 => (Fault::LeaderDeleted, LeaderFault::Deleted),
                1 => (Fault::LeaderReplaced, LeaderFault::Replaced(lasts)),
                _ => (Fault::LeaderReleased, LeaderFault::Released),
            };
            if wanted(kind) {
                self.leader.push((at, fault));
            }
        }
        self.leader.sort_by_key(|(at, _)| *at);
    }

    fn draw_outages(&mut self, wanted: &impl Fn(Fault) -> bool) {
        let mut rng = stream(self.base.options.seed, "outages");
        let calm = self.base.calm;
        for _ in 0..rng.random_range(0..=3) {
            let kind = *Kind::ALL.choose(&mut rng).unwrap_or(&Kind::Leases);
            let how = [Outage::Throttled, Outage::Fails, Outage::Unreachable];
            let how = *how.choose(&mut rng).unwrap_or(&Outage::Fails);
            let from = millis(&mut rng, 0..calm.as_millis() as u64);
            let length = Duration::from_secs_f64(log_uniform(&mut rng, 1.0..60.0));
            if wanted(Fault::TableOutage) {
                self.outages.push((kind, how, from..(from + length).min(calm)));
            }
        }
    }

    /// Returns true if nothing keeps a worker from renewing its leases.
    pub fn is_undisturbed(&self) -> bool {
        let without = &self.base.options.without;
        DISTURBANCES.iter().all(|fault| without.contains(fault))
    }

    /// Returns the reply of a table that is down now.
    pub fn outage(&self, table: Kind, now: Duration) -> Option<Outage> {
        let mut outages = self.outages.iter();
        let found = outages.find(|(kind, _, window)| *kind == table && window.contains(&now));
        found.map(|(_, how, _)| *how)
    }
}

/// Draws the stream and the faults of single calls.
fn base(options: &Options, rng: &mut SmallRng, calm: Duration) -> Plan {
    let wanted = |fault: Fault| !options.without.contains(&fault);
    let mut plan = Plan::new(options);
    plan.calm = calm;
    let first = rng.random_range(2..=8);
    let changes = rng.random_range(0..=3);
    let times: BTreeSet<Duration> = (0..changes)
        .map(|_| millis(rng, 1..calm.as_millis() as u64))
        .collect();
    plan.shards = lineage::draw(rng, first, times, &wanted);
    plan.records = records(&plan, rng, &wanted);
    plan.leases = true;
    (plan.fan_out, plan.to_kinesis, plan.batches) = (false, false, None);
    (plan.absence, plan.recreated, plan.retention) = (None, None, (168, Duration::MAX, 168));
    plan.ends.clear();
    plan.jumps.clear();
    plan.outages.clear();
    plan.deploys.clear();
    plan.windows.clear();
    // Only a crash loop makes a dead letter.
    plan.policy = RetryPolicy::exponential()
        .attempt_timeout(Duration::from_secs(60))
        .max_elapsed(Duration::from_secs(60 * 60))
        .max_attempts(100);
    plan.page = rng.random_range(5..=60);
    plan.idle = millis(rng, 2_000..8_000);
    plan.calls_per_second = 2.0;
    plan.write_interval = millis(rng, 500..5_000);
    // Calls are frequent, and most seeds must get past the start.
    for (fault, rate) in Fault::ALL.iter().zip(&mut plan.rates) {
        *rate = if CALL_FAULTS.contains(fault) {
            *rate * 0.3
        } else {
            0.0
        };
    }
    plan
}

fn records(plan: &Plan, rng: &mut SmallRng, wanted: &impl Fn(Fault) -> bool) -> Vec<Planned> {
    let count = log_uniform(rng, 20.0..200.0) as usize;
    let keys = rng.random_range(1..=count);
    let (flaky, slow) = (rng.random_range(0.0..0.1), rng.random_range(0.0..0.1));
    let mut times: Vec<Duration> = (0..count).map(|_| plan.calm.mul_f64(rng.random())).collect();
    times.sort();
    let records = times.into_iter().map(|at| {
        let key = format!("key-{}", (keys as f64 * rng.random::<f64>().powi(2)) as usize);
        let is_flaky = rng.random_bool(flaky);
        let takes = match rng.random_bool(slow) {
            true => Duration::from_secs_f64(log_uniform(rng, 0.5..28.0)),
            false => millis(rng, 0..30),
        };
        Planned {
            shard: lineage::owner(&plan.shards, &key, at),
            key,
            at,
            takes: match wanted(Fault::Slow) {
                true => takes,
                false => Duration::ZERO,
            },
            behaviour: match is_flaky && wanted(Fault::Flaky) {
                true => Behaviour::FailsFirst(1),
                false => Behaviour::Succeeds,
            },
        }
    });
    let mut records: Vec<Planned> = records.collect();
    records.truncate(plan.options.records);
    records
}

/// Draws the lives and the faults of a machine. The worker of the first machine is there in the end.
fn machine_of(seed: u64, number: usize, calm: Duration, wanted: &impl Fn(Fault) -> bool) -> Machine {
    let mut rng = stream(seed, &format!("machine {number}"));
    let end = calm.as_millis() as u64;
    let joins_late = rng.random_bool(0.3);
    let (late, early) = (millis(&mut rng, 0..end), millis(&mut rng, 0..5_000));
    let mut joins = match joins_late && number > 0 && wanted(Fault::Joined) {
        true => late,
        false => early,
    };
    let mut lives = Vec::new();
    for left in (0..3).rev() {
        let ends = joins + Duration::from_secs_f64(log_uniform(&mut rng, 0.5..200.0));
        let absent = Duration::from_secs_f64(log_uniform(&mut rng, 0.1..90.0));
        let (fault, how) = match rng.random_bool(0.6) {
            true => (Fault::Killed, End::Killed),
            false => (Fault::Stopped, End::Stopped),
        };
        let stays = rng.random_bool(0.4);
        let returns = rng.random_bool(0.8) || number == 0;
        // A worker that stops needs up to 20 s. After the last fault no worker comes or goes.
        let last = calm.saturating_sub(Duration::from_secs(25));
        if left == 0 || stays || ends >= last || !wanted(fault) {
            lives.push(Life { joins, ends: None });
            break;
        }
        lives.push(Life {
            joins,
            ends: Some((ends, how)),
        });
        if !returns || ends + absent >= calm {
            if number == 0 {
                // Workers join at the beginning of a turn.
                lives.push(Life {
                    joins: calm - LONGEST_TURN,
                    ends: None,
                });
            }
            break;
        }
        joins = ends + absent;
    }
    let pauses = rng.random_range(0..=3);
    let pauses = (0..pauses).map(|_| {
        let from = millis(&mut rng, 0..end);
        let length = Duration::from_secs_f64(log_uniform(&mut rng, 0.5..90.0));
        from..(from + length).min(calm)
    });
    let pauses: Vec<Range<Duration>> = pauses.collect();
    let is_paused = rng.random_bool(0.4) && wanted(Fault::Paused);
    let (by, ahead) = (millis(&mut rng, 0..180_000), rng.random_bool(0.5));
    let by = match rng.random_bool(0.5) && wanted(Fault::ClockSkew) {
        true => by,
        false => Duration::ZERO,
    };
    Machine {
        lives,
        pauses: if is_paused { pauses } else { Vec::new() },
        skew: match ahead {
            true => Skew::Ahead(by),
            false => Skew::Behind(by),
        },
    }
}
