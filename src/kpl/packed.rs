//! The contents of an aggregate, whose records are made one by one.
//!
//! An aggregate of 10 MiB can hold 1.7 million records without a payload, which take 270 MB once all are
//! made. An aggregate is therefore checked as a whole without making any record. A large one stays packed until
//! its records enter the window.

use std::ops::{Range, RangeInclusive};
use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;

use super::deaggregator::{DamagedAggregate, format};
use super::fields::{Fields, Value};
use super::stamp;
use super::wire::{self, Tag, hash_key};
use crate::record::{Aggregate, Record, Text};

/// The field numbers of an aggregate's message, and of a record in it.
const PARTITION_KEY: u32 = 1;
const EXPLICIT_HASH_KEY: u32 = 2;
const RECORD: u32 = 3;
const DATA: u32 = 3;
const TAG: u32 = 4;

/// The places of all parts in an aggregate's message.
pub(super) struct Contents {
    message: Bytes,
    /// All partition keys in one text, which the records share. It is a copy of a part of the message, so it
    /// takes less memory than the message, which the records keep as well.
    keys: Arc<str>,
    /// The places of the partition keys in this text.
    partition_keys: Vec<Range<u32>>,
    explicit_hash_keys: Vec<Range<u32>>,
    pub(super) records: usize,
}

impl Contents {
    /// Finds the parts of a message without decoding its records.
    pub(super) fn of(message: Bytes) -> Result<Self, DamagedAggregate> {
        let mut contents = Contents {
            message: Bytes::new(),
            keys: Arc::default(),
            partition_keys: Vec::new(),
            explicit_hash_keys: Vec::new(),
            records: 0,
        };
        let mut text = Vec::new();
        for field in Fields::of(&message, 0..message.len()) {
            match field? {
                (PARTITION_KEY, Value::Bytes(place)) => {
                    let start = text.len();
                    text.extend_from_slice(message.get(place).unwrap_or_default());
                    contents.partition_keys.push(narrow(start..text.len())?);
                }
                (EXPLICIT_HASH_KEY, Value::Bytes(place)) => contents.explicit_hash_keys.push(narrow(place)?),
                (RECORD, Value::Bytes(_)) => contents.records += 1,
                (PARTITION_KEY | EXPLICIT_HASH_KEY | RECORD, _) => return Err(wrong_type()),
                _ => {}
            }
            // A valid aggregate uses each key in a record. More keys than records fit into the message would
            // only fill the memory.
            let keys = contents
                .partition_keys
                .len()
                .max(contents.explicit_hash_keys.len());
            if keys > message.len() / SMALLEST_RECORD {
                return Err(format("the aggregate has more keys than it has room for records"));
            }
        }
        if contents.records == 0 {
            return Err(DamagedAggregate::Empty);
        }
        contents.keys = std::str::from_utf8(&text).map_err(format)?.into();
        // Two halves of a character make a valid text, but not two valid keys.
        let mut ends = contents.partition_keys.iter().map(|key| key.end as usize);
        if !ends.all(|end| contents.keys.is_char_boundary(end)) {
            return Err(format("a partition key of the aggregate is not UTF-8"));
        }
        contents.message = message;
        Ok(contents)
    }

    /// Checks that the aggregate is complete. Returns the number of records that belong to another shard than
    /// the one with these hash keys.
    #[cfg_attr(not(any(feature = "kinesis", feature = "lambda")), allow(dead_code))]
    pub(super) fn check(&self, hash_keys: Option<&RangeInclusive<u128>>) -> Result<usize, DamagedAggregate> {
        let mut shard = ShardCheck::of(self, hash_keys);
        for (number, place) in self.records(0).enumerate() {
            shard.count(self, &self.complete(number, place?)?);
        }
        Ok(shard.out_of_range)
    }

    /// Reads the record at a place of the message, and checks that it is complete.
    #[inline]
    fn complete(&self, number: usize, place: Range<usize>) -> Result<Complete<'_>, DamagedAggregate> {
        let inside = Inside::read(&self.message, place)?;
        let key = of_index(inside.partition_key, &self.partition_keys);
        let explicit_hash_key = of_index(inside.explicit_hash_key, &self.explicit_hash_keys);
        match (key, inside.data) {
            (Some((index, key)), Some(data))
                if inside.explicit_hash_key.is_some() == explicit_hash_key.is_some() =>
            {
                Ok(Complete {
                    index,
                    key,
                    explicit_hash_key: explicit_hash_key.map(|(_, place)| place),
                    data,
                })
            }
            _ => Err(DamagedAggregate::Record { record: number }),
        }
    }

    /// Returns the places of the records from `at` on.
    #[inline]
    fn records(&self, at: usize) -> impl Iterator<Item = Result<Range<usize>, DamagedAggregate>> {
        let fields = Fields::of(&self.message, at..self.message.len());
        fields.filter_map(|field| match field {
            Ok((RECORD, Value::Bytes(place))) => Some(Ok(place)),
            Ok(_) => None,
            Err(damage) => Some(Err(damage)),
        })
    }

    /// Returns a partition key.
    #[inline]
    fn key(&self, place: &Range<u32>) -> Text {
        Text::Part {
            of: self.keys.clone(),
            place: place.clone(),
        }
    }

    fn explicit_hash_key(&self, place: &Range<u32>) -> Option<u128> {
        let bytes = self.message.get(place.start as usize..place.end as usize)?;
        std::str::from_utf8(bytes).ok()?.parse().ok()
    }
}

/// A record inside an aggregate, without its tags.
#[derive(Default)]
struct Inside {
    partition_key: Option<u64>,
    explicit_hash_key: Option<u64>,
    data: Option<Range<usize>>,
}

impl Inside {
    /// Reads the record at a place of a message.
    #[inline]
    fn read(message: &[u8], place: Range<usize>) -> Result<Self, DamagedAggregate> {
        let mut inside = Inside::default();
        for field in Fields::of(message, place) {
            match field? {
                (PARTITION_KEY, Value::Number(index)) => inside.partition_key = Some(index),
                (EXPLICIT_HASH_KEY, Value::Number(index)) => inside.explicit_hash_key = Some(index),
                (DATA, Value::Bytes(data)) => inside.data = Some(data),
                (PARTITION_KEY | EXPLICIT_HASH_KEY | DATA, _) => return Err(wrong_type()),
                _ => {}
            }
        }
        Ok(inside)
    }
}

/// A record inside an aggregate that has all its parts.
struct Complete<'a> {
    /// The index of the partition key.
    index: usize,
    key: &'a Range<u32>,
    explicit_hash_key: Option<&'a Range<u32>>,
    data: Range<usize>,
}

/// Counts the records that belong to another shard.
struct ShardCheck<'a> {
    /// The hash keys of the shard. `None`: all records belong to it.
    hash_keys: Option<&'a RangeInclusive<u128>>,
    /// Tells for each partition key, by its index, whether the key belongs to the shard. `None`: the MD5 of the key is
    /// not computed yet.
    known: Vec<Option<bool>>,
    out_of_range: usize,
}

impl<'a> ShardCheck<'a> {
    fn of(contents: &Contents, hash_keys: Option<&'a RangeInclusive<u128>>) -> Self {
        ShardCheck {
            hash_keys,
            known: vec![None; hash_keys.map_or(0, |_| contents.partition_keys.len())],
            out_of_range: 0,
        }
    }

    #[inline]
    fn count(&mut self, contents: &Contents, record: &Complete<'_>) {
        if let Some(hash_keys) = self.hash_keys {
            self.count_within(hash_keys, contents, record);
        }
    }

    fn count_within(&mut self, hash_keys: &RangeInclusive<u128>, contents: &Contents, record: &Complete<'_>) {
        let is_within = match record.explicit_hash_key {
            Some(place) => {
                let key = contents.explicit_hash_key(place);
                key.is_some_and(|key| hash_keys.contains(&key))
            }
            None => self.known.get_mut(record.index).is_some_and(|known| {
                let compute = || hash_keys.contains(&hash_key(contents.key(record.key).as_bytes()));
                *known.get_or_insert_with(compute)
            }),
        };
        self.out_of_range += usize::from(!is_within);
    }
}

/// The size of the smallest complete record in bytes: its frame, its key's index, and no data.
const SMALLEST_RECORD: usize = 6;

/// The records of an aggregate, made one by one.
pub(crate) struct Unpacking {
    aggregate: Record,
    source: Aggregate,
    /// True if redrive stamps on the records are read.
    stamps: bool,
    contents: Contents,
    at: usize,
    made: u64,
}

impl Unpacking {
    /// Starts at the first record of a packed aggregate. Returns `None` if `aggregate` is not an aggregate.
    #[cfg_attr(not(any(feature = "kinesis", feature = "lambda")), allow(dead_code))]
    pub(crate) fn of(aggregate: Record) -> Option<Self> {
        let (message, _) = wire::parts(aggregate.payload())?;
        let contents = Contents::of(message).ok()?;
        let stamps = aggregate.has_stamps();
        Some(Unpacking::new(aggregate, contents, stamps))
    }

    /// Starts at the first record.
    pub(super) fn new(aggregate: Record, contents: Contents, stamps: bool) -> Self {
        Unpacking {
            source: aggregate.aggregate(),
            stamps,
            aggregate,
            contents,
            at: 0,
            made: 0,
        }
    }

    /// Returns the aggregate itself.
    pub(crate) fn aggregate(&self) -> &Record {
        &self.aggregate
    }

    /// Returns the number of records that are still to be made.
    pub(crate) fn left(&self) -> usize {
        let made = usize::try_from(self.made).unwrap_or(usize::MAX);
        self.contents.records.saturating_sub(made)
    }

    /// Adds all records. Returns the number of records that belong to another shard than the one with these hash
    /// keys. After an error, some of the records are added.
    pub(super) fn add_all(
        mut self,
        hash_keys: Option<&RangeInclusive<u128>>,
        into: &mut Vec<Record>,
    ) -> Result<usize, DamagedAggregate> {
        // As many as there can be: a damaged aggregate may claim more.
        let most = self.contents.message.len() / SMALLEST_RECORD;
        into.reserve(self.contents.records.min(most));
        let mut shard = ShardCheck::of(&self.contents, hash_keys);
        while let Some(record) = self.step(|contents, record| shard.count(contents, record)) {
            into.push(record?);
        }
        Ok(shard.out_of_range)
    }

    /// Makes the next record, after `look` at what it is made of.
    #[inline]
    fn step(
        &mut self,
        look: impl FnOnce(&Contents, &Complete<'_>),
    ) -> Option<Result<Record, DamagedAggregate>> {
        let place = match self.contents.records(self.at).next()? {
            Ok(place) => place,
            Err(damage) => return Some(Err(damage)),
        };
        self.at = place.end;
        let number = usize::try_from(self.made).unwrap_or(usize::MAX);
        let (key, data) = match self.contents.complete(number, place.clone()) {
            Ok(record) => {
                look(&self.contents, &record);
                (self.contents.key(record.key), record.data)
            }
            Err(damage) => return Some(Err(damage)),
        };
        let data = self.contents.message.slice(data);
        let redriven = self
            .stamps
            .then(|| redriven(&self.contents.message, place))
            .flatten();
        let record = self.source.record(self.made, key, data, redriven);
        self.made += 1;
        Some(Ok(record))
    }
}

impl Iterator for Unpacking {
    type Item = Record;

    fn next(&mut self) -> Option<Record> {
        // No step fails, because the aggregate was checked before it was packed.
        self.step(|_, _| {})?.ok()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left(), Some(self.left()))
    }
}

/// Reads the origin of a redriven record from an inner record's tags. Other tags are skipped, however many
/// there are.
fn redriven(message: &Bytes, record: Range<usize>) -> Option<crate::record::Redriven> {
    let mut tags = Vec::new();
    for field in Fields::of(message, record) {
        if let Ok((TAG, Value::Bytes(place))) = field
            && tags.len() < stamp::TAGS
            && let Ok(tag) = Tag::decode(message.slice(place))
            && stamp::is_ours(&tag)
        {
            tags.push(tag);
        }
    }
    stamp::redriven(&tags)
}

fn wrong_type() -> DamagedAggregate {
    format("a field of the aggregate has another type than the format says")
}

fn narrow(place: Range<usize>) -> Result<Range<u32>, DamagedAggregate> {
    let narrow = |at: usize| u32::try_from(at).map_err(format);
    Ok(narrow(place.start)?..narrow(place.end)?)
}

/// Returns the index and the place that it stands for.
#[inline]
fn of_index(index: Option<u64>, places: &[Range<u32>]) -> Option<(usize, &Range<u32>)> {
    let index = usize::try_from(index?).ok()?;
    Some((index, places.get(index)?))
}
