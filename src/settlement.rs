//! How one record ended.

use crate::failure::{BoxError, Failure};
use crate::record::DeadLetterId;

/// A record has ended: its shard's position may pass it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[must_use]
#[non_exhaustive]
pub enum Settled {
    /// The handler succeeded.
    Processed,
    /// The idempotency store knew the record as processed; the handler was not called.
    Duplicate,
    /// The record is in the dead-letter queue, which confirmed it.
    DeadLettered(DeadLetterId),
}

/// A record has not ended: its shard's position must not pass it, and it will be delivered again.
///
/// An error, so that nothing which accepts a [`Settled`] accepts it.
#[derive(Debug, thiserror::Error)]
#[must_use]
#[non_exhaustive]
pub enum Unsettled {
    /// The deadline came first.
    #[error("not settled before the deadline")]
    Deadline,
    /// The service is shutting down.
    #[error("not settled before the shutdown")]
    Shutdown,
    /// The deadline came while a breaker let nothing through, or the record was held.
    #[error("not settled before the deadline, as a breaker is open")]
    BreakerOpen,
    /// The deadline came while the dead-letter guard kept the record's letter back.
    #[error("not settled before the deadline, as the dead-letter guard has stopped the shard")]
    GuardStopped,
    /// The deadline came while the dead-letter sink did not confirm the record's letter.
    #[error("not settled before the deadline, as the dead-letter sink did not confirm its letter")]
    SinkDown,
    /// The deadline came while another delivery of the record was being processed.
    #[error("not settled before the deadline, as another delivery of the record is in progress")]
    ClaimedElsewhere,
    /// The deadline came while the idempotency store did not answer.
    #[error("not settled before the deadline, as the idempotency store is unavailable")]
    StoreDown,
    /// The shard belongs to another worker now.
    #[error("the shard's lease was lost")]
    LeaseLost,
    /// The record failed for good and nothing takes it: the shard must halt.
    #[error("the record can be neither processed nor dead-lettered")]
    Halted(#[source] Halt),
}

/// Why a shard cannot go on past a record without losing it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Halt {
    /// The record failed for good, and the processor was built `.without_dead_letters()`.
    #[error(
        "the record failed permanently, and there is no dead-letter sink; fix the handler and restart, or add a sink"
    )]
    WithoutDeadLetters(#[source] Failure),
    /// The record is in the dead-letter queue, and the processor was built to stop its shard then
    /// ([`DeadLetterPolicy::Stop`](crate::DeadLetterPolicy::Stop)). It goes on behind the record when it is started again.
    #[error("the record became dead letter {0}, after which its shard stops; inspect it, then restart")]
    DeadLetterPolicy(DeadLetterId),
    /// The sink can never take this letter.
    #[error(
        "the dead-letter sink can never take this letter ({size} bytes, its limit is {limit}); raise the sink's limit or add a fallback sink"
    )]
    DeadLetterRefused {
        /// The letter's size as the sink would write it, in bytes.
        size: u64,
        /// The most the sink takes, in bytes.
        limit: u64,
        /// What the sink said.
        #[source]
        source: BoxError,
    },
}
