//! The records in the event of a Kinesis event source mapping, as Lambda writes them in JSON.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;

use crate::failure::BoxError;
use crate::record::{ParseSequenceNumberError, Record, Source};

/// An event that does not come from a Kinesis event source mapping.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ParseEventError {
    /// The JSON is not that of such an event.
    #[error("the event does not come from a Kinesis event source mapping")]
    Json(#[source] BoxError),
    /// A record names no shard.
    #[error("record {index} of the event has no eventID like \"shardId-000000000000:4959…\"")]
    NoShard {
        /// The record's index in the event, from 0.
        index: usize,
    },
    /// A record names no stream.
    #[error("record {index} of the event has no eventSourceARN of a Kinesis stream")]
    NoStream {
        /// The record's index in the event, from 0.
        index: usize,
    },
    /// The records belong to several shards, which no mapping sends.
    #[error("record {index} of the event belongs to another shard than the records before it")]
    AnotherShard {
        /// The record's index in the event, from 0.
        index: usize,
    },
    /// A record has no valid sequence number.
    #[error("record {index} of the event has no sequence number")]
    NoSequenceNumber {
        /// The record's index in the event, from 0.
        index: usize,
        /// The reason why the sequence number is not valid.
        #[source]
        source: ParseSequenceNumberError,
    },
    /// A record's data are not base64.
    #[error("the data of record {index} of the event are not base64")]
    NoBase64 {
        /// The record's index in the event, from 0.
        index: usize,
        /// The reason why the data cannot be decoded.
        #[source]
        source: BoxError,
    },
}

/// The records as Lambda writes them, not copied, because most of each record's fields are not needed.
#[derive(Deserialize, Default)]
#[serde(transparent)]
pub(crate) struct RawRecords<'a>(#[serde(borrow)] Vec<RawRecord<'a>>);

#[derive(Deserialize)]
struct RawRecord<'a> {
    #[serde(borrow)]
    kinesis: RawKinesis<'a>,
    #[serde(rename = "eventID", borrow)]
    id: Cow<'a, str>,
    #[serde(rename = "eventSourceARN", borrow)]
    arn: Cow<'a, str>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawKinesis<'a> {
    #[serde(borrow)]
    sequence_number: Cow<'a, str>,
    #[serde(borrow, default)]
    partition_key: Option<Cow<'a, str>>,
    #[serde(borrow)]
    data: Cow<'a, str>,
    /// The arrival time in seconds since 1970, with a fraction.
    #[serde(default)]
    approximate_arrival_timestamp: Option<f64>,
}

impl RawRecords<'_> {
    /// Returns the records, and the ARN of their stream or of a consumer of it. All records share one ARN.
    pub(crate) fn open(self) -> Result<(Vec<Record>, Option<String>), ParseEventError> {
        let mut shard = Shard::default();
        let records = self.0.into_iter().enumerate().map(|(index, record)| {
            let source = shard.source(index, &record.arn, &record.id)?;
            let number = record.kinesis.sequence_number.into_owned();
            let number = number
                .try_into()
                .map_err(|source| ParseEventError::NoSequenceNumber { index, source })?;
            let data = BASE64.decode(record.kinesis.data.as_bytes());
            let data = data.map_err(|source| ParseEventError::NoBase64 {
                index,
                source: source.into(),
            })?;
            let mut builder = Record::read_from(source, number).payload(data);
            if let Some(key) = record.kinesis.partition_key {
                builder = builder.partition_key(key.into_owned());
            }
            if let Some(arrival) = record.kinesis.approximate_arrival_timestamp.and_then(since_1970) {
                builder = builder.arrival(arrival);
            }
            Ok(builder.build())
        });
        let records = records.collect::<Result<_, _>>()?;
        Ok((records, shard.arn()))
    }
}

/// The shard that all records of an event come from.
#[derive(Default)]
pub(crate) struct Shard {
    known: Option<(String, Arc<Source>)>,
}

impl Shard {
    pub(crate) fn source(
        &mut self,
        index: usize,
        arn: &str,
        id: &str,
    ) -> Result<Arc<Source>, ParseEventError> {
        let shard = id
            .split_once(':')
            .map(|(shard, _)| shard)
            .filter(|shard| !shard.is_empty());
        let shard = shard.ok_or(ParseEventError::NoShard { index })?;
        match &self.known {
            Some((known, source)) if known == arn && source.shard.as_str() == shard => Ok(source.clone()),
            Some(_) => Err(ParseEventError::AnotherShard { index }),
            None => {
                let stream = stream(arn).ok_or(ParseEventError::NoStream { index })?;
                let source = Arc::new(Source {
                    stream: stream.into(),
                    shard: shard.into(),
                });
                self.known = Some((arn.to_owned(), source.clone()));
                Ok(source)
            }
        }
    }

    pub(crate) fn arn(self) -> Option<String> {
        self.known.map(|(arn, _)| arn)
    }
}

/// Returns the stream's name from the ARN of the stream, or of a consumer of it.
pub(crate) fn stream(arn: &str) -> Option<&str> {
    let resource = arn.splitn(6, ':').nth(5)?;
    let name = resource.strip_prefix("stream/")?.split('/').next()?;
    (!name.is_empty()).then_some(name)
}

/// Rounds to the millisecond, which is the precision of Kinesis.
fn since_1970(seconds: f64) -> Option<SystemTime> {
    let millis = (seconds * 1_000.0).round();
    let fits = (0.0..1e15).contains(&millis);
    fits.then(|| SystemTime::UNIX_EPOCH + Duration::from_millis(millis as u64))
}
