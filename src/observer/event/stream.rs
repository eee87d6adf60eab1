//! The events of a stream and its consumer.

use std::error::Error;
use std::time::Duration;

/// An event of a stream and its consumer. New variants may be added.
#[derive(Debug)]
#[non_exhaustive]
pub enum StreamEvent<'a> {
    /// Discovery failed and is retried. Discovery covers all that must be known before reading: the stream's
    /// shards, their checkpoints, and whether the dead-letter target and the idempotency store can be used.
    #[non_exhaustive]
    DiscoveryFailed {
        /// The number of consecutive failures.
        failures: u32,
        /// The error.
        error: &'a (dyn Error + Send + Sync + 'static),
        /// The time until the retry.
        delay: Duration,
    },
    /// No shard of the stream covers these hash keys, according to at least three consecutive listings.
    /// Records written to these hash keys are not read. The consumer lists the shards again, at least once a
    /// minute.
    #[non_exhaustive]
    HashKeysUncovered {
        /// The first of these hash keys.
        first: u128,
        /// The last of these hash keys.
        last: u128,
    },
    /// A consumer has discovered its shards and starts to read.
    #[non_exhaustive]
    ConsumerStarted {
        /// The application's name.
        application: &'a str,
        /// The location of the stream: `in us-east-1`, `at http://localhost:4566`.
        place: &'a str,
        /// The number of shards that the stream lists.
        shards: usize,
        /// The name of the checkpoint store.
        checkpoints: &'a str,
        /// The name of the dead-letter sink, if there is one.
        dead_letters: Option<&'a str>,
        /// The position at which shards without a checkpoint start.
        starting_position: &'a str,
    },
    /// A consumer stopped. The counts are those of this run.
    #[non_exhaustive]
    ConsumerStopped {
        /// The number of records that were processed.
        processed: u64,
        /// The number of records that the idempotency store knew as processed.
        duplicates: u64,
        /// The number of records that were dead-lettered.
        dead_lettered: u64,
        /// The time since the start.
        duration: Duration,
    },
    /// A call in [CBOR](crate::consumer::Wire::Cbor) failed because of its encoding: the endpoint does not know
    /// CBOR, or its answer could not be decoded. The consumer repeats the call in JSON, and uses JSON until it is
    /// restarted. No record is skipped.
    #[non_exhaustive]
    CborRefused {
        /// The error.
        error: &'a (dyn Error + Send + Sync + 'static),
    },
    /// The stream could not be described. Values of an earlier call are used until a later call succeeds.
    /// While the retention is unknown, no
    /// [`RecordEvent::Expiring`](crate::observer::RecordEvent::Expiring) is reported.
    #[non_exhaustive]
    NotDescribed {
        /// The error. If access is denied, the missing permission is `kinesis:DescribeStreamSummary`.
        error: &'a (dyn Error + Send + Sync + 'static),
    },
}
