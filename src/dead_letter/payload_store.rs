//! Payloads that are stored outside their dead letters.

use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;

use super::{DeadLetter, SinkError, SourceStream, TargetError, Warning};
use crate::digest::Digest;
use crate::failure::BoxError;
use crate::record::DeadLetterId;

/// The maximum size of a record in bytes (Kinesis, quotas), and so of a payload.
const LARGEST: u64 = 10 * 1024 * 1024;

/// Stores payloads outside their dead letters, for a [`ClaimCheck`](super::ClaimCheck).
#[cfg_attr(feature = "s3", doc = "[`S3`](super::S3) implements it.")]
///
/// A dead letter states the place of its payload, and that statement is untrusted input. redrive reads only
/// places that the store [covers](PayloadStore::covers), and only payloads of up to 10 MiB. It then compares
/// the payload with the length and the SHA-256 digest that the dead letter states.
///
/// `redrive::testing::payloads` (feature `testing`) has the conformance suite.
#[async_trait]
pub trait PayloadStore: Send + Sync + fmt::Debug {
    /// Stores the payload of a dead letter. Returns the place of the payload, in the store's own terms.
    ///
    /// Returns `Ok` only when the payload is durable. A dead letter that is stored again replaces its payload
    /// or gets another place.
    async fn put_payload(&self, letter: &DeadLetter) -> Result<String, SinkError>;

    /// Returns true if this store could have written a payload to this place. Makes no call.
    fn covers(&self, place: &str) -> bool;

    /// Reads the payload of a dead letter from a place that this store [covers](PayloadStore::covers).
    ///
    /// An implementation reads no more than [`payload_bytes`](DeadLetter::payload_bytes) bytes: a longer
    /// payload is a [`ClaimError::Length`]. A payload that does not exist is [`ClaimError::Gone`].
    async fn get_payload(&self, letter: &DeadLetter, place: &str) -> Result<Bytes, ClaimError>;

    /// Checks the store before the first record is read, in the same way as
    /// [`DeadLetterSink::check`](super::DeadLetterSink::check). Default: no warnings.
    async fn check_target(&self, source: &SourceStream) -> Result<Vec<Warning>, TargetError> {
        let _ = source;
        Ok(Vec::new())
    }
}

/// Returns the dead letter with its payload, which is read from the store if it is there.
pub(crate) async fn redeem(store: &dyn PayloadStore, letter: DeadLetter) -> Result<DeadLetter, ClaimError> {
    let Some(place) = letter.payload_at.clone() else {
        return Ok(letter);
    };
    let (id, expected) = (letter.id, letter.payload_bytes);
    if !store.covers(&place) {
        return Err(ClaimError::Elsewhere { id, place });
    }
    if expected > LARGEST {
        return Err(ClaimError::TooLarge {
            place,
            bytes: expected,
            limit: LARGEST,
        });
    }
    let payload = store.get_payload(&letter, &place).await?;
    let found = payload.len() as u64;
    if found != expected {
        return Err(ClaimError::Length {
            place,
            expected,
            found,
        });
    }
    let has_digest = |stated: &String| Digest::of(&payload).to_string() == *stated;
    if !letter.payload_sha256.as_ref().is_none_or(has_digest) {
        return Err(ClaimError::Digest { id, place });
    }
    Ok(DeadLetter {
        payload,
        payload_at: None,
        payload_sha256: None,
        ..letter
    })
}

/// The reason why a dead letter's payload cannot be read from its store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClaimError {
    /// The payload that the dead letter refers to does not exist.
    #[error("the payload of dead letter {id} is no longer at {place}; the dead letter cannot be replayed")]
    Gone {
        /// The dead letter's id.
        id: DeadLetterId,
        /// The place that the dead letter states.
        place: String,
    },
    /// The store covers no such place. For S3: the payload is in another bucket or below another prefix, or
    /// its key is not that of a payload.
    #[error(
        "the payload of dead letter {id} is at {place}, which this store does not cover; check its bucket and prefix"
    )]
    Elsewhere {
        /// The dead letter's id.
        id: DeadLetterId,
        /// The place that the dead letter states.
        place: String,
    },
    /// The payload's length differs from the length that the dead letter states.
    #[error(
        "the payload at {place} has {found} bytes, but its dead letter states {expected}: it was changed or mixed up"
    )]
    Length {
        /// The place of the payload.
        place: String,
        /// The length that the dead letter states, in bytes.
        expected: u64,
        /// The length that was found, in bytes.
        found: u64,
    },
    /// The payload has the stated length but other bytes.
    #[error("the payload at {place} is not that of dead letter {id}: the SHA-256 digests differ")]
    Digest {
        /// The dead letter's id.
        id: DeadLetterId,
        /// The place of the payload.
        place: String,
    },
    /// The dead letter states a longer payload than a record can have.
    #[error("the dead letter states {bytes} bytes for the payload at {place}; a record has at most {limit}")]
    TooLarge {
        /// The place of the payload.
        place: String,
        /// The length that the dead letter states, in bytes.
        bytes: u64,
        /// The maximum size of a record, in bytes.
        limit: u64,
    },
    /// The store cannot be read.
    #[error("the payload at {place} cannot be read")]
    Unreadable {
        /// The place of the payload.
        place: String,
        /// The cause.
        #[source]
        source: BoxError,
    },
}
