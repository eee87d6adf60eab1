//! Payloads by themselves, for letters that are elsewhere.

use aws_sdk_s3::primitives::ByteStream;

use super::{S3, key};
use crate::dead_letter::claim_check::ClaimError;
use crate::dead_letter::{DeadLetter, SinkError};

impl S3 {
    /// Writes a letter's payload. Where it is: `s3://bucket/key`.
    pub(in crate::dead_letter) async fn put_payload(&self, letter: &DeadLetter) -> Result<String, SinkError> {
        let key = format!("{}.payload", key::of(&self.prefix, letter));
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

    /// The letter with its payload.
    pub(crate) async fn redeem(&self, letter: DeadLetter) -> Result<DeadLetter, ClaimError> {
        let Some(place) = letter.payload_at.clone() else {
            return Ok(letter);
        };
        let in_bucket = place
            .strip_prefix("s3://")
            .and_then(|place| place.strip_prefix(&*self.bucket)?.strip_prefix('/'));
        let Some(key) = in_bucket else {
            return Err(ClaimError::Elsewhere { id: letter.id, place });
        };
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
        let payload = match object.body.collect().await {
            Ok(payload) => payload.into_bytes(),
            Err(error) => {
                let source = error.into();
                return Err(ClaimError::Unreadable { place, source });
            }
        };
        let (expected, found) = (letter.payload_bytes, payload.len() as u64);
        if expected != found {
            return Err(ClaimError::Length {
                place,
                expected,
                found,
            });
        }
        Ok(DeadLetter {
            payload,
            payload_at: None,
            ..letter
        })
    }
}
