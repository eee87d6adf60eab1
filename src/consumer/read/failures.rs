//! Consecutive failures of the calls that read a shard.

use std::time::Duration;

use tokio::time::sleep;

use super::cursor::Reading;
use crate::aws::FailedCall;
use crate::consumer::calls::REFUSALS;
use crate::failure::BoxError;
use crate::observer::ShardEvent;
use crate::protection::{Backoff, RetryTimer};

/// The number of consecutive failed calls, which determines the delay before the next one.
pub(in crate::consumer) struct Failures {
    retries: RetryTimer,
}

impl Failures {
    pub(in crate::consumer) fn new(reading: &Reading) -> Self {
        Failures {
            retries: RetryTimer::new(Backoff::exponential(), reading.rng.clone()),
        }
    }

    pub(in crate::consumer) fn reset(&mut self) {
        self.retries.reset();
    }

    pub(in crate::consumer) fn count(&self) -> u32 {
        self.retries.failures()
    }

    fn next_delay(&mut self, at_least: Duration) -> Duration {
        self.retries.next_delay().max(at_least)
    }

    pub(in crate::consumer) async fn throttled(&mut self, reading: &Reading) {
        let delay = self.next_delay(Duration::ZERO);
        reading.report(|| ShardEvent::FetchThrottled { delay });
        sleep(delay).await;
    }

    pub(in crate::consumer) async fn wait(&mut self, reading: &Reading, error: BoxError) {
        self.wait_at_least(Duration::ZERO, reading, error).await;
    }

    /// Waits after a failed call. Returns the error if Kinesis has refused [`REFUSALS`] calls in a row and no
    /// shard was read since the consumer started: no retry helps then.
    pub(in crate::consumer) async fn wait_after(
        &mut self,
        reading: &Reading,
        error: FailedCall,
    ) -> Result<(), BoxError> {
        let error = BoxError::from(error);
        let is_refused = FailedCall::is_refused(&*error) && !reading.facts.has_read();
        if is_refused && self.count() + 1 >= REFUSALS {
            return Err(error);
        }
        self.wait(reading, error).await;
        Ok(())
    }

    pub(in crate::consumer) async fn wait_at_least(
        &mut self,
        at_least: Duration,
        reading: &Reading,
        error: BoxError,
    ) {
        let delay = self.next_delay(at_least);
        reading.report(|| ShardEvent::FetchFailed {
            failures: self.count(),
            error: &*error,
            delay,
        });
        sleep(delay).await;
    }
}
