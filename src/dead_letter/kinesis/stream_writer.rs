//! Writes records to a stream with PutRecords.

use std::sync::Arc;

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_kinesis::operation::put_records::PutRecordsError;
use aws_sdk_kinesis::primitives::Blob;
use aws_sdk_kinesis::types::{PutRecordsRequestEntry, PutRecordsResultEntry, StreamDescriptionSummary};
use bytes::Bytes;

use crate::aws::{self, Located, stream_summary};
use crate::dead_letter::aws_writer::{
    Answers, AwsWriter, CallError, Entry, EntryError, Limits, Request, Schedule, Service, SharedError,
    SizeLimit, has_code,
};
use crate::dead_letter::{Receipt, SinkError, Storage, TargetError};
use crate::failure::BoxError;
use crate::record::StreamId;

/// A record to put into a stream.
pub(crate) trait StreamRecord: Sync {
    /// Returns the partition key, which must have 1 to 256 characters.
    fn key(&self) -> String;

    /// Returns the data. The writer calls this again when it sends the record again: the client needs to own
    /// the data, and few records need another try.
    fn data(&self) -> Bytes;
}

/// Writes records to a stream. Records of one partition key are written one after the other, each when the
/// one ahead of it is confirmed.
pub(crate) struct StreamWriter {
    // A client without retries, for PutRecords.
    write_client: Located<Client>,
    // A client with the user's retries, for DescribeStreamSummary.
    read_client: Located<Client>,
    stream: StreamId,
    /// The method that took the stream, for errors.
    setting: &'static str,
    writer: AwsWriter,
}

/// The smallest record limit that a stream can have, and that of a new stream, in bytes. Records up to this
/// size are never refused for their size (UpdateMaxRecordSize, Kinesis API reference).
pub(super) const SMALLEST_LIMIT: u64 = 1024 * KIB;
/// The largest record limit that a stream can have, in bytes (the same page).
pub(super) const LARGEST_LIMIT: u64 = 10 * 1024 * KIB;

pub(super) const KIB: u64 = 1024;

/// The limits of PutRecords (Kinesis API reference). Payloads and partition keys count towards the bytes.
const LIMITS: Limits = Limits {
    entries: 500,
    bytes: 10 * 1024 * 1024,
};

impl StreamWriter {
    /// Creates a writer. `setting` is the method that took the stream.
    pub(crate) fn new(client: &Client, stream: StreamId, setting: &'static str) -> Self {
        StreamWriter {
            read_client: aws::kinesis::with_timeout(client, aws::ATTEMPT_TIMEOUT),
            write_client: aws::kinesis::without_retries(client, aws::ATTEMPT_TIMEOUT),
            stream,
            setting,
            writer: AwsWriter::new(SizeLimit::within(SMALLEST_LIMIT..=LARGEST_LIMIT)),
        }
    }

    /// Makes the jitter repeatable.
    pub(super) fn seed(&mut self, seed: u64) {
        self.writer.seed(seed);
    }

    pub(super) fn stream(&self) -> &StreamId {
        &self.stream
    }

    /// Returns the stream's name for logs and ledgers.
    pub(crate) fn name(&self) -> String {
        format!("kinesis:{}", self.stream)
    }

    pub(crate) fn storage(&self) -> Storage {
        Storage::Stream(self.stream.clone())
    }

    /// Writes the records. Returns a result for each.
    pub(crate) async fn put<R: StreamRecord>(&self, records: &[R]) -> Vec<Result<Receipt, SinkError>> {
        if let Err(error) = self.stream.check(self.setting) {
            let unavailable = |_| Err(SinkError::unavailable(error.clone()));
            return records.iter().map(unavailable).collect();
        }
        let entries = records.iter().map(entry).collect();
        let put = Put {
            writer: self,
            records,
        };
        self.writer.write(&put, Schedule::new(entries, LIMITS)).await
    }

    /// Describes the stream, and remembers its record limit.
    pub(crate) async fn describe(&self) -> Result<StreamDescriptionSummary, TargetError> {
        let summary = self.summary().await;
        summary.map_err(|source| TargetError::Unreachable {
            name: self.stream.to_string(),
            source,
        })
    }

    async fn summary(&self) -> Result<StreamDescriptionSummary, BoxError> {
        self.stream.check(self.setting)?;
        let (name, arn) = self.stream.name_or_arn();
        let output = self
            .read_client
            .describe_stream_summary()
            .set_stream_name(name)
            .set_stream_arn(arn)
            .send()
            .await;
        let output = output.map_err(|error| {
            let task = format!("describe the dead-letter stream {:?}", self.stream.to_string());
            self.read_client
                .failed(task, "kinesis:DescribeStreamSummary", error)
        })?;
        let summary = stream_summary(output)?;
        self.writer.limit().report(record_limit(&summary));
        Ok(summary)
    }
}

fn entry(record: &impl StreamRecord) -> Entry {
    let (key, data) = (record.key(), record.data());
    Entry {
        // "The record size limit applies to the total size of the partition key and data blob" (PutRecords,
        // Kinesis API reference).
        bytes: (key.len() + data.len()) as u64,
        key,
        data,
        deduplication_id: String::new(),
        place: String::new(),
    }
}

/// The records of one put.
struct Put<'a, R> {
    writer: &'a StreamWriter,
    records: &'a [R],
}

const PUT_RECORDS: &str = "PutRecords";

impl<R: StreamRecord> Service for Put<'_, R> {
    async fn call(&self, schedule: &mut Schedule, request: &Request) -> Result<Answers, CallError> {
        let taken = schedule.take_data(request);
        let entries = schedule
            .entries(request)
            .zip(taken)
            .map(|(entry, (record, data))| {
                let data = match data.is_empty() {
                    true => self.records[record].data(),
                    false => data,
                };
                PutRecordsRequestEntry::builder()
                    .partition_key(&entry.key)
                    .data(Blob::new(data))
                    .build()
            })
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| CallError::failed(PUT_RECORDS, error))?;
        let sent = entries.len();
        let stream = &self.writer.stream;
        let (name, arn) = stream.name_or_arn();
        let output = self
            .writer
            .write_client
            .put_records()
            .set_stream_name(name)
            .set_stream_arn(arn)
            .set_records(Some(entries))
            .send()
            .await
            .map_err(|error| call_error(error, schedule.entries(request)))?;
        if output.records.len() != sent {
            return Err(CallError::Miscounted {
                operation: PUT_RECORDS,
                sent,
                answered: output.records.len(),
            });
        }
        let answers = output.records.into_iter();
        Ok(answers.map(|entry| answer(stream, entry)).collect())
    }

    async fn ask_for_limit(&self) -> Option<u64> {
        match self.writer.summary().await {
            Ok(target) => record_limit(&target),
            Err(error) => {
                tracing::warn!(
                    stream = self.writer.stream.name(),
                    error = &*error,
                    "record limit of the dead-letter stream not read; Kinesis decides whether the dead letter is too large"
                );
                None
            }
        }
    }
}

fn answer(stream: &StreamId, entry: PutRecordsResultEntry) -> Result<Receipt, SharedError> {
    match entry {
        PutRecordsResultEntry {
            error_code: None,
            shard_id: Some(shard),
            sequence_number: Some(number),
            ..
        } => Ok(Receipt::new(format!("{}/{shard}/{number}", stream.name()))),
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

fn call_error<'a>(
    error: SdkError<PutRecordsError>,
    mut entries: impl Iterator<Item = &'a Entry>,
) -> CallError {
    const CONTENT_CODES: &[&str] = &[
        "ValidationException",
        "InvalidArgumentException",
        "SerializationException",
    ];
    // The request is too large as a whole. A proxy may also return this status.
    let is_too_large = error
        .raw_response()
        .is_some_and(|raw| raw.status().as_u16() == 413);
    if !is_too_large && !has_code(&error, CONTENT_CODES) {
        return CallError::failed(PUT_RECORDS, error);
    }
    // Kinesis compares the limit that it states with the data alone.
    let is_over = |limit: &u64| {
        entries
            .next()
            .is_some_and(|entry| entry.bytes - entry.key.len() as u64 > *limit)
    };
    CallError::Refused {
        operation: PUT_RECORDS,
        stated_limit: error.message().and_then(limit_stated_in).filter(is_over),
        source: error.into(),
    }
}

/// Returns the limit, in bytes, that Kinesis states when it refuses a record's data: "… at
/// 'records.1.member.data' failed to satisfy constraint: Member must have length less than or equal to
/// 1048576".
fn limit_stated_in(message: &str) -> Option<u64> {
    let (_, constraint) = message.split_once(".member.data' ")?;
    let (_, number) = constraint.split_once("length less than or equal to ")?;
    let digits = number.len() - number.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    number[..digits].parse().ok()
}

pub(super) fn record_limit(target: &StreamDescriptionSummary) -> Option<u64> {
    Some(u64::try_from(target.max_record_size_in_kib?).ok()? * KIB)
}
