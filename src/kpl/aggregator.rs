//! From many records to one.

use std::collections::HashMap;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message as _;
use prost::encoding::encoded_len_varint;

use super::stamp;
use super::wire::{CHECKSUM_BYTES, Inner, MAGIC, Message, Tag, checksum};
use crate::record::Redriven;

/// Collects records into one that holds them all, as the KPL does.
#[derive(Debug)]
pub struct Aggregator {
    max_bytes: usize,
    bytes: usize,
    message: Message,
    partition_keys: HashMap<Bytes, u64>,
    explicit_hash_keys: HashMap<Bytes, u64>,
}

/// What is put into the stream for the records inside.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Aggregated {
    /// The first record's partition key: what the aggregate is put under.
    pub partition_key: String,
    /// The first record's explicit hash key.
    pub explicit_hash_key: Option<u128>,
    /// The aggregate.
    pub data: Bytes,
}

/// The record did not fit; it was not added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the aggregate has no room for {bytes} more bytes: {max_bytes} are allowed")]
#[non_exhaustive]
pub struct AggregateFull {
    /// What it would have taken.
    pub bytes: usize,
    /// What the aggregate may have.
    pub max_bytes: usize,
}

const FRAME: usize = MAGIC.len() + CHECKSUM_BYTES;

impl Aggregator {
    /// An empty one whose data has so many bytes at most. The KPL's own default is 51,200; what the stream
    /// takes is 1 MiB, with the partition key, unless its limit was raised.
    pub fn new(max_bytes: usize) -> Self {
        Aggregator {
            max_bytes,
            bytes: FRAME,
            message: Message::default(),
            partition_keys: HashMap::new(),
            explicit_hash_keys: HashMap::new(),
        }
    }

    /// Adds a record behind the others. All of an aggregate go to the shard of the first one: who puts to a
    /// stream with several shards collects for each of them.
    ///
    /// An error if it does not fit, also for one that would not fit into an empty aggregate.
    pub fn add(
        &mut self,
        partition_key: &str,
        explicit_hash_key: Option<u128>,
        data: impl Into<Bytes>,
    ) -> Result<(), AggregateFull> {
        self.add_tagged(partition_key, explicit_hash_key, data.into(), Vec::new())
    }

    /// Adds a record that was driven again. Consumers of redrive hear of it
    /// ([`Record::redriven`](crate::Record::redriven)); others see a record like any other.
    pub fn add_redriven(
        &mut self,
        partition_key: &str,
        explicit_hash_key: Option<u128>,
        data: impl Into<Bytes>,
        redriven: &Redriven,
    ) -> Result<(), AggregateFull> {
        self.add_tagged(
            partition_key,
            explicit_hash_key,
            data.into(),
            stamp::tags(redriven),
        )
    }

    fn add_tagged(
        &mut self,
        partition_key: &str,
        explicit_hash_key: Option<u128>,
        data: Bytes,
        tags: Vec<Tag>,
    ) -> Result<(), AggregateFull> {
        let partition_key = Bytes::copy_from_slice(partition_key.as_bytes());
        let explicit_hash_key = explicit_hash_key.map(|key| Bytes::from(key.to_string()));
        let (key, new_key) = place(&self.partition_keys, &partition_key);
        let hash = explicit_hash_key
            .as_ref()
            .map(|hash| place(&self.explicit_hash_keys, hash));
        let inner = Inner {
            partition_key: Some(key),
            explicit_hash_key: hash.map(|(hash, _)| hash),
            data: Some(data),
            tags,
        };
        let hash = explicit_hash_key.filter(|_| hash.is_some_and(|(_, new)| new));
        let bytes = field(inner.encoded_len())
            + if new_key { field(partition_key.len()) } else { 0 }
            + hash.as_ref().map_or(0, |hash| field(hash.len()));
        if self.bytes + bytes > self.max_bytes {
            return Err(AggregateFull {
                bytes,
                max_bytes: self.max_bytes,
            });
        }
        self.bytes += bytes;
        if new_key {
            self.partition_keys.insert(partition_key.clone(), key);
            self.message.partition_keys.push(partition_key);
        }
        if let Some(hash) = hash {
            let place = self.message.explicit_hash_keys.len() as u64;
            self.explicit_hash_keys.insert(hash.clone(), place);
            self.message.explicit_hash_keys.push(hash);
        }
        self.message.records.push(inner);
        Ok(())
    }

    /// How many records are inside.
    pub fn records(&self) -> usize {
        self.message.records.len()
    }

    /// How many bytes the aggregate has by now.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The aggregate, leaving this one empty; `None` without records.
    pub fn finish(&mut self) -> Option<Aggregated> {
        let Aggregator { message, bytes, .. } = std::mem::replace(self, Aggregator::new(self.max_bytes));
        let first = message.records.first()?;
        let text = |keys: &[Bytes], at: Option<u64>| {
            let key = keys.get(usize::try_from(at?).ok()?)?;
            Some(String::from_utf8_lossy(key).into_owned())
        };
        let partition_key = text(&message.partition_keys, first.partition_key)?;
        let explicit_hash_key = text(&message.explicit_hash_keys, first.explicit_hash_key);
        let mut data = BytesMut::with_capacity(bytes);
        data.put_slice(&MAGIC);
        message.encode(&mut data).ok()?; // it grows: there is always room
        let checksum = checksum(&data[MAGIC.len()..]);
        data.put_slice(&checksum);
        Some(Aggregated {
            partition_key,
            explicit_hash_key: explicit_hash_key.and_then(|key| key.parse().ok()),
            data: data.freeze(),
        })
    }
}

impl std::fmt::Debug for Aggregated {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Aggregated")
            .field("bytes", &self.data.len())
            .finish_non_exhaustive()
    }
}

/// Where a key stands in its table, and whether it is new there.
fn place(table: &HashMap<Bytes, u64>, key: &Bytes) -> (u64, bool) {
    match table.get(key) {
        Some(&place) => (place, false),
        None => (table.len() as u64, true),
    }
}

/// What a field of so many bytes takes in the message: each tag here is one byte.
fn field(bytes: usize) -> usize {
    1 + encoded_len_varint(bytes as u64) + bytes
}
