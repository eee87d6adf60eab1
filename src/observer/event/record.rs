//! The events of a record.

use std::error::Error;
use std::time::Duration;

use crate::failure::Failure;
use crate::record::DeadLetterId;
use crate::settlement::{Settled, Unsettled};

/// An event of a record: its attempts, retries, claim, dead letter and settlement. New variants may be added.
#[derive(Debug)]
#[non_exhaustive]
pub enum RecordEvent<'a> {
    /// An attempt failed, timed out or panicked. The event's record is the first record of the call.
    #[non_exhaustive]
    AttemptFailed {
        /// The number of records in the call: more than one for a [`BatchProcessor`](crate::BatchProcessor).
        records: usize,
        /// The number of the call, from 1.
        attempt: u32,
        /// True if the call counts as an attempt. A probe, made while an outage is suspected, does not count.
        counts: bool,
        /// The error and its verdict. The text comes from the user's code and may quote the payload.
        failure: Redacted<'a>,
        /// The Rust type of the processor's error.
        error_type: &'static str,
    },
    /// A call of the processor ended. The event's record is the first record of the call.
    #[non_exhaustive]
    AttemptEnded {
        /// The number of records in the call.
        records: usize,
        /// The number of the call, from 1.
        attempt: u32,
        /// The duration of the call.
        took: Duration,
        /// True if the call succeeded. A batch succeeds if all its records do.
        succeeded: bool,
    },
    /// An attempt timed out while it waited for the call of an earlier attempt. That call still blocks its
    /// thread, and a thread cannot be stopped ([`processor_blocking`](crate::processor_blocking)).
    #[non_exhaustive]
    HandlerStuck {
        /// The number of the attempt that waited, from 1.
        attempt: u32,
    },
    /// A retry of the record is scheduled.
    #[non_exhaustive]
    RetryScheduled {
        /// The number of the next attempt.
        attempt: u32,
        /// The backoff before the attempt.
        delay: Duration,
    },
    /// The retry budget is exhausted, and the record waits longer before its next attempt.
    #[non_exhaustive]
    RetryDelayed {
        /// The time until the retry budget is checked again.
        delay: Duration,
    },
    /// The record is held: its attempts are exhausted, but an outage is suspected, so it is retried instead
    /// of dead-lettered.
    #[non_exhaustive]
    Held {
        /// The last error and its verdict.
        failure: Redacted<'a>,
        /// The maximum time for which the record is held while nothing else succeeds.
        at_most: Duration,
    },
    /// The dead-letter guard stopped a shard, because most of its settled records became dead letters. The
    /// shard waits before its next dead letter until
    /// [`DeadLetterGuard::resume`](crate::DeadLetterGuard::resume) is called. The event's record is the one
    /// whose dead letter is next.
    #[non_exhaustive]
    DeadLetterGuardStopped {
        /// The number of records settled within the guard's window that became dead letters.
        letters: u64,
        /// The number of records settled within the guard's window.
        settled: u64,
    },
    /// A shard that the dead-letter guard had stopped resumed. The event's record is the one before whose
    /// dead letter the shard had stopped.
    #[non_exhaustive]
    DeadLetterGuardResumed,
    /// The record waits, because another delivery of it, or another record with the same idempotency key, is
    /// in progress.
    #[non_exhaustive]
    ClaimedElsewhere {
        /// The time until the claim is checked again.
        delay: Duration,
    },
    /// A record was processed, but its completion could not be stored. If the record is redelivered, it is
    /// processed again.
    #[non_exhaustive]
    CompletionLost {
        /// The error of the store. `None`: the claim expired, and another delivery has claimed the key.
        error: Option<&'a (dyn Error + Send + Sync + 'static)>,
    },
    /// A sink confirmed a dead letter.
    #[non_exhaustive]
    DeadLettered {
        /// The id of the dead letter.
        id: DeadLetterId,
        /// The reason, as in the dead letter: [`Reason::as_str`](crate::dead_letter::Reason::as_str).
        reason: &'static str,
        /// The last error and its verdict.
        failure: Redacted<'a>,
        /// The location of the dead letter, in the sink's terms.
        location: &'a str,
        /// The id of the trace that the record's producer started, if the context has the form of W3C Trace
        /// Context ([`TraceContext`](crate::observer::TraceContext)).
        trace_id: Option<&'a str>,
    },
    /// A record is settled.
    #[non_exhaustive]
    Settled {
        /// The settlement.
        settled: Settled,
        /// The number of calls of the processor.
        attempts: u32,
    },
    /// A record was released unsettled and will be redelivered.
    #[non_exhaustive]
    Unsettled {
        /// The reason.
        reason: &'a Unsettled,
    },
    /// A record starts like a KPL aggregate but cannot be de-aggregated. The processor receives the record
    /// unchanged.
    #[non_exhaustive]
    AggregateDamaged {
        /// The error of the de-aggregation.
        error: &'a (dyn Error + Send + Sync + 'static),
    },
    /// A KPL aggregate contains records whose hash keys belong to another shard. The event's record is the
    /// aggregate if it was dropped, otherwise the first record inside.
    #[non_exhaustive]
    AggregateOutOfRange {
        /// The number of records that belong to another shard; of a dropped aggregate, all records inside.
        records: usize,
        /// True if the aggregate was dropped, according to the consumer's settings.
        dropped: bool,
    },
    /// The oldest unsettled record of a shard is older than 80 % of the stream's retention. Kinesis will drop
    /// it, and then the records behind it. Repeated every five minutes.
    #[non_exhaustive]
    Expiring {
        /// The time since the record arrived.
        age: Duration,
        /// The time until the stream drops the record.
        left: Duration,
    },
}

/// A failure inside an event: `Debug` shows its verdict, not the text of the user's error.
#[derive(Clone, Copy)]
pub struct Redacted<'a>(pub(crate) &'a Failure);

impl<'a> Redacted<'a> {
    /// Returns the full failure. Its text may quote the payload, so keep it out of logs and metrics.
    pub fn reveal(self) -> &'a Failure {
        self.0
    }
}

impl std::fmt::Debug for Redacted<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Debug::fmt(self.0.verdict(), f)
    }
}
