//! Checks the queue at start, and reads its message limit.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use aws_sdk_sqs::types::QueueAttributeName;

use super::Sqs;
use crate::dead_letter::{DeadLetter, SourceStream, TargetError, Warning};
use crate::failure::BoxError;

/// The smallest message limit that a queue can have, in bytes (SetQueueAttributes, SQS API reference).
pub(super) const SMALLEST_LIMIT: u64 = 1_024;
/// The largest message limit, and that of a new queue, in bytes (the same page).
pub(super) const LARGEST_LIMIT: u64 = 1024 * 1024;
/// The record limit that every stream has at least, in bytes. It is the limit of a new stream.
const RECORD_LIMIT: u64 = 1024 * 1024;

const WEEK_SECONDS: u64 = 7 * 24 * 60 * 60;
const LONGEST_RETENTION_SECONDS: u64 = 2 * WEEK_SECONDS;

type Attributes = HashMap<QueueAttributeName, String>;

impl Sqs {
    pub(super) async fn look_at_target(&self, source: &SourceStream) -> Result<Vec<Warning>, TargetError> {
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

    /// Asks for the maximum size of a message, in bytes, at this moment. Returns `None` if the queue does not
    /// answer.
    pub(super) async fn ask_queue_for_limit(&self) -> Option<u64> {
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

    async fn attributes(&self) -> Result<Attributes, BoxError> {
        let output = self
            .reader
            .get_queue_attributes()
            .queue_url(&self.queue_url)
            .attribute_names(QueueAttributeName::All)
            .send()
            .await;
        let output = output.map_err(|error| {
            let task = format!("read the attributes of the dead-letter queue {:?}", self.queue());
            self.reader.failed(task, "sqs:GetQueueAttributes", error)
        })?;
        let attributes = output.attributes.ok_or("the answer contains no attributes")?;
        let limit = number(&attributes, &QueueAttributeName::MaximumMessageSize);
        self.limit.store(limit.unwrap_or(0), Ordering::Relaxed);
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
        let record = source.max_record_bytes.unwrap_or(RECORD_LIMIT);
        // Base64 makes the payload larger by a third.
        let needed = record.div_ceil(3) * 4 + DeadLetter::MAX_ENVELOPE_BYTES as u64;
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
