//! Errors of operator actions on a shard.

use super::HandOverRefusal;
use crate::checkpoint::CheckpointError;
use crate::config::ConfigError;
use crate::dead_letter::{SinkError, TargetError};
use crate::failure::BoxError;
use crate::record::{Position, SequenceNumber, ShardId};

/// The reason why an operator action failed. Except for [`NotStored`](OperatorError::NotStored), the shard
/// was not moved.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OperatorError {
    /// The shard's owner is running. Stop its consumer, or [force](super::Shards::force) the action.
    #[error(
        "shard {shard} is leased by {owner}, which is running; stop that consumer, or take the shard by force"
    )]
    Alive {
        /// The shard.
        shard: ShardId,
        /// The owner, as named in the checkpoint store.
        owner: String,
    },
    /// The names are wrong, or the application has not read the shard yet.
    #[error(
        "the application {application:?} has no checkpoint for shard {shard} of the stream {stream:?}; check the names"
    )]
    NotBegun {
        /// The application.
        application: String,
        /// The stream.
        stream: String,
        /// The shard.
        shard: ShardId,
    },
    /// All records of the shard are settled.
    #[error("nothing to skip: shard {shard} has no unsettled record after {position}")]
    NothingToSkip {
        /// The shard.
        shard: ShardId,
        /// The position of the shard's checkpoint.
        position: Position,
    },
    /// The rewind would pass over unsettled records. [Skip](super::Shards::skip) them, which makes dead
    /// letters of them.
    #[error(
        "cannot rewind shard {shard} to {to}: its checkpoint is {position}, and records between them are not settled; use `redrive shards skip`"
    )]
    Forward {
        /// The shard.
        shard: ShardId,
        /// The position of the shard's checkpoint.
        position: Box<Position>,
        /// The requested position.
        to: Box<Position>,
    },
    /// The shard has no such record, and the records that follow it are unknown. Rewind to a time or to the
    /// trim horizon.
    #[error("shard {shard} has no record {sequence_number}; rewind to a time or to the trim horizon")]
    NoSuchRecord {
        /// The shard.
        shard: ShardId,
        /// The sequence number of the record.
        sequence_number: SequenceNumber,
    },
    /// Other records are the first unsettled ones now. Repeat the skip to see them.
    #[error("the checkpoint of shard {shard} changed concurrently; retry")]
    Moved {
        /// The shard.
        shard: ShardId,
    },
    /// The shard is not handed over.
    #[error(transparent)]
    Refused(#[from] HandOverRefusal),
    /// The sink has not confirmed all dead letters. Retry: a dead letter that is written twice is harmless.
    #[error(
        "the dead-letter sink confirmed {confirmed} of {letters} dead letters; the checkpoint is unchanged"
    )]
    NotConfirmed {
        /// The number of dead letters that the sink has confirmed.
        confirmed: usize,
        /// The number of dead letters to write.
        letters: usize,
        /// The sink's error for the first dead letter that it did not confirm.
        #[source]
        source: SinkError,
    },
    /// The target must not receive the dead letters.
    #[error("the dead-letter target cannot be used")]
    Target(#[from] TargetError),
    /// The stream is neither a name nor an ARN, or a setting of the checkpoint store cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The checkpoint store does not respond, or has a checkpoint that cannot be read.
    #[error("the checkpoint store cannot be used")]
    Store(#[from] CheckpointError),
    /// The new position may be stored or not. List the shard before any other action.
    #[error(
        "the store did not confirm the new position of shard {shard}; check it with `redrive shards list`"
    )]
    NotStored {
        /// The shard.
        shard: ShardId,
        /// The error of the checkpoint store.
        #[source]
        source: CheckpointError,
    },
    /// Kinesis has no such stream or shard. Check the name, the region and the account.
    #[error("there is no stream {stream:?} with this shard (in this account and region)")]
    NotFound {
        /// The stream.
        stream: String,
        /// The error of Kinesis.
        #[source]
        source: BoxError,
    },
    /// Kinesis did not return the records or shards. Retry.
    #[error("the stream {stream:?} cannot be read")]
    Unreadable {
        /// The stream.
        stream: String,
        /// The cause.
        #[source]
        source: BoxError,
    },
}
