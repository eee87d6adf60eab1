//! One PutRecords call, and what its answer says.

use std::sync::Arc;

use aws_sdk_kinesis::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_kinesis::operation::put_records::PutRecordsError;
use aws_sdk_kinesis::primitives::Blob;
use aws_sdk_kinesis::types::{PutRecordsRequestEntry, PutRecordsResultEntry};

use super::Kinesis;
use super::schedule::{Request, Schedule, SharedError};
use crate::dead_letter::Receipt;

impl Kinesis {
    /// One PutRecords call: an answer for each entry.
    pub(super) async fn call(
        &self,
        schedule: &Schedule,
        request: &Request,
    ) -> Result<Vec<Result<Receipt, SharedError>>, CallError> {
        let entries = schedule
            .entries(request)
            .map(|entry| {
                PutRecordsRequestEntry::builder()
                    .partition_key(&entry.key)
                    .data(Blob::new(entry.data.as_ref()))
                    .build()
            })
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| CallError::Request(Box::new(SdkError::construction_failure(error))))?;
        let sent = entries.len();
        let output = self
            .writer
            .put_records()
            .stream_name(&self.stream)
            .set_records(Some(entries))
            .send()
            .await
            .map_err(|error| CallError::Request(Box::new(error)))?;
        if output.records.len() != sent {
            return Err(CallError::Miscounted {
                sent,
                answered: output.records.len(),
            });
        }
        Ok(output
            .records
            .into_iter()
            .map(|entry| self.answer(entry))
            .collect())
    }

    fn answer(&self, entry: PutRecordsResultEntry) -> Result<Receipt, SharedError> {
        match entry {
            PutRecordsResultEntry {
                error_code: None,
                shard_id: Some(shard),
                sequence_number: Some(number),
                ..
            } => Ok(Receipt::new(format!("{}/{shard}/{number}", self.stream))),
            PutRecordsResultEntry {
                error_code: Some(code),
                error_message,
                ..
            } => Err(Arc::new(EntryError::Failed {
                code,
                message: error_message.unwrap_or_default(),
            })),
            _ => Err(Arc::new(EntryError::Unconfirmed)),
        }
    }
}

/// The limit that the service names when it refuses a record's data, in bytes: "… at
/// 'records.1.member.data' failed to satisfy constraint: Member must have length less than or equal to
/// 1048576".
pub(super) fn limit_named_in(message: &str) -> Option<u64> {
    let (_, constraint) = message.split_once(".member.data' ")?;
    let (_, number) = constraint.split_once("length less than or equal to ")?;
    let digits = number.len() - number.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    number[..digits].parse().ok()
}

/// A PutRecords call that says nothing of its entries.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    #[error("the call to PutRecords failed")]
    Request(#[source] Box<SdkError<PutRecordsError>>),
    #[error("Kinesis answered for {answered} entries, {sent} were sent; none counts as written")]
    Miscounted { sent: usize, answered: usize },
}

impl CallError {
    /// What the service says of the request, if it refused it for what it holds.
    pub(super) fn refusal(&self) -> Option<String> {
        let CallError::Request(error) = self else {
            return None;
        };
        let content = match error.code() {
            Some("ValidationException" | "InvalidArgumentException" | "SerializationException") => true,
            // Too large as a whole, which a server in between may also say.
            _ => error
                .raw_response()
                .is_some_and(|raw| raw.status().as_u16() == 413),
        };
        content.then(|| error.message().unwrap_or_default().to_owned())
    }
}

/// An entry of a request that is not written, or not known to be.
#[derive(Debug, thiserror::Error)]
enum EntryError {
    #[error("Kinesis did not take the letter: {code}: {message}")]
    Failed { code: String, message: String },
    #[error("Kinesis answered with neither a sequence number nor an error")]
    Unconfirmed,
}
