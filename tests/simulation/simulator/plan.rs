//! The plan that is drawn from a seed before a run begins: the stream, the settings, the faults and their
//! times.

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use redrive::{Backoff, Jitter, RecordOrder, RetryPolicy};

use super::fault::Fault;
use super::lineage::{self, PlannedShard};

/// A seed, and the faults and records to exclude. Exclusions do not change the other draws of the seed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    pub seed: u64,
    pub without: BTreeSet<Fault>,
    /// The maximum number of records that are planned.
    pub records: usize,
}

impl Options {
    /// Creates options that exclude nothing.
    pub fn of(seed: u64) -> Self {
        Options {
            seed,
            without: BTreeSet::new(),
            records: usize::MAX,
        }
    }
}

/// The behaviour of the processor with one record, in all of its calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behaviour {
    Succeeds,
    /// Succeeds after this number of failures.
    FailsFirst(u32),
    /// Fails once with a requested delay, then succeeds.
    AsksForTime(Duration),
    /// Hangs in the first call.
    HangsFirst,
    /// Panics in the first call.
    PanicsFirst,
    /// Fails permanently: bad data.
    IsBad,
    /// Fails permanently: the dependency refuses access.
    IsRefused,
    /// Fails each time, for an unknown reason.
    NeverSucceeds,
    AlwaysHangs,
    AlwaysPanics,
}

impl Behaviour {
    /// Returns whether the record succeeds after enough attempts.
    pub fn can_succeed(self) -> bool {
        use Behaviour::*;
        matches!(
            self,
            Succeeds | FailsFirst(_) | AsksForTime(_) | HangsFirst | PanicsFirst
        )
    }

    pub fn fault(self) -> Option<Fault> {
        use Behaviour::*;
        match self {
            Succeeds => None,
            FailsFirst(_) | AsksForTime(_) => Some(Fault::Flaky),
            HangsFirst | AlwaysHangs => Some(Fault::Hanging),
            PanicsFirst | AlwaysPanics => Some(Fault::Panicking),
            IsBad | IsRefused | NeverSucceeds => Some(Fault::Poison),
        }
    }
}

/// A record of the stream.
#[derive(Debug, Clone)]
pub struct Planned {
    pub shard: usize,
    pub key: String,
    /// The time at which the record is put into the stream.
    pub at: Duration,
    pub takes: Duration,
    pub behaviour: Behaviour,
}

/// The end of a consumer's run.
#[derive(Debug, Clone, Copy)]
pub enum End {
    /// The process crashes at its *n*-th contact with the world.
    Crash(u64),
    /// The consumer is shut down after this time.
    Shutdown(Duration),
    /// The consumer's future is dropped after this time. The process continues with another consumer.
    Dropped(Duration),
}

/// The way in which the processor fails while its dependency is down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outage {
    /// The processor returns an error of unknown scope.
    Unknown,
    /// The processor returns an error that names the dependency as its cause.
    Dependency,
    /// The processor hangs.
    Hangs,
}

/// A time in which nothing is read, perhaps longer than the retention of the stream.
#[derive(Debug, Clone, Copy)]
pub struct Absence {
    pub when: Away,
    pub length: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Away {
    /// No process runs after the planned end with this index.
    AfterEnd(usize),
    /// The process is suspended at this time.
    At(Duration),
}

/// The settings of a processor that gets several records in one call.
#[derive(Debug, Clone)]
pub struct Batches {
    pub size: usize,
    pub linger: Duration,
    /// The processor names the records that failed.
    pub names: bool,
}

impl Batches {
    fn new(seed: u64) -> Option<Self> {
        let mut rng = stream(seed, "batches");
        rng.random_bool(0.3).then(|| Batches {
            size: rng.random_range(2..=40),
            linger: millis(&mut rng, 0..500) * u32::from(rng.random_bool(0.5)),
            names: rng.random_bool(0.4),
        })
    }
}

#[derive(Debug, Clone)]
pub struct Plan {
    pub options: Options,
    pub shards: Vec<PlannedShard>,
    /// The time between the creation of a child shard and its listing.
    pub listing_lag: Duration,
    /// The records, in the order in which they are put.
    pub records: Vec<Planned>,
    pub ordering: RecordOrder,
    pub policy: RetryPolicy,
    pub max_attempts: u32,
    pub guard_records: u64,
    pub running: usize,
    pub bytes: usize,
    pub held: usize,
    /// The number of tasks of a shard that call the processor.
    pub workers: usize,
    pub page: u32,
    pub calls_per_second: f64,
    pub idle: Duration,
    pub write_interval: Duration,
    pub to_kinesis: bool,
    /// Checkpoints are in a lease table that other workers also use.
    pub leases: bool,
    /// The records are pushed by enhanced fan-out.
    pub fan_out: bool,
    /// The settings of a batch processor, if the processor gets several records in one call.
    pub batches: Option<Batches>,
    /// The time from which no faults are injected.
    pub calm: Duration,
    pub outages: Vec<(Range<Duration>, Outage)>,
    pub deploys: Vec<Range<Duration>>,
    pub windows: Vec<(Fault, Range<Duration>)>,
    pub jumps: Vec<(Duration, Duration)>,
    pub ends: Vec<(End, Duration)>,
    pub absence: Option<Absence>,
    /// The time at which the stream is deleted, and the time until another stream has its name.
    pub recreated: Option<(Duration, Duration)>,
    /// The first retention in hours, the time at which it changes, and the retention from then on.
    pub retention: (u32, Duration, u32),
    /// The probability of each kind of fault at each occasion.
    pub rates: Vec<f64>,
}

/// Creates the random numbers of one concern. Draws for other concerns do not change them.
pub fn stream(seed: u64, concern: &str) -> SmallRng {
    // FNV-1a.
    let hash = concern.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    SmallRng::seed_from_u64(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ hash)
}

pub fn millis(rng: &mut SmallRng, range: Range<u64>) -> Duration {
    Duration::from_millis(rng.random_range(range))
}

/// Draws a number from the range. All orders of magnitude are equally likely.
pub fn log_uniform(rng: &mut SmallRng, range: Range<f64>) -> f64 {
    (range.start.ln() + rng.random::<f64>() * (range.end.ln() - range.start.ln())).exp()
}

impl Plan {
    pub fn new(options: &Options) -> Self {
        let seed = options.seed;
        let wanted = |fault: Fault| !options.without.contains(&fault);
        let mut rng = stream(seed, "settings");
        let shards = rng.random_range(1..=3);
        let max_attempts = rng.random_range(2..=5);
        let (attempt_timeout, max_elapsed) = if rng.random_bool(0.3) {
            (Duration::from_secs(30), Duration::from_secs(30))
        } else {
            (Duration::from_secs(5), Duration::from_secs(60))
        };
        let cap = Duration::from_millis(*[500, 10_000].choose(&mut rng).unwrap_or(&500));
        let policy = RetryPolicy::exponential()
            .max_attempts(max_attempts)
            .attempt_timeout(attempt_timeout)
            .max_elapsed(max_elapsed)
            .backoff(Backoff::exponential().cap(cap))
            .jitter(if rng.random_bool(0.8) {
                Jitter::Full
            } else {
                Jitter::Decorrelated
            });
        let ordering = match rng.random_range(0..10) {
            0 => RecordOrder::Shard,
            1 => RecordOrder::Unordered,
            _ => RecordOrder::PartitionKey,
        };
        let small = rng.random_bool(0.3);
        let mut plan = Plan {
            shards: Vec::new(),
            listing_lag: Duration::ZERO,
            records: Vec::new(),
            ordering,
            policy,
            max_attempts,
            guard_records: rng.random_range(10..=40),
            running: if small { rng.random_range(1..=4) } else { 64 },
            bytes: if small { 11 << 20 } else { 64 << 20 },
            held: if small { rng.random_range(1..=20) } else { 4_096 },
            workers: *[1, 1, 1, 2, 3].choose(&mut stream(seed, "workers")).unwrap_or(&1),
            page: rng.random_range(1..=60),
            calls_per_second: *[0.5, 2.0, 5.0].choose(&mut rng).unwrap_or(&5.0),
            idle: millis(&mut rng, 1_000..10_000),
            write_interval: millis(&mut rng, 10..5_000),
            to_kinesis: rng.random_bool(0.5),
            calm: millis(&mut rng, 60_000..600_000),
            leases: stream(seed, "leases").random_bool(0.5),
            fan_out: stream(seed, "fan-out").random_bool(0.3),
            batches: Batches::new(seed),
            outages: Vec::new(),
            deploys: Vec::new(),
            windows: Vec::new(),
            jumps: Vec::new(),
            ends: Vec::new(),
            absence: None,
            recreated: None,
            retention: (168, Duration::MAX, 168),
            rates: Vec::new(),
            options: options.clone(),
        };
        plan.draw_recreated(&wanted);
        plan.draw_shards(shards, &wanted);
        plan.draw_records(&wanted);
        plan.draw_windows(&wanted);
        plan.draw_ends(&wanted);
        plan.draw_absence(&wanted);
        let mut rng = stream(seed, "rates");
        for &fault in Fault::ALL {
            let rate = match rng.random_range(0..10) {
                0..6 => 0.0,
                _ => log_uniform(&mut rng, 0.002..0.3),
            };
            plan.rates.push(if wanted(fault) { rate } else { 0.0 });
        }
        plan
    }

    fn draw_shards(&mut self, first: usize, wanted: &impl Fn(Fault) -> bool) {
        let mut rng = stream(self.options.seed, "shards");
        let changes = rng.random_range(0..=4);
        let end = self.calm.as_millis() as u64;
        // A new stream starts with the same shard names. Shards therefore change only after its creation.
        let earliest = self.recreated.map_or(Duration::ZERO, |(at, gone)| at + gone);
        let times = (0..changes)
            .map(|_| millis(&mut rng, 1..end))
            .filter(|at| *at > earliest)
            .collect();
        let lag = millis(&mut rng, 0..5_000);
        if wanted(Fault::LateListing) {
            self.listing_lag = lag;
        }
        self.shards = lineage::draw(&mut rng, first, times, wanted);
    }

    fn draw_recreated(&mut self, wanted: &impl Fn(Fault) -> bool) {
        let mut rng = stream(self.options.seed, "recreated");
        // The consumer distinguishes two streams of one name by their creation times, in whole seconds.
        let at = millis(&mut rng, 5_000..self.calm.as_millis() as u64);
        let gone = millis(&mut rng, 100..60_000);
        if rng.random_bool(0.1) && wanted(Fault::Recreated) {
            self.recreated = Some((at, gone));
        }
    }

    fn draw_absence(&mut self, wanted: &impl Fn(Fault) -> bool) {
        let mut rng = stream(self.options.seed, "absence");
        let happens = rng.random_bool(0.15);
        let length = Duration::from_secs(rng.random_range(12..100) * 60 * 60);
        let at = millis(&mut rng, 1..self.calm.as_millis() as u64);
        let after = rng.random_range(0..5);
        let when = match after < self.ends.len() {
            true => Away::AfterEnd(after),
            false => Away::At(at),
        };
        if happens && wanted(Fault::Absence) {
            self.absence = Some(Absence { when, length });
        }
        let hours = [24, 48, 168];
        let first = *hours.choose(&mut rng).unwrap_or(&24);
        let second = *hours.choose(&mut rng).unwrap_or(&24);
        // The consumer cannot detect a loss from before the retention was raised.
        let second = match self.absence {
            Some(_) => first.min(second),
            None => second,
        };
        let from = millis(&mut rng, 1..self.calm.as_millis() as u64);
        self.retention = match wanted(Fault::RetentionChanged) {
            true => (first, from, second),
            false => (first, Duration::MAX, first),
        };
    }

    /// Returns the retention of the stream in hours.
    pub fn retention_hours(&self, now: Duration) -> u32 {
        let (first, until, second) = self.retention;
        if now < until { first } else { second }
    }

    /// Returns whether the stream does not exist.
    pub fn is_gone(&self, now: Duration) -> bool {
        self.recreated
            .is_some_and(|(at, gone)| (at..at + gone).contains(&now))
    }

    fn draw_records(&mut self, wanted: &impl Fn(Fault) -> bool) {
        let mut rng = stream(self.options.seed, "records");
        let count = log_uniform(&mut rng, 5.0..200.0) as usize;
        let keys = rng.random_range(1..=count);
        let over = millis(&mut rng, 1..self.calm.as_millis() as u64);
        let (odd, bad) = (rng.random_range(0.0..0.3), rng.random_range(0.0..0.2));
        let mut times: Vec<Duration> = (0..count).map(|_| over.mul_f64(rng.random())).collect();
        times.sort();
        for at in times {
            // Some keys are much more frequent than others.
            let key = (keys as f64 * rng.random::<f64>().powi(2)) as usize;
            let own_failures = rng.random_range(1..=self.max_attempts);
            let delay = millis(&mut rng, 1..20_000);
            let behaviour = if rng.random_bool(odd) {
                *[
                    Behaviour::FailsFirst(own_failures),
                    Behaviour::FailsFirst(1),
                    Behaviour::AsksForTime(delay),
                    Behaviour::HangsFirst,
                    Behaviour::PanicsFirst,
                ]
                .choose(&mut rng)
                .unwrap_or(&Behaviour::Succeeds)
            } else if rng.random_bool(bad) {
                *[
                    Behaviour::IsBad,
                    Behaviour::IsBad,
                    Behaviour::IsRefused,
                    Behaviour::NeverSucceeds,
                    Behaviour::NeverSucceeds,
                    Behaviour::AlwaysHangs,
                    Behaviour::AlwaysPanics,
                ]
                .choose(&mut rng)
                .unwrap_or(&Behaviour::IsBad)
            } else {
                Behaviour::Succeeds
            };
            // Failures are slow more often: most bugs show when other events happen during a failure.
            let slow = rng.random_bool(if behaviour.can_succeed() { 0.05 } else { 0.3 });
            let takes = if slow {
                millis(&mut rng, 500..4_000)
            } else {
                millis(&mut rng, 0..30)
            };
            let key = format!("key-{key}");
            self.records.push(Planned {
                shard: lineage::owner(&self.shards, &key, at),
                key,
                at,
                takes: if slow && !wanted(Fault::Slow) {
                    Duration::ZERO
                } else {
                    takes
                },
                behaviour: if behaviour.fault().is_none_or(wanted) {
                    behaviour
                } else {
                    Behaviour::Succeeds
                },
            });
        }
        self.records.truncate(self.options.records);
    }

    fn draw_windows(&mut self, wanted: &impl Fn(Fault) -> bool) {
        let end = self.calm.as_millis() as u64;
        let draw = |fault: Fault, most: u32, lengths: Range<f64>| {
            let mut rng = stream(self.options.seed, fault.name());
            let count = rng.random_range(0..=most);
            let windows = (0..if wanted(fault) { count } else { 0 }).map(|_| {
                let from = millis(&mut rng, 0..end);
                let length = log_uniform(&mut rng, lengths.clone());
                from..(from + Duration::from_secs_f64(length)).min(self.calm)
            });
            let windows: Vec<Range<Duration>> = windows.collect();
            (windows, rng)
        };
        let (outages, mut rng) = draw(Fault::Outage, 2, 2.0..300.0);
        let (deploys, _) = draw(Fault::BadDeploy, 1, 2.0..120.0);
        let (jumps, mut jump_rng) = draw(Fault::ClockJump, 2, 5.0..1_200.0);
        let others = [
            (Fault::SinkOutage, 2),
            (Fault::StoreOutage, 2),
            (Fault::KinesisOutage, 1),
            (Fault::AccessDenied, 1),
        ];
        for (fault, most) in others {
            let (windows, _) = draw(fault, most, 1.0..120.0);
            self.windows
                .extend(windows.into_iter().map(|window| (fault, window)));
        }
        self.outages = outages
            .into_iter()
            .map(|window| {
                let how = [Outage::Unknown, Outage::Dependency, Outage::Hangs];
                (window, *how.choose(&mut rng).unwrap_or(&Outage::Unknown))
            })
            .collect();
        // Half of the seeds have none.
        if rng.random_bool(0.5) {
            self.deploys = deploys;
        }
        if jump_rng.random_bool(0.3) {
            self.jumps = jumps
                .into_iter()
                .map(|jump| (jump.start, jump.end - jump.start))
                .collect();
        }
    }

    fn draw_ends(&mut self, wanted: &impl Fn(Fault) -> bool) {
        let mut rng = stream(self.options.seed, "ends");
        for _ in 0..rng.random_range(0..=5) {
            let crash = log_uniform(&mut rng, 1.0..500.0) as u64;
            let after = Duration::from_secs_f64(log_uniform(&mut rng, 0.01..60.0));
            let pause = millis(&mut rng, 0..60_000);
            let (fault, end) = match rng.random_range(0..10) {
                0..6 => (Fault::Crash, End::Crash(crash)),
                6..8 => (Fault::Shutdown, End::Shutdown(after)),
                _ => (Fault::Dropped, End::Dropped(after)),
            };
            if wanted(fault) {
                self.ends.push((end, pause));
            }
        }
    }

    /// Returns the time limit for settling all records, from the last injected fault on.
    pub fn patience(&self) -> Duration {
        let patience = Duration::from_secs(3 * 60 * 60);
        let is_closed = |shard: &PlannedShard| shard.closes.is_some();
        if self.ordering != RecordOrder::Shard && self.held > 20 && !self.shards.iter().any(is_closed) {
            return patience;
        }
        // A failing record is held for 15 minutes if nothing else can succeed. This happens if the records
        // that can succeed wait behind it, or for the end of a parent shard.
        let hopeless = self
            .records
            .iter()
            .filter(|record| !record.behaviour.can_succeed())
            .count();
        patience + Duration::from_secs(20 * 60) * hopeless as u32
    }

    /// Returns whether a window of this kind of fault is open.
    pub fn is_within(&self, fault: Fault, now: Duration) -> bool {
        self.windows
            .iter()
            .any(|(kind, window)| *kind == fault && window.contains(&now))
    }

    /// Returns the way in which the processor fails for all records at this time.
    pub fn outage(&self, now: Duration) -> Option<Outage> {
        let outage = self.outages.iter().find(|(window, _)| window.contains(&now));
        outage.map(|(_, how)| *how)
    }

    /// Returns the index of the outage at this time.
    pub fn outage_number(&self, now: Duration) -> Option<usize> {
        self.outages.iter().position(|(window, _)| window.contains(&now))
    }

    pub fn is_bad_deploy(&self, now: Duration) -> bool {
        self.deploys.iter().any(|window| window.contains(&now))
    }
}
