//! A sink that writes dead letters to a Kinesis stream.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use aws_sdk_kinesis::Client;
use bytes::Bytes;

use super::schedule::{Entry, Limits, Request, Schedule, SharedError};
use super::service::{self, CallError, Rests, Service};
use super::{DeadLetter, DeadLetterSink, Receipt, SinkError, SourceStream, Storage, TargetError, Warning};
use crate::StreamId;
use crate::aws::{self, Located};
use crate::digest::Digest;

mod call;
mod target;

/// Writes dead letters to a Kinesis stream, with the partition keys of their records.
///
/// - A dead letter is written as [`Payload::Enveloped`] by default; see [`payload`](Kinesis::payload).
/// - Dead letters of one partition key are written one after the other, each when the one ahead of it is
///   confirmed. Dead letters of different keys share requests.
/// - A failed write is retried after up to 100, 200, 400 and 800 ms (full jitter). After 5 tries the result
///   is [`Unavailable`](SinkError::Unavailable).
/// - The client's own retries are disabled for writing, because they cannot retry single entries of a
///   request. An attempt ends after 30 s unless the client sets an operation-attempt timeout. All other
///   settings of the client are kept.
/// - Dead letters larger than the stream's limit are [`Refused`](SinkError::Refused). The sink reads the
///   limit in [`check`](DeadLetterSink::check), and again when a dead letter is larger than the known limit.
///
/// For a record without a partition key, the dead letter's id takes the place of the key. A key that Kinesis
/// does not take is replaced by its SHA-256 digest: the KPL allows any key inside an aggregated record,
/// Kinesis only 1 to 256 characters.
///
/// Permissions: `kinesis:PutRecords` and `kinesis:DescribeStreamSummary` on the stream.
pub struct Kinesis {
    // A client without retries, for PutRecords.
    writer: Located<Client>,
    // A client with the user's retries, for DescribeStreamSummary.
    reader: Located<Client>,
    stream: StreamId,
    payload: Payload,
    // The maximum size of a record in bytes; 0 while unknown.
    limit: AtomicU64,
    rests: Rests,
}

/// The data of a dead letter's record in the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Payload {
    /// The whole dead letter, as [`DeadLetter::encode`] writes it: a JSON header in one line, a line feed,
    /// and the failed record's payload.
    #[default]
    Enveloped,
    /// The failed record's payload alone, for readers that expect only the payload. The stream then contains
    /// neither the error nor the record's position.
    Raw,
}

/// The limits of PutRecords (Kinesis API reference). Payloads and partition keys count towards the bytes.
const LIMITS: Limits = Limits {
    entries: 500,
    bytes: 10 * 1024 * 1024,
};

impl Kinesis {
    /// Creates a sink that writes to this stream, given by its name or ARN. A stream in another account needs
    /// its ARN. The client's region must be that of the ARN.
    pub fn new(client: Client, stream: impl Into<StreamId>) -> Self {
        Kinesis {
            reader: aws::kinesis::with_timeout(&client, aws::ATTEMPT_TIMEOUT),
            writer: aws::kinesis::without_retries(&client, aws::ATTEMPT_TIMEOUT),
            stream: stream.into(),
            payload: Payload::default(),
            limit: AtomicU64::new(0),
            rests: Rests::new(),
        }
    }

    /// Sets the data of a dead letter's record. Default: [`Payload::Enveloped`].
    #[must_use]
    pub fn payload(mut self, payload: Payload) -> Self {
        self.payload = payload;
        self
    }

    /// Makes the jitter repeatable.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.rests = Rests::seeded(seed);
        self
    }

    fn data(&self, letter: &DeadLetter) -> Bytes {
        match self.payload {
            Payload::Enveloped => letter.encode(),
            Payload::Raw => letter.payload.clone(),
        }
    }

    fn entry(&self, letter: &DeadLetter) -> Entry {
        let key = partition_key(letter);
        let data = self.data(letter);
        Entry {
            // "The record size limit applies to the total size of the partition key and data blob"
            // (PutRecords, Kinesis API reference).
            bytes: (key.len() + data.len()) as u64,
            key,
            data,
            deduplication_id: String::new(),
            place: String::new(),
        }
    }
}

impl Service for Kinesis {
    async fn call(
        &self,
        letters: &[DeadLetter],
        schedule: &mut Schedule,
        request: &Request,
    ) -> Result<Vec<Result<Receipt, SharedError>>, CallError> {
        self.put_records(letters, schedule, request).await
    }

    const LARGEST_LIMIT: u64 = target::LARGEST_LIMIT;

    fn known_limit(&self) -> u64 {
        self.limit.load(Ordering::Relaxed).max(target::SMALLEST_LIMIT)
    }

    async fn ask_target_for_limit(&self) -> Option<u64> {
        self.ask_stream_for_limit().await
    }

    async fn limit_over(&self, entry: &Entry, message: &str) -> Option<u64> {
        let (bytes, data) = (entry.bytes, entry.bytes - entry.key.len() as u64);
        if bytes <= target::SMALLEST_LIMIT {
            return None;
        }
        match service::ask_for_limit(self).await {
            Some(limit) => Some(limit).filter(|&limit| bytes > limit),
            None => call::limit_named_in(message).filter(|&limit| data > limit),
        }
    }

    fn rests(&self) -> &Rests {
        &self.rests
    }
}

impl fmt::Debug for Kinesis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kinesis")
            .field("stream", &self.stream.to_string())
            .field("payload", &self.payload)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl DeadLetterSink for Kinesis {
    async fn put(&self, letters: &[DeadLetter]) -> Vec<Result<Receipt, SinkError>> {
        let entries = letters.iter().map(|letter| self.entry(letter)).collect();
        service::write(self, letters, Schedule::new(entries, LIMITS)).await
    }

    async fn check(&self, source: &SourceStream) -> Result<Vec<Warning>, TargetError> {
        self.look_at_target(source).await
    }

    fn name(&self) -> String {
        format!("kinesis:{}", self.stream)
    }

    fn storage(&self) -> Vec<Storage> {
        vec![Storage::Stream {
            name: self.stream.name().to_string(),
            arn: self.stream.arn().map(str::to_owned),
        }]
    }
}

/// Returns the record's own key if Kinesis takes it (1 to 256 characters), else the key's digest. A record
/// without a key uses the dead letter's id.
fn partition_key(letter: &DeadLetter) -> String {
    match letter.partition_key.as_deref() {
        None => letter.id.to_string(),
        Some(key) if (1..=256).contains(&key.chars().count()) => key.to_owned(),
        // All dead letters of the key share the digest, so that they stay in order.
        Some(key) => Digest::of(key).to_string(),
    }
}
