//! The retry policy: when a record is retried, and when retries stop.
//!
//! A retry blocks its record's lane, so the defaults are short. If a few seconds do not fix a failure, a few
//! more seconds do not either, and a dead letter keeps the record safe.
//!
//! The circuit breaker handles dependencies that are down. This policy does not.

use std::time::Duration;

use rand::{Rng, RngExt};

mod backoff;
mod budget;
mod timer;

pub(crate) use backoff::seeded_rng;
pub use backoff::{Backoff, Jitter};
pub use budget::{RetryBudget, RetryBudgetBuilder};
pub(crate) use timer::RetryTimer;

use crate::config::ConfigError;

/// The limits on a record's attempts: their number, their time and the delays between them.
/// [`ResilientBuilder::build`](crate::ResilientBuilder::build) checks them.
///
/// | setting | default |
/// |---|---|
/// | [`max_attempts`](RetryPolicy::max_attempts) | 5, the first included |
/// | [`max_elapsed`](RetryPolicy::max_elapsed) | 30 s of attempts and backoff together |
/// | [`attempt_timeout`](RetryPolicy::attempt_timeout) | 30 s |
/// | [`backoff`](RetryPolicy::backoff) | [`Backoff::exponential`]: 100 ms doubling up to 10 s |
/// | [`jitter`](RetryPolicy::jitter) | [`Jitter::Full`] |
/// | [`max_retry_after`](RetryPolicy::max_retry_after) | 10 s |
#[derive(Debug, Clone, PartialEq)]
pub struct RetryPolicy {
    backoff: Backoff,
    jitter: Jitter,
    max_attempts: u32,
    max_elapsed: Duration,
    attempt_timeout: Duration,
    max_retry_after: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        RetryPolicy::exponential()
    }
}

impl RetryPolicy {
    /// Creates a policy with the defaults.
    pub const fn exponential() -> Self {
        RetryPolicy {
            backoff: Backoff::exponential(),
            jitter: Jitter::Full,
            max_attempts: 5,
            max_elapsed: Duration::from_secs(30),
            attempt_timeout: Duration::from_secs(30),
            max_retry_after: Duration::from_secs(10),
        }
    }

    /// Creates a policy with the same delay before every retry, with jitter. All other settings have their
    /// defaults.
    pub const fn constant(delay: Duration) -> Self {
        RetryPolicy::exponential().backoff(Backoff::constant(delay))
    }

    /// Creates a policy with one attempt and no retry. A record that is held while an outage is suspected is
    /// still attempted again.
    pub const fn none() -> Self {
        RetryPolicy::exponential().max_attempts(1)
    }

    /// Sets how the delays grow.
    #[must_use]
    pub const fn backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }

    /// Sets the random spread of the delays.
    #[must_use]
    pub const fn jitter(mut self, jitter: Jitter) -> Self {
        self.jitter = jitter;
        self
    }

    /// Sets the maximum number of calls of the processor for a record, the first included, before the record
    /// becomes a dead letter: at least 1. Default: 5.
    ///
    /// Every call counts, except calls that begin or end while the [`CircuitBreaker`](crate::CircuitBreaker)
    /// that the failure counts for is not closed. For a record that fails alone the number is exact.
    ///
    /// A record that has exhausted its attempts while an outage is suspected is held instead. An outage is
    /// suspected while the breaker is not closed, or while another record has failed too since the last
    /// success.
    ///
    /// A held record is retried at the breaker's pace. These probes do not count. The record restarts with a
    /// full count when another record succeeds or the breaker closes.
    /// [`hold_at_most`](crate::protection::CircuitBreakerBuilder::hold_at_most) ends a hold. `docs/retries.md` has the
    /// whole rule.
    #[must_use]
    pub const fn max_attempts(mut self, attempts: u32) -> Self {
        self.max_attempts = attempts;
        self
    }

    /// Sets the maximum time of a record's attempts and backoffs together. Other waits (for a sink, for a
    /// free place to run) do not count. Any time is valid.
    ///
    /// No backoff begins that would exceed the limit. The first backoff is an exception: a single attempt
    /// that hung until its timeout proves nothing, so one retry is always made.
    #[must_use]
    pub const fn max_elapsed(mut self, elapsed: Duration) -> Self {
        self.max_elapsed = elapsed;
        self
    }

    /// Sets the maximum time of one attempt: more than zero. After this time the attempt's future is dropped.
    #[must_use]
    pub const fn attempt_timeout(mut self, timeout: Duration) -> Self {
        self.attempt_timeout = timeout;
        self
    }

    /// Sets the maximum delay that an error's own `retry_after` can ask for. Any time is valid.
    #[must_use]
    pub const fn max_retry_after(mut self, delay: Duration) -> Self {
        self.max_retry_after = delay;
        self
    }

    pub(crate) const fn timeout(&self) -> Duration {
        self.attempt_timeout
    }

    /// Returns true if this many attempts exhaust the policy.
    pub(crate) const fn attempts_exhausted(&self, attempts: u32) -> bool {
        attempts >= self.max_attempts
    }

    /// Returns true if this much time exhausts the policy. The time of a single attempt never does.
    pub(crate) fn time_exhausted(&self, attempts: u32, spent: Duration) -> bool {
        attempts > 1 && spent > self.max_elapsed
    }

    /// Returns the delay before the next attempt, after this many failed ones. A `retry_after` from the
    /// failing side takes precedence over the computed delay.
    pub(crate) fn delay<R: Rng + ?Sized>(
        &self,
        failed_attempts: u32,
        previous: Duration,
        retry_after: Option<Duration>,
        rng: &mut R,
    ) -> Duration {
        match retry_after {
            // All clients received the same time. Up to a tenth more, at random, keeps them apart.
            Some(asked) => {
                let spread = match self.jitter {
                    Jitter::None => 0.0,
                    _ => rng.random::<f64>() / 10.0,
                };
                Duration::try_from_secs_f64(asked.as_secs_f64() * (1.0 + spread))
                    .map_or(self.max_retry_after, |delay| delay.min(self.max_retry_after))
            }
            None => self
                .jitter
                .delay(&self.backoff, failed_attempts.saturating_sub(1), previous, rng),
        }
    }

    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        self.backoff.validate("backoff")?;
        if self.max_attempts == 0 {
            let problem = "must be at least 1, the first attempt included";
            return Err(ConfigError::new("max_attempts", problem));
        }
        if self.attempt_timeout.is_zero() {
            return Err(ConfigError::new("attempt_timeout", "must be more than zero"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;

    #[test]
    fn the_documented_defaults() {
        let policy = RetryPolicy::default();
        assert_eq!(policy.max_attempts, 5);
        assert_eq!(policy.max_elapsed, Duration::from_secs(30));
        assert_eq!(policy.attempt_timeout, Duration::from_secs(30));
        assert_eq!(policy.max_retry_after, Duration::from_secs(10));
        assert_eq!(policy.jitter, Jitter::Full);
        assert_eq!(policy.backoff.delay(0), Duration::from_millis(100));
        assert_eq!(policy.backoff.delay(99), Duration::from_secs(10));
    }

    #[test]
    fn retry_after_wins_and_is_bounded() {
        let policy = RetryPolicy::exponential();
        let mut rng = SmallRng::seed_from_u64(1);
        let mut delay = |secs| policy.delay(1, Duration::ZERO, Some(Duration::from_secs(secs)), &mut rng);
        for _ in 0..100 {
            let asked = delay(3).as_secs_f64();
            assert!((3.0..=3.3).contains(&asked), "{asked}");
            assert_eq!(delay(3_600), Duration::from_secs(10));
        }
    }

    #[test]
    fn time_is_used_up_when_it_is_over_and_never_by_one_attempt() {
        let policy = RetryPolicy::exponential();
        assert!(!policy.time_exhausted(2, Duration::from_secs(30)));
        assert!(policy.time_exhausted(2, Duration::from_millis(30_001)));
        assert!(!policy.time_exhausted(1, Duration::from_secs(3_600)));
    }

    #[test]
    fn a_policy_that_cannot_work_is_refused() {
        let policy = RetryPolicy::exponential;
        let backoff = |backoff| policy().backoff(backoff);
        let exponential = Backoff::exponential;
        for (policy, setting) in [
            (policy().max_attempts(0), "max_attempts"),
            (policy().attempt_timeout(Duration::ZERO), "attempt_timeout"),
            (backoff(exponential().factor(0.5)), "backoff"),
            (backoff(exponential().factor(f64::NAN)), "backoff"),
            (backoff(exponential().cap(Duration::from_millis(1))), "backoff"),
        ] {
            let error = policy.validate().expect_err("refused");
            assert_eq!(error.setting(), setting);
        }
    }
}
