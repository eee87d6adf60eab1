//! The description of a stream.

use aws_sdk_kinesis::operation::describe_stream_summary::DescribeStreamSummaryOutput;
use aws_sdk_kinesis::types::StreamDescriptionSummary;

/// Returns the description in an answer of DescribeStreamSummary. Returns an error if the answer is empty or
/// incomplete: the SDK replaces a missing field by an empty text or 0.
pub(crate) fn stream_summary(
    answer: DescribeStreamSummaryOutput,
) -> Result<StreamDescriptionSummary, IncompleteSummary> {
    let is_complete = |summary: &StreamDescriptionSummary| {
        // No stream keeps its records for less than a day.
        !summary.stream_arn.is_empty() && summary.retention_period_hours > 0
    };
    answer
        .stream_description_summary
        .filter(is_complete)
        .ok_or(IncompleteSummary)
}

#[derive(Debug, thiserror::Error)]
#[error("DescribeStreamSummary returned an answer without the ARN or the retention of the stream")]
pub(crate) struct IncompleteSummary;

#[cfg(test)]
mod tests {
    use aws_sdk_kinesis::primitives::DateTime;
    use aws_sdk_kinesis::types::StreamStatus;

    use super::*;

    fn answer(arn: &str, hours: i32) -> DescribeStreamSummaryOutput {
        let summary = StreamDescriptionSummary::builder()
            .stream_name("orders")
            .stream_arn(arn)
            .stream_status(StreamStatus::Active)
            .retention_period_hours(hours)
            .stream_creation_timestamp(DateTime::from_secs(1_700_000_000))
            .set_enhanced_monitoring(Some(Vec::new()))
            .open_shard_count(1)
            .build()
            .expect("complete");
        let answer = DescribeStreamSummaryOutput::builder();
        answer.stream_description_summary(summary).build()
    }

    #[test]
    fn description_without_a_field_is_refused() {
        assert!(stream_summary(answer("arn:aws:kinesis:us-east-1:1:stream/orders", 24)).is_ok());
        assert!(stream_summary(answer("arn:aws:kinesis:us-east-1:1:stream/orders", 0)).is_err());
        assert!(stream_summary(answer("", 24)).is_err());
        assert!(stream_summary(DescribeStreamSummaryOutput::builder().build()).is_err());
    }
}
