//! The sources of dead letters: the trait and its implementations.
//!
//! | source | order | a replayed dead letter |
//! |---|---|---|
//! | [`File`] | order of writing | stays |
#![cfg_attr(
    feature = "kinesis",
    doc = "| [`Kinesis`] | order of each shard | stays, until the stream drops it |"
)]
#![cfg_attr(
    feature = "sqs",
    doc = "| [`Sqs`] | FIFO: order of each group; standard: order of what was collected | is removed |"
)]
#![cfg_attr(feature = "s3", doc = "| [`S3`] | order of each shard | is removed |")]

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::dead_letter::Storage;
use crate::failure::BoxError;

mod file;
#[cfg(feature = "kinesis")]
mod kinesis;
#[cfg(feature = "s3")]
mod s3;
#[cfg(feature = "sqs")]
mod sqs;

pub use file::File;
#[cfg(feature = "kinesis")]
pub use kinesis::Kinesis;
#[cfg(feature = "s3")]
pub use s3::S3;
#[cfg(feature = "sqs")]
pub use sqs::Sqs;

/// Reads messages, of which some or all are dead letters.
///
/// An implementation guarantees:
/// - Messages of one partition key come in the order in which their dead letters were written, if the source
///   [keeps the order](DeadLetterSource::keeps_order).
/// - The source ends. What is written while it is read may be left for the next run.
/// - A message is removed only on request, and `Ok` confirms that it is gone.
/// - A message that was read and not removed can be read again after [`close`](DeadLetterSource::close). If
///   this process dies, it can be read again some time later.
#[async_trait]
pub trait DeadLetterSource: Send + Sync + fmt::Debug {
    /// Returns the next messages, a bounded number of bytes. An empty result is the end of the source.
    async fn read(&mut self) -> Result<Vec<Message>, SourceError>;

    /// Removes these messages, which the last [`read`](DeadLetterSource::read) has returned. Returns one result
    /// for each, in their order. Default: the messages stay, which is correct for a source that does not
    /// [remove](DeadLetterSource::removes) messages.
    async fn remove(&mut self, messages: &[Handle]) -> Vec<Result<(), SourceError>> {
        messages.iter().map(|_| Ok(())).collect()
    }

    /// Returns true if the source removes messages. If not, only the [ledger](super::Ledger) knows what was
    /// replayed. Default: false.
    fn removes(&self) -> bool {
        false
    }

    /// Returns true if dead letters of one partition key come in the order in which they were written.
    /// Default: true.
    fn keeps_order(&self) -> bool {
        true
    }

    /// Returns the interval between calls of [`keep`](DeadLetterSource::keep) while messages are in flight.
    /// Default: `None`, no calls.
    fn keep_interval(&self) -> Option<Duration> {
        None
    }

    /// Keeps the messages in flight hidden from other readers.
    async fn keep(&mut self) -> Result<(), SourceError> {
        Ok(())
    }

    /// Returns the messages that the source holds and [`read`](DeadLetterSource::read) did not return. Called
    /// after the last read.
    async fn rest(&mut self) -> Remaining {
        Remaining::default()
    }

    /// Makes the messages that were not removed visible to other readers.
    async fn close(&mut self) -> Result<(), SourceError> {
        Ok(())
    }

    /// Returns the approximate number of messages, to show the progress of a replay. Default: `None`,
    /// unknown.
    async fn estimate(&mut self) -> Option<u64> {
        None
    }

    /// Returns the source's name in messages and in the ledger. All sources that read the same storage have
    /// the same name.
    fn name(&self) -> String;

    /// Returns the storage that is read. Default: [`Storage::Named`] with the source's name.
    ///
    /// A source that removes messages states its storage: a [`Replay`](super::Replay) refuses a sink that
    /// writes there.
    fn storage(&self) -> Storage {
        Storage::Named(self.name())
    }
}

const _: Option<&dyn DeadLetterSource> = None;

#[async_trait]
impl<S: DeadLetterSource + ?Sized> DeadLetterSource for Box<S> {
    async fn read(&mut self) -> Result<Vec<Message>, SourceError> {
        (**self).read().await
    }

    async fn remove(&mut self, messages: &[Handle]) -> Vec<Result<(), SourceError>> {
        (**self).remove(messages).await
    }

    fn removes(&self) -> bool {
        (**self).removes()
    }

    fn keeps_order(&self) -> bool {
        (**self).keeps_order()
    }

    fn keep_interval(&self) -> Option<Duration> {
        (**self).keep_interval()
    }

    async fn keep(&mut self) -> Result<(), SourceError> {
        (**self).keep().await
    }

    async fn rest(&mut self) -> Remaining {
        (**self).rest().await
    }

    async fn close(&mut self) -> Result<(), SourceError> {
        (**self).close().await
    }

    async fn estimate(&mut self) -> Option<u64> {
        (**self).estimate().await
    }

    fn name(&self) -> String {
        (**self).name()
    }

    fn storage(&self) -> Storage {
        (**self).storage()
    }
}

/// A message, and where it was found.
#[derive(Clone)]
#[non_exhaustive]
pub struct Message {
    /// The place of the message, for people: a line of a file, a key of a bucket.
    pub place: String,
    /// The content of the message.
    pub body: Bytes,
    /// The handle that [removes](DeadLetterSource::remove) the message.
    pub handle: Handle,
}

/// The name by which a source identifies a message.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Handle(pub String);

impl Message {
    /// Creates a message that was found at this place.
    pub fn new(place: impl Into<String>, body: impl Into<Bytes>, handle: Handle) -> Self {
        Message {
            place: place.into(),
            body: body.into(),
            handle,
        }
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("place", &self.place)
            .field("bytes", &self.body.len())
            .finish_non_exhaustive()
    }
}

/// Messages that a source holds and did not return. The counts are approximate, as a queue has no exact ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Remaining {
    /// Messages that were visible and not returned. In a FIFO queue, they are behind others of their group,
    /// which stay. A standard queue has reported several times that it is empty, although it has these
    /// messages.
    pub behind: u64,
    /// Messages that are in flight with another reader, or with one that has died. The latter become visible
    /// again soon.
    pub hidden: u64,
}

/// A message cannot be read, or cannot be removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The source does not exist.
    #[error("there is no {place}; check the name and, for an AWS resource, the region and the account")]
    Missing {
        /// The source that was not found.
        place: String,
    },
    /// A message was overwritten after it was read. The source still has it.
    #[error("{place} was overwritten after it was read; it stays there for the next run")]
    Changed {
        /// The message's place.
        place: String,
    },
    /// The source cannot be read from, or written to.
    #[error("{place} cannot be reached")]
    Unavailable {
        /// The source.
        place: String,
        /// The cause.
        #[source]
        source: BoxError,
    },
}

impl SourceError {
    /// Creates an error for a source that cannot be read from, or written to.
    pub fn unavailable(place: impl Into<String>, error: impl Into<BoxError>) -> Self {
        SourceError::Unavailable {
            place: place.into(),
            source: error.into(),
        }
    }
}

/// The maximum number of bytes that are read before they are processed.
#[cfg(any(feature = "sqs", feature = "s3"))]
const PAGE_BYTES: usize = 64 * 1024 * 1024;
