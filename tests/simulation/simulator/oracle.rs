//! The promises that must hold under every fault. The oracle checks them after every step, and at the end.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::time::{Duration, SystemTime};

use redrive::checkpoint::Checkpoint;
use redrive::dead_letter::{Attempts, DeadLetter};
use redrive::{Position, Record, RecordOrder, WallClock};

use super::lineage::PlannedShard;
use super::plan::{Behaviour, Outage, Plan, Planned};

/// A broken promise, with a description.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    pub promise: Promise,
    pub what: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Promise {
    /// Every record is settled in the end.
    AllSettled,
    /// All settled records are stored by the end of a shutdown.
    AllStored,
    /// A record starts only when all earlier records of its lane are settled.
    Order,
    /// A record starts only when all records of its shard's parents are settled.
    Lineage,
    /// At most one call processes a record at a time.
    OneAtATime,
    /// A checkpoint passes no record that is not settled.
    NothingPassed,
    /// A run never stores a checkpoint before its own earlier checkpoint.
    NoWayBack,
    /// A run does not process a record again that its first checkpoint covers, or that the run has processed.
    NoRepeat,
    /// No processor call follows the verdict on a record.
    VerdictKept,
    /// A dead letter is readable and complete.
    LetterWhole,
    /// The dead letters of a lane are written in the order of their records.
    LetterOrder,
    /// An outage costs at most one dead letter of a good record: the first to fail. It costs none if the
    /// error names the dependency as its cause.
    NoOutageLetter,
    /// A record that fails alone is called as often as the policy allows.
    CallsCounted,
    /// No record becomes a dead letter while a breaker is open.
    BreakerHolds,
    /// A flood of dead letters is stopped.
    FloodStopped,
    /// Running calls, records in flight and bytes stay within their bounds.
    Bounds,
    /// A run that has ended releases its calls and bytes.
    NothingLeaks,
    /// A run continues until it is shut down.
    GoesOn,
    /// No record starts in a shard that another worker has leased.
    Fenced,
    /// Each unsettled record that the stream drops is reported. No other loss is reported as certain.
    LossReported,
    /// After the last fault, every open shard of a fleet is soon read by a living worker.
    AllRead,
    /// After the last fault, the workers of a fleet soon have the same number of open shards, or one more.
    Even,
    /// A fleet with even shares moves no shard.
    Stable,
    /// The lease of a living worker expires only if a fault keeps the worker from renewing it.
    Renewed,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.promise, self.what)
    }
}

/// The state of a record.
#[derive(Debug)]
pub struct Fate {
    pub planned: Planned,
    pub record: Record,
    /// The number of times the record was processed.
    pub processed: u32,
    /// The number of copies of its dead letter that the sink has.
    pub letters: u32,
    /// The number of failures that the record caused itself.
    pub own_failures: u32,
    pub running: bool,
    /// The time at which the stream dropped the record.
    pub dropped: Option<Duration>,
    /// The stream dropped the record before redrive stored how far it had read the shard. redrive cannot
    /// detect this loss.
    pub is_unknown: bool,
    /// The record is the first record of its call.
    is_first: bool,
    /// No other record had failed since the last success when the call began.
    began_as_only_one: bool,
    /// A bad deploy has failed the record.
    bad_deploy: bool,
    /// The number of failures in one run, at most, by the record itself or by a suspended process.
    failed_alone: u32,
    /// The outages in which the record failed.
    outages: HashSet<usize>,
    /// The number of failures of the record in each earlier run.
    failed_before: Vec<u32>,
    /// The numbers of failures in dead letters that earlier runs sent to the sink. Such a dead letter may
    /// still arrive after its run was dropped or has lost the shard. The number alone does not distinguish it
    /// from a dead letter of this run.
    sent_before: Vec<u32>,
    /// The time of the first failure in this run.
    first_failed: Option<Duration>,
    run: InRun,
}

/// The state of a record in the current run of the consumer.
#[derive(Debug, Default)]
struct InRun {
    covered: bool,
    processed: bool,
    letter_sent: bool,
    /// This run has certainly sent the dead letter.
    verdict: bool,
    failed: u32,
    /// The time at which the record failed first, by the clock of its process.
    failed_since: Option<SystemTime>,
    failed_alone: u32,
    /// The number of failures because of an outage while a breaker was not closed.
    failed_as_probe: u32,
    /// The number of consecutive failures while all breakers were closed and no other record had failed since
    /// the last success.
    failed_as_only_one: u32,
    /// The record has failed permanently, alone in its call.
    is_bad: bool,
    /// The number of the step of the last failure.
    failed_in: u64,
}

impl Fate {
    pub fn is_settled(&self) -> bool {
        self.processed > 0 || self.letters > 0
    }

    /// Returns whether the record is settled, or dropped by the stream.
    fn is_over(&self) -> bool {
        self.is_settled() || self.dropped.is_some()
    }

    /// Resets the state of the run, because a new run or a new lease starts.
    fn begins_anew(&mut self) {
        let before = std::mem::take(&mut self.run);
        self.failed_before.push(before.failed);
        self.sent_before
            .extend(before.letter_sent.then_some(before.failed));
        self.first_failed = None;
    }

    fn is_known_in_run(&self) -> bool {
        let is_settled = self.run.covered || self.run.processed || (self.run.letter_sent && self.letters > 0);
        is_settled || self.dropped.is_some()
    }

    pub fn name(&self) -> String {
        format!(
            "{}#{} ({})",
            self.record.shard(),
            self.record.position(),
            self.planned.key
        )
    }
}

/// Why an attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    Itself,
    /// Another record of the same call failed.
    Beside,
    /// The process was suspended, and the attempt timed out.
    StoodStill,
    Outage,
    BadDeploy,
}

#[derive(Debug)]
pub struct Oracle {
    /// The records of each shard.
    pub shards: Vec<Vec<Fate>>,
    parents: Vec<Vec<usize>>,
    pub violation: Option<Violation>,
    /// The number of running processor calls.
    running: usize,
    /// The records that failed since the last success.
    failing: HashSet<(usize, usize)>,
    /// The number of dead letters in this process whose records failed only because of an outage.
    outage_letters: usize,
    /// The number of the step in which the breaker opened, if it is still open.
    open_since: Option<u64>,
    /// No breaker is open or half-open.
    is_closed: bool,
    /// The number of dead letters per shard that a bad deploy caused, since the guard was last reset.
    flood: Vec<u64>,
    saved_in_run: HashMap<usize, Checkpoint>,
    /// The shards that will restart: Kinesis refused their position, their row belongs to an earlier stream,
    /// or their task failed.
    refused: HashSet<usize>,
    /// The shards whose row belongs to an earlier stream, which this run will detect.
    outdated: HashSet<usize>,
    /// The row of each shard, as this run has read or written it last before it started the shard. `None`: there
    /// was no row, or the row belongs to an earlier stream.
    rows: HashMap<usize, Option<Checkpoint>>,
    /// The shards whose rows said that they had ended when the run read them. The run does not read these shards
    /// any more, even if a late write of an earlier run replaces such a row.
    ended: HashSet<usize>,
    /// The shards that this run has started. The run does not use their rows any more.
    started: HashSet<usize>,
    /// The shards whose row a late write has replaced by an older one, in a store without leases. The
    /// consumer uses the older row.
    misled: HashSet<usize>,
    /// The reports of data loss: shard and time.
    losses: Vec<(usize, Duration)>,
    pub held: bool,
    pub letters: u64,
    pub calls: u64,
    pub calls_in_outages: u64,
}

/// The maximum duration of a hold.
const HOLD: Duration = Duration::from_secs(15 * 60);
/// The number of failing keys that count as an outage, whatever their errors.
const MANY: usize = 20;
/// The number of calls that do not count: a probe, and a call that ended just after the breaker closed.
const UNCOUNTED: u32 = 2;

pub type Checked = Result<(), Violation>;

pub fn ensure(promise: Promise, holds: bool, what: impl FnOnce() -> String) -> Checked {
    if holds {
        Ok(())
    } else {
        Err(Violation {
            promise,
            what: what(),
        })
    }
}

pub fn covers(checkpoint: &Checkpoint, record: &Record) -> bool {
    checkpoint.position().covers(record) || checkpoint.ahead().is_some_and(|ahead| ahead.covers(record))
}

impl Oracle {
    pub fn new(shards: &[PlannedShard]) -> Self {
        Oracle {
            shards: shards.iter().map(|_| Vec::new()).collect(),
            parents: shards.iter().map(|shard| shard.parents.clone()).collect(),
            violation: None,
            running: 0,
            failing: HashSet::new(),
            outage_letters: 0,
            open_since: None,
            is_closed: true,
            flood: vec![0; shards.len()],
            saved_in_run: HashMap::new(),
            refused: HashSet::new(),
            outdated: HashSet::new(),
            rows: HashMap::new(),
            ended: HashSet::new(),
            started: HashSet::new(),
            misled: HashSet::new(),
            losses: Vec::new(),
            held: false,
            letters: 0,
            calls: 0,
            calls_in_outages: 0,
        }
    }

    pub fn put(&mut self, planned: Planned, record: Record) {
        self.shards[planned.shard].push(Fate {
            planned,
            record,
            processed: 0,
            letters: 0,
            own_failures: 0,
            running: false,
            dropped: None,
            is_unknown: false,
            is_first: false,
            began_as_only_one: false,
            bad_deploy: false,
            failed_alone: 0,
            outages: HashSet::new(),
            failed_before: Vec::new(),
            sent_before: Vec::new(),
            first_failed: None,
            run: InRun::default(),
        });
    }

    fn fates(&self) -> impl Iterator<Item = &Fate> {
        self.shards.iter().flatten()
    }

    /// Returns whether this run knows that all records of the plan are settled. Ignores the records that keep
    /// the stream alive; their keys start with `alive`.
    pub fn is_plan_settled(&self, alive: &str) -> bool {
        let planned = |fate: &&Fate| !fate.planned.key.starts_with(alive);
        self.fates().filter(planned).all(Fate::is_known_in_run)
    }

    /// Returns whether this run knows that all records are settled.
    pub fn is_all_settled_in_run(&self) -> bool {
        self.refused.is_empty() && self.outdated.is_empty() && self.fates().all(Fate::is_known_in_run)
    }

    /// Checks that all records of the plan are settled, in this run or in another. Ignores the records that keep
    /// the stream alive.
    pub fn check_settled(&self, alive: &str) -> Checked {
        let planned = |fate: &&Fate| !fate.planned.key.starts_with(alive);
        let open = self.fates().filter(planned).find(|fate| !fate.is_settled());
        ensure(Promise::AllSettled, open.is_none(), || {
            format!("{} is not settled", open.map_or(String::new(), Fate::name))
        })
    }

    /// Starts a run of the consumer.
    pub fn run_begins(&mut self) {
        self.shards.iter_mut().flatten().for_each(Fate::begins_anew);
        self.flood.fill(0);
        self.saved_in_run.clear();
        self.refused.clear();
        self.outdated.clear();
        self.rows.clear();
        self.ended.clear();
        self.started.clear();
    }

    /// Records that the run has taken the lease of a shard. The shard starts from its row.
    pub fn shard_taken(&mut self, shard: usize, row: &Checkpoint, is_outdated: bool) {
        self.shard_begins_anew(shard);
        self.row_loaded(shard, Some(row), is_outdated);
    }

    /// Resets the state of a shard, which restarts from its checkpoint in the same run.
    pub fn shard_begins_anew(&mut self, shard: usize) {
        self.shards[shard].iter_mut().for_each(Fate::begins_anew);
        self.saved_in_run.remove(&shard);
        self.started.remove(&shard);
        self.outdated.remove(&shard);
        self.ended.remove(&shard);
    }

    /// Records that the run has read the row of a shard. The last row before the shard starts counts: a late
    /// write may replace a row at any time. `is_outdated`: the row belongs to an earlier stream.
    pub fn row_loaded(&mut self, shard: usize, row: Option<&Checkpoint>, is_outdated: bool) {
        let restarts = self.refused.contains(&shard);
        if self.started.contains(&shard) && !restarts {
            return;
        }
        self.rows.insert(shard, row.filter(|_| !is_outdated).cloned());
        if is_outdated {
            self.ended.remove(&shard);
            self.outdated.insert(shard);
        }
        if !restarts {
            self.follow(shard, row, is_outdated);
        }
    }

    /// Assumes that the run starts a shard from this row.
    fn follow(&mut self, shard: usize, row: Option<&Checkpoint>, is_outdated: bool) {
        if self.ended.contains(&shard) {
            return;
        }
        let is_end = row.is_some_and(|row| *row.position() == Position::ShardEnd);
        if is_end && !is_outdated {
            self.ended.insert(shard);
        }
        for fate in &mut self.shards[shard] {
            fate.run.covered = row.is_some_and(|row| covers(row, &fate.record));
        }
    }

    pub fn has_loaded(&self, shard: usize) -> bool {
        self.rows.contains_key(&shard)
    }

    /// Records that the stream has removed a shard, which is not read again.
    pub fn vanished(&mut self, shard: usize) {
        self.refused.remove(&shard);
        self.outdated.remove(&shard);
    }

    /// Records that the run starts a shard, from the row that it has read or written last.
    pub fn shard_started(&mut self, shard: usize) {
        if self.refused.remove(&shard) {
            self.shard_begins_anew(shard);
            let row = self.rows.get(&shard).cloned().flatten();
            self.follow(shard, row.as_ref(), false);
        }
        self.outdated.remove(&shard);
        self.started.insert(shard);
    }

    /// Ends the process, and with it all running calls.
    pub fn process_ends(&mut self) {
        for fate in self.shards.iter_mut().flatten() {
            fate.running = false;
            fate.sent_before.clear();
        }
        self.running = 0;
        self.breaker_closed();
        self.failing.clear();
        self.outage_letters = 0;
    }

    /// Checks the start of a processor call for one record. `with` contains all records of the call.
    pub fn handler_begins(
        &mut self,
        plan: &Plan,
        (shard, index): (usize, usize),
        with: &[(usize, usize)],
    ) -> Checked {
        let is_first = with.first() == Some(&(shard, index));
        self.calls += u64::from(is_first);
        let (before, rest) = self.shards[shard].split_at(index);
        let fate = &rest[0];
        ensure(Promise::OneAtATime, !fate.running, || {
            format!("{} runs twice at once", fate.name())
        })?;
        ensure(Promise::NoRepeat, !fate.run.covered, || {
            format!("{} runs again although the checkpoint covers it", fate.name())
        })?;
        ensure(Promise::NoRepeat, !fate.run.processed, || {
            format!("{} runs again although this run has processed it", fate.name())
        })?;
        let most = plan.max_attempts + UNCOUNTED;
        ensure(Promise::CallsCounted, fate.run.failed_as_only_one < most, || {
            format!(
                "{} is called more often than {} times",
                fate.name(),
                plan.max_attempts
            )
        })?;
        let failed_for_good = fate.run.is_bad;
        ensure(
            Promise::VerdictKept,
            !fate.run.verdict && !failed_for_good,
            || format!("{} runs again after its verdict", fate.name()),
        )?;
        let ahead = before.iter().enumerate().find(|(at, before)| {
            let same_lane = match plan.ordering {
                RecordOrder::Unordered => false,
                RecordOrder::Shard => true,
                _ => before.planned.key == fate.planned.key,
            };
            let goes_with = with.contains(&(shard, *at));
            same_lane && !goes_with && (before.running || !before.is_over())
        });
        let ahead = ahead.map(|(_, ahead)| ahead);
        ensure(Promise::Order, ahead.is_none(), || {
            format!(
                "{} overtakes {}",
                fate.name(),
                ahead.map_or(String::new(), Fate::name)
            )
        })?;
        let parents = self.parents[shard]
            .iter()
            .flat_map(|&parent| &self.shards[parent]);
        let open = parents.clone().find(|before| before.running || !before.is_over());
        ensure(Promise::Lineage, open.is_none(), || {
            format!(
                "{} begins before {}",
                fate.name(),
                open.map_or(String::new(), Fate::name)
            )
        })?;
        self.running += usize::from(is_first);
        ensure(Promise::Bounds, self.running <= plan.running, || {
            format!(
                "{} processor calls run at once, {} are allowed",
                self.running, plan.running
            )
        })?;
        let is_only_one = self.failing.iter().all(|place| *place == (shard, index));
        let fate = &mut self.shards[shard][index];
        (fate.running, fate.is_first, fate.began_as_only_one) = (true, is_first, is_only_one);
        Ok(())
    }

    pub fn handler_ended(&mut self, (shard, index): (usize, usize)) {
        let fate = &mut self.shards[shard][index];
        // The end of the process has already removed its calls.
        if std::mem::take(&mut fate.running) {
            self.running -= usize::from(fate.is_first);
        }
    }

    pub fn handler_succeeded(&mut self, (shard, index): (usize, usize)) {
        let fate = &mut self.shards[shard][index];
        fate.processed += 1;
        fate.run.processed = true;
        self.failing.clear();
    }

    pub fn handler_failed(
        &mut self,
        (step, now): (u64, Duration),
        (shard, index): (usize, usize),
        (cause, is_alone): (Cause, bool),
        outage: Option<usize>,
    ) {
        self.failing.insert((shard, index));
        // An error that names the dependency also holds a record that fails alone.
        let is_told =
            self.shards[shard][index].planned.behaviour == Behaviour::IsRefused || cause == Cause::Outage;
        let is_only_one = self.failing.len() == 1 && self.is_closed && !is_told;
        let fate = &mut self.shards[shard][index];
        fate.first_failed.get_or_insert(now);
        if cause == Cause::Itself {
            fate.own_failures += 1;
        }
        fate.run.failed += 1;
        fate.run.failed_since.get_or_insert_with(WallClock::now);
        fate.run.failed_in = step;
        fate.run.failed_as_only_one = match is_only_one && is_alone && fate.began_as_only_one {
            true => fate.run.failed_as_only_one + 1,
            false => 0,
        };
        let is_bad = fate.planned.behaviour == Behaviour::IsBad;
        fate.run.is_bad |= is_bad && is_alone && matches!(cause, Cause::Itself | Cause::StoodStill);
        match cause {
            Cause::Itself | Cause::StoodStill => {
                fate.run.failed_alone += 1;
                // The dead letter may be written after the end of its run.
                fate.failed_alone = fate.failed_alone.max(fate.run.failed_alone);
            }
            Cause::BadDeploy => fate.bad_deploy = true,
            Cause::Beside => {}
            Cause::Outage => {
                fate.run.failed_as_probe += u32::from(!self.is_closed);
                fate.outages.extend(outage);
                self.calls_in_outages += 1;
            }
        }
    }

    pub fn breaker_opened(&mut self, step: u64) {
        self.open_since = Some(step);
        self.is_closed = false;
        // When the breaker has closed, each record starts with a full count of attempts.
        let fates = self.shards.iter_mut().flatten();
        fates.for_each(|fate| fate.run.failed_as_only_one = 0);
    }

    pub fn breaker_closed(&mut self) {
        self.open_since = None;
        self.is_closed = true;
    }

    pub fn breaker_ended(&mut self) {
        self.open_since = None;
    }

    pub fn guard_resumed(&mut self) {
        self.flood.fill(0);
    }

    /// Checks a dead letter that the sink receives.
    pub fn letter_sent(&mut self, plan: &Plan, place: (usize, usize), letter: &Attempts) -> Checked {
        let attempts = letter.calls();
        let (shard, index) = place;
        let processed = self.shards[shard]
            .iter()
            .filter(|fate| fate.run.processed)
            .count() as u64;
        let fate = &mut self.shards[shard][index];
        // A dead letter of an earlier run.
        let is_earlier = |since| {
            let first = letter.first.first();
            // A dead letter states times in milliseconds.
            first.is_some_and(|first| first.ended_at + Duration::from_millis(1) <= since)
        };
        let foreign = fate.run.failed != attempts || fate.run.failed_since.is_some_and(is_earlier);
        if foreign || std::mem::replace(&mut fate.run.letter_sent, true) {
            return Ok(());
        }
        // Otherwise the dead letter is one of this run, unless an earlier run sent the same count.
        fate.run.verdict = !fate.sent_before.contains(&attempts);
        // A record that failed before the breaker opened may still become a dead letter.
        let (failed_in, probes) = (fate.run.failed_in, fate.run.failed_as_probe);
        ensure(Promise::CallsCounted, letter.probes >= probes, || {
            format!("{}: {probes} probes counted as attempts", fate.name())
        })?;
        let waits = self.open_since.is_some_and(|open_since| failed_in > open_since);
        ensure(Promise::BreakerHolds, !waits, || {
            format!("{} becomes a dead letter while a breaker is open", fate.name())
        })?;
        if fate.bad_deploy && fate.planned.behaviour.can_succeed() {
            self.flood[shard] += 1;
            // A deploy lasts up to two minutes and touches three windows of the guard, one minute each.
            let allowed = (plan.guard_records + processed) * 3;
            ensure(Promise::FloodStopped, self.flood[shard] <= allowed, || {
                format!(
                    "{} dead letters of a bad deploy in shard {shard}",
                    self.flood[shard]
                )
            })?;
        }
        Ok(())
    }

    /// Checks a dead letter that the sink has stored.
    pub fn letter_stored(
        &mut self,
        plan: &Plan,
        now: Duration,
        place: (usize, usize),
        letter: &DeadLetter,
    ) -> Checked {
        self.letters += 1;
        let (shard, index) = place;
        let (before, rest) = self.shards[shard].split_at_mut(index);
        let fate = &mut rest[0];
        let record = &fate.record;
        let whole = letter.application == super::APPLICATION
            && letter.stream == record.stream()
            && letter.partition_key.as_deref() == record.partition_key()
            && letter.payload == *record.payload()
            && letter.arrival.is_some()
            && (letter.attempts.calls() == fate.run.failed
                || fate.failed_before.contains(&letter.attempts.calls()))
            && letter.attempts.first.len() as u32 == letter.attempts.calls().min(2)
            && !letter.error.chain.is_empty()
            && !letter.processor.is_empty();
        ensure(Promise::LetterWhole, whole, || {
            format!("the dead letter of {} is incomplete: {letter:?}", fate.name())
        })?;
        fate.letters += 1;
        if plan.ordering != RecordOrder::Unordered {
            let lane =
                |other: &Fate| plan.ordering == RecordOrder::Shard || other.planned.key == fate.planned.key;
            let late = before.iter().find(|other| lane(other) && !other.is_over());
            ensure(Promise::LetterOrder, late.is_none(), || {
                format!(
                    "the dead letter of {} overtakes {}",
                    fate.name(),
                    late.map_or(String::new(), Fate::name)
                )
            })?;
        }
        let held = fate.first_failed.is_some_and(|at| now >= at + HOLD);
        let is_its_own = !fate.planned.behaviour.can_succeed() || fate.bad_deploy || fate.failed_alone > 0;
        // A record that failed in two outages has failed although other records succeeded in between.
        if is_its_own || held || fate.outages.len() > 1 || fate.letters > 1 {
            return Ok(());
        }
        let says_so = |outage: &usize| plan.outages[*outage].1 == Outage::Dependency;
        let is_told = !fate.outages.is_empty() && fate.outages.iter().all(says_so);
        self.outage_letters += 1;
        let allowed = match is_told {
            true => 0,
            false => plan.outages.len().max(1),
        };
        ensure(Promise::NoOutageLetter, self.outage_letters <= allowed, || {
            let fate = &self.shards[shard][index];
            format!("{} ({:?}): {:?}", fate.name(), fate.planned.behaviour, letter)
        })
    }

    /// Checks a checkpoint that is stored.
    pub fn checkpoint_stored(&mut self, shard: usize, checkpoint: &Checkpoint) -> Checked {
        let passed = self.shards[shard]
            .iter()
            .find(|fate| !fate.is_over() && covers(checkpoint, &fate.record));
        ensure(Promise::NothingPassed, passed.is_none(), || {
            format!(
                "{checkpoint:?} passes {}",
                passed.map_or(String::new(), Fate::name)
            )
        })
    }

    /// Records that a shard will restart, at its oldest record or from its checkpoint, once its records in
    /// flight are settled.
    pub fn position_refused(&mut self, shard: usize) {
        self.refused.insert(shard);
    }

    /// Checks a checkpoint that a run sends to the store.
    pub fn checkpoint_sent(&mut self, shard: usize, checkpoint: &Checkpoint) -> Checked {
        if *checkpoint.position() == Position::TrimHorizon && self.refused.contains(&shard) {
            self.saved_in_run.remove(&shard);
        }
        if self.refused.contains(&shard) {
            // The run may start the shard from what it has written.
            self.rows.insert(shard, Some(checkpoint.clone()));
        }
        let before = self.saved_in_run.insert(shard, checkpoint.clone());
        let back = before.filter(|before| before.position() > checkpoint.position());
        ensure(Promise::NoWayBack, back.is_none(), || {
            format!("shard {shard}: {checkpoint:?} after {back:?}")
        })
    }

    /// Checks after an undisturbed shutdown that a restart would repeat nothing.
    pub fn check_stored<'a>(
        &self,
        checkpoint: impl Fn(usize) -> Option<&'a Checkpoint>,
        is_put_back: impl Fn(usize) -> bool,
    ) -> Checked {
        let shards = self.shards.iter().enumerate();
        // A shard that will restart, and is not read yet, repeats records of an earlier stream.
        let is_read = |shard: &usize| !self.refused.contains(shard) && !is_put_back(*shard);
        for (shard, fates) in shards.filter(|(shard, _)| is_read(shard)) {
            let checkpoint = checkpoint(shard);
            let missing = fates.iter().find(|fate| {
                let is_there = fate.is_settled() && fate.dropped.is_none();
                is_there && !checkpoint.is_some_and(|checkpoint| covers(checkpoint, &fate.record))
            });
            ensure(Promise::AllStored, missing.is_none(), || {
                format!(
                    "{} is settled, {checkpoint:?} is stored",
                    missing.map_or(String::new(), Fate::name)
                )
            })?;
        }
        Ok(())
    }

    /// Records that a late write has replaced the row of a shard by an older one.
    pub fn row_put_back(&mut self, shard: usize) {
        self.misled.insert(shard);
    }

    /// Checks a reported loss.
    pub fn loss_reported(&mut self, shard: usize, certain: bool, now: Duration) -> Checked {
        self.losses.push((shard, now));
        // A record that an earlier run settled without storing a checkpoint counts as lost. The consumer only
        // knows the stored checkpoint.
        let is_lost = |fate: &Fate| fate.dropped.is_some() && !fate.run.covered && !fate.run.processed;
        let lost = self.shards[shard].iter().any(is_lost);
        ensure(Promise::LossReported, lost || !certain, || {
            format!("shard {shard} reports a loss and has lost nothing")
        })
    }

    /// Checks that each unsettled record that the stream dropped was reported, for its shard or a descendant.
    pub fn check_losses(&self) -> Checked {
        let shards = self.shards.iter().enumerate();
        for (shard, fates) in shards.filter(|(shard, _)| !self.misled.contains(shard)) {
            let lost = fates.iter().filter(|fate| !fate.is_settled() && !fate.is_unknown);
            for (fate, dropped) in lost.filter_map(|fate| Some((fate, fate.dropped?))) {
                let mut losses = self.losses.iter().filter(|(_, at)| *at >= dropped);
                let reported = losses.any(|(reported, _)| self.comes_of(*reported, shard));
                ensure(Promise::LossReported, reported, || {
                    format!("{} is lost, and no loss was reported", fate.name())
                })?;
            }
        }
        Ok(())
    }

    /// Returns whether a shard is `ancestor` or a descendant of it.
    fn comes_of(&self, shard: usize, ancestor: usize) -> bool {
        let mut parents = self.parents[shard].iter();
        shard == ancestor || parents.any(|&parent| self.comes_of(parent, ancestor))
    }

    /// Returns whether only records that never succeed can run, of at least [`MANY`] keys. redrive cannot
    /// distinguish them from an outage, and holds them until a record succeeds. The records that can succeed
    /// wait behind them.
    pub fn is_held_by_design(&self) -> bool {
        let is_open = |shard: usize| self.shards[shard].iter().any(|fate| !fate.is_known_in_run());
        let readable = |shard: &usize| !self.parents[*shard].iter().any(|&parent| is_open(parent));
        let mut heads: HashMap<(usize, &str), &Fate> = HashMap::new();
        for shard in (0..self.shards.len()).filter(readable) {
            for fate in self.shards[shard].iter().filter(|fate| !fate.is_known_in_run()) {
                heads.entry((shard, &fate.planned.key)).or_insert(fate);
            }
        }
        let hopeless = |fate: &&&Fate| !fate.planned.behaviour.can_succeed();
        heads.len() >= MANY && heads.values().filter(hopeless).count() == heads.len()
    }

    /// Describes the records that this run has not settled, and the shards that have not restarted.
    pub fn unsettled(&self) -> Vec<String> {
        let open = self.fates().filter(|fate| !fate.is_known_in_run());
        let open = open.map(|fate| format!("{} {:?}", fate.name(), fate.planned.behaviour));
        let shards = self.refused.iter().chain(&self.outdated);
        let shards = shards.map(|shard| format!("shard {shard} has not restarted"));
        open.chain(shards).collect()
    }
}
