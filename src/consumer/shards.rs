//! The tasks of all shards: parents before children, and each once.

use std::collections::HashMap;
use std::future::Future;
use std::ops::RangeInclusive;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio::sync::Semaphore;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::checkpointing::Checkpointer;
use super::discovery::Discovery;
use super::fan_out::FanOut;
use super::lineage::{Hole, Lineage};
use super::polling::Poller;
use super::reading::{ReadFrom, Reading};
use super::registration::Registration;
use super::shard::{ShardEnd, ShardTask};
use super::{Consumer, ConsumerError, Retrieval};
use crate::checkpoint::Checkpoint;
use crate::failure::BoxError;
use crate::observer::{Event, Interest};
use crate::pipeline::{Ordering, Progress};
use crate::processor::RecordProcessor;
use crate::record::{Position, ShardId};
use crate::resilient::Resilient;
use crate::retry::{Backoff, Jitter};

pub(super) async fn run<P, S>(
    consumer: Consumer,
    resilient: Resilient<P>,
    shutdown: S,
) -> Result<(), ConsumerError>
where
    P: RecordProcessor + 'static,
    S: Future<Output = ()> + Send,
{
    let token = CancellationToken::new();
    // Whoever drops this future wants no task of it to live on.
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
    let mut shards = Shards {
        calls: Arc::new(Semaphore::new(consumer.polling.calls_in_flight)),
        registration,
        application,
        consumer,
        resilient,
        shutdown: token.clone(),
        tasks: JoinSet::new(),
        started: HashMap::new(),
        breakdowns: HashMap::new(),
        restart: None,
        failed: None,
        holes_in_a_row: 0,
    };
    let mut shutdown = pin!(shutdown);
    let running = async {
        let sink = shards.resilient.dead_letters().cloned();
        let ordering = shards.consumer.pipeline.order();
        shards.discovery().check(ordering, sink.as_deref()).await?;
        shards.watch().await
    };
    let result = tokio::select! {
        biased;
        result = running => result,
        () = &mut shutdown => Ok(()),
    };
    token.cancel();
    shards.stop().await;
    match shards.failed {
        Some(error) => result.and(Err(error)),
        None => result,
    }
}

struct Shards<P: RecordProcessor> {
    consumer: Consumer,
    application: Arc<str>,
    resilient: Resilient<P>,
    calls: Arc<Semaphore>,
    registration: Option<Arc<Registration>>,
    shutdown: CancellationToken,
    tasks: JoinSet<ShardEnd>,
    /// Each shard is started once, unless its task has broken down.
    started: HashMap<Id, (ShardId, Instant)>,
    /// How often in a row.
    breakdowns: HashMap<ShardId, u32>,
    /// When a shard whose task has broken down begins again.
    restart: Option<Instant>,
    failed: Option<ConsumerError>,
    /// How many listings in a row have left hash keys without a shard.
    holes_in_a_row: u32,
}

/// Between listings of a stream whose hash keys are not all covered: at once after a reshard, gently where
/// it stays so.
const AUDIT: Backoff = Backoff::exponential()
    .base(Duration::from_millis(500))
    .cap(Duration::from_secs(60));
/// Between a breakdown and another beginning of its shard.
const RESTART: Backoff = Backoff::exponential()
    .base(Duration::from_secs(1))
    .cap(Duration::from_secs(60));
/// A task that has run for so long has not broken down in a row.
const FORGET_AFTER: Duration = Duration::from_secs(5 * 60);
/// What a single listing says may be a moment in between (KCL waits for as many).
const HOLES_TO_TELL: u32 = 3;

impl<P: RecordProcessor + 'static> Shards<P> {
    /// Starts every shard that is not started yet and whose parents are done. When to look again, though no
    /// shard has ended meanwhile.
    async fn start_ready(&mut self) -> Result<Option<Instant>, ConsumerError> {
        let found = self.discovery().shards().await?;
        Ok(self.start_found(&found))
    }

    fn start_found(&mut self, found: &Lineage) -> Option<Instant> {
        for shard in found.ready() {
            if !self.started.values().any(|(started, _)| *started == shard) {
                let from = found.checkpoints.get(&shard).cloned();
                let from = from.unwrap_or_else(|| Checkpoint::at(Position::TrimHorizon));
                let hash_keys = found.hash_keys(&shard);
                self.start(shard, hash_keys, from);
            }
        }
        self.audit(found.hole())
    }

    /// A hole in the stream's hash keys closes by itself, if it is only that a listing lags behind.
    fn audit(&mut self, hole: Option<Hole>) -> Option<Instant> {
        let Some(Hole { first, last }) = hole else {
            self.holes_in_a_row = 0;
            return None;
        };
        self.holes_in_a_row += 1;
        if self.holes_in_a_row >= HOLES_TO_TELL && self.resilient.observers().want(Interest::SHARDS) {
            self.resilient.observers().tell(&Event::HashKeysUncovered {
                stream: self.consumer.stream.name(),
                first,
                last,
            });
        }
        let delay = Jitter::Equal.delay(
            &AUDIT,
            self.holes_in_a_row,
            Duration::ZERO,
            &mut self.consumer.rng,
        );
        Some(Instant::now() + delay)
    }

    fn discovery(&mut self) -> Discovery<'_> {
        Discovery {
            rng: self.rng(),
            client: &self.consumer.client,
            stream: &self.consumer.stream,
            application: &self.application,
            checkpoints: &*self.consumer.checkpoints,
            observers: self.resilient.observers(),
        }
    }

    fn rng(&mut self) -> SmallRng {
        SmallRng::from_rng(&mut self.consumer.rng)
    }

    fn start(&mut self, shard: ShardId, hash_keys: RangeInclusive<u128>, from: Checkpoint) {
        let progress = Arc::new(Progress::new());
        let observers = self.resilient.observers().clone();
        let key = self.discovery().key(shard.clone());
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
                needs_keys: self.consumer.pipeline.order() == Ordering::PartitionKey,
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
                key,
                observers,
                progress: progress.clone(),
                rng: self.rng(),
            },
            progress,
            from,
            shutdown: self.shutdown.clone(),
            last_checkpoint: self.consumer.last_checkpoint,
        };
        let id = self.tasks.spawn(task.run()).id();
        self.started.insert(id, (shard, Instant::now()));
    }

    /// Runs until every shard has come to an end.
    async fn watch(&mut self) -> Result<(), ConsumerError> {
        let start = self.consumer.start.clone();
        let found = self.discovery().first_shards(&start).await?;
        let mut audit = self.start_found(&found);
        loop {
            let next = [audit, self.restart].into_iter().flatten().min();
            let look_again = tokio::select! {
                biased;
                Some(ended) = self.tasks.join_next_with_id() => self.ended(ended),
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => true,
                else => return Ok(()),
            };
            if look_again {
                self.restart = None;
                audit = self.start_ready().await?;
            }
        }
    }

    /// Waits for what still runs. Each task bounds itself; the timeout is for one that cannot.
    async fn stop(&mut self) {
        let limit = self
            .consumer
            .shutdown_timeout
            .saturating_add(Duration::from_secs(1));
        let all = async {
            while let Some(ended) = self.tasks.join_next_with_id().await {
                self.ended(ended);
            }
        };
        if timeout(limit, all).await.is_err() {
            self.tasks.abort_all();
        }
    }

    /// Whether the shard is done, so that its children may begin.
    fn ended(&mut self, ended: Result<(Id, ShardEnd), JoinError>) -> bool {
        let (id, end) = match ended {
            Ok(ended) => ended,
            Err(broken) => (broken.id(), ShardEnd::broken(&broken)),
        };
        let error = match end {
            ShardEnd::Ended => return true,
            ShardEnd::Stopped => return false,
            ShardEnd::Halted(halted) => ConsumerError::ShardHalted(halted),
            ShardEnd::Failed(error) => {
                self.begin_again(id, error);
                return false;
            }
        };
        let Some((shard, _)) = self.started.get(&id) else {
            return false;
        };
        if self.resilient.observers().want(Interest::SHARDS) {
            self.resilient.observers().tell(&Event::ShardHalted {
                stream: self.consumer.stream.name(),
                shard,
                error: &error,
            });
        }
        self.failed.get_or_insert(error);
        false
    }

    /// A task has broken down. Its shard begins again at what is stored of it, a while later.
    fn begin_again(&mut self, id: Id, error: BoxError) {
        let Some((shard, since)) = self.started.remove(&id) else {
            return;
        };
        let failures = self.breakdowns.entry(shard.clone()).or_default();
        if since.elapsed() > FORGET_AFTER {
            *failures = 0;
        }
        let delay = Jitter::Equal.delay(&RESTART, *failures, Duration::ZERO, &mut self.consumer.rng);
        *failures = failures.saturating_add(1);
        if self.resilient.observers().want(Interest::SHARDS) {
            self.resilient.observers().tell(&Event::ShardFailed {
                stream: self.consumer.stream.name(),
                shard: &shard,
                failures: *failures,
                error: &*error,
                delay,
            });
        }
        let at = Instant::now() + delay;
        self.restart = Some(self.restart.map_or(at, |before| before.min(at)));
    }
}
