//! The SendMessageBatch call, and the interpretation of its answer.

use std::collections::HashMap;
use std::sync::Arc;

use aws_sdk_sqs::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_sqs::operation::send_message_batch::SendMessageBatchError;
use aws_sdk_sqs::types::SendMessageBatchRequestEntry;

use super::Sqs;
use crate::dead_letter::Receipt;
use crate::dead_letter::schedule::{Request, Schedule, SharedError};
use crate::dead_letter::service::{CallError, EntryError, in_order};

const SEND_MESSAGE_BATCH: &str = "SendMessageBatch";

impl Sqs {
    /// Makes one SendMessageBatch call. Returns an answer for each entry.
    pub(super) async fn send_message_batch(
        &self,
        schedule: &Schedule,
        request: &Request,
    ) -> Result<Vec<Result<Receipt, SharedError>>, CallError> {
        let is_fifo = self.is_fifo();
        let entries = schedule
            .entries(request)
            .enumerate()
            .map(|(place, entry)| {
                let builder = SendMessageBatchRequestEntry::builder()
                    .id(place.to_string())
                    .message_body(entry.text());
                let builder = match is_fifo {
                    true => builder
                        .message_group_id(&entry.key)
                        .message_deduplication_id(&entry.deduplication_id),
                    false => builder,
                };
                builder.build()
            })
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| CallError::new(SEND_MESSAGE_BATCH, None, error))?;
        let sent = entries.len();
        let output = self
            .writer
            .send_message_batch()
            .queue_url(&self.queue_url)
            .set_entries(Some(entries))
            .send()
            .await
            .map_err(call_error)?;
        let mut answers: HashMap<String, Result<Receipt, SharedError>> = HashMap::new();
        for sent in output.successful {
            let place = format!("{}/{}", self.queue(), sent.message_id);
            answers.insert(sent.id, Ok(Receipt::new(place)));
        }
        for failed in output.failed {
            let error = EntryError::Failed {
                code: failed.code,
                message: failed.message.unwrap_or_default(),
            };
            answers.insert(failed.id, Err(Arc::new(error)));
        }
        Ok(in_order(answers, sent))
    }
}

fn call_error(error: SdkError<SendMessageBatchError>) -> CallError {
    // Error codes of both protocols: JSON, and the older one with the service's name in front.
    let code = error.code().and_then(|code| code.rsplit(['.', '#']).next());
    let for_content = matches!(
        code,
        Some(
            "BatchRequestTooLong"
                | "InvalidMessageContents"
                | "InvalidParameterValue"
                | "InvalidParameterValueException"
        )
    );
    let refusal = for_content.then(|| error.message().unwrap_or_default().to_owned());
    CallError::new(SEND_MESSAGE_BATCH, refusal, error)
}
