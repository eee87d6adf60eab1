//! Where records go that failed for good: the port that a sink implements, and the sinks.
//!
//! A record counts as settled only after its sink has *confirmed* the letter. A sink that is down
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
    doc = "| [`Sqs`] | a queue, standard or FIFO; letters up to 1 MiB |"
)]
#![cfg_attr(
    feature = "sns",
    doc = "| [`Sns`] | a topic that has subscriptions; letters up to 256 KiB |"
)]
#![cfg_attr(feature = "s3", doc = "| [`S3`] | a bucket; letters of any size |")]
//!
//! Sinks of sinks: [`Fallback`] has another one for what the first does not take, [`FanOut`] writes to several, [`Route`]
//! to one of several, [`Redact`] takes out what must not leave the process.
#![cfg_attr(feature = "s3", doc = "[`ClaimCheck`] keeps large payloads in a bucket.")]

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::failure::BoxError;

#[cfg(any(feature = "kinesis", feature = "lambda"))]
mod check;
#[cfg(feature = "s3")]
mod claim_check;
mod envelope;
mod fallback;
mod fan_out;
mod file;
#[cfg(feature = "kinesis")]
mod kinesis;
mod memory;
#[cfg(any(feature = "sqs", feature = "sns"))]
mod message;
pub(crate) mod outbox;
mod redact;
mod route;
#[cfg(feature = "s3")]
mod s3;
#[cfg(any(feature = "kinesis", feature = "sqs", feature = "sns", feature = "s3"))]
#[allow(dead_code, reason = "each service uses a part of it")]
mod schedule;
#[cfg(any(feature = "kinesis", feature = "sqs", feature = "sns", feature = "s3"))]
#[allow(dead_code, reason = "each service uses a part of it")]
mod service;
#[cfg(feature = "sns")]
mod sns;
#[cfg(feature = "sqs")]
mod sqs;
mod storage;

#[cfg(any(feature = "kinesis", feature = "lambda"))]
pub(crate) use check::check_target;
#[cfg(feature = "s3")]
pub use claim_check::{ClaimCheck, ClaimError};
pub use envelope::{AttemptReport, Attempts, DeadLetter, DecodeError, ErrorReport, InvalidReason, Reason};
pub use fallback::Fallback;
pub use fan_out::FanOut;
pub(crate) use file::ReadLines;
pub use file::{File, FileError, ReadError, ReadLetters};
#[cfg(feature = "kinesis")]
pub use kinesis::{Kinesis, Payload};
pub use memory::Memory;
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

/// What becomes of a shard once a record of it is a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum DeadLetterPolicy {
    /// It goes on, also with the records behind this one in its partition key.
    #[default]
    Continue,
    /// It stops where it is, with [`Halt::DeadLetterPolicy`](crate::Halt::DeadLetterPolicy); the others go on. For streams on
    /// which nothing may happen before somebody has looked. In AWS Lambda, which has no way to stop, it goes on; under KCL's
    /// MultiLangDaemon the shard waits until its process is started again.
    Stop,
}

/// The time that a sink has to answer a [put](DeadLetterSink::put).
pub const PUT_TIMEOUT: Duration = Duration::from_secs(60);

/// Takes dead letters and confirms them.
///
/// What an implementation promises:
/// - One result for each letter, in their order.
/// - `Ok` only when the letter is durable: it must survive the crash of this process.
/// - Letters of one partition key become readable in the order given. When one of them fails, those
///   of its key behind it are not written and fail as well ([`SinkError::Behind`]).
/// - Writing a letter twice is harmless: it carries the same id, and readers skip an id they have
///   seen.
/// - No limit on retries is needed: the engine writes a letter again, with backoff, until it is
///   confirmed or refused.
///
/// A put has [60 seconds](PUT_TIMEOUT), however many dead letters it has, after which the engine drops its future. Then
/// nothing is known of its dead letters, and the engine puts them again in smaller parts, down to one by one. What a
/// part confirms is settled, and a dead letter that hangs hangs alone. Several puts may run at a time, up to 8; two of
/// them never have dead letters of the same partition key.
#[async_trait]
pub trait DeadLetterSink: Send + Sync + fmt::Debug {
    /// Writes the letters and waits for their confirmation.
    async fn put(&self, letters: &[DeadLetter]) -> Vec<Result<Receipt, SinkError>>;

    /// Looks at the target before the first record is read: an error for what would lose records or
    /// run in a circle, a [`Warning`] for what may. Default: nothing to say.
    async fn check(&self, source: &SourceStream) -> Result<Vec<Warning>, TargetError> {
        let _ = source;
        Ok(Vec::new())
    }

    /// What the sink is called in logs, without anything secret. Default: the type's name.
    fn name(&self) -> String {
        std::any::type_name::<Self>().to_owned()
    }

    /// Returns the storage that dead letters are written to, one for each that a dead letter may reach. Default:
    /// [`Storage::Named`] with the sink's name.
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

/// A sink's word that a letter is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Receipt {
    /// Where the letter is, in the sink's own terms: a shard and sequence number, a file.
    pub location: String,
}

impl Receipt {
    /// The letter is durable at this place.
    pub fn new(location: impl Into<String>) -> Self {
        Receipt {
            location: location.into(),
        }
    }
}

/// Why a letter is not written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SinkError {
    /// The sink could not take it now. The engine tries again, without limit.
    #[error("the dead-letter sink is unavailable")]
    Unavailable(#[source] BoxError),
    /// The sink can never take it. The shard halts, unless a fallback sink takes it.
    #[error("the dead-letter sink can never take this letter: {size} bytes, its limit is {limit}")]
    Refused {
        /// The letter's size as the sink would write it, in bytes.
        size: u64,
        /// The most the sink takes, in bytes.
        limit: u64,
        /// What more there is to know.
        #[source]
        source: BoxError,
    },
    /// Not tried, because a letter of the same partition key ahead of it failed.
    #[error("not written, because a letter of the same partition key ahead of it was not")]
    Behind,
}

impl SinkError {
    /// The sink could not take the letter now.
    pub fn unavailable(error: impl Into<BoxError>) -> Self {
        SinkError::Unavailable(error.into())
    }
}

/// What a sink may want to know of the stream whose records it will take.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SourceStream {
    /// Its name.
    pub name: String,
    /// Its ARN, where the runtime knows it.
    pub arn: Option<String>,
    /// The most bytes a record of it can have (payload and partition key), where the runtime knows it.
    pub max_record_bytes: Option<u64>,
}

impl SourceStream {
    /// A stream of this name, all else unknown.
    pub fn new(name: impl Into<String>) -> Self {
        SourceStream {
            name: name.into(),
            arn: None,
            max_record_bytes: None,
        }
    }
}

/// Something about a sink's target that may lose letters later, and how to mend it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Warning {
    /// What is wrong.
    pub message: String,
    /// The command that mends it.
    pub remedy: String,
}

/// A sink's target that must not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TargetError {
    /// Dead letters would be read as records again, and fail again.
    #[error(
        "the dead-letter stream {name:?} is the stream that is being read; give the letters a stream of their own"
    )]
    SourceItself {
        /// The stream.
        name: String,
    },
    /// A topic keeps nothing, and this one has no subscription: letters would be gone.
    #[error(
        "the dead-letter topic {name:?} has no confirmed subscription: letters would be lost; subscribe a queue to it"
    )]
    NobodyListens {
        /// The topic.
        name: String,
    },
    /// The target could not be checked.
    #[error("the dead-letter target {name:?} cannot be checked")]
    Unreachable {
        /// The target.
        name: String,
        /// What went wrong.
        #[source]
        source: BoxError,
    },
}
