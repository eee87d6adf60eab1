//! The end of one record: settled or unsettled.

use crate::failure::{BoxError, Failure};
use crate::record::DeadLetterId;

/// The end of a record: its shard's position may pass it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[must_use]
#[non_exhaustive]
pub enum Settled {
    /// The processor succeeded.
    Processed,
    /// The idempotency store knew the record as processed, so the processor was not called.
    Duplicate,
    /// The record is stored in the dead-letter queue, which has confirmed it.
    DeadLettered(DeadLetterId),
}

/// A record that is not settled: its shard's position must not pass it, and the record is delivered again.
///
/// It is an error, so that nothing which accepts a [`Settled`] accepts it.
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
    /// The deadline came while a breaker was not closed, or while the record was held.
    #[error("not settled before the deadline, as a breaker is open")]
    BreakerOpen,
    /// The deadline came while the dead-letter guard delayed the record's dead letter.
    #[error("not settled before the deadline, as the dead-letter guard has stopped the shard")]
    GuardStopped,
    /// The deadline came before the dead-letter sink confirmed the record's dead letter.
    #[error("not settled before the deadline, as the dead-letter sink did not confirm its dead letter")]
    SinkDown,
    /// The deadline came while another delivery of the record was being processed.
    #[error("not settled before the deadline, as another delivery of the record is in progress")]
    ClaimedElsewhere,
    /// The deadline came while the idempotency store did not answer.
    #[error("not settled before the deadline, as the idempotency store is unavailable")]
    StoreDown,
    /// Another worker owns the shard now.
    #[error("the shard's lease was lost")]
    LeaseLost,
    /// The record can be neither processed nor stored as a dead letter: the shard must halt.
    #[error("the record can be neither processed nor dead-lettered")]
    Halted(#[source] Halt),
}

/// The reason why a shard cannot continue past a record without losing it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Halt {
    /// The record failed permanently, and the processor was built `.without_dead_letters()`.
    #[error(
        "the record failed permanently, and there is no dead-letter sink; fix the processor and restart, or add a sink"
    )]
    WithoutDeadLetters(#[source] Failure),
    /// The record became a dead letter, and the processor was built to stop its shard then
    /// ([`DeadLetterPolicy::Stop`](crate::dead_letter::DeadLetterPolicy::Stop)). After a restart the shard continues
    /// behind the record.
    #[error("the record became dead letter {0}, after which its shard stops; inspect it, then restart")]
    DeadLetterPolicy(DeadLetterId),
    /// The sink can never take this dead letter.
    #[error(
        "the dead-letter sink can never take this dead letter ({size} bytes, its limit is {limit}); raise the sink's limit or add a fallback sink"
    )]
    DeadLetterRefused {
        /// The size of the dead letter as the sink would write it, in bytes.
        size: u64,
        /// The sink's limit, in bytes.
        limit: u64,
        /// The sink's own error.
        #[source]
        source: BoxError,
    },
}
