//! Checks the dead-letter stream at start, and reads its record limit.

use std::sync::atomic::Ordering;

use aws_sdk_kinesis::types::{RecordDistributionStrategy, StreamDescriptionSummary};

use super::{Kinesis, Payload};
use crate::dead_letter::{DeadLetter, SourceStream, TargetError, Warning};
use crate::failure::BoxError;

/// The smallest record limit that a stream can have, and that of a new stream, in bytes. Records up to this
/// size are never refused for their size (UpdateMaxRecordSize, Kinesis API reference).
pub(super) const SMALLEST_LIMIT: u64 = 1024 * KIB;
/// The largest record limit that a stream can have, in bytes (the same page).
pub(super) const LARGEST_LIMIT: u64 = 10 * 1024 * KIB;

const KIB: u64 = 1024;
const WEEK_HOURS: i32 = 7 * 24;

impl Kinesis {
    pub(super) async fn look_at_target(&self, source: &SourceStream) -> Result<Vec<Warning>, TargetError> {
        let target = self.describe().await.map_err(|error| TargetError::Unreachable {
            name: self.stream.to_string(),
            source: error,
        })?;
        if is_source(&target, source) {
            return Err(TargetError::SourceItself {
                name: self.stream.to_string(),
            });
        }
        let order = self.order_warning(&target);
        let retention = self.retention_warning(&target);
        let limit = self.limit_warning(&target, source);
        Ok([order, retention, limit].into_iter().flatten().collect())
    }

    /// Asks for the maximum size of a record (payload and partition key), in bytes, at this moment. Returns
    /// `None` if the stream does not answer.
    pub(super) async fn ask_stream_for_limit(&self) -> Option<u64> {
        match self.describe().await {
            Ok(target) => record_limit(&target),
            Err(error) => {
                tracing::warn!(
                    stream = %self.stream,
                    error = &*error,
                    "record limit of the dead-letter stream not read; Kinesis decides whether the dead letter is too large"
                );
                None
            }
        }
    }

    async fn describe(&self) -> Result<StreamDescriptionSummary, BoxError> {
        let (name, arn) = self.stream.name_or_arn();
        let output = self
            .reader
            .describe_stream_summary()
            .set_stream_name(name)
            .set_stream_arn(arn)
            .send()
            .await;
        let output = output.map_err(|error| {
            let task = format!("describe the dead-letter stream {:?}", self.stream.to_string());
            self.reader.failed(task, "kinesis:DescribeStreamSummary", error)
        })?;
        let summary = output
            .stream_description_summary
            .ok_or("the answer contains no summary")?;
        self.limit
            .store(record_limit(&summary).unwrap_or(0), Ordering::Relaxed);
        Ok(summary)
    }

    fn order_warning(&self, target: &StreamDescriptionSummary) -> Option<Warning> {
        let strategy = target.record_distribution_strategy.as_ref()?;
        (*strategy == RecordDistributionStrategy::Auto).then(|| Warning {
            message: format!(
                "the dead-letter stream {:?} distributes records by itself (AUTO): dead letters of one partition key have no order",
                self.stream.name()
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
                self.stream.name()
            ),
            remedy: format!(
                "aws kinesis increase-stream-retention-period --stream-name {} --retention-period-hours {WEEK_HOURS}",
                self.stream.name()
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
                self.stream.name()
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

fn record_limit(target: &StreamDescriptionSummary) -> Option<u64> {
    Some(u64::try_from(target.max_record_size_in_kib?).ok()? * KIB)
}
