//! The memory of what was replayed, and how often: the trait and its implementations.
//!
//! | ledger | for |
//! |---|---|
//! | [`Memory`] | tests, and sources that remove what was replayed |
#![cfg_attr(feature = "redb", doc = "| [`Redb`] | one machine: a file |")]
#![cfg_attr(feature = "dynamodb", doc = "| [`DynamoDb`] | several machines: a table |")]

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::digest::Digest;
use crate::failure::BoxError;
use crate::record::DeadLetterId;
use crate::rfc3339;

#[cfg(feature = "dynamodb")]
mod dynamodb;
mod locks;
mod memory;
#[cfg(feature = "redb")]
mod redb;

#[cfg(feature = "dynamodb")]
pub use dynamodb::DynamoDb;
pub use memory::Memory;
#[cfg(feature = "redb")]
pub use redb::Redb;

/// Remembers across runs what was replayed, and allows one replay per source at a time.
///
/// An implementation guarantees:
/// - A lookup returns one result for each key, in their order: the entry that was written last.
/// - [`write`](Ledger::write) returns `Ok` only once all entries are durable. After an error some of them may
///   be.
/// - Of two owners that lock a source, only one succeeds. Its lock ends when the owner
///   [unlocks](Ledger::unlock) the source, does not renew the lock within the [lock time](Ledger::lock_time),
///   or is gone.
#[async_trait]
pub trait Ledger: Send + Sync + fmt::Debug {
    /// Returns the entries under these keys.
    async fn look_up(&self, keys: &[Key]) -> Result<Vec<Option<Entry>>, LedgerError>;

    /// Stores these entries, and replaces earlier entries under their keys.
    async fn write(&self, entries: &[(Key, Entry)]) -> Result<(), LedgerError>;

    /// Locks a source, or renews the lock.
    async fn lock(&self, source: &str, owner: &str) -> Result<(), LedgerError>;

    /// Unlocks a source if this owner has locked it.
    async fn unlock(&self, source: &str, owner: &str) -> Result<(), LedgerError>;

    /// Returns how long a lock lasts without renewal. `None`: until its owner is gone.
    fn lock_time(&self) -> Option<Duration> {
        None
    }
}

const _: Option<&dyn Ledger> = None;

#[async_trait]
impl<L: Ledger + ?Sized> Ledger for Arc<L> {
    async fn look_up(&self, keys: &[Key]) -> Result<Vec<Option<Entry>>, LedgerError> {
        (**self).look_up(keys).await
    }

    async fn write(&self, entries: &[(Key, Entry)]) -> Result<(), LedgerError> {
        (**self).write(entries).await
    }

    async fn lock(&self, source: &str, owner: &str) -> Result<(), LedgerError> {
        (**self).lock(source, owner).await
    }

    async fn unlock(&self, source: &str, owner: &str) -> Result<(), LedgerError> {
        (**self).unlock(source, owner).await
    }

    fn lock_time(&self) -> Option<Duration> {
        (**self).lock_time()
    }
}

/// The key of an entry: its subject and its target.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(String);

impl Key {
    /// Returns the key of a dead letter.
    pub fn letter(target: &str, id: DeadLetterId) -> Self {
        Key(format!("letter/{target}/{id}"))
    }

    /// Returns the key of a record across all its redrives, if its dead letters name their origin.
    pub fn origin(target: &str, origin: DeadLetterId) -> Self {
        Key(format!("origin/{target}/{origin}"))
    }

    /// Returns the key of a record whose dead letters do not show that it was replayed: its payload and its
    /// partition key identify it.
    pub fn record(target: &str, partition_key: Option<&str>, payload: &Bytes) -> Self {
        let mut hash = Sha256::new();
        // The length in front makes the bytes of different pairs differ. No key has the length `u64::MAX`.
        hash.update(
            partition_key
                .map_or(u64::MAX, |key| key.len() as u64)
                .to_be_bytes(),
        );
        hash.update(partition_key.unwrap_or_default());
        hash.update(payload);
        Key(format!("record/{target}/{}", Digest(hash.finalize().into())))
    }

    /// Returns the key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The entry of a dead letter or of a record.
///
/// A ledger returns every field as it was written. The struct is therefore exhaustive: a ledger that stores the
/// fields one by one must not miss a new one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The state of the replay.
    pub state: State,
    /// The origin of the record's dead letters.
    pub origin: DeadLetterId,
    /// The number of times that the record was replayed.
    pub count: u32,
    /// The time at which the dead letter was made. A later dead letter of the same record belongs to another
    /// failure. In whole milliseconds.
    #[serde(with = "rfc3339")]
    pub letter_at: SystemTime,
    /// The id of the run that wrote this entry.
    pub run: String,
    /// The time of this entry, by the clock of that run, in whole milliseconds.
    #[serde(with = "rfc3339")]
    pub at: SystemTime,
}

/// The state of a dead letter's replay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// The replay began. If this is the last state, the run was interrupted: the record may have been
    /// replayed or not.
    Begun,
    /// The target has confirmed the dead letter.
    Done,
}

/// A ledger failed, or refuses a replay.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LedgerError {
    /// The ledger cannot be reached, or has an entry that cannot be read.
    #[error("the replay ledger is unavailable")]
    Unavailable(#[source] BoxError),
    /// The ledger belongs to another program, or cannot be opened. No retry helps.
    #[error("the replay ledger cannot be used")]
    Unusable(#[source] BoxError),
    /// The ledger's file is open in another process, or a second time in this one.
    #[error(
        "the replay ledger {} is open in another process; wait until that process ends, or use another ledger",
        path.display()
    )]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// Another replay has locked this source.
    #[error("another replay ({owner}) reads {source_name}; wait until that replay ends")]
    Locked {
        /// The source.
        source_name: String,
        /// The id of the other run.
        owner: String,
    },
}

impl LedgerError {
    /// Creates an error for a ledger that cannot be reached, or has an entry that cannot be read.
    pub fn unavailable(error: impl Into<BoxError>) -> Self {
        LedgerError::Unavailable(error.into())
    }
}
