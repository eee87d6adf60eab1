//! The events that observers receive.

use std::error::Error;
use std::time::{Duration, SystemTime};

use crate::failure::Failure;
use crate::record::DeadLetterId;
use crate::record::{Position, Record, SequenceNumber, ShardId};
use crate::settlement::{Settled, Unsettled};

/// An event that observers receive. New variants may be added.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
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
    /// An attempt failed, timed out or panicked.
    #[non_exhaustive]
    AttemptFailed {
        /// The record, or the first record of a batch.
        record: &'a Record,
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
    /// A call of the processor ended.
    #[non_exhaustive]
    AttemptEnded {
        /// The record, or the first record of a batch.
        record: &'a Record,
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
        /// The record.
        record: &'a Record,
        /// The number of the attempt that waited, from 1.
        attempt: u32,
    },
    /// A retry of the record is scheduled.
    #[non_exhaustive]
    RetryScheduled {
        /// The record.
        record: &'a Record,
        /// The number of the next attempt.
        attempt: u32,
        /// The backoff before the attempt.
        delay: Duration,
    },
    /// The retry budget is exhausted, and the record waits longer before its next attempt.
    #[non_exhaustive]
    RetryDelayed {
        /// The record.
        record: &'a Record,
        /// The time until the retry budget is checked again.
        delay: Duration,
    },
    /// The record is held: its attempts are exhausted, but an outage is suspected, so it is retried instead
    /// of dead-lettered.
    #[non_exhaustive]
    RecordHeld {
        /// The record.
        record: &'a Record,
        /// The last error and its verdict.
        failure: Redacted<'a>,
        /// The maximum time for which the record is held while nothing else succeeds.
        at_most: Duration,
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
    /// The dead-letter guard stopped a shard, because most of its settled records became dead letters. The
    /// shard waits before its next dead letter until
    /// [`DeadLetterGuard::resume`](crate::DeadLetterGuard::resume) is called.
    #[non_exhaustive]
    DeadLetterGuardStopped {
        /// The record whose dead letter is next.
        record: &'a Record,
        /// The number of records settled within the guard's window that became dead letters.
        letters: u64,
        /// The number of records settled within the guard's window.
        settled: u64,
    },
    /// A shard that the dead-letter guard had stopped resumed.
    #[non_exhaustive]
    DeadLetterGuardResumed {
        /// The record before whose dead letter the shard had stopped.
        record: &'a Record,
    },
    /// The record waits, because another delivery of it, or another record with the same idempotency key, is
    /// in progress.
    #[non_exhaustive]
    ClaimedElsewhere {
        /// The record.
        record: &'a Record,
        /// The time until the claim is checked again.
        delay: Duration,
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
    /// A record was processed, but its completion could not be stored. If the record is redelivered, it is
    /// processed again.
    #[non_exhaustive]
    CompletionLost {
        /// The record.
        record: &'a Record,
        /// The error of the store. `None`: the claim expired, and another delivery has claimed the key.
        error: Option<&'a (dyn Error + Send + Sync + 'static)>,
    },
    /// A sink did not accept a dead letter, and the write is retried.
    #[non_exhaustive]
    DeadLetterDelayed {
        /// The sink's name.
        sink: &'a str,
        /// The number of dead letters that wait.
        letters: usize,
        /// The number of consecutive failures of the sink.
        failures: u32,
        /// The error.
        error: &'a (dyn Error + Send + Sync + 'static),
        /// The time until the retry.
        delay: Duration,
    },
    /// A sink confirmed a dead letter.
    #[non_exhaustive]
    DeadLettered {
        /// The record.
        record: &'a Record,
        /// The id of the dead letter.
        id: DeadLetterId,
        /// The reason, as in the dead letter: [`Reason::as_str`](crate::dead_letter::Reason::as_str).
        reason: &'static str,
        /// The last error and its verdict.
        failure: Redacted<'a>,
        /// The location of the dead letter, in the sink's terms.
        location: &'a str,
        /// The id of the trace that the record's producer started, if the context has the form of W3C Trace
        /// Context ([`TraceContext`](crate::TraceContext)).
        trace_id: Option<&'a str>,
    },
    /// The target of a sink may lose dead letters later.
    #[non_exhaustive]
    DeadLetterTargetWarning {
        /// The sink's name.
        sink: &'a str,
        /// The description of the problem.
        message: &'a str,
        /// The command that fixes the problem.
        remedy: &'a str,
    },
    /// A record is settled.
    #[non_exhaustive]
    Settled {
        /// The record.
        record: &'a Record,
        /// The settlement.
        settled: Settled,
        /// The number of calls of the processor.
        attempts: u32,
    },
    /// A record was released unsettled and will be redelivered.
    #[non_exhaustive]
    Unsettled {
        /// The record.
        record: &'a Record,
        /// The reason.
        reason: &'a Unsettled,
    },
    /// Discovery failed and is retried. Discovery covers all that must be known before reading: the stream's
    /// shards, their checkpoints, and whether the dead-letter target and the idempotency store can be used.
    #[non_exhaustive]
    DiscoveryFailed {
        /// The stream's name.
        stream: &'a str,
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
        /// The stream's name.
        stream: &'a str,
        /// The first of these hash keys.
        first: u128,
        /// The last of these hash keys.
        last: u128,
    },
    /// A consumer starts to read a shard.
    #[non_exhaustive]
    ShardStarted {
        /// The stream's name.
        stream: &'a str,
        /// The shard.
        shard: &'a ShardId,
        /// The position at which reading starts.
        position: &'a Position,
    },
    /// All records of a closed shard are settled.
    #[non_exhaustive]
    ShardEnded {
        /// The stream's name.
        stream: &'a str,
        /// The shard.
        shard: &'a ShardId,
    },
    /// A shard halted, because it cannot continue without losing a record. The other shards continue.
    #[non_exhaustive]
    ShardHalted {
        /// The stream's name.
        stream: &'a str,
        /// The shard.
        shard: &'a ShardId,
        /// The reason.
        error: &'a (dyn Error + Send + Sync + 'static),
    },
    /// The task of a shard failed: it panicked outside of processor, sink and store, or Kinesis no longer
    /// knows the shard. The shard restarts at its checkpoint, if the stream still lists it.
    #[non_exhaustive]
    ShardFailed {
        /// The stream's name.
        stream: &'a str,
        /// The shard.
        shard: &'a ShardId,
        /// The number of consecutive failures.
        failures: u32,
        /// The error.
        error: &'a (dyn Error + Send + Sync + 'static),
        /// The time until the restart.
        delay: Duration,
    },
    /// The stored checkpoint of a shard cannot be decoded, or belongs to another stream. redrive does not
    /// guess a position: the shard and its children wait until an operator has fixed or deleted the row. The
    /// consumer checks the row twice a minute. The other shards continue.
    #[non_exhaustive]
    CheckpointUnreadable {
        /// The stream's name.
        stream: &'a str,
        /// The shard.
        shard: &'a ShardId,
        /// The error.
        error: &'a (dyn Error + Send + Sync + 'static),
    },
    /// Another worker owns the lease of a shard. This worker stands by, to take the lease when it is free.
    #[non_exhaustive]
    ShardLeasedElsewhere {
        /// The stream's name.
        stream: &'a str,
        /// The shard.
        shard: &'a ShardId,
        /// The owner of the lease, in the checkpoint store's terms.
        owner: &'a str,
    },
    /// The renewal of a shard's lease failed. It is retried until the lease counts as lost.
    #[non_exhaustive]
    LeaseNotRenewed {
        /// The stream's name.
        stream: &'a str,
        /// The shard.
        shard: &'a ShardId,
        /// The number of consecutive failures.
        failures: u32,
        /// The error.
        error: &'a (dyn Error + Send + Sync + 'static),
        /// The time until the retry.
        delay: Duration,
    },
    /// The lease of a shard is lost. Another worker has taken it, or may have, because the lease could not be
    /// renewed for two thirds of the failover time. This worker starts no more records of the shard;
    /// unsettled records are left to the next owner.
    #[non_exhaustive]
    LeaseLost {
        /// The stream's name.
        stream: &'a str,
        /// The shard.
        shard: &'a ShardId,
    },
    /// A consumer has discovered its shards and starts to read.
    #[non_exhaustive]
    ConsumerStarted {
        /// The stream's name.
        stream: &'a str,
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
        /// The stream's name.
        stream: &'a str,
        /// The number of records that were processed.
        processed: u64,
        /// The number of records that the idempotency store knew as processed.
        duplicates: u64,
        /// The number of records that were dead-lettered.
        dead_lettered: u64,
        /// The time since the start.
        duration: Duration,
    },
    /// A shard was handed over to the worker that requested it.
    #[non_exhaustive]
    ShardHandedOver {
        /// The stream's name.
        stream: &'a str,
        /// The shard.
        shard: &'a ShardId,
    },
    /// The stream dropped records of a shard before they were settled, because they were older than the
    /// retention; or it may have.
    #[non_exhaustive]
    DataLoss {
        /// The stream's name.
        stream: &'a str,
        /// The shard.
        shard: &'a ShardId,
        /// The start of the time range, if it is known. Records that arrived earlier were settled.
        from: Option<SystemTime>,
        /// The end of the time range. Records that arrived later are still in the stream.
        to: SystemTime,
        /// True if at least one record is known to be lost. Otherwise it is unknown whether any arrived in
        /// the range.
        certain: bool,
    },
    /// Records were read.
    #[non_exhaustive]
    Fetched {
        /// The stream's name.
        stream: &'a str,
        /// The shard.
        shard: &'a ShardId,
        /// The number of records.
        records: usize,
        /// The number of payload bytes.
        bytes: usize,
        /// The time by which the reader is behind the tip of the stream.
        behind: Option<Duration>,
    },
    /// A read failed and is retried.
    #[non_exhaustive]
    FetchFailed {
        /// The stream's name.
        stream: &'a str,
        /// The shard.
        shard: &'a ShardId,
        /// The number of consecutive failures.
        failures: u32,
        /// The error.
        error: &'a (dyn Error + Send + Sync + 'static),
        /// The time until the retry.
        delay: Duration,
    },
    /// Kinesis throttled a read, which is retried.
    #[non_exhaustive]
    FetchThrottled {
        /// The stream's name.
        stream: &'a str,
        /// The shard.
        shard: &'a ShardId,
        /// The time until the retry.
        delay: Duration,
    },
    /// A shard iterator expired, which happens after five minutes. Reading continues behind the last
    /// delivered record with a new iterator.
    #[non_exhaustive]
    IteratorExpired {
        /// The stream's name.
        stream: &'a str,
        /// The shard.
        shard: &'a ShardId,
    },
    /// Kinesis refuses the sequence number at which reading was to start or resume, and the shard has no such
    /// record. The number belongs to another shard, or to a deleted stream of this name. A
    /// [`DataLoss`](Event::DataLoss) follows, and the shard restarts at its oldest record, unless the
    /// consumer's `on_data_loss` halts it.
    #[non_exhaustive]
    PositionRefused {
        /// The stream's name.
        stream: &'a str,
        /// The shard.
        shard: &'a ShardId,
        /// The refused sequence number.
        sequence_number: &'a SequenceNumber,
    },
    /// The stored checkpoint belongs to a deleted stream of this name, or it marks the shard as ended
    /// although Kinesis lists the shard as open. A [`DataLoss`](Event::DataLoss) follows, and the shard is
    /// read from its oldest record, unless the consumer's `on_data_loss` halts it.
    #[non_exhaustive]
    StreamRecreated {
        /// The stream's name.
        stream: &'a str,
        /// The shard.
        shard: &'a ShardId,
        /// The creation time of the current stream of this name, if it is known.
        created: Option<SystemTime>,
    },
    /// The stream could not be described. Values of an earlier call are used until a later call succeeds.
    /// While the retention is unknown, no [`RecordExpiring`](Event::RecordExpiring) is reported.
    #[non_exhaustive]
    StreamNotDescribed {
        /// The stream's name.
        stream: &'a str,
        /// The error. If access is denied, the missing permission is `kinesis:DescribeStreamSummary`.
        error: &'a (dyn Error + Send + Sync + 'static),
    },
    /// A subscription to a shard failed. The shard is polled until the next attempt to subscribe.
    #[non_exhaustive]
    FanOutUnavailable {
        /// The stream's name.
        stream: &'a str,
        /// The shard.
        shard: &'a ShardId,
        /// The error.
        error: &'a (dyn Error + Send + Sync + 'static),
        /// The time until the retry.
        delay: Duration,
    },
    /// A record starts like a KPL aggregate but cannot be de-aggregated. The processor receives the record
    /// unchanged.
    #[non_exhaustive]
    AggregateDamaged {
        /// The record.
        record: &'a Record,
        /// The error of the de-aggregation.
        error: &'a (dyn Error + Send + Sync + 'static),
    },
    /// A KPL aggregate contains records whose hash keys belong to another shard.
    #[non_exhaustive]
    AggregateOutOfRange {
        /// The aggregate if it was dropped, otherwise the first record inside.
        record: &'a Record,
        /// The number of records that belong to another shard; of a dropped aggregate, all records inside.
        records: usize,
        /// True if the aggregate was dropped, according to the consumer's settings.
        dropped: bool,
    },
    /// A full window has kept a shard from reading for at least 5 s, with the same oldest record. Repeated
    /// every minute.
    #[non_exhaustive]
    WindowFull {
        /// The bound that is reached.
        bound: Bound,
        /// The oldest unsettled record, which the window waits for.
        oldest: &'a Record,
        /// The number of records that are read and not settled.
        in_flight: usize,
    },
    /// The status of a shard, reported every ten seconds, even while nothing is read.
    #[non_exhaustive]
    ShardStatus {
        /// The stream's name.
        stream: &'a str,
        /// The shard.
        shard: &'a ShardId,
        /// The number of records that are read and not settled.
        in_flight: usize,
        /// The time since the oldest of these records arrived. `None` without such a record, or if its
        /// arrival is unknown.
        oldest: Option<Duration>,
        /// The time since the shard last made progress, or was started.
        since_progress: Duration,
    },
    /// The oldest unsettled record of a shard is older than 80 % of the stream's retention. Kinesis will drop
    /// it, and then the records behind it. Repeated every five minutes.
    #[non_exhaustive]
    RecordExpiring {
        /// The record.
        record: &'a Record,
        /// The time since the record arrived.
        age: Duration,
        /// The time until the stream drops the record.
        left: Duration,
    },
    /// The process has crashed repeatedly at the same place of a shard. The records there are now processed
    /// one at a time. A record with which the process crashes three times becomes a dead letter
    /// ([`Reason::CrashLoop`](crate::dead_letter::Reason::CrashLoop)); in Lambda with an
    /// idempotency store, after five crashes.
    #[non_exhaustive]
    CrashLoopSuspected {
        /// The stream's name.
        stream: &'a str,
        /// The shard.
        shard: &'a ShardId,
        /// The number of starts without progress. In Lambda: the number of processes that crashed with the
        /// same record.
        starts: u32,
    },
    /// All records that may have been in flight when the process crashed have been processed. The shard
    /// restarts at its checkpoint with normal concurrency.
    #[non_exhaustive]
    CrashLoopOver {
        /// The stream's name.
        stream: &'a str,
        /// The shard.
        shard: &'a ShardId,
    },
    /// A checkpoint is stored.
    #[non_exhaustive]
    Checkpointed {
        /// The stream's name.
        stream: &'a str,
        /// The shard.
        shard: &'a ShardId,
        /// The position. All records up to it are settled.
        position: &'a Position,
    },
    /// A checkpoint could not be stored, and the write is retried.
    #[non_exhaustive]
    CheckpointFailed {
        /// The stream's name.
        stream: &'a str,
        /// The shard.
        shard: &'a ShardId,
        /// The number of consecutive failures.
        failures: u32,
        /// The error.
        error: &'a (dyn Error + Send + Sync + 'static),
        /// The time until the retry.
        delay: Duration,
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

/// The bounds of a shard's window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Bound {
    /// The number of records read and not settled.
    InFlight,
    /// The distance from the watermark to the newest record read.
    Span,
    /// The payload bytes in the memory of the process.
    Bytes,
}

impl Bound {
    /// Returns the name used in logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Bound::InFlight => "in_flight",
            Bound::Span => "span",
            Bound::Bytes => "bytes",
        }
    }
}
