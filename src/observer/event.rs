//! What can happen.

use std::error::Error;
use std::time::{Duration, SystemTime};

use crate::failure::Failure;
use crate::record::DeadLetterId;
use crate::record::{Position, Record, SequenceNumber, ShardId};
use crate::settlement::{Settled, Unsettled};

/// Something that happened. New kinds may come.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// Code of the user's other than the handler panicked: an observer, a classifier, a function that makes keys, an
    /// error whose text cannot be read. The panic is caught, and the code goes without effect this time. The text of
    /// the panic is not reported, as it may quote the payload.
    #[non_exhaustive]
    UserCodePanicked {
        /// What it is, such as `classifier`; of an observer also its Rust type.
        code: &'a str,
        /// The number of its panics so far. The log reports the first only.
        count: u64,
    },
    /// The handler failed, timed out or panicked.
    #[non_exhaustive]
    AttemptFailed {
        /// The record; of a batch the first.
        record: &'a Record,
        /// How many the handler was given: more than one to a [`BatchProcessor`](crate::BatchProcessor).
        records: usize,
        /// The number of the call, from 1.
        attempt: u32,
        /// Whether the call counts as an attempt. A probe does not: an outage is suspected.
        counts: bool,
        /// The error and its verdict. Its text is the user's, and may quote the payload.
        failure: Redacted<'a>,
        /// The Rust type of the handler's error.
        error_type: &'static str,
    },
    /// A call of the handler is over.
    #[non_exhaustive]
    AttemptEnded {
        /// The record; of a batch the first.
        record: &'a Record,
        /// How many the handler was given.
        records: usize,
        /// Counts from 1.
        attempt: u32,
        /// How long it took.
        took: Duration,
        /// Whether it succeeded; of a batch, with all of it.
        succeeded: bool,
    },
    /// An attempt has timed out, and did nothing but wait for a call that an earlier one had made: it blocks its thread,
    /// which nobody can stop ([`processor_blocking`](crate::processor_blocking)).
    #[non_exhaustive]
    HandlerStuck {
        /// The record.
        record: &'a Record,
        /// The attempt that waited; counts from 1.
        attempt: u32,
    },
    /// The record will be tried again.
    #[non_exhaustive]
    RetryScheduled {
        /// The record.
        record: &'a Record,
        /// The number of the attempt to come.
        attempt: u32,
        /// How long the backoff is.
        delay: Duration,
    },
    /// The retry budget is empty: the record waits longer before its next attempt.
    #[non_exhaustive]
    RetryDelayed {
        /// The record.
        record: &'a Record,
        /// How long it waits.
        delay: Duration,
    },
    /// The record would be given up, but it may not be to blame: nothing else has succeeded since. It is
    /// held, and tried again.
    #[non_exhaustive]
    RecordHeld {
        /// The record.
        record: &'a Record,
        /// The last error and its verdict.
        failure: Redacted<'a>,
        /// For how long at most, if nothing else succeeds.
        at_most: Duration,
    },
    /// A breaker has opened: nothing is attempted and nothing given up until a few probes succeed.
    #[non_exhaustive]
    BreakerOpened {
        /// The dependency that the breaker is for, if it is for one.
        dependency: Option<&'a str>,
        /// How many attempts failed within its window, or in the last round of probes.
        failures: u64,
        /// How many there were.
        attempts: u64,
        /// When the next probes are made.
        pause: Duration,
    },
    /// A breaker's pause is over: a few records are tried.
    #[non_exhaustive]
    BreakerHalfOpened {
        /// The dependency that the breaker is for, if it is for one.
        dependency: Option<&'a str>,
    },
    /// A breaker has closed: all goes on.
    #[non_exhaustive]
    BreakerClosed {
        /// The dependency that the breaker is for, if it is for one.
        dependency: Option<&'a str>,
        /// How long it was not closed.
        after: Duration,
    },
    /// Most of what a shard settles becomes dead letters. It has stopped before the next one, and waits
    /// for [`DeadLetterGuard::resume`](crate::DeadLetterGuard::resume).
    #[non_exhaustive]
    DeadLetterGuardStopped {
        /// The record whose letter was next.
        record: &'a Record,
        /// How many of the records settled lately became dead letters.
        letters: u64,
        /// How many were settled.
        settled: u64,
    },
    /// A shard that the dead-letter guard had stopped goes on.
    #[non_exhaustive]
    DeadLetterGuardResumed {
        /// The record before whose dead letter the shard had stopped.
        record: &'a Record,
    },
    /// Another delivery of the record, or another record with its idempotency key, is being processed: it waits.
    #[non_exhaustive]
    ClaimedElsewhere {
        /// The record.
        record: &'a Record,
        /// When it is looked at again.
        delay: Duration,
    },
    /// The idempotency store does not answer. What it is asked about waits: nothing is processed unguarded.
    #[non_exhaustive]
    IdempotencyDelayed {
        /// The store's name.
        store: &'a str,
        /// How often it has failed in a row.
        failures: u32,
        /// What it said.
        error: &'a (dyn Error + Send + Sync + 'static),
        /// When it is asked again.
        delay: Duration,
    },
    /// A record was processed and that could not be remembered: if it is delivered again it is processed again.
    #[non_exhaustive]
    CompletionLost {
        /// The record.
        record: &'a Record,
        /// What the store said; none: the claim had expired, and another has the key.
        error: Option<&'a (dyn Error + Send + Sync + 'static)>,
    },
    /// A sink did not take a letter; it is written again.
    #[non_exhaustive]
    DeadLetterDelayed {
        /// The sink's name.
        sink: &'a str,
        /// How many letters wait.
        letters: usize,
        /// How often the sink has failed in a row.
        failures: u32,
        /// What it said.
        error: &'a (dyn Error + Send + Sync + 'static),
        /// When it is tried again.
        delay: Duration,
    },
    /// A sink confirmed a letter.
    #[non_exhaustive]
    DeadLettered {
        /// The record.
        record: &'a Record,
        /// The letter's id.
        id: DeadLetterId,
        /// Why the record was given up.
        reason: &'static str,
        /// The last error and its verdict.
        failure: Redacted<'a>,
        /// Where the letter is, in the sink's terms.
        location: &'a str,
        /// The id of the trace that its producer began, if that is in W3C Trace Context's form
        /// ([`TraceContext`](crate::TraceContext)).
        trace_id: Option<&'a str>,
    },
    /// A sink's target may lose letters later.
    #[non_exhaustive]
    DeadLetterTargetWarning {
        /// The sink's name.
        sink: &'a str,
        /// What is wrong.
        message: &'a str,
        /// The command that mends it.
        remedy: &'a str,
    },
    /// A record ended.
    #[non_exhaustive]
    Settled {
        /// The record.
        record: &'a Record,
        /// How.
        settled: Settled,
        /// How often the handler was called.
        attempts: u32,
    },
    /// A record was given back: it will be delivered again.
    #[non_exhaustive]
    Unsettled {
        /// The record.
        record: &'a Record,
        /// Why.
        reason: &'a Unsettled,
    },
    /// What must be known before reading (the stream's shards, their checkpoints, the dead-letter target)
    /// could not be found out; tried again.
    #[non_exhaustive]
    DiscoveryFailed {
        /// The stream's name.
        stream: &'a str,
        /// How often it has failed in a row.
        failures: u32,
        /// What went wrong.
        error: &'a (dyn Error + Send + Sync + 'static),
        /// When it is tried again.
        delay: Duration,
    },
    /// No shard of the stream holds these hash keys, as three listings in a row say: what is written to
    /// them is read by nobody. Listed again, every minute at least.
    #[non_exhaustive]
    HashKeysUncovered {
        /// The stream's name.
        stream: &'a str,
        /// The first of them.
        first: u128,
        /// The last of them.
        last: u128,
    },
    /// Reading of a shard begins.
    #[non_exhaustive]
    ShardStarted {
        /// The stream's name.
        stream: &'a str,
        /// The shard.
        shard: &'a ShardId,
        /// Where it begins.
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
    /// A shard cannot go on without losing a record. It stands where it is; the others go on.
    #[non_exhaustive]
    ShardHalted {
        /// The stream's name.
        stream: &'a str,
        /// The shard.
        shard: &'a ShardId,
        /// Why.
        error: &'a (dyn Error + Send + Sync + 'static),
    },
    /// A shard's task has broken down, by a panic outside of handler, sink and store, or Kinesis does not know the shard
    /// any more. It begins again at its checkpoint, if it is still there.
    #[non_exhaustive]
    ShardFailed {
        /// The stream's name.
        stream: &'a str,
        /// The shard.
        shard: &'a ShardId,
        /// How often in a row.
        failures: u32,
        /// What went wrong.
        error: &'a (dyn Error + Send + Sync + 'static),
        /// When it begins again.
        delay: Duration,
    },
    /// What is stored of a shard cannot be understood, or is another stream's. Nothing is guessed: the shard and its
    /// children wait until somebody has mended the row, which is looked at twice a minute. The others go on.
    #[non_exhaustive]
    CheckpointUnreadable {
        /// The stream's name.
        stream: &'a str,
        /// The shard.
        shard: &'a ShardId,
        /// What is wrong.
        error: &'a (dyn Error + Send + Sync + 'static),
    },
    /// Another process holds a shard. This one stands by, to take it when it is free.
    #[non_exhaustive]
    ShardLeasedElsewhere {
        /// The stream's name.
        stream: &'a str,
        /// The shard.
        shard: &'a ShardId,
        /// Who holds it, in the checkpoint store's terms.
        owner: &'a str,
    },
    /// The lease of a shard could not be renewed; it is tried again, until the lease counts as lost.
    #[non_exhaustive]
    LeaseNotRenewed {
        /// The stream's name.
        stream: &'a str,
        /// The shard.
        shard: &'a ShardId,
        /// How often it has failed in a row.
        failures: u32,
        /// What went wrong.
        error: &'a (dyn Error + Send + Sync + 'static),
        /// When it is tried again.
        delay: Duration,
    },
    /// Another process has taken a shard, or may have, as its lease could not be renewed for two thirds of the
    /// failover time. Nothing more of it was begun here; what was not settled is delivered again.
    #[non_exhaustive]
    LeaseLost {
        /// The stream's name.
        stream: &'a str,
        /// The shard.
        shard: &'a ShardId,
    },
    /// A consumer has found its shards and starts to read.
    #[non_exhaustive]
    ConsumerStarted {
        /// The stream's name.
        stream: &'a str,
        /// The application's name.
        application: &'a str,
        /// Where the stream is: `in us-east-1`, `at http://localhost:4566`.
        place: &'a str,
        /// The number of shards that the stream lists.
        shards: usize,
        /// The name of the checkpoint store.
        checkpoints: &'a str,
        /// The name of the dead-letter sink, if there is one.
        dead_letters: Option<&'a str>,
        /// Where shards without a checkpoint start.
        starting_position: &'a str,
    },
    /// A consumer has stopped. The counts are those of this run.
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
    /// A shard was handed over to the process that asked for it.
    #[non_exhaustive]
    ShardHandedOver {
        /// The stream's name.
        stream: &'a str,
        /// The shard.
        shard: &'a ShardId,
    },
    /// The stream has dropped records of a shard that were not settled, as they were older than its retention; or
    /// it may have.
    #[non_exhaustive]
    DataLoss {
        /// The stream's name.
        stream: &'a str,
        /// The shard.
        shard: &'a ShardId,
        /// What arrived before that was settled, if that is known.
        from: Option<SystemTime>,
        /// What arrived since is still there.
        to: SystemTime,
        /// Whether there were such records.
        certain: bool,
    },
    /// Records were read.
    #[non_exhaustive]
    Fetched {
        /// The stream's name.
        stream: &'a str,
        /// The shard.
        shard: &'a ShardId,
        /// How many.
        records: usize,
        /// Their payloads' bytes.
        bytes: usize,
        /// How far the reader is behind the stream's tip.
        behind: Option<Duration>,
    },
    /// Reading failed; it is tried again.
    #[non_exhaustive]
    FetchFailed {
        /// The stream's name.
        stream: &'a str,
        /// The shard.
        shard: &'a ShardId,
        /// How often it has failed in a row.
        failures: u32,
        /// What went wrong.
        error: &'a (dyn Error + Send + Sync + 'static),
        /// When it is tried again.
        delay: Duration,
    },
    /// Kinesis asked to be read more slowly; the call is repeated.
    #[non_exhaustive]
    FetchThrottled {
        /// The stream's name.
        stream: &'a str,
        /// The shard.
        shard: &'a ShardId,
        /// When it is read again.
        delay: Duration,
    },
    /// An iterator outlived its five minutes; another is made after the last record delivered.
    #[non_exhaustive]
    IteratorExpired {
        /// The stream's name.
        stream: &'a str,
        /// The shard.
        shard: &'a ShardId,
    },
    /// Kinesis refuses the sequence number at which reading was to start or resume, and the shard has no such record. The
    /// number belongs to another shard, or to a stream that had this name before. A [`DataLoss`](Event::DataLoss) follows, and the shard
    /// restarts at its oldest record, unless the consumer's `on_data_loss` halts it.
    #[non_exhaustive]
    PositionRefused {
        /// The stream's name.
        stream: &'a str,
        /// The shard.
        shard: &'a ShardId,
        /// The number that is refused.
        sequence_number: &'a SequenceNumber,
    },
    /// The stored checkpoint belongs to an earlier stream of this name, which was deleted, or it says that the shard has
    /// ended although Kinesis lists the shard as open. A [`DataLoss`](Event::DataLoss) follows, and the shard is read from
    /// its oldest record, unless the consumer's `on_data_loss` halts it.
    #[non_exhaustive]
    StreamRecreated {
        /// The stream's name.
        stream: &'a str,
        /// The shard.
        shard: &'a ShardId,
        /// When the stream was created that has the name now, if that is known.
        created: Option<SystemTime>,
    },
    /// The stream cannot be described. As long as its retention is not known, no [`RecordExpiring`](Event::RecordExpiring)
    /// is reported. What was known before is used until a later call succeeds.
    #[non_exhaustive]
    StreamNotDescribed {
        /// The stream's name.
        stream: &'a str,
        /// Why. A missing permission is `kinesis:DescribeStreamSummary`.
        error: &'a (dyn Error + Send + Sync + 'static),
    },
    /// A shard cannot be subscribed to, and is polled meanwhile.
    #[non_exhaustive]
    FanOutUnavailable {
        /// The stream's name.
        stream: &'a str,
        /// The shard.
        shard: &'a ShardId,
        /// Why.
        error: &'a (dyn Error + Send + Sync + 'static),
        /// When it is tried again.
        delay: Duration,
    },
    /// A record begins as one that the KPL has aggregated, and is none that can be opened: the handler gets
    /// it as it is.
    #[non_exhaustive]
    AggregateDamaged {
        /// The record.
        record: &'a Record,
        /// What is wrong with it.
        error: &'a (dyn Error + Send + Sync + 'static),
    },
    /// A record that was aggregated by its producer holds others that belong to another shard.
    #[non_exhaustive]
    AggregateOutOfRange {
        /// The record, or the first inside.
        record: &'a Record,
        /// How many; of one that is dropped, all that are inside.
        records: usize,
        /// Whether they were dropped, as the consumer's settings have it.
        dropped: bool,
    },
    /// No more is read until something settles.
    #[non_exhaustive]
    WindowFull {
        /// Which bound is reached.
        bound: Bound,
        /// The record that everything waits for.
        oldest: &'a Record,
        /// How many records are read and not settled.
        in_flight: usize,
    },
    /// How a shard stands: told every ten seconds, also while nothing is read.
    #[non_exhaustive]
    ShardStatus {
        /// The stream's name.
        stream: &'a str,
        /// The shard.
        shard: &'a ShardId,
        /// How many records are read and not settled.
        in_flight: usize,
        /// How long ago the oldest of them arrived: nothing without one, or if that is not known.
        oldest: Option<Duration>,
        /// How long ago the shard came further, or was started.
        since_progress: Duration,
    },
    /// The record that a shard waits for is older than four fifths of the stream's retention: Kinesis will drop it, and
    /// what is behind it. Told every few minutes.
    #[non_exhaustive]
    RecordExpiring {
        /// The record.
        record: &'a Record,
        /// How long ago it arrived.
        age: Duration,
        /// How long it is still there.
        left: Duration,
    },
    /// The process has died again and again at the same place of a shard: the records there run one at a time, and one
    /// with which it dies three times becomes a dead letter
    /// ([`Reason::CrashLoop`](crate::dead_letter::Reason::CrashLoop)).
    #[non_exhaustive]
    CrashLoopSuspected {
        /// The stream's name.
        stream: &'a str,
        /// The shard.
        shard: &'a ShardId,
        /// How many starts came to nothing. In Lambda: how many processes died while they processed the same record.
        starts: u32,
    },
    /// All records that may have been in hand when the process died are through: the shard begins anew at its
    /// checkpoint, as ever.
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
        /// Everything up to here is settled.
        position: &'a Position,
    },
    /// A checkpoint could not be stored; it is tried again.
    #[non_exhaustive]
    CheckpointFailed {
        /// The stream's name.
        stream: &'a str,
        /// The shard.
        shard: &'a ShardId,
        /// How often it has failed in a row.
        failures: u32,
        /// What went wrong.
        error: &'a (dyn Error + Send + Sync + 'static),
        /// When it is tried again.
        delay: Duration,
    },
}

/// A failure inside an event: `Debug` shows its verdict, not the text of the user's error.
#[derive(Clone, Copy)]
pub struct Redacted<'a>(pub(crate) &'a Failure);

impl<'a> Redacted<'a> {
    /// The failure in full. Its text may quote the payload: mind where it goes.
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
    /// Records read and not settled.
    InFlight,
    /// The distance from the watermark to the newest record read.
    Span,
    /// Payload bytes held by the process.
    Bytes,
}

impl Bound {
    /// The name used in logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Bound::InFlight => "in_flight",
            Bound::Span => "span",
            Bound::Bytes => "bytes",
        }
    }
}
