//! The world outside of the process, which outlives the process: the stream, the stored data, the time and
//! the faults.

use std::collections::{HashMap, HashSet};
use std::future::pending;
use std::panic::resume_unwind;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use rand::RngExt;
use rand::rngs::SmallRng;
use redrive::checkpoint::Checkpoint;
use redrive::dead_letter::DeadLetter;
use redrive::observer::{Event, Observer, ProtectionEvent, RecordEvent, ShardEvent};
use redrive::pipeline::Capacity;
use redrive::{Position, Record, SequenceNumber, WallClock};
use serde_json::Value;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::STREAM;
use super::dynamo::{self, Item};
use super::fault::{Counts, Fault};
use super::lineage;
use super::oracle::{Oracle, Promise, Violation};
use super::plan::{Behaviour, Plan, Planned, stream};
use super::subscription::Subscriptions;

/// The simulated world. Clones share one world.
#[derive(Clone)]
pub struct World(Arc<Shared>);

struct Shared {
    plan: Plan,
    state: Mutex<State>,
    changed: Notify,
}

/// The wall-clock time at which the simulation starts: the beginning of 2026, as time since 1970.
const YEAR_2026: Duration = Duration::from_secs(1_767_225_600);
/// The interval of the records that keep the stream alive when no faults are injected any more.
const BEAT: Duration = Duration::from_secs(5);
pub const BEAT_KEY: &str = "beat";
/// The sequence number of a shard's first record.
const FIRST: usize = 100;
/// The difference between the sequence numbers of two consecutive records.
pub const GAP: usize = 7;
/// The difference between clocks that the consumer tolerates.
const CLOCK_SKEW: Duration = Duration::from_secs(60);
/// The failover time of leases.
const FAILOVER: Duration = Duration::from_secs(10);

/// The difference between the wall clock of a machine and the true time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skew {
    Ahead(Duration),
    Behind(Duration),
}

impl Skew {
    pub fn is_wrong(self) -> bool {
        let (Skew::Ahead(by) | Skew::Behind(by)) = self;
        by > Duration::ZERO
    }
}

pub struct State {
    pub oracle: Oracle,
    pub counts: Counts,
    /// The planned time at which the clock of this process started.
    epoch: Duration,
    started: Option<Instant>,
    /// The start and the length of the absence. The planned time does not advance during the absence.
    absent: Option<(Duration, Duration)>,
    /// The length of the absence, if this process was suspended during it.
    suspended: Duration,
    /// The stream was deleted and created again.
    is_recreated: bool,
    /// The process is dead. Its actions have no effect any more.
    dead: bool,
    contacts: u64,
    dies_at: Option<u64>,
    rngs: Vec<SmallRng>,
    pub timing: SmallRng,
    stored: HashMap<usize, Checkpoint>,
    late: Vec<(Duration, usize, Checkpoint)>,
    /// The rows of the lease table. Empty if the plan uses no leases.
    rows: HashMap<String, Item>,
    late_updates: Vec<(Duration, Value)>,
    /// The time since which another worker has leased each shard.
    foreign_since: HashMap<usize, Duration>,
    /// The end of the last suspension of the process.
    stood_still: Option<Duration>,
    /// The shards whose row was last written by a late write.
    put_back: HashSet<usize>,
    pub subscriptions: Subscriptions,
    /// The time of the last read of each shard.
    pub read_at: HashMap<usize, Duration>,
    beats: u32,
    capacity: Option<Capacity>,
    step: u64,
    trace: Vec<Step>,
    print: bool,
}

/// A step of the simulation: its time in microseconds, what happened, and to what.
pub type Step = (u128, &'static str, usize, usize);

impl World {
    pub fn new(plan: Plan, print: bool) -> Self {
        if print {
            println!("{plan:#?}");
        }
        let seed = plan.options.seed;
        let mut oracle = Oracle::new(&plan.shards);
        for planned in &plan.records {
            put(&mut oracle, planned.clone(), Duration::ZERO);
        }
        World(Arc::new(Shared {
            state: Mutex::new(State {
                oracle,
                counts: reshards(&plan),
                epoch: Duration::ZERO,
                started: None,
                absent: None,
                suspended: Duration::ZERO,
                is_recreated: false,
                dead: false,
                contacts: 0,
                dies_at: None,
                rngs: Fault::ALL
                    .iter()
                    .map(|fault| stream(seed, fault.name()))
                    .collect(),
                timing: stream(seed, "timing"),
                stored: HashMap::new(),
                late: Vec::new(),
                rows: HashMap::new(),
                late_updates: Vec::new(),
                foreign_since: HashMap::new(),
                stood_still: None,
                put_back: HashSet::new(),
                subscriptions: Subscriptions::default(),
                read_at: HashMap::new(),
                beats: 0,
                capacity: None,
                step: 0,
                trace: Vec::new(),
                print,
            }),
            plan,
            changed: Notify::new(),
        }))
    }

    pub fn plan(&self) -> &Plan {
        &self.0.plan
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a process. Sets the wall clock of redrive to the simulated time.
    pub fn process_begins(&self) {
        let mut state = self.state();
        state.started = Some(Instant::now());
        state.dead = false;
        WallClock::set(SystemTime::UNIX_EPOCH + YEAR_2026 + state.clock());
    }

    /// Sets the clocks to those of a process that was started at `born`: at `since` on its own clock. Its wall
    /// clock is ahead by `ahead`, or behind.
    pub fn process_runs(&self, born: Duration, since: Instant, ahead: Skew) {
        let mut state = self.state();
        (state.epoch, state.started) = (born, Some(since));
        let wall = SystemTime::UNIX_EPOCH + YEAR_2026 + state.clock();
        WallClock::set(match ahead {
            Skew::Ahead(by) => wall + by,
            Skew::Behind(by) => wall - by,
        });
    }

    /// Sets the clock while no process runs.
    pub fn no_process_runs(&self, now: Duration) {
        let mut state = self.state();
        (state.epoch, state.started) = (now, None);
    }

    /// Ends the process. The next process starts after `pause`.
    pub fn process_ends(&self, pause: Duration) {
        let mut state = self.state();
        state.epoch = state.now() + pause;
        state.started = None;
        state.suspended = Duration::ZERO;
        state.dead = true;
        state.oracle.process_ends();
    }

    /// Lets `length` pass while no process runs.
    pub fn is_away(&self, length: Duration) {
        self.count(Fault::Absence);
        self.state().skip(length);
    }

    /// Lets `length` pass while the process is suspended.
    pub fn is_suspended(&self, length: Duration) {
        self.count(Fault::Absence);
        let mut state = self.state();
        state.skip(length);
        state.suspended = length;
        state.stood_still = Some(state.now());
    }

    /// Starts a run of the consumer. The process crashes at the contact number `dies_at`, if given.
    pub fn run_begins(&self, capacity: &Capacity, dies_at: Option<u64>) {
        let mut state = self.state();
        state.note("run", 0, 0);
        if state.print {
            println!("{:#?}", state.stored);
        }
        state.contacts = 0;
        state.dies_at = dies_at;
        state.capacity = Some(capacity.clone());
        state.oracle.run_begins();
    }

    /// Counts a contact with the world, at which the process may crash. Never returns in a dead process.
    pub async fn contact(&self, what: &'static str, a: usize, b: usize) {
        let dead = {
            let mut state = self.state();
            if !state.dead {
                state.note(what, a, b);
                state.contacts += 1;
                if state.dies_at == Some(state.contacts) {
                    state.dead = true;
                    state.counts.add(Fault::Crash);
                    self.0.changed.notify_waiters();
                }
            }
            state.dead
        };
        if dead {
            pending::<()>().await;
        }
    }

    /// Stores the first violation of a promise, which ends the simulation.
    pub fn check(&self, checked: Result<(), Violation>) {
        if let Err(violation) = checked {
            let mut state = self.state();
            if !state.dead {
                state.oracle.violation.get_or_insert(violation);
                self.0.changed.notify_waiters();
            }
        }
    }

    pub fn violated(&self, promise: Promise, what: String) {
        self.check(Err(Violation { promise, what }));
    }

    /// Returns when the condition is met. Checks it after each [change](World::changed).
    pub async fn until(&self, mut holds: impl FnMut(&State) -> bool) {
        loop {
            let changed = self.0.changed.notified();
            if holds(&self.state()) {
                return;
            }
            changed.await;
        }
    }

    /// Notifies the tasks that wait in [`until`](World::until).
    pub fn changed(&self) {
        self.0.changed.notify_waiters();
    }

    pub fn is_dead(&self) -> bool {
        self.state().dead
    }

    /// Returns when the process is dead or a promise is broken.
    pub async fn over(&self) {
        self.until(|state| state.dead || state.oracle.violation.is_some())
            .await;
    }

    /// Returns whether this kind of fault strikes now, and counts it.
    pub fn strikes(&self, fault: Fault) -> bool {
        let rate = self.plan().rates[fault as usize];
        let mut state = self.state();
        if rate == 0.0 || state.now() >= self.plan().calm {
            return false;
        }
        let strikes = state.rngs[fault as usize].random_bool(rate);
        if strikes {
            state.note(fault.name(), 0, 0);
            state.counts.add(fault);
        }
        strikes
    }

    /// Returns whether a window of this kind of fault is open, and counts the fault.
    pub fn is_down(&self, fault: Fault) -> bool {
        let mut state = self.state();
        let down = self.plan().is_within(fault, state.now());
        if down {
            state.counts.add(fault);
        }
        down
    }

    pub fn count(&self, fault: Fault) {
        self.state().counts.add(fault);
    }

    /// Draws the time that an answer takes.
    pub fn latency(&self) -> Duration {
        let slow = self.strikes(Fault::SlowResponse);
        let mut state = self.state();
        Duration::from_millis(if slow {
            state.timing.random_range(1_000..20_000)
        } else {
            state.timing.random_range(1..40)
        })
    }

    pub fn now(&self) -> Duration {
        self.state().now()
    }

    /// Records a dead letter that the sink has stored.
    pub fn letter_stored(&self, letter: &DeadLetter) {
        let Some(place) = place(&letter.shard.to_string(), &letter.sequence_number) else {
            return self.violated(
                Promise::LetterWhole,
                format!("the dead letter belongs to no record: {letter:?}"),
            );
        };
        let checked = {
            let mut state = self.state();
            state.note("letter", place.0, place.1);
            let now = state.clock();
            state.oracle.letter_stored(self.plan(), now, place, letter)
        };
        self.check(checked);
        self.changed();
    }

    /// Records a dead letter that the sink has received.
    pub fn letter_sent(&self, letter: &DeadLetter) {
        if let Some(place) = place(&letter.shard.to_string(), &letter.sequence_number) {
            let checked = self
                .state()
                .oracle
                .letter_sent(self.plan(), place, &letter.attempts);
            self.check(checked);
        }
    }

    /// Returns the stored checkpoint of a shard to the current run.
    pub fn load(&self, shard: usize) -> Option<Checkpoint> {
        let mut state = self.state();
        state.apply_late();
        let stored = state.stored.get(&shard).cloned();
        let is_outdated = state.is_outdated(self.plan(), shard, stored.as_ref());
        state.oracle.row_loaded(shard, stored.as_ref(), is_outdated);
        drop(state);
        self.changed();
        stored
    }

    /// Returns the stored checkpoint of a shard for a list of all checkpoints. Counts as loading the
    /// checkpoint, unless the run has already loaded it.
    pub fn listed(&self, shard: usize) -> Option<Checkpoint> {
        if !self.state().oracle.has_loaded(shard) {
            return self.load(shard);
        }
        let mut state = self.state();
        state.apply_late();
        state.stored.get(&shard).cloned()
    }

    pub fn save(&self, shard: usize, checkpoint: Checkpoint) {
        let checked = {
            let mut state = self.state();
            state.apply_late();
            state.note("saved", shard, 0);
            let checked = state.oracle.checkpoint_stored(shard, &checkpoint);
            state.stored.insert(shard, checkpoint);
            state.put_back.remove(&shard);
            checked
        };
        self.check(checked);
    }

    /// Records that the process is suspended for `length`.
    pub fn stands_still(&self, length: Duration) {
        let mut state = self.state();
        state.stood_still = Some(state.now() + length);
    }

    pub fn row(&self, key: &str) -> Option<Item> {
        self.state().rows.get(key).cloned()
    }

    /// Returns up to `most` rows after `key`, in the order of their keys.
    pub fn rows_after(&self, key: &str, most: usize) -> Vec<Item> {
        let state = self.state();
        let mut keys: Vec<&String> = state.rows.keys().filter(|other| other.as_str() > key).collect();
        keys.sort();
        keys.iter()
            .take(most)
            .map(|key| state.rows[*key].clone())
            .collect()
    }

    /// Writes a row, and saves its checkpoint if the position or the settled-ahead set has changed.
    pub fn write_row(&self, row: Item) {
        let (Some(shard), Some(checkpoint)) = (dynamo::shard_of(&row), dynamo::checkpoint(&row)) else {
            return;
        };
        let key = shard_id(shard);
        let moved = {
            let mut state = self.state();
            let before = state.rows.insert(key, row.clone()).unwrap_or_default();
            let now = state.now();
            match dynamo::is_foreign(&row) {
                true => drop(state.foreign_since.entry(shard).or_insert(now)),
                false => drop(state.foreign_since.remove(&shard)),
            }
            dynamo::moves(&before, &row)
        };
        if moved {
            self.save(shard, checkpoint);
        }
    }

    /// Schedules an update that takes effect later, if its condition still holds then.
    pub fn update_late(&self, update: Value) {
        let mut state = self.state();
        let due = state.now() + Duration::from_secs(state.timing.random_range(1..90));
        state.late_updates.push((due, update));
    }

    /// Returns the late updates that take effect now. Their callers have given them up.
    pub fn late_updates(&self) -> Vec<Value> {
        let mut state = self.state();
        let now = state.now();
        let due = state.late_updates.extract_if(.., |(due, _)| *due <= now);
        due.map(|(_, update)| update).collect()
    }

    /// Checks that no record starts in a shard that another worker has leased for longer than the failover
    /// time.
    pub fn check_fenced(&self, shard: usize) {
        let (now, since, still) = {
            let state = self.state();
            let since = state.foreign_since.get(&shard).copied();
            (state.now(), since, state.stood_still)
        };
        // A process that was suspended has to check the time first.
        let awake = still.is_none_or(|at| now >= at + Duration::from_millis(100));
        if awake && since.is_some_and(|since| now > since + FAILOVER) {
            self.violated(
                Promise::Fenced,
                format!("shard {shard} is leased by another worker since {since:?}, now {now:?}"),
            );
        }
    }

    /// Schedules a write of a checkpoint that takes effect later.
    pub fn save_late(&self, shard: usize, checkpoint: Checkpoint) {
        let mut state = self.state();
        let due = state.now() + Duration::from_secs(state.timing.random_range(1..90));
        state.late.push((due, shard, checkpoint));
    }
}

impl State {
    /// Returns the planned time. It does not advance during an absence.
    pub fn now(&self) -> Duration {
        let elapsed = self.started.map_or(Duration::ZERO, |started| started.elapsed());
        self.epoch + elapsed.saturating_sub(self.suspended)
    }

    /// Returns the time since the start of the simulation, including an absence.
    pub fn clock(&self) -> Duration {
        self.clock_at(self.now())
    }

    /// Converts a planned time to the time since the start of the simulation.
    pub fn clock_at(&self, planned: Duration) -> Duration {
        match self.absent {
            Some((at, length)) if planned >= at => planned + length,
            _ => planned,
        }
    }

    /// Starts an absence: lets `length` pass, and delays the arrival of all later records by it.
    fn skip(&mut self, length: Duration) {
        let now = self.now();
        self.absent = Some((now, length));
        for fate in self.oracle.shards.iter_mut().flatten() {
            if fate.planned.at >= now {
                let arrival = SystemTime::UNIX_EPOCH + YEAR_2026 + fate.planned.at + length;
                fate.record = record(
                    &fate.planned,
                    fate.record.sequence_number().clone(),
                    fate.record.payload().clone(),
                    arrival,
                );
            }
        }
    }

    /// Returns whether a run that reads this row of a shard recognizes it as one of an earlier stream.
    pub fn is_outdated(&self, plan: &Plan, shard: usize, row: Option<&Checkpoint>) -> bool {
        let created = Duration::from_secs(self.created(plan).as_secs());
        let created = SystemTime::UNIX_EPOCH + created;
        let is_there = !plan.is_gone(self.now()) && !self.has_vanished(plan, shard);
        is_there && row.is_some_and(|row| is_of_another_stream(row, created))
    }

    /// Drops the records that are older than the retention, or belong to the deleted stream.
    pub fn drop_old(&mut self, plan: &Plan) {
        let now = self.now();
        if plan.absence.is_none() && plan.recreated.is_none_or(|(at, _)| now < at) {
            return;
        }
        let clock = self.clock();
        let retention = Duration::from_secs(u64::from(plan.retention_hours(now)) * 60 * 60);
        let new_since = plan.recreated.filter(|(at, _)| now >= *at).map(|(at, _)| at);
        if new_since.is_some() && !std::mem::replace(&mut self.is_recreated, true) {
            self.counts.add(Fault::Recreated);
            self.subscriptions = Subscriptions::default();
        }
        for shard in 0..self.oracle.shards.len() {
            if self.has_vanished(plan, shard) {
                self.oracle.vanished(shard);
            }
            let mut parents = plan.shards[shard].parents.iter();
            let is_unknown = !self.stored.get(&shard).is_some_and(says_something)
                && !parents.any(|parent| self.stored.get(parent).is_some_and(says_when));
            for index in 0..self.oracle.shards[shard].len() {
                let at = self.oracle.shards[shard][index].planned.at;
                let is_old =
                    clock >= self.clock_at(at) + retention || new_since.is_some_and(|since| at < since);
                let fate = &mut self.oracle.shards[shard][index];
                if is_old && fate.dropped.is_none() {
                    (fate.dropped, fate.is_unknown) = (Some(clock), is_unknown);
                }
            }
        }
    }

    /// Returns whether the stream was deleted and created again.
    pub fn is_recreated(&self) -> bool {
        self.is_recreated
    }

    /// Records that a shard is read.
    pub fn shard_read(&mut self, shard: usize) {
        let now = self.now();
        self.read_at.insert(shard, now);
    }

    /// Returns the creation time of the stream, as time since 1970.
    pub fn created(&self, plan: &Plan) -> Duration {
        let at = plan.recreated.filter(|_| self.is_recreated).map(|(at, _)| at);
        YEAR_2026 + at.map_or(Duration::ZERO, |at| self.clock_at(at))
    }

    /// Returns whether the stream has removed the shard: the shard closed longer ago than the retention.
    pub fn has_vanished(&self, plan: &Plan, shard: usize) -> bool {
        let retention = Duration::from_secs(u64::from(plan.retention_hours(self.now())) * 60 * 60);
        let closes = plan.shards[shard].closes.filter(|closes| *closes <= self.now());
        closes.is_some_and(|closes| self.clock() >= self.clock_at(closes) + retention)
    }

    /// Returns whether a sequence number belongs to the deleted stream.
    pub fn is_of_another_stream(&self, plan: &Plan, shard: usize, number: &SequenceNumber) -> bool {
        let Some((at, _)) = plan.recreated.filter(|_| self.is_recreated) else {
            return false;
        };
        let old = self.oracle.shards[shard].partition_point(|fate| fate.planned.at < at);
        old > 0 && *number <= sequence_number(old - 1)
    }

    /// Prints steps and events from now on.
    pub fn prints_from_now_on(&mut self, print: bool) {
        self.print = print;
    }

    /// Returns whether steps and events are printed.
    pub fn prints(&self) -> bool {
        self.print
    }

    /// Returns the number of the last step.
    pub fn step(&self) -> u64 {
        self.step
    }

    pub fn note(&mut self, what: &'static str, a: usize, b: usize) {
        self.step += 1;
        let now = self.now().as_micros();
        self.trace.push((now, what, a, b));
        if self.print {
            println!("{:>12.3} {what} {a} {b}", now as f64 / 1e6);
        }
    }

    fn print(&self, event: &Event<'_>) {
        // The steps already show each record and each page.
        let is_frequent = matches!(
            event,
            Event::Shard {
                event: ShardEvent::Fetched { .. } | ShardEvent::Status { .. },
                ..
            } | Event::Record {
                event: RecordEvent::AttemptEnded { .. },
                ..
            }
        );
        if self.print && !is_frequent {
            println!("{:>12.3}     {event:?}", self.now().as_secs_f64());
        }
    }

    /// Returns all steps.
    pub fn trace(&self) -> Vec<Step> {
        self.trace.clone()
    }

    fn apply_late(&mut self) {
        let now = self.now();
        let due = self.late.extract_if(.., |(due, ..)| *due <= now);
        for (_, shard, checkpoint) in due {
            if self.stored.insert(shard, checkpoint.clone()) != Some(checkpoint) {
                self.oracle.row_put_back(shard);
            }
            self.put_back.insert(shard);
        }
    }

    /// Returns the number of records that were put into the shard so far. Adds the records that keep the
    /// stream alive.
    pub fn visible(&mut self, plan: &Plan, shard: usize) -> usize {
        let now = self.now();
        let passed = self.clock() - now;
        while now >= plan.calm + BEAT * self.beats && !self.oracle.is_plan_settled(BEAT_KEY) {
            let at = plan.calm + BEAT * self.beats;
            for shard in lineage::open(&plan.shards, at) {
                put(
                    &mut self.oracle,
                    Planned {
                        shard,
                        key: format!("{BEAT_KEY}-{}", self.beats),
                        at,
                        takes: Duration::from_millis(1),
                        behaviour: Behaviour::Succeeds,
                    },
                    passed,
                );
            }
            self.beats += 1;
        }
        self.oracle.shards[shard].partition_point(|fate| fate.planned.at <= now)
    }

    /// Checks that all settled records are stored.
    pub fn check_stored(&self) -> Result<(), Violation> {
        // A late write may put back the row of a shard that has ended. The consumer writes no newer row, and
        // a store without leases cannot detect the late write.
        let is_put_back = |shard| self.put_back.contains(&shard);
        self.oracle
            .check_stored(|shard| self.stored.get(&shard), is_put_back)
    }
}

/// Returns whether a checkpoint says how far its shard was read. A row that was only created does not.
fn says_something(checkpoint: &Checkpoint) -> bool {
    let is_new = *checkpoint.position() == Position::TrimHorizon;
    !is_new || checkpoint.read_until().is_some() || checkpoint.ahead().is_some()
}

/// Returns whether a consumer recognizes a row as one of another stream. `created` is the creation time of
/// the stream.
fn is_of_another_stream(row: &Checkpoint, created: SystemTime) -> bool {
    match (row.stream_created(), row.read_until()) {
        (Some(of), _) => of != created,
        (None, Some(time)) => time > SystemTime::UNIX_EPOCH && time + CLOCK_SKEW < created,
        (None, None) => false,
    }
}

/// Returns whether the row of a parent allows conclusions about its child shards. The row of an ended shard
/// that was empty allows none, if the consumer was not allowed to describe the stream.
fn says_when(parent: &Checkpoint) -> bool {
    let has_ended = *parent.position() == Position::ShardEnd;
    !has_ended || parent.read_until().is_some() || parent.stream_created().is_some()
}

/// Counts the splits and merges of a plan, once for each child shard.
fn reshards(plan: &Plan) -> Counts {
    let mut counts = Counts::default();
    for shard in &plan.shards {
        match shard.parents.len() {
            0 => {}
            1 => counts.add(Fault::Split),
            _ => counts.add(Fault::Merge),
        }
    }
    counts
}

/// Puts a planned record into the stream. Its arrival is `passed` later than planned.
fn put(oracle: &mut Oracle, planned: Planned, passed: Duration) {
    let index = oracle.shards[planned.shard].len();
    let arrival = SystemTime::UNIX_EPOCH + YEAR_2026 + planned.at + passed;
    let payload = format!("order {index} of shard {}", planned.shard);
    let record = record(&planned, sequence_number(index), payload.into(), arrival);
    oracle.put(planned, record);
}

fn record(planned: &Planned, number: SequenceNumber, payload: Bytes, arrival: SystemTime) -> Record {
    Record::builder(STREAM, shard_id(planned.shard).into(), number)
        .partition_key(planned.key.clone())
        .payload(payload)
        .arrival(arrival)
        .build()
}

pub fn shard_id(shard: usize) -> String {
    format!("shardId-{shard:012}")
}

pub fn shard_index(name: &str) -> Option<usize> {
    name.strip_prefix("shardId-")?.parse().ok()
}

/// Returns the sequence number of a record. It has as many digits as in Kinesis, with gaps in between.
fn sequence_number(index: usize) -> SequenceNumber {
    number_ahead_of(index, 0)
}

/// Returns a number that is by `less` smaller than that of a record. `less` is at most [`GAP`], which gives
/// the number of the record before.
pub fn number_ahead_of(index: usize, less: usize) -> SequenceNumber {
    let text = format!("4965{:052}", index * GAP + FIRST - less);
    text.try_into().unwrap_or_else(|_| (index as u64).into())
}

/// Returns the index of the first record with this or a higher number; with `behind`, only a higher number.
pub fn first_from(number: &SequenceNumber, behind: bool) -> Option<usize> {
    let number: usize = number.as_str().strip_prefix("4965")?.parse().ok()?;
    let least = if behind { number + 1 } else { number };
    Some(least.saturating_sub(FIRST).div_ceil(GAP))
}

/// Returns the shard and the index of the record with this sequence number.
pub fn place(shard: &str, number: &SequenceNumber) -> Option<(usize, usize)> {
    let shard = shard.strip_prefix("shardId-")?.parse().ok()?;
    let number: usize = number.as_str().strip_prefix("4965")?.parse().ok()?;
    Some((shard, number.checked_sub(FIRST)? / GAP))
}

/// Observes the events of the engine and the consumer.
impl Observer for World {
    fn on(&self, event: &Event<'_>) {
        self.hear(event);
        if !self.state().dead && self.strikes(Fault::ObserverPanic) {
            resume_unwind(Box::new("a broken observer"));
        }
    }
}

impl World {
    fn hear(&self, event: &Event<'_>) {
        let mut state = self.state();
        if state.dead {
            return;
        }
        state.print(event);
        match event {
            Event::Protection(ProtectionEvent::BreakerOpened { .. }) => {
                state.note("opened", 0, 0);
                let step = state.step;
                state.oracle.breaker_opened(step);
            }
            Event::Protection(ProtectionEvent::BreakerHalfOpened { .. }) => {
                state.note("half-open", 0, 0);
                state.oracle.breaker_ended();
            }
            Event::Protection(ProtectionEvent::BreakerClosed { .. }) => {
                state.note("closed", 0, 0);
                state.oracle.breaker_closed();
            }
            Event::Record {
                event: RecordEvent::DeadLetterGuardStopped { .. },
                ..
            } => state.note("guard stopped", 0, 0),
            Event::Shard {
                shard,
                event: ShardEvent::DataLoss { certain, .. },
                ..
            } => {
                state.drop_old(self.plan());
                let now = state.clock();
                let shard = shard_index(shard.as_str());
                let checked = shard.map_or(Ok(()), |shard| {
                    state.note("loss", shard, usize::from(*certain));
                    state.oracle.loss_reported(shard, *certain, now)
                });
                drop(state);
                self.check(checked);
                self.changed();
            }
            Event::Shard {
                shard,
                event:
                    ShardEvent::PositionRefused { .. }
                    | ShardEvent::StreamRecreated { .. }
                    | ShardEvent::Failed { .. },
                ..
            } => {
                if let Some(shard) = shard_index(shard.as_str()) {
                    state.oracle.position_refused(shard);
                }
            }
            Event::Shard {
                shard,
                event: ShardEvent::Started { .. },
                ..
            } => {
                if let Some(shard) = shard_index(shard.as_str()) {
                    state.oracle.shard_started(shard);
                }
                drop(state);
                self.changed();
            }
            Event::Shard {
                shard,
                event: ShardEvent::CrashLoopOver { .. },
                ..
            } => {
                if let Some(shard) = shard_index(shard.as_str()) {
                    state.oracle.shard_begins_anew(shard);
                }
            }
            Event::Record {
                event: RecordEvent::Settled { .. },
                ..
            } => {
                drop(state);
                self.changed();
            }
            Event::Shard {
                event: ShardEvent::WindowFull { in_flight, .. },
                ..
            } if *in_flight > self.plan().held => {
                drop(state);
                self.violated(Promise::Bounds, format!("{in_flight} records in flight"));
            }
            _ => {}
        }
    }
}

impl World {
    /// Checks the bytes in flight. Called at the start of each processor call.
    pub fn check_bytes(&self) {
        let bytes = self.state().capacity.as_ref().map_or(0, Capacity::bytes);
        if bytes > self.plan().bytes {
            self.violated(Promise::Bounds, format!("{bytes} bytes in flight"));
        }
    }
}
