//! A sink that writes dead letters to an SQS queue.

use std::collections::HashMap;
use std::fmt;

use async_trait::async_trait;
use aws_sdk_sqs::Client;
use aws_sdk_sqs::types::{QueueAttributeName, SendMessageBatchRequestEntry};

use super::aws_writer::message::{BatchAnswers, Deduplication, call_error, largest_message, messages};
use super::aws_writer::{Answers, AwsWriter, CallError, Limits, Request, Schedule, Service, SizeLimit};
use super::{DeadLetter, DeadLetterSink, Receipt, SinkError, SourceStream, Storage, TargetError, Warning};
use crate::aws::{self, Located};
use crate::failure::BoxError;

/// Writes dead letters to an SQS queue, each as one message that [`DeadLetter::from_json_line`] reads. The
/// message contains the payload as base64, because SQS takes only text.
///
/// - In a FIFO queue (its name ends with `.fifo`) the message group is the record's partition key. SQS takes
///   1 to 128 letters, digits and punctuation characters as a group; any other key is replaced by its SHA-256
///   digest.
/// - In a FIFO queue each write has a deduplication id of its own. A dead letter that is written again is
///   thus in the queue again, even within the 5 minutes of SQS's deduplication.
/// - For a standard queue, dead letters of one key are also sent one after the other, but SQS keeps no order
///   there.
/// - A failed write is retried after up to 100, 200, 400 and 800 ms (full jitter). After 5 tries the result
///   is [`Unavailable`](SinkError::Unavailable).
/// - The client's own retries are disabled for writing. An attempt ends after 30 s unless the client sets an
///   operation-attempt timeout. All other settings of the client are kept.
/// - Dead letters larger than the queue's limit are [`Refused`](SinkError::Refused). The limit is 1 MiB (SQS,
///   quotas), or less if the queue is configured so. Base64 makes a payload larger by a third, and the
///   envelope adds up to 32 KiB.
///
/// For a record without a partition key, the dead letter's id takes the place of the key.
///
/// Permissions: `sqs:SendMessage` and `sqs:GetQueueAttributes` on the queue.
pub struct Sqs {
    // A client without retries, for SendMessageBatch.
    write_client: Located<Client>,
    // A client with the user's retries, for GetQueueAttributes.
    read_client: Located<Client>,
    queue_url: String,
    deduplication: Deduplication,
    writer: AwsWriter,
}

/// The smallest message limit that a queue can have, in bytes (SetQueueAttributes, SQS API reference).
const SMALLEST_LIMIT: u64 = 1_024;
/// The largest message limit, and that of a new queue, in bytes (the same page).
const LARGEST_LIMIT: u64 = 1024 * 1024;

/// The limits of SendMessageBatch (SQS API reference): all messages together have the same maximum size as a
/// single one.
const LIMITS: Limits = Limits {
    entries: 10,
    bytes: LARGEST_LIMIT,
};

impl Sqs {
    /// Creates a sink that writes to the queue with this URL.
    pub fn new(client: Client, queue_url: impl Into<String>) -> Self {
        Sqs {
            read_client: aws::sqs::with_timeout(&client, aws::ATTEMPT_TIMEOUT),
            write_client: aws::sqs::without_retries(&client, aws::ATTEMPT_TIMEOUT),
            queue_url: queue_url.into(),
            deduplication: Deduplication::new(),
            writer: AwsWriter::new(SizeLimit::within(SMALLEST_LIMIT..=LARGEST_LIMIT)),
        }
    }

    /// Makes the jitter repeatable.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.writer.seed(seed);
        self
    }

    /// Returns the queue's name.
    fn queue(&self) -> &str {
        self.queue_url.rsplit('/').next().unwrap_or_default()
    }

    fn is_fifo(&self) -> bool {
        self.queue_url.ends_with(".fifo")
    }
}

impl fmt::Debug for Sqs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sqs")
            .field("queue", &self.queue())
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl DeadLetterSink for Sqs {
    async fn put(&self, letters: &[DeadLetter]) -> Vec<Result<Receipt, SinkError>> {
        let entries = letters
            .iter()
            .map(|letter| self.deduplication.entry(letter))
            .collect();
        self.writer.write(self, Schedule::new(entries, LIMITS)).await
    }

    async fn check(&self, source: &SourceStream) -> Result<Vec<Warning>, TargetError> {
        let attributes = self
            .attributes()
            .await
            .map_err(|error| TargetError::Unreachable {
                name: self.queue().to_owned(),
                source: error,
            })?;
        let retention = self.retention_warning(&attributes);
        let limit = self.limit_warning(&attributes, source);
        Ok([retention, limit].into_iter().flatten().collect())
    }

    fn name(&self) -> String {
        format!("sqs:{}", self.queue())
    }

    fn storage(&self) -> Vec<Storage> {
        vec![Storage::Queue(self.queue_url.clone())]
    }
}

const SEND_MESSAGE_BATCH: &str = "SendMessageBatch";

/// The error codes of a batch that SQS refuses for its content.
const CONTENT_CODES: &[&str] = &[
    "BatchRequestTooLong",
    "InvalidMessageContents",
    "InvalidParameterValue",
    "InvalidParameterValueException",
];

impl Service for Sqs {
    async fn call(&self, schedule: &mut Schedule, request: &Request) -> Result<Answers, CallError> {
        let entries = messages(schedule, request, self.is_fifo()).map(|message| {
            SendMessageBatchRequestEntry::builder()
                .id(message.id)
                .message_body(message.body)
                .set_message_group_id(message.group)
                .set_message_deduplication_id(message.deduplication_id)
                .build()
        });
        let entries: Vec<_> = entries
            .collect::<Result<_, _>>()
            .map_err(|error| CallError::failed(SEND_MESSAGE_BATCH, error))?;
        let sent = entries.len();
        let output = self
            .write_client
            .send_message_batch()
            .queue_url(&self.queue_url)
            .set_entries(Some(entries))
            .send()
            .await
            .map_err(|error| call_error(SEND_MESSAGE_BATCH, CONTENT_CODES, error))?;
        let mut answers = BatchAnswers::new(self.queue());
        for sent in output.successful {
            answers.confirm(sent.id, &sent.message_id);
        }
        for failed in output.failed {
            answers.fail(failed.id, failed.code, failed.message);
        }
        Ok(answers.in_order(sent))
    }

    async fn ask_for_limit(&self) -> Option<u64> {
        match self.attributes().await {
            Ok(attributes) => number(&attributes, &QueueAttributeName::MaximumMessageSize),
            Err(error) => {
                tracing::warn!(
                    queue = self.queue(),
                    error = &*error,
                    "message limit of the dead-letter queue not read; SQS decides whether the dead letter is too large"
                );
                None
            }
        }
    }
}

const WEEK_SECONDS: u64 = 7 * 24 * 60 * 60;
const LONGEST_RETENTION_SECONDS: u64 = 2 * WEEK_SECONDS;

type Attributes = HashMap<QueueAttributeName, String>;

impl Sqs {
    async fn attributes(&self) -> Result<Attributes, BoxError> {
        let output = self
            .read_client
            .get_queue_attributes()
            .queue_url(&self.queue_url)
            .attribute_names(QueueAttributeName::All)
            .send()
            .await;
        let output = output.map_err(|error| {
            let task = format!("read the attributes of the dead-letter queue {:?}", self.queue());
            self.read_client.failed(task, "sqs:GetQueueAttributes", error)
        })?;
        let attributes = output.attributes.ok_or("the answer contains no attributes")?;
        let limit = number(&attributes, &QueueAttributeName::MaximumMessageSize);
        self.writer.limit().report(limit);
        Ok(attributes)
    }

    fn retention_warning(&self, attributes: &Attributes) -> Option<Warning> {
        let seconds = number(attributes, &QueueAttributeName::MessageRetentionPeriod)?;
        (seconds < WEEK_SECONDS).then(|| Warning {
            message: format!(
                "the dead-letter queue {:?} keeps dead letters for only {} hours; after that they are lost",
                self.queue(),
                seconds / 3_600
            ),
            remedy: self.set_attribute("MessageRetentionPeriod", LONGEST_RETENTION_SECONDS),
        })
    }

    fn limit_warning(&self, attributes: &Attributes, source: &SourceStream) -> Option<Warning> {
        let limit = number(attributes, &QueueAttributeName::MaximumMessageSize)?;
        let needed = largest_message(source);
        (limit < needed).then(|| Warning {
            message: format!(
                "the dead-letter queue {:?} takes messages of up to {limit} bytes, but a dead letter may have {needed}; larger ones are refused",
                self.queue()
            ),
            remedy: if limit < LARGEST_LIMIT {
                self.set_attribute("MaximumMessageSize", LARGEST_LIMIT)
            } else {
                format!("add a fallback sink for larger dead letters: {LARGEST_LIMIT} bytes is the most that SQS takes")
            },
        })
    }

    fn set_attribute(&self, name: &str, value: u64) -> String {
        format!(
            "aws sqs set-queue-attributes --queue-url {} --attributes {name}={value}",
            self.queue_url
        )
    }
}

fn number(attributes: &Attributes, name: &QueueAttributeName) -> Option<u64> {
    attributes.get(name)?.parse().ok()
}
