//! Protections that all records share: the retry policy and its budget, the circuit breaker, the dead-letter
//! guard.

use std::time::Duration;

use tokio::time::Instant;

pub(crate) mod breaker;
pub(crate) mod guard;
pub(crate) mod retry;
pub(crate) mod sliding_window;

pub use breaker::{CircuitBreaker, CircuitBreakerBuilder, CircuitBreakerState};
pub use guard::{DeadLetterGuard, DeadLetterGuardBuilder, StoppedShard};
pub(crate) use retry::RetryTimer;
pub use retry::{Backoff, Jitter, RetryBudget, RetryBudgetBuilder, RetryPolicy};

const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Returns the time `delay` after `now`. A time beyond the range of the clock becomes a year from `now`.
pub(crate) fn after(now: Instant, delay: Duration) -> Instant {
    now.checked_add(delay).unwrap_or_else(|| now + YEAR)
}
