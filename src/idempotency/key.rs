//! Idempotency keys: what makes two records the same.

use std::fmt;
use std::sync::Arc;

use crate::digest::Digest;
use crate::record::Record;

/// The key that all deliveries of the same record share, within one application. The key contains only hashes
/// of a payload.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(Arc<str>);

impl Key {
    /// Creates a key from a record's place: stream, shard, sequence and sub-sequence number.
    pub fn of_place(application: &str, record: &Record) -> Self {
        Key(format!("{application}#{}", record.idempotency_key()).into())
    }

    /// Returns the key for which a store is asked to check that it answers.
    #[cfg(feature = "kinesis")]
    pub(crate) fn of_check() -> Self {
        Key("redrive#check".into())
    }

    /// Creates a key from a value that is equal for all records that mean the same. The key contains only a
    /// hash of the value.
    pub fn of_value(application: &str, value: &[u8]) -> Self {
        Key(format!("{application}#{}", PayloadHash::of(value)).into())
    }

    /// Returns the key as stores keep it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Key {
    fn from(text: &str) -> Self {
        Key(text.into())
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The SHA-256 of a payload.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PayloadHash(Digest);

impl PayloadHash {
    /// Computes the hash of this payload.
    pub fn of(payload: &[u8]) -> Self {
        PayloadHash(Digest::of(payload))
    }

    #[cfg(feature = "redb")]
    pub(super) fn from_bytes(bytes: [u8; 32]) -> Self {
        PayloadHash(Digest(bytes))
    }

    #[cfg(feature = "redb")]
    pub(super) fn to_bytes(self) -> [u8; 32] {
        self.0.0
    }

    /// Parses a hash from its 64 hex digits.
    pub fn from_hex(text: &str) -> Option<Self> {
        Digest::from_hex(text).map(PayloadHash)
    }
}

impl fmt::Display for PayloadHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for PayloadHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
