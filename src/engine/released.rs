//! Retry states of records that were released at a deadline. When such a record is delivered again, it
//! resumes with its attempts, its hold and its verdict.

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use lru::LruCache;

use super::retry_state::RetryState;
use crate::record::Record;

/// The retry states of the records that were released last.
pub(super) struct ReleasedRecords {
    any: AtomicBool,
    records: Mutex<Option<LruCache<String, Box<RetryState>>>>,
}

/// The maximum number of retry states. An invocation has as many records in flight as run concurrently, and a
/// few that wait.
const MOST: NonZeroUsize = NonZeroUsize::new(256).expect("more than none");

impl ReleasedRecords {
    pub(super) fn new() -> Self {
        ReleasedRecords {
            any: AtomicBool::new(false),
            records: Mutex::new(None),
        }
    }

    /// Returns true if there is a retry state.
    #[inline]
    pub(super) fn has_any(&self) -> bool {
        self.any.load(Ordering::Relaxed)
    }

    #[cold]
    pub(super) fn keep(&self, record: &Record, state: Box<RetryState>) {
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        let records = records.get_or_insert_with(|| LruCache::new(MOST));
        records.put(record.idempotency_key(), state);
        self.any.store(true, Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn take(&self, record: &Record) -> Option<Box<RetryState>> {
        self.has_any().then(|| self.take_one(record))?
    }

    #[cold]
    fn take_one(&self, record: &Record) -> Option<Box<RetryState>> {
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = records.as_mut()?;
        let state = kept.pop(&record.idempotency_key());
        self.any.store(!kept.is_empty(), Ordering::Relaxed);
        state
    }
}

impl fmt::Debug for ReleasedRecords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReleasedRecords")
            .field("any", &self.has_any())
            .finish_non_exhaustive()
    }
}
