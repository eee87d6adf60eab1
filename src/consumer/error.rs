//! The reasons why a consumer stops.

use crate::checkpoint::CheckpointError;
use crate::consumer::data_loss::DataLoss;
use crate::dead_letter::TargetError;
use crate::failure::BoxError;
use crate::idempotency::StoreError;
use crate::pipeline::ShardHalted;

/// The reason why a consumer stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConsumerError {
    /// The stream does not exist for these credentials in this region.
    #[error("cannot read the stream {stream:?}")]
    StreamNotFound {
        /// The stream's name or ARN.
        stream: String,
        /// The call that failed.
        #[source]
        source: BoxError,
    },
    /// AWS refused the same call several times while the consumer started. The client has no region, its
    /// credentials are missing or not accepted, or a permission is missing. The text names the call and what
    /// to do.
    #[error(transparent)]
    Refused(BoxError),
    /// The checkpoint store cannot be used: it belongs to another program or stream, or it refuses the calls.
    #[error(transparent)]
    CheckpointStore(CheckpointError),
    /// The idempotency store cannot be used: its table does not exist, or it refuses the calls.
    #[error(transparent)]
    IdempotencyStore(StoreError),
    /// The stream distributes its records itself (AUTO): it has no partition keys within which order could be
    /// kept.
    #[error(
        "the stream {stream:?} uses AUTO record distribution, so its records have no partition keys to order \
         by; use RecordOrder::Unordered or RecordOrder::Shard"
    )]
    NoPartitionKeys {
        /// The stream's name.
        stream: String,
    },
    /// The dead-letter target must not be used.
    #[error(transparent)]
    DeadLetterTarget(#[from] TargetError),
    /// Kinesis refuses to describe the stream, but
    /// [`ExpiryPolicy::DeadLetter`](crate::pipeline::ExpiryPolicy::DeadLetter) needs the stream's retention.
    #[error(
        "cannot determine when records of the stream {stream:?} expire; grant \
         kinesis:DescribeStreamSummary, or use ExpiryPolicy::Hold"
    )]
    RetentionUnknown {
        /// The stream's name.
        stream: String,
        /// The error that Kinesis returned.
        #[source]
        source: BoxError,
    },
    /// A record can be neither processed nor dead-lettered. Its shard stops before the record. The other
    /// shards continue until the consumer is stopped.
    #[error("a shard halted")]
    ShardHalted(#[source] Box<ShardHalted>),
    /// Records were lost, and [`ConsumerBuilder::on_data_loss`](crate::consumer::ConsumerBuilder::on_data_loss) decided to halt. The shard stops at its
    /// checkpoint. The other shards continue until the consumer is stopped.
    #[error("records are lost")]
    DataLoss(#[source] Box<DataLoss>),
}
