//! A sink that stores large payloads outside the dead letter, which refers to them.

use std::collections::HashSet;

use async_trait::async_trait;
use bytes::Bytes;
use futures_core::future::BoxFuture;
use futures_util::stream::{self, StreamExt as _};

use super::payload_store::redeem;
use super::{
    ClaimError, DeadLetter, DeadLetterSink, PayloadStore, Receipt, SinkError, SourceStream, Storage,
    TargetError, Warning,
};
use crate::digest::Digest;

/// Writes dead letters to a sink, and large payloads to a [`PayloadStore`], such as a bucket. The payload is
/// written first; the dead letter then states its place ([`payload_at`](DeadLetter::payload_at)).
///
/// ```
/// # #[cfg(all(feature = "sqs", feature = "s3"))]
/// # fn example(sqs: aws_sdk_sqs::Client, s3: aws_sdk_s3::Client) {
/// use redrive::dead_letter::{ClaimCheck, S3, Sqs};
///
/// let queue = Sqs::new(sqs, "https://sqs.eu-west-1.amazonaws.com/111122223333/orders-dlq");
/// let sink = ClaimCheck::new(queue, S3::new(s3, "orders-dlq-payloads"));
/// # }
/// ```
///
/// [`redeem`](ClaimCheck::redeem) reads a dead letter's payload from the store. Configure the store to keep
/// payloads for longer than the sink keeps dead letters: a dead letter whose payload is gone cannot be
/// replayed.
#[derive(Debug)]
pub struct ClaimCheck<S> {
    sink: S,
    store: Box<dyn PayloadStore>,
    over: usize,
}

/// The maximum number of payloads that are written concurrently.
const CALLS: usize = 16;

impl<S: DeadLetterSink> ClaimCheck<S> {
    /// Creates a sink that writes dead letters to `sink` and large payloads to `store`.
    pub fn new(sink: S, store: impl PayloadStore + 'static) -> Self {
        ClaimCheck {
            sink,
            store: Box::new(store),
            over: 128 * 1024,
        }
    }

    /// Sets the payload size, in bytes, above which a payload goes to the store. Default: 128 KiB, with
    /// which every dead letter fits into a message of SNS or SQS. Any size is valid: with 0, every payload that
    /// is not empty goes to the store.
    #[must_use]
    pub fn over(mut self, bytes: usize) -> Self {
        self.over = bytes;
        self
    }

    /// Returns the dead letter with its payload, which is read from the store if it is there.
    pub async fn redeem(&self, letter: DeadLetter) -> Result<DeadLetter, ClaimError> {
        redeem(&*self.store, letter).await
    }

    /// Writes a large payload to the store, and returns the dead letter as the sink gets it.
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
                // Dead letters without a key have no order.
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
        let mut warnings = self.store.check_target(source).await?;
        let mut of_letters = source.clone();
        // The sink gets only payloads up to this size.
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

#[cfg(all(test, feature = "s3"))]
mod tests {
    use super::*;
    use crate::dead_letter::{Memory, S3};

    #[test]
    fn the_documented_default() {
        let version = aws_sdk_s3::config::BehaviorVersion::latest();
        let config = aws_sdk_s3::Config::builder().behavior_version(version);
        let store = S3::new(aws_sdk_s3::Client::from_conf(config.build()), "payloads");
        assert_eq!(ClaimCheck::new(Memory::new(), store).over, 131_072);
    }
}
