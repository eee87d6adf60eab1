//! A sink that writes dead letters to an SNS topic.

use std::fmt;

use async_trait::async_trait;
use aws_sdk_sns::Client;

use super::message::Deduplication;
use super::schedule::{Limits, Request, Schedule, SharedError};
use super::service::{self, CallError, Rests, Service};
use super::{DeadLetter, DeadLetterSink, Receipt, SinkError, SourceStream, Storage, TargetError, Warning};
use crate::aws::{self, Located};

mod call;
mod target;

/// Writes dead letters to an SNS topic, each as one message that [`DeadLetter::from_json_line`] reads. The
/// message contains the payload as base64, because SNS takes only text. A subscribed queue with raw message
/// delivery gets the same messages as [`Sqs`](super::Sqs) would write.
///
/// A topic stores nothing: SNS confirms a dead letter even if it has no subscriber, and the dead letter is
/// then lost. A topic without a confirmed subscription is therefore an error at start
/// ([`TargetError::NobodyListens`]).
///
/// - In a FIFO topic (its ARN ends with `.fifo`) the message group is the record's partition key. SNS takes 1
///   to 128 letters, digits and punctuation characters as a group; any other key is replaced by its SHA-256
///   digest.
/// - In a FIFO topic each write has a deduplication id of its own. A dead letter that is written again is
///   thus delivered again, even within the 5 minutes of SNS's deduplication.
/// - A failed write is retried after up to 100, 200, 400 and 800 ms (full jitter). After 5 tries the result
///   is [`Unavailable`](SinkError::Unavailable).
/// - The client's own retries are disabled for writing. An attempt ends after 30 s unless the client sets an
///   operation-attempt timeout. All other settings of the client are kept.
/// - Dead letters larger than 256 KiB (SNS, quotas) are [`Refused`](SinkError::Refused). Base64 makes a
///   payload larger by a third, and the envelope adds up to 32 KiB.
///
/// Permissions: `sns:Publish` and `sns:ListSubscriptionsByTopic` on the topic.
pub struct Sns {
    // A client without retries, for PublishBatch.
    writer: Located<Client>,
    // A client with the user's retries, for ListSubscriptionsByTopic.
    reader: Located<Client>,
    topic_arn: String,
    deduplication: Deduplication,
    rests: Rests,
}

/// The maximum size of a message in bytes (PublishBatch, SNS API reference).
const MESSAGE_LIMIT: u64 = 256 * 1024;

/// The limits of PublishBatch (the same page): all messages together have the same maximum size as a single
/// one.
const LIMITS: Limits = Limits {
    entries: 10,
    bytes: MESSAGE_LIMIT,
};

impl Sns {
    /// Creates a sink that writes to the topic with this ARN.
    pub fn new(client: Client, topic_arn: impl Into<String>) -> Self {
        Sns {
            reader: aws::sns::with_timeout(&client, aws::ATTEMPT_TIMEOUT),
            writer: aws::sns::without_retries(&client, aws::ATTEMPT_TIMEOUT),
            topic_arn: topic_arn.into(),
            deduplication: Deduplication::new(),
            rests: Rests::new(),
        }
    }

    /// Makes the jitter repeatable.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.rests = Rests::seeded(seed);
        self
    }

    /// Returns the topic's name.
    fn topic(&self) -> &str {
        self.topic_arn.rsplit(':').next().unwrap_or_default()
    }

    fn is_fifo(&self) -> bool {
        self.topic_arn.ends_with(".fifo")
    }
}

impl Service for Sns {
    async fn call(
        &self,
        _: &[DeadLetter],
        schedule: &mut Schedule,
        request: &Request,
    ) -> Result<Vec<Result<Receipt, SharedError>>, CallError> {
        self.publish_batch(schedule, request).await
    }

    const LARGEST_LIMIT: u64 = MESSAGE_LIMIT;

    fn known_limit(&self) -> u64 {
        MESSAGE_LIMIT
    }

    async fn ask_target_for_limit(&self) -> Option<u64> {
        Some(MESSAGE_LIMIT)
    }

    fn rests(&self) -> &Rests {
        &self.rests
    }
}

#[async_trait]
impl DeadLetterSink for Sns {
    async fn put(&self, letters: &[DeadLetter]) -> Vec<Result<Receipt, SinkError>> {
        let entries = letters
            .iter()
            .map(|letter| self.deduplication.entry(letter))
            .collect();
        service::write(self, letters, Schedule::new(entries, LIMITS)).await
    }

    async fn check(&self, source: &SourceStream) -> Result<Vec<Warning>, TargetError> {
        self.look_at_target(source).await
    }

    fn name(&self) -> String {
        format!("sns:{}", self.topic())
    }

    fn storage(&self) -> Vec<Storage> {
        vec![Storage::Topic(self.topic_arn.clone())]
    }
}

impl fmt::Debug for Sns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sns")
            .field("topic", &self.topic())
            .finish_non_exhaustive()
    }
}
