//! Opens one aggregated record into the records inside.

use std::ops::RangeInclusive;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;

#[cfg(any(feature = "kinesis", feature = "lambda"))]
use super::packed::Contents;
use super::stamp;
use super::wire::{CHECKSUM_BYTES, MAGIC, Message, checksum, hash_key};
use crate::failure::BoxError;
use crate::record::Record;

/// Opens aggregated records.
///
/// A record that only looks like an aggregate, because its checksum, format or key table is wrong, is
/// delivered unchanged and never dropped.
#[derive(Debug, Clone)]
pub struct Deaggregator {
    hash_keys: RangeInclusive<u128>,
    out_of_range: OutOfRangePolicy,
    verify: bool,
    stamps: bool,
}

/// The treatment of records inside an aggregate whose hash key belongs to another shard.
///
/// Such records come from a producer that did not know of a reshard yet. The KPL notices and puts them again,
/// to the right shard; other producers do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum OutOfRangePolicy {
    /// The records are delivered, and reported. If the KPL is the producer, they may be delivered twice.
    #[default]
    Deliver,
    /// The whole aggregate is dropped, and reported. Records that the KPL did not put are lost. KCL drops
    /// such aggregates too, without a report.
    Drop,
}

/// The outcome of opening a record.
#[derive(Debug)]
#[must_use]
#[non_exhaustive]
pub enum Expanded {
    /// The record is an ordinary one and is delivered unchanged.
    Plain,
    /// The record is an aggregate; the records inside are delivered.
    #[non_exhaustive]
    Aggregate {
        /// The number of records inside.
        records: usize,
        /// The number of records inside that belong to another shard.
        out_of_range: usize,
    },
    /// The record is an aggregate and was dropped: [`OutOfRangePolicy::Drop`].
    #[non_exhaustive]
    Dropped {
        /// The record as it was read.
        record: Record,
        /// The number of records inside.
        records: usize,
    },
    /// The record begins like an aggregate but cannot be opened; it is delivered unchanged.
    Damaged(DamagedAggregate),
}

/// The reason why a record that begins like an aggregate cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DamagedAggregate {
    /// The bytes are not those that were put, or look like an aggregate only by chance.
    #[error("the checksum of the aggregated record is wrong")]
    Checksum,
    /// The content is not a message of this format.
    #[error("the aggregated record cannot be decoded")]
    Format(#[source] BoxError),
    /// A record inside lacks a field, or points past the tables of keys.
    #[error(
        "record {record} inside the aggregated record is incomplete, or names a key that the aggregate lacks"
    )]
    Record {
        /// The index of the record inside, from 0.
        record: usize,
    },
    /// The aggregate contains no records.
    #[error("the aggregated record is empty")]
    Empty,
}

/// The maximum size of an aggregate that is opened at once, in bytes. The KPL makes a larger one only if
/// configured to.
#[cfg(any(feature = "kinesis", feature = "lambda"))]
const SMALL: usize = 64 * 1024;
/// The number of records in a batch from which on aggregates stay packed. A page of Kinesis has at most
/// 10,000.
#[cfg(any(feature = "kinesis", feature = "lambda"))]
const MANY: usize = 16 * 1024;

impl Default for Deaggregator {
    fn default() -> Self {
        Deaggregator::new()
    }
}

impl Deaggregator {
    /// Creates a deaggregator that delivers every record.
    pub const fn new() -> Self {
        Deaggregator {
            hash_keys: 0..=u128::MAX,
            out_of_range: OutOfRangePolicy::Deliver,
            verify: true,
            stamps: false,
        }
    }

    /// Sets the hash keys of the shard that is read. Default: all hash keys, so that no record is out of
    /// range.
    #[must_use]
    pub const fn hash_keys(mut self, of_shard: RangeInclusive<u128>) -> Self {
        self.hash_keys = of_shard;
        self
    }

    /// Sets the treatment of records outside the shard's [hash keys](Deaggregator::hash_keys). Default:
    /// [`OutOfRangePolicy::Deliver`].
    #[must_use]
    pub const fn out_of_range_policy(mut self, policy: OutOfRangePolicy) -> Self {
        self.out_of_range = policy;
        self
    }

    /// Skips the checksum, which takes most of the time of opening. Use this only if no other record of the
    /// stream begins with an aggregate's four bytes.
    #[must_use]
    pub const fn without_checksum(mut self) -> Self {
        self.verify = false;
        self
    }

    /// Reads the stamps with which `redrive replay --stamp` puts dead letters back into a stream
    /// ([`Record::redriven`]). Any producer of the stream can write such a stamp, with any count: enable this
    /// only if the producers are trusted. Default: stamps are ignored.
    #[must_use]
    pub const fn redrive_stamps(mut self) -> Self {
        self.stamps = true;
        self
    }

    /// Works like [`expand`](Deaggregator::expand), but adds a large aggregate, or one behind many records,
    /// as one packed record. Its records are made when a pipeline takes them in.
    #[cfg(any(feature = "kinesis", feature = "lambda"))]
    pub(crate) fn expand_or_pack(&self, record: Record, into: &mut Vec<Record>) -> Expanded {
        let payload = record.payload();
        let is_small = payload.len() <= SMALL && into.len() < MANY;
        if is_small || !payload.starts_with(&MAGIC) {
            return self.expand(record, into);
        }
        match self.pack(&record) {
            Ok((records, out_of_range))
                if out_of_range > 0 && self.out_of_range == OutOfRangePolicy::Drop =>
            {
                Expanded::Dropped { record, records }
            }
            Ok((records, out_of_range)) => {
                into.push(record.packed(records, self.stamps));
                Expanded::Aggregate {
                    records,
                    out_of_range,
                }
            }
            Err(damage) => {
                into.push(record);
                Expanded::Damaged(damage)
            }
        }
    }

    /// Checks an aggregate. Returns the number of its records, and the number of those that belong to another
    /// shard.
    #[cfg(any(feature = "kinesis", feature = "lambda"))]
    fn pack(&self, record: &Record) -> Result<(usize, usize), DamagedAggregate> {
        let contents = Contents::of(self.message(record.payload())?)?;
        let hash_keys = Some(&self.hash_keys);
        // Without a partition key, the stream may have put the record into any shard.
        let hash_keys =
            hash_keys.filter(|keys| record.partition_key().is_some() && **keys != (0..=u128::MAX));
        let out_of_range = contents.check(hash_keys)?;
        Ok((contents.records, out_of_range))
    }

    /// Adds the records inside `record`, or `record` itself if it cannot be opened as an aggregate.
    ///
    /// All records are made at once, and a megabyte can hold 170,000 of them.
    pub fn expand(&self, record: Record, into: &mut Vec<Record>) -> Expanded {
        if !record.payload().starts_with(&MAGIC) {
            into.push(record);
            return Expanded::Plain;
        }
        match self.open(record.payload()) {
            Ok(opened) => self.deliver(record, opened, into),
            Err(damage) => {
                into.push(record);
                Expanded::Damaged(damage)
            }
        }
    }

    /// Returns the message between the magic bytes and the checksum.
    fn message(&self, payload: &Bytes) -> Result<Bytes, DamagedAggregate> {
        let message = MAGIC.len()..payload.len().saturating_sub(CHECKSUM_BYTES);
        let Some(bytes) = payload.get(message.clone()) else {
            return Err(DamagedAggregate::Checksum);
        };
        if self.verify && checksum(bytes) != payload[message.end..] {
            return Err(DamagedAggregate::Checksum);
        }
        Ok(payload.slice(message))
    }

    fn open(&self, payload: &Bytes) -> Result<Opened, DamagedAggregate> {
        Opened::new(Message::decode(self.message(payload)?).map_err(format)?)
    }

    fn deliver(&self, record: Record, opened: Opened, into: &mut Vec<Record>) -> Expanded {
        let records = opened.message.records.len();
        let out_of_range = match record.partition_key() {
            Some(_) if self.hash_keys != (0..=u128::MAX) => opened.out_of(&self.hash_keys),
            // Without a partition key, the stream may have put the record into any shard.
            _ => 0,
        };
        if out_of_range > 0 && self.out_of_range == OutOfRangePolicy::Drop {
            return Expanded::Dropped { record, records };
        }
        let aggregate = record.aggregate();
        into.reserve(records);
        for (number, inner) in (0..).zip(opened.message.records) {
            let key = index(inner.partition_key).and_then(|index| opened.partition_keys.get(index));
            if let (Some(key), Some(data)) = (key, inner.data) {
                let redriven = self.stamps.then(|| stamp::redriven(&inner.tags)).flatten();
                into.push(aggregate.record(number, key.clone(), data, redriven));
            }
        }
        Expanded::Aggregate {
            records,
            out_of_range,
        }
    }
}

/// A decoded aggregate that is complete.
struct Opened {
    message: Message,
    partition_keys: Vec<Arc<str>>,
}

impl Opened {
    fn new(message: Message) -> Result<Self, DamagedAggregate> {
        if message.records.is_empty() {
            return Err(DamagedAggregate::Empty);
        }
        for (number, inner) in message.records.iter().enumerate() {
            let key = index(inner.partition_key);
            let has_key = key.is_some_and(|key| key < message.partition_keys.len());
            let hash_key = inner.explicit_hash_key;
            let has_hash_key = hash_key.is_none()
                || index(hash_key).is_some_and(|key| key < message.explicit_hash_keys.len());
            if !has_key || !has_hash_key || inner.data.is_none() {
                return Err(DamagedAggregate::Record { record: number });
            }
        }
        let text = |key: &Bytes| Ok(std::str::from_utf8(key).map_err(format)?.into());
        let partition_keys = message.partition_keys.iter().map(text);
        Ok(Opened {
            partition_keys: partition_keys.collect::<Result<_, DamagedAggregate>>()?,
            message,
        })
    }

    /// Returns the number of records that belong to another shard.
    fn out_of(&self, hash_keys: &RangeInclusive<u128>) -> usize {
        let explicit = |key: &Bytes| std::str::from_utf8(key).ok()?.parse().ok();
        let explicit: Vec<Option<u128>> = self.message.explicit_hash_keys.iter().map(explicit).collect();
        let keys = self.message.partition_keys.iter();
        let keys: Vec<u128> = keys.map(|key| hash_key(key)).collect();
        let records = self.message.records.iter();
        let within = |key: Option<u128>| key.is_some_and(|key| hash_keys.contains(&key));
        records
            .filter(|inner| match inner.explicit_hash_key {
                Some(_) => !within(index(inner.explicit_hash_key).and_then(|key| explicit[key])),
                None => !within(index(inner.partition_key).map(|key| keys[key])),
            })
            .count()
    }
}

fn index(index: Option<u64>) -> Option<usize> {
    usize::try_from(index?).ok()
}

pub(super) fn format(error: impl Into<BoxError>) -> DamagedAggregate {
    DamagedAggregate::Format(error.into())
}
