//! Long-running consumer: reads every shard of a stream and settles its records.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_kinesis::Client;
use rand::rngs::SmallRng;

mod builder;
mod health;
mod read;
mod shard;
mod shards;

pub use self::read::data_loss::{DataLoss, DataLossPolicy};
pub use self::read::retrieval::{FanOutConsumer, Retrieval};
pub use self::shards::starting_position::StartingPosition;
pub use builder::ConsumerBuilder;
pub use health::{Health, HealthReport, ShardHealth, ShardState, WaitsFor};

use self::read::data_loss::OnDataLoss;
use crate::aws::Located;
use crate::checkpoint::{CheckpointError, CheckpointStore};
use crate::dead_letter::TargetError;
use crate::engine::Resilient;
use crate::external;
use crate::failure::BoxError;
use crate::idempotency::StoreError;
use crate::kpl::Deaggregator;
use crate::pipeline::{Pipeline, ShardHalted};
use crate::processor::Handler;
use crate::record::StreamId;

/// Time limit for the answers of stores, and for calls without a timeout of their own.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Awaits the answer of a store.
async fn answer<T>(who: &str, asked: impl Future<Output = T>) -> Result<T, BoxError> {
    external::answer(who, ANSWER_TIMEOUT, asked).await
}

/// Reads a Kinesis stream and settles its records with a [`Resilient`] engine.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// # async fn store(record: redrive::Record) -> Result<(), std::io::Error> { Ok(()) }
/// # let client: aws_sdk_kinesis::Client = unimplemented!();
/// use redrive::{Consumer, Resilient, checkpoint, dead_letter, processor_fn, shutdown_signal};
///
/// let orders = Resilient::builder("billing", processor_fn(store))
///     .dead_letters(dead_letter::Kinesis::new(client.clone(), "orders-dlq"))
///     .build()?;
/// Consumer::builder(client, "orders")
///     .checkpoints(checkpoint::Redb::open("billing.redb")?)
///     .build()?
///     .run_until(orders, shutdown_signal())
///     .await?;
/// # Ok(())
/// # }
/// ```
pub struct Consumer {
    client: Located<Client>,
    stream: StreamId,
    checkpoints: Arc<dyn CheckpointStore>,
    pipeline: Pipeline,
    start: StartingPosition,
    retrieval: Retrieval,
    polling: Polling,
    on_data_loss: OnDataLoss,
    refresh_interval: Duration,
    health: Health,
    deaggregator: Deaggregator,
    shutdown_timeout: Duration,
    /// The part of `shutdown_timeout` for a shard's last checkpoint, and again for the release of its lease.
    last_call: Duration,
    /// The source of randomness for the jitter of all tasks.
    rng: SmallRng,
}

/// The settings of polling.
#[derive(Debug, Clone)]
struct Polling {
    /// The minimum time between two calls for one shard.
    interval: Duration,
    /// The delay after an empty page of a shard that has been read to its tip.
    idle: Duration,
    page: i32,
    calls_in_flight: usize,
}

impl Consumer {
    /// Creates a builder from a client and the stream's name or ARN.
    ///
    /// The consumer uses the client's region, endpoint, credentials and HTTP stack. It replaces the client's
    /// retries with its own. A call without an operation-attempt timeout gets one of 30 s.
    pub fn builder(client: Client, stream: impl Into<StreamId>) -> ConsumerBuilder {
        ConsumerBuilder::new(client, stream.into())
    }

    /// Returns a handle to the consumer's health, for probes and monitoring. Get it before the consumer runs.
    pub fn health(&self) -> Health {
        self.health.clone()
    }

    /// Runs until all shards have ended, or nothing more can be settled.
    pub async fn run<P>(self, resilient: Resilient<P>) -> Result<(), ConsumerError>
    where
        P: Handler + 'static,
    {
        self.run_until(resilient, std::future::pending()).await
    }

    /// Runs until `shutdown` completes, for example [`shutdown_signal`](crate::shutdown_signal). Then the
    /// consumer stops reading, cancels backoffs, waits for running processor calls, and writes dead letters
    /// and checkpoints. It returns within 20 s by default
    /// ([`shutdown_timeout`](ConsumerBuilder::shutdown_timeout)).
    ///
    /// A shard halts if no restart would help. The other shards continue, and the consumer returns the error
    /// at the end. A shard whose task fails for any other reason restarts at its checkpoint. If the future is
    /// dropped, the next run repeats what was settled since the last checkpoint.
    pub async fn run_until<P, S>(self, resilient: Resilient<P>, shutdown: S) -> Result<(), ConsumerError>
    where
        P: Handler + 'static,
        S: Future<Output = ()> + Send,
    {
        let observers = resilient.observers().clone();
        let result = shards::run(self, resilient, shutdown).await;
        observers.flush();
        result
    }
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer")
            .field("stream", &self.stream)
            .field("checkpoints", &self.checkpoints)
            .field("pipeline", &self.pipeline)
            .field("start", &self.start)
            .field("retrieval", &self.retrieval)
            .field("polling", &self.polling)
            .field("shutdown_timeout", &self.shutdown_timeout)
            .finish_non_exhaustive()
    }
}

/// The reason why a consumer stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConsumerError {
    /// The stream does not exist for these credentials in this region.
    #[error("cannot read the stream {stream:?}")]
    StreamNotFound {
        /// The stream's name or ARN.
        stream: String,
        /// The call that failed.
        #[source]
        source: BoxError,
    },
    /// AWS refused the same call several times while the consumer started. The client has no region, its
    /// credentials are missing or not accepted, or a permission is missing. The text names the call and what
    /// to do.
    #[error(transparent)]
    Refused(BoxError),
    /// The checkpoint store cannot be used: it belongs to another program or stream, or it refuses the calls.
    #[error(transparent)]
    CheckpointStore(CheckpointError),
    /// The idempotency store cannot be used: its table does not exist, or it refuses the calls.
    #[error(transparent)]
    IdempotencyStore(StoreError),
    /// The stream distributes its records itself (AUTO): it has no partition keys within which order could be
    /// kept.
    #[error(
        "the stream {stream:?} uses AUTO record distribution, so its records have no partition keys to order \
         by; use RecordOrder::Unordered or RecordOrder::Shard"
    )]
    NoPartitionKeys {
        /// The stream's name.
        stream: String,
    },
    /// The dead-letter target must not be used.
    #[error(transparent)]
    DeadLetterTarget(#[from] TargetError),
    /// Kinesis refuses to describe the stream, but
    /// [`ExpiryPolicy::DeadLetter`](crate::pipeline::ExpiryPolicy::DeadLetter) needs the stream's retention.
    #[error(
        "cannot determine when records of the stream {stream:?} expire; grant \
         kinesis:DescribeStreamSummary, or use ExpiryPolicy::Hold"
    )]
    RetentionUnknown {
        /// The stream's name.
        stream: String,
        /// The error that Kinesis returned.
        #[source]
        source: BoxError,
    },
    /// A record can be neither processed nor dead-lettered. Its shard stops before the record. The other
    /// shards continue until the consumer is stopped.
    #[error("a shard halted")]
    ShardHalted(#[source] Box<ShardHalted>),
    /// Records were lost, and [`ConsumerBuilder::on_data_loss`] decided to halt. The shard stops at its
    /// checkpoint. The other shards continue until the consumer is stopped.
    #[error("records are lost")]
    DataLoss(#[source] Box<DataLoss>),
}
