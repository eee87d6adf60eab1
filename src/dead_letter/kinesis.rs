//! A sink that writes dead letters to a Kinesis stream.

use std::fmt;

use async_trait::async_trait;
use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::types::{RecordDistributionStrategy, StreamDescriptionSummary};
use bytes::Bytes;

use super::{DeadLetter, DeadLetterSink, Receipt, SinkError, SourceStream, Storage, TargetError, Warning};
use crate::digest::Digest;
use crate::record::StreamId;

mod stream_writer;

use stream_writer::{KIB, LARGEST_LIMIT, SMALLEST_LIMIT, record_limit};
pub(crate) use stream_writer::{StreamRecord, StreamWriter};

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
    writer: StreamWriter,
    payload: Payload,
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

impl Kinesis {
    /// Creates a sink that writes to this stream, given by its name or ARN. A stream in another account needs
    /// its ARN. The client's region must be that of the ARN.
    ///
    /// If the stream is neither a name nor an ARN, [`check`](DeadLetterSink::check) fails, and a put returns
    /// [`Unavailable`](SinkError::Unavailable) without a call.
    pub fn new(client: Client, stream: impl Into<StreamId>) -> Self {
        Kinesis {
            writer: StreamWriter::new(&client, stream.into(), "dead_letter::Kinesis::new"),
            payload: Payload::default(),
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
        self.writer.seed(seed);
        self
    }
}

impl fmt::Debug for Kinesis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kinesis")
            .field("stream", &self.writer.stream().to_string())
            .field("payload", &self.payload)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl DeadLetterSink for Kinesis {
    async fn put(&self, letters: &[DeadLetter]) -> Vec<Result<Receipt, SinkError>> {
        let payload = self.payload;
        let records: Vec<Written> = letters.iter().map(|letter| Written { letter, payload }).collect();
        self.writer.put(&records).await
    }

    async fn check(&self, source: &SourceStream) -> Result<Vec<Warning>, TargetError> {
        let target = self.writer.describe().await?;
        if is_source(&target, source) {
            return Err(TargetError::SourceItself {
                name: self.writer.stream().to_string(),
            });
        }
        let order = self.order_warning(&target);
        let retention = self.retention_warning(&target);
        let limit = self.limit_warning(&target, source);
        Ok([order, retention, limit].into_iter().flatten().collect())
    }

    fn name(&self) -> String {
        self.writer.name()
    }

    fn storage(&self) -> Vec<Storage> {
        vec![self.writer.storage()]
    }
}

/// A dead letter as a record of the stream.
struct Written<'a> {
    letter: &'a DeadLetter,
    payload: Payload,
}

impl StreamRecord for Written<'_> {
    fn key(&self) -> String {
        partition_key(self.letter)
    }

    fn data(&self) -> Bytes {
        match self.payload {
            Payload::Enveloped => self.letter.encode(),
            Payload::Raw => self.letter.payload.clone(),
        }
    }
}

/// Returns the record's own key if Kinesis takes it (1 to 256 characters), else the key's digest. A record
/// without a key uses the dead letter's id.
pub(crate) fn partition_key(letter: &DeadLetter) -> String {
    match letter.partition_key.as_deref() {
        None => letter.id.to_string(),
        Some(key) if (1..=256).contains(&key.chars().count()) => key.to_owned(),
        // All dead letters of the key share the digest, so that they stay in order.
        Some(key) => Digest::of(key).to_string(),
    }
}

const WEEK_HOURS: i32 = 7 * 24;

impl Kinesis {
    fn order_warning(&self, target: &StreamDescriptionSummary) -> Option<Warning> {
        let strategy = target.record_distribution_strategy.as_ref()?;
        (*strategy == RecordDistributionStrategy::Auto).then(|| Warning {
            message: format!(
                "the dead-letter stream {:?} distributes records by itself (AUTO): dead letters of one partition key have no order",
                self.writer.stream().name()
            ),
            remedy: format!(
                "aws kinesis update-stream-record-distribution-strategy --stream-arn {} --record-distribution-strategy USER_PARTITION_KEY",
                target.stream_arn
            ),
        })
    }

    fn retention_warning(&self, target: &StreamDescriptionSummary) -> Option<Warning> {
        let hours = target.retention_period_hours;
        (hours < WEEK_HOURS).then(|| Warning {
            message: format!(
                "the dead-letter stream {:?} keeps dead letters for only {hours} hours; after that they are lost",
                self.writer.stream().name()
            ),
            remedy: format!(
                "aws kinesis increase-stream-retention-period --stream-name {} --retention-period-hours {WEEK_HOURS}",
                self.writer.stream().name()
            ),
        })
    }

    fn limit_warning(&self, target: &StreamDescriptionSummary, source: &SourceStream) -> Option<Warning> {
        let limit = record_limit(target)?;
        let envelope = match self.payload {
            Payload::Enveloped => DeadLetter::MAX_ENVELOPE_BYTES as u64,
            Payload::Raw => 0,
        };
        // If the source's limit is unknown, it is at least the smallest possible one.
        let needed = source.max_record_bytes.unwrap_or(SMALLEST_LIMIT) + envelope;
        (limit < needed).then(|| Warning {
            message: format!(
                "the dead-letter stream {:?} takes records of up to {limit} bytes, but a dead letter may have {needed}; larger ones are refused",
                self.writer.stream().name()
            ),
            remedy: if limit < LARGEST_LIMIT {
                format!(
                    "aws kinesis update-max-record-size --stream-arn {} --max-record-size-in-ki-b {}",
                    target.stream_arn,
                    needed.min(LARGEST_LIMIT).div_ceil(KIB)
                )
            } else {
                "add a fallback sink: 10240 KiB is the most that a Kinesis stream takes".to_owned()
            },
        })
    }
}

fn is_source(target: &StreamDescriptionSummary, source: &SourceStream) -> bool {
    match source.arn.as_deref() {
        // Streams with the same name can exist in every account and region, so the ARNs are compared.
        Some(arn) if !target.stream_arn.is_empty() => arn == target.stream_arn,
        _ => source.name == target.stream_name,
    }
}
