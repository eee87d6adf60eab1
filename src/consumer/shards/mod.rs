//! The tasks of all shards: parents before children, one task for each shard.

pub(in crate::consumer) mod discovery;
pub(in crate::consumer) mod lease;
pub(in crate::consumer) mod lease_rows;
pub(in crate::consumer) mod lineage;
pub(in crate::consumer) mod starting_position;
pub(in crate::consumer) mod stream_facts;

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio::sync::Semaphore;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use self::discovery::{Discovery, NOT_LISTED, STORE};
use self::lease::{Hold, Lease};
use self::lineage::{Hole, Lineage};
use self::stream_facts::StreamFacts;
use super::answer;
use super::read::cursor::{ReadFrom, ReadUntil, Reading};
use super::read::data_loss::{DataLoss, DataLossPolicy, Expected};
use super::read::fan_out::FanOut;
use super::read::polling::Poller;
use super::read::registration::Registration;
use super::shard::ShardTask;
use super::shard::checkpointer::Checkpointer;
use super::shard::crash_loop::{CrashLoop, Turns};
use super::shard::shard_end::ShardEnd;
use crate::checkpoint::{Checkpoint, CheckpointError, LeaseOutcome, Leases, ShardKey};
use crate::consumer::{Consumer, ConsumerError, Retrieval};
use crate::engine::Resilient;
use crate::external::caught;
use crate::failure::BoxError;
use crate::observer::{Event, Interest, Observers};
use crate::pipeline::{Progress, RecordOrder, SettledCounts};
use crate::processor::Handler;
use crate::protection::{Backoff, Jitter, RetryTimer};
use crate::record::{Position, ShardId};
use crate::wall_clock;

pub(super) async fn run<P, S>(
    consumer: Consumer,
    resilient: Resilient<P>,
    shutdown: S,
) -> Result<(), ConsumerError>
where
    P: Handler + 'static,
    S: Future<Output = ()> + Send,
{
    let token = CancellationToken::new();
    // When the caller drops this future, its tasks must end.
    let _cancelled = token.clone().drop_guard();
    let application: Arc<str> = resilient.application().into();
    let registration = match &consumer.retrieval {
        Retrieval::Polling => None,
        Retrieval::FanOut(as_whom) => Some(Arc::new(Registration::new(
            consumer.stream.clone(),
            as_whom.clone(),
            application.clone(),
        ))),
    };
    let facts = Arc::new(StreamFacts::new(consumer.client.clone(), consumer.stream.clone()));
    let looking = consumer.health.clone().look_on(
        resilient.dependencies(),
        consumer.stream.shared_name(),
        resilient.observers().clone(),
    );
    let looking = tokio::spawn(looking);
    let _looking = AbortOnDropHandle::new(looking);
    let mut shards = Shards {
        observers: resilient.observers().and(Arc::new(consumer.health.clone())),
        calls: Arc::new(Semaphore::new(consumer.polling.calls_in_flight)),
        careful: Turns::default(),
        registration,
        application,
        consumer,
        resilient,
        shutdown: token.clone(),
        tasks: JoinSet::new(),
        started: HashMap::new(),
        listed: HashSet::new(),
        ended: HashSet::new(),
        breakdowns: HashMap::new(),
        look: None,
        failed: None,
        refused: None,
        holes_in_a_row: 0,
        elsewhere: HashMap::new(),
        facts: facts.clone(),
        ended_and_open: HashMap::new(),
        halted: HashSet::new(),
        settled: Arc::default(),
        since: None,
        has_begun: false,
        unlisted: HashMap::new(),
        trimmed: HashSet::new(),
    };
    let pipeline = shards.consumer.pipeline.clone();
    shards.consumer.pipeline = pipeline.shared_retention(facts.retention().clone());
    let keeping_fresh = {
        let (interval, observers, rng) = (
            shards.consumer.refresh_interval,
            shards.observers.clone(),
            shards.rng(),
        );
        async move { facts.keep_fresh(interval, &observers, rng).await }
    };
    let mut shutdown = pin!(shutdown);
    let running = async {
        let sink = shards.resilient.dead_letters().cloned();
        let pipeline = shards.consumer.pipeline.clone();
        let seen = shards.resilient.idempotency_store().cloned();
        shards
            .discovery()
            .check(&pipeline, sink.as_deref(), seen.as_deref())
            .await?;
        let _keeping_fresh = AbortOnDropHandle::new(tokio::spawn(keeping_fresh));
        shards.watch().await
    };
    let result = tokio::select! {
        biased;
        result = running => result,
        () = &mut shutdown => Ok(()),
    };
    token.cancel();
    shards.stop().await;
    shards.tell_stopped();
    match shards.failed {
        Some(error) => result.and(Err(error)),
        None => result,
    }
}

struct Shards<P: Handler> {
    consumer: Consumer,
    application: Arc<str>,
    /// The observers of the engine, and the consumer's health.
    observers: Observers,
    resilient: Resilient<P>,
    calls: Arc<Semaphore>,
    /// The turns of shards that run one record at a time.
    careful: Turns,
    registration: Option<Arc<Registration>>,
    shutdown: CancellationToken,
    tasks: JoinSet<ShardEnd>,
    /// The started shards by task. A shard that has halted stays here, so that it is not started again.
    started: HashMap<Id, (ShardId, Instant)>,
    /// The shards that ListShards returned last.
    listed: HashSet<ShardId>,
    /// The shards whose end was stored or seen. An abandoned write may still replace such a row by an older
    /// one.
    ended: HashSet<ShardId>,
    /// The number of consecutive failures of each shard's task.
    breakdowns: HashMap<ShardId, u32>,
    /// The time of the next check for shards that may start, even if no shard has ended.
    look: Option<Instant>,
    failed: Option<ConsumerError>,
    /// The error that ends the consumer: Kinesis refused to let a shard be read, and no shard was read
    /// before.
    refused: Option<ConsumerError>,
    /// The number of consecutive listings that left hash keys uncovered.
    holes_in_a_row: u32,
    /// The owners of the shards that other processes have leased.
    elsewhere: HashMap<ShardId, String>,
    facts: Arc<StreamFacts>,
    /// The shards that are listed as open although their rows say that they have ended, and since when.
    ended_and_open: HashMap<ShardId, Instant>,
    /// The shards whose checkpoints belong to an earlier stream, and that the user's policy halts.
    halted: HashSet<ShardId>,
    /// The counts of records that were settled in this run.
    settled: Arc<SettledCounts>,
    /// The time at which the shards were found.
    since: Option<Instant>,
    /// True if the application has read the stream before.
    has_begun: bool,
    /// The checkpoints of shards that were not listed when the consumer started. Each stays here until the
    /// end of its shard is stored.
    unlisted: HashMap<ShardId, Checkpoint>,
    /// The shards that Kinesis does not have any more. Any loss in them was reported.
    trimmed: HashSet<ShardId>,
}

/// Delay between listings while some hash keys are not covered: short directly after a reshard, longer if
/// that does not change.
const AUDIT: Backoff = Backoff::exponential()
    .base(Duration::from_millis(500))
    .cap(Duration::from_secs(60));
/// Delay between the failure of a shard's task and its restart.
const RESTART: Backoff = Backoff::exponential()
    .base(Duration::from_secs(1))
    .cap(Duration::from_secs(60));
/// The running time after which earlier failures of the task no longer count as consecutive.
const FORGET_AFTER: Duration = Duration::from_secs(5 * 60);
/// Interval between checks of a checkpoint that an operator must fix.
const MENDING: Duration = Duration::from_secs(30);
/// The longest time that a listing may lag behind. A shard that is listed as open for longer is open,
/// although its row says that it has ended.
const LISTING_LAG: Duration = Duration::from_secs(30);
/// The maximum number of leases that are taken before the first of them is renewed.
const TAKEN_AT_ONCE: usize = 100;
/// Delay before the shards are listed again after an incomplete listing.
const RELIST: Duration = Duration::from_secs(5);
/// The number of consecutive listings with uncovered hash keys before they are reported. A single listing may
/// show a moment in between (KCL waits for as many).
const HOLES_TO_TELL: u32 = 3;

/// Returns the checkpoint at the end of a trimmed shard. An unknown `read_until` becomes 1970: the children
/// of the shard then report that they may have lost records.
fn lost_end(row: Option<&Checkpoint>) -> Checkpoint {
    let read_until = row.and_then(Checkpoint::read_until);
    Checkpoint::at(Position::ShardEnd).with_read_until(read_until.unwrap_or(SystemTime::UNIX_EPOCH))
}

impl<P: Handler + 'static> Shards<P> {
    /// Starts every shard that is not started yet, whose parents have ended and that no other process has
    /// leased.
    async fn start_found(&mut self, mut found: Lineage) {
        self.look = None;
        self.listed = found.shards.iter().map(|shard| shard.shard_id().into()).collect();
        self.consumer.health.discovered();
        let is_end = |checkpoint: &Checkpoint| *checkpoint.position() == Position::ShardEnd;
        // The end that was seen belongs to a shard of the earlier stream.
        self.ended.retain(|shard| !found.outdated.contains_key(shard));
        let seen = found
            .checkpoints
            .iter()
            .filter(|(_, checkpoint)| is_end(checkpoint));
        self.ended.extend(seen.map(|(shard, _)| shard.clone()));
        for shard in &self.ended {
            if !found.checkpoints.get(shard).is_some_and(is_end) {
                // A late write may have replaced the row by an older one. The `read_until` of that row is too
                // early, which is safe.
                let row = found.checkpoints.get(shard);
                let ended = Checkpoint::at(Position::ShardEnd);
                let ended = match row.and_then(Checkpoint::read_until) {
                    Some(time) => ended.with_read_until(time),
                    None => ended,
                };
                found.checkpoints.insert(shard.clone(), ended);
            }
        }
        self.has_begun |= !found.checkpoints.is_empty();
        // Checkpoints of unlisted shards are read only once, when the consumer starts.
        for shard in found.unlisted() {
            if let Some(row) = found.checkpoints.get(&shard) {
                self.unlisted.insert(shard, row.clone());
            }
        }
        self.unlisted.retain(|shard, _| !self.ended.contains(shard));
        for (shard, row) in &self.unlisted {
            let known = found.checkpoints.entry(shard.clone());
            known.or_insert_with(|| row.clone());
        }
        self.doubt_ends(&mut found);
        self.audit(found.hole());
        self.report_trimmed(&mut found).await;
        if !found.unreadable.is_empty() {
            self.look_again_in(MENDING);
        }
        let mut ready = found.ready();
        ready.retain(|shard| {
            let is_started = self.started.values().any(|(started, _)| started == shard);
            !is_started && !self.halted.contains(shard)
        });
        self.report_absent_parents(&ready, &mut found);
        self.look_for_hidden(&found);
        let store = self.consumer.checkpoints.clone();
        let Some(leases) = store.leases().filter(|_| !ready.is_empty()) else {
            for shard in ready {
                if let Some(row) = found.outdated.remove(&shard) {
                    self.start_again(shard, row, &mut found, None).await;
                } else {
                    self.start(shard, &mut found, None);
                }
            }
            return;
        };
        // Other processes may release their leases at any time.
        self.look_again_in(leases.failover_time() / 2);
        // Each chunk is started before the next one is taken: a lease that is not renewed in time is lost.
        for shards in ready.chunks(TAKEN_AT_ONCE) {
            let taken = self.discovery().take(leases, &found, shards.to_vec()).await;
            let taken = taken.unwrap_or_else(|error| {
                self.tell_failure(&*error, leases.failover_time() / 2);
                Vec::new()
            });
            for (shard, since, taken) in taken {
                self.start_taken(leases, shard, (since, taken), &mut found).await;
            }
        }
    }

    async fn start_taken(
        &mut self,
        leases: &dyn Leases,
        shard: ShardId,
        (since, taken): (Instant, Result<LeaseOutcome, CheckpointError>),
        found: &mut Lineage,
    ) {
        let outdated = found.outdated.contains_key(&shard);
        let taken = match taken {
            // Only a row that has ended is seized: a lease that is in use belongs to the current stream.
            Ok(LeaseOutcome::Ended) if outdated => {
                let key = self.discovery().key(shard.clone());
                let seized = answer(STORE, leases.seize(&key)).await;
                seized.unwrap_or_else(|error| Err(CheckpointError::unavailable(error)))
            }
            taken => taken,
        };
        match taken {
            Ok(LeaseOutcome::Leased(checkpoint)) => {
                self.elsewhere.remove(&shard);
                let is_end = *checkpoint.position() == Position::ShardEnd;
                if self.facts.is_outdated(&checkpoint) || (outdated && is_end) {
                    self.start_again(shard, checkpoint, found, Some(since)).await;
                } else {
                    found.checkpoints.insert(shard.clone(), checkpoint);
                    self.start(shard, found, Some(since));
                }
            }
            Ok(LeaseOutcome::Elsewhere { owner }) => self.stand_by(shard, owner),
            // The next check finds the new row.
            Ok(LeaseOutcome::Ended | LeaseOutcome::Missing) => {}
            Err(error) => self.tell_failure(&error, leases.failover_time() / 2),
        }
    }

    /// Treats the row of an ended shard as outdated if the shard is listed as open for longer than a listing
    /// may lag behind. Such a row belongs to another stream.
    fn doubt_ends(&mut self, found: &mut Lineage) {
        let shards = found.ended_and_open();
        self.ended_and_open.retain(|shard, _| shards.contains(shard));
        for shard in shards {
            let since = *self
                .ended_and_open
                .entry(shard.clone())
                .or_insert_with(Instant::now);
            if since.elapsed() < LISTING_LAG {
                self.look_again_in(LISTING_LAG / 3);
                continue;
            }
            self.ended_and_open.remove(&shard);
            self.ended.remove(&shard);
            let beginning = Checkpoint::at(Position::TrimHorizon);
            if let Some(row) = found.checkpoints.insert(shard.clone(), beginning) {
                found.outdated.insert(shard, row);
            }
        }
    }

    /// Restarts a shard at its oldest record, or halts the shard, because its row belongs to an earlier
    /// stream of this name.
    async fn start_again(
        &mut self,
        shard: ShardId,
        row: Checkpoint,
        found: &mut Lineage,
        taken: Option<Instant>,
    ) {
        let created = self.facts.created();
        let beginning = self.facts.tag(Checkpoint::at(Position::TrimHorizon));
        let loss = DataLoss {
            stream: self.consumer.stream.name().to_owned(),
            shard: shard.clone(),
            from: row.read_until(),
            to: created.unwrap_or_else(wall_clock::now),
            certain: false,
        };
        self.tell(|stream| Event::StreamRecreated {
            stream,
            shard: &shard,
            created,
        });
        let decision = self.report_loss(loss);
        let stored = match decision {
            DataLossPolicy::Halt => {
                self.halted.insert(shard.clone());
                Ok(())
            }
            DataLossPolicy::Resume => self.discovery().store(&shard, beginning.clone()).await,
        };
        match stored {
            Ok(()) if decision == DataLossPolicy::Resume => {
                found.checkpoints.insert(shard.clone(), beginning);
                return self.start(shard, found, taken);
            }
            Ok(()) => {}
            Err(error) => {
                self.tell_failure(&*error, RELIST);
                self.look_again_in(RELIST);
            }
        }
        if let Some(leases) = self.consumer.checkpoints.leases().filter(|_| taken.is_some()) {
            let key = ShardKey::new(
                self.application.clone(),
                self.consumer.stream.shared_name(),
                shard,
            );
            // If this fails, the lease expires.
            let _ = answer(STORE, leases.give_up(&key)).await;
        }
    }

    /// Reports a loss, and keeps the error if the user's policy halts the shard.
    fn report_loss(&mut self, loss: DataLoss) -> DataLossPolicy {
        let decision = self.consumer.on_data_loss.report(&loss, &self.observers);
        if decision == DataLossPolicy::Halt {
            let error = ConsumerError::DataLoss(Box::new(loss));
            self.failed.get_or_insert(error);
        }
        decision
    }

    /// Reports parents that the stream does not have any more and that have no row, if their children are
    /// about to start. Such parents were created and trimmed while the application was down.
    fn report_absent_parents(&mut self, ready: &[ShardId], found: &mut Lineage) {
        for parent in found.unknown_parents() {
            let is_known = !self.facts.is_absent(&parent) || self.trimmed.contains(&parent);
            let children = found.children(&parent);
            let mut children = children.iter().map(|child| ShardId::from(child.shard_id()));
            if is_known || !children.any(|child| ready.contains(&child) && !found.has_row(&child)) {
                continue;
            }
            if self.has_begun {
                self.report_loss(DataLoss {
                    stream: self.consumer.stream.name().to_owned(),
                    shard: parent.clone(),
                    from: None,
                    to: wall_clock::now(),
                    certain: false,
                });
                found.checkpoints.insert(parent.clone(), lost_end(None));
            }
            self.trimmed.insert(parent);
        }
    }

    /// Schedules another listing if this one is incomplete.
    fn look_for_hidden(&mut self, found: &Lineage) {
        for error in found.hidden.values() {
            self.tell_failure(&**error, RELIST);
            self.look_again_in(RELIST);
        }
    }

    /// Reports shards that are not settled to their end and not listed any more. Such a shard was closed, and
    /// all its records are trimmed. Its children wait until that is certain.
    async fn report_trimmed(&mut self, found: &mut Lineage) {
        let is_listed = |shard: &ShardId| found.shards.iter().any(|it| it.shard_id() == shard.as_str());
        let mut trimmed = found.unlisted();
        // The list also includes shards without a row whose tasks failed.
        let removed = self.breakdowns.extract_if(|shard, _| !is_listed(shard));
        trimmed.extend(removed.map(|(shard, _)| shard));
        trimmed.sort();
        trimmed.dedup();
        trimmed.retain(|shard| {
            // The task of a shard that is being read finds the loss itself.
            let is_read = self.started.values().any(|(started, _)| started == shard);
            !is_read && !self.ended.contains(shard)
        });
        for shard in trimmed {
            let gone = self.discovery().exists(&shard).await;
            let reported = match gone {
                Ok(true) => Err(NOT_LISTED.into()),
                Ok(false) => self.end_trimmed(&shard, found).await,
                Err(error) => Err(error),
            };
            if let Err(error) = reported {
                self.tell_failure(&*error, RELIST);
                self.look_again_in(RELIST);
            }
        }
    }

    /// Stores the end of a trimmed shard, so that its loss is reported once and its children may start.
    async fn end_trimmed(&mut self, shard: &ShardId, found: &mut Lineage) -> Result<(), BoxError> {
        let row = found.checkpoints.get(shard).cloned();
        let loss = DataLoss {
            stream: self.consumer.stream.name().to_owned(),
            shard: shard.clone(),
            from: row.as_ref().and_then(Checkpoint::read_until),
            to: wall_clock::now(),
            certain: false,
        };
        let taken = match row {
            Some(_) => self.discovery().take_unread(shard).await?,
            None => LeaseOutcome::Missing,
        };
        if let LeaseOutcome::Elsewhere { .. } = taken {
            // Another process owns the lease and reports the loss, or owned it and the lease has not been
            // seen to expire.
            let leases = self.consumer.checkpoints.leases();
            let time = leases.map_or(MENDING, |leases| leases.failover_time() / 2);
            self.look_again_in(time);
            return Ok(());
        }
        // The loss is reported before the end of the shard is stored: afterwards no process checks the shard
        // again. A process that has stored the end has reported the loss.
        if taken != LeaseOutcome::Ended && self.trimmed.insert(shard.clone()) {
            self.report_loss(loss);
        }
        // The children may have lost records as well.
        let end = lost_end(row.as_ref());
        if let LeaseOutcome::Leased(_) = taken {
            self.discovery().store_end(shard, end.clone()).await?;
        }
        self.ended.insert(shard.clone());
        found.checkpoints.insert(shard.clone(), end);
        Ok(())
    }

    fn look_again_in(&mut self, time: Duration) {
        let at = Instant::now() + time;
        self.look = Some(self.look.map_or(at, |before| before.min(at)));
    }

    /// Notes that another process has leased the shard.
    fn stand_by(&mut self, shard: ShardId, owner: String) {
        if self.elsewhere.get(&shard) != Some(&owner) {
            self.tell(|stream| Event::ShardLeasedElsewhere {
                stream,
                shard: &shard,
                owner: &owner,
            });
            self.elsewhere.insert(shard, owner);
        }
    }

    fn tell_failure(&self, error: &(dyn std::error::Error + Send + Sync + 'static), delay: Duration) {
        self.tell(|stream| Event::DiscoveryFailed {
            stream,
            failures: 1,
            error,
            delay,
        });
    }

    fn tell<'a>(&'a self, event: impl FnOnce(&'a str) -> Event<'a>) {
        let observers = &self.observers;
        if observers.want(Interest::SHARDS) {
            observers.tell(&event(self.consumer.stream.name()));
        }
    }

    fn tell_started(&mut self, shards: usize) {
        self.since = Some(Instant::now());
        let place = self.consumer.client.place().to_string();
        let checkpoints = caught(|| self.consumer.checkpoints.name().into_owned());
        let sink = self.resilient.dead_letters();
        let dead_letters = sink.map(|sink| caught(|| sink.name()).unwrap_or_default());
        let starting_position = self.consumer.start.to_string();
        self.tell(|stream| Event::ConsumerStarted {
            stream,
            application: &self.application,
            place: &place,
            shards,
            checkpoints: checkpoints.as_deref().unwrap_or_default(),
            dead_letters: dead_letters.as_deref(),
            starting_position: &starting_position,
        });
    }

    fn tell_stopped(&self) {
        if let Some(since) = self.since {
            self.tell(|stream| Event::ConsumerStopped {
                stream,
                processed: self.settled.processed(),
                duplicates: self.settled.duplicates(),
                dead_lettered: self.settled.dead_lettered(),
                duration: since.elapsed(),
            });
        }
    }

    /// Checks for uncovered hash keys. A gap that comes from a listing that lags behind closes by itself.
    fn audit(&mut self, hole: Option<Hole>) {
        let Some(Hole { first, last }) = hole else {
            self.holes_in_a_row = 0;
            return;
        };
        self.holes_in_a_row += 1;
        if self.holes_in_a_row >= HOLES_TO_TELL {
            self.tell(|stream| Event::HashKeysUncovered { stream, first, last });
        }
        let rng = &mut self.consumer.rng;
        let delay = Jitter::Equal.delay(&AUDIT, self.holes_in_a_row, Duration::ZERO, rng);
        self.look_again_in(delay);
    }

    fn discovery(&mut self) -> Discovery<'_> {
        Discovery {
            rng: self.rng(),
            client: &self.consumer.client,
            stream: &self.consumer.stream,
            application: &self.application,
            checkpoints: &*self.consumer.checkpoints,
            observers: &self.observers,
            facts: &self.facts,
        }
    }

    fn rng(&mut self) -> SmallRng {
        SmallRng::from_rng(&mut self.consumer.rng)
    }

    /// Starts the task of a shard. `taken` is the time just before its lease was taken, if the store has
    /// leases.
    fn start(&mut self, shard: ShardId, found: &mut Lineage, taken: Option<Instant>) {
        let from = found.checkpoints.remove(&shard);
        let from = from.unwrap_or_else(|| Checkpoint::at(Position::TrimHorizon));
        // The records of a child arrived later than everything that was read from its parents.
        let from = match (
            from.position(),
            from.read_until(),
            found.parents_read_until(&shard),
        ) {
            (Position::TrimHorizon, None, Some(time)) => from.with_read_until(time),
            _ => from,
        };
        let hash_keys = found.hash_keys(&shard);
        let progress = Arc::new(Progress::new().counting(self.settled.clone()));
        let hold = taken.map(|_| Arc::new(Hold::new(&self.shutdown)));
        let observers = self.observers.clone();
        let key = self.discovery().key(shard.clone());
        let (crash_loop, mark, marks) = CrashLoop::new(&from, self.careful.clone());
        let task = ShardTask {
            resilient: self.resilient.clone(),
            pipeline: self.consumer.pipeline.clone(),
            reading: Reading {
                client: self.consumer.client.clone(),
                stream: self.consumer.stream.clone(),
                shard: shard.clone(),
                deaggregator: self.consumer.deaggregator.clone().hash_keys(hash_keys),
                observers: observers.clone(),
                rng: self.rng(),
                from: ReadFrom::checkpoint(from.position()),
                newest: None,
                needs_keys: self.consumer.pipeline.order() == RecordOrder::PartitionKey,
                read_until: ReadUntil::of(Expected::of(&from).as_ref()),
                last_page: None,
                is_lag_reported: false,
                expected: Expected::of(&from),
                on_data_loss: self.consumer.on_data_loss.clone(),
                facts: self.facts.clone(),
            },
            poller: Poller {
                polling: self.consumer.polling.clone(),
                calls: self.calls.clone(),
                capacity: self.consumer.pipeline.shared_capacity().clone(),
            },
            fan_out: self.registration.clone().map(|registration| FanOut {
                registration,
                capacity: self.consumer.pipeline.shared_capacity().clone(),
            }),
            checkpointer: Checkpointer {
                store: self.consumer.checkpoints.clone(),
                key: key.clone(),
                observers: observers.clone(),
                progress: progress.clone(),
                retries: RetryTimer::new(Backoff::exponential(), self.rng()),
                hold: hold.clone(),
                stream_created: self.facts.created().or(from.stream_created()),
                from: from.clone(),
                mark,
                marks,
            },
            lease: hold.zip(taken).map(|(hold, since)| Lease {
                hold,
                since,
                key,
                store: self.consumer.checkpoints.clone(),
                client: self.consumer.client.clone(),
                stream: self.consumer.stream.clone(),
                observers,
                facts: self.facts.clone(),
                rng: self.rng(),
            }),
            progress,
            from,
            crash_loop,
            shutdown: self.shutdown.clone(),
            last_call: self.consumer.last_call,
        };
        self.consumer.health.started(&shard, &task.progress);
        let id = self.tasks.spawn(task.run()).id();
        self.started.insert(id, (shard, Instant::now()));
        self.has_begun = true;
    }

    /// Runs until all shards have ended.
    async fn watch(&mut self) -> Result<(), ConsumerError> {
        let start = self.consumer.start.clone();
        let mut found = self.discovery().first_shards(&start).await?;
        self.tell_started(found.shards.len());
        loop {
            self.start_found(found).await;
            loop {
                let look = self.look;
                let look_again = tokio::select! {
                    biased;
                    Some(ended) = self.tasks.join_next_with_id() => {
                        let look_again = self.ended(ended);
                        if let Some(error) = self.refused.take() {
                            return Err(error);
                        }
                        look_again
                    }
                    () = sleep_until(look.unwrap_or_else(Instant::now)), if look.is_some() => true,
                    else => match self.is_over() {
                        true => return Ok(()),
                        false => {
                            self.look_again_in(RELIST);
                            false
                        }
                    },
                };
                if look_again {
                    break;
                }
            }
            found = self.discovery().shards().await?;
        }
    }

    /// Returns true if all listed shards have ended, or if the others wait for an operator.
    fn is_over(&self) -> bool {
        let is_done = |shard: &ShardId| self.ended.contains(shard) || self.halted.contains(shard);
        self.failed.is_some() || self.listed.iter().all(is_done)
    }

    /// Waits for the tasks that still run. Each task limits its own time; the timeout is for one that cannot.
    async fn stop(&mut self) {
        let limit = self.consumer.shutdown_timeout;
        let all = async {
            while let Some(ended) = self.tasks.join_next_with_id().await {
                self.ended(ended);
            }
        };
        if timeout(limit, all).await.is_err() {
            self.tasks.abort_all();
        }
    }

    /// Handles the end of a task. Returns true if shards may start now: the children of this one, or this one
    /// again.
    fn ended(&mut self, ended: Result<(Id, ShardEnd), JoinError>) -> bool {
        let (id, end) = match ended {
            Ok(ended) => ended,
            Err(broken) => (broken.id(), ShardEnd::broken(&broken)),
        };
        if let Some((shard, _)) = self.started.get(&id) {
            self.consumer.health.ended(shard);
        }
        let error = match end {
            ShardEnd::Ended => {
                // The shard is started again if its row turns out to belong to an earlier stream.
                let shard = self.started.remove(&id).map(|(shard, _)| shard);
                self.ended.extend(shard);
                return true;
            }
            ShardEnd::Stopped => return false,
            ShardEnd::BeginsAnew | ShardEnd::PositionRefused => {
                self.facts.doubt();
                self.started.remove(&id);
                return true;
            }
            ShardEnd::Halted(halted) => ConsumerError::ShardHalted(halted),
            // Another shard has been read in the meantime: the permission exists.
            ShardEnd::Refused(error) if self.facts.has_read() => {
                self.begin_again(id, error);
                return false;
            }
            ShardEnd::Refused(error) => {
                self.started.remove(&id);
                self.refused.get_or_insert(ConsumerError::Refused(error));
                return false;
            }
            ShardEnd::DataLost(loss) => ConsumerError::DataLoss(loss),
            ShardEnd::Failed(error) => {
                self.begin_again(id, error);
                return false;
            }
            // Another worker owns the lease; check again after half the failover time.
            ShardEnd::Lost | ShardEnd::HandedOver => {
                self.started.remove(&id);
                let leases = self.consumer.checkpoints.leases();
                let time = leases.map_or(Duration::ZERO, |leases| leases.failover_time() / 2);
                self.look_again_in(time);
                return false;
            }
        };
        let Some((shard, _)) = self.started.get(&id) else {
            return false;
        };
        self.tell(|stream| Event::ShardHalted {
            stream,
            shard,
            error: &error,
        });
        self.failed.get_or_insert(error);
        false
    }

    /// Restarts a shard after its task failed: at its stored checkpoint, and after a delay.
    fn begin_again(&mut self, id: Id, error: BoxError) {
        let Some((shard, since)) = self.started.remove(&id) else {
            return;
        };
        // The cause may be that the stream was deleted.
        self.facts.doubt();
        let failures = self.breakdowns.entry(shard.clone()).or_default();
        if since.elapsed() > FORGET_AFTER {
            *failures = 0;
        }
        let delay = Jitter::Equal.delay(&RESTART, *failures, Duration::ZERO, &mut self.consumer.rng);
        *failures = failures.saturating_add(1);
        let failures = *failures;
        self.tell(|stream| Event::ShardFailed {
            stream,
            shard: &shard,
            failures,
            error: &*error,
            delay,
        });
        self.look_again_in(delay);
    }
}
