//! Protections that all records share: the retry policy and its budget, the circuit breaker, the dead-letter
//! guard.

pub(crate) mod breaker;
pub(crate) mod guard;
pub(crate) mod retry;
pub(crate) mod sliding_window;

pub use breaker::{CircuitBreaker, CircuitBreakerBuilder, CircuitBreakerState};
pub use guard::{DeadLetterGuard, StoppedShard};
#[cfg(feature = "kinesis")]
pub(crate) use retry::RetryTimer;
pub use retry::{Backoff, Jitter, RetryBudget, RetryPolicy};
