//! Not faster than was allowed.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// Batches at a rate.
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

    /// How many letters go together: what half a second allows, so that the rate is kept within the second as well.
    pub(super) fn batch(&self, most: usize) -> usize {
        // Saturates, which is meant.
        ((self.rate / 2.0) as usize).clamp(1, most)
    }

    /// Waits for the turn of so many.
    pub(super) async fn turn(&mut self, letters: usize) {
        sleep_until(self.next).await;
        let takes = Duration::try_from_secs_f64(letters as f64 / self.rate).unwrap_or(Duration::MAX);
        // What was not used before is not made up for.
        let next = self.next.max(Instant::now()).checked_add(takes);
        self.next = next.unwrap_or(self.next);
    }
}
