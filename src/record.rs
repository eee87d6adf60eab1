//! A record of a Kinesis stream and where it stands in its shard.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// One user record, as the handler sees it.
///
/// A clone copies two pointers: the payload is shared, never copied. `Debug` shows where the record
/// stands and how long its payload is; neither the payload nor the partition key appear.
#[derive(Clone)]
pub struct Record {
    meta: Arc<Meta>,
    payload: Bytes,
}

struct Meta {
    stream: Arc<str>,
    shard: ShardId,
    sequence_number: SequenceNumber,
    sub_sequence_number: u64,
    partition_key: Option<Box<str>>,
    arrival: Option<SystemTime>,
}

impl Record {
    /// Starts a record of `stream` (its name, not its ARN) at this place of `shard`.
    pub fn builder(
        stream: impl Into<Arc<str>>,
        shard: ShardId,
        sequence_number: SequenceNumber,
    ) -> RecordBuilder {
        RecordBuilder {
            meta: Meta {
                stream: stream.into(),
                shard,
                sequence_number,
                sub_sequence_number: 0,
                partition_key: None,
                arrival: None,
            },
            payload: Bytes::new(),
        }
    }

    /// The name of the stream.
    pub fn stream(&self) -> &str {
        &self.meta.stream
    }

    /// The shard that the record was read from.
    pub fn shard(&self) -> &ShardId {
        &self.meta.shard
    }

    /// The number that Kinesis gave the record; unique and growing within its shard.
    pub fn sequence_number(&self) -> &SequenceNumber {
        &self.meta.sequence_number
    }

    /// The index inside a record that the KPL aggregated; 0 for a plain record.
    pub fn sub_sequence_number(&self) -> u64 {
        self.meta.sub_sequence_number
    }

    /// The partition key; `None` on a stream with AUTO record distribution.
    pub fn partition_key(&self) -> Option<&str> {
        self.meta.partition_key.as_deref()
    }

    /// When Kinesis received the record, to the millisecond.
    pub fn arrival(&self) -> Option<SystemTime> {
        self.meta.arrival
    }

    /// The payload. To keep it past the handler clone it: that shares the bytes.
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// Where the record stands: a checkpoint at this position says that it, and all before it, is
    /// settled.
    pub fn position(&self) -> Position {
        Position::Record {
            sequence_number: self.meta.sequence_number.clone(),
            sub_sequence_number: self.meta.sub_sequence_number,
        }
    }

    /// What stands for the partition key in logs: the first 8 bytes of its SHA-256, in hex.
    pub fn key_hash(&self) -> Option<KeyHash> {
        self.partition_key().map(KeyHash::of)
    }

    /// The record without its payload, for whoever only needs to know where it stood.
    pub(crate) fn place(&self) -> Record {
        Record {
            meta: self.meta.clone(),
            payload: Bytes::new(),
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

/// Builds a [`Record`]: runtimes do, and tests.
pub struct RecordBuilder {
    meta: Meta,
    payload: Bytes,
}

impl RecordBuilder {
    /// The index inside an aggregated record. Default: 0.
    pub fn sub_sequence_number(mut self, number: u64) -> Self {
        self.meta.sub_sequence_number = number;
        self
    }

    /// The partition key. Default: none.
    pub fn partition_key(mut self, key: impl Into<Box<str>>) -> Self {
        self.meta.partition_key = Some(key.into());
        self
    }

    /// When Kinesis received the record. Default: unknown.
    pub fn arrival(mut self, at: SystemTime) -> Self {
        self.meta.arrival = Some(at);
        self
    }

    /// The payload. Default: empty.
    pub fn payload(mut self, payload: impl Into<Bytes>) -> Self {
        self.payload = payload.into();
        self
    }

    /// The record.
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

/// The name of a shard, such as `shardId-000000000000`. A clone shares it.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct ShardId(Arc<str>);

impl ShardId {
    /// The name as Kinesis writes it.
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

/// A Kinesis sequence number: up to 129 decimal digits, so no integer holds it.
///
/// Ordered as the number it is. (The API's pattern is `0|([1-9]\d{0,128})`, see `SequenceNumber` in
/// the Kinesis API reference.)
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SequenceNumber(Box<str>);

impl SequenceNumber {
    /// The most digits a sequence number has.
    pub const MAX_DIGITS: usize = 129;

    /// The decimal digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A text that is no Kinesis sequence number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a Kinesis sequence number (1 to 129 decimal digits without leading zeros): {text:?}")]
pub struct InvalidSequenceNumber {
    text: String,
}

fn is_sequence_number(text: &str) -> bool {
    let digits = text.as_bytes();
    (1..=SequenceNumber::MAX_DIGITS).contains(&digits.len())
        && digits.iter().all(u8::is_ascii_digit)
        && (digits[0] != b'0' || digits.len() == 1)
}

impl TryFrom<String> for SequenceNumber {
    type Error = InvalidSequenceNumber;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        if is_sequence_number(&text) {
            Ok(SequenceNumber(text.into_boxed_str()))
        } else {
            // What came is cut: it may be anything, and an error is for reading.
            Err(InvalidSequenceNumber {
                text: text.chars().take(160).collect(),
            })
        }
    }
}

impl FromStr for SequenceNumber {
    type Err = InvalidSequenceNumber;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.to_owned().try_into()
    }
}

impl From<u64> for SequenceNumber {
    fn from(number: u64) -> Self {
        SequenceNumber(number.to_string().into_boxed_str())
    }
}

impl From<SequenceNumber> for String {
    fn from(number: SequenceNumber) -> Self {
        number.0.into_string()
    }
}

impl Ord for SequenceNumber {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        // Without leading zeros more digits mean a larger number.
        (self.0.len(), &self.0).cmp(&(other.0.len(), &other.0))
    }
}

impl PartialOrd for SequenceNumber {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for SequenceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for SequenceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A place in a shard, in the order in which KCL sorts checkpoints: everything up to and including
/// it is settled.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Position {
    /// Before the oldest record that the shard still holds.
    TrimHorizon,
    /// At this record, which is settled.
    Record {
        /// Its sequence number.
        sequence_number: SequenceNumber,
        /// Its index inside an aggregated record; 0 for a plain one.
        sub_sequence_number: u64,
    },
    /// Past the last record of a shard that was split, merged or closed.
    ShardEnd,
}

impl Position {
    /// Whether this record lies at or before the position.
    pub fn covers(&self, record: &Record) -> bool {
        match self {
            Position::TrimHorizon => false,
            Position::Record {
                sequence_number,
                sub_sequence_number,
            } => {
                (record.sequence_number(), record.sub_sequence_number())
                    <= (sequence_number, *sub_sequence_number)
            }
            Position::ShardEnd => true,
        }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text: Cow<'_, str> = match self {
            Position::TrimHorizon => "TRIM_HORIZON".into(),
            Position::ShardEnd => "SHARD_END".into(),
            Position::Record {
                sequence_number,
                sub_sequence_number: 0,
            } => sequence_number.as_str().into(),
            Position::Record {
                sequence_number,
                sub_sequence_number,
            } => format!("{sequence_number}:{sub_sequence_number}").into(),
        };
        f.write_str(&text)
    }
}

/// A partition key as it may appear in logs: the first 8 bytes of its SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyHash([u8; 8]);

impl KeyHash {
    /// The hash of this key.
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

    fn number(text: &str) -> SequenceNumber {
        text.parse().expect("a sequence number")
    }

    #[test]
    fn sequence_numbers_sort_as_numbers_not_as_text() {
        assert!(number("9") < number("10"));
        assert!(number("0") < number("1"));
        assert!(number(&"9".repeat(56)) < number(&format!("1{}", "0".repeat(56))));
    }

    #[test]
    fn what_is_no_sequence_number_is_refused() {
        for text in ["", "01", "-1", "1e3", "12x", &"1".repeat(130)] {
            assert!(text.parse::<SequenceNumber>().is_err(), "{text:?}");
        }
        assert!("1".repeat(129).parse::<SequenceNumber>().is_ok());
    }

    #[test]
    fn positions_sort_as_kcl_sorts_them() {
        let at = |n: u64, sub| Position::Record {
            sequence_number: n.into(),
            sub_sequence_number: sub,
        };
        let sorted = [
            Position::TrimHorizon,
            at(9, 0),
            at(9, 1),
            at(10, 0),
            Position::ShardEnd,
        ];
        assert!(sorted.is_sorted());
        assert_eq!(sorted[2].to_string(), "9:1");
    }

    #[test]
    fn a_position_covers_what_stands_at_or_before_it() {
        let record = |n: u64, sub| {
            Record::builder("s", "shardId-0".into(), n.into())
                .sub_sequence_number(sub)
                .build()
        };
        let position = record(10, 1).position();
        assert!(position.covers(&record(9, 7)));
        assert!(position.covers(&record(10, 1)));
        assert!(!position.covers(&record(10, 2)));
        assert!(!Position::TrimHorizon.covers(&record(0, 0)));
        assert!(Position::ShardEnd.covers(&record(99, 0)));
    }

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
