//! A record of a Kinesis stream, and its position in its shard.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

mod dead_letter_id;
mod position;
mod redriven;
mod sequence_number;
mod stream_id;
mod text;

pub use dead_letter_id::{DeadLetterId, ParseDeadLetterIdError};
pub use position::Position;
pub use redriven::Redriven;
pub use sequence_number::{ParseSequenceNumberError, SequenceNumber};
pub use stream_id::{ParseStreamIdError, StreamId};

pub(crate) use self::text::Text;

use crate::wall_clock::UnixTime;

/// One user record, as the processor sees it.
///
/// A clone copies two pointers: the payload is shared, never copied. `Debug` shows the record's position and
/// the length of its payload, but neither the payload nor the partition key.
#[derive(Clone)]
pub struct Record {
    meta: Arc<Meta>,
    payload: Bytes,
}

struct Meta {
    source: Arc<Source>,
    sequence_number: SequenceNumber,
    sub_sequence_number: u64,
    partition_key: Option<Text>,
    arrival: Option<UnixTime>,
    /// On the heap, as hardly any record has extra data.
    extra: Option<Box<Extra>>,
}

/// Data that only a few records have.
enum Extra {
    Redriven(Redriven),
    /// The record is an aggregate that was checked and not unpacked yet.
    #[cfg(feature = "kpl")]
    #[cfg_attr(not(any(feature = "kinesis", feature = "lambda")), allow(dead_code))]
    Packed {
        /// The number of records inside the aggregate.
        records: usize,
        /// True if redrive stamps on these records are read.
        stamps: bool,
    },
}

/// The stream and shard that records are read from. All records of a page share one `Source`, so that each
/// holds a single reference.
pub(crate) struct Source {
    pub(crate) stream: Arc<str>,
    pub(crate) shard: ShardId,
}

impl Record {
    /// Creates a builder for a record of `stream` at this place of `shard`. The record has the stream's name,
    /// also if the stream is given by its ARN.
    pub fn builder(
        stream: impl Into<StreamId>,
        shard: ShardId,
        sequence_number: SequenceNumber,
    ) -> RecordBuilder {
        let stream = stream.into().shared_name();
        Record::read_from(Arc::new(Source { stream, shard }), sequence_number)
    }

    pub(crate) fn read_from(source: Arc<Source>, sequence_number: SequenceNumber) -> RecordBuilder {
        RecordBuilder {
            meta: Meta {
                source,
                sequence_number,
                sub_sequence_number: 0,
                partition_key: None,
                arrival: None,
                extra: None,
            },
            payload: Bytes::new(),
        }
    }

    /// Creates a record of a page. Records of the same partition key share its text.
    #[cfg(feature = "kinesis")]
    #[inline]
    pub(crate) fn of_page(
        source: Arc<Source>,
        sequence_number: SequenceNumber,
        partition_key: Option<Arc<str>>,
        arrival: Option<UnixTime>,
        payload: Vec<u8>,
    ) -> Record {
        Record {
            meta: Arc::new(Meta {
                source,
                sequence_number,
                sub_sequence_number: 0,
                partition_key: partition_key.map(Text::from),
                arrival,
                extra: None,
            }),
            payload: payload.into(),
        }
    }

    /// Returns the name of the stream.
    pub fn stream(&self) -> &str {
        &self.meta.source.stream
    }

    /// Returns the name of the stream, shared by all records of a reader.
    #[cfg(feature = "metrics")]
    pub(crate) fn shared_stream(&self) -> &Arc<str> {
        &self.meta.source.stream
    }

    /// Returns the shard that the record was read from.
    pub fn shard(&self) -> &ShardId {
        &self.meta.source.shard
    }

    /// Returns the number that Kinesis gave the record. Sequence numbers are unique and growing within a
    /// shard.
    pub fn sequence_number(&self) -> &SequenceNumber {
        &self.meta.sequence_number
    }

    /// Returns the index inside a record that the KPL aggregated; 0 for a plain record.
    pub fn sub_sequence_number(&self) -> u64 {
        self.meta.sub_sequence_number
    }

    /// Returns the partition key; `None` on a stream with AUTO record distribution.
    #[inline]
    pub fn partition_key(&self) -> Option<&str> {
        self.meta.partition_key.as_deref()
    }

    /// Returns the time at which Kinesis received the record, to the millisecond.
    pub fn arrival(&self) -> Option<SystemTime> {
        self.meta.arrival.map(SystemTime::from)
    }

    /// Returns the origin of a record that was a dead letter and was replayed. The origin is known if the
    /// record was replayed in this process. It is also known if the record was put into the stream with a
    /// stamp (`redrive replay --stamp`) and the runtime reads stamps
    /// ([`Deaggregator::redrive_stamps`](crate::kpl::Deaggregator::redrive_stamps)). The origin of any other
    /// record is unknown.
    pub fn redriven(&self) -> Option<&Redriven> {
        match self.meta.extra.as_deref()? {
            Extra::Redriven(redriven) => Some(redriven),
            #[cfg(feature = "kpl")]
            Extra::Packed { .. } => None,
        }
    }

    /// Returns the number of records that this one stands for: one, unless it is a packed aggregate.
    pub(crate) fn count(&self) -> usize {
        match self.meta.extra.as_deref() {
            #[cfg(feature = "kpl")]
            Some(Extra::Packed { records, .. }) => *records,
            _ => 1,
        }
    }

    /// Returns whether the record is an aggregate whose records are made later.
    #[cfg(feature = "kpl")]
    #[inline]
    pub(crate) fn is_packed(&self) -> bool {
        matches!(self.meta.extra.as_deref(), Some(Extra::Packed { .. }))
    }

    /// Returns whether redrive stamps on the records of this packed aggregate are read.
    #[cfg(feature = "kpl")]
    pub(crate) fn has_stamps(&self) -> bool {
        matches!(
            self.meta.extra.as_deref(),
            Some(Extra::Packed { stamps: true, .. })
        )
    }

    /// Marks the record as an aggregate with this number of records, which are made later. `stamps`: redrive
    /// stamps on them are read.
    #[cfg(any(feature = "kinesis", feature = "lambda"))]
    pub(crate) fn packed(self, records: usize, stamps: bool) -> Self {
        let meta = Meta {
            source: self.meta.source.clone(),
            sequence_number: self.meta.sequence_number.clone(),
            sub_sequence_number: self.meta.sub_sequence_number,
            partition_key: self.meta.partition_key.clone(),
            arrival: self.meta.arrival,
            extra: Some(Box::new(Extra::Packed { records, stamps })),
        };
        Record {
            meta: Arc::new(meta),
            payload: self.payload,
        }
    }

    /// Returns how long ago Kinesis received the record, by the clock of this machine.
    pub(crate) fn age(&self) -> Option<Duration> {
        self.age_nanos()
            .map(|nanos| Duration::from_nanos(nanos.unsigned_abs()))
    }

    /// Returns the [age](Record::age) in nanoseconds, which is never negative.
    #[inline]
    pub(crate) fn age_nanos(&self) -> Option<i64> {
        let arrival = self.meta.arrival?;
        UnixTime::now().nanos_since(arrival)
    }

    /// Returns the payload. A clone, for use after the processor's call, shares the bytes.
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// Returns the position of the record. A checkpoint at this position means that this record and all
    /// records before it are settled.
    pub fn position(&self) -> Position {
        Position::Record {
            sequence_number: self.meta.sequence_number.clone(),
            sub_sequence_number: self.meta.sub_sequence_number,
        }
    }

    /// Returns a key that is the same for each delivery of this record and different for any other record:
    /// stream, shard, sequence and sub-sequence number. Pass it to the services that the processor calls. (A
    /// record that a producer put twice has two keys, and a record that was redriven into a stream has a new
    /// one.)
    pub fn idempotency_key(&self) -> String {
        let (stream, shard, number) = (self.stream(), self.shard(), self.sequence_number());
        format!("{stream}/{shard}/{number}/{}", self.sub_sequence_number())
    }

    /// Returns the data that the records inside this aggregate have in common.
    #[cfg(feature = "kpl")]
    pub(crate) fn aggregate(&self) -> Aggregate {
        Aggregate {
            source: self.meta.source.clone(),
            sequence_number: self.meta.sequence_number.clone(),
            arrival: self.meta.arrival,
        }
    }

    /// Returns the hash that stands for the partition key in logs: the first 8 bytes of its SHA-256, in hex.
    pub fn key_hash(&self) -> Option<KeyHash> {
        self.partition_key().map(KeyHash::of)
    }

    /// Returns the record without its payload, for code that needs only its metadata.
    #[inline]
    pub(crate) fn place(&self) -> Record {
        Record {
            meta: self.meta.clone(),
            payload: Bytes::new(),
        }
    }

    /// Turns a record whose payload is no longer needed into its [place](Record::place).
    #[inline]
    pub(crate) fn into_place(mut self) -> Record {
        if !self.payload.is_empty() {
            self.payload = Bytes::new();
        }
        self
    }
}

/// The place of an aggregated record.
#[cfg(feature = "kpl")]
pub(crate) struct Aggregate {
    source: Arc<Source>,
    sequence_number: SequenceNumber,
    arrival: Option<UnixTime>,
}

#[cfg(feature = "kpl")]
impl Aggregate {
    /// Creates one of the records inside the aggregate.
    #[inline]
    pub(crate) fn record(
        &self,
        sub_sequence_number: u64,
        partition_key: Text,
        payload: Bytes,
        redriven: Option<Redriven>,
    ) -> Record {
        Record {
            meta: Arc::new(Meta {
                source: self.source.clone(),
                sequence_number: self.sequence_number.clone(),
                sub_sequence_number,
                partition_key: Some(partition_key),
                arrival: self.arrival,
                extra: redriven.map(|redriven| Box::new(Extra::Redriven(redriven))),
            }),
            payload,
        }
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record")
            .field("stream", &self.stream())
            .field("shard", self.shard())
            .field("sequence_number", self.sequence_number())
            .field("sub_sequence_number", &self.sub_sequence_number())
            .field("key_hash", &self.key_hash())
            .field("payload_bytes", &self.payload.len())
            .finish_non_exhaustive()
    }
}

/// Builds a [`Record`], in runtimes and in tests.
pub struct RecordBuilder {
    meta: Meta,
    payload: Bytes,
}

impl RecordBuilder {
    /// Sets the index inside an aggregated record. Default: 0.
    pub fn sub_sequence_number(mut self, number: u64) -> Self {
        self.meta.sub_sequence_number = number;
        self
    }

    /// Sets the partition key. Default: none.
    pub fn partition_key(mut self, key: impl Into<Box<str>>) -> Self {
        self.meta.partition_key = Some(key.into().into());
        self
    }

    /// Sets the time at which Kinesis received the record. Default: unknown.
    pub fn arrival(mut self, at: SystemTime) -> Self {
        self.meta.arrival = Some(at.into());
        self
    }

    /// Sets the origin of a record that was replayed. Default: not replayed.
    pub fn redriven(mut self, redriven: Redriven) -> Self {
        self.meta.extra = Some(Box::new(Extra::Redriven(redriven)));
        self
    }

    /// Sets the payload. Default: empty.
    pub fn payload(mut self, payload: impl Into<Bytes>) -> Self {
        self.payload = payload.into();
        self
    }

    /// Returns the record.
    pub fn build(self) -> Record {
        Record {
            meta: Arc::new(self.meta),
            payload: self.payload,
        }
    }
}

impl fmt::Debug for RecordBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordBuilder").finish_non_exhaustive()
    }
}

/// The name of a shard, such as `shardId-000000000000`. Clones share the text.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct ShardId(Arc<str>);

impl ShardId {
    /// Returns the name as Kinesis writes it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<T: Into<Arc<str>>> From<T> for ShardId {
    fn from(name: T) -> Self {
        ShardId(name.into())
    }
}

impl From<ShardId> for String {
    fn from(shard: ShardId) -> Self {
        shard.as_str().to_owned()
    }
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A partition key as it may appear in logs: the first 8 bytes of its SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyHash([u8; 8]);

impl KeyHash {
    /// Returns the hash of a partition key.
    pub fn of(key: &str) -> Self {
        let mut first = [0; 8];
        first.copy_from_slice(&Sha256::digest(key.as_bytes())[..8]);
        KeyHash(first)
    }
}

impl fmt::Display for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", u64::from_be_bytes(self.0))
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_neither_payload_nor_partition_key() {
        let record = Record::builder("s", "shardId-0".into(), 7.into())
            .partition_key("alice@example.com")
            .payload("secret")
            .build();
        let text = format!("{record:?}");
        assert!(!text.contains("alice") && !text.contains("secret"), "{text}");
        assert!(text.contains("payload_bytes: 6"), "{text}");
    }
}
