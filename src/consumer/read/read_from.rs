//! The position from which reading continues.

use aws_sdk_kinesis::primitives::DateTime;
use aws_sdk_kinesis::types::ShardIteratorType;

use crate::record::{Position, SequenceNumber};

/// The position from which reading continues.
#[derive(Debug, Clone)]
pub(in crate::consumer) enum ReadFrom {
    TrimHorizon,
    /// The first record that arrived at this time or later.
    Time(DateTime),
    /// This number. It may be the record of the checkpoint: an aggregate of which not all records are
    /// settled.
    At(SequenceNumber),
    /// This number, at which a subscription says to continue. It need not be the number of a record.
    Continuation(SequenceNumber),
    /// The first record after the last one handed over.
    After(SequenceNumber),
}

impl ReadFrom {
    pub(in crate::consumer) fn checkpoint(position: &Position) -> Self {
        match position {
            Position::Record { sequence_number, .. } => ReadFrom::At(sequence_number.clone()),
            Position::AtTimestamp { millis } => {
                ReadFrom::Time(DateTime::from_millis(i64::try_from(*millis).unwrap_or(i64::MAX)))
            }
            Position::TrimHorizon | Position::ShardEnd => ReadFrom::TrimHorizon,
        }
    }

    /// Returns the type of shard iterator in the Kinesis API.
    pub(in crate::consumer) fn kind(&self) -> ShardIteratorType {
        match self {
            ReadFrom::TrimHorizon => ShardIteratorType::TrimHorizon,
            ReadFrom::Time(_) => ShardIteratorType::AtTimestamp,
            ReadFrom::At(_) | ReadFrom::Continuation(_) => ShardIteratorType::AtSequenceNumber,
            ReadFrom::After(_) => ShardIteratorType::AfterSequenceNumber,
        }
    }

    pub(in crate::consumer) fn number(&self) -> Option<String> {
        match self {
            ReadFrom::At(number) | ReadFrom::Continuation(number) | ReadFrom::After(number) => {
                Some(number.as_str().to_owned())
            }
            _ => None,
        }
    }

    pub(in crate::consumer) fn time(&self) -> Option<DateTime> {
        match self {
            ReadFrom::Time(time) => Some(*time),
            _ => None,
        }
    }
}
