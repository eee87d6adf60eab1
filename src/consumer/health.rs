//! The health of a consumer, for probes and monitoring.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::engine::Dependencies;
use crate::observer::{Bound, Event, FleetEvent, Interest, Observer, Observers, ShardEvent, StreamEvent};
use crate::pipeline::Progress;
use crate::record::{Position, ShardId};
use crate::wall_clock;

/// Interval between checks of all shards' tasks.
const LOOK: Duration = Duration::from_secs(10);
/// The time without a new poll after which a task counts as hanging.
const HANGS_AFTER: Duration = Duration::from_secs(60);

/// A handle to the health of a consumer. All clones report on the same consumer.
///
/// ```no_run
/// # fn example(consumer: redrive::Consumer) {
/// let health = consumer.health(); // before it runs
/// tokio::spawn(async move {
///     loop {
///         tokio::time::sleep(std::time::Duration::from_secs(30)).await;
///         let report = health.report();
///         println!("live: {}, ready: {}, {} shards", report.live, report.ready, report.shards.len());
///     }
/// });
/// # }
/// ```
///
/// A probe that restarts the process checks [`live`](HealthReport::live). Run such a probe on a dedicated
/// thread: a runtime whose threads are all blocked cannot answer it.
#[derive(Debug, Clone, Default)]
pub struct Health(Arc<Mutex<Board>>);

/// The state of a consumer at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct HealthReport {
    /// False only if a task of the consumer has had no new poll for a minute: something blocks the task, such
    /// as a processor that does not `await`. Only a restart of the process helps. A consumer that waits for a
    /// store or a service is live, but not [`ready`](HealthReport::ready).
    pub live: bool,
    /// True if the consumer runs and waits for nothing but the retry budget. Each shard is read here or
    /// leased by another process.
    pub ready: bool,
    /// The stores, services and actions that all shards wait for.
    pub waits_for: Vec<WaitsFor>,
    /// The shards that are known and not settled to their end. If workers share the shards evenly: the shards
    /// of this worker.
    pub shards: Vec<ShardHealth>,
    /// This worker's part in the fleet. `None` if the checkpoint store does not share the shards evenly.
    pub fleet: Option<FleetHealth>,
}

/// A worker's part in the fleet: the workers that share the shards of a stream evenly.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct FleetHealth {
    /// The number of leases that are assigned to this worker, as of its last check. It includes the leases of
    /// shards that wait for their parents, have ended, or are still being handed over to this worker.
    pub leases: usize,
    /// True if this worker is the leader, which assigns the shards.
    pub is_leader: bool,
    /// The number of living workers, if this worker is the leader. The other workers do not know it.
    pub workers: Option<usize>,
}

/// A dependency or an action that all shards of a consumer may wait for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum WaitsFor {
    /// The consumer has not started yet, or has ended.
    Start,
    /// Discovery fails: the stream's shards or their checkpoints cannot be read.
    Discovery,
    /// The checkpoint store: the checkpoint of a shard could not be stored.
    CheckpointStore,
    /// A dependency whose breaker is not closed. `None` is the shared breaker for failures without a named
    /// dependency.
    Dependency(Option<String>),
    /// The dead-letter sink, which has failed to take dead letters.
    DeadLetterSink,
    /// An operator, who checks a flood of dead letters and calls
    /// [`DeadLetterGuard::resume`](crate::DeadLetterGuard::resume).
    GuardResumed,
    /// The retry budget, which is exhausted. Retries wait; first attempts continue.
    RetryBudget,
}

/// The health of one shard.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ShardHealth {
    /// The shard.
    pub shard: ShardId,
    /// The state of the shard.
    pub state: ShardState,
    /// The position of the last stored checkpoint. Until the first write it is the position where the shard
    /// started.
    pub position: Option<Position>,
    /// The reader's distance from the stream's tip (`MillisBehindLatest`).
    pub lag: Option<Duration>,
    /// The time since the checkpoint advanced, or since the shard started.
    pub since_progress: Duration,
    /// The number of records in flight (read and not settled).
    pub in_flight: usize,
    /// The time since the oldest record in flight arrived in the stream, by this machine's clock.
    pub oldest: Option<Duration>,
}

/// The state of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ShardState {
    /// The shard is read and its records are settled.
    Running,
    /// Reading waits until a record settles, and the shard has waited for the same record for five seconds or
    /// more.
    Full(Bound),
    /// The dead-letter guard has stopped the shard, which waits for
    /// [`DeadLetterGuard::resume`](crate::DeadLetterGuard::resume).
    Stopped,
    /// Reading fails and is retried.
    ReadingFails,
    /// Storing checkpoints fails and is retried.
    StoringFails,
    /// Another process owns the shard's lease.
    StandingBy,
    /// The stored checkpoint is corrupt or belongs to another stream.
    Unreadable,
    /// The shard's task failed and restarts after a delay.
    Restarting,
    /// The shard has halted: continuing would lose a record, or records are lost and `on_data_loss` halted
    /// the shard.
    Halted,
}

#[derive(Debug, Default)]
struct Board {
    /// `None` while the consumer does not run.
    dependencies: Option<Dependencies>,
    looked: Option<Instant>,
    discovery_fails: bool,
    fleet: Option<FleetHealth>,
    shards: BTreeMap<ShardId, Entry>,
}

#[derive(Debug)]
struct Entry {
    state: ShardState,
    position: Option<Position>,
    lag: Option<Duration>,
    progressed: Instant,
    reading_fails: bool,
    storing_fails: bool,
    task: Option<Task>,
}

/// The task of a shard, its number of polls at the last change, and the time of that change.
#[derive(Debug)]
struct Task {
    progress: Arc<Progress>,
    turns: u64,
    since: Instant,
}

impl Health {
    /// Returns the state of the consumer at this moment.
    pub fn report(&self) -> HealthReport {
        let board = self.board();
        let now = Instant::now();
        let shards: Vec<ShardHealth> = board
            .shards
            .iter()
            .map(|(shard, entry)| entry.health(shard, now))
            .collect();
        let waits_for = board.waits_for();
        let is_fine =
            |shard: &ShardHealth| matches!(shard.state, ShardState::Running | ShardState::StandingBy);
        HealthReport {
            live: board.is_live(now),
            ready: waits_for.iter().all(|it| *it == WaitsFor::RetryBudget) && shards.iter().all(is_fine),
            waits_for,
            shards,
            fleet: board.fleet.clone(),
        }
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks all tasks at intervals, as long as the consumer runs.
    pub(super) async fn look_on(self, dependencies: Dependencies, stream: Arc<str>, observers: Observers) {
        let _ended = Ended(self.clone());
        self.board().dependencies = Some(dependencies);
        loop {
            self.board().look();
            if observers.want(Interest::STATUS) {
                let standing = self.board().standing();
                for shard in standing {
                    observers.tell(&Event::Shard {
                        stream: &stream,
                        shard: &shard.shard,
                        event: ShardEvent::Status {
                            in_flight: shard.in_flight,
                            oldest: shard.oldest,
                            since_progress: shard.since_progress,
                        },
                    });
                }
            }
            sleep(LOOK).await;
        }
    }

    /// Notes that the stream's shards and their checkpoints were found.
    pub(super) fn discovered(&self) {
        self.board().discovery_fails = false;
    }

    /// Notes the number of leases that the fleet assigns to this worker.
    pub(super) fn assigned(&self, leases: usize) {
        self.board().fleet.get_or_insert_default().leases = leases;
    }

    /// Notes that the shard has a task.
    pub(super) fn started(&self, shard: &ShardId, progress: &Arc<Progress>) {
        let mut board = self.board();
        let entry = board.entry(shard);
        entry.task = Some(Task {
            progress: progress.clone(),
            turns: progress.turns(),
            since: Instant::now(),
        });
    }

    /// Notes that the shard's task has ended.
    pub(super) fn ended(&self, shard: &ShardId) {
        if let Some(entry) = self.board().shards.get_mut(shard) {
            entry.task = None;
        }
    }
}

/// Resets the board when the run is over, however it ended.
struct Ended(Health);

impl Drop for Ended {
    fn drop(&mut self) {
        let mut board = self.0.board();
        *board = Board::default();
    }
}

impl Board {
    fn entry(&mut self, shard: &ShardId) -> &mut Entry {
        self.shards.entry(shard.clone()).or_insert_with(|| Entry {
            state: ShardState::Running,
            position: None,
            lag: None,
            progressed: Instant::now(),
            reading_fails: false,
            storing_fails: false,
            task: None,
        })
    }

    /// Returns the health of the shards that are read by this consumer.
    fn standing(&self) -> Vec<ShardHealth> {
        let now = Instant::now();
        let shards = self.shards.iter();
        shards
            .filter(|(_, entry)| entry.task.is_some())
            .map(|(shard, entry)| entry.health(shard, now))
            .collect()
    }

    /// Checks each task and wakes it, so that an idle task is polled too.
    fn look(&mut self) {
        let now = Instant::now();
        self.looked = Some(now);
        for task in self.shards.values_mut().filter_map(|entry| entry.task.as_mut()) {
            let turns = task.progress.turns();
            // A shard whose run has ended waits for stores and services. Its task has no polls meanwhile.
            if turns != task.turns || task.progress.is_ended() {
                (task.turns, task.since) = (turns, now);
            }
            task.progress.wake();
        }
    }

    fn is_live(&self, now: Instant) -> bool {
        let looked_on = |looked: Instant| now.saturating_duration_since(looked) < HANGS_AFTER;
        let turns = |task: &Task| self.looked.is_none_or(|looked| looked < task.since + HANGS_AFTER);
        let mut tasks = self.shards.values().filter_map(|entry| entry.task.as_ref());
        self.looked.is_none_or(looked_on) && tasks.all(turns)
    }

    /// Returns true if the last checkpoint of a shard that is read here could not be stored.
    fn is_store_missed(&self) -> bool {
        let mut here = self.shards.values().filter(|entry| entry.task.is_some());
        here.any(|entry| entry.storing_fails)
    }

    fn waits_for(&self) -> Vec<WaitsFor> {
        let Some(dependencies) = &self.dependencies else {
            return vec![WaitsFor::Start];
        };
        let mut waits: Vec<WaitsFor> = dependencies.down().map(WaitsFor::Dependency).collect();
        let others = [
            (self.discovery_fails, WaitsFor::Discovery),
            (self.is_store_missed(), WaitsFor::CheckpointStore),
            (dependencies.is_sink_down(), WaitsFor::DeadLetterSink),
            (dependencies.is_guard_stopped(), WaitsFor::GuardResumed),
            (dependencies.is_budget_empty(), WaitsFor::RetryBudget),
        ];
        waits.extend(
            others
                .into_iter()
                .filter(|(waits, _)| *waits)
                .map(|(_, what)| what),
        );
        waits
    }
}

impl FleetHealth {
    fn note(&mut self, event: &FleetEvent<'_>) {
        match event {
            FleetEvent::LeaderGained { .. } => (self.is_leader, self.workers) = (true, Some(0)),
            FleetEvent::LeaderLost { .. } => (self.is_leader, self.workers) = (false, None),
            FleetEvent::WorkerJoined { workers, .. } | FleetEvent::WorkerLeft { workers, .. } => {
                self.workers = self.is_leader.then_some(*workers);
            }
            _ => {}
        }
    }
}

impl Entry {
    fn health(&self, shard: &ShardId, now: Instant) -> ShardHealth {
        let progress = self.task.as_ref().map(|task| &task.progress);
        let oldest = progress.and_then(|progress| progress.oldest());
        ShardHealth {
            shard: shard.clone(),
            state: self.state_now(),
            position: self.position.clone(),
            lag: self.lag,
            since_progress: now.saturating_duration_since(self.progressed),
            in_flight: progress.map_or(0, |progress| progress.in_flight()),
            oldest: oldest.and_then(|oldest| wall_clock::now().duration_since(oldest).ok()),
        }
    }

    fn state_now(&self) -> ShardState {
        let progress = self.task.as_ref().map(|task| &task.progress);
        let bound = progress.and_then(|progress| progress.stuck());
        let is_stopped = progress.is_some_and(|progress| progress.is_stopped());
        match self.state {
            ShardState::Running if is_stopped => ShardState::Stopped,
            ShardState::Running if self.reading_fails => ShardState::ReadingFails,
            ShardState::Running if self.storing_fails => ShardState::StoringFails,
            ShardState::Running => bound.map_or(ShardState::Running, ShardState::Full),
            state => state,
        }
    }
}

/// Updates the board from the consumer's shard events.
impl Observer for Health {
    fn interest(&self) -> Interest {
        Interest::SHARDS
    }

    fn on(&self, event: &Event<'_>) {
        let mut board = self.board();
        let (shard, event) = match event {
            Event::Stream {
                event: StreamEvent::DiscoveryFailed { .. },
                ..
            } => {
                board.discovery_fails = true;
                return;
            }
            Event::Fleet { event, .. } => {
                board.fleet.get_or_insert_default().note(event);
                return;
            }
            Event::Shard { shard, event, .. } => (*shard, event),
            _ => return,
        };
        match event {
            ShardEvent::Started { position } => {
                let entry = board.entry(shard);
                entry.state = ShardState::Running;
                entry.position = Some((*position).clone());
                entry.progressed = Instant::now();
                (entry.reading_fails, entry.storing_fails) = (false, false);
            }
            ShardEvent::Fetched { behind, .. } => {
                let entry = board.entry(shard);
                (entry.lag, entry.reading_fails) = (*behind, false);
            }
            ShardEvent::FetchFailed { .. } => board.entry(shard).reading_fails = true,
            ShardEvent::Checkpointed { position } => {
                let entry = board.entry(shard);
                entry.storing_fails = false;
                if entry.position.as_ref() != Some(*position) {
                    entry.position = Some((*position).clone());
                    entry.progressed = Instant::now();
                }
            }
            ShardEvent::CheckpointFailed { .. } => board.entry(shard).storing_fails = true,
            // In a fleet the shard may never come back.
            ShardEvent::LeasedElsewhere { .. } | ShardEvent::LeaseLost | ShardEvent::HandedOver
                if board.fleet.is_some() =>
            {
                board.shards.remove(shard);
            }
            ShardEvent::LeasedElsewhere { .. } | ShardEvent::LeaseLost | ShardEvent::HandedOver => {
                board.entry(shard).state = ShardState::StandingBy;
            }
            ShardEvent::CheckpointUnreadable { .. } => board.entry(shard).state = ShardState::Unreadable,
            ShardEvent::Failed { .. } => board.entry(shard).state = ShardState::Restarting,
            ShardEvent::Halted { .. } => board.entry(shard).state = ShardState::Halted,
            ShardEvent::Ended => drop(board.shards.remove(shard)),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
