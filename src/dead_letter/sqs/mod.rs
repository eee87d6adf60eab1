//! A sink that writes dead letters to an SQS queue.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use aws_sdk_sqs::Client;

use super::message::Deduplication;
use super::schedule::{Limits, Request, Schedule, SharedError};
use super::service::{self, CallError, Rests, Service};
use super::{DeadLetter, DeadLetterSink, Receipt, SinkError, SourceStream, Storage, TargetError, Warning};
use crate::aws::{self, Located};

mod call;
mod target;

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
    writer: Located<Client>,
    // A client with the user's retries, for GetQueueAttributes.
    reader: Located<Client>,
    queue_url: String,
    // The maximum size of a message in bytes; 0 while unknown.
    limit: AtomicU64,
    deduplication: Deduplication,
    rests: Rests,
}

/// The limits of SendMessageBatch (SQS API reference): all messages together have the same maximum size as a
/// single one.
const LIMITS: Limits = Limits {
    entries: 10,
    bytes: target::LARGEST_LIMIT,
};

impl Sqs {
    /// Creates a sink that writes to the queue with this URL.
    pub fn new(client: Client, queue_url: impl Into<String>) -> Self {
        Sqs {
            reader: aws::sqs::with_timeout(&client, aws::ATTEMPT_TIMEOUT),
            writer: aws::sqs::without_retries(&client, aws::ATTEMPT_TIMEOUT),
            queue_url: queue_url.into(),
            limit: AtomicU64::new(0),
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

    /// Returns the queue's name.
    fn queue(&self) -> &str {
        self.queue_url.rsplit('/').next().unwrap_or_default()
    }

    fn is_fifo(&self) -> bool {
        self.queue_url.ends_with(".fifo")
    }
}

impl Service for Sqs {
    async fn call(
        &self,
        _: &[DeadLetter],
        schedule: &mut Schedule,
        request: &Request,
    ) -> Result<Vec<Result<Receipt, SharedError>>, CallError> {
        self.send_message_batch(schedule, request).await
    }

    const LARGEST_LIMIT: u64 = target::LARGEST_LIMIT;

    fn known_limit(&self) -> u64 {
        self.limit.load(Ordering::Relaxed).max(target::SMALLEST_LIMIT)
    }

    async fn ask_target_for_limit(&self) -> Option<u64> {
        self.ask_queue_for_limit().await
    }

    fn rests(&self) -> &Rests {
        &self.rests
    }
}

#[async_trait]
impl DeadLetterSink for Sqs {
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
        format!("sqs:{}", self.queue())
    }

    fn storage(&self) -> Vec<Storage> {
        vec![Storage::Queue(self.queue_url.clone())]
    }
}

impl fmt::Debug for Sqs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sqs")
            .field("queue", &self.queue())
            .finish_non_exhaustive()
    }
}
