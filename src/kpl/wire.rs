//! The format: `F3 89 9A C2`, a protobuf message, and its MD5 (awslabs/amazon-kinesis-producer,
//! aggregation-format.md).

use bytes::Bytes;
use md5::{Digest, Md5};

/// The first bytes of an aggregated record.
pub(super) const MAGIC: [u8; 4] = [0xF3, 0x89, 0x9A, 0xC2];
pub(super) const CHECKSUM_BYTES: usize = 16;

/// The message of an aggregate. Its keys are texts, which need no copy when they are decoded as bytes.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Message {
    #[prost(bytes = "bytes", repeated, tag = "1")]
    pub(super) partition_keys: Vec<Bytes>,
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub(super) explicit_hash_keys: Vec<Bytes>,
    #[prost(message, repeated, tag = "3")]
    pub(super) records: Vec<Inner>,
}

/// A record inside an aggregate. Fields that the format requires are optional here, so that their absence is
/// detected.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Inner {
    #[prost(uint64, optional, tag = "1")]
    pub(super) partition_key: Option<u64>,
    #[prost(uint64, optional, tag = "2")]
    pub(super) explicit_hash_key: Option<u64>,
    #[prost(bytes = "bytes", optional, tag = "3")]
    pub(super) data: Option<Bytes>,
    #[prost(message, repeated, tag = "4")]
    pub(super) tags: Vec<Tag>,
}

/// A tag of a record inside. The KPL itself writes none.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Tag {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) key: Bytes,
    #[prost(bytes = "bytes", optional, tag = "2")]
    pub(super) value: Option<Bytes>,
}

/// Returns the message and the checksum of an aggregate. `None`: the payload is too short for both.
pub(super) fn parts(payload: &Bytes) -> Option<(Bytes, &[u8; CHECKSUM_BYTES])> {
    let (rest, checksum) = payload.split_last_chunk()?;
    (rest.len() >= MAGIC.len()).then(|| (payload.slice(MAGIC.len()..rest.len()), checksum))
}

pub(super) fn checksum(message: &[u8]) -> [u8; CHECKSUM_BYTES] {
    Md5::digest(message).into()
}

/// Returns the hash key of a partition key: its MD5, as a 128-bit number.
pub(super) fn hash_key(partition_key: &[u8]) -> u128 {
    u128::from_be_bytes(checksum(partition_key))
}
