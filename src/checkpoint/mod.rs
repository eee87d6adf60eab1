//! Checkpoint stores: the port that a store implements, and this crate's stores.
//!
//! | store | for |
//! |---|---|
//! | [`Memory`] | tests; a restart loses all checkpoints |
#![cfg_attr(
    feature = "redb",
    doc = "| [`Redb`] | one process, on a disk that survives restarts |"
)]
#![cfg_attr(
    feature = "dynamodb",
    doc = "| [`DynamoDb`] | several processes that share the shards evenly; KCL's own lease table |"
)]

use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;

#[cfg(feature = "kinesis")]
use crate::config::ConfigError;
use crate::failure::BoxError;
use crate::record::{Position, ShardId};

mod ahead;
#[cfg(feature = "dynamodb")]
pub mod dynamodb;
mod lease;
mod memory;
#[cfg(feature = "redb")]
mod redb;
mod sharing;
mod starts;

pub use ahead::{ParseSettledAheadError, SettledAhead};
#[cfg(feature = "dynamodb")]
pub use dynamodb::DynamoDb;
pub use lease::{Holder, LastRenewal, LeaseOutcome, Leases, NewShard, Renewal};
pub use memory::Memory;
#[cfg(feature = "redb")]
pub use redb::Redb;
pub use sharing::{AnnouncedWorker, AssignedShards, Assigner, Leadership, SharedLease, Sharing};
pub use starts::{CrashCount, InFlightRecord, ParseCrashCountError};

/// Keeps the checkpoints of an application's shards.
///
/// An implementation makes these promises, which the conformance suite checks:
/// - [`load`](CheckpointStore::load) and [`save`](CheckpointStore::save) return one result per shard, in the
///   order of the shards.
/// - [`save`](CheckpointStore::save) returns `Ok` only when the checkpoint is durable.
/// - A checkpoint is written as a whole: position, [`SettledAhead`] and [`CrashCount`] together, or nothing.
/// - [`load`](CheckpointStore::load) returns the last saved checkpoint; `None` if none was ever saved.
#[async_trait]
pub trait CheckpointStore: Send + Sync + fmt::Debug {
    /// Returns the checkpoint of each of these shards; `None` for a shard without one.
    async fn load(&self, shards: &[ShardKey]) -> Vec<Result<Option<Checkpoint>, CheckpointError>>;

    /// Stores a checkpoint for each of these shards.
    async fn save(&self, checkpoints: &[(ShardKey, Checkpoint)]) -> Vec<Result<(), CheckpointError>>;

    /// Returns all shards of this application and stream that have a checkpoint, including shards that the
    /// stream no longer lists. A consumer calls this once when it starts. The result distinguishes an
    /// application that starts for the first time from one that was down while its shards were split, merged
    /// and trimmed.
    ///
    /// The store omits unreadable checkpoints. Default: `None`, the store cannot list its shards.
    async fn list(
        &self,
        _application: &str,
        _stream: &str,
    ) -> Result<Option<Vec<(ShardId, Checkpoint)>>, CheckpointError> {
        Ok(None)
    }

    /// Returns the minimum time between two writes of a shard that makes progress: at most 24 h. Default: 1 s.
    fn write_interval(&self) -> Duration {
        Duration::from_secs(1)
    }

    /// Returns the store's name for logs, without secrets. Default: the type's name.
    fn name(&self) -> Cow<'_, str> {
        Cow::Borrowed(std::any::type_name::<Self>())
    }

    /// Returns the store's leases, if several processes can share its shards. Default: `None`, only one
    /// process may use the store.
    fn leases(&self) -> Option<&dyn Leases> {
        None
    }
}

const _: Option<&dyn CheckpointStore> = None;

/// The range of a store's failover time. A shorter time would take shards from living owners.
#[cfg(feature = "kinesis")]
const FAILOVER_TIMES: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=DAY;
#[cfg(feature = "kinesis")]
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Returns the part of a store that shares the shards among workers, if it has one.
#[cfg(feature = "kinesis")]
pub(crate) fn sharing(store: &dyn CheckpointStore) -> Option<&dyn Sharing> {
    store.leases()?.sharing()
}

/// Checks the times of a store. Called before a store is used.
#[cfg(feature = "kinesis")]
pub(crate) fn validate(store: &dyn CheckpointStore) -> Result<(), ConfigError> {
    if let Some(time) = store.leases().map(|leases| leases.failover_time())
        && !FAILOVER_TIMES.contains(&time)
    {
        let problem = format!("the checkpoint store's failover time must be 1 s to 24 h, not {time:?}");
        return Err(ConfigError::new("failover_time", problem));
    }
    let sharing = sharing(store);
    if sharing.is_some_and(|sharing| sharing.max_leases() == 0) {
        return Err(ConfigError::new("max_leases", "must be at least 1, not 0"));
    }
    let interval = store.write_interval();
    if interval > DAY {
        let problem = format!("the checkpoint store's write interval must be at most 24 h, not {interval:?}");
        return Err(ConfigError::new("write_interval", problem));
    }
    Ok(())
}

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

/// The key of a checkpoint: application, stream and shard. Two applications on one stream never share a
/// checkpoint.
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
    /// Creates the key of this application's checkpoint for this shard.
    pub fn new(application: impl Into<Arc<str>>, stream: impl Into<Arc<str>>, shard: ShardId) -> Self {
        ShardKey {
            application: application.into(),
            stream: stream.into(),
            shard,
        }
    }
}

/// The position up to which a shard is settled, with the facts that a restart needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    position: Position,
    ahead: Option<SettledAhead>,
    /// Milliseconds since 1970.
    read_until: Option<u64>,
    /// Milliseconds since 1970.
    stream_created: Option<u64>,
    /// Boxed, because hardly any checkpoint has these.
    starts: Option<Box<CrashCount>>,
}

impl Checkpoint {
    /// Creates a checkpoint: every record up to and including `position` is settled.
    pub fn at(position: Position) -> Self {
        Checkpoint {
            position,
            ahead: None,
            read_until: None,
            stream_created: None,
            starts: None,
        }
    }

    /// Sets the creation time of the stream that the position belongs to, in whole milliseconds. A stream
    /// that is deleted and created again under the same name has another creation time, and the position
    /// means nothing there.
    #[must_use]
    pub fn with_stream_created(mut self, time: SystemTime) -> Self {
        self.stream_created = Some(millis(time));
        self
    }

    /// Sets the time up to which every arrived record was read and is settled, in whole milliseconds. If the
    /// position's record is trimmed from the stream later, this time shows whether other records were lost
    /// with it.
    #[must_use]
    pub fn with_read_until(mut self, time: SystemTime) -> Self {
        self.read_until = Some(millis(time));
        self
    }

    /// Adds the records that are settled ahead of the position. The list is kept only if its base is exactly
    /// this position. Another program on the same table may have moved the position without the list, which
    /// makes the list worthless.
    #[must_use]
    pub fn with_ahead(mut self, ahead: SettledAhead) -> Self {
        self.ahead = (*ahead.base() == self.position).then_some(ahead);
        self
    }

    /// Adds the starts that did not get past the position: see [`CrashCount`].
    #[must_use]
    pub fn with_starts(mut self, starts: CrashCount) -> Self {
        self.starts = (!starts.is_none()).then(|| Box::new(starts));
        self
    }

    /// Returns the checkpoint of a shard that is settled to its end. `read_until` is kept, because the
    /// shard's children start at that time.
    #[cfg(feature = "kinesis")]
    pub(crate) fn ended(self) -> Self {
        Checkpoint {
            read_until: self.read_until,
            stream_created: self.stream_created,
            ..Checkpoint::at(Position::ShardEnd)
        }
    }

    /// Returns the position: every record up to and including the position is settled.
    pub fn position(&self) -> &Position {
        &self.position
    }

    /// Returns the time up to which every arrived record was read and is settled, if known.
    pub fn read_until(&self) -> Option<SystemTime> {
        let millis = Duration::from_millis(self.read_until?);
        UNIX_EPOCH.checked_add(millis)
    }

    /// Returns the creation time of the stream that the position belongs to, if known.
    pub fn stream_created(&self) -> Option<SystemTime> {
        let millis = Duration::from_millis(self.stream_created?);
        UNIX_EPOCH.checked_add(millis)
    }

    /// Returns the creation time of the stream in milliseconds since 1970, as stores keep it.
    #[cfg(any(feature = "redb", feature = "dynamodb"))]
    pub(crate) fn stream_created_millis(&self) -> Option<u64> {
        self.stream_created
    }

    #[cfg(any(feature = "redb", feature = "dynamodb"))]
    pub(crate) fn with_stream_created_millis(mut self, millis: Option<u64>) -> Self {
        self.stream_created = millis;
        self
    }

    /// Returns `read_until` in milliseconds since 1970, as stores keep it.
    #[cfg(any(feature = "redb", feature = "dynamodb"))]
    pub(crate) fn read_until_millis(&self) -> Option<u64> {
        self.read_until
    }

    #[cfg(any(feature = "redb", feature = "dynamodb"))]
    pub(crate) fn with_read_until_millis(mut self, millis: Option<u64>) -> Self {
        self.read_until = millis;
        self
    }

    /// Returns the starts that did not get past the position, if there were any.
    pub fn starts(&self) -> Option<&CrashCount> {
        self.starts.as_deref()
    }

    /// Returns the records that are settled ahead of the position, if there are any.
    pub fn ahead(&self) -> Option<&SettledAhead> {
        self.ahead.as_ref()
    }
}

fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A failure to read or write a checkpoint.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The store does not answer. redrive retries.
    #[error("the checkpoint store is unavailable")]
    Unavailable(#[source] BoxError),
    /// The store belongs to another program, or cannot be opened. No retry helps.
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
    /// The stored checkpoint is unreadable. redrive does not guess: the shard does not start.
    #[error("the checkpoint of shard {shard} is unreadable: {text:?}; fix or delete it")]
    Corrupt {
        /// The shard.
        shard: ShardId,
        /// The first 200 characters of the stored text.
        text: String,
        /// The reason.
        #[source]
        source: BoxError,
    },
    /// Another process has taken over the shard. This store writes nothing more for the shard.
    #[error("the lease of shard {shard} is lost: another worker owns it")]
    LeaseLost {
        /// The shard.
        shard: ShardId,
    },
    /// The row belongs to a shard of the same name in another stream. redrive leaves the row unchanged.
    #[error("the row of shard {shard} belongs to the stream {stream:?}: give each stream a table of its own")]
    OtherStream {
        /// The shard.
        shard: ShardId,
        /// The stream that the row belongs to.
        stream: String,
    },
}

impl CheckpointError {
    /// Creates [`CheckpointError::Unavailable`] from the store's error.
    pub fn unavailable(error: impl Into<BoxError>) -> Self {
        CheckpointError::Unavailable(error.into())
    }
}
