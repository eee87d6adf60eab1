//! The origin of a record that was a dead letter and was replayed.

use std::time::SystemTime;

use crate::record::DeadLetterId;

/// The origin of a record that failed before, became a dead letter and was replayed
/// ([`Record::redriven`](super::Record::redriven)).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Redriven {
    /// The [origin](crate::dead_letter::DeadLetter::origin) of the record's dead letters. It stays the same,
    /// however often the record is replayed.
    pub origin: DeadLetterId,
    /// The number of replays of the record, including this one: 1 or more.
    pub count: u32,
    /// The time at which Kinesis received the record first, if known.
    pub arrival: Option<SystemTime>,
}

impl Redriven {
    /// Creates the origin of a record that is replayed for the `count`th time.
    pub fn new(origin: DeadLetterId, count: u32, arrival: Option<SystemTime>) -> Self {
        Redriven {
            origin,
            count,
            arrival,
        }
    }
}
