//! Payloads of dead letters in other sinks, each as an object of its own.

use async_trait::async_trait;
use aws_sdk_s3::primitives::ByteStream;
use bytes::{Bytes, BytesMut};
use tokio::time::timeout;

use super::{S3, object_key};
use crate::aws;
use crate::dead_letter::{
    ClaimError, DeadLetter, DeadLetterSink as _, PayloadStore, SinkError, SourceStream, TargetError, Warning,
};

const SUFFIX: &str = ".payload";

impl S3 {
    fn payload_key<'a>(&self, place: &'a str) -> Option<&'a str> {
        let place = place.strip_prefix("s3://")?.strip_prefix(&*self.bucket)?;
        let key = place.strip_prefix('/')?;
        (key.starts_with(&*self.prefix) && key.ends_with(SUFFIX)).then_some(key)
    }
}

/// Stores a payload at `s3://<bucket>/<key of the dead letter>.payload`.
#[async_trait]
impl PayloadStore for S3 {
    async fn put_payload(&self, letter: &DeadLetter) -> Result<String, SinkError> {
        let key = format!("{}{SUFFIX}", object_key(&self.prefix, letter));
        let call = self
            .read_client
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

    fn covers(&self, place: &str) -> bool {
        self.payload_key(place).is_some()
    }

    async fn get_payload(&self, letter: &DeadLetter, place: &str) -> Result<Bytes, ClaimError> {
        let (id, expected) = (letter.id, letter.payload_bytes);
        let unreadable = |source| ClaimError::Unreadable {
            place: place.to_owned(),
            source,
        };
        let wrong_length = |found| ClaimError::Length {
            place: place.to_owned(),
            expected,
            found,
        };
        let Some(key) = self.payload_key(place) else {
            let place = place.to_owned();
            return Err(ClaimError::Elsewhere { id, place });
        };
        let call = self.read_client.get_object().bucket(&self.bucket).key(key);
        let call = call.set_expected_bucket_owner(self.owner.clone());
        let object = match call.send().await {
            Ok(object) => object,
            Err(error)
                if error
                    .as_service_error()
                    .is_some_and(|error| error.is_no_such_key()) =>
            {
                let place = place.to_owned();
                return Err(ClaimError::Gone { id, place });
            }
            Err(error) => return Err(unreadable(error.into())),
        };
        // An object of another length is not this dead letter's payload. Nothing of it is read.
        let length = object
            .content_length()
            .and_then(|bytes| u64::try_from(bytes).ok());
        if let Some(found) = length.filter(|found| *found != expected) {
            return Err(wrong_length(found));
        }
        let (mut payload, mut body) = (BytesMut::new(), object.body);
        loop {
            let chunk = match timeout(aws::ATTEMPT_TIMEOUT, body.next()).await {
                Ok(None) => return Ok(payload.freeze()),
                Ok(Some(Ok(chunk))) => chunk,
                Ok(Some(Err(error))) => return Err(unreadable(error.into())),
                Err(_) => {
                    return Err(unreadable(
                        "S3 did not send the rest of the object in time".into(),
                    ));
                }
            };
            let found = (payload.len() + chunk.len()) as u64;
            if found > expected {
                return Err(wrong_length(found));
            }
            payload.extend_from_slice(&chunk);
        }
    }

    async fn check_target(&self, source: &SourceStream) -> Result<Vec<Warning>, TargetError> {
        self.check(source).await
    }
}
