//! A ledger that ends with its process.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;

use super::locks::Locks;
use super::{Entry, Key, Ledger, LedgerError};

/// Remembers in memory; a clone shares it.
///
/// A source that keeps its letters gives them all again to the next process. What was put into a stream by an earlier one,
/// without a stamp, counts as driven again for the first time when it fails again.
#[derive(Debug, Clone, Default)]
pub struct Memory(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    entries: Mutex<HashMap<Key, Entry>>,
    locks: Locks,
}

impl Memory {
    /// An empty one.
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
