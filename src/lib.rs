//! Resilient processing of Kinesis records, around the handler that a service already has.
//!
//! Every record of the stream is *settled*: processed, or safely in a dead-letter queue with everything
//! needed to drive it again, or not passed over at all.
//!
//! ```no_run
//! # #[cfg(all(feature = "kinesis", feature = "redb"))]
//! # async fn example(client: aws_sdk_kinesis::Client) -> Result<(), Box<dyn std::error::Error>> {
//! use redrive::{Consumer, Record, Resilient, checkpoint, dead_letter, processor_fn, shutdown_signal};
//!
//! async fn store_order(record: Record) -> Result<(), std::io::Error> {
//!     /* the handler you have */
//!     Ok(())
//! }
//!
//! let orders = Resilient::builder("billing", processor_fn(store_order))    // application, handler
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
//! | wrap a handler | [`Resilient`], with [`processor_fn`], [`processor_with`], [`processor_fn_json`] or [`RecordProcessor`] |
#![cfg_attr(feature = "kinesis", doc = "| read a stream in a service | [`Consumer`] |")]
#![cfg_attr(feature = "lambda", doc = "| run in AWS Lambda | [`lambda`] |")]
#![cfg_attr(
    feature = "multilang",
    doc = "| run under KCL, on many machines | [`multilang`] |"
)]
//! | work on many records at once | [`BatchProcessor`] |
//! | settle one record by hand | [`Resilient::settle`] |
//! | run a shard that you read yourself | [`pipeline::Pipeline`] |
//! | say that an error is transient or permanent | [`MarkFailure`], [`ResilientBuilder::classify`], [`Classify`] |
//! | set attempts, backoff, jitter, timeouts | [`RetryPolicy`] |
//! | change what protects all records together, or share it | [`CircuitBreaker`], [`DeadLetterGuard`], [`RetryBudget`] |
//! | choose where failed records go | [`dead_letter`] |
//! | drive failed records again | [`replay`], or the command `redrive` |
//! | choose where positions are kept | [`checkpoint`] |
//! | make doing a record twice harmless | [`idempotency`] |
#![cfg_attr(
    feature = "kinesis",
    doc = "| look how a service does | [`Consumer::health`] |"
)]
#![cfg_attr(
    feature = "kinesis",
    doc = "| see where shards stand, skip a record, go back | [`operator`] |"
)]
//! | hear what happens | [`observer`] |
//! | measure, and be told of error rates | [`telemetry`] |
//! | go on with the trace of a record's producer | [`TraceContext`] |
#![cfg_attr(feature = "kpl", doc = "| open or make aggregated records | [`kpl`] |")]
//!
//! # What is promised
//!
//! - **Nothing is lost.** A shard's position never passes a record that is not settled, and a dead letter
//!   is confirmed before its record counts as settled. If the sink is down the shard waits.
//! - **A failing record blocks its own partition key and nobody else**, and only while it is retried.
//!   (When records behind failing keys fill the window the shard waits, and says so.)
//! - **An outage or a bad deploy does not turn good records into dead letters.** A [`CircuitBreaker`] pauses while
//!   a dependency is sick, and a [`DeadLetterGuard`] stops a flood of dead letters; Kinesis keeps the data.
//! - **Order within a partition key is kept**, unless it was given up by name.
//! - **Retries do not make an outage worse**: jitter always, and a [`RetryBudget`] for all together.
//! - **Payloads do not leak**: not into a log line, an event's `Debug` or an error of ours. The text of a
//!   handler's error counts as payload; partition keys appear as a hash. Rust's own panic hook prints a
//!   panic's message before anyone can catch it.
//! - **A record that succeeds costs next to nothing**: the engine allocates nothing for it and takes no
//!   lock of its own.
//!
//! Delivery is at least once: after a crash what was unsettled, or settled since the last checkpoint, is
//! processed again, unless an [`idempotency`] store remembers it.
//!
//! # Features
//!
//! | feature | default | brings |
//! |---|---|---|
//! | `kinesis` | yes | the consumer, the Kinesis sink, classification of AWS SDK errors |
//! | `anyhow` | yes | classification of errors inside an `anyhow::Error` |
//! | `default-https-client` | | the SDK's HTTPS stack, for clients made by `aws-config`'s defaults |
//! | `tower` | | tower services as handlers, and the other way round |
//! | `lambda` | | the same processor in AWS Lambda |
//! | `multilang` | | the same processor under KCL's MultiLangDaemon |
//! | `kpl` | with `kinesis` or `lambda` | records that the Kinesis Producer Library has aggregated |
//! | `cloudwatch` | | metrics in CloudWatch, by its API |
//! | `metrics` | | metrics through the `metrics` facade: Prometheus and others |
//! | `emf` | | metrics in the log, as CloudWatch reads them |
//! | `sqs`, `sns`, `s3` | | dead letters in an SQS queue, on an SNS topic, in an S3 bucket |
//! | `testing` | | for your own tests: a Kinesis server in the test's process, and the suites that adapters must pass |
//! | `redb` | | checkpoints and idempotency keys in an embedded database file |
//! | `dynamodb` | | both in DynamoDB, shared by several processes; checkpoints in KCL's lease table |
//!
//! Without default features the engine and the pipeline remain, and no AWS crate.

#![forbid(unsafe_code)]
#![warn(missing_docs, missing_debug_implementations, unreachable_pub)]

#[cfg(feature = "aws")]
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
mod processor;
mod protection;
mod record;
pub mod replay;
mod retention;
mod rfc3339;
mod sabotage;
mod settlement;
#[cfg(feature = "kinesis")]
mod shutdown_signal;
pub mod telemetry;
#[cfg(feature = "testing")]
pub mod testing;
#[cfg(feature = "tower")]
pub mod tower;
mod wall_clock;

pub use config::ConfigError;
#[cfg(feature = "kinesis")]
pub use consumer::{
    Consumer, ConsumerBuilder, ConsumerError, DataLoss, DataLossPolicy, FanOutConsumer, Health, HealthReport,
    Retrieval, ShardHealth, ShardState, StartingPosition, StreamId, WaitsFor,
};
pub use dead_letter::DeadLetterPolicy;
pub use engine::{AttemptTimedOut, Resilient, ResilientBuilder};
pub use external::Panicked;
pub use failure::classify::{self, Classify, StandardClassifier};
pub use failure::{BoxError, Class, Failure, MarkFailure, Scope, Verdict};
pub use idempotency::Idempotency;
pub use observer::TraceContext;
pub use pipeline::RecordOrder;
pub use processor::{
    Attempt, BatchFailure, BatchProcessor, Batched, BoxProcessor, JsonError, ProcessorBlocking, ProcessorFn,
    ProcessorFnJson, ProcessorWith, RecordProcessor, processor_blocking, processor_fn, processor_fn_json,
    processor_with,
};
pub use protection::{
    Backoff, CircuitBreaker, CircuitBreakerBuilder, CircuitBreakerState, DeadLetterGuard, Jitter,
    RetryBudget, RetryPolicy, StoppedShard,
};
pub use record::{
    DeadLetterId, InvalidDeadLetterId, InvalidSequenceNumber, KeyHash, Position, Record, RecordBuilder,
    Redriven, SequenceNumber, ShardId,
};
#[cfg(feature = "sabotage")]
#[doc(hidden)]
pub use sabotage::Sabotage;
pub use settlement::{Halt, Settled, Unsettled};
#[cfg(feature = "kinesis")]
pub use shutdown_signal::shutdown_signal;
#[cfg(feature = "sabotage")]
#[doc(hidden)]
pub use wall_clock::WallClock;

/// The README's snippets, compiled.
#[cfg(all(doctest, feature = "kinesis", feature = "redb"))]
#[doc = include_str!("../README.md")]
struct Readme;
