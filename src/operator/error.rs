//! Why a shard was not moved.

use crate::checkpoint::CheckpointError;
use crate::dead_letter::{SinkError, TargetError};
use crate::failure::BoxError;
use crate::record::{Position, SequenceNumber, ShardId};

/// Why an operator's wish was not done. But for [`NotStored`](OperatorError::NotStored) nothing was moved.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OperatorError {
    /// Stop the consumer, or [force](super::Shards::force) it.
    #[error(
        "shard {shard} is leased by {owner}, which is running; stop that consumer, or take the shard by force"
    )]
    Alive {
        /// The shard.
        shard: ShardId,
        /// Who, in the store's terms.
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
    /// Everything that the shard holds is settled.
    #[error("nothing to skip: shard {shard} has no unsettled record after {position}")]
    NothingToSkip {
        /// The shard.
        shard: ShardId,
        /// Where it stands.
        position: Position,
    },
    /// Going there would lose records: [skip](super::Shards::skip) them, which makes letters of them.
    #[error(
        "cannot rewind shard {shard} to {to}: its checkpoint is {position}, and records between them are not settled; use `redrive shards skip`"
    )]
    Forward {
        /// The shard.
        shard: ShardId,
        /// Where it stands.
        position: Position,
        /// Where it was to go.
        to: Position,
    },
    /// Nobody can say what would come behind it: go back to a time, or to the trim horizon.
    #[error("shard {shard} has no record {sequence_number}; rewind to a time or to the trim horizon")]
    NoSuchRecord {
        /// The shard.
        shard: ShardId,
        /// The record's.
        sequence_number: SequenceNumber,
    },
    /// Look again: other records come first now.
    #[error("the checkpoint of shard {shard} changed concurrently; retry")]
    Moved {
        /// The shard.
        shard: ShardId,
    },
    /// The sink has not confirmed all letters. Try again: one that is written twice is harmless.
    #[error(
        "the dead-letter sink confirmed {confirmed} of {letters} dead letters; the checkpoint is unchanged"
    )]
    NotConfirmed {
        /// How many it has.
        confirmed: usize,
        /// Of how many.
        letters: usize,
        /// What it said of the first other one.
        #[source]
        source: SinkError,
    },
    /// The letters must not go there.
    #[error("the dead-letter target cannot be used")]
    Target(#[from] TargetError),
    /// The checkpoint store does not answer, or holds what is not understood.
    #[error("the checkpoint store cannot be used")]
    Store(#[from] CheckpointError),
    /// Look where the shard stands before anything else: the new position may have been stored.
    #[error(
        "the store did not confirm the new position of shard {shard}; check it with `redrive shards list`"
    )]
    NotStored {
        /// The shard.
        shard: ShardId,
        /// What it said.
        #[source]
        source: CheckpointError,
    },
    /// Check the name, the region and the account.
    #[error("there is no stream {stream:?} with this shard (in this account and region)")]
    NotFound {
        /// The stream.
        stream: String,
        /// What Kinesis said.
        #[source]
        source: BoxError,
    },
    /// Try again.
    #[error("the stream {stream:?} cannot be read")]
    Unreadable {
        /// The stream.
        stream: String,
        /// What went wrong.
        #[source]
        source: BoxError,
    },
}
