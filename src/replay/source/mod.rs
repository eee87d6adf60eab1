//! Where dead letters are read: the port, and what implements it.
//!
//! | source | order | a letter that is driven again |
//! |---|---|---|
//! | [`File`] | of writing | stays |
#![cfg_attr(
    feature = "kinesis",
    doc = "| [`Kinesis`] | of each shard | stays, until the stream drops it |"
)]
#![cfg_attr(
    feature = "sqs",
    doc = "| [`Sqs`] | FIFO: of each group; standard: of what was collected | is removed |"
)]
#![cfg_attr(feature = "s3", doc = "| [`S3`] | of each shard | is removed |")]

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
/// What an implementation promises:
/// - Messages of one partition key come in the order in which their letters were written, if it
///   [keeps order](DeadLetterSource::keeps_order).
/// - It ends: what is written while it is read may be left for the next time.
/// - A message is removed only when it is asked to be, and `Ok` says that it is gone.
/// - What was read and is not removed can be read again after [`close`](DeadLetterSource::close), or at the latest when this
///   process is gone for a while.
#[async_trait]
pub trait DeadLetterSource: Send + Sync + fmt::Debug {
    /// The next messages, a bounded number of bytes. None are the end.
    async fn read(&mut self) -> Result<Vec<Message>, SourceError>;

    /// Removes these messages. One result for each, in their order. Default: they stay, which is right where
    /// [`removes`](DeadLetterSource::removes) says so.
    async fn remove(&mut self, messages: &[Handle]) -> Vec<Result<(), SourceError>> {
        messages.iter().map(|_| Ok(())).collect()
    }

    /// Whether messages are removed. Where they are not, the [ledger](super::Ledger) alone knows what was driven again.
    fn removes(&self) -> bool {
        false
    }

    /// Whether letters of one partition key come in the order in which they were written. Default: yes.
    fn keeps_order(&self) -> bool {
        true
    }

    /// How often [`keep`](DeadLetterSource::keep) is to be called while messages are worked on. Default: never.
    fn keep_interval(&self) -> Option<Duration> {
        None
    }

    /// Keeps others from reading what is being worked on here.
    async fn keep(&mut self) -> Result<(), SourceError> {
        Ok(())
    }

    /// What it holds and has not given, at its end.
    async fn rest(&mut self) -> Remaining {
        Remaining::default()
    }

    /// Lets others read what was not removed.
    async fn close(&mut self) -> Result<(), SourceError> {
        Ok(())
    }

    /// How many messages there are, about, where that can be told. For showing how far a replay is.
    async fn estimate(&mut self) -> Option<u64> {
        None
    }

    /// What it is called in messages and in the ledger: the same for everybody who reads the same.
    fn name(&self) -> String;

    /// Returns the storage that is read. Default: [`Storage::Named`] with the source's name.
    ///
    /// A source that removes messages states its storage: a [`Replay`](super::Replay) refuses a sink that writes there.
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

/// One message: what was found, where.
#[derive(Clone)]
#[non_exhaustive]
pub struct Message {
    /// Where it is, for people: a line of a file, a key of a bucket.
    pub place: String,
    /// What is in it.
    pub body: Bytes,
    /// For [removing](DeadLetterSource::remove) it.
    pub handle: Handle,
}

/// What a source knows a message by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Handle(pub String);

impl Message {
    /// A message found at this place.
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

/// Messages that a source holds and has not given. About: a queue does not know it better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Remaining {
    /// They can be received and were not given: in a FIFO queue they are behind others of their group, which stay; a
    /// standard queue has answered several times that it is empty.
    pub behind: u64,
    /// Another reader has them; or one that is no more had them, and they are shown again soon.
    pub hidden: u64,
}

/// Messages cannot be read, or not be removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// There is nothing of this name.
    #[error("there is no {place}; check its name and, where it is of AWS, the region and the account")]
    Missing {
        /// What was looked for.
        place: String,
    },
    /// A message was written again since it was read. It is left where it is.
    #[error("{place} was written again since it was read; it is left there for the next run")]
    Changed {
        /// The message's place.
        place: String,
    },
    /// It cannot be read from, or written to.
    #[error("{place} cannot be reached")]
    Unavailable {
        /// The source.
        place: String,
        /// What went wrong.
        #[source]
        source: BoxError,
    },
}

impl SourceError {
    /// It cannot be read from, or written to.
    pub fn unavailable(place: impl Into<String>, error: impl Into<BoxError>) -> Self {
        SourceError::Unavailable {
            place: place.into(),
            source: error.into(),
        }
    }
}

/// As much of what was read is held at a time, in bytes.
#[cfg(any(feature = "sqs", feature = "s3"))]
const PAGE_BYTES: usize = 64 * 1024 * 1024;
