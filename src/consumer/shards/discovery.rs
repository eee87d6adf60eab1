//! Discovery before the first read: the stream, its shards, their checkpoints, and whether the dead-letter
//! sink and the idempotency store may be used.

use std::collections::HashSet;
use std::sync::Arc;

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::error::ProvideErrorMetadata;
use aws_sdk_kinesis::types::{RecordDistributionStrategy, Shard, ShardIteratorType};
use rand::rngs::SmallRng;
use tokio::time::sleep;

use super::lineage::Lineage;
use crate::aws::shard_list::{list_shards, parents};
use crate::aws::{FailedCall, Located};
use crate::checkpoint::{Checkpoint, CheckpointError, CheckpointStore, ShardKey, Sharing};
use crate::consumer::calls::{REFUSALS, STORE, answer};
use crate::consumer::error::ConsumerError;
use crate::consumer::shards::starting_position::StartingPosition;
use crate::consumer::stream_facts::{NotDescribed, StreamFacts};
use crate::dead_letter::{DeadLetterSink, SourceStream, check_target};
use crate::failure::BoxError;
use crate::idempotency::{IdempotencyStore, StoreError, check_store};
use crate::observer::{Event, Interest, Observers, ShardEvent, StreamEvent};
use crate::pipeline::{Pipeline, RecordOrder};
use crate::protection::{Backoff, RetryTimer};
use crate::record::ShardId;
use crate::record::StreamId;
use crate::sabotage::Sabotage;
use crate::start_check::{Unusable, is_passing};

/// Asks Kinesis and the stores, and retries until they answer.
pub(in crate::consumer) struct Discovery<'a> {
    pub(in crate::consumer) client: &'a Located<Client>,
    pub(in crate::consumer) stream: &'a StreamId,
    pub(in crate::consumer) application: &'a Arc<str>,
    pub(in crate::consumer) checkpoints: &'a dyn CheckpointStore,
    pub(in crate::consumer) observers: &'a Observers,
    pub(in crate::consumer) facts: &'a StreamFacts,
    pub(in crate::consumer) rng: SmallRng,
}

/// The reason why a step of discovery failed.
pub(in crate::consumer) enum Problem {
    /// A retry gives the same answer.
    Final(ConsumerError),
    /// Only an operator can fix the problem. An exception is a permission that was granted a moment ago, as
    /// IAM is eventually consistent.
    Refused(ConsumerError),
    /// A retry may succeed.
    Passing(BoxError),
}

impl Problem {
    fn of_call(error: BoxError) -> Self {
        match FailedCall::is_refused(&*error) {
            true => Problem::Refused(ConsumerError::Refused(error)),
            false => Problem::Passing(error),
        }
    }

    fn of_store(error: CheckpointError) -> Self {
        match error {
            CheckpointError::Unusable(_) | CheckpointError::InUse { .. } => {
                Problem::Final(ConsumerError::CheckpointStore(error))
            }
            error if !is_passing(&error) => Problem::Refused(ConsumerError::CheckpointStore(error)),
            error => Problem::Passing(error.into()),
        }
    }
}

impl Discovery<'_> {
    /// Checks before the first record is read that the stream has the requested order and that the required
    /// facts about it are known. Also checks that the dead-letter sink and the idempotency store may be used.
    pub(in crate::consumer) async fn check(
        &self,
        pipeline: &Pipeline,
        sink: Option<&dyn DeadLetterSink>,
        seen: Option<&dyn IdempotencyStore>,
    ) -> Result<(), ConsumerError> {
        let mut retries = StartRetries::at_start(self);
        while let Err(problem) = self.check_stream(pipeline, sink).await {
            retries.wait(self, problem).await?;
        }
        if let Some(store) = seen {
            while let Err(unusable) = check_store(store).await {
                let problem = match unusable {
                    Unusable::NotNow(error) => Problem::Passing(error),
                    Unusable::Never(error @ StoreError::Unavailable(_)) => {
                        Problem::Refused(ConsumerError::IdempotencyStore(error))
                    }
                    Unusable::Never(error) => Problem::Final(ConsumerError::IdempotencyStore(error)),
                };
                retries.wait(self, problem).await?;
            }
        }
        Ok(())
    }

    async fn check_stream(
        &self,
        pipeline: &Pipeline,
        sink: Option<&dyn DeadLetterSink>,
    ) -> Result<(), Problem> {
        let mut source = SourceStream::new(self.stream.clone());
        match self.facts.describe().await {
            Ok(summary) => {
                let spread = summary.record_distribution_strategy;
                let needs_keys = pipeline.order() == RecordOrder::PartitionKey;
                if spread == Some(RecordDistributionStrategy::Auto) && needs_keys {
                    return Err(Problem::Final(ConsumerError::NoPartitionKeys {
                        stream: self.stream.name().to_string(),
                    }));
                }
                source.arn = Some(summary.stream_arn);
                source.max_record_bytes = summary
                    .max_record_size_in_kib
                    .and_then(|kib| u64::try_from(kib).ok())
                    .map(|kib| kib * 1024);
            }
            Err(NotDescribed::NotFound(error)) => return Err(self.not_found(error)),
            Err(NotDescribed::Passing(error)) => return Err(Problem::of_call(error)),
            Err(NotDescribed::Refused(source)) if pipeline.lets_expire() && sink.is_some() => {
                return Err(Problem::Final(ConsumerError::RetentionUnknown {
                    stream: self.stream.name().to_string(),
                    source,
                }));
            }
            // Reading needs no permission to describe the stream. Without it the stream's retention, creation
            // time and record limit are unknown. A record without a key is refused when it arrives.
            Err(NotDescribed::Refused(error)) => self.facts.report(&error, self.observers),
        }
        if let Some(sink) = sink {
            let checked = check_target(sink, &source, self.observers).await;
            checked.map_err(|unusable| match unusable {
                Unusable::NotNow(error) => Problem::Passing(error),
                Unusable::Never(error) => match FailedCall::is_refused(&error) {
                    true => Problem::Refused(error.into()),
                    false => Problem::Final(error.into()),
                },
            })?;
        }
        Ok(())
    }

    /// Returns the stream's shards and their checkpoints.
    pub(in crate::consumer) async fn shards(&self) -> Result<Lineage, ConsumerError> {
        self.shards_with(StartRetries::running(self)).await
    }

    async fn shards_with(&self, mut retries: StartRetries) -> Result<Lineage, ConsumerError> {
        loop {
            match self.find().await {
                Ok(found) => return Ok(found),
                Err(problem) => retries.wait(self, problem).await?,
            }
        }
    }

    /// Returns the same when a consumer starts. The starting positions of shards that were never read are
    /// stored first.
    pub(in crate::consumer) async fn first_shards(
        &self,
        start: &StartingPosition,
    ) -> Result<Lineage, ConsumerError> {
        let mut retries = StartRetries::at_start(self);
        loop {
            let mut found = self.shards_with(StartRetries::at_start(self)).await?;
            if let Some(error) = found
                .of_other_stream
                .take()
                .filter(|_| found.checkpoints.is_empty())
            {
                return Err(ConsumerError::CheckpointStore(error));
            }
            while let Err(problem) = self.add_unlisted(&mut found).await {
                retries.wait(self, problem).await?;
            }
            // Each attempt resolves the start again. The time differs only if no earlier attempt stored one.
            let begun = start.resolve(&found);
            if begun.is_empty() {
                return Ok(found);
            }
            // Each shard gets its row now. Without one it would be read from its oldest record later.
            let hidden = found.hidden.drain().next();
            let begun = match hidden {
                Some((_, error)) => Err(Problem::of_call(error)),
                None => self.begin_at(begun, &mut found).await,
            };
            match begun {
                Ok(()) => return Ok(found),
                Err(problem) => retries.wait(self, problem).await?,
            }
        }
    }

    /// Adds the rows of shards that are not listed, once at the start. Adds none if the store cannot list its
    /// rows.
    async fn add_unlisted(&self, found: &mut Lineage) -> Result<(), Problem> {
        let listed = self.checkpoints.list(self.application, self.stream.name());
        let rows = match answer(STORE, listed).await.map_err(Problem::Passing)? {
            Ok(rows) => rows.unwrap_or_default(),
            Err(error) if is_passing(&error) => return Err(Problem::Passing(error.into())),
            // A missing permission does not stop a consumer that can read without it.
            Err(error) => {
                tracing::warn!(
                    %error, stream = self.stream.name(),
                    "checkpoints not listed; shards trimmed while the application was down are not reported"
                );
                return Ok(());
            }
        };
        for (shard, checkpoint) in rows {
            if !found.has_row(&shard) {
                found.checkpoints.insert(shard, checkpoint);
            }
        }
        Ok(())
    }

    /// Returns whether Kinesis still has a shard that it does not list.
    pub(in crate::consumer) async fn exists(&self, shard: &ShardId) -> Result<bool, BoxError> {
        let (name, arn) = self.stream.name_or_arn();
        let call = self.client.get_shard_iterator().shard_id(shard.as_str());
        let call = call.set_stream_name(name).set_stream_arn(arn);
        let call = call.shard_iterator_type(ShardIteratorType::TrimHorizon);
        match call.send().await {
            Ok(_) => Ok(true),
            Err(error) if is_not_found(&error) => Ok(false),
            Err(error) => {
                let task = format!("look for {shard} of {:?}", self.stream.to_string());
                Err(self.client.failed(task, "kinesis:GetShardIterator", error).into())
            }
        }
    }

    /// Stores these checkpoints. Each one that is stored is added to the lineage, even if others fail.
    async fn begin_at(&self, begun: Vec<(ShardId, Checkpoint)>, found: &mut Lineage) -> Result<(), Problem> {
        let asked = begun.len();
        let tagged = |(shard, checkpoint): (ShardId, Checkpoint)| (shard, self.facts.tag(checkpoint));
        let rows = begun.iter().cloned().map(tagged);
        let stored = match self.checkpoints.leases() {
            Some(leases) => {
                let row = |(shard, checkpoint)| found.new_shard(self.key(shard), checkpoint);
                let rows: Vec<_> = rows.map(row).collect();
                answer(STORE, leases.create(&rows)).await
            }
            None => {
                let row = |(shard, checkpoint)| (self.key(shard), checkpoint);
                let rows: Vec<_> = rows.map(row).collect();
                answer(STORE, self.checkpoints.save(&rows)).await
            }
        };
        let stored = stored.and_then(|stored| all_of(stored, asked));
        let mut result = Ok(());
        for ((shard, checkpoint), stored) in begun.into_iter().zip(stored.map_err(Problem::Passing)?) {
            match stored {
                Ok(()) => drop(found.checkpoints.insert(shard, checkpoint)),
                Err(error) => result = Err(Problem::of_store(error)),
            }
        }
        result
    }

    /// Asks Kinesis for the description of the stream, unless the last one is fresh.
    pub(in crate::consumer) async fn refresh_facts(&self) -> Result<(), Problem> {
        if self.facts.is_fresh() {
            return Ok(());
        }
        match self.facts.describe().await {
            Ok(_) | Err(NotDescribed::Refused(_)) => Ok(()),
            Err(NotDescribed::NotFound(error)) => Err(self.not_found(error)),
            Err(NotDescribed::Passing(error)) => Err(Problem::of_call(error)),
        }
    }

    async fn find(&self) -> Result<Lineage, Problem> {
        self.refresh_facts().await?;
        let listed = list_shards(self.client, self.stream).await;
        let shards = listed.map_err(|error| match FailedCall::code(&*error) {
            Some("ResourceNotFoundException") => self.not_found(error),
            _ => Problem::of_call(error),
        })?;
        let keys: Vec<ShardKey> = listed_or_parents(&shards)
            .into_iter()
            .map(|shard| self.key(shard.into()))
            .collect();
        let stored = answer(STORE, self.checkpoints.load(&keys)).await;
        let stored = stored.and_then(|stored| all_of(stored, keys.len()));
        let stored = stored.map_err(Problem::Passing)?;
        let mut found = Lineage::new(shards);
        for (key, stored) in keys.into_iter().zip(stored) {
            if let Some(checkpoint) = self.readable(&key.shard, stored, &mut found)? {
                found.checkpoints.insert(key.shard, checkpoint);
            }
        }
        found.set_aside(|checkpoint| self.facts.is_outdated(checkpoint));
        self.find_hidden(&mut found).await;
        if self.checkpoints.leases().is_some() {
            found.finish_deleted();
        }
        Ok(found)
    }

    /// Returns what a store has for a shard. A row that cannot be read is reported: it concerns this shard
    /// alone, and the others must not wait until an operator fixes its checkpoint.
    pub(in crate::consumer) fn readable<T>(
        &self,
        shard: &ShardId,
        stored: Result<Option<T>, CheckpointError>,
        found: &mut Lineage,
    ) -> Result<Option<T>, Problem> {
        match stored {
            Ok(stored) => Ok(stored),
            Err(error @ (CheckpointError::Corrupt { .. } | CheckpointError::OtherStream { .. })) => {
                self.report(|stream| Event::Shard {
                    stream,
                    shard,
                    event: ShardEvent::CheckpointUnreadable { error: &error },
                });
                found.unreadable.insert(shard.clone());
                if let CheckpointError::OtherStream { .. } = error {
                    found.of_other_stream = Some(error);
                }
                Ok(None)
            }
            Err(error) => Err(Problem::of_store(error)),
        }
    }

    /// Asks Kinesis whether it has the parents that are neither listed nor known by a row. If Kinesis has
    /// one or does not answer, the listing may be incomplete, and the children of that parent wait.
    async fn find_hidden(&self, found: &mut Lineage) {
        if Sabotage::TrustPartialListing.is_committed() {
            return;
        }
        for parent in found.unknown_parents() {
            if self.facts.is_absent(&parent) {
                continue;
            }
            let error = match self.exists(&parent).await {
                Ok(false) => {
                    self.facts.note_absent(parent);
                    continue;
                }
                Ok(true) => NOT_LISTED.into(),
                Err(error) => error,
            };
            found.hidden.insert(parent, error);
        }
    }

    /// Returns the same as [`shards`](Discovery::shards), without a retry.
    pub(in crate::consumer) async fn shards_once(&self) -> Result<Lineage, BoxError> {
        self.find().await.map_err(|problem| match problem {
            Problem::Final(error) | Problem::Refused(error) => error.into(),
            Problem::Passing(error) => error,
        })
    }

    pub(in crate::consumer) fn key(&self, shard: ShardId) -> ShardKey {
        ShardKey::new(self.application.clone(), self.stream.shared_name(), shard)
    }

    /// Announces this worker to the others when it starts: repeated refusals end the start.
    pub(in crate::consumer) async fn announce(&self, sharing: &dyn Sharing) -> Result<(), ConsumerError> {
        let mut retries = StartRetries::at_start(self);
        loop {
            let announced = answer(STORE, sharing.announce()).await;
            let problem = match announced {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => Problem::of_store(error),
                Err(error) => Problem::Passing(error),
            };
            retries.wait(self, problem).await?;
        }
    }

    fn not_found(&self, source: BoxError) -> Problem {
        Problem::Final(ConsumerError::StreamNotFound {
            stream: self.stream.to_string(),
            source,
        })
    }

    fn report<'a>(&'a self, event: impl FnOnce(&'a str) -> Event<'a>) {
        if self.observers.want(Interest::SHARDS) {
            self.observers.tell(&event(self.stream.name()));
        }
    }
}

/// Returns the listed shards and their parents: a listing may lack a parent that is not settled yet.
fn listed_or_parents(shards: &[Shard]) -> Vec<&str> {
    let listed = shards.iter().map(Shard::shard_id);
    let mut known: HashSet<&str> = HashSet::new();
    let all = listed.chain(shards.iter().flat_map(parents));
    all.filter(|shard| known.insert(shard)).collect()
}

pub(in crate::consumer) const NOT_LISTED: &str = "ListShards did not list a shard that exists";

/// Returns the results if there is one for each shard. Otherwise no result can be assigned to its shard.
pub(in crate::consumer) fn all_of<T>(results: Vec<T>, asked: usize) -> Result<Vec<T>, BoxError> {
    let got = results.len();
    match got == asked {
        true => Ok(results),
        false => Err(format!("{STORE} returned {got} results for {asked} shards").into()),
    }
}

/// The decision whether to retry, and after which delay.
pub(in crate::consumer) struct StartRetries {
    timer: RetryTimer,
    /// The number of consecutive refusals.
    refusals: u32,
    most_refusals: u32,
}

impl StartRetries {
    /// Creates the retries of a consumer that starts: repeated refusals end the start.
    fn at_start(discovery: &Discovery<'_>) -> Self {
        StartRetries {
            most_refusals: REFUSALS,
            ..StartRetries::running(discovery)
        }
    }

    /// Creates the retries of a consumer that runs: it waits however long, because what it has read is not
    /// settled yet.
    pub(in crate::consumer) fn running(discovery: &Discovery<'_>) -> Self {
        StartRetries {
            timer: RetryTimer::new(Backoff::exponential(), discovery.rng.clone()),
            refusals: 0,
            most_refusals: u32::MAX,
        }
    }

    async fn wait(&mut self, discovery: &Discovery<'_>, problem: Problem) -> Result<(), ConsumerError> {
        let error = match problem {
            Problem::Final(error) => return Err(error),
            Problem::Refused(error) => {
                self.refusals = self.refusals.saturating_add(1);
                if self.refusals >= self.most_refusals {
                    return Err(error);
                }
                error.into()
            }
            Problem::Passing(error) => {
                self.refusals = 0;
                error
            }
        };
        self.wait_after(discovery, error).await;
        Ok(())
    }

    pub(in crate::consumer) async fn wait_after(&mut self, discovery: &Discovery<'_>, error: BoxError) {
        let delay = self.timer.next_delay();
        discovery.report(|stream| Event::Stream {
            stream,
            event: StreamEvent::DiscoveryFailed {
                failures: self.timer.failures(),
                error: &*error,
                delay,
            },
        });
        sleep(delay).await;
    }
}

fn is_not_found(error: &impl ProvideErrorMetadata) -> bool {
    error.code() == Some("ResourceNotFoundException")
}
