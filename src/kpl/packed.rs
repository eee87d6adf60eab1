//! Packed aggregates, whose records are made one by one.
//!
//! An aggregate of 10 MiB can hold 1.7 million records without a payload, which take 270 MB once all are
//! made. A large aggregate is therefore checked as a whole without making any record. It stays packed until
//! its records enter the window.

use std::ops::{Range, RangeInclusive};
use std::sync::Arc;

use bytes::{Buf as _, Bytes};
use prost::Message as _;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use super::deaggregator::{DamagedAggregate, format};
use super::stamp;
use super::wire::{CHECKSUM_BYTES, Inside, MAGIC, Tag, hash_key};
use crate::record::{Aggregate, Record};

/// The field numbers of an aggregate's message.
const PARTITION_KEY: u32 = 1;
const EXPLICIT_HASH_KEY: u32 = 2;
const RECORD: u32 = 3;
/// The field number of a tag in an inner record.
const TAG: u32 = 4;
/// The maximum number of partition keys that are kept as shared strings while an aggregate is opened.
const SHARED_KEYS: usize = 16 * 1024;

/// The places of all parts in an aggregate's message.
pub(super) struct Contents {
    message: Bytes,
    partition_keys: Vec<Range<u32>>,
    explicit_hash_keys: Vec<Range<u32>>,
    pub(super) records: usize,
}

impl Contents {
    /// Finds the parts of a message without decoding its records.
    pub(super) fn of(message: Bytes) -> Result<Self, DamagedAggregate> {
        let mut contents = Contents {
            message: Bytes::new(),
            partition_keys: Vec::new(),
            explicit_hash_keys: Vec::new(),
            records: 0,
        };
        let mut at = 0;
        while let Some((field, place)) = next_field(&message, &mut at, RECORD)? {
            match field {
                PARTITION_KEY => contents.partition_keys.push(narrow(place)?),
                EXPLICIT_HASH_KEY => contents.explicit_hash_keys.push(narrow(place)?),
                _ => contents.records += 1,
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
        contents.message = message;
        Ok(contents)
    }

    /// Checks that the aggregate is complete. Returns the number of records that belong to another shard than
    /// the one with these hash keys.
    pub(super) fn check(&self, hash_keys: Option<&RangeInclusive<u128>>) -> Result<usize, DamagedAggregate> {
        if self.records == 0 {
            return Err(DamagedAggregate::Empty);
        }
        for place in &self.partition_keys {
            std::str::from_utf8(self.bytes(place)).map_err(format)?;
        }
        let mut out_of_range = 0;
        let mut last: Option<(u64, bool)> = None;
        let (mut at, mut number) = (0, 0);
        while let Some(inside) = self.next(&mut at)? {
            let inside = Inside::decode(inside).map_err(format)?;
            let key = place_of(inside.partition_key, &self.partition_keys);
            let explicit = inside.explicit_hash_key;
            let explicit_key = place_of(explicit, &self.explicit_hash_keys);
            let (Some(key), Some(_), true) =
                (key, &inside.data, explicit.is_none() || explicit_key.is_some())
            else {
                return Err(DamagedAggregate::Record { record: number });
            };
            if let Some(hash_keys) = hash_keys {
                let is_within = match (explicit_key, inside.partition_key, last) {
                    (Some(place), ..) => {
                        let text = std::str::from_utf8(self.bytes(place));
                        text.is_ok_and(|text| text.parse().is_ok_and(|key| hash_keys.contains(&key)))
                    }
                    (None, Some(index), Some((known, is_within))) if known == index => is_within,
                    (None, index, _) => {
                        let is_within = hash_keys.contains(&hash_key(self.bytes(key)));
                        last = index.map(|index| (index, is_within));
                        is_within
                    }
                };
                out_of_range += usize::from(!is_within);
            }
            number += 1;
        }
        Ok(out_of_range)
    }

    /// Returns the encoded bytes of the next inner record from `at` on.
    fn next(&self, at: &mut usize) -> Result<Option<Bytes>, DamagedAggregate> {
        while let Some((field, place)) = next_field(&self.message, at, RECORD)? {
            if field == RECORD {
                return Ok(Some(self.message.slice(place)));
            }
        }
        Ok(None)
    }

    fn bytes(&self, place: &Range<u32>) -> &[u8] {
        self.message
            .get(place.start as usize..place.end as usize)
            .unwrap_or_default()
    }
}

/// The size of the smallest complete record in bytes: its frame, its key's index, and no data.
const SMALLEST_RECORD: usize = 6;

/// The records of a checked aggregate, made one by one.
pub(crate) struct Unpacking {
    aggregate: Record,
    source: Aggregate,
    contents: Contents,
    at: usize,
    made: u64,
    /// The most recently used keys, each at its index modulo the length of this list.
    keys: Vec<Option<(u64, Arc<str>)>>,
}

impl Unpacking {
    /// Starts at the first record of a packed aggregate. Returns `None` if `aggregate` is not an aggregate.
    pub(crate) fn of(aggregate: Record) -> Option<Self> {
        let payload = aggregate.payload();
        let message = MAGIC.len()..payload.len().checked_sub(CHECKSUM_BYTES)?;
        if message.start > message.end {
            return None;
        }
        let contents = Contents::of(payload.slice(message)).ok()?;
        Some(Unpacking {
            source: aggregate.aggregate(),
            keys: vec![None; contents.partition_keys.len().min(SHARED_KEYS)],
            aggregate,
            contents,
            at: 0,
            made: 0,
        })
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

    fn key(&mut self, index: u64) -> Option<Arc<str>> {
        let slot = usize::try_from(index).ok()? % self.keys.len().max(1);
        match self.keys.get(slot)? {
            Some((known, key)) if *known == index => return Some(key.clone()),
            _ => {}
        }
        let place = place_of(Some(index), &self.contents.partition_keys)?;
        let key: Arc<str> = std::str::from_utf8(self.contents.bytes(place)).ok()?.into();
        self.keys[slot] = Some((index, key.clone()));
        Some(key)
    }
}

impl Iterator for Unpacking {
    type Item = Record;

    fn next(&mut self) -> Option<Record> {
        // No step fails, because the aggregate was checked before it was packed.
        let bytes = self.contents.next(&mut self.at).ok()??;
        let inside = Inside::decode(bytes.clone()).ok()?;
        let key = self.key(inside.partition_key?)?;
        let redriven = self.aggregate.has_stamps().then(|| redriven(&bytes)).flatten();
        let record = self.source.record(self.made, key, inside.data?, redriven);
        self.made += 1;
        Some(record)
    }
}

/// Reads the origin of a redriven record from an inner record's tags. Other tags are skipped, however many
/// there are.
fn redriven(inner: &Bytes) -> Option<crate::record::Redriven> {
    let mut tags = Vec::new();
    let mut at = 0;
    while let Ok(Some((field, place))) = next_field(inner, &mut at, TAG) {
        if field == TAG
            && tags.len() < stamp::TAGS
            && let Ok(tag) = Tag::decode(inner.slice(place))
            && stamp::is_ours(&tag)
        {
            tags.push(tag);
        }
    }
    stamp::redriven(&tags)
}

/// Returns the next length-delimited field from `at` on whose number is at most `up_to`, and the place of its
/// bytes.
fn next_field(
    message: &Bytes,
    at: &mut usize,
    up_to: u32,
) -> Result<Option<(u32, Range<usize>)>, DamagedAggregate> {
    loop {
        let mut left = message.get(*at..).unwrap_or_default();
        if left.is_empty() {
            return Ok(None);
        }
        let (field, wire_type) = decode_key(&mut left).map_err(format)?;
        if wire_type != WireType::LengthDelimited || field > up_to {
            skip_field(wire_type, field, &mut left, DecodeContext::default()).map_err(format)?;
            *at = message.len() - left.remaining();
            continue;
        }
        let length = decode_varint(&mut left).map_err(format)?;
        let start = message.len() - left.remaining();
        let length = usize::try_from(length)
            .ok()
            .filter(|length| *length <= left.remaining());
        let Some(length) = length else {
            return Err(format("a field of the aggregate is longer than the aggregate"));
        };
        *at = start + length;
        return Ok(Some((field, start..*at)));
    }
}

fn narrow(place: Range<usize>) -> Result<Range<u32>, DamagedAggregate> {
    let narrow = |at: usize| u32::try_from(at).map_err(format);
    Ok(narrow(place.start)?..narrow(place.end)?)
}

fn place_of(index: Option<u64>, places: &[Range<u32>]) -> Option<&Range<u32>> {
    places.get(usize::try_from(index?).ok()?)
}
