//! The result of a shard's task.

use tokio::task::JoinError;

use crate::consumer::data_loss::DataLoss;
use crate::failure::BoxError;
use crate::pipeline::ShardHalted;

/// The result of a shard's task.
#[derive(Debug)]
pub(in crate::consumer) enum ShardEnd {
    /// The shard is closed, everything in it is settled, and its end is stored.
    Ended,
    /// The consumer is shutting down.
    Stopped,
    /// Crash-loop mode is over: the shard restarts at normal concurrency.
    CrashLoopOver,
    /// Kinesis refused the shard's position, and another position is stored.
    PositionRefused,
    /// A record can be neither processed nor dead-lettered.
    Halted(Box<ShardHalted>),
    /// Records are lost, and the user's policy halts the shard.
    DataLost(Box<DataLoss>),
    /// Kinesis refused to let the shard be read, and no shard was read since the consumer started.
    Refused(BoxError),
    /// The task failed unexpectedly, or the shard does not exist any more.
    Failed(BoxError),
    /// Another process owns the shard's lease, or may own it.
    Lost,
    /// The shard was handed over to the process that asked for it.
    HandedOver,
}

impl ShardEnd {
    /// Creates the end of a task that panicked or was cancelled. The text of a panic may contain anything:
    /// the panic hook has printed it, and redrive does not log it.
    pub(in crate::consumer) fn broken(task: &JoinError) -> Self {
        let how = if task.is_panic() {
            "panicked"
        } else {
            "was cancelled"
        };
        ShardEnd::Failed(format!("a task of the shard {how}").into())
    }
}
