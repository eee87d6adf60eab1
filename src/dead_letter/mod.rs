//! Dead letters of records that failed permanently: the port that a sink implements, and the sinks.
//!
//! A record counts as settled only after its sink has *confirmed* the dead letter. A sink that is down
//! therefore stops the shard; it never loses a record.
//!
//! | sink | for |
//! |---|---|
//! | [`Memory`] | tests |
//! | [`File`] | one process; JSON lines, fsynced |
#![cfg_attr(
    feature = "kinesis",
    doc = "| [`Kinesis`] | a dead-letter stream, with the same limits as the source |"
)]
#![cfg_attr(
    feature = "sqs",
    doc = "| [`Sqs`] | a queue, standard or FIFO; dead letters up to 1 MiB |"
)]
#![cfg_attr(
    feature = "sns",
    doc = "| [`Sns`] | a topic that has subscriptions; dead letters up to 256 KiB |"
)]
#![cfg_attr(feature = "s3", doc = "| [`S3`] | a bucket; dead letters of any size |")]
//!
//! Sinks that wrap other sinks: [`Fallback`] writes to a second sink what the first does not take, [`FanOut`]
//! writes to several sinks, [`Route`] writes to one of several, and [`Redact`] removes confidential data
//! first. [`ClaimCheck`] keeps large payloads in a [`PayloadStore`], such as a bucket.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::failure::BoxError;
use crate::record::StreamId;

#[cfg(any(feature = "kinesis", feature = "sqs", feature = "sns", feature = "s3"))]
#[allow(dead_code, reason = "each service uses a part of it")]
mod aws_writer;
#[cfg(any(feature = "kinesis", feature = "lambda"))]
mod check;
mod claim_check;
mod envelope;
mod fallback;
mod fan_out;
mod file;
#[cfg(feature = "kinesis")]
mod kinesis;
mod memory;
pub(crate) mod outbox;
mod payload_store;
mod redact;
mod route;
#[cfg(feature = "s3")]
mod s3;
#[cfg(feature = "sns")]
mod sns;
#[cfg(feature = "sqs")]
mod sqs;
mod storage;

#[cfg(any(feature = "kinesis", feature = "lambda"))]
pub(crate) use check::check_target;
pub use claim_check::ClaimCheck;
pub use envelope::{AttemptReport, Attempts, DeadLetter, DecodeError, ErrorReport, ParseReasonError, Reason};
pub use fallback::Fallback;
pub use fan_out::FanOut;
pub(crate) use file::ReadLines;
pub use file::{File, FileError, ReadError, ReadLetters};
#[cfg(feature = "kinesis")]
pub use kinesis::{Kinesis, Payload};
#[cfg(feature = "kinesis")]
pub(crate) use kinesis::{StreamRecord, StreamWriter, partition_key};
pub use memory::Memory;
pub(crate) use payload_store::redeem;
pub use payload_store::{ClaimError, PayloadStore};
pub use redact::Redact;
pub use route::Route;
#[cfg(feature = "s3")]
pub use s3::S3;
#[cfg(feature = "s3")]
pub(crate) use s3::WRITE_METADATA;
#[cfg(feature = "sns")]
pub use sns::Sns;
#[cfg(feature = "sqs")]
pub use sqs::Sqs;
pub use storage::Storage;

/// The action on a shard after one of its records became a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum DeadLetterPolicy {
    /// The shard continues, also with later records of the same partition key.
    #[default]
    Continue,
    /// The shard stops with [`Halt::DeadLetterPolicy`](crate::Halt::DeadLetterPolicy); other shards continue.
    ///
    /// Use this policy if an operator must inspect each dead letter before the shard continues. AWS Lambda
    /// cannot stop a shard, so there the shard continues. Under KCL's MultiLangDaemon the shard waits until
    /// its process is restarted.
    Stop,
}

/// The time that a sink has to answer a [put](DeadLetterSink::put).
pub const PUT_TIMEOUT: Duration = Duration::from_secs(60);

/// Takes dead letters and confirms them.
///
/// An implementation promises:
/// - It returns one result for each dead letter, in the order of the dead letters.
/// - It returns `Ok` only when the dead letter is durable: the dead letter must survive a crash of this
///   process.
/// - Dead letters of one partition key become readable in the order given. When one of them fails, the later
///   ones of its key are not written and fail as well ([`SinkError::Behind`]).
/// - Writing a dead letter twice is harmless: both copies carry the same id, and readers skip an id that they
///   have seen.
/// - It does not have to retry without limit: the engine writes a dead letter again, with backoff, until the
///   sink confirms or refuses it.
///
/// A put has [60 seconds](PUT_TIMEOUT), however many dead letters it carries. Then the engine drops its
/// future. The outcome of these dead letters is unknown, so the engine puts them again in smaller parts, down
/// to one by one. A dead letter that makes the sink hang thus ends up in a put of its own, and all others are
/// confirmed. Up to 8 puts may run at a time; two of them never carry dead letters of the same partition key.
#[async_trait]
pub trait DeadLetterSink: Send + Sync + fmt::Debug {
    /// Writes the dead letters and waits for their confirmation.
    async fn put(&self, letters: &[DeadLetter]) -> Vec<Result<Receipt, SinkError>>;

    /// Checks the target before the first record is read. Default: no warnings.
    ///
    /// Returns an error if the target would lose records or feed dead letters back into the source stream.
    /// Returns a [`Warning`] for anything that may lose dead letters.
    async fn check(&self, source: &SourceStream) -> Result<Vec<Warning>, TargetError> {
        let _ = source;
        Ok(Vec::new())
    }

    /// Returns the sink's name for logs, without anything secret. Default: the type's name.
    fn name(&self) -> String {
        std::any::type_name::<Self>().to_owned()
    }

    /// Returns every storage that a dead letter may be written to. Default: [`Storage::Named`] with the
    /// sink's name.
    ///
    /// A [`Replay`](crate::replay::Replay) refuses a sink that writes into the storage that it reads.
    fn storage(&self) -> Vec<Storage> {
        vec![Storage::Named(self.name())]
    }
}

const _: Option<&dyn DeadLetterSink> = None;

#[async_trait]
impl<S: DeadLetterSink + ?Sized> DeadLetterSink for Arc<S> {
    async fn put(&self, letters: &[DeadLetter]) -> Vec<Result<Receipt, SinkError>> {
        (**self).put(letters).await
    }

    async fn check(&self, source: &SourceStream) -> Result<Vec<Warning>, TargetError> {
        (**self).check(source).await
    }

    fn name(&self) -> String {
        (**self).name()
    }

    fn storage(&self) -> Vec<Storage> {
        (**self).storage()
    }
}

/// A sink's confirmation that a dead letter is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Receipt {
    /// The place of the dead letter in the sink's own terms, such as a shard and sequence number, or a file.
    pub location: String,
}

impl Receipt {
    /// Confirms that the dead letter is durable at `location`.
    pub fn new(location: impl Into<String>) -> Self {
        Receipt {
            location: location.into(),
        }
    }
}

/// The reason why a dead letter is not written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SinkError {
    /// The sink could not take the dead letter now. The engine retries without limit.
    #[error("the dead-letter sink is unavailable")]
    Unavailable(#[source] BoxError),
    /// The sink can never take the dead letter. The shard halts, unless a fallback sink takes it.
    #[error("the dead-letter sink can never take this dead letter: {size} bytes, its limit is {limit}")]
    Refused {
        /// The dead letter's size as the sink would write it, in bytes.
        size: u64,
        /// The largest size that the sink takes, in bytes.
        limit: u64,
        /// The cause of the refusal.
        #[source]
        source: BoxError,
    },
    /// The sink did not try the dead letter, because an earlier one of the same partition key failed.
    #[error("not written, because an earlier dead letter of the same partition key was not written")]
    Behind,
}

impl SinkError {
    /// Creates an error for a dead letter that the sink could not take now.
    pub fn unavailable(error: impl Into<BoxError>) -> Self {
        SinkError::Unavailable(error.into())
    }
}

/// The stream whose dead letters a sink will take, as far as it is known.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SourceStream {
    /// The stream's name.
    pub name: String,
    /// The stream's ARN, if the runtime knows it.
    pub arn: Option<String>,
    /// The maximum size of a record (payload and partition key) in bytes, if the runtime knows it.
    pub max_record_bytes: Option<u64>,
}

impl SourceStream {
    /// Creates a source stream with this name or ARN; everything else is unknown.
    pub fn new(stream: impl Into<StreamId>) -> Self {
        let stream = stream.into();
        SourceStream {
            name: stream.name().to_owned(),
            arn: stream.arn().map(str::to_owned),
            max_record_bytes: None,
        }
    }
}

/// A property of a sink's target that may lose dead letters later, and its fix.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Warning {
    /// The description of the problem.
    pub message: String,
    /// The command or the change that fixes the problem.
    pub remedy: String,
}

/// A sink's target that must not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TargetError {
    /// The target is the source stream: its dead letters would be read as records, and fail again.
    #[error(
        "the dead-letter stream {name:?} is the stream that is being read; use another stream for dead letters"
    )]
    SourceItself {
        /// The stream's name.
        name: String,
    },
    /// The topic has no confirmed subscription. A topic stores nothing, so dead letters would be lost.
    #[error(
        "the dead-letter topic {name:?} has no confirmed subscription: dead letters would be lost; subscribe a queue to it"
    )]
    NobodyListens {
        /// The topic's name.
        name: String,
    },
    /// The target could not be checked.
    #[error("the dead-letter target {name:?} cannot be checked")]
    Unreachable {
        /// The target's name.
        name: String,
        /// The cause.
        #[source]
        source: BoxError,
    },
}
