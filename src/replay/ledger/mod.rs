//! What was driven again, and how often: the port, and the ledgers.
//!
//! | ledger | for |
//! |---|---|
//! | [`Memory`] | tests, and sources that remove what was driven again |
#![cfg_attr(feature = "redb", doc = "| [`Redb`] | one machine: a file |")]
#![cfg_attr(feature = "dynamodb", doc = "| [`DynamoDb`] | several machines: a table |")]

use std::fmt;
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

/// Remembers across runs what a replay has done, and lets one replay at a time at a source.
///
/// What an implementation promises:
/// - One answer for each key that is looked up, in their order; what was written last.
/// - `Ok` from [`write`](Ledger::write) only when all of it is durable. After an error some of it may be.
/// - Of two owners that lock a source one has it, until it [unlocks](Ledger::unlock) it, or has not locked it again for the
///   [time](Ledger::lock_time) that a lock holds, or is gone.
#[async_trait]
pub trait Ledger: Send + Sync + fmt::Debug {
    /// What is known under these keys.
    async fn look_up(&self, keys: &[Key]) -> Result<Vec<Option<Entry>>, LedgerError>;

    /// Remembers these, in the place of what was known under their keys.
    async fn write(&self, entries: &[(Key, Entry)]) -> Result<(), LedgerError>;

    /// Locks a source, or keeps it locked.
    async fn lock(&self, source: &str, owner: &str) -> Result<(), LedgerError>;

    /// Unlocks it, if it is this owner's.
    async fn unlock(&self, source: &str, owner: &str) -> Result<(), LedgerError>;

    /// For how long a lock holds. `None`: until its owner is gone.
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

/// What is remembered, and for which target.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(String);

impl Key {
    /// A letter.
    pub fn letter(target: &str, id: DeadLetterId) -> Self {
        Key(format!("letter/{target}/{id}"))
    }

    /// A record through all its redrives, where its letters tell of them.
    pub fn origin(target: &str, origin: DeadLetterId) -> Self {
        Key(format!("origin/{target}/{origin}"))
    }

    /// A record of which nothing tells that it was driven again: what it is and which partition key it has.
    pub fn record(target: &str, partition_key: Option<&str>, payload: &Bytes) -> Self {
        let mut hash = Sha256::new();
        // With its length in front no two pairs read the same; no key is none of them.
        hash.update(
            partition_key
                .map_or(u64::MAX, |key| key.len() as u64)
                .to_be_bytes(),
        );
        hash.update(partition_key.unwrap_or_default());
        hash.update(payload);
        Key(format!("record/{target}/{}", Digest(hash.finalize().into())))
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What is remembered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Entry {
    /// How far it is.
    pub state: State,
    /// The origin of its letters.
    pub origin: DeadLetterId,
    /// How often it was driven again.
    pub count: u32,
    /// When the letter was made: one of the same record that was made later is of another failure.
    #[serde(with = "rfc3339")]
    pub letter_at: SystemTime,
    /// By which run of a replay.
    pub run: String,
    /// When, by that run's clock.
    #[serde(with = "rfc3339")]
    pub at: SystemTime,
}

impl Entry {
    /// What is to be remembered.
    pub fn new(
        state: State,
        (origin, count): (DeadLetterId, u32),
        letter_at: SystemTime,
        run: impl Into<String>,
        at: SystemTime,
    ) -> Self {
        Entry {
            state,
            origin,
            count,
            // As it is written.
            letter_at: rfc3339::to_millis(letter_at),
            run: run.into(),
            at: rfc3339::to_millis(at),
        }
    }
}

/// How far the driving again of a letter is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It was begun. If nothing more is known, the run was interrupted: it may have been done or not.
    Begun,
    /// It is confirmed.
    Done,
}

/// The ledger does not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LedgerError {
    /// It cannot be reached, or holds what cannot be read.
    #[error("the replay ledger is unavailable")]
    Unavailable(#[source] BoxError),
    /// It is open in another process.
    #[error(
        "the replay ledger {path} is open in another process: wait for it to end, or name another ledger"
    )]
    InUse {
        /// The file.
        path: String,
    },
    /// Another replay is at this source.
    #[error("another replay reads {source_name}: {owner}; wait until it ends")]
    Locked {
        /// The source.
        source_name: String,
        /// The other one.
        owner: String,
    },
}

impl LedgerError {
    /// It cannot be reached, or holds what cannot be read.
    pub fn unavailable(error: impl Into<BoxError>) -> Self {
        LedgerError::Unavailable(error.into())
    }
}
