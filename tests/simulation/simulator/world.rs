//! What is outside of the process and outlives it: the stream, what is stored, the time, the faults.

use std::collections::{HashMap, HashSet};
use std::future::pending;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::resume_unwind;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use rand::RngExt;
use rand::rngs::SmallRng;
use redrive::checkpoint::Checkpoint;
use redrive::dead_letter::DeadLetter;
use redrive::observer::{Event, Observer};
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

/// A clone is the same world.
#[derive(Clone)]
pub struct World(Arc<Shared>);

struct Shared {
    plan: Plan,
    state: Mutex<State>,
    changed: Notify,
}

/// The time of the world at which it was 2026.
const YEAR_2026: Duration = Duration::from_secs(1_767_225_600);
/// Between the records that keep the stream alive once everything is calm.
const BEAT: Duration = Duration::from_secs(5);
const BEAT_KEY: &str = "beat";
/// The number of a shard's first record, and how far apart they are.
const FIRST: usize = 100;
pub const GAP: usize = 7;
/// By how much the consumer expects clocks to differ.
const CLOCK_SKEW: Duration = Duration::from_secs(60);
/// The failover time of leases.
const FAILOVER: Duration = Duration::from_secs(10);

pub struct State {
    pub oracle: Oracle,
    pub counts: Counts,
    /// The time at which the clock of this process began.
    epoch: Duration,
    started: Option<Instant>,
    /// When nothing was read for long, and for how long: the plan goes on afterwards.
    absent: Option<(Duration, Duration)>,
    /// As much of that as was in this process.
    suspended: Duration,
    /// Whether there is another stream.
    is_recreated: bool,
    /// The process is dead: nothing that it does has an effect any more.
    dead: bool,
    contacts: u64,
    dies_at: Option<u64>,
    rngs: Vec<SmallRng>,
    pub timing: SmallRng,
    stored: HashMap<usize, Checkpoint>,
    late: Vec<(Duration, usize, Checkpoint)>,
    /// The lease table, where there is one.
    rows: HashMap<String, Item>,
    late_updates: Vec<(Duration, Value)>,
    /// When another worker has taken a shard that it holds.
    foreign_since: HashMap<usize, Duration>,
    /// Until when the process stood still last.
    stood_still: Option<Duration>,
    /// Shards whose row a late write has put back.
    put_back: HashSet<usize>,
    pub subscriptions: Subscriptions,
    beats: u32,
    capacity: Option<Capacity>,
    step: u64,
    trace: DefaultHasher,
    print: bool,
}

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
                beats: 0,
                capacity: None,
                step: 0,
                trace: DefaultHasher::new(),
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

    /// A process begins, at this moment of its own clock.
    pub fn process_begins(&self) {
        let mut state = self.state();
        state.started = Some(Instant::now());
        state.dead = false;
        WallClock::set(SystemTime::UNIX_EPOCH + YEAR_2026 + state.clock());
    }

    /// It is gone. The next begins after a while.
    pub fn process_ends(&self, pause: Duration) {
        let mut state = self.state();
        state.epoch = state.now() + pause;
        state.started = None;
        state.suspended = Duration::ZERO;
        state.dead = true;
        state.oracle.process_ends();
    }

    /// No process runs for so long.
    pub fn is_away(&self, length: Duration) {
        self.count(Fault::Absence);
        self.state().skip(length);
    }

    /// The process is suspended for so long.
    pub fn is_suspended(&self, length: Duration) {
        self.count(Fault::Absence);
        let mut state = self.state();
        state.skip(length);
        state.suspended = length;
        state.stood_still = Some(state.now());
    }

    /// A consumer begins to run, and may die at its so-manieth contact with the world.
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

    /// A moment at which the process may die; if it does, this never returns.
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

    /// Notes a promise that is broken. The simulation ends with it.
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

    /// Returns when this is so, seen whenever something [changes](World::changed).
    pub async fn until(&self, mut holds: impl FnMut(&State) -> bool) {
        loop {
            let changed = self.0.changed.notified();
            if holds(&self.state()) {
                return;
            }
            changed.await;
        }
    }

    /// Something has changed that somebody may wait for.
    pub fn changed(&self) {
        self.0.changed.notify_waiters();
    }

    pub fn is_dead(&self) -> bool {
        self.state().dead
    }

    /// The process is dead, or a promise is broken.
    pub async fn over(&self) {
        self.until(|state| state.dead || state.oracle.violation.is_some())
            .await;
    }

    /// Whether this kind of fault strikes now.
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

    /// Whether such a window is open.
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

    /// So long an answer takes.
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

    /// The letter in the sink.
    pub fn letter_stored(&self, letter: &DeadLetter) {
        let Some(place) = place(&letter.shard.to_string(), &letter.sequence_number) else {
            return self.violated(Promise::LetterWhole, format!("of no record: {letter:?}"));
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

    /// A letter that is given to the sink.
    pub fn letter_sent(&self, letter: &DeadLetter) {
        if let Some(place) = place(&letter.shard.to_string(), &letter.sequence_number) {
            let checked = self
                .state()
                .oracle
                .letter_sent(self.plan(), place, &letter.attempts);
            self.check(checked);
        }
    }

    /// What is stored for a shard, as a run reads it.
    pub fn load(&self, shard: usize) -> Option<Checkpoint> {
        let mut state = self.state();
        state.apply_late();
        let stored = state.stored.get(&shard).cloned();
        state.oracle.checkpoint_loaded(shard, stored.as_ref());
        state.row_loaded(self.plan(), shard, stored.as_ref());
        drop(state);
        self.changed();
        stored
    }

    /// The same in a list of all: a run goes by it where it has not read the shard's own.
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

    /// The process gets no time for so long.
    pub fn stands_still(&self, length: Duration) {
        let mut state = self.state();
        state.stood_still = Some(state.now() + length);
    }

    pub fn row(&self, key: &str) -> Option<Item> {
        self.state().rows.get(key).cloned()
    }

    /// So many rows in the order of their keys, behind this one.
    pub fn rows_after(&self, key: &str, most: usize) -> Vec<Item> {
        let state = self.state();
        let mut keys: Vec<&String> = state.rows.keys().filter(|other| other.as_str() > key).collect();
        keys.sort();
        keys.iter()
            .take(most)
            .map(|key| state.rows[*key].clone())
            .collect()
    }

    /// A row is like this from now on.
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
            ["checkpoint", "redriveAhead"]
                .iter()
                .any(|column| before.get(*column) != row.get(*column))
        };
        if moved {
            self.save(shard, checkpoint);
        }
    }

    /// An update that takes effect some time later, if it still may.
    pub fn update_late(&self, update: Value) {
        let mut state = self.state();
        let due = state.now() + Duration::from_secs(state.timing.random_range(1..90));
        state.late_updates.push((due, update));
    }

    /// The updates that take effect now, long after they were given up.
    pub fn late_updates(&self) -> Vec<Value> {
        let mut state = self.state();
        let now = state.now();
        let due = state.late_updates.extract_if(.., |(due, _)| *due <= now);
        due.map(|(_, update)| update).collect()
    }

    /// No record of a shard begins that another worker has had for as long as it takes to know.
    pub fn check_fenced(&self, shard: usize) {
        let (now, since, still) = {
            let state = self.state();
            let since = state.foreign_since.get(&shard).copied();
            (state.now(), since, state.stood_still)
        };
        // A process that stood still has to look at the time first.
        let awake = still.is_none_or(|at| now >= at + Duration::from_millis(100));
        if awake && since.is_some_and(|since| now > since + FAILOVER) {
            self.violated(
                Promise::Fenced,
                format!("shard {shard} is another's since {since:?}, now {now:?}"),
            );
        }
    }

    /// A write that takes effect some time later.
    pub fn save_late(&self, shard: usize, checkpoint: Checkpoint) {
        let mut state = self.state();
        let due = state.now() + Duration::from_secs(state.timing.random_range(1..90));
        state.late.push((due, shard, checkpoint));
    }
}

impl State {
    /// How far the plan is.
    pub fn now(&self) -> Duration {
        let elapsed = self.started.map_or(Duration::ZERO, |started| started.elapsed());
        self.epoch + elapsed.saturating_sub(self.suspended)
    }

    /// How much time has passed.
    pub fn clock(&self) -> Duration {
        self.clock_at(self.now())
    }

    /// The same when the plan was there.
    pub fn clock_at(&self, planned: Duration) -> Duration {
        match self.absent {
            Some((at, length)) if planned >= at => planned + length,
            _ => planned,
        }
    }

    /// Much time passes in which nothing happens.
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

    /// A run has read what is stored of a shard, which may be of an earlier stream.
    pub fn row_loaded(&mut self, plan: &Plan, shard: usize, stored: Option<&Checkpoint>) {
        let created = Duration::from_secs(self.created(plan).as_secs());
        let created = SystemTime::UNIX_EPOCH + created;
        let is_there = !plan.is_gone(self.now()) && !self.has_vanished(plan, shard);
        if stored.is_some_and(|row| is_of_another_stream(row, created)) && is_there {
            self.oracle.outdated_loaded(shard);
        }
    }

    /// Drops what the stream does not keep any more.
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

    /// Whether there is another stream than at first.
    pub fn is_recreated(&self) -> bool {
        self.is_recreated
    }

    /// A run begins to read a shard.
    pub fn reading_begins(&mut self, shard: usize) {
        let stored = self.stored.get(&shard).cloned();
        self.oracle.reading_begins(shard, stored.as_ref());
    }

    /// When the stream was created.
    pub fn created(&self, plan: &Plan) -> Duration {
        let at = plan.recreated.filter(|_| self.is_recreated).map(|(at, _)| at);
        YEAR_2026 + at.map_or(Duration::ZERO, |at| self.clock_at(at))
    }

    /// Whether the stream does not have the shard any more, as all of it is too old.
    pub fn has_vanished(&self, plan: &Plan, shard: usize) -> bool {
        let retention = Duration::from_secs(u64::from(plan.retention_hours(self.now())) * 60 * 60);
        let closes = plan.shards[shard].closes.filter(|closes| *closes <= self.now());
        closes.is_some_and(|closes| self.clock() >= self.clock_at(closes) + retention)
    }

    /// Whether a number is one of the stream that was there before.
    pub fn is_of_another_stream(&self, plan: &Plan, shard: usize, number: &SequenceNumber) -> bool {
        let Some((at, _)) = plan.recreated.filter(|_| self.is_recreated) else {
            return false;
        };
        let old = self.oracle.shards[shard].partition_point(|fate| fate.planned.at < at);
        old > 0 && *number <= sequence_number(old - 1)
    }

    /// The number of the last step.
    pub fn step(&self) -> u64 {
        self.step
    }

    pub fn note(&mut self, what: &'static str, a: usize, b: usize) {
        self.step += 1;
        let now = self.now().as_micros();
        (now, what, a, b).hash(&mut self.trace);
        if self.print {
            println!("{:>12.3} {what} {a} {b}", now as f64 / 1e6);
        }
    }

    fn print(&self, event: &Event<'_>) {
        // Those of every record and page say no more than the steps.
        let is_frequent = matches!(
            event,
            Event::Fetched { .. } | Event::AttemptEnded { .. } | Event::ShardStatus { .. }
        );
        if self.print && !is_frequent {
            println!("{:>12.3}     {event:?}", self.now().as_secs_f64());
        }
    }

    /// What the seed does, in a number.
    pub fn trace(&self) -> u64 {
        self.trace.finish()
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

    /// The records of a shard that are there by now.
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

    /// What is stored, whatever was on its way.
    pub fn check_stored(&self) -> Result<(), Violation> {
        // Nothing is written any more for a shard that has ended: a store without leases cannot know better.
        let is_put_back = |shard| self.put_back.contains(&shard);
        self.oracle
            .check_stored(|shard| self.stored.get(&shard), is_put_back)
    }
}

/// Whether a checkpoint says how far its shard was read. A row that was only made does not.
fn says_something(checkpoint: &Checkpoint) -> bool {
    let is_new = *checkpoint.position() == Position::TrimHorizon;
    !is_new || checkpoint.read_until().is_some() || checkpoint.ahead().is_some()
}

/// Whether a consumer that may describe the stream, which was created then, finds that a row belongs to another one.
fn is_of_another_stream(row: &Checkpoint, created: SystemTime) -> bool {
    match (row.stream_created(), row.read_until()) {
        (Some(of), _) => of != created,
        (None, Some(time)) => time > SystemTime::UNIX_EPOCH && time + CLOCK_SKEW < created,
        (None, None) => false,
    }
}

/// Whether anything can be known of the shards that came of this one. Of an empty shard nothing is, while the consumer may
/// not describe the stream.
fn says_when(parent: &Checkpoint) -> bool {
    let has_ended = *parent.position() == Position::ShardEnd;
    !has_ended || parent.read_until().is_some() || parent.stream_created().is_some()
}

/// Every shard that closes was split, or merged with another.
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

/// A record of the plan, when so much more time has passed than was planned.
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

/// As long as they are in Kinesis, with gaps between.
fn sequence_number(index: usize) -> SequenceNumber {
    number_ahead_of(index, 0)
}

/// A number by so much less than a record's, and no less than that of the one before it.
pub fn number_ahead_of(index: usize, less: usize) -> SequenceNumber {
    let text = format!("4965{:052}", index * GAP + FIRST - less);
    text.try_into().unwrap_or_else(|_| (index as u64).into())
}

/// The first record that has this number, or if `behind`, a higher one.
pub fn first_from(number: &SequenceNumber, behind: bool) -> Option<usize> {
    let number: usize = number.as_str().strip_prefix("4965")?.parse().ok()?;
    let least = if behind { number + 1 } else { number };
    Some(least.saturating_sub(FIRST).div_ceil(GAP))
}

/// Shard and index of the record with this sequence number.
pub fn place(shard: &str, number: &SequenceNumber) -> Option<(usize, usize)> {
    let shard = shard.strip_prefix("shardId-")?.parse().ok()?;
    let number: usize = number.as_str().strip_prefix("4965")?.parse().ok()?;
    Some((shard, number.checked_sub(FIRST)? / GAP))
}

/// Hears what the engine says.
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
            Event::BreakerOpened { .. } => {
                state.note("opened", 0, 0);
                let step = state.step;
                state.oracle.breaker_opened(step);
            }
            Event::BreakerHalfOpened { .. } => {
                state.note("half-open", 0, 0);
                state.oracle.breaker_ended();
            }
            Event::BreakerClosed { .. } => {
                state.note("closed", 0, 0);
                state.oracle.breaker_closed();
            }
            Event::DeadLetterGuardStopped { .. } => state.note("guard stopped", 0, 0),
            Event::DataLoss { shard, certain, .. } => {
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
            Event::PositionRefused { shard, .. }
            | Event::StreamRecreated { shard, .. }
            | Event::ShardFailed { shard, .. } => {
                if let Some(shard) = shard_index(shard.as_str()) {
                    state.oracle.position_refused(shard);
                }
            }
            Event::CrashLoopOver { shard, .. } => {
                if let Some(shard) = shard_index(shard.as_str()) {
                    state.oracle.shard_begins_anew(shard);
                }
            }
            Event::Settled { .. } => {
                drop(state);
                self.changed();
            }
            Event::WindowFull { in_flight, .. } if *in_flight > self.plan().held => {
                drop(state);
                self.violated(Promise::Bounds, format!("{in_flight} records in flight"));
            }
            _ => {}
        }
    }
}

impl World {
    /// How many bytes are held, looked at while the handler runs.
    pub fn check_bytes(&self) {
        let bytes = self.state().capacity.as_ref().map_or(0, Capacity::bytes);
        if bytes > self.plan().bytes {
            self.violated(Promise::Bounds, format!("{bytes} bytes held"));
        }
    }
}
