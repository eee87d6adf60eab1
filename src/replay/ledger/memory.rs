//! A ledger in the memory of the process.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;

use super::locks::Locks;
use super::{Entry, Key, Ledger, LedgerError};

/// Remembers entries in memory; a clone shares them.
///
/// After a restart the ledger is empty. A source that keeps its dead letters then replays all of them again.
/// A record that an earlier process put into a stream without a stamp counts as never replayed if it fails
/// again.
#[derive(Debug, Clone, Default)]
pub struct Memory(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    entries: Mutex<HashMap<Key, Entry>>,
    locks: Locks,
}

impl Memory {
    /// Creates an empty ledger.
    pub fn new() -> Self {
        Memory::default()
    }
}

#[async_trait]
impl Ledger for Memory {
    async fn look_up(&self, keys: &[Key]) -> Result<Vec<Option<Entry>>, LedgerError> {
        let entries = self.0.entries.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(keys.iter().map(|key| entries.get(key).cloned()).collect())
    }

    async fn write(&self, entries: &[(Key, Entry)]) -> Result<(), LedgerError> {
        let mut known = self.0.entries.lock().unwrap_or_else(PoisonError::into_inner);
        known.extend(entries.iter().cloned());
        Ok(())
    }

    async fn lock(&self, source: &str, owner: &str) -> Result<(), LedgerError> {
        self.0.locks.lock(source, owner)
    }

    async fn unlock(&self, source: &str, owner: &str) -> Result<(), LedgerError> {
        self.0.locks.unlock(source, owner);
        Ok(())
    }
}
