//! Opens one aggregated record into the records inside.

use std::ops::RangeInclusive;

use super::packed::{Contents, Unpacking};
use super::wire::{self, MAGIC, checksum};
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
        if is_small {
            return self.expand(record, into);
        }
        self.open(record, into, |aggregate, contents, hash_keys, into| {
            let out_of_range = contents.check(hash_keys)?;
            into.push(aggregate.clone().packed(contents.records, self.stamps));
            Ok(out_of_range)
        })
    }

    /// Adds the records inside `record`, or `record` itself if it cannot be opened as an aggregate.
    ///
    /// All records are made at once, and a megabyte can hold 170,000 of them.
    pub fn expand(&self, record: Record, into: &mut Vec<Record>) -> Expanded {
        self.open(record, into, |aggregate, contents, hash_keys, into| {
            Unpacking::new(aggregate.clone(), contents, self.stamps).add_all(hash_keys, into)
        })
    }

    /// Adds an aggregate by `deliver`, and any other record as it is. `deliver` checks the records, and returns
    /// the number of those that do not belong to the shard with these hash keys.
    #[inline]
    fn open(
        &self,
        record: Record,
        into: &mut Vec<Record>,
        deliver: impl FnOnce(
            &Record,
            Contents,
            Option<&RangeInclusive<u128>>,
            &mut Vec<Record>,
        ) -> Result<usize, DamagedAggregate>,
    ) -> Expanded {
        if !record.payload().starts_with(&MAGIC) {
            into.push(record);
            return Expanded::Plain;
        }
        let before = into.len();
        let is_partial = self.hash_keys != (0..=u128::MAX);
        // Without a partition key, the stream may have put the record into any shard.
        let hash_keys = (is_partial && record.partition_key().is_some()).then_some(&self.hash_keys);
        let delivered = self.contents(&record).and_then(|contents| {
            let records = contents.records;
            Ok((records, deliver(&record, contents, hash_keys, into)?))
        });
        match delivered {
            Ok((records, 1..)) if self.out_of_range == OutOfRangePolicy::Drop => {
                into.truncate(before);
                Expanded::Dropped { record, records }
            }
            Ok((records, out_of_range)) => Expanded::Aggregate {
                records,
                out_of_range,
            },
            Err(damage) => {
                into.truncate(before);
                into.push(record);
                Expanded::Damaged(damage)
            }
        }
    }

    /// Finds the parts of an aggregate.
    fn contents(&self, record: &Record) -> Result<Contents, DamagedAggregate> {
        let (message, found) = wire::parts(record.payload()).ok_or(DamagedAggregate::Checksum)?;
        if self.verify && checksum(&message) != *found {
            return Err(DamagedAggregate::Checksum);
        }
        Contents::of(message)
    }
}

pub(super) fn format(error: impl Into<BoxError>) -> DamagedAggregate {
    DamagedAggregate::Format(error.into())
}
