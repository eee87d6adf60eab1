//! One shard: from batches of records to a watermark.
//!
//! Records enter in the shard's order, run beside each other as far as their [`RecordOrder`] allows, and
//! settle in any order. What may be checkpointed is the watermark: the last position before which
//! everything is settled.
//!
//! Four bounds, because one for everything would let 1 % of failing records cut the throughput to a
//! twentieth:
//!
//! | bound | of | counts | default |
//! |---|---|---|---|
//! | running | the process | handler calls now; given back during backoff | 64 |
//! | held | each shard | records read and not settled | 4,096 |
//! | span | each shard | the distance from the watermark to the newest record read | 262,144 |
//! | bytes | the process | bytes of records in flight, reserved before they are fetched: payloads, and 256 bytes for each record | 256 MiB |
//!
//! A bound that is reached stops the reading, never anything else.

use std::fmt;
use std::time::{Duration, SystemTime};

use futures_core::Stream;
use tokio_util::sync::CancellationToken;

mod arrival_watermark;
mod backoff_queue;
mod batch_builder;
#[cfg(feature = "kinesis")]
mod call_gate;
mod capacity;
mod expiry;
mod lanes;
mod payload_memory;
mod progress;
mod run_queue;
mod settled_counts;
mod shard;
mod slots;
mod stall;
mod turn_budget;
mod unread;
mod window;

#[cfg(feature = "kinesis")]
pub(crate) use call_gate::{Admission, CallGate};
pub use capacity::{Capacity, Reservation};
pub use expiry::ExpiryPolicy;
pub use lanes::RecordOrder;
#[cfg(feature = "kinesis")]
pub(crate) use payload_memory::OVERHEAD;
pub use progress::{Progress, Published};
pub(crate) use settled_counts::SettledCounts;

use crate::checkpoint::Checkpoint;
use crate::engine::{Resilient, Within};
use crate::processor::RecordProcessor;
use crate::record::{Position, Record, SequenceNumber};
use crate::retention::Retention;
use crate::settlement::Halt;

/// How a shard's records are processed. Runtimes have one each; by hand it serves whoever reads records
/// from elsewhere.
#[derive(Debug, Clone)]
pub struct Pipeline {
    ordering: RecordOrder,
    in_flight: usize,
    span: usize,
    capacity: Capacity,
    drain: Duration,
    retention: Retention,
    on_expiring: ExpiryPolicy,
    within: Option<Within>,
    /// Each handler call has one record, also that of a batch processor.
    one_by_one: bool,
}

impl Default for Pipeline {
    /// [`RecordOrder::PartitionKey`], 4,096 records held, a span of 262,144, [`Capacity::default`], 20 s to
    /// drain.
    fn default() -> Self {
        Pipeline {
            ordering: RecordOrder::default(),
            in_flight: 4_096,
            span: 262_144,
            capacity: Capacity::default(),
            drain: Duration::from_secs(20),
            retention: Retention::default(),
            on_expiring: ExpiryPolicy::default(),
            within: None,
            one_by_one: false,
        }
    }
}

impl Pipeline {
    /// The defaults.
    pub fn new() -> Self {
        Pipeline::default()
    }

    /// In which order records are processed. Default: [`RecordOrder::PartitionKey`].
    #[must_use]
    pub fn ordering(mut self, ordering: RecordOrder) -> Self {
        self.ordering = ordering;
        self
    }

    /// The most records of a shard that are read and not settled, at least 1. Default: 4,096.
    #[must_use]
    pub fn in_flight(mut self, records: usize) -> Self {
        self.in_flight = records.max(1);
        self
    }

    /// The most records between a shard's watermark and its newest record read, at least 1. Default:
    /// 262,144.
    #[must_use]
    pub fn span(mut self, records: usize) -> Self {
        self.span = records.max(1);
        self
    }

    /// The bounds shared by all shards of the process. Default: its own [`Capacity::default`].
    #[must_use]
    pub fn capacity(mut self, capacity: Capacity) -> Self {
        self.capacity = capacity;
        self
    }

    /// How long running handlers and letters may take once a shutdown has begun. Default: 20 s.
    #[must_use]
    pub fn drain(mut self, time: Duration) -> Self {
        self.drain = time;
        self
    }

    /// For how long the stream keeps a record. A shard that waits for one that is older than four fifths of it says so,
    /// every few minutes ([`Event::RecordExpiring`](crate::observer::Event::RecordExpiring)). Default: not known; a
    /// [`Consumer`](crate::Consumer) asks the stream.
    #[must_use]
    pub fn retention(mut self, time: Duration) -> Self {
        self.retention = Retention::of(time);
        self
    }

    /// As [`retention`](Pipeline::retention), of a stream whose retention may change.
    #[cfg(feature = "kinesis")]
    pub(crate) fn shared_retention(mut self, retention: Retention) -> Self {
        self.retention = retention;
        self
    }

    /// Whether a held record becomes a dead letter before the stream drops it.
    #[cfg(feature = "kinesis")]
    pub(crate) fn lets_expire(&self) -> bool {
        self.on_expiring == ExpiryPolicy::DeadLetter
    }

    /// What becomes of a held record that the stream is about to drop. Default: [`ExpiryPolicy::Hold`].
    #[must_use]
    pub fn expiry_policy(mut self, on_expiring: ExpiryPolicy) -> Self {
        self.on_expiring = on_expiring;
        self
    }

    /// When a run must be over: what cannot be settled by then is given back.
    #[cfg(feature = "lambda")]
    pub(crate) fn within(mut self, within: Within) -> Self {
        self.within = Some(within);
        self.drain(within.finish_by - within.attempts_until)
    }

    /// One handler call at a time, with one record: it may be the process's last.
    #[cfg(any(feature = "kinesis", feature = "lambda"))]
    pub(crate) fn one_by_one(mut self) -> Self {
        self.one_by_one = true;
        self.capacity = self.capacity.one_at_a_time();
        self
    }

    /// In which order records are processed.
    #[cfg(feature = "kinesis")]
    pub(crate) fn order(&self) -> RecordOrder {
        self.ordering
    }

    /// The most records of a shard that are read and not settled.
    #[cfg(feature = "kinesis")]
    pub(crate) fn most_in_flight(&self) -> usize {
        self.in_flight
    }

    /// The bounds shared with others.
    pub fn shared_capacity(&self) -> &Capacity {
        &self.capacity
    }

    /// Settles the records of these batches, which come in the shard's order, until the batches end or
    /// a record halts the shard.
    ///
    /// If the future is dropped, running handlers are dropped at their `.await`, and what was not
    /// settled must be delivered again.
    pub async fn run<P, S>(&self, resilient: &Resilient<P>, batches: S) -> Result<Finished, Box<ShardHalted>>
    where
        P: RecordProcessor,
        S: Stream<Item = Batch> + Unpin,
    {
        let from = Checkpoint::at(Position::TrimHorizon);
        self.run_from(
            resilient,
            batches,
            from,
            &Progress::new(),
            &CancellationToken::new(),
        )
        .await
    }

    /// As [`run`](Pipeline::run), from a checkpoint: what it covers is skipped. `progress` gives the
    /// next checkpoints while it runs. When `shutdown` is cancelled nothing new begins, and what runs
    /// has [`drain`](Pipeline::drain) to end.
    pub async fn run_from<P, S>(
        &self,
        resilient: &Resilient<P>,
        batches: S,
        from: Checkpoint,
        progress: &Progress,
        shutdown: &CancellationToken,
    ) -> Result<Finished, Box<ShardHalted>>
    where
        P: RecordProcessor,
        S: Stream<Item = Batch> + Unpin,
    {
        shard::run(self, resilient, batches, from, progress, shutdown).await
    }

    /// As [`run_from`](Pipeline::run_from), with one handler call at a time, which asks first.
    #[cfg(feature = "kinesis")]
    pub(crate) async fn run_gated<P, S>(
        &self,
        resilient: &Resilient<P>,
        batches: S,
        from: Checkpoint,
        (progress, careful): (&Progress, &impl CallGate),
        shutdown: &CancellationToken,
    ) -> Result<Finished, Box<ShardHalted>>
    where
        P: RecordProcessor,
        S: Stream<Item = Batch> + Unpin,
    {
        let pipeline = self.clone().one_by_one();
        let beside = (progress, careful);
        shard::run_gated(&pipeline, resilient, batches, from, beside, shutdown).await
    }
}

/// Records that were read together, in the shard's order.
#[derive(Debug)]
pub struct Batch {
    records: Vec<Record>,
    reservation: Option<Reservation>,
    read_until: Option<SystemTime>,
}

impl From<Vec<Record>> for Batch {
    fn from(records: Vec<Record>) -> Self {
        Batch {
            records,
            reservation: None,
            read_until: None,
        }
    }
}

impl Batch {
    /// With the memory that was [reserved](Capacity::reserve) before they were read. What the records do not need is
    /// released at once, the rest as the records settle. A record needs its payload's bytes, and 256 of its own.
    pub fn reserved(records: Vec<Record>, mut reservation: Reservation) -> Self {
        reservation.use_only(records.iter().map(payload_memory::weight).sum());
        Batch {
            records,
            reservation: Some(reservation),
            read_until: None,
        }
    }

    /// Whether it has no records.
    #[cfg(feature = "kinesis")]
    pub(crate) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// With it, whatever had arrived until then is read: checkpoints say so once it is settled. An empty batch may
    /// say it as well.
    #[must_use]
    pub fn read_until(mut self, time: SystemTime) -> Self {
        self.read_until = Some(time);
        self
    }
}

/// How a shard's run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finished {
    /// How far it is settled.
    pub checkpoint: Checkpoint,
    /// Records that were read and not settled; they will be delivered again.
    pub unsettled: usize,
    /// Whether the batches came to their end and all their records are settled.
    pub complete: bool,
    /// The first of those that were read and not settled.
    pub first_unsettled: Option<SequenceNumber>,
}

/// A shard cannot go on without losing a record.
#[derive(Debug)]
#[non_exhaustive]
pub struct ShardHalted {
    /// The record, without its payload.
    pub record: Record,
    /// Why it cannot be settled.
    pub halt: Halt,
    /// How far the shard is settled.
    pub checkpoint: Checkpoint,
    /// How many records were read and not settled, this one among them unless it is dead-lettered.
    pub unsettled: usize,
    /// The first of those; if there is none, this one.
    pub first_unsettled: SequenceNumber,
}

impl fmt::Display for ShardHalted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "shard {} halted at record {}",
            self.record.shard(),
            self.record.position()
        )
    }
}

impl std::error::Error for ShardHalted {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.halt)
    }
}
