//! The processing of one shard, from batches of records to a watermark.
//!
//! Records enter in the shard's order, run concurrently as far as their [`RecordOrder`] allows, and settle in
//! any order. Only the watermark is checkpointed as the shard's position: the last position up to which every
//! record is settled.
//!
//! The pipeline has four bounds. With a single bound, 1 % of failing records would cut the throughput to a
//! twentieth.
//!
//! | bound | scope | counts | default |
//! |---|---|---|---|
//! | running | the process | processor calls that run now; a record in backoff does not count | 64 |
//! | in flight | each shard | records read and not settled | 4,096 |
//! | span | each shard | the distance from the watermark to the newest record read | 262,144 |
//! | bytes | the process | bytes of records in flight, reserved before they are fetched: payloads, and 256 bytes for each record | 256 MiB |
//!
//! Only a [`Consumer`](crate::Consumer) reserves bytes. Batches from elsewhere are in memory already, and
//! count none.
//!
//! When *running* is full, further calls wait. When another bound is full, the shard stops reading and
//! nothing else.

use std::fmt;
use std::time::{Duration, SystemTime};

use futures_core::Stream;

mod arrival_watermark;
mod backoff_queue;
mod batch_builder;
mod builder;
mod call_gate;
#[cfg_attr(not(feature = "kinesis"), allow(dead_code))]
mod capacity;
mod checkpoints;
mod expiry;
mod lanes;
mod payload_memory;
#[cfg_attr(not(feature = "kinesis"), allow(dead_code))]
mod progress;
mod run_queue;
mod settled_counts;
mod shard;
mod stall;
mod turn_budget;
mod unread;
mod window;

pub use builder::PipelineBuilder;
#[cfg(feature = "kinesis")]
pub(crate) use call_gate::Admission;
pub(crate) use call_gate::{CallGate, NoGate};
pub use capacity::{Capacity, CapacityBuilder};
pub use expiry::ExpiryPolicy;
pub use lanes::RecordOrder;
#[cfg(feature = "kinesis")]
pub(crate) use payload_memory::OVERHEAD;
pub(crate) use progress::Progress;
#[cfg(any(feature = "kinesis", feature = "multilang"))]
pub(crate) use progress::Published;
pub(crate) use settled_counts::SettledCounts;

use self::capacity::Reservation;
use crate::checkpoint::Checkpoint;
use crate::engine::{Resilient, Within};
use crate::processor::Handler;
use crate::record::{Position, Record, SequenceNumber};
use crate::retention::Retention;
use crate::settlement::Halt;

/// The settings for processing a shard's records. Each runtime has a pipeline of its own. Used by hand, a
/// pipeline processes records that were read from elsewhere. [`PipelineBuilder`] lists the defaults.
#[derive(Debug, Clone)]
pub struct Pipeline {
    ordering: RecordOrder,
    in_flight: usize,
    span: usize,
    capacity: Capacity,
    drain: Duration,
    checkpoint_interval: Duration,
    retention: Retention,
    on_expiring: ExpiryPolicy,
    within: Option<Within>,
    /// Each processor call gets one record, also for a batch processor.
    one_by_one: bool,
}

impl Default for Pipeline {
    fn default() -> Self {
        Pipeline::builder().make()
    }
}

impl Pipeline {
    /// Creates a builder with the defaults.
    pub fn builder() -> PipelineBuilder {
        PipelineBuilder::new()
    }

    /// Sets how long running processor calls and writes of dead letters may take once a shutdown has begun.
    #[cfg(any(feature = "kinesis", feature = "lambda"))]
    pub(crate) fn drain(mut self, time: Duration) -> Self {
        self.drain = time;
        self
    }

    /// Sets the [`retention`](PipelineBuilder::retention) of a stream whose retention may change.
    #[cfg(feature = "kinesis")]
    pub(crate) fn shared_retention(mut self, retention: Retention) -> Self {
        self.retention = retention;
        self
    }

    /// Returns whether a held record becomes a dead letter before the stream drops it.
    #[cfg(feature = "kinesis")]
    pub(crate) fn lets_expire(&self) -> bool {
        self.on_expiring == ExpiryPolicy::DeadLetter
    }

    /// Sets the time by which a run must end. The pipeline releases records that it cannot settle by then.
    #[cfg(feature = "lambda")]
    pub(crate) fn within(mut self, within: Within) -> Self {
        self.within = Some(within);
        self.drain(within.finish_by - within.attempts_until)
    }

    /// Allows one processor call at a time, with one record: the call may be the process's last.
    #[cfg(any(feature = "kinesis", feature = "lambda"))]
    pub(crate) fn one_by_one(mut self) -> Self {
        self.one_by_one = true;
        self.capacity = self.capacity.one_at_a_time();
        self
    }

    /// Returns the order in which records are processed.
    #[cfg(feature = "kinesis")]
    pub(crate) fn order(&self) -> RecordOrder {
        self.ordering
    }

    /// Returns the maximum number of records in flight per shard.
    #[cfg(feature = "kinesis")]
    pub(crate) fn most_in_flight(&self) -> usize {
        self.in_flight
    }

    /// Returns the bounds that all shards of the process share.
    pub fn shared_capacity(&self) -> &Capacity {
        &self.capacity
    }

    /// Settles the records of these batches, which come in the shard's order, until the batches end or a
    /// record halts the shard.
    ///
    /// Dropping the future drops running processor calls at their `.await`. Records that were not settled
    /// must be delivered again.
    pub async fn run<P, S>(&self, resilient: &Resilient<P>, batches: S) -> Result<Finished, Box<ShardHalted>>
    where
        P: Handler,
        S: Stream<Item = Batch> + Unpin,
    {
        let from = Checkpoint::at(Position::TrimHorizon);
        let (progress, never) = (Progress::new(), std::future::pending());
        self.run_from(resilient, batches, from, &NoGate, &progress, never)
            .await
    }

    /// Does the same as [`run`](Pipeline::run), but starts from a checkpoint, hands over the next checkpoints,
    /// and ends when `shutdown` completes.
    ///
    /// - Records that `from` covers are skipped.
    /// - `on_checkpoint` gets each checkpoint to be stored, and the run waits for the returned future before
    ///   it makes another one. A checkpoint is made when the position has moved: once per
    ///   [`checkpoint_interval`](PipelineBuilder::checkpoint_interval), and at once after a dead letter. The last call
    ///   gets the checkpoint of the result, and the run returns after it.
    /// - After the shutdown nothing new begins, and running calls have [`drain`](PipelineBuilder::drain) to end.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # async fn store_order(record: redrive::Record) -> Result<(), std::io::Error> { Ok(()) }
    /// use redrive::checkpoint::{Checkpoint, CheckpointStore, Memory, ShardKey};
    /// use redrive::pipeline::{Batch, Pipeline};
    /// use redrive::{Position, Record, Resilient, dead_letter, processor_fn};
    ///
    /// let orders = Resilient::builder("billing", processor_fn(store_order))
    ///     .dead_letters(dead_letter::Memory::new())
    ///     .build()?;
    /// let record = Record::builder("orders", "shardId-000000000000".into(), 1.into()).build();
    /// let batches = futures_util::stream::iter([Batch::from(vec![record])]);
    ///
    /// let store = Memory::new();
    /// let key = ShardKey::new("billing", "orders", "shardId-000000000000".into());
    /// let from = Checkpoint::at(Position::TrimHorizon); // or the checkpoint that the store has
    /// let save = |checkpoint| {
    ///     let rows = [(key.clone(), checkpoint)];
    ///     let store = &store;
    ///     async move {
    ///         for result in store.save(&rows).await {
    ///             result.unwrap_or_else(|error| eprintln!("checkpoint not stored: {error}"));
    ///         }
    ///     }
    /// };
    /// let shutdown = std::future::pending(); // or redrive::shutdown_signal()
    /// let finished = Pipeline::default()
    ///     .run_until(&orders, batches, from, save, shutdown)
    ///     .await?;
    /// assert!(finished.complete);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn run_until<P, S, C, F>(
        &self,
        resilient: &Resilient<P>,
        batches: S,
        from: Checkpoint,
        on_checkpoint: C,
        shutdown: impl Future<Output = ()> + Send,
    ) -> Result<Finished, Box<ShardHalted>>
    where
        P: Handler,
        S: Stream<Item = Batch> + Unpin,
        C: FnMut(Checkpoint) -> F,
        F: Future<Output = ()>,
    {
        let progress = Progress::new();
        let latest = progress.subscribe();
        let settling = async {
            let running = self.run_from(resilient, batches, from, &NoGate, &progress, shutdown);
            let result = running.await;
            let checkpoint = match &result {
                Ok(finished) => &finished.checkpoint,
                Err(halted) => &halted.checkpoint,
            };
            progress.finish(checkpoint.clone());
            result
        };
        let storing = checkpoints::hand_over(&progress, latest, self.checkpoint_interval, on_checkpoint);
        tokio::join!(settling, storing).0
    }

    /// Settles the records behind a checkpoint. Every processor call passes the gate. `progress` provides the
    /// next checkpoints during the run. When `shutdown` completes, nothing new begins.
    pub(crate) async fn run_from<P, S>(
        &self,
        resilient: &Resilient<P>,
        batches: S,
        from: Checkpoint,
        gate: &impl CallGate,
        progress: &Progress,
        shutdown: impl Future<Output = ()> + Send,
    ) -> Result<Finished, Box<ShardHalted>>
    where
        P: Handler,
        S: Stream<Item = Batch> + Unpin,
    {
        shard::run(self, resilient, batches, from, gate, progress, shutdown).await
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
    /// Creates a batch with the memory that was [reserved](Capacity::reserve) before its records were read.
    /// Memory that the records do not need is released at once, the rest as the records settle. A record
    /// needs its payload's bytes, and 256 bytes of its own.
    #[cfg(any(feature = "kinesis", test))]
    pub(crate) fn reserved(records: Vec<Record>, mut reservation: Reservation) -> Self {
        reservation.use_only(records.iter().map(payload_memory::weight).sum());
        Batch {
            records,
            reservation: Some(reservation),
            read_until: None,
        }
    }

    /// Returns true if the batch has no records.
    #[cfg(feature = "kinesis")]
    pub(crate) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// States that this batch completes the reading of every record that had arrived by `time`. Checkpoints
    /// contain the time once the records are settled. An empty batch may state a time as well.
    #[cfg(feature = "kinesis")]
    #[must_use]
    pub(crate) fn read_until(mut self, time: SystemTime) -> Self {
        self.read_until = Some(time);
        self
    }
}

/// The result of a shard's run that no record halted.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finished {
    /// The position up to which the shard is settled.
    pub checkpoint: Checkpoint,
    /// The number of records that were read and not settled; they will be delivered again.
    pub unsettled: usize,
    /// True if the batches came to their end and all their records are settled.
    pub complete: bool,
    /// The first record that was read and not settled.
    pub first_unsettled: Option<SequenceNumber>,
}

/// The error of a shard that cannot continue without losing a record, or that stopped after a dead letter as
/// its policy demands.
#[derive(Debug)]
#[non_exhaustive]
pub struct ShardHalted {
    /// The record, without its payload.
    pub record: Record,
    /// The reason why the shard halted.
    pub halt: Halt,
    /// The position up to which the shard is settled.
    pub checkpoint: Checkpoint,
    /// The number of records that were read and not settled. It includes `record`, unless that record is
    /// dead-lettered.
    pub unsettled: usize,
    /// The first record that was read and not settled; if there is none, `record`.
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
