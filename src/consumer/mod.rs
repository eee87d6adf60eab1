//! Long-running consumer: reads every shard of a stream and settles its records.

use std::fmt;
use std::future::Future;

use aws_sdk_kinesis::Client;

mod builder;
mod calls;
mod data_loss;
mod error;
mod fleet;
mod health;
mod read;
mod settings;
mod shard;
mod shards;
mod stream_facts;
mod supervisor;

pub use self::data_loss::{DataLoss, DataLossPolicy};
pub use self::error::ConsumerError;
pub use self::read::retrieval::{FanOutConsumer, Retrieval};
pub use self::read::wire::Wire;
pub use self::shards::starting_position::StartingPosition;
pub use builder::ConsumerBuilder;
pub use health::{FleetHealth, Health, HealthReport, ShardHealth, ShardState, WaitsFor};

use self::settings::Settings;
use crate::engine::Resilient;
use crate::processor::Handler;
use crate::record::StreamId;

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
pub struct Consumer(Settings);

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
        self.0.health.clone()
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
        let result = supervisor::run(self.0, resilient, shutdown).await;
        observers.flush();
        result
    }
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer")
            .field("stream", &self.0.stream)
            .field("checkpoints", &self.0.checkpoints)
            .field("pipeline", &self.0.pipeline)
            .field("start", &self.0.start)
            .field("retrieval", &self.0.retrieval)
            .field("polling", &self.0.polling)
            .field("shutdown_timeout", &self.0.shutdown_timeout)
            .finish_non_exhaustive()
    }
}
