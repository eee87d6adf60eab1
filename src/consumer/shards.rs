//! Which shards are read, and when: parents before children.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_kinesis::error::ProvideErrorMetadata;
use aws_sdk_kinesis::types::Shard;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio::sync::Semaphore;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::checkpointing::Checkpointer;
use super::polling::Poller;
use super::shard::{ShardEnd, ShardTask};
use super::{Consumer, ConsumerError};
use crate::checkpoint::{Checkpoint, ShardKey};
use crate::dead_letter::SourceStream;
use crate::failure::BoxError;
use crate::observer::{Event, Interest};
use crate::pipeline::Progress;
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
    let mut shards = Shards {
        calls: Arc::new(Semaphore::new(consumer.polling.calls_in_flight)),
        application: resilient.application().into(),
        consumer,
        resilient,
        shutdown: token.clone(),
        tasks: JoinSet::new(),
        started: HashMap::new(),
        failed: None,
    };
    let mut shutdown = pin!(shutdown);
    let running = async {
        shards.check_target().await?;
        shards.start_ready().await?;
        shards.watch().await
    };
    let result = tokio::select! {
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
    shutdown: CancellationToken,
    tasks: JoinSet<ShardEnd>,
    /// Each shard is started once.
    started: HashMap<Id, ShardId>,
    failed: Option<ConsumerError>,
}

impl<P: RecordProcessor + 'static> Shards<P> {
    /// Before the first record is read: may the dead-letter sink be used?
    async fn check_target(&self) -> Result<(), ConsumerError> {
        let Some(sink) = self.resilient.dead_letters() else {
            return Ok(());
        };
        let (name, arn) = self.consumer.stream.name_or_arn();
        let mut source = SourceStream::new(&**self.consumer.stream.name());
        let summary = self.consumer.client.describe_stream_summary();
        match summary.set_stream_name(name).set_stream_arn(arn).send().await {
            Ok(reply) => {
                if let Some(summary) = reply.stream_description_summary {
                    source.arn = Some(summary.stream_arn);
                    source.max_record_bytes = summary
                        .max_record_size_in_kib
                        .and_then(|kib| u64::try_from(kib).ok())
                        .map(|kib| kib * 1024);
                }
            }
            Err(error) if error.code() == Some("ResourceNotFoundException") => {
                return Err(self.not_found(error.into()));
            }
            // Whatever else is wrong with the stream will be said by its readers.
            Err(error) => tracing::debug!(%error, "the stream's limits are not known"),
        }
        for warning in sink.check(&source).await? {
            if self.resilient.observers().want(Interest::SHARDS) {
                self.resilient.observers().tell(&Event::DeadLetterTargetWarning {
                    sink: &sink.name(),
                    message: &warning.message,
                    remedy: &warning.remedy,
                });
            }
        }
        Ok(())
    }

    fn not_found(&self, source: BoxError) -> ConsumerError {
        ConsumerError::StreamNotFound {
            stream: match self.consumer.stream.arn() {
                Some(arn) => arn.to_owned(),
                None => self.consumer.stream.name().to_string(),
            },
            source,
        }
    }

    /// Starts every shard that is not started yet and whose parents are done.
    async fn start_ready(&mut self) -> Result<(), ConsumerError> {
        let mut failures = 0;
        let mut rng = SmallRng::from_rng(&mut rand::rng());
        let (shards, checkpoints) = loop {
            let error = match self.discover().await {
                Ok(found) => break found,
                Err(Discovery::NotFound(error)) => return Err(self.not_found(error)),
                Err(Discovery::Failed(error)) => error,
            };
            let delay = Jitter::Equal.delay(&Backoff::exponential(), failures, Duration::ZERO, &mut rng);
            failures = failures.saturating_add(1);
            if self.resilient.observers().want(Interest::SHARDS) {
                self.resilient.observers().tell(&Event::DiscoveryFailed {
                    stream: self.consumer.stream.name(),
                    failures,
                    error: &*error,
                    delay,
                });
            }
            sleep(delay).await;
        };
        for shard in ready(&shards, &checkpoints) {
            if !self.started.values().any(|started| *started == shard) {
                let from = checkpoints.get(&shard).cloned();
                self.start(
                    shard,
                    from.unwrap_or_else(|| Checkpoint::at(Position::TrimHorizon)),
                );
            }
        }
        Ok(())
    }

    /// The stream's shards and what is stored of them.
    async fn discover(&self) -> Result<(Vec<Shard>, HashMap<ShardId, Checkpoint>), Discovery> {
        let mut shards = Vec::new();
        let mut next: Option<String> = None;
        loop {
            let call = self.consumer.client.list_shards();
            let call = match &next {
                // The token names the stream.
                Some(token) => call.next_token(token),
                None => {
                    let (name, arn) = self.consumer.stream.name_or_arn();
                    call.set_stream_name(name).set_stream_arn(arn)
                }
            };
            let page = call.send().await.map_err(|error| match error.code() {
                Some("ResourceNotFoundException") => Discovery::NotFound(error.into()),
                _ => Discovery::Failed(error.into()),
            })?;
            shards.extend(page.shards.unwrap_or_default());
            next = page.next_token;
            if next.is_none() {
                break;
            }
        }
        let keys: Vec<ShardKey> = shards
            .iter()
            .map(|shard| self.key(shard.shard_id().into()))
            .collect();
        let mut checkpoints = HashMap::new();
        for (key, stored) in keys.iter().zip(self.consumer.checkpoints.load(&keys).await) {
            match stored {
                Ok(Some(checkpoint)) => {
                    checkpoints.insert(key.shard.clone(), checkpoint);
                }
                Ok(None) => {}
                Err(error) => return Err(Discovery::Failed(error.into())),
            }
        }
        Ok((shards, checkpoints))
    }

    fn key(&self, shard: ShardId) -> ShardKey {
        let stream = self.consumer.stream.name().clone();
        ShardKey::new(self.application.clone(), stream, shard)
    }

    fn start(&mut self, shard: ShardId, from: Checkpoint) {
        let progress = Arc::new(Progress::new());
        let observers = self.resilient.observers().clone();
        let task = ShardTask {
            resilient: self.resilient.clone(),
            pipeline: self.consumer.pipeline.clone(),
            poller: Poller {
                client: self.consumer.client.clone(),
                stream: self.consumer.stream.clone(),
                shard: shard.clone(),
                polling: self.consumer.polling.clone(),
                calls: self.calls.clone(),
                capacity: self.consumer.pipeline.shared_capacity().clone(),
                observers: observers.clone(),
            },
            checkpointer: Checkpointer {
                store: self.consumer.checkpoints.clone(),
                key: self.key(shard.clone()),
                observers,
                progress: progress.clone(),
            },
            progress,
            from,
            shutdown: self.shutdown.clone(),
            last_checkpoint: self.consumer.last_checkpoint,
        };
        let id = self.tasks.spawn(task.run()).id();
        self.started.insert(id, shard);
    }

    /// Runs until every shard has come to an end.
    async fn watch(&mut self) -> Result<(), ConsumerError> {
        while let Some(ended) = self.tasks.join_next_with_id().await {
            if self.ended(ended) {
                self.start_ready().await?;
            }
        }
        Ok(())
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
            Err(broken) => (broken.id(), ShardEnd::Failed(broken.into())),
        };
        let Some(shard) = self.started.get(&id) else {
            return false;
        };
        let error = match end {
            ShardEnd::Ended => return true,
            ShardEnd::Stopped => return false,
            ShardEnd::Halted(halted) => ConsumerError::ShardHalted(halted),
            ShardEnd::Failed(source) => ConsumerError::ShardFailed {
                shard: shard.clone(),
                source,
            },
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
}

enum Discovery {
    NotFound(BoxError),
    Failed(BoxError),
}

/// The shards that may be read: not at their end, and no parent that the stream still has is short of
/// its own. (A parent that the stream has no more was trimmed: nothing of it is left to read.)
fn ready(shards: &[Shard], checkpoints: &HashMap<ShardId, Checkpoint>) -> Vec<ShardId> {
    let known: HashSet<&str> = shards.iter().map(Shard::shard_id).collect();
    let done = |shard: &str| {
        checkpoints
            .get(&ShardId::from(shard))
            .is_some_and(|checkpoint| *checkpoint.position() == Position::ShardEnd)
    };
    let open = |parent: Option<&str>| parent.is_some_and(|parent| known.contains(parent) && !done(parent));
    shards
        .iter()
        .filter(|shard| !done(shard.shard_id()))
        .filter(|shard| !open(shard.parent_shard_id()) && !open(shard.adjacent_parent_shard_id()))
        .map(|shard| shard.shard_id().into())
        .collect()
}
