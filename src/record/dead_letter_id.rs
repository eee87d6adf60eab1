//! The id of a dead letter.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// The id of a dead letter: SHA-256 of application, stream, shard, sequence number, sub-sequence number and
/// redrive count. A dead letter has the same id however often it is written, so a reader can drop an id that
/// it has seen.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DeadLetterId(Digest);

impl DeadLetterId {
    /// Creates the id with this digest.
    pub const fn new(digest: [u8; 32]) -> Self {
        DeadLetterId(Digest(digest))
    }

    /// Returns the digest.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0.0
    }
}

/// The error for a text that is not the id of a dead letter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a dead-letter id (64 hex digits)")]
pub struct ParseDeadLetterIdError;

impl FromStr for DeadLetterId {
    type Err = ParseDeadLetterIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Digest::from_hex(text)
            .map(DeadLetterId)
            .ok_or(ParseDeadLetterIdError)
    }
}

impl TryFrom<String> for DeadLetterId {
    type Error = ParseDeadLetterIdError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<DeadLetterId> for String {
    fn from(id: DeadLetterId) -> Self {
        id.to_string()
    }
}

impl fmt::Display for DeadLetterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for DeadLetterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_letter_id_reads_back_from_its_text() {
        let id = DeadLetterId::new(std::array::from_fn(|i| (i * 7) as u8));
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!("xyz".parse::<DeadLetterId>(), Err(ParseDeadLetterIdError));
        assert_eq!(
            "é".repeat(32).parse::<DeadLetterId>(),
            Err(ParseDeadLetterIdError)
        );
    }
}
