//! Locks among the replays of one process.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use super::LedgerError;

/// The owners of locked sources.
#[derive(Debug, Default)]
pub(super) struct Locks(Mutex<HashMap<String, String>>);

impl Locks {
    pub(super) fn lock(&self, source: &str, owner: &str) -> Result<(), LedgerError> {
        let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let holder = locks.entry(source.to_owned()).or_insert_with(|| owner.to_owned());
        if holder == owner {
            return Ok(());
        }
        Err(LedgerError::Locked {
            source_name: source.to_owned(),
            owner: holder.clone(),
        })
    }

    pub(super) fn unlock(&self, source: &str, owner: &str) {
        let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if locks.get(source).is_some_and(|holder| holder == owner) {
            locks.remove(source);
        }
    }
}
