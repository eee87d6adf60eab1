//! The PublishBatch call, and the interpretation of its answer.

use std::collections::HashMap;
use std::sync::Arc;

use aws_sdk_sns::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_sns::operation::publish_batch::PublishBatchError;
use aws_sdk_sns::types::PublishBatchRequestEntry;

use super::Sns;
use crate::dead_letter::Receipt;
use crate::dead_letter::schedule::{Request, Schedule, SharedError};
use crate::dead_letter::service::{CallError, EntryError, in_order};

const PUBLISH_BATCH: &str = "PublishBatch";

impl Sns {
    /// Makes one PublishBatch call. Returns an answer for each entry.
    pub(super) async fn publish_batch(
        &self,
        schedule: &Schedule,
        request: &Request,
    ) -> Result<Vec<Result<Receipt, SharedError>>, CallError> {
        let is_fifo = self.is_fifo();
        let entries = schedule.entries(request).enumerate().map(|(place, entry)| {
            let builder = PublishBatchRequestEntry::builder()
                .id(place.to_string())
                .message(entry.text());
            let builder = match is_fifo {
                true => builder
                    .message_group_id(&entry.key)
                    .message_deduplication_id(&entry.deduplication_id),
                false => builder,
            };
            builder.build()
        });
        let entries: Vec<_> = entries
            .collect::<Result<_, _>>()
            .map_err(|error| CallError::new(PUBLISH_BATCH, None, error))?;
        let sent = entries.len();
        let output = self
            .writer
            .publish_batch()
            .topic_arn(&self.topic_arn)
            .set_publish_batch_request_entries(Some(entries))
            .send()
            .await
            .map_err(call_error)?;
        let mut answers: HashMap<String, Result<Receipt, SharedError>> = HashMap::new();
        for sent in output.successful.unwrap_or_default() {
            if let (Some(id), Some(message)) = (sent.id, sent.message_id) {
                answers.insert(id, Ok(Receipt::new(format!("{}/{message}", self.topic()))));
            }
        }
        for failed in output.failed.unwrap_or_default() {
            let error = EntryError::Failed {
                code: failed.code,
                message: failed.message.unwrap_or_default(),
            };
            answers.insert(failed.id, Err(Arc::new(error)));
        }
        Ok(in_order(answers, sent))
    }
}

fn call_error(error: SdkError<PublishBatchError>) -> CallError {
    let for_content = matches!(
        error.code(),
        Some("BatchRequestTooLong" | "InvalidParameter" | "InvalidParameterValue" | "ValidationError")
    );
    let refusal = for_content.then(|| error.message().unwrap_or_default().to_owned());
    CallError::new(PUBLISH_BATCH, refusal, error)
}
