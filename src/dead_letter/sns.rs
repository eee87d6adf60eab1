//! A sink that writes dead letters to an SNS topic.

use std::fmt;

use async_trait::async_trait;
use aws_sdk_sns::Client;
use aws_sdk_sns::types::PublishBatchRequestEntry;

use super::aws_writer::message::{BatchAnswers, Deduplication, call_error, largest_message, messages};
use super::aws_writer::{Answers, AwsWriter, CallError, Limits, Request, Schedule, Service, SizeLimit};
use super::{DeadLetter, DeadLetterSink, Receipt, SinkError, SourceStream, Storage, TargetError, Warning};
use crate::aws::{self, Located};
use crate::failure::BoxError;

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
    write_client: Located<Client>,
    // A client with the user's retries, for ListSubscriptionsByTopic.
    read_client: Located<Client>,
    topic_arn: String,
    deduplication: Deduplication,
    writer: AwsWriter,
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
            read_client: aws::sns::with_timeout(&client, aws::ATTEMPT_TIMEOUT),
            write_client: aws::sns::without_retries(&client, aws::ATTEMPT_TIMEOUT),
            topic_arn: topic_arn.into(),
            deduplication: Deduplication::new(),
            writer: AwsWriter::new(SizeLimit::fixed(MESSAGE_LIMIT)),
        }
    }

    /// Makes the jitter repeatable.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.writer.seed(seed);
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

impl fmt::Debug for Sns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sns")
            .field("topic", &self.topic())
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl DeadLetterSink for Sns {
    async fn put(&self, letters: &[DeadLetter]) -> Vec<Result<Receipt, SinkError>> {
        let entries = letters
            .iter()
            .map(|letter| self.deduplication.entry(letter))
            .collect();
        self.writer.write(self, Schedule::new(entries, LIMITS)).await
    }

    async fn check(&self, source: &SourceStream) -> Result<Vec<Warning>, TargetError> {
        let name = || self.topic().to_owned();
        match self.is_subscribed_to().await {
            Ok(true) => {}
            Ok(false) => return Err(TargetError::NobodyListens { name: name() }),
            Err(source) => return Err(TargetError::Unreachable { name: name(), source }),
        }
        let needed = largest_message(source);
        let too_small = (MESSAGE_LIMIT < needed).then(|| Warning {
            message: format!(
                "the dead-letter topic {:?} takes messages of up to {MESSAGE_LIMIT} bytes, but a dead letter may have {needed}; larger ones are refused",
                self.topic()
            ),
            remedy: format!(
                "add a fallback sink for larger dead letters: {MESSAGE_LIMIT} bytes is the most that SNS takes"
            ),
        });
        Ok(too_small.into_iter().collect())
    }

    fn name(&self) -> String {
        format!("sns:{}", self.topic())
    }

    fn storage(&self) -> Vec<Storage> {
        vec![Storage::Topic(self.topic_arn.clone())]
    }
}

const PUBLISH_BATCH: &str = "PublishBatch";

/// The error codes of a batch that SNS refuses for its content.
const CONTENT_CODES: &[&str] = &[
    "BatchRequestTooLong",
    "InvalidParameter",
    "InvalidParameterValue",
    "ValidationError",
];

impl Service for Sns {
    async fn call(&self, schedule: &mut Schedule, request: &Request) -> Result<Answers, CallError> {
        let entries = messages(schedule, request, self.is_fifo()).map(|message| {
            PublishBatchRequestEntry::builder()
                .id(message.id)
                .message(message.body)
                .set_message_group_id(message.group)
                .set_message_deduplication_id(message.deduplication_id)
                .build()
        });
        let entries: Vec<_> = entries
            .collect::<Result<_, _>>()
            .map_err(|error| CallError::failed(PUBLISH_BATCH, error))?;
        let sent = entries.len();
        let output = self
            .write_client
            .publish_batch()
            .topic_arn(&self.topic_arn)
            .set_publish_batch_request_entries(Some(entries))
            .send()
            .await
            .map_err(|error| call_error(PUBLISH_BATCH, CONTENT_CODES, error))?;
        let mut answers = BatchAnswers::new(self.topic());
        for sent in output.successful.unwrap_or_default() {
            if let (Some(id), Some(message_id)) = (sent.id, sent.message_id) {
                answers.confirm(id, &message_id);
            }
        }
        for failed in output.failed.unwrap_or_default() {
            answers.fail(failed.id, failed.code, failed.message);
        }
        Ok(answers.in_order(sent))
    }
}

impl Sns {
    /// Returns true if the topic has a confirmed subscription. An unconfirmed subscription has a text such as
    /// `PendingConfirmation` in place of its ARN. All pages are read, because an empty page may be followed
    /// by others. If a token repeats, the paginator returns an error.
    async fn is_subscribed_to(&self) -> Result<bool, BoxError> {
        let call = self
            .read_client
            .list_subscriptions_by_topic()
            .topic_arn(&self.topic_arn);
        let mut pages = call.into_paginator().send();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|error| {
                let task = format!(
                    "list the subscriptions of the dead-letter topic {:?}",
                    self.topic()
                );
                self.read_client
                    .failed(task, "sns:ListSubscriptionsByTopic", error)
            })?;
            let subscriptions = page.subscriptions.unwrap_or_default();
            let mut arns = subscriptions
                .iter()
                .filter_map(|subscription| subscription.subscription_arn());
            if arns.any(|arn| arn.starts_with("arn:")) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
