//! A dead-letter queue.

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

/// Writes letters to an SQS queue, each a message that [`DeadLetter::from_json_line`] reads: the payload is in it as
/// base64, as SQS takes nothing but text.
///
/// - In a FIFO queue (its name ends with `.fifo`) the message group is the letter's partition key, or the SHA-256 of one
///   that SQS does not take for a group (1 to 128 letters, digits and punctuation). Each write has a deduplication id of its
///   own: a dead letter that is written again is in the queue again, also within the 5 minutes of SQS's deduplication.
///   In a standard queue letters of one key are sent one after the other as well, but SQS keeps no order there.
/// - What fails is tried 5 times, after up to 100, 200, 400 and 800 ms (full jitter), then it is
///   [`Unavailable`](SinkError::Unavailable).
/// - The client's own retries are switched off for writing. An attempt ends after 30 s unless the client sets an
///   operation-attempt timeout. All else of the client is kept.
/// - Letters larger than the queue takes are [`Refused`](SinkError::Refused): 1 MiB (SQS, quotas), or less if the queue
///   says so; a payload takes a third more than its bytes, and the envelope up to 32 KiB.
///
/// A record without a partition key goes under its letter's id.
///
/// Permissions: `sqs:SendMessage` and `sqs:GetQueueAttributes` on the queue.
pub struct Sqs {
    // Without retries: for SendMessageBatch.
    writer: Located<Client>,
    // With the retries that the user set: for GetQueueAttributes.
    reader: Located<Client>,
    queue_url: String,
    // The most bytes of a message, 0 while unknown.
    limit: AtomicU64,
    deduplication: Deduplication,
    rests: Rests,
}

/// What SendMessageBatch takes (SQS API reference): the messages together as much as one of them.
const LIMITS: Limits = Limits {
    entries: 10,
    bytes: target::LARGEST_LIMIT,
};

impl Sqs {
    /// A sink that writes to the queue with this URL.
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

    /// The queue's name.
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
