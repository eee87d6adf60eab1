//! A long-running service: reads every shard of a stream and settles its records.

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
mod stream;

pub use self::read::data_loss::{DataLoss, DataLossPolicy};
pub use self::read::retrieval::{FanOutConsumer, Retrieval};
pub use self::shards::starting_position::StartingPosition;
pub use builder::ConsumerBuilder;
pub use health::{Health, HealthReport, ShardHealth, ShardState, WaitsFor};
pub use stream::StreamId;

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
use crate::processor::RecordProcessor;

/// How long a checkpoint store or a call without a timeout of its own may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Awaits the answer of a store.
async fn answer<T>(who: &str, asked: impl Future<Output = T>) -> Result<T, BoxError> {
    external::answer(who, ANSWER_TIMEOUT, asked).await
}

/// Reads a Kinesis stream and settles its records with a [`Resilient`] handler.
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
    /// The part of it that a shard's last checkpoint may take, and giving up its lease as well.
    last_call: Duration,
    /// What the jitter of all its tasks comes from.
    rng: SmallRng,
}

/// How shards are read.
#[derive(Debug, Clone)]
struct Polling {
    /// Between two calls for one shard at least.
    interval: Duration,
    /// After an empty page of a shard that is read to its tip.
    idle: Duration,
    page: i32,
    calls_in_flight: usize,
}

impl Consumer {
    /// Begins with a client and the stream's name or ARN.
    ///
    /// Of the client region, endpoint, credentials and HTTP stack are used. Retries are the consumer's
    /// own, and a call without an operation-attempt timeout gets one of 30 s.
    pub fn builder(client: Client, stream: impl Into<StreamId>) -> ConsumerBuilder {
        ConsumerBuilder::new(client, stream.into())
    }

    /// How it does, once it runs: for probes, and for whoever looks.
    pub fn health(&self) -> Health {
        self.health.clone()
    }

    /// Runs until all shards have ended, or nothing more can be settled.
    pub async fn run<P>(self, resilient: Resilient<P>) -> Result<(), ConsumerError>
    where
        P: RecordProcessor + 'static,
    {
        self.run_until(resilient, std::future::pending()).await
    }

    /// Runs until `shutdown` completes, such as [`shutdown_signal`](crate::shutdown_signal). Then it stops reading, cancels backoffs, lets running handlers
    /// end, writes letters and checkpoints, and returns, after 20 s at the latest by default.
    ///
    /// A shard that halts, as no restart would mend it, lets the others go on; it is the error returned at the
    /// end. A shard whose task breaks down for any other reason begins again at its checkpoint. If the future is
    /// dropped, what was settled since the last checkpoint is repeated by the next run.
    pub async fn run_until<P, S>(self, resilient: Resilient<P>, shutdown: S) -> Result<(), ConsumerError>
    where
        P: RecordProcessor + 'static,
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

/// Why a consumer came back.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConsumerError {
    /// There is no such stream for these credentials in this region.
    #[error("cannot read the stream {stream:?}")]
    StreamNotFound {
        /// Its name or ARN.
        stream: String,
        /// The call that failed.
        #[source]
        source: BoxError,
    },
    /// AWS refused the same call several times while the consumer started: the client has no region, no credentials are
    /// found or accepted, or a permission is missing. The text names the call and what to do.
    #[error(transparent)]
    Refused(BoxError),
    /// The checkpoint store cannot be used: it is another program's or of another stream, or it refuses the calls.
    #[error(transparent)]
    CheckpointStore(CheckpointError),
    /// The idempotency store cannot be used: its table does not exist, or it refuses the calls.
    #[error(transparent)]
    IdempotencyStore(StoreError),
    /// The stream distributes its records by itself (AUTO): it has no partition keys that order could be kept
    /// within.
    #[error(
        "the stream {stream:?} distributes its records by itself (AUTO), so there is no order within a partition \
         key: choose RecordOrder::Unordered or RecordOrder::Shard"
    )]
    NoPartitionKeys {
        /// Its name.
        stream: String,
    },
    /// The dead-letter target must not be used.
    #[error(transparent)]
    DeadLetterTarget(#[from] TargetError),
    /// [`ExpiryPolicy::DeadLetter`](crate::pipeline::ExpiryPolicy::DeadLetter) needs the stream's retention, and Kinesis refuses
    /// to describe the stream.
    #[error(
        "cannot tell when records of the stream {stream:?} expire: grant kinesis:DescribeStreamSummary, or use \
         ExpiryPolicy::Hold"
    )]
    RetentionUnknown {
        /// Its name.
        stream: String,
        /// What Kinesis said.
        #[source]
        source: BoxError,
    },
    /// A record can be neither processed nor dead-lettered. Its shard stands where it is; the others
    /// went on until the consumer was stopped.
    #[error("a shard halted")]
    ShardHalted(#[source] Box<ShardHalted>),
    /// Records were lost, and [`ConsumerBuilder::on_data_loss`] said to halt. The shard stands where it is; the others
    /// went on until the consumer was stopped.
    #[error("records are lost")]
    DataLoss(#[source] Box<DataLoss>),
}
