//! The position at which an application starts.

use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::lineage::{Lineage, parents_first};
use crate::checkpoint::Checkpoint;
use crate::record::{Position, SequenceNumber, ShardId};
use crate::rfc3339;
use crate::wall_clock;

/// The position of shards without a checkpoint when an application starts for the first time.
///
/// The position is resolved once. It is stored as each shard's checkpoint before the first record is read,
/// and a restart continues from there. Shards that a later split or merge creates are always read from their
/// oldest record.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum StartingPosition {
    /// The oldest record in the stream.
    #[default]
    TrimHorizon,
    /// The records that arrive from now on: from the time, by this machine's clock, at which the application
    /// first starts. Records that arrive while the application is down are not missed.
    Latest,
    /// The first record that arrived at this time or later. The time must not be in the future.
    AtTimestamp(SystemTime),
    /// The first record after each of these. Shards that are not named here start at their oldest record.
    AfterSequenceNumbers(HashMap<ShardId, SequenceNumber>),
}

impl fmt::Display for StartingPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartingPosition::TrimHorizon => f.write_str("TRIM_HORIZON"),
            StartingPosition::Latest => f.write_str("LATEST"),
            StartingPosition::AtTimestamp(time) => {
                write!(f, "AT_TIMESTAMP {}", rfc3339::format_seconds(*time))
            }
            StartingPosition::AfterSequenceNumbers(numbers) => {
                write!(f, "AFTER_SEQUENCE_NUMBER of {} shards", numbers.len())
            }
        }
    }
}

/// The position behind all records inside an aggregate. (KCL keeps the number as a Java `long`.)
const LAST_INSIDE: u64 = i64::MAX as u64;

impl StartingPosition {
    /// Returns the checkpoints to store before anything is read.
    pub(in crate::consumer) fn resolve(&self, found: &Lineage) -> Vec<(ShardId, Checkpoint)> {
        // If only some shards have a row with a time, an earlier first start was interrupted, and this start
        // completes it. Nothing was read then. A row with `read_until` does not count: an operator may have
        // rewound that shard to a time.
        let unread = found.checkpoints.values();
        let begun = unread
            .filter(|stored| stored.read_until().is_none())
            .find_map(|stored| match stored.position() {
                begun @ Position::AtTimestamp { .. } => Some(begun.clone()),
                _ => None,
            });
        if begun.is_none() && !(found.checkpoints.is_empty() && found.unreadable.is_empty()) {
            return Vec::new();
        }
        let now = wall_clock::now();
        let position = |shard: &ShardId| match (&begun, self) {
            (Some(begun), _) => Some(begun.clone()),
            (None, StartingPosition::TrimHorizon) => None,
            (None, StartingPosition::Latest) => Some(at(now)),
            (None, StartingPosition::AtTimestamp(time)) => Some(at(*time)),
            (None, StartingPosition::AfterSequenceNumbers(numbers)) => {
                let sequence_number = numbers.get(shard)?.clone();
                Some(Position::Record {
                    sequence_number,
                    sub_sequence_number: LAST_INSIDE,
                })
            }
        };
        // No reader may see a child's row before that of its parent.
        let shards = parents_first(&found.shards).into_iter();
        let shards = shards.map(|shard| ShardId::from(shard.shard_id()));
        let lacking = shards.filter(|shard| !found.has_row(shard));
        lacking
            .filter_map(|shard| Some((shard.clone(), Checkpoint::at(position(&shard)?))))
            .collect()
    }
}

fn at(time: SystemTime) -> Position {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    Position::AtTimestamp {
        millis: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
    }
}

#[cfg(test)]
mod tests {
    use aws_sdk_kinesis::types::{HashKeyRange, SequenceNumberRange, Shard};

    use super::*;

    fn found(checkpoints: &[(&str, Position)]) -> Lineage {
        let shard = |name: &str| {
            let keys = HashKeyRange::builder()
                .starting_hash_key("0")
                .ending_hash_key("1");
            let numbers = SequenceNumberRange::builder().starting_sequence_number("1");
            let shard = Shard::builder().shard_id(name);
            let shard = shard.hash_key_range(keys.build().expect("complete"));
            let shard = shard.sequence_number_range(numbers.build().expect("complete"));
            shard.build().expect("complete")
        };
        let stored = |(name, position): &(&str, Position)| ((*name).into(), Checkpoint::at(position.clone()));
        Lineage {
            shards: ["a", "b", "c"].map(shard).into(),
            checkpoints: checkpoints.iter().map(stored).collect(),
            unreadable: Default::default(),
            outdated: Default::default(),
            hidden: Default::default(),
            of_other_stream: None,
        }
    }

    fn resolved(start: &StartingPosition, checkpoints: &[(&str, Position)]) -> Vec<(String, Position)> {
        let begun = start.resolve(&found(checkpoints)).into_iter();
        begun
            .map(|(shard, checkpoint)| (shard.into(), checkpoint.position().clone()))
            .collect()
    }

    #[test]
    fn a_first_start_has_one_time_for_all_shards() {
        let time = UNIX_EPOCH + Duration::from_millis(1_700_000_000_123);
        let at = |millis| Position::AtTimestamp { millis };
        assert_eq!(
            resolved(&StartingPosition::AtTimestamp(time), &[]),
            ["a", "b", "c"].map(|shard| (shard.to_owned(), at(1_700_000_000_123)))
        );
        let latest = resolved(&StartingPosition::Latest, &[]);
        assert_eq!(latest.len(), 3);
        assert!(latest.iter().all(|(_, position)| *position == latest[0].1));
        assert_eq!(resolved(&StartingPosition::TrimHorizon, &[]), []);
    }

    #[test]
    fn a_first_start_that_was_cut_short_is_ended_with_its_own_time() {
        let at = |millis| Position::AtTimestamp { millis };
        assert_eq!(
            resolved(&StartingPosition::Latest, &[("b", at(7))]),
            [("a".to_owned(), at(7)), ("c".to_owned(), at(7))]
        );
    }

    #[test]
    fn an_application_that_has_begun_is_not_asked_again() {
        for position in [Position::TrimHorizon, Position::ShardEnd] {
            assert_eq!(resolved(&StartingPosition::Latest, &[("b", position)]), []);
        }
    }

    /// The other shards must not skip their records from before that time.
    #[test]
    fn read_until_of_one_shard_is_no_start_for_other_shards() {
        let time = UNIX_EPOCH + Duration::from_millis(7);
        let mut found = found(&[]);
        let back = Checkpoint::at(at(time)).with_read_until(time);
        found.checkpoints.insert("b".into(), back);
        assert_eq!(StartingPosition::Latest.resolve(&found), []);
    }

    #[test]
    fn behind_a_record_means_behind_all_that_it_holds() {
        let numbers = HashMap::from([("b".into(), 5.into())]);
        let start = StartingPosition::AfterSequenceNumbers(numbers);
        let behind = Position::Record {
            sequence_number: 5.into(),
            sub_sequence_number: LAST_INSIDE,
        };
        assert_eq!(resolved(&start, &[]), [("b".to_owned(), behind)]);
    }
}
