//! The supervision of all shards: starts parents before children, one task for each shard, and restarts tasks
//! that fail.

mod context;
mod fleet;
mod hash_key_audit;
mod known_shards;
mod next_check;
mod restarts;
mod shard_tasks;
mod task_factory;
mod trimmed_shards;

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::Id;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use self::context::RunContext;
use self::hash_key_audit::HashKeyAudit;
use self::known_shards::KnownShards;
use self::next_check::NextCheck;
use self::restarts::Restarts;
use self::shard_tasks::{ShardTasks, StartedShard};
use self::task_factory::{NewTask, TaskFactory};
use self::trimmed_shards::TrimmedShards;
use crate::checkpoint::{Checkpoint, CheckpointError, LeaseOutcome, Leases};
use crate::consumer::calls::{STORE, answer};
use crate::consumer::data_loss::DataLossPolicy;
use crate::consumer::error::ConsumerError;
use crate::consumer::settings::Settings;
use crate::consumer::shard::shard_end::ShardEnd;
use crate::consumer::shards::discovery::NOT_LISTED;
use crate::consumer::shards::lease_rows::TakenLease;
use crate::consumer::shards::lineage::{Hole, Lineage};
use crate::consumer::stream_facts::StreamFacts;
use crate::engine::Resilient;
use crate::external::caught;
use crate::failure::BoxError;
use crate::observer::{Event, ShardEvent, StreamEvent};
use crate::processor::Handler;
use crate::record::{Position, ShardId};
use crate::wall_clock;

/// Interval between checks of a checkpoint that an operator must fix.
const UNREADABLE_CHECK: Duration = Duration::from_secs(30);
/// The maximum number of leases that are taken before the first of them is renewed.
const TAKEN_AT_ONCE: usize = 100;
/// Delay before the shards are listed again after an incomplete listing.
const RELIST: Duration = Duration::from_secs(5);

/// Runs a consumer until all its shards have ended, nothing more can be settled, or `shutdown` completes.
pub(super) async fn run<P, S>(
    mut settings: Settings,
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
    let facts = Arc::new(StreamFacts::new(settings.client.clone(), settings.stream.clone()));
    settings.pipeline = settings.pipeline.shared_retention(facts.retention().clone());
    let watching_health = tokio::spawn(settings.health.clone().look_on(
        resilient.dependencies(),
        settings.stream.shared_name(),
        resilient.observers().clone(),
    ));
    let _watching_health = AbortOnDropHandle::new(watching_health);
    let mut context = RunContext {
        application: resilient.application().into(),
        observers: resilient.observers().and(Arc::new(settings.health.clone())),
        facts: facts.clone(),
        failed: None,
        settings,
    };
    let refreshing = {
        let (interval, observers) = (context.settings.refresh_interval, context.observers.clone());
        let rng = context.rng();
        async move { facts.keep_fresh(interval, &observers, rng).await }
    };
    let mut supervisor = Supervisor {
        restarts: Restarts::new(context.rng()),
        audit: HashKeyAudit::new(context.rng()),
        factory: TaskFactory::new(&context, resilient, token.clone()),
        context,
        tasks: ShardTasks::default(),
        known: KnownShards::default(),
        trimmed: TrimmedShards::default(),
        next_check: NextCheck::default(),
        listed: HashSet::new(),
        halted: HashSet::new(),
        outdated_ends: HashSet::new(),
        leased_elsewhere: HashMap::new(),
        refused: None,
        since: None,
        has_begun: false,
    };
    let mut shutdown = pin!(shutdown);
    let mut fleet = None;
    let running = async {
        supervisor.check_start().await?;
        let _refreshing = AbortOnDropHandle::new(tokio::spawn(refreshing));
        fleet = supervisor.join_fleet().await?;
        match &mut fleet {
            Some(fleet) => supervisor.supervise_member(fleet).await,
            None => supervisor.supervise().await,
        }
    };
    let result = tokio::select! {
        biased;
        result = running => result,
        () = &mut shutdown => Ok(()),
    };
    token.cancel();
    let last_call = supervisor.context.settings.last_call;
    let stopping = Instant::now();
    let withdrawing = async {
        if let Some(fleet) = &mut fleet {
            fleet.withdraw(last_call).await;
        }
    };
    tokio::join!(withdrawing, supervisor.stop());
    if let Some(fleet) = fleet {
        let left = supervisor.context.settings.shutdown_timeout;
        let left = left.saturating_sub(stopping.elapsed());
        fleet.leave(last_call.min(left)).await;
    }
    supervisor.report_stopped();
    match supervisor.context.failed {
        Some(error) => result.and(Err(error)),
        None => result,
    }
}

struct Supervisor<P: Handler> {
    context: RunContext,
    factory: TaskFactory<P>,
    tasks: ShardTasks,
    known: KnownShards,
    trimmed: TrimmedShards,
    restarts: Restarts,
    audit: HashKeyAudit,
    next_check: NextCheck,
    /// The shards that ListShards returned last.
    listed: HashSet<ShardId>,
    /// The shards that have halted, and those that the user's policy does not let start. No restart helps.
    halted: HashSet<ShardId>,
    /// The open shards whose rows say that they have ended, because the rows belong to an earlier stream. Known to
    /// the leader of a fleet.
    outdated_ends: HashSet<ShardId>,
    /// The owners of the shards that other processes have leased.
    leased_elsewhere: HashMap<ShardId, String>,
    /// The error that ends the consumer: Kinesis refused to let a shard be read, and no shard was read
    /// before.
    refused: Option<ConsumerError>,
    /// The time at which the shards were found.
    since: Option<Instant>,
    /// True if the application has read the stream before.
    has_begun: bool,
}

impl<P: Handler + 'static> Supervisor<P> {
    /// Checks that the stream, the sink and the idempotency store may be used.
    async fn check_start(&mut self) -> Result<(), ConsumerError> {
        let pipeline = self.context.settings.pipeline.clone();
        let sink = self.factory.resilient.dead_letters().cloned();
        let store = self.factory.resilient.idempotency_store().cloned();
        let discovery = self.context.discovery();
        discovery
            .check(&pipeline, sink.as_deref(), store.as_deref())
            .await
    }

    /// Runs until all shards have ended.
    async fn supervise(&mut self) -> Result<(), ConsumerError> {
        let start = self.context.settings.start.clone();
        let mut found = self.context.discovery().first_shards(&start).await?;
        self.report_started(found.shards.len());
        loop {
            self.start_found(found).await;
            loop {
                let next_check = self.next_check.time();
                let is_check_due = tokio::select! {
                    biased;
                    Some((id, end)) = self.tasks.next_end() => {
                        let is_check_due = self.task_ended(id, end);
                        if let Some(error) = self.refused.take() {
                            return Err(error);
                        }
                        is_check_due
                    }
                    () = sleep_until(next_check.unwrap_or_else(Instant::now)), if next_check.is_some() => true,
                    else => match self.is_over() {
                        true => return Ok(()),
                        false => {
                            self.next_check.within(RELIST);
                            false
                        }
                    },
                };
                if is_check_due {
                    break;
                }
            }
            found = self.context.discovery().shards().await?;
        }
    }

    /// Starts every shard that is not started yet, whose parents have ended and that no other process has
    /// leased.
    async fn start_found(&mut self, mut found: Lineage) {
        self.next_check.clear();
        self.listed = found.shards.iter().map(|shard| shard.shard_id().into()).collect();
        self.context.settings.health.discovered();
        self.known.complete(&mut found);
        self.has_begun |= !found.checkpoints.is_empty();
        if let Some(delay) = self.known.doubt_ends(&mut found) {
            self.next_check.within(delay);
        }
        self.audit_hash_keys(found.hole());
        self.end_trimmed(&mut found).await;
        if !found.unreadable.is_empty() {
            self.next_check.within(UNREADABLE_CHECK);
        }
        let mut ready = found.ready();
        ready.retain(|shard| !self.tasks.contains(shard) && !self.halted.contains(shard));
        self.trimmed
            .report_absent_parents(&mut self.context, &ready, &mut found, self.has_begun);
        for error in found.hidden.values() {
            self.context.report_failure(&**error, RELIST);
            self.next_check.within(RELIST);
        }
        let store = self.context.settings.checkpoints.clone();
        match store.leases() {
            Some(leases) if !ready.is_empty() => self.start_leased(leases, ready, &mut found).await,
            _ => {
                for shard in ready {
                    match found.outdated.remove(&shard) {
                        Some(row) => self.start_outdated(shard, row, &mut found, None).await,
                        None => self.start(shard, &mut found, None),
                    }
                }
            }
        }
    }

    /// Starts those of these shards whose leases are available.
    async fn start_leased(&mut self, leases: &dyn Leases, ready: Vec<ShardId>, found: &mut Lineage) {
        // Other processes may release their leases at any time.
        self.next_check.within(leases.failover_time() / 2);
        // Each chunk is started before the next one is taken: a lease that is not renewed in time is lost.
        for shards in ready.chunks(TAKEN_AT_ONCE) {
            let taken = self
                .context
                .discovery()
                .take(leases, found, shards.to_vec())
                .await;
            let taken = taken.unwrap_or_else(|error| {
                self.context.report_failure(&*error, leases.failover_time() / 2);
                Vec::new()
            });
            for taken in taken {
                self.start_taken(leases, taken, found).await;
            }
        }
    }

    async fn start_taken(&mut self, leases: &dyn Leases, taken: TakenLease, found: &mut Lineage) {
        let TakenLease {
            shard,
            asked,
            outcome,
        } = taken;
        let outdated = found.outdated.contains_key(&shard);
        let outcome = match outcome {
            // Only a row that has ended is seized: a lease that is in use belongs to the current stream.
            Ok(LeaseOutcome::Ended) if outdated => {
                let key = self.context.key(shard.clone());
                let seized = answer(STORE, leases.seize(&key)).await;
                seized.unwrap_or_else(|error| Err(CheckpointError::unavailable(error)))
            }
            outcome => outcome,
        };
        match outcome {
            Ok(LeaseOutcome::Leased(checkpoint)) => {
                self.leased_elsewhere.remove(&shard);
                let is_end = *checkpoint.position() == Position::ShardEnd;
                if self.context.facts.is_outdated(&checkpoint) || (outdated && is_end) {
                    self.start_outdated(shard, checkpoint, found, Some(asked)).await;
                } else {
                    found.checkpoints.insert(shard.clone(), checkpoint);
                    self.start(shard, found, Some(asked));
                }
            }
            Ok(LeaseOutcome::Elsewhere { owner }) => self.note_leased_elsewhere(shard, owner),
            // The next check finds the new row.
            Ok(LeaseOutcome::Ended | LeaseOutcome::Missing) => {}
            Err(error) => self.context.report_failure(&error, leases.failover_time() / 2),
        }
    }

    /// Starts a shard at its oldest record, or halts the shard, because its row belongs to an earlier stream
    /// of this name.
    async fn start_outdated(
        &mut self,
        shard: ShardId,
        row: Checkpoint,
        found: &mut Lineage,
        taken: Option<Instant>,
    ) {
        let context = &mut self.context;
        let created = context.facts.created();
        let beginning = context.facts.beginning();
        context.report(|stream| Event::Shard {
            stream,
            shard: &shard,
            event: ShardEvent::StreamRecreated { created },
        });
        let to = created.unwrap_or_else(wall_clock::now);
        let decision = context.report_loss(&shard, row.read_until(), to);
        let stored = match decision {
            DataLossPolicy::Halt => {
                self.halted.insert(shard.clone());
                Ok(())
            }
            DataLossPolicy::Resume => context.discovery().store(&shard, beginning.clone()).await,
        };
        match stored {
            Ok(()) if decision == DataLossPolicy::Resume => {
                found.checkpoints.insert(shard.clone(), beginning);
                return self.start(shard, found, taken);
            }
            Ok(()) => {}
            Err(error) => {
                context.report_failure(&*error, RELIST);
                self.next_check.within(RELIST);
            }
        }
        let key = self.context.key(shard);
        let leases = self.context.settings.checkpoints.leases();
        if let Some(leases) = leases.filter(|_| taken.is_some()) {
            // If this fails, the lease expires.
            let _ = answer(STORE, leases.give_up(&key)).await;
        }
    }

    /// Starts the task of a shard. `taken` is the time just before its lease was taken, if the store has
    /// leases.
    fn start(&mut self, shard: ShardId, found: &mut Lineage, taken: Option<Instant>) {
        let from = found.checkpoints.remove(&shard);
        let from = from.unwrap_or_else(|| Checkpoint::at(Position::TrimHorizon));
        // The records of a child arrived later than everything that was read from its parents.
        let parents_read_until = found.parents_read_until(&shard);
        let from = match (from.position(), from.read_until(), parents_read_until) {
            (Position::TrimHorizon, None, Some(time)) => from.with_read_until(time),
            _ => from,
        };
        let new = NewTask {
            hash_keys: found.hash_keys(&shard),
            shard: shard.clone(),
            from,
            taken,
        };
        let task = self.factory.create(&mut self.context, new);
        self.context.settings.health.started(&shard, &task.progress);
        self.tasks.start(shard, task.run());
        self.has_begun = true;
    }

    /// Reports shards that are not settled to their end and not listed any more. Such a shard was closed, and
    /// all its records are trimmed. Its children wait until that is certain.
    async fn end_trimmed(&mut self, found: &mut Lineage) {
        let mut unlisted = found.unlisted();
        // The list also includes shards without a row whose tasks failed.
        unlisted.extend(self.restarts.take_unlisted(|shard| self.listed.contains(shard)));
        unlisted.sort();
        unlisted.dedup();
        // The task of a shard that is being read finds the loss itself.
        unlisted.retain(|shard| !self.tasks.contains(shard) && !self.known.has_ended(shard));
        unlisted.retain(|shard| !self.halted.contains(shard));
        for shard in unlisted {
            let is_there = self.context.discovery().exists(&shard).await;
            let ended = match is_there {
                Ok(true) => Err(NOT_LISTED.into()),
                Ok(false) => {
                    let (context, known) = (&mut self.context, &mut self.known);
                    self.trimmed.end(context, &shard, found, known).await
                }
                Err(error) => Err(error),
            };
            let next_check = match &ended {
                Ok(trimmed) => trimmed.next_check(&self.context),
                Err(error) => {
                    self.context.report_failure(&**error, RELIST);
                    Some(RELIST)
                }
            };
            if let Some(delay) = next_check {
                self.next_check.within(delay);
            }
        }
    }

    fn audit_hash_keys(&mut self, hole: Option<Hole>) {
        let Some(uncovered) = self.audit.observe(hole) else {
            return;
        };
        if uncovered.is_lasting {
            let Hole { first, last } = uncovered.hole;
            self.context.report(|stream| Event::Stream {
                stream,
                event: StreamEvent::HashKeysUncovered { first, last },
            });
        }
        self.next_check.within(uncovered.delay);
    }

    /// Notes that another process has leased the shard.
    fn note_leased_elsewhere(&mut self, shard: ShardId, owner: String) {
        if self.leased_elsewhere.get(&shard) != Some(&owner) {
            self.context.report(|stream| Event::Shard {
                stream,
                shard: &shard,
                event: ShardEvent::LeasedElsewhere { owner: &owner },
            });
            self.leased_elsewhere.insert(shard, owner);
        }
    }

    /// Returns true if all listed shards have ended, or if the others wait for an operator.
    fn is_over(&self) -> bool {
        let is_done = |shard: &ShardId| self.known.has_ended(shard) || self.halted.contains(shard);
        self.context.failed.is_some() || self.listed.iter().all(is_done)
    }

    /// Waits for the tasks that still run. Each task limits its own time; the timeout is for one that cannot.
    async fn stop(&mut self) {
        let limit = self.context.settings.shutdown_timeout;
        let all = async {
            while let Some((id, end)) = self.tasks.next_end().await {
                self.task_ended(id, end);
            }
        };
        if timeout(limit, all).await.is_err() {
            self.tasks.abort_all();
        }
    }

    /// Handles the end of a task. Returns true if shards may start now: the children of this one, or this one
    /// again.
    fn task_ended(&mut self, id: Id, end: ShardEnd) -> bool {
        if let Some(started) = self.tasks.get(id) {
            self.context.settings.health.ended(&started.shard);
        }
        let error = match end {
            ShardEnd::Ended => {
                // The shard is started again if its row turns out to belong to an earlier stream.
                if let Some(started) = self.tasks.remove(id) {
                    self.known.note_end(started.shard);
                }
                return true;
            }
            ShardEnd::Stopped => return false,
            ShardEnd::CrashLoopOver | ShardEnd::PositionRefused => {
                self.context.facts.doubt();
                self.tasks.remove(id);
                return true;
            }
            ShardEnd::Halted(halted) => ConsumerError::ShardHalted(halted),
            // Another shard has been read in the meantime: the permission exists.
            ShardEnd::Refused(error) if self.context.facts.has_read() => {
                self.restart_later(id, error);
                return false;
            }
            ShardEnd::Refused(error) => {
                self.tasks.remove(id);
                self.refused.get_or_insert(ConsumerError::Refused(error));
                return false;
            }
            ShardEnd::DataLost(loss) => ConsumerError::DataLoss(loss),
            ShardEnd::Failed(error) => {
                self.restart_later(id, error);
                return false;
            }
            // Another worker owns the lease; check again after half the failover time.
            ShardEnd::Lost | ShardEnd::HandedOver => {
                self.tasks.remove(id);
                let leases = self.context.settings.checkpoints.leases();
                let time = leases.map_or(Duration::ZERO, |leases| leases.failover_time() / 2);
                self.next_check.within(time);
                return false;
            }
        };
        let Some(StartedShard { shard, .. }) = self.tasks.remove(id) else {
            return false;
        };
        self.context.report(|stream| Event::Shard {
            stream,
            shard: &shard,
            event: ShardEvent::Halted { error: &error },
        });
        self.halted.insert(shard);
        self.context.failed.get_or_insert(error);
        false
    }

    /// Restarts a shard after its task failed: at its stored checkpoint, and after a delay.
    fn restart_later(&mut self, id: Id, error: BoxError) {
        let Some(StartedShard { shard, since }) = self.tasks.remove(id) else {
            return;
        };
        // The cause may be that the stream was deleted.
        self.context.facts.doubt();
        let restart = self.restarts.failed(&shard, since.elapsed());
        self.context.report(|stream| Event::Shard {
            stream,
            shard: &shard,
            event: ShardEvent::Failed {
                failures: restart.failures,
                error: &*error,
                delay: restart.delay,
            },
        });
        self.next_check.within(restart.delay);
    }

    fn report_started(&mut self, shards: usize) {
        self.since = Some(Instant::now());
        let settings = &self.context.settings;
        let place = settings.client.place().to_string();
        let checkpoints = caught(|| settings.checkpoints.name().into_owned());
        let sink = self.factory.resilient.dead_letters();
        let dead_letters = sink.map(|sink| caught(|| sink.name()).unwrap_or_default());
        let starting_position = settings.start.to_string();
        self.context.report(|stream| Event::Stream {
            stream,
            event: StreamEvent::ConsumerStarted {
                application: &self.context.application,
                place: &place,
                shards,
                checkpoints: checkpoints.as_deref().unwrap_or_default(),
                dead_letters: dead_letters.as_deref(),
                starting_position: &starting_position,
            },
        });
    }

    fn report_stopped(&self) {
        let settled = &self.factory.settled;
        if let Some(since) = self.since {
            self.context.report(|stream| Event::Stream {
                stream,
                event: StreamEvent::ConsumerStopped {
                    processed: settled.processed(),
                    duplicates: settled.duplicates(),
                    dead_lettered: settled.dead_lettered(),
                    duration: since.elapsed(),
                },
            });
        }
    }
}
