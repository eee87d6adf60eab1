//! The builder of a consumer, with its defaults.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_kinesis::Client;
use tokio::sync::Semaphore;

use super::data_loss::OnDataLoss;
use super::read::polling::PollingSettings;
use super::read::wire::ActiveWire;
use super::settings::Settings;
use super::{Consumer, DataLoss, DataLossPolicy, Health, Retrieval, StartingPosition, Wire};
use crate::aws;
use crate::checkpoint::{self, CheckpointStore};
use crate::config::ConfigError;
use crate::kpl::{Deaggregator, OutOfRangePolicy};
use crate::pipeline::Pipeline;
use crate::protection::retry::seeded_rng;
use crate::record::StreamId;
use crate::wall_clock;

const MIN_REFRESH_INTERVAL: Duration = Duration::from_millis(1);
/// The lifetime of a shard iterator (GetShardIterator, Kinesis API reference).
const ITERATOR_LIFE: Duration = Duration::from_secs(5 * 60);

/// Builds a [`Consumer`].
///
/// | setting | default |
/// |---|---|
/// | [`checkpoints`](ConsumerBuilder::checkpoints) | none: mandatory |
/// | [`pipeline`](ConsumerBuilder::pipeline) | [`Pipeline::default()`](Pipeline): order per key, 4,096 records in flight per shard |
/// | [`starting_position`](ConsumerBuilder::starting_position) | [`StartingPosition::TrimHorizon`] |
/// | [`retrieval`](ConsumerBuilder::retrieval) | [`Retrieval::Polling`] |
/// | [`wire`](ConsumerBuilder::wire) | [`Wire::Json`] |
/// | [`calls_per_second`](ConsumerBuilder::calls_per_second) | 5 for each shard (limit of all its readers) |
/// | [`records_per_call`](ConsumerBuilder::records_per_call) | 10,000, the service's limit |
/// | [`idle_interval`](ConsumerBuilder::idle_interval) | 1 s |
/// | [`calls_in_flight`](ConsumerBuilder::calls_in_flight) | 64 |
/// | [`out_of_range_policy`](ConsumerBuilder::out_of_range_policy) | [`OutOfRangePolicy::Deliver`] |
/// | [`redrive_stamps`](ConsumerBuilder::redrive_stamps) | ignored |
/// | [`on_data_loss`](ConsumerBuilder::on_data_loss) | [`DataLossPolicy::Resume`] |
/// | [`refresh_interval`](ConsumerBuilder::refresh_interval) | 5 minutes |
/// | [`shutdown_timeout`](ConsumerBuilder::shutdown_timeout) | 20 s |
/// | [`seed`](ConsumerBuilder::seed) | random |
#[must_use]
pub struct ConsumerBuilder {
    client: Client,
    stream: StreamId,
    checkpoints: Option<Arc<dyn CheckpointStore>>,
    pipeline: Pipeline,
    start: StartingPosition,
    retrieval: Retrieval,
    wire: Wire,
    calls_per_second: f64,
    idle_interval: Duration,
    records_per_call: u32,
    calls_in_flight: usize,
    on_data_loss: OnDataLoss,
    refresh_interval: Duration,
    deaggregator: Deaggregator,
    shutdown_timeout: Duration,
    seed: Option<u64>,
}

impl ConsumerBuilder {
    pub(super) fn new(client: Client, stream: StreamId) -> Self {
        ConsumerBuilder {
            client,
            stream,
            checkpoints: None,
            pipeline: Pipeline::default(),
            start: StartingPosition::TrimHorizon,
            retrieval: Retrieval::Polling,
            wire: Wire::Json,
            calls_per_second: 5.0,
            idle_interval: Duration::from_secs(1),
            records_per_call: 10_000,
            calls_in_flight: 64,
            on_data_loss: OnDataLoss::default(),
            refresh_interval: Duration::from_secs(5 * 60),
            deaggregator: Deaggregator::new(),
            shutdown_timeout: Duration::from_secs(20),
            seed: None,
        }
    }

    /// Sets the checkpoint store. Mandatory.
    pub fn checkpoints(mut self, store: impl CheckpointStore + 'static) -> Self {
        self.checkpoints = Some(Arc::new(store));
        self
    }

    /// Sets the order, the bounds and the expiry policy of each shard's [`Pipeline`]. The consumer itself sets
    /// the pipeline's drain and retention. Consumers whose pipelines have clones of one
    /// [`Capacity`](crate::pipeline::Capacity) share its limits.
    pub fn pipeline(mut self, pipeline: Pipeline) -> Self {
        self.pipeline = pipeline;
        self
    }

    /// Sets the position at which the application starts for the first time.
    pub fn starting_position(mut self, start: StartingPosition) -> Self {
        self.start = start;
        self
    }

    /// Sets how shards are read. The polling settings also apply to a shard that cannot be subscribed to.
    pub fn retrieval(mut self, retrieval: Retrieval) -> Self {
        self.retrieval = retrieval;
        self
    }

    /// Sets the encoding in which records are polled.
    pub fn wire(mut self, wire: Wire) -> Self {
        self.wire = wire;
        self
    }

    /// Sets the maximum number of calls per second for a shard. Kinesis allows 5 calls a second for each
    /// shard, to all its readers together: use less if other applications read the stream. The minimum is one
    /// call in 5 minutes.
    pub fn calls_per_second(mut self, calls: f64) -> Self {
        self.calls_per_second = calls;
        self
    }

    /// Sets the maximum number of records that a call asks for, 1 to 10,000.
    pub fn records_per_call(mut self, records: u32) -> Self {
        self.records_per_call = records;
        self
    }

    /// Sets the delay before a shard that has been read to its tip is read again. Any time is valid: calls
    /// [per second](ConsumerBuilder::calls_per_second) limit the reads of a shard in any case.
    pub fn idle_interval(mut self, interval: Duration) -> Self {
        self.idle_interval = interval;
        self
    }

    /// Sets the maximum number of concurrent read calls for all shards: at least 1, and at most tokio's
    /// `Semaphore::MAX_PERMITS`.
    pub fn calls_in_flight(mut self, calls: usize) -> Self {
        self.calls_in_flight = calls;
        self
    }

    /// Sets what happens to records inside a KPL aggregate that belong to another shard: see
    /// [`OutOfRangePolicy`].
    pub fn out_of_range_policy(mut self, policy: OutOfRangePolicy) -> Self {
        self.deaggregator = self.deaggregator.out_of_range_policy(policy);
        self
    }

    /// Reads the stamps of dead letters that `redrive replay --stamp` put back into the stream. A stamped
    /// record knows its origin ([`Record::redriven`](crate::Record::redriven)). Any producer of the stream
    /// can write such a stamp: enable this only if all producers are trusted.
    pub fn redrive_stamps(mut self) -> Self {
        self.deaggregator = self.deaggregator.redrive_stamps();
        self
    }

    /// Sets what happens when a shard has dropped unsettled records that were older than the stream's
    /// retention. The consumer reports the loss in any case
    /// ([`ShardEvent::DataLoss`](crate::observer::ShardEvent::DataLoss)).
    ///
    /// The consumer calls `decide` on its own tasks: the function must not block.
    pub fn on_data_loss(
        mut self,
        decide: impl Fn(&DataLoss) -> DataLossPolicy + Send + Sync + 'static,
    ) -> Self {
        self.on_data_loss = OnDataLoss::new(decide);
        self
    }

    /// Sets how often a running consumer asks Kinesis for the stream's retention and creation time. Each
    /// delay is between half of the interval and all of it, so that processes do not ask at the same time.
    /// Kinesis allows 20 calls of `DescribeStreamSummary` a second per account. The minimum is 1 ms.
    pub fn refresh_interval(mut self, interval: Duration) -> Self {
        self.refresh_interval = interval;
        self
    }

    /// Sets the time limit of a shutdown. A fifth of it, at most 4 s, is reserved for the last checkpoints
    /// and the release of leases. Any time is valid.
    pub fn shutdown_timeout(mut self, timeout: Duration) -> Self {
        self.shutdown_timeout = timeout;
        self
    }

    /// Sets the seed of the jitter, which makes delays repeatable.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Builds the consumer.
    ///
    /// # Errors
    ///
    /// A setting is missing or cannot be used. The error names the setting.
    pub fn build(self) -> Result<Consumer, ConfigError> {
        let checkpoints = self.checkpoints.ok_or_else(|| {
            ConfigError::new(
                "checkpoints",
                "a checkpoint store is required: .checkpoints(checkpoint::Redb::open(path)?), \
                 or .checkpoints(checkpoint::Memory::new()) to start over after every restart",
            )
        })?;
        checkpoint::validate(&*checkpoints)?;
        self.stream.check("builder")?;
        if matches!(self.start, StartingPosition::AtTimestamp(time) if time > wall_clock::now()) {
            return Err(ConfigError::new(
                "starting_position",
                "the time must not be in the future",
            ));
        }
        if self.calls_per_second.is_nan() || self.calls_per_second <= 0.0 {
            let problem = format!("must be more than 0, not {}", self.calls_per_second);
            return Err(ConfigError::new("calls_per_second", problem));
        }
        if !(1..=10_000).contains(&self.records_per_call) {
            let problem = format!("must be 1 to 10,000, not {}", self.records_per_call);
            return Err(ConfigError::new("records_per_call", problem));
        }
        if !(1..=Semaphore::MAX_PERMITS).contains(&self.calls_in_flight) {
            let most = Semaphore::MAX_PERMITS;
            let problem = format!(
                "must be at least 1 and at most {most}, not {}",
                self.calls_in_flight
            );
            return Err(ConfigError::new("calls_in_flight", problem));
        }
        if self.refresh_interval < MIN_REFRESH_INTERVAL {
            let problem = format!("must be at least 1 ms, not {:?}", self.refresh_interval);
            return Err(ConfigError::new("refresh_interval", problem));
        }
        let interval = Duration::try_from_secs_f64(1.0 / self.calls_per_second)
            .ok()
            .filter(|interval| *interval <= ITERATOR_LIFE)
            .ok_or_else(|| {
                ConfigError::new(
                    "calls_per_second",
                    "must be at least one call in 5 minutes, because a shard iterator expires after that",
                )
            })?;
        // Half for the last checkpoint, then half for the release of the lease.
        let last_calls = (self.shutdown_timeout / 5).min(Duration::from_secs(4));
        Ok(Consumer(Settings {
            client: aws::kinesis::without_retries(&self.client, aws::ATTEMPT_TIMEOUT),
            stream: self.stream,
            checkpoints,
            pipeline: self.pipeline.drain(self.shutdown_timeout - last_calls),
            start: self.start,
            retrieval: self.retrieval,
            wire: Arc::new(ActiveWire::new(self.wire, &self.client)),
            polling: PollingSettings {
                interval,
                idle: self.idle_interval,
                page: self.records_per_call as i32,
                calls_in_flight: self.calls_in_flight,
            },
            on_data_loss: self.on_data_loss,
            refresh_interval: self.refresh_interval,
            health: Health::default(),
            deaggregator: self.deaggregator,
            shutdown_timeout: self.shutdown_timeout,
            last_call: last_calls / 2,
            rng: seeded_rng(self.seed),
        }))
    }
}

impl fmt::Debug for ConsumerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsumerBuilder")
            .field("stream", &self.stream)
            .field("checkpoints", &self.checkpoints)
            .field("pipeline", &self.pipeline)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_defaults() {
        let version = aws_sdk_kinesis::config::BehaviorVersion::latest();
        let config = aws_sdk_kinesis::Config::builder().behavior_version(version);
        let builder = Consumer::builder(Client::from_conf(config.build()), "orders");
        assert!(builder.checkpoints.is_none());
        assert_eq!(builder.start, StartingPosition::TrimHorizon);
        assert_eq!(builder.retrieval, Retrieval::Polling);
        assert_eq!(builder.wire, Wire::Json);
        assert_eq!(builder.calls_per_second, 5.0);
        assert_eq!(builder.records_per_call, 10_000);
        assert_eq!(builder.idle_interval, Duration::from_secs(1));
        assert_eq!(builder.calls_in_flight, 64);
        assert_eq!(builder.refresh_interval, Duration::from_secs(5 * 60));
        assert_eq!(builder.shutdown_timeout, Duration::from_secs(20));
        assert_eq!(builder.seed, None);
        let deaggregator = format!("{:?}", builder.deaggregator);
        assert_eq!(deaggregator, format!("{:?}", Deaggregator::new()));
    }
}
