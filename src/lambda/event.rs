//! The event of an invocation: a batch of records.

use aws_lambda_events::event::kinesis::KinesisEvent;
use serde::{Deserialize, Deserializer, de};

use crate::lambda_event::{ParseEventError, RawRecords, Shard};
use crate::record::Record;

/// The records of an invocation, all of one shard. An event is read from JSON, or converted from the event of
/// `aws_lambda_events`.
#[derive(Debug, Clone)]
pub struct Event {
    pub(super) records: Vec<Record>,
    /// The ARN of the stream, or of one of its consumers.
    pub(super) arn: Option<String>,
}

impl Event {
    /// Reads the JSON of an invocation.
    pub fn from_slice(json: &[u8]) -> Result<Self, ParseEventError> {
        let event: Raw<'_> =
            serde_json::from_slice(json).map_err(|error| ParseEventError::Json(error.into()))?;
        event.records.try_into()
    }

    /// Returns the records as they are in Kinesis: aggregated records are not unpacked.
    pub fn records(&self) -> &[Record] {
        &self.records
    }
}

impl<'de> Deserialize<'de> for Event {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let event = Raw::deserialize(deserializer)?;
        event.records.try_into().map_err(de::Error::custom)
    }
}

#[derive(Deserialize)]
struct Raw<'a> {
    #[serde(rename = "Records", borrow)]
    records: RawRecords<'a>,
}

impl TryFrom<RawRecords<'_>> for Event {
    type Error = ParseEventError;

    fn try_from(records: RawRecords<'_>) -> Result<Self, ParseEventError> {
        let (records, arn) = records.open()?;
        Ok(Event { records, arn })
    }
}

impl TryFrom<KinesisEvent> for Event {
    type Error = ParseEventError;

    fn try_from(event: KinesisEvent) -> Result<Self, ParseEventError> {
        let mut shard = Shard::default();
        let records = event.records.into_iter().enumerate().map(|(index, record)| {
            let text = |text: &Option<String>| text.clone().unwrap_or_default();
            let source = shard.source(index, &text(&record.event_source_arn), &text(&record.event_id))?;
            let kinesis = record.kinesis;
            let number = kinesis
                .sequence_number
                .try_into()
                .map_err(|source| ParseEventError::NoSequenceNumber { index, source })?;
            let mut builder = Record::read_from(source, number).payload(kinesis.data.0);
            // `aws_lambda_events` has an empty key for none. Kinesis refuses empty keys, so nothing is lost.
            if !kinesis.partition_key.is_empty() {
                builder = builder.partition_key(kinesis.partition_key);
            }
            let arrival = kinesis.approximate_arrival_timestamp;
            Ok(builder.arrival(arrival.0.into()).build())
        });
        let records = records.collect::<Result<_, _>>()?;
        Ok(Event {
            records,
            arn: shard.arn(),
        })
    }
}
