//! Messages of Lambda about a batch that it gave up.
//!
//! Source: Lambda developer guide, Kinesis, on-failure destinations. Messages to SQS and SNS name the batch's
//! place in its stream; objects in S3 also contain the whole event. Lambda may omit any field, and an omitted
//! field is `None`.

use std::borrow::Cow;
use std::time::SystemTime;

use serde::{Deserialize, Deserializer};

use crate::lambda_event::{ParseEventError, RawRecords, stream};
use crate::record::{Record, SequenceNumber, ShardId};

/// A message of an on-failure destination.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct OnFailure {
    /// The request id of the last invocation.
    pub request_id: Option<String>,
    /// The ARN of the function.
    pub function_arn: Option<String>,
    /// The reason why Lambda gave up: `RetryAttemptsExhausted` or `RecordAgeExceeded`.
    pub condition: Option<String>,
    /// The approximate number of invocations.
    pub invoke_count: Option<u32>,
    /// The error of the function, for example `Unhandled`. `None` if the function returned a response that
    /// named failed records.
    pub function_error: Option<String>,
    /// The function's version.
    pub version: Option<String>,
    /// The time at which Lambda gave up.
    pub timestamp: Option<SystemTime>,
    /// The stream's name.
    pub stream: Option<String>,
    /// The stream's ARN.
    pub stream_arn: Option<String>,
    /// The shard of the batch.
    pub shard: Option<ShardId>,
    /// The first record of the batch.
    pub start: Option<SequenceNumber>,
    /// The last record of the batch.
    pub end: Option<SequenceNumber>,
    /// The time at which the first record arrived.
    pub first_arrival: Option<SystemTime>,
    /// The time at which the last record arrived.
    pub last_arrival: Option<SystemTime>,
    /// The number of records as put into the stream: an aggregate counts as one.
    pub batch_size: Option<u64>,
    /// The event as JSON, if the destination is a bucket.
    pub payload: Option<String>,
}

/// The text is not a message of an on-failure destination of a Kinesis event source mapping, or cannot be
/// read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ParseOnFailureError {
    /// The text is no such message.
    #[error("not a message of a Lambda on-failure destination for Kinesis")]
    Foreign,
    /// The text begins like such a message, and cannot be read.
    #[error("the message of a Lambda on-failure destination cannot be read")]
    Damaged(#[source] serde_json::Error),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    #[serde(default)]
    request_context: Option<RequestContext>,
    #[serde(default)]
    response_context: Option<ResponseContext>,
    #[serde(default, deserialize_with = "time")]
    timestamp: Option<SystemTime>,
    #[serde(rename = "KinesisBatchInfo")]
    batch: Batch,
    #[serde(default)]
    payload: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RequestContext {
    request_id: Option<String>,
    function_arn: Option<String>,
    condition: Option<String>,
    approximate_invoke_count: Option<u32>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ResponseContext {
    function_error: Option<String>,
    executed_version: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Batch {
    shard_id: Option<String>,
    start_sequence_number: Option<String>,
    end_sequence_number: Option<String>,
    #[serde(deserialize_with = "time")]
    approximate_arrival_of_first_record: Option<SystemTime>,
    #[serde(deserialize_with = "time")]
    approximate_arrival_of_last_record: Option<SystemTime>,
    batch_size: Option<u64>,
    stream_arn: Option<String>,
}

/// Reads a time. A time that cannot be read becomes `None`, because only the records matter.
fn time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SystemTime>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    Ok(text.and_then(|text| humantime::parse_rfc3339_weak(&text).ok()))
}

impl OnFailure {
    /// Reads a message's JSON.
    pub fn parse(json: &[u8]) -> Result<Self, ParseOnFailureError> {
        #[derive(Deserialize)]
        struct Kind {
            #[serde(rename = "KinesisBatchInfo")]
            batch: Option<serde::de::IgnoredAny>,
        }
        match serde_json::from_slice(json) {
            Ok(Kind { batch: Some(_) }) => {}
            _ => return Err(ParseOnFailureError::Foreign),
        }
        let raw: Raw = serde_json::from_slice(json).map_err(ParseOnFailureError::Damaged)?;
        let request = raw.request_context.unwrap_or_default();
        let response = raw.response_context.unwrap_or_default();
        let number = |text: Option<String>| text?.try_into().ok();
        let batch = raw.batch;
        Ok(OnFailure {
            request_id: request.request_id,
            function_arn: request.function_arn,
            condition: request.condition,
            invoke_count: request.approximate_invoke_count,
            function_error: response.function_error,
            version: response.executed_version,
            timestamp: raw.timestamp,
            stream: batch.stream_arn.as_deref().and_then(stream).map(str::to_owned),
            stream_arn: batch.stream_arn.filter(|arn| stream(arn).is_some()),
            shard: batch
                .shard_id
                .filter(|shard| !shard.is_empty())
                .map(ShardId::from),
            start: number(batch.start_sequence_number),
            end: number(batch.end_sequence_number),
            first_arrival: batch.approximate_arrival_of_first_record,
            last_arrival: batch.approximate_arrival_of_last_record,
            batch_size: batch.batch_size,
            payload: raw.payload,
        })
    }

    /// Returns the records of the event in the message, as Kinesis has them. `None` if the message has no
    /// event.
    pub fn records(&self) -> Option<Result<Vec<Record>, ParseEventError>> {
        #[derive(Deserialize)]
        struct Event<'a> {
            #[serde(rename = "Records", borrow)]
            records: RawRecords<'a>,
        }
        let payload = self.payload.as_deref()?;
        let event = serde_json::from_str::<Event<'_>>(payload);
        Some(match event {
            Ok(event) => event.records.open().map(|(records, _)| records),
            Err(error) => Err(ParseEventError::Json(error.into())),
        })
    }

    /// Returns the function's name.
    pub fn function(&self) -> Option<&str> {
        // arn:aws:lambda:region:account:function:name[:version]
        self.function_arn.as_deref()?.split(':').nth(6)
    }

    /// Returns what is known about the batch, in one line.
    pub(in crate::replay) fn story(&self) -> String {
        let or = |text: Option<Cow<'_, str>>| text.unwrap_or(Cow::Borrowed("?")).into_owned();
        let text = |text: &Option<String>| or(text.as_deref().map(Cow::Borrowed));
        let time =
            |time: Option<SystemTime>| or(time.map(|time| crate::rfc3339::format(time).to_string().into()));
        format!(
            "function {}, {} after {} invocations, request {}; arrived from {} to {}",
            or(self.function().map(Cow::Borrowed)),
            text(&self.condition),
            or(self.invoke_count.map(|count| count.to_string().into())),
            text(&self.request_id),
            time(self.first_arrival),
            time(self.last_arrival),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example in the developer guide.
    const MESSAGE: &str = r#"{"requestContext":{"requestId":"c9b8fa9f-5a7f-xmpl-af9c-0c604cde93a5",
        "functionArn":"arn:aws:lambda:us-east-2:123456789012:function:myfunction",
        "condition":"RetryAttemptsExhausted","approximateInvokeCount":1},
        "responseContext":{"statusCode":200,"executedVersion":"$LATEST","functionError":"Unhandled"},
        "version":"1.0","timestamp":"2019-11-14T00:38:06.021Z",
        "KinesisBatchInfo":{"shardId":"shardId-000000000001",
        "startSequenceNumber":"49601189658422359378836298521827638475320189012309704722",
        "endSequenceNumber":"49601189658422359378836298522902373528957594348623495186",
        "approximateArrivalOfFirstRecord":"2019-11-14T00:38:04.835Z",
        "approximateArrivalOfLastRecord":"2019-11-14T00:38:05.580Z",
        "batchSize":500,"streamArn":"arn:aws:kinesis:us-east-2:123456789012:stream/mystream"}}"#;

    #[test]
    fn the_guides_message_is_read_whole() {
        let read = OnFailure::parse(MESSAGE.as_bytes()).expect("a valid message");
        assert_eq!(read.function(), Some("myfunction"));
        assert_eq!(read.condition.as_deref(), Some("RetryAttemptsExhausted"));
        assert_eq!((read.invoke_count, read.batch_size), (Some(1), Some(500)));
        assert_eq!(read.stream.as_deref(), Some("mystream"));
        assert_eq!(read.shard, Some("shardId-000000000001".into()));
        assert!(read.start < read.end && read.first_arrival < read.last_arrival);
        assert!(read.timestamp.is_some() && read.payload.is_none());
    }

    #[test]
    fn anything_may_be_missing_but_what_makes_it_one() {
        let read = OnFailure::parse(br#"{"KinesisBatchInfo":{}}"#).expect("a valid message");
        assert_eq!((read.stream, read.start, read.condition), (None, None, None));
        let odd = br#"{"KinesisBatchInfo":{"streamArn":"x","startSequenceNumber":"-1","approximateArrivalOfFirstRecord":"?"},"timestamp":null}"#;
        let read = OnFailure::parse(odd).expect("a valid message");
        assert_eq!((read.stream, read.start, read.first_arrival), (None, None, None));
        for foreign in [
            "{}",
            "[]",
            "no json",
            r#"{"KinesisBatchInfo":null}"#,
            r#"{"DDBStreamBatchInfo":{}}"#,
        ] {
            let error = OnFailure::parse(foreign.as_bytes()).expect_err(foreign);
            assert!(matches!(error, ParseOnFailureError::Foreign), "{foreign}");
        }
        let damaged = OnFailure::parse(br#"{"KinesisBatchInfo":7}"#).expect_err("not an object");
        assert!(matches!(damaged, ParseOnFailureError::Damaged(_)), "{damaged:?}");
    }
}
