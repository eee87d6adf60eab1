//! Resilient processing of Kinesis records, around the processor that a service already has.
//!
//! Every record of the stream is *settled*: processed, or stored in a dead-letter queue with everything
//! needed to replay it. A checkpoint never passes a record that is not settled.
//!
//! ```no_run
//! # #[cfg(all(feature = "kinesis", feature = "redb"))]
//! # async fn example(client: aws_sdk_kinesis::Client) -> Result<(), Box<dyn std::error::Error>> {
//! use redrive::{Consumer, Record, Resilient, checkpoint, dead_letter, processor_fn, shutdown_signal};
//!
//! async fn store_order(record: Record) -> Result<(), std::io::Error> {
//!     /* your existing code */
//!     Ok(())
//! }
//!
//! let orders = Resilient::builder("billing", processor_fn(store_order))    // application, processor
//!     .dead_letters(dead_letter::Kinesis::new(client.clone(), "orders-dlq"))
//!     .build()?;
//!
//! Consumer::builder(client, "orders")
//!     .checkpoints(checkpoint::Redb::open("billing.redb")?)
//!     .build()?
//!     .run_until(orders, shutdown_signal())
//!     .await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Which piece for what
//!
//! | you want to | use |
//! |---|---|
//! | wrap a processor | [`Resilient`], with [`processor_fn`], [`processor_with`], [`processor_fn_json`] or [`RecordProcessor`] |
#![cfg_attr(feature = "kinesis", doc = "| read a stream in a service | [`Consumer`] |")]
#![cfg_attr(feature = "lambda", doc = "| run in AWS Lambda | [`lambda`] |")]
#![cfg_attr(
    feature = "multilang",
    doc = "| run under KCL, on several machines | [`multilang`] |"
)]
//! | process several records in one call | [`BatchProcessor`] |
//! | settle one record by hand | [`Resilient::settle`] |
//! | process a shard that you read yourself | [`pipeline::Pipeline`] |
//! | mark an error as transient or permanent | [`MarkFailure`], [`ResilientBuilder::classify`], [`Classify`] |
//! | set attempts, backoff, jitter, timeouts | [`RetryPolicy`] |
//! | tune the protections that all records share | [`CircuitBreaker`], [`DeadLetterGuard`], [`RetryBudget`] |
//! | choose where dead letters are stored | [`dead_letter`] |
//! | replay dead letters | [`replay`], or the command `redrive` |
//! | choose where checkpoints are stored | [`checkpoint`] |
//! | process a redelivered record only once | [`idempotency`] |
#![cfg_attr(
    feature = "kinesis",
    doc = "| check the health of a service | [`Consumer::health`] |"
)]
#![cfg_attr(
    feature = "kinesis",
    doc = "| list checkpoints, skip a record, rewind a shard | [`operator`] |"
)]
//! | observe events | [`observer`] |
//! | export metrics, and alert on error rates | [`telemetry`] |
//! | continue the trace of a record's producer | [`TraceContext`](observer::TraceContext) |
#![cfg_attr(feature = "kpl", doc = "| read or write aggregated records | [`kpl`] |")]
//!
//! # Promises
//!
//! - **No record is lost.** A checkpoint never passes a record that is not settled. A dead letter is
//!   confirmed before its record counts as settled. While the sink is down, the shard waits.
//! - **A failing record blocks only its own partition key**, and only while it is retried, or held because an
//!   outage is suspected. (When records behind failing keys fill the window, the shard waits and reports it.)
//! - **An outage or a bad deployment does not turn good records into dead letters.** A [`CircuitBreaker`]
//!   pauses processing while a dependency is down. A [`DeadLetterGuard`] stops a flood of dead letters.
//!   Kinesis keeps the data.
//! - **Order within a partition key is kept**, unless you choose [`RecordOrder::Unordered`].
//! - **Retries do not make an outage worse**: backoff has jitter by default, and all records share one
//!   [`RetryBudget`].
//! - **Payloads do not leak** into log lines, the `Debug` output of events, or redrive's own errors. The text
//!   of a processor's error counts as payload. Partition keys appear as a hash. Rust's panic hook prints a
//!   panic's message before redrive can catch the panic.
//! - **A record that succeeds costs next to nothing**: the engine allocates nothing for it and takes no lock
//!   of its own.
//!
//! Delivery is at least once. After a crash, records that were not settled, or were settled since the last
//! checkpoint, are processed again, unless an [`idempotency`] store has recorded them as processed.
//!
//! # Features
//!
//! | feature | default | brings |
//! |---|---|---|
//! | `kinesis` | yes | the consumer, the Kinesis sink, classification of AWS SDK errors |
//! | `anyhow` | yes | classification of errors inside an `anyhow::Error` |
//! | `default-https-client` | | the SDK's HTTPS stack, for clients with the defaults of `aws-config` |
//! | `tower` | | tower services as processors, and processors as tower services |
//! | `lambda` | | the same processor in AWS Lambda |
//! | `multilang` | | the same processor under KCL's MultiLangDaemon |
//! | `kpl` | with `kinesis` or `lambda` | records aggregated by the Kinesis Producer Library (KPL) |
//! | `cloudwatch` | | metrics in CloudWatch, through its API |
//! | `metrics` | | metrics through the `metrics` facade: Prometheus and others |
//! | `emf` | | metrics in the log, in CloudWatch's embedded metric format |
//! | `sqs`, `sns`, `s3` | | dead letters in an SQS queue, on an SNS topic, in an S3 bucket |
//! | `testing` | | for your own tests: an in-process Kinesis server, and conformance suites for adapters |
//! | `redb` | | checkpoints and idempotency keys in an embedded database file |
//! | `dynamodb` | | checkpoints and idempotency keys in DynamoDB, shared by several processes; checkpoints in KCL's lease table |
//!
//! Without default features the crate consists of the engine and the pipeline, and depends on no AWS crate.

#![cfg_attr(docsrs, feature(doc_cfg))]
#![forbid(unsafe_code)]
#![warn(missing_docs, missing_debug_implementations, unreachable_pub)]

#[cfg(feature = "__aws")]
mod aws;
pub mod checkpoint;
mod config;
#[cfg(feature = "kinesis")]
pub mod consumer;
pub mod dead_letter;
mod digest;
#[cfg(feature = "redb")]
mod embedded_db;
mod engine;
mod external;
mod failure;
pub mod idempotency;
#[cfg(feature = "kpl")]
pub mod kpl;
#[cfg(feature = "lambda")]
pub mod lambda;
#[cfg(any(feature = "lambda", feature = "kinesis"))]
mod lambda_event;
#[cfg(feature = "multilang")]
pub mod multilang;
pub mod observer;
#[cfg(feature = "kinesis")]
pub mod operator;
pub mod pipeline;
mod private_file;
pub mod processor;
pub mod protection;
pub mod record;
pub mod replay;
mod retention;
mod rfc3339;
mod sabotage;
mod settlement;
#[cfg(feature = "kinesis")]
mod shutdown_signal;
#[cfg(any(feature = "kinesis", feature = "lambda"))]
mod start_check;
mod stopwatch;
pub mod telemetry;
#[cfg(feature = "testing")]
pub mod testing;
#[cfg(feature = "tower")]
pub mod tower;
mod wall_clock;

pub use config::ConfigError;
#[cfg(feature = "kinesis")]
pub use consumer::{Consumer, ConsumerError, StartingPosition};
pub use engine::{Resilient, ResilientBuilder};
pub use failure::classify::{self, Classify};
pub use failure::{BoxError, Class, Failure, MarkFailure, Scope};
pub use idempotency::Idempotency;
pub use pipeline::RecordOrder;
pub use processor::{
    BatchProcessor, RecordProcessor, processor_blocking, processor_fn, processor_fn_json, processor_with,
};
pub use protection::{Backoff, CircuitBreaker, DeadLetterGuard, Jitter, RetryBudget, RetryPolicy};
pub use record::{DeadLetterId, Position, Record, SequenceNumber, ShardId, StreamId};
#[cfg(feature = "__sabotage")]
#[doc(hidden)]
pub use sabotage::Sabotage;
pub use settlement::{Halt, Settled, Unsettled};
#[cfg(feature = "kinesis")]
pub use shutdown_signal::shutdown_signal;
#[cfg(feature = "__sabotage")]
#[doc(hidden)]
pub use wall_clock::WallClock;

/// The functions that only fuzz targets call.
#[cfg(all(fuzzing, feature = "kinesis"))]
#[doc(hidden)]
pub mod fuzzing {
    pub use crate::aws::wire::read_page;
}

/// Compiles the code blocks of the README and of `docs/`.
#[cfg(all(doctest, feature = "kinesis", feature = "redb"))]
#[doc = include_str!("../README.md")]
#[doc = include_str!("../docs/guide.md")]
#[doc = include_str!("../docs/migration.md")]
#[doc = include_str!("../docs/fleet.md")]
struct Documents;
