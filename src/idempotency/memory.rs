//! An idempotency store in memory.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use async_trait::async_trait;

use super::in_progress::InProgress;
use super::{Claim, Claimed, Completion, IdempotencyStore, Key, Owner, PayloadHash, Status, StoreError};

/// Remembers processed records in memory, for one process and until it ends. The store catches a producer's
/// duplicates and redelivery within a run, but not after a restart. Clones share the keys.
#[derive(Clone)]
pub struct Memory {
    most: usize,
    rows: Arc<Mutex<Rows>>,
}

#[derive(Default)]
struct Rows {
    in_progress: InProgress,
    completed: HashMap<Key, Row>,
    by_time: BTreeSet<(SystemTime, Key)>,
}

struct Row {
    owner: Owner,
    keep_until: SystemTime,
    payload: Option<PayloadHash>,
}

impl Default for Memory {
    fn default() -> Self {
        Memory::new()
    }
}

impl Memory {
    /// Creates an empty store.
    pub fn new() -> Self {
        Memory {
            most: 1_000_000,
            rows: Arc::default(),
        }
    }

    /// Sets the maximum number of completed keys. Beyond it the store forgets the keys whose retention ends
    /// first. Default: 1,000,000.
    #[must_use]
    pub fn keys(mut self, most: NonZeroUsize) -> Self {
        self.most = most.get();
        self
    }

    fn rows(&self) -> MutexGuard<'_, Rows> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory")
            .field("completed", &self.rows().completed.len())
            .finish_non_exhaustive()
    }
}

impl Rows {
    fn completed(&self, key: &Key, now: SystemTime) -> Option<Status> {
        let row = self.completed.get(key).filter(|row| row.keep_until >= now)?;
        Some(Status::Completed { payload: row.payload })
    }

    fn claim(&mut self, claim: &Claim) -> Claimed {
        match self.completed(&claim.key, claim.now) {
            Some(completed) => completed.into(),
            None => self.in_progress.claim(claim),
        }
    }

    fn complete(&mut self, claim: &Claim, most: usize) -> Completion {
        let before = self
            .completed
            .get(&claim.key)
            .filter(|row| row.keep_until >= claim.now);
        if before.is_some_and(|row| row.owner != claim.owner) || self.in_progress.is_anothers(claim) {
            return Completion::Lost;
        }
        self.in_progress.release(claim);
        let row = Row {
            owner: claim.owner,
            keep_until: claim.keep_until,
            payload: claim.payload,
        };
        if let Some(before) = self.completed.insert(claim.key.clone(), row) {
            self.by_time.remove(&(before.keep_until, claim.key.clone()));
        }
        self.by_time.insert((claim.keep_until, claim.key.clone()));
        while let Some((keep_until, _)) = self.by_time.first()
            && (self.by_time.len() > most || *keep_until < claim.now)
        {
            if let Some((_, key)) = self.by_time.pop_first() {
                self.completed.remove(&key);
            }
        }
        Completion::Stored
    }
}

#[async_trait]
impl IdempotencyStore for Memory {
    async fn claim(&self, claims: &[Claim]) -> Vec<Result<Claimed, StoreError>> {
        let mut rows = self.rows();
        claims.iter().map(|claim| Ok(rows.claim(claim))).collect()
    }

    async fn complete(&self, claims: &[Claim]) -> Vec<Result<Completion, StoreError>> {
        let mut rows = self.rows();
        claims
            .iter()
            .map(|claim| Ok(rows.complete(claim, self.most)))
            .collect()
    }

    async fn release(&self, claims: &[Claim]) -> Vec<Result<(), StoreError>> {
        let mut rows = self.rows();
        claims.iter().for_each(|claim| rows.in_progress.release(claim));
        claims.iter().map(|_| Ok(())).collect()
    }

    async fn status(&self, keys: &[Key], now: SystemTime) -> Vec<Result<Option<Status>, StoreError>> {
        let rows = self.rows();
        let status = |key| {
            let completed = rows.completed(key, now);
            completed.or_else(|| rows.in_progress.status(key))
        };
        keys.iter().map(|key| Ok(status(key))).collect()
    }

    fn name(&self) -> Cow<'_, str> {
        "memory".into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_default() {
        assert_eq!(Memory::new().most, 1_000_000);
    }
}
