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
        "shard {shard} is held by {owner}, which lives: stop that consumer, or take the shard from it by force"
    )]
    Alive {
        /// The shard.
        shard: ShardId,
        /// Who, in the store's terms.
        owner: String,
    },
    /// The names are wrong, or the application has not read the shard yet.
    #[error(
        "the application {application:?} has stored nothing of shard {shard} of the stream {stream:?}: check the names"
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
    #[error("there is nothing to skip: no record of shard {shard} behind {position} is unsettled")]
    NothingToSkip {
        /// The shard.
        shard: ShardId,
        /// Where it stands.
        position: Position,
    },
    /// Going there would lose records: [skip](super::Shards::skip) them, which makes letters of them.
    #[error(
        "{to} is no way back for shard {shard}, which stands at {position}: records that are not settled would be passed over; skip them instead"
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
    #[error(
        "shard {shard} holds no record {sequence_number}: it was dropped or never there; go back to a time or the trim horizon"
    )]
    NoSuchRecord {
        /// The shard.
        shard: ShardId,
        /// The record's.
        sequence_number: SequenceNumber,
    },
    /// Look again: other records come first now.
    #[error("shard {shard} does not stand any more where it did: look again")]
    Moved {
        /// The shard.
        shard: ShardId,
    },
    /// The sink has not confirmed all letters. Try again: one that is written twice is harmless.
    #[error(
        "the dead-letter sink has confirmed {confirmed} of {letters} letters: the position stays where it is"
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
    #[error("the store did not say that the new position of shard {shard} is stored: look where it stands")]
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
