//! Objects with only a payload, for dead letters in other sinks.

use aws_sdk_s3::primitives::ByteStream;
use bytes::BytesMut;
use tokio::time::timeout;

use super::{S3, key};
use crate::aws;
use crate::dead_letter::claim_check::ClaimError;
use crate::dead_letter::{DeadLetter, SinkError};
use crate::digest::Digest;

/// The maximum size of a record in bytes (Kinesis, quotas), and so of a payload.
const LARGEST: u64 = 10 * 1024 * 1024;

const SUFFIX: &str = ".payload";

impl S3 {
    /// Writes a dead letter's payload. Returns its place: `s3://bucket/key`.
    pub(in crate::dead_letter) async fn put_payload(&self, letter: &DeadLetter) -> Result<String, SinkError> {
        let key = format!("{}{SUFFIX}", key::of(&self.prefix, letter));
        let call = self
            .reader
            .put_object()
            .bucket(&self.bucket)
            .key(&key)
            .set_expected_bucket_owner(self.owner.clone())
            .body(ByteStream::from(letter.payload.clone()));
        match call.send().await {
            Ok(_) => Ok(format!("s3://{}/{key}", self.bucket)),
            Err(error) => Err(SinkError::unavailable(error)),
        }
    }

    /// Returns true if this sink could have written a payload to this place.
    pub(crate) fn holds(&self, place: &str) -> bool {
        self.key_of(place).is_some()
    }

    fn key_of<'a>(&self, place: &'a str) -> Option<&'a str> {
        let place = place.strip_prefix("s3://")?.strip_prefix(&*self.bucket)?;
        let key = place.strip_prefix('/')?;
        (key.starts_with(&*self.prefix) && key.ends_with(SUFFIX)).then_some(key)
    }

    /// Returns the dead letter with its payload.
    pub(crate) async fn redeem(&self, letter: DeadLetter) -> Result<DeadLetter, ClaimError> {
        let Some(place) = letter.payload_at.clone() else {
            return Ok(letter);
        };
        let Some(key) = self.key_of(&place) else {
            return Err(ClaimError::Elsewhere { id: letter.id, place });
        };
        let expected = letter.payload_bytes;
        if expected > LARGEST {
            return Err(ClaimError::TooLarge {
                place,
                bytes: expected,
                limit: LARGEST,
            });
        }
        let call = self.reader.get_object().bucket(&self.bucket).key(key);
        let call = call.set_expected_bucket_owner(self.owner.clone());
        let object = match call.send().await {
            Ok(object) => object,
            Err(error)
                if error
                    .as_service_error()
                    .is_some_and(|error| error.is_no_such_key()) =>
            {
                return Err(ClaimError::Gone { id: letter.id, place });
            }
            Err(error) => {
                let source = error.into();
                return Err(ClaimError::Unreadable { place, source });
            }
        };
        let wrong = |place, found| ClaimError::Length {
            place,
            expected,
            found,
        };
        // An object of another length is not this dead letter's payload. Nothing of it is read.
        let length = object
            .content_length()
            .and_then(|bytes| u64::try_from(bytes).ok());
        if let Some(found) = length.filter(|found| *found != expected) {
            return Err(wrong(place, found));
        }
        let (mut payload, mut body) = (BytesMut::new(), object.body);
        loop {
            let chunk = match timeout(aws::ATTEMPT_TIMEOUT, body.next()).await {
                Ok(None) => break,
                Ok(Some(Ok(chunk))) => chunk,
                Err(_) => {
                    let source = "S3 did not send the rest of the object in time".into();
                    return Err(ClaimError::Unreadable { place, source });
                }
                Ok(Some(Err(error))) => {
                    let source = error.into();
                    return Err(ClaimError::Unreadable { place, source });
                }
            };
            let found = (payload.len() + chunk.len()) as u64;
            if found > expected {
                return Err(wrong(place, found));
            }
            payload.extend_from_slice(&chunk);
        }
        let found = payload.len() as u64;
        if found != expected {
            return Err(wrong(place, found));
        }
        let payload = payload.freeze();
        let digest = |expected: &String| Digest::of(&payload).to_string() == *expected;
        if !letter.payload_sha256.as_ref().is_none_or(digest) {
            return Err(ClaimError::Digest { id: letter.id, place });
        }
        Ok(DeadLetter {
            payload,
            payload_at: None,
            payload_sha256: None,
            ..letter
        })
    }
}
