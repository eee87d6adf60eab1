//! How a shard's task ended.

use tokio::task::JoinError;

use crate::consumer::read::data_loss::DataLoss;
use crate::failure::BoxError;
use crate::pipeline::ShardHalted;

/// How a shard's task ended.
#[derive(Debug)]
pub(in crate::consumer) enum ShardEnd {
    /// The shard is closed, everything in it is settled, and its end is stored.
    Ended,
    /// The consumer is shutting down.
    Stopped,
    /// It ran one record at a time for long enough.
    BeginsAnew,
    /// Its position was refused by Kinesis, and another one is stored.
    PositionRefused,
    /// A record can be neither processed nor dead-lettered.
    Halted(Box<ShardHalted>),
    /// Records are lost, and the user wants to know before it goes on.
    DataLost(Box<DataLoss>),
    /// Kinesis has refused to let it be read since the consumer started.
    Refused(BoxError),
    /// Something broke that should not, or the shard is there no more.
    Failed(BoxError),
    /// Another process holds the shard, or may.
    Lost,
    /// It was given to the process that asked for it.
    HandedOver,
}

impl ShardEnd {
    /// A panic's text may hold anything: the panic hook has printed it, and no log of ours does.
    pub(in crate::consumer) fn broken(task: &JoinError) -> Self {
        let how = if task.is_panic() {
            "panicked"
        } else {
            "was cancelled"
        };
        ShardEnd::Failed(format!("a task of the shard {how}").into())
    }
}
