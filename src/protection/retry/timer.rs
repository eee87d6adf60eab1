//! Delays between the retries of a call that redrive makes for itself.

use std::time::Duration;

use rand::rngs::SmallRng;

use super::{Backoff, Jitter};

/// Counts consecutive failures, and draws the delay before the next try from a backoff with [`Jitter::Equal`].
#[derive(Debug)]
pub(crate) struct RetryTimer {
    backoff: Backoff,
    failures: u32,
    rng: SmallRng,
}

impl RetryTimer {
    pub(crate) fn new(backoff: Backoff, rng: SmallRng) -> Self {
        RetryTimer {
            backoff,
            failures: 0,
            rng,
        }
    }

    /// Returns the number of failures since the last success.
    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }

    /// Notes a success.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }

    /// Notes a failure, and returns the delay before the next try.
    pub(crate) fn next_delay(&mut self) -> Duration {
        let delay = Jitter::Equal.delay(&self.backoff, self.failures, Duration::ZERO, &mut self.rng);
        self.failures = self.failures.saturating_add(1);
        delay
    }
}
