//! The events of a shard.

use std::error::Error;
use std::time::{Duration, SystemTime};

use crate::record::{Position, Record, SequenceNumber};

/// An event of a shard: its reading, checkpoints and lease. New variants may be added.
#[derive(Debug)]
#[non_exhaustive]
pub enum ShardEvent<'a> {
    /// A consumer starts to read a shard.
    #[non_exhaustive]
    Started {
        /// The position at which reading starts.
        position: &'a Position,
    },
    /// All records of a closed shard are settled.
    #[non_exhaustive]
    Ended,
    /// A shard halted, because it cannot continue without losing a record. The other shards continue.
    #[non_exhaustive]
    Halted {
        /// The reason.
        error: &'a (dyn Error + Send + Sync + 'static),
    },
    /// The task of a shard failed: it panicked outside of processor, sink and store, or Kinesis no longer
    /// knows the shard. The shard restarts at its checkpoint, if the stream still lists it.
    #[non_exhaustive]
    Failed {
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
        /// The error.
        error: &'a (dyn Error + Send + Sync + 'static),
    },
    /// Another worker owns the lease of a shard. This worker stands by, to take the lease when it is free.
    #[non_exhaustive]
    LeasedElsewhere {
        /// The owner of the lease, in the checkpoint store's terms.
        owner: &'a str,
    },
    /// The renewal of a shard's lease failed. It is retried until the lease counts as lost.
    #[non_exhaustive]
    LeaseNotRenewed {
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
    LeaseLost,
    /// A shard was handed over to the worker that requested it.
    #[non_exhaustive]
    HandedOver,
    /// The stream dropped records of a shard before they were settled, because they were older than the
    /// retention; or it may have.
    #[non_exhaustive]
    DataLoss {
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
        /// The time until the retry.
        delay: Duration,
    },
    /// A shard iterator expired, which happens after five minutes. Reading continues behind the last
    /// delivered record with a new iterator.
    #[non_exhaustive]
    IteratorExpired,
    /// Kinesis refuses the sequence number at which reading was to start or resume, and the shard has no such
    /// record. The number belongs to another shard, or to a deleted stream of this name. A
    /// [`DataLoss`](ShardEvent::DataLoss) follows, and the shard restarts at its oldest record, unless the
    /// consumer's `on_data_loss` halts it.
    #[non_exhaustive]
    PositionRefused {
        /// The refused sequence number.
        sequence_number: &'a SequenceNumber,
    },
    /// The stored checkpoint belongs to a deleted stream of this name, or it marks the shard as ended
    /// although Kinesis lists the shard as open. A [`DataLoss`](ShardEvent::DataLoss) follows, and the shard
    /// is read from its oldest record, unless the consumer's `on_data_loss` halts it.
    #[non_exhaustive]
    StreamRecreated {
        /// The creation time of the current stream of this name, if it is known.
        created: Option<SystemTime>,
    },
    /// A subscription to a shard failed. The shard is polled until the next attempt to subscribe.
    #[non_exhaustive]
    FanOutUnavailable {
        /// The error.
        error: &'a (dyn Error + Send + Sync + 'static),
        /// The time until the retry.
        delay: Duration,
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
    Status {
        /// The number of records that are read and not settled.
        in_flight: usize,
        /// The time since the oldest of these records arrived. `None` without such a record, or if its
        /// arrival is unknown.
        oldest: Option<Duration>,
        /// The time since the shard last made progress, or was started.
        since_progress: Duration,
    },
    /// The process has crashed repeatedly at the same place of a shard. The records there are now processed
    /// one at a time. A record with which the process crashes three times becomes a dead letter
    /// ([`Reason::CrashLoop`](crate::dead_letter::Reason::CrashLoop)); in Lambda with an
    /// idempotency store, after five crashes.
    #[non_exhaustive]
    CrashLoopSuspected {
        /// The number of starts without progress. In Lambda: the number of processes that crashed with the
        /// same record.
        starts: u32,
    },
    /// All records that may have been in flight when the process crashed have been processed. The shard
    /// restarts at its checkpoint with normal concurrency.
    #[non_exhaustive]
    CrashLoopOver,
    /// A checkpoint is stored.
    #[non_exhaustive]
    Checkpointed {
        /// The position. All records up to it are settled.
        position: &'a Position,
    },
    /// A checkpoint could not be stored, and the write is retried.
    #[non_exhaustive]
    CheckpointFailed {
        /// The number of consecutive failures.
        failures: u32,
        /// The error.
        error: &'a (dyn Error + Send + Sync + 'static),
        /// The time until the retry.
        delay: Duration,
    },
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
