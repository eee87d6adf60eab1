//! The format: `F3 89 9A C2`, a protobuf message, its MD5.
//! (awslabs/amazon-kinesis-producer, aggregation-format.md)

use bytes::Bytes;
use md5::{Digest, Md5};

/// What an aggregated record begins with.
pub(super) const MAGIC: [u8; 4] = [0xF3, 0x89, 0x9A, 0xC2];
pub(super) const CHECKSUM_BYTES: usize = 16;

/// The message. Its keys are texts; as bytes they need not be copied to be read.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Message {
    #[prost(bytes = "bytes", repeated, tag = "1")]
    pub(super) partition_keys: Vec<Bytes>,
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub(super) explicit_hash_keys: Vec<Bytes>,
    #[prost(message, repeated, tag = "3")]
    pub(super) records: Vec<Inner>,
}

/// A record inside. What the format requires is optional here, so that its absence is noticed.
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

/// The same without the tags, of which there may be as many as there are bytes.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Inside {
    #[prost(uint64, optional, tag = "1")]
    pub(super) partition_key: Option<u64>,
    #[prost(uint64, optional, tag = "2")]
    pub(super) explicit_hash_key: Option<u64>,
    #[prost(bytes = "bytes", optional, tag = "3")]
    pub(super) data: Option<Bytes>,
}

/// What more there is to say of a record inside. The KPL itself writes none.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Tag {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) key: Bytes,
    #[prost(bytes = "bytes", optional, tag = "2")]
    pub(super) value: Option<Bytes>,
}

pub(super) fn checksum(message: &[u8]) -> [u8; CHECKSUM_BYTES] {
    Md5::digest(message).into()
}

/// Where Kinesis puts a key: its MD5, as a number of 128 bits.
pub(super) fn hash_key(partition_key: &[u8]) -> u128 {
    u128::from_be_bytes(checksum(partition_key))
}
