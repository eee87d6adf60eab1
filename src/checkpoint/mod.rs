//! Where a shard's position is kept: the port that a store implements, and the stores.
//!
//! | store | for |
//! |---|---|
//! | [`Memory`] | tests; a restart begins anew |
#![cfg_attr(
    feature = "redb",
    doc = "| [`Redb`] | one process with a disk that outlives it |"
)]
#![cfg_attr(
    feature = "dynamodb",
    doc = "| [`DynamoDb`] | several processes, of which one takes over from another; KCL's own lease table |"
)]

use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;

use crate::failure::BoxError;
use crate::record::{Position, ShardId};

mod ahead;
#[cfg(feature = "dynamodb")]
pub mod dynamodb;
mod lease;
mod memory;
#[cfg(feature = "redb")]
mod redb;
mod starts;

pub use ahead::{InvalidAhead, SettledAhead};
#[cfg(feature = "dynamodb")]
pub use dynamodb::DynamoDb;
pub use lease::{Holder, LeaseOutcome, Leases, NewShard, Renewal};
pub use memory::Memory;
#[cfg(feature = "redb")]
pub use redb::Redb;
pub use starts::{CrashCount, InFlightRecord, InvalidStarts};

/// Keeps the checkpoints of an application's shards.
///
/// What an implementation promises (one conformance suite checks all of them):
/// - One result for each shard asked about, in their order.
/// - `Ok` from [`save`](CheckpointStore::save) only when the checkpoint is durable.
/// - A checkpoint is written as a whole: position, [`SettledAhead`] and [`CrashCount`] together or nothing.
/// - [`load`](CheckpointStore::load) returns what was saved last; `None` if nothing ever was.
#[async_trait]
pub trait CheckpointStore: Send + Sync + fmt::Debug {
    /// What is stored for each of these shards.
    async fn load(&self, shards: &[ShardKey]) -> Vec<Result<Option<Checkpoint>, CheckpointError>>;

    /// Stores a checkpoint for each of these shards.
    async fn save(&self, checkpoints: &[(ShardKey, Checkpoint)]) -> Vec<Result<(), CheckpointError>>;

    /// Returns all shards of this application and stream that have a checkpoint, also those that the stream no longer
    /// lists. Called once when a consumer starts: it tells an application that starts for the first time from one that was
    /// down while its shards were split, merged and trimmed.
    ///
    /// Checkpoints that cannot be understood are left out. Default: `None`, the store cannot tell.
    async fn list(
        &self,
        _application: &str,
        _stream: &str,
    ) -> Result<Option<Vec<(ShardId, Checkpoint)>>, CheckpointError> {
        Ok(None)
    }

    /// How often a shard that makes progress is written at most. Default: once a second.
    fn write_interval(&self) -> Duration {
        Duration::from_secs(1)
    }

    /// What the store is called in logs, without anything secret. Default: the type's name.
    fn name(&self) -> Cow<'_, str> {
        Cow::Borrowed(std::any::type_name::<Self>())
    }

    /// How its shards are shared, if several processes may use it at once. Default: `None`, they may not.
    fn leases(&self) -> Option<&dyn Leases> {
        None
    }
}

const _: Option<&dyn CheckpointStore> = None;

#[async_trait]
impl<S: CheckpointStore + ?Sized> CheckpointStore for Arc<S> {
    async fn load(&self, shards: &[ShardKey]) -> Vec<Result<Option<Checkpoint>, CheckpointError>> {
        (**self).load(shards).await
    }

    async fn save(&self, checkpoints: &[(ShardKey, Checkpoint)]) -> Vec<Result<(), CheckpointError>> {
        (**self).save(checkpoints).await
    }

    async fn list(
        &self,
        application: &str,
        stream: &str,
    ) -> Result<Option<Vec<(ShardId, Checkpoint)>>, CheckpointError> {
        (**self).list(application, stream).await
    }

    fn write_interval(&self) -> Duration {
        (**self).write_interval()
    }

    fn name(&self) -> Cow<'_, str> {
        (**self).name()
    }

    fn leases(&self) -> Option<&dyn Leases> {
        (**self).leases()
    }
}

/// Whose checkpoint: two applications on one stream never share one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub struct ShardKey {
    /// The application's name.
    pub application: Arc<str>,
    /// The stream's name.
    pub stream: Arc<str>,
    /// The shard.
    pub shard: ShardId,
}

impl ShardKey {
    /// This application's place in this shard.
    pub fn new(application: impl Into<Arc<str>>, stream: impl Into<Arc<str>>, shard: ShardId) -> Self {
        ShardKey {
            application: application.into(),
            stream: stream.into(),
            shard,
        }
    }
}

/// How far a shard is settled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    position: Position,
    ahead: Option<SettledAhead>,
    /// Milliseconds since 1970.
    read_until: Option<u64>,
    /// Milliseconds since 1970.
    stream_created: Option<u64>,
    /// On the heap, as there hardly ever are any.
    starts: Option<Box<CrashCount>>,
}

impl Checkpoint {
    /// Everything up to and including this position is settled.
    pub fn at(position: Position) -> Self {
        Checkpoint {
            position,
            ahead: None,
            read_until: None,
            stream_created: None,
            starts: None,
        }
    }

    /// Sets the creation time of the stream that the position belongs to. A stream that is deleted and created again under
    /// the same name has another one, and the position means nothing there. Kept in whole milliseconds.
    #[must_use]
    pub fn with_stream_created(mut self, time: SystemTime) -> Self {
        self.stream_created = Some(millis(time));
        self
    }

    /// Whatever arrived until then was read and is settled. If the position's record is trimmed from the stream
    /// later, this tells whether others were lost with it. Kept in whole milliseconds.
    #[must_use]
    pub fn with_read_until(mut self, time: SystemTime) -> Self {
        self.read_until = Some(millis(time));
        self
    }

    /// And this, ahead of the position. It is kept only if it belongs to that very position: whoever
    /// moved the position without it (another program on the same table) made it worthless.
    #[must_use]
    pub fn with_ahead(mut self, ahead: SettledAhead) -> Self {
        self.ahead = (*ahead.base() == self.position).then_some(ahead);
        self
    }

    /// And so many starts did not come past it: see [`CrashCount`].
    #[must_use]
    pub fn with_starts(mut self, starts: CrashCount) -> Self {
        self.starts = (!starts.is_none()).then(|| Box::new(starts));
        self
    }

    /// Everything up to the shard's end is settled. Until when it was read stays known: its children begin then.
    #[cfg(feature = "kinesis")]
    pub(crate) fn ended(self) -> Self {
        Checkpoint {
            read_until: self.read_until,
            stream_created: self.stream_created,
            ..Checkpoint::at(Position::ShardEnd)
        }
    }

    /// Everything up to and including this position is settled.
    pub fn position(&self) -> &Position {
        &self.position
    }

    /// The time until which all that had arrived was read and is settled, if that is known.
    pub fn read_until(&self) -> Option<SystemTime> {
        let millis = Duration::from_millis(self.read_until?);
        UNIX_EPOCH.checked_add(millis)
    }

    /// The creation time of the stream that the position belongs to, if that is known.
    pub fn stream_created(&self) -> Option<SystemTime> {
        let millis = Duration::from_millis(self.stream_created?);
        UNIX_EPOCH.checked_add(millis)
    }

    /// As stores keep it.
    #[cfg(any(feature = "redb", feature = "dynamodb"))]
    pub(crate) fn stream_created_millis(&self) -> Option<u64> {
        self.stream_created
    }

    #[cfg(any(feature = "redb", feature = "dynamodb"))]
    pub(crate) fn with_stream_created_millis(mut self, millis: Option<u64>) -> Self {
        self.stream_created = millis;
        self
    }

    /// As stores keep it.
    #[cfg(any(feature = "redb", feature = "dynamodb"))]
    pub(crate) fn read_until_millis(&self) -> Option<u64> {
        self.read_until
    }

    #[cfg(any(feature = "redb", feature = "dynamodb"))]
    pub(crate) fn with_read_until_millis(mut self, millis: Option<u64>) -> Self {
        self.read_until = millis;
        self
    }

    /// CrashCount that did not come past it, if there were any.
    pub fn starts(&self) -> Option<&CrashCount> {
        self.starts.as_deref()
    }

    /// What is settled ahead of the position.
    pub fn ahead(&self) -> Option<&SettledAhead> {
        self.ahead.as_ref()
    }
}

fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Why a checkpoint could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The store does not answer; tried again.
    #[error("the checkpoint store is unavailable")]
    Unavailable(#[source] BoxError),
    /// No retry helps: the store is another program's, or cannot be opened.
    #[error("the checkpoint store cannot be used")]
    Unusable(#[source] BoxError),
    /// The store's file is open in another process, or a second time in this one.
    #[error(
        "the checkpoint file {} is open in another process; stop that process (`lsof` names it), or choose another path",
        path.display()
    )]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// What is stored cannot be understood. Nothing is guessed: the shard does not start.
    #[error("the checkpoint of shard {shard} is unreadable: {text:?}; fix or delete it")]
    Corrupt {
        /// The shard.
        shard: ShardId,
        /// What is stored, its first 200 characters.
        text: String,
        /// What is wrong with it.
        #[source]
        source: BoxError,
    },
    /// Another process has taken the shard over: nothing more is written for it here.
    #[error("the lease of shard {shard} is lost: another worker owns it")]
    LeaseLost {
        /// The shard.
        shard: ShardId,
    },
    /// The row is of another stream, whose shard has the same name. Nothing is touched.
    #[error("the row of shard {shard} belongs to the stream {stream:?}: give each stream a table of its own")]
    OtherStream {
        /// The shard.
        shard: ShardId,
        /// The stream that the row is of.
        stream: String,
    },
}

impl CheckpointError {
    /// The store does not answer.
    pub fn unavailable(error: impl Into<BoxError>) -> Self {
        CheckpointError::Unavailable(error.into())
    }
}
