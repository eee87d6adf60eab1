//! The events of what all records share: circuit breakers, the idempotency store and user code.

use std::error::Error;
use std::time::Duration;

/// An event of what all records share: a circuit breaker, the idempotency store or user code. New variants
/// may be added.
#[derive(Debug)]
#[non_exhaustive]
pub enum ProtectionEvent<'a> {
    /// User code other than the processor panicked: an observer, a classifier, a function that makes keys, or
    /// the `Display` of an error. redrive catches the panic, and this call of the code has no effect. The
    /// text of the panic is not reported, because it may quote the payload.
    #[non_exhaustive]
    UserCodePanicked {
        /// The kind of the code, such as `classifier`. For an observer, the Rust type is added.
        code: &'a str,
        /// The number of panics of this code so far. The log reports only the first.
        count: u64,
    },
    /// A circuit breaker opened: no attempts and no dead letters are made until a few probes succeed.
    #[non_exhaustive]
    BreakerOpened {
        /// The dependency that the breaker protects, if it is named.
        dependency: Option<&'a str>,
        /// The number of failed attempts within the breaker's window, or in the last round of probes.
        failures: u64,
        /// The number of all attempts in the window or round.
        attempts: u64,
        /// The time until the next probes.
        pause: Duration,
    },
    /// The pause of a circuit breaker ended, and a few records are attempted as probes.
    #[non_exhaustive]
    BreakerHalfOpened {
        /// The dependency that the breaker protects, if it is named.
        dependency: Option<&'a str>,
    },
    /// A circuit breaker closed, and processing resumes.
    #[non_exhaustive]
    BreakerClosed {
        /// The dependency that the breaker protects, if it is named.
        dependency: Option<&'a str>,
        /// The time for which the breaker was not closed.
        after: Duration,
    },
    /// A call of the idempotency store failed or timed out. The records of the call wait: no record is
    /// processed without a claim.
    #[non_exhaustive]
    IdempotencyDelayed {
        /// The store's name.
        store: &'a str,
        /// The number of consecutive failures.
        failures: u32,
        /// The error.
        error: &'a (dyn Error + Send + Sync + 'static),
        /// The time until the store is called again.
        delay: Duration,
    },
}
