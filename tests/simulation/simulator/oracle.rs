//! What must hold, whatever goes wrong: asked at every step of the world, and at the end.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::time::Duration;

use redrive::checkpoint::Checkpoint;
use redrive::dead_letter::{Attempts, DeadLetter};
use redrive::{Position, Record, RecordOrder};

use super::lineage::PlannedShard;
use super::plan::{Behaviour, Outage, Plan, Planned};

/// A promise that was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    pub promise: Promise,
    pub what: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Promise {
    /// Every record is settled in the end.
    AllSettled,
    /// What is settled is stored by the end of a shutdown.
    AllStored,
    /// A record begins only when those before it in its lane are settled.
    Order,
    /// A record of a shard begins only when all of the shards that it came of are settled.
    Lineage,
    /// A record is handled by one call at a time.
    OneAtATime,
    /// A checkpoint passes no record that is not settled.
    NothingPassed,
    /// A run never goes back behind a checkpoint of its own.
    NoWayBack,
    /// What a run's first checkpoint covers, or the run has settled, is not handled again.
    NoRepeat,
    /// No handler call after the verdict.
    VerdictKept,
    /// A letter is readable and says what happened.
    LetterWhole,
    /// The letters of a lane are written in its order.
    LetterOrder,
    /// Of the records that only an outage kept from succeeding one becomes a dead letter, at most: the first to fail. None
    /// does where the error names the dependency as its cause.
    NoOutageLetter,
    /// A record that fails, and no other, is called as often as the policy says.
    CallsCounted,
    /// Nothing is given up while a breaker is open.
    BreakerHolds,
    /// A flood of dead letters is stopped.
    FloodStopped,
    /// No more calls, records and bytes than allowed.
    Bounds,
    /// A run that has ended holds nothing.
    NothingLeaks,
    /// A run goes on until it is told to end.
    GoesOn,
    /// Nothing is begun of a shard that another worker holds.
    Fenced,
    /// What the stream dropped before it was settled is reported, and nothing else is said to be lost for certain.
    LossReported,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.promise, self.what)
    }
}

/// Where a record stands.
#[derive(Debug)]
pub struct Fate {
    pub planned: Planned,
    pub record: Record,
    /// How often it was processed.
    pub processed: u32,
    /// How many copies of its letter the sink has.
    pub letters: u32,
    /// How often it has failed by itself.
    pub own_failures: u32,
    pub running: bool,
    /// When the stream had dropped it.
    pub dropped: Option<Duration>,
    /// It was dropped before anything was stored that says how far its shard was read: nobody can know of it.
    pub is_unknown: bool,
    /// Of the call that it is in it is the first.
    is_first: bool,
    /// When the call began no other record had failed since the last success.
    began_as_only_one: bool,
    /// A bad deploy has failed it.
    bad_deploy: bool,
    /// How often a run saw it fail by itself, or because the process stood still.
    failed_alone: u32,
    /// The outages in which it failed.
    outages: HashSet<usize>,
    /// How often it failed in each run before this one.
    failed_before: Vec<u32>,
    /// How often it had failed when a letter of it was sent that may be on its way still, though its run was dropped
    /// or its shard lost: by its count alone such a letter cannot be told from one of this run.
    sent_before: Vec<u32>,
    /// When a run saw it fail first.
    first_failed: Option<Duration>,
    run: InRun,
}

/// What this run of the consumer did with a record.
#[derive(Debug, Default)]
struct InRun {
    covered: bool,
    processed: bool,
    letter_sent: bool,
    /// And it is certain that this run sent it.
    verdict: bool,
    failed: u32,
    failed_alone: u32,
    /// How often it failed because of an outage while a breaker was not closed.
    failed_as_probe: u32,
    /// How often it failed in a row while no breaker was open and no other record had failed since the last success.
    failed_as_only_one: u32,
    /// It was seen to be bad, and no other.
    is_bad: bool,
    /// The number of the step in which it failed last.
    failed_in: u64,
}

impl Fate {
    pub fn is_settled(&self) -> bool {
        self.processed > 0 || self.letters > 0
    }

    /// It is settled, or the stream does not have it any more.
    fn is_over(&self) -> bool {
        self.is_settled() || self.dropped.is_some()
    }

    /// What this run did with it is over.
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

    fn name(&self) -> String {
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
    /// Another that it was given with.
    Beside,
    /// The process stood still, and the attempt was over its time.
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
    /// Handler calls now.
    running: usize,
    /// The records that failed since the last success.
    failing: HashSet<(usize, usize)>,
    /// Letters in this process of records that failed because of an outage alone.
    outage_letters: usize,
    /// The number of the step in which a breaker opened that is still open.
    open_since: Option<u64>,
    /// No breaker is open or half-open.
    is_closed: bool,
    /// Letters of records that a bad deploy failed, since a shard's guard began to count.
    flood: Vec<u64>,
    saved_in_run: HashMap<usize, Checkpoint>,
    /// Shards that begin again: Kinesis has refused their position, their row is of an earlier stream, or their task failed.
    refused: HashSet<usize>,
    /// Shards whose row is of an earlier stream: this run is going to find out.
    outdated: HashSet<usize>,
    /// Shards whose row this run has read.
    loaded: HashSet<usize>,
    /// Shards that this run reads: what is stored of them it does not ask any more.
    reading: HashSet<usize>,
    /// Shards of which a late write has put back an older row, in a store without leases: the consumer goes by what it says.
    misled: HashSet<usize>,
    /// Of which shard data loss was reported, and when.
    losses: Vec<(usize, Duration)>,
    pub held: bool,
    pub letters: u64,
    pub calls: u64,
    pub calls_in_outages: u64,
}

/// As long as a record is held at most.
const HOLD: Duration = Duration::from_secs(15 * 60);
/// So many keys are an outage, whatever they fail of.
const MANY: usize = 20;
/// A probe, and a call that ended as the breaker had just closed, do not count.
const UNCOUNTED: u32 = 2;

type Checked = Result<(), Violation>;

fn ensure(promise: Promise, holds: bool, what: impl FnOnce() -> String) -> Checked {
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
            loaded: HashSet::new(),
            reading: HashSet::new(),
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

    /// Whether this run knows that all records of the plan are settled: those that only keep the stream
    /// alive have such a key.
    pub fn is_plan_settled(&self, alive: &str) -> bool {
        let planned = |fate: &&Fate| !fate.planned.key.starts_with(alive);
        self.fates().filter(planned).all(Fate::is_known_in_run)
    }

    /// Whether this run knows of all records that they are settled.
    pub fn is_all_settled_in_run(&self) -> bool {
        self.refused.is_empty() && self.outdated.is_empty() && self.fates().all(Fate::is_known_in_run)
    }

    /// A consumer begins to run.
    pub fn run_begins(&mut self) {
        self.shards.iter_mut().flatten().for_each(Fate::begins_anew);
        self.flood.fill(0);
        self.saved_in_run.clear();
        self.refused.clear();
        self.outdated.clear();
        self.loaded.clear();
        self.reading.clear();
    }

    /// A shard that it did not hold is taken: it begins anew with what is stored.
    pub fn shard_taken(&mut self, shard: usize, checkpoint: &Checkpoint) {
        self.shard_begins_anew(shard);
        self.checkpoint_loaded(shard, Some(checkpoint));
    }

    /// A shard begins anew with what is stored, in the same run.
    pub fn shard_begins_anew(&mut self, shard: usize) {
        self.shards[shard].iter_mut().for_each(Fate::begins_anew);
        self.saved_in_run.remove(&shard);
        self.reading.remove(&shard);
        self.outdated.remove(&shard);
    }

    /// It has read a row of an earlier stream.
    pub fn outdated_loaded(&mut self, shard: usize) {
        if !self.reading.contains(&shard) {
            self.outdated.insert(shard);
        }
    }

    /// It has read what is stored for a shard.
    pub fn checkpoint_loaded(&mut self, shard: usize, checkpoint: Option<&Checkpoint>) {
        if self.reading.contains(&shard) || self.refused.contains(&shard) {
            return;
        }
        self.loaded.insert(shard);
        for fate in &mut self.shards[shard] {
            // What it has read once in this run it knows, whatever a late write puts there.
            fate.run.covered |= checkpoint.is_some_and(|checkpoint| covers(checkpoint, &fate.record));
        }
    }

    pub fn has_loaded(&self, shard: usize) -> bool {
        self.loaded.contains(&shard)
    }

    /// The stream does not have a shard any more: nothing of it is read again.
    pub fn vanished(&mut self, shard: usize) {
        self.refused.remove(&shard);
        self.outdated.remove(&shard);
    }

    /// It begins to read a shard, of which this is stored.
    pub fn reading_begins(&mut self, shard: usize, stored: Option<&Checkpoint>) {
        if self.refused.remove(&shard) {
            self.shard_begins_anew(shard);
            self.checkpoint_loaded(shard, stored);
        }
        self.outdated.remove(&shard);
        self.reading.insert(shard);
    }

    /// A process is gone, and with it all that ran in it.
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

    /// `with`: all that the call is given.
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
            format!("{} is run again, which the checkpoint covers", fate.name())
        })?;
        ensure(Promise::NoRepeat, !fate.run.processed, || {
            format!("{} is run again, which this run has processed", fate.name())
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
            || format!("{} is run again after its verdict", fate.name()),
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
                "{} handler calls at once, {} are allowed",
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
        // What a process that is gone ran is forgotten already.
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
        // An error that names the dependency holds a record that is alone as well.
        let is_told =
            self.shards[shard][index].planned.behaviour == Behaviour::IsRefused || cause == Cause::Outage;
        let is_only_one = self.failing.len() == 1 && self.is_closed && !is_told;
        let fate = &mut self.shards[shard][index];
        fate.first_failed.get_or_insert(now);
        if cause == Cause::Itself {
            fate.own_failures += 1;
        }
        fate.run.failed += 1;
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
                // A letter may be written when its run is gone.
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
        // Each has a full count of attempts when it has closed.
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

    /// A letter is given to the sink.
    pub fn letter_sent(&mut self, plan: &Plan, place: (usize, usize), letter: &Attempts) -> Checked {
        let attempts = letter.calls();
        let (shard, index) = place;
        let processed = self.shards[shard]
            .iter()
            .filter(|fate| fate.run.processed)
            .count() as u64;
        let fate = &mut self.shards[shard][index];
        // Of a run that was dropped.
        let foreign = fate.run.failed != attempts;
        if foreign || std::mem::replace(&mut fate.run.letter_sent, true) {
            return Ok(());
        }
        // Or of this one, as it seems.
        fate.run.verdict = !fate.sent_before.contains(&attempts);
        // One that failed before the breaker opened had its permission then.
        let (failed_in, probes) = (fate.run.failed_in, fate.run.failed_as_probe);
        ensure(Promise::CallsCounted, letter.probes >= probes, || {
            format!("{}: {probes} probes counted as attempts", fate.name())
        })?;
        let waits = self.open_since.is_some_and(|open_since| failed_in > open_since);
        ensure(Promise::BreakerHolds, !waits, || {
            format!("{} is given up while a breaker is open", fate.name())
        })?;
        if fate.bad_deploy && fate.planned.behaviour.can_succeed() {
            self.flood[shard] += 1;
            // So many in each of the minutes that a deploy lasts.
            let allowed = (plan.guard_records + processed) * 3;
            ensure(Promise::FloodStopped, self.flood[shard] <= allowed, || {
                format!("{} letters of a bad deploy in shard {shard}", self.flood[shard])
            })?;
        }
        Ok(())
    }

    /// The sink has a letter.
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
            && letter.arrived_at.is_some()
            && (letter.attempts.calls() == fate.run.failed
                || fate.failed_before.contains(&letter.attempts.calls()))
            && letter.attempts.first.len() as u32 == letter.attempts.calls().min(2)
            && !letter.error.chain.is_empty()
            && !letter.processor.is_empty();
        ensure(Promise::LetterWhole, whole, || {
            format!("of {}: {letter:?}", fate.name())
        })?;
        fate.letters += 1;
        if plan.ordering != RecordOrder::Unordered {
            let lane =
                |other: &Fate| plan.ordering == RecordOrder::Shard || other.planned.key == fate.planned.key;
            let late = before.iter().find(|other| lane(other) && !other.is_over());
            ensure(Promise::LetterOrder, late.is_none(), || {
                format!(
                    "the letter of {} overtakes {}",
                    fate.name(),
                    late.map_or(String::new(), Fate::name)
                )
            })?;
        }
        let held = fate.first_failed.is_some_and(|at| now >= at + HOLD);
        let is_its_own = !fate.planned.behaviour.can_succeed() || fate.bad_deploy || fate.failed_alone > 0;
        // One that fails in two outages has failed where others succeeded.
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

    /// A checkpoint is stored.
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

    /// A shard is to begin again, at its oldest record or with what is stored, once what it has in hand is settled.
    pub fn position_refused(&mut self, shard: usize) {
        self.refused.insert(shard);
    }

    /// A run asks for a checkpoint to be stored.
    pub fn checkpoint_sent(&mut self, shard: usize, checkpoint: &Checkpoint) -> Checked {
        if *checkpoint.position() == Position::TrimHorizon && self.refused.contains(&shard) {
            self.saved_in_run.remove(&shard);
        }
        let before = self.saved_in_run.insert(shard, checkpoint.clone());
        let back = before.filter(|before| before.position() > checkpoint.position());
        ensure(Promise::NoWayBack, back.is_none(), || {
            format!("shard {shard}: {checkpoint:?} after {back:?}")
        })
    }

    /// After a shutdown with nothing in its way: a restart would repeat nothing.
    pub fn check_stored<'a>(
        &self,
        checkpoint: impl Fn(usize) -> Option<&'a Checkpoint>,
        is_put_back: impl Fn(usize) -> bool,
    ) -> Checked {
        let shards = self.shards.iter().enumerate();
        // One that begins again, and has not been read yet, repeats what was read of an earlier stream.
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

    /// What is stored of a shard is older than what was stored before.
    pub fn row_put_back(&mut self, shard: usize) {
        self.misled.insert(shard);
    }

    /// A loss was reported.
    pub fn loss_reported(&mut self, shard: usize, certain: bool, now: Duration) -> Checked {
        self.losses.push((shard, now));
        // What a run settled that died before it stored that counts as lost: the consumer goes by what is stored.
        let is_lost = |fate: &Fate| fate.dropped.is_some() && !fate.run.covered && !fate.run.processed;
        let lost = self.shards[shard].iter().any(is_lost);
        ensure(Promise::LossReported, lost || !certain, || {
            format!("shard {shard} has lost nothing")
        })
    }

    /// Whatever the stream dropped before it was settled was reported, of its shard or of one that came of it.
    pub fn check_losses(&self) -> Checked {
        let shards = self.shards.iter().enumerate();
        for (shard, fates) in shards.filter(|(shard, _)| !self.misled.contains(shard)) {
            let lost = fates.iter().filter(|fate| !fate.is_settled() && !fate.is_unknown);
            for (fate, dropped) in lost.filter_map(|fate| Some((fate, fate.dropped?))) {
                let mut losses = self.losses.iter().filter(|(_, at)| *at >= dropped);
                let reported = losses.any(|(reported, _)| self.comes_of(*reported, shard));
                ensure(Promise::LossReported, reported, || {
                    format!("{} is lost, and nothing was reported", fate.name())
                })?;
            }
        }
        Ok(())
    }

    /// Whether a shard is this one, or came of it.
    fn comes_of(&self, shard: usize, ancestor: usize) -> bool {
        let mut parents = self.parents[shard].iter();
        shard == ancestor || parents.any(|&parent| self.comes_of(parent, ancestor))
    }

    /// Whether nothing is left that may be read but records that never succeed, of so many keys that nobody can tell
    /// them from an outage: they are held until something succeeds, and what could waits behind them.
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

    /// What this run has not settled.
    pub fn unsettled(&self) -> Vec<String> {
        let open = self.fates().filter(|fate| !fate.is_known_in_run());
        let open = open.map(|fate| format!("{} {:?}", fate.name(), fate.planned.behaviour));
        let shards = self.refused.iter().chain(&self.outdated);
        let shards = shards.map(|shard| format!("shard {shard} has not begun anew"));
        open.chain(shards).collect()
    }
}
