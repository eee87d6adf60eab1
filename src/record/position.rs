//! A place in a shard.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Record, SequenceNumber};

/// A place in a shard: everything up to and including it is settled. Positions sort as KCL sorts checkpoints.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Position {
    /// The place before the first record that arrived at this time or later. An application begins here if it
    /// does not want older records.
    AtTimestamp {
        /// Milliseconds since 1970.
        millis: u64,
    },
    /// The place before the oldest record that the shard still has.
    TrimHorizon,
    /// The place at a record, which is settled.
    Record {
        /// The sequence number of the record.
        sequence_number: SequenceNumber,
        /// The index inside an aggregated record; 0 for a plain record.
        sub_sequence_number: u64,
    },
    /// The place past the last record of a shard that was split, merged or closed.
    ShardEnd,
}

impl Position {
    /// Returns whether this record lies at or before the position.
    pub fn covers(&self, record: &Record) -> bool {
        match self {
            Position::AtTimestamp { .. } | Position::TrimHorizon => false,
            Position::Record {
                sequence_number,
                sub_sequence_number,
            } => {
                (record.sequence_number(), record.sub_sequence_number())
                    <= (sequence_number, *sub_sequence_number)
            }
            Position::ShardEnd => true,
        }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text: Cow<'_, str> = match self {
            Position::AtTimestamp { millis } => format!("AT_TIMESTAMP:{millis}").into(),
            Position::TrimHorizon => "TRIM_HORIZON".into(),
            Position::ShardEnd => "SHARD_END".into(),
            Position::Record {
                sequence_number,
                sub_sequence_number: 0,
            } => sequence_number.as_str().into(),
            Position::Record {
                sequence_number,
                sub_sequence_number,
            } => format!("{sequence_number}:{sub_sequence_number}").into(),
        };
        f.write_str(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_sort_as_kcl_sorts_them() {
        let at = |n: u64, sub| Position::Record {
            sequence_number: n.into(),
            sub_sequence_number: sub,
        };
        let sorted = [
            Position::AtTimestamp { millis: 7 },
            Position::TrimHorizon,
            at(9, 0),
            at(9, 1),
            at(10, 0),
            Position::ShardEnd,
        ];
        assert!(sorted.is_sorted());
        assert_eq!(sorted[3].to_string(), "9:1");
    }

    #[test]
    fn a_position_covers_what_stands_at_or_before_it() {
        let record = |n: u64, sub| {
            Record::builder("s", "shardId-0".into(), n.into())
                .sub_sequence_number(sub)
                .build()
        };
        let position = record(10, 1).position();
        assert!(position.covers(&record(9, 7)));
        assert!(position.covers(&record(10, 1)));
        assert!(!position.covers(&record(10, 2)));
        assert!(!Position::TrimHorizon.covers(&record(0, 0)));
        assert!(!Position::AtTimestamp { millis: 7 }.covers(&record(0, 0)));
        assert!(Position::ShardEnd.covers(&record(99, 0)));
    }
}
