//! The retention of a stream: how long the stream keeps its records.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The share of the retention after which a held record may become a dead letter. At this age the record has
/// been reported, and the stream is far from dropping it.
const GIVE_UP: f64 = 0.9;

/// The retention of a stream, if it is known. Clones share the value, which may change while the stream is
/// read.
#[derive(Debug, Clone, Default)]
pub(crate) struct Retention {
    /// The retention in milliseconds; 0 while it is not known.
    millis: Arc<AtomicU64>,
}

impl Retention {
    pub(crate) fn of(time: Duration) -> Self {
        let retention = Retention::default();
        retention.set(time);
        retention
    }

    pub(crate) fn set(&self, time: Duration) {
        let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        self.millis.store(millis, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> Option<Duration> {
        let millis = self.millis.load(Ordering::Relaxed);
        (millis > 0).then(|| Duration::from_millis(millis))
    }

    /// Returns the age from which on a held record may become a dead letter.
    pub(crate) fn give_up_age(&self) -> Option<Duration> {
        Some(self.get()?.mul_f64(GIVE_UP))
    }
}
