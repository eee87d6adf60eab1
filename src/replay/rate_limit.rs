//! The rate limit of a replay.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// Spaces batches so that the rate is not exceeded.
pub(super) struct Pace {
    rate: f64,
    next: Instant,
}

impl Pace {
    pub(super) fn new(rate: f64) -> Self {
        Pace {
            rate,
            next: Instant::now(),
        }
    }

    /// Returns the number of dead letters per batch: what half a second allows, so that the rate also holds
    /// within a second.
    pub(super) fn batch(&self, most: usize) -> usize {
        // The cast saturates, which is intended.
        ((self.rate / 2.0) as usize).clamp(1, most)
    }

    /// Waits until a batch of this many dead letters may be sent.
    pub(super) async fn turn(&mut self, letters: usize) {
        sleep_until(self.next).await;
        let takes = Duration::from_secs_f64(letters as f64 / self.rate);
        // Unused time is not made up for.
        self.next = self.next.max(Instant::now()) + takes;
    }
}
