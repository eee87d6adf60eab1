//! The PutRecords call, and the interpretation of its answer.

use std::sync::Arc;

use aws_sdk_kinesis::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_kinesis::operation::put_records::PutRecordsError;
use aws_sdk_kinesis::primitives::Blob;
use aws_sdk_kinesis::types::{PutRecordsRequestEntry, PutRecordsResultEntry};

use super::Kinesis;
use crate::dead_letter::schedule::{Request, Schedule, SharedError};
use crate::dead_letter::service::{CallError, EntryError};
use crate::dead_letter::{DeadLetter, Receipt};

impl Kinesis {
    /// Makes one PutRecords call. Returns an answer for each entry.
    pub(super) async fn put_records(
        &self,
        letters: &[DeadLetter],
        schedule: &mut Schedule,
        request: &Request,
    ) -> Result<Vec<Result<Receipt, SharedError>>, CallError> {
        let taken = schedule.take_data(request);
        let entries = schedule
            .entries(request)
            .zip(taken)
            .map(|(entry, (letter, data))| {
                let data = match data.is_empty() {
                    true => self.data(&letters[letter]),
                    false => data,
                };
                PutRecordsRequestEntry::builder()
                    .partition_key(&entry.key)
                    .data(Blob::new(data))
                    .build()
            })
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| CallError::new(PUT_RECORDS, None, error))?;
        let sent = entries.len();
        let (name, arn) = self.stream.name_or_arn();
        let output = self
            .writer
            .put_records()
            .set_stream_name(name)
            .set_stream_arn(arn)
            .set_records(Some(entries))
            .send()
            .await
            .map_err(call_error)?;
        if output.records.len() != sent {
            return Err(CallError::Miscounted {
                operation: PUT_RECORDS,
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
            } => Ok(Receipt::new(format!("{}/{shard}/{number}", self.stream.name()))),
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

/// Returns the limit, in bytes, that Kinesis names when it refuses a record's data: "… at
/// 'records.1.member.data' failed to satisfy constraint: Member must have length less than or equal to
/// 1048576".
pub(super) fn limit_named_in(message: &str) -> Option<u64> {
    let (_, constraint) = message.split_once(".member.data' ")?;
    let (_, number) = constraint.split_once("length less than or equal to ")?;
    let digits = number.len() - number.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    number[..digits].parse().ok()
}

const PUT_RECORDS: &str = "PutRecords";

fn call_error(error: SdkError<PutRecordsError>) -> CallError {
    let for_content = match error.code() {
        Some("ValidationException" | "InvalidArgumentException" | "SerializationException") => true,
        // The request is too large as a whole. A proxy may also return this status.
        _ => error
            .raw_response()
            .is_some_and(|raw| raw.status().as_u16() == 413),
    };
    let refusal = for_content.then(|| error.message().unwrap_or_default().to_owned());
    CallError::new(PUT_RECORDS, refusal, error)
}
