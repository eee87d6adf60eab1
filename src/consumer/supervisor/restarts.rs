//! Restarts of shards whose tasks have failed.

use std::collections::HashMap;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::SmallRng;

use crate::protection::{Backoff, RetryTimer};
use crate::record::ShardId;

/// Delay between the failure of a shard's task and its restart.
const DELAY: Backoff = Backoff::exponential()
    .base(Duration::from_secs(1))
    .cap(Duration::from_secs(60));
/// The running time after which earlier failures of the task no longer count as consecutive.
const FORGET_AFTER: Duration = Duration::from_secs(5 * 60);

/// Counts the consecutive failures of each shard's task.
pub(super) struct Restarts {
    failed: HashMap<ShardId, RetryTimer>,
    rng: SmallRng,
}

/// A restart that was decided.
#[derive(Debug)]
pub(super) struct Restart {
    /// The number of consecutive failures.
    pub(super) failures: u32,
    pub(super) delay: Duration,
}

impl Restarts {
    pub(super) fn new(rng: SmallRng) -> Self {
        Restarts {
            failed: HashMap::new(),
            rng,
        }
    }

    /// Notes the failure of a task that has run for this time.
    pub(super) fn failed(&mut self, shard: &ShardId, ran: Duration) -> Restart {
        let timer = self.failed.entry(shard.clone()).or_insert_with(|| {
            let rng = SmallRng::from_rng(&mut self.rng);
            RetryTimer::new(DELAY, rng)
        });
        if ran > FORGET_AFTER {
            timer.reset();
        }
        let delay = timer.next_delay();
        Restart {
            failures: timer.failures(),
            delay,
        }
    }

    /// Returns true if the last task of the shard has failed.
    pub(super) fn has_failed(&self, shard: &ShardId) -> bool {
        self.failed.contains_key(shard)
    }

    /// Removes the shards that are not listed, and returns them.
    pub(super) fn take_unlisted(&mut self, is_listed: impl Fn(&ShardId) -> bool) -> Vec<ShardId> {
        let unlisted = self.failed.extract_if(|shard, _| !is_listed(shard));
        unlisted.map(|(shard, _)| shard).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_run_ends_the_count_of_failures() {
        let mut restarts = Restarts::new(SmallRng::seed_from_u64(7));
        let mut failures = |shard: &str, ran| restarts.failed(&shard.into(), ran).failures;
        let (short, long) = (Duration::from_secs(1), FORGET_AFTER + Duration::from_secs(1));
        assert_eq!([short; 3].map(|ran| failures("a", ran)), [1, 2, 3]);
        assert_eq!(failures("b", short), 1);
        assert_eq!(failures("a", long), 1);
        assert_eq!(failures("a", FORGET_AFTER), 2);
    }

    #[test]
    fn unlisted_shards_are_returned_once() {
        let mut restarts = Restarts::new(SmallRng::seed_from_u64(7));
        for shard in ["a", "b"] {
            let _ = restarts.failed(&shard.into(), Duration::ZERO);
        }
        let is_listed = |shard: &ShardId| shard.as_str() == "a";
        assert_eq!(restarts.take_unlisted(is_listed), ["b".into()]);
        assert_eq!(restarts.take_unlisted(is_listed), []);
    }
}
