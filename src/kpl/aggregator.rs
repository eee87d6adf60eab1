//! Aggregates many records into one.

use std::collections::HashMap;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message as _;
use prost::encoding::encoded_len_varint;

use super::stamp;
use super::wire::{CHECKSUM_BYTES, Inner, MAGIC, Message, Tag, checksum};
use crate::record::Redriven;

/// Collects records into one aggregated record, as the KPL does.
#[derive(Debug)]
pub struct Aggregator {
    max_bytes: usize,
    bytes: usize,
    message: Message,
    partition_keys: HashMap<Bytes, u64>,
    explicit_hash_keys: HashMap<Bytes, u64>,
}

/// An aggregated record to put into the stream.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Aggregated {
    /// The partition key of the first record, under which the aggregate is put.
    pub partition_key: String,
    /// The explicit hash key of the first record.
    pub explicit_hash_key: Option<u128>,
    /// The encoded aggregate.
    pub data: Bytes,
}

/// The record does not fit and was not added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the aggregate has no room for {bytes} more bytes: {max_bytes} are allowed")]
#[non_exhaustive]
pub struct AggregateFull {
    /// The number of bytes that the record would add.
    pub bytes: usize,
    /// The maximum size of the aggregate in bytes.
    pub max_bytes: usize,
}

const FRAME: usize = MAGIC.len() + CHECKSUM_BYTES;

impl Aggregator {
    /// Creates an empty aggregator whose data takes at most `max_bytes` bytes. The KPL's default is 51,200. A
    /// stream takes 1 MiB per record, including the partition key, unless its limit was raised.
    pub fn new(max_bytes: usize) -> Self {
        Aggregator {
            max_bytes,
            bytes: FRAME,
            message: Message::default(),
            partition_keys: HashMap::new(),
            explicit_hash_keys: HashMap::new(),
        }
    }

    /// Adds a record after the others. A whole aggregate goes to the shard of its first record: a producer
    /// for several shards needs one aggregator for each shard.
    ///
    /// # Errors
    ///
    /// Returns [`AggregateFull`] if the record does not fit, also if it would not fit into an empty
    /// aggregate.
    pub fn add(
        &mut self,
        partition_key: &str,
        explicit_hash_key: Option<u128>,
        data: impl Into<Bytes>,
    ) -> Result<(), AggregateFull> {
        self.add_tagged(partition_key, explicit_hash_key, data.into(), Vec::new())
    }

    /// Adds a redriven record. Consumers that [read stamps](crate::kpl::Deaggregator::redrive_stamps) report
    /// its origin ([`Record::redriven`](crate::Record::redriven)); other consumers see an ordinary record.
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

    /// Returns the number of records in the aggregate.
    pub fn records(&self) -> usize {
        self.message.records.len()
    }

    /// Returns the current size of the aggregate in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns the aggregate and leaves the aggregator empty; `None` without records.
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
        message.encode(&mut data).ok()?; // never fails: the buffer grows
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

/// Returns the index of a key in its table, and whether the key is new there.
fn place(table: &HashMap<Bytes, u64>, key: &Bytes) -> (u64, bool) {
    match table.get(key) {
        Some(&place) => (place, false),
        None => (table.len() as u64, true),
    }
}

/// Returns the encoded size of a field with `bytes` bytes: each field tag here is one byte.
fn field(bytes: usize) -> usize {
    1 + encoded_len_varint(bytes as u64) + bytes
}
