//! Payloads too large for a sink wait elsewhere, and the letter says where.

use std::collections::HashSet;

use async_trait::async_trait;
use bytes::Bytes;
use futures_core::future::BoxFuture;
use futures_util::stream::{self, StreamExt as _};

use super::{
    DeadLetter, DeadLetterSink, Receipt, S3, SinkError, SourceStream, Storage, TargetError, Warning,
};
use crate::digest::Digest;
use crate::failure::BoxError;
use crate::record::DeadLetterId;

/// Writes letters to a sink; of one whose payload is large the payload goes to a bucket first, and the letter says where it
/// is ([`payload_at`](DeadLetter::payload_at)).
///
/// ```
/// # fn example(sqs: aws_sdk_sqs::Client, s3: aws_sdk_s3::Client) {
/// use redrive::dead_letter::{ClaimCheck, S3, Sqs};
///
/// let queue = Sqs::new(sqs, "https://sqs.eu-west-1.amazonaws.com/111122223333/orders-dlq");
/// let sink = ClaimCheck::new(queue, S3::new(s3, "orders-dlq-payloads"));
/// # }
/// ```
///
/// [`redeem`](ClaimCheck::redeem) brings a letter's payload back. Let the bucket keep objects for longer than the sink keeps
/// letters: a letter whose payload is gone cannot be driven again.
#[derive(Debug)]
pub struct ClaimCheck<S> {
    sink: S,
    store: S3,
    over: usize,
}

/// So many payloads are written beside each other.
const CALLS: usize = 16;

impl<S: DeadLetterSink> ClaimCheck<S> {
    /// Letters go to this sink, large payloads to that bucket.
    pub fn new(sink: S, store: S3) -> Self {
        ClaimCheck {
            sink,
            store,
            over: 128 * 1024,
        }
    }

    /// Payloads of more bytes go to the bucket. Default: 128 KiB, with which each letter fits into a message of SNS or SQS.
    #[must_use]
    pub fn over(mut self, bytes: usize) -> Self {
        self.over = bytes;
        self
    }

    /// The letter with its payload, wherever that is.
    pub async fn redeem(&self, letter: DeadLetter) -> Result<DeadLetter, ClaimError> {
        self.store.redeem(letter).await
    }

    /// The letter as it is written, once its payload is where it says.
    async fn check_in(&self, letter: &DeadLetter) -> Result<DeadLetter, SinkError> {
        if letter.payload.len() <= self.over {
            return Ok(letter.clone());
        }
        let place = self.store.put_payload(letter).await?;
        Ok(DeadLetter {
            payload_at: Some(place),
            payload_sha256: Some(Digest::of(&letter.payload).to_string()),
            payload: Bytes::new(),
            ..letter.clone()
        })
    }
}

#[async_trait]
impl<S: DeadLetterSink> DeadLetterSink for ClaimCheck<S> {
    async fn put(&self, letters: &[DeadLetter]) -> Vec<Result<Receipt, SinkError>> {
        let mut calls: Vec<BoxFuture<'_, Result<DeadLetter, SinkError>>> = Vec::new();
        for letter in letters {
            calls.push(Box::pin(self.check_in(letter)));
        }
        let checked: Vec<_> = stream::iter(calls).buffered(CALLS).collect().await;
        let mut failed = HashSet::new();
        let (mut written, mut results) = (Vec::new(), Vec::new());
        for (letter, checked) in letters.iter().zip(checked) {
            let key = letter.partition_key.as_deref();
            results.push(match checked {
                // Without a key there is no order.
                _ if key.is_some() && failed.contains(&key) => Some(Err(SinkError::Behind)),
                Ok(letter) => {
                    written.push(letter);
                    None
                }
                Err(error) => {
                    failed.insert(key);
                    Some(Err(error))
                }
            });
        }
        let mut said = match written.is_empty() {
            true => Vec::new(),
            false => self.sink.put(&written).await,
        }
        .into_iter();
        let results = results.into_iter();
        results
            .map(|result| result.or_else(|| said.next()).unwrap_or(Err(SinkError::Behind)))
            .collect()
    }

    async fn check(&self, source: &SourceStream) -> Result<Vec<Warning>, TargetError> {
        let mut warnings = self.store.check(source).await?;
        let mut of_letters = source.clone();
        // What the sink gets is no larger.
        let most = source.max_record_bytes.unwrap_or(u64::MAX).min(self.over as u64);
        of_letters.max_record_bytes = Some(most);
        warnings.extend(self.sink.check(&of_letters).await?);
        Ok(warnings)
    }

    fn name(&self) -> String {
        self.sink.name()
    }

    fn storage(&self) -> Vec<Storage> {
        self.sink.storage()
    }
}

/// A letter's payload that cannot be brought back.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClaimError {
    /// There is nothing where the letter says it is.
    #[error("the payload of letter {id} is no longer at {place}: the letter cannot be driven again")]
    Gone {
        /// The letter's id.
        id: DeadLetterId,
        /// Where it should be.
        place: String,
    },
    /// It is in another bucket than the one that was asked, below another prefix, or no payload by its name.
    #[error("the payload of letter {id} is at {place}, which is no payload of this bucket and prefix")]
    Elsewhere {
        /// The letter's id.
        id: DeadLetterId,
        /// Where it is.
        place: String,
    },
    /// It is not as long as the letter says.
    #[error(
        "the payload at {place} has {found} bytes, the letter says {expected}: it was changed or mixed up"
    )]
    Length {
        /// Where it is.
        place: String,
        /// As the letter says.
        expected: u64,
        /// As it is.
        found: u64,
    },
    /// It has the length that the letter says, and other bytes.
    #[error("the payload at {place} is not the one of letter {id}: its SHA-256 digest is another")]
    Digest {
        /// The letter's id.
        id: DeadLetterId,
        /// Where it is.
        place: String,
    },
    /// The letter states more bytes than a record can have.
    #[error("the payload at {place} has {bytes} bytes by its letter; a record has {limit} at most")]
    TooLarge {
        /// Where it is.
        place: String,
        /// As the letter says.
        bytes: u64,
        /// The most bytes of a record.
        limit: u64,
    },
    /// The bucket cannot be read.
    #[error("the payload at {place} cannot be read")]
    Unreadable {
        /// Where it is.
        place: String,
        /// What went wrong.
        #[source]
        source: BoxError,
    },
}
