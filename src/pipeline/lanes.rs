//! Lanes, the ordered sub-streams of a shard: which record waits for which.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, Hasher};

use foldhash::quality::RandomState;

use super::window::Ordinal;
use crate::record::Record;

/// The order in which the records of a shard are processed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum RecordOrder {
    /// Records are processed one after the other, in the shard's order. One failing record delays all others.
    Shard,
    /// Records of one partition key are processed one after the other; different keys run concurrently.
    #[default]
    PartitionKey,
    /// All records run concurrently.
    Unordered,
}

/// The last record of each lane that has an unsettled record.
///
/// A 64-bit hash stands for a key, so that no key is copied. The seed is random, so that a producer cannot
/// prepare keys that collide. Two keys with the same hash share a lane: they wait for each other, and each
/// keeps its order.
#[derive(Debug)]
pub(crate) enum Lanes {
    Shard(Option<Ordinal>),
    Keys {
        seed: RandomState,
        tails: HashMap<u64, Ordinal, BuildHasherDefault<Hashed>>,
    },
    Unordered,
}

impl Lanes {
    pub(crate) fn new(ordering: RecordOrder) -> Self {
        match ordering {
            RecordOrder::Shard => Lanes::Shard(None),
            RecordOrder::PartitionKey => Lanes::Keys {
                seed: RandomState::default(),
                tails: HashMap::default(),
            },
            RecordOrder::Unordered => Lanes::Unordered,
        }
    }

    /// Returns the lane of a record.
    #[inline]
    pub(crate) fn of(&self, record: &Record) -> u64 {
        match self {
            // Records without a key (AUTO distribution) share one lane. This is stricter than the order per
            // key.
            Lanes::Keys { seed, .. } => record.partition_key().map_or(0, |key| seed.hash_one(key)),
            Lanes::Shard(_) | Lanes::Unordered => 0,
        }
    }

    /// Adds a record to its lane. Returns the record that it waits behind; `None` if it may start at once.
    #[inline]
    pub(crate) fn enter(&mut self, lane: u64, ordinal: Ordinal) -> Option<Ordinal> {
        match self {
            Lanes::Shard(tail) => tail.replace(ordinal),
            Lanes::Keys { tails, .. } => tails.insert(lane, ordinal),
            Lanes::Unordered => None,
        }
    }

    /// Removes a lane whose last record has settled.
    #[inline]
    pub(crate) fn leave(&mut self, lane: u64) {
        match self {
            Lanes::Shard(tail) => *tail = None,
            Lanes::Keys { tails, .. } => {
                tails.remove(&lane);
            }
            Lanes::Unordered => {}
        }
    }
}

/// Passes a hash through unchanged, as lanes are hashes already.
#[derive(Debug, Default)]
pub(crate) struct Hashed(u64);

impl Hasher for Hashed {
    fn write(&mut self, bytes: &[u8]) {
        // The lanes write one `u64`; anything else still gives a hash.
        for &byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: Option<&str>) -> Record {
        let builder = Record::builder("s", "shardId-0".into(), 1.into());
        match key {
            Some(key) => builder.partition_key(key).build(),
            None => builder.build(),
        }
    }

    #[test]
    fn records_of_one_key_wait_for_each_other_and_for_nobody_else() {
        let mut lanes = Lanes::new(RecordOrder::PartitionKey);
        let (a, b) = (lanes.of(&record(Some("a"))), lanes.of(&record(Some("b"))));
        assert_ne!(a, b);
        assert_eq!(lanes.enter(a, 0), None);
        assert_eq!(lanes.enter(b, 1), None);
        assert_eq!(lanes.enter(a, 2), Some(0));
        assert_eq!(lanes.enter(a, 3), Some(2));
        lanes.leave(b);
        assert_eq!(lanes.enter(b, 4), None);
    }

    #[test]
    fn in_shard_order_every_record_waits_for_the_last() {
        let mut lanes = Lanes::new(RecordOrder::Shard);
        assert_eq!(lanes.enter(lanes.of(&record(Some("a"))), 0), None);
        assert_eq!(lanes.enter(lanes.of(&record(Some("b"))), 1), Some(0));
        lanes.leave(0);
        assert_eq!(lanes.enter(0, 2), None);
    }

    #[test]
    fn without_order_nobody_waits() {
        let mut lanes = Lanes::new(RecordOrder::Unordered);
        assert_eq!(lanes.enter(0, 0), None);
        assert_eq!(lanes.enter(0, 1), None);
    }
}
