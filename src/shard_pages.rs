//! Reads a shard up to its tip, as somebody does who looks at it beside those that consume it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::error::SdkError;
use aws_sdk_kinesis::operation::get_records::GetRecordsError;
use aws_sdk_kinesis::types;
use tokio::time::{Instant, sleep_until};

use crate::record::{InvalidSequenceNumber, Record, Source};

/// Of five calls of a kind that a shard takes in a second (Kinesis API reference) the others may want some.
pub(crate) const PAUSE: Duration = Duration::from_millis(250);

/// The pages of a shard, from an iterator on.
pub(crate) struct ShardPages {
    client: Client,
    /// None at the shard's end or tip.
    iterator: Option<String>,
    /// The most records of a page, if there are to be fewer than fit.
    limit: Option<i32>,
    next_call: Instant,
}

/// Some of its records, or none.
pub(crate) struct Page {
    pub(crate) records: Vec<types::Record>,
    /// What arrived later may not be in it.
    pub(crate) asked_at: SystemTime,
}

impl ShardPages {
    pub(crate) fn from(client: &Client, iterator: Option<String>) -> Self {
        ShardPages {
            client: client.clone(),
            iterator,
            limit: None,
            next_call: Instant::now(),
        }
    }

    /// In small pages, for whoever hardly needs more than the first: a large one takes what a shard gives in seconds.
    pub(crate) fn limit(self, records: i32) -> Self {
        ShardPages {
            limit: Some(records),
            ..self
        }
    }

    /// The next one; `None` at the shard's end or tip. After an error it can be asked for again.
    pub(crate) async fn next(&mut self) -> Result<Option<Page>, SdkError<GetRecordsError>> {
        let Some(iterator) = &self.iterator else {
            return Ok(None);
        };
        sleep_until(self.next_call).await;
        self.next_call = Instant::now() + PAUSE;
        let asked_at = SystemTime::now();
        let call = self.client.get_records().shard_iterator(iterator);
        let page = call.set_limit(self.limit).send().await?;
        // An empty page of a shard that is behind says nothing: the next may be full. Nor does one with records at the
        // tip say that they are the last.
        let at_tip = page.records.is_empty() && page.millis_behind_latest.is_none_or(|behind| behind == 0);
        self.iterator = page.next_shard_iterator.filter(|_| !at_tip);
        Ok(Some(Page {
            records: page.records,
            asked_at,
        }))
    }
}

/// A record of a page.
pub(crate) fn record(source: &Arc<Source>, read: types::Record) -> Result<Record, InvalidSequenceNumber> {
    let number = read.sequence_number.try_into()?;
    let mut builder = Record::read_from(source.clone(), number).payload(read.data.into_inner());
    if let Some(key) = read.partition_key {
        builder = builder.partition_key(key);
    }
    let arrival = read.approximate_arrival_timestamp;
    if let Some(arrival) = arrival.and_then(|time| SystemTime::try_from(time).ok()) {
        builder = builder.arrival(arrival);
    }
    Ok(builder.build())
}
