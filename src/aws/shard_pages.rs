//! Reads a shard up to its tip, for tools that check the shard while consumers read it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::error::ProvideErrorMetadata as _;
use aws_sdk_kinesis::types::{self, ShardIteratorType};
use tokio::time::{Instant, sleep_until};

use crate::aws::shard_list::{EndAnswers, is_closed, list_shards};
use crate::aws::{FailedCall, Located};
use crate::failure::BoxError;
use crate::record::{ParseSequenceNumberError, Record, Source, StreamId};
use crate::wall_clock;

/// The pause between calls. A shard takes five calls of a kind per second (Kinesis API reference), and other
/// readers need some of them.
pub(crate) const PAUSE: Duration = Duration::from_millis(250);

/// The maximum number of answers in a row that prove neither more records nor the end.
const DOUBTS: u32 = 5;

/// The pages of a shard, starting at an iterator.
pub(crate) struct ShardPages {
    client: Located<Client>,
    stream: StreamId,
    shard: String,
    /// The next iterator; `None` at the shard's end or tip.
    iterator: Option<String>,
    /// The sequence number of the last record of a page.
    last: Option<String>,
    /// The maximum number of records per page; `None` for as many as fit.
    limit: Option<i32>,
    next_call: Instant,
    doubts: u32,
    /// The answers that claim the shard's end, with no record in between.
    ends: EndAnswers,
}

/// A page of the shard's records, possibly empty.
pub(crate) struct Page {
    pub(crate) records: Vec<types::Record>,
    /// The time of the request. The page may lack records that arrived later.
    pub(crate) asked_at: SystemTime,
}

/// A page could not be read. The caller can request it again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PageError {
    #[error("shard {shard} cannot be read")]
    Call {
        shard: String,
        code: Option<String>,
        #[source]
        source: BoxError,
    },
    #[error("the answers for shard {shard} prove neither that it has ended nor that it was read to its tip")]
    NoProof { shard: String },
}

impl PageError {
    /// Returns the service's error code.
    pub(crate) fn code(&self) -> Option<&str> {
        match self {
            PageError::Call { code, .. } => code.as_deref(),
            PageError::NoProof { .. } => None,
        }
    }
}

impl ShardPages {
    pub(crate) fn from(
        client: &Located<Client>,
        stream: &StreamId,
        shard: impl Into<String>,
        iterator: Option<String>,
    ) -> Self {
        ShardPages {
            client: client.clone(),
            stream: stream.clone(),
            shard: shard.into(),
            iterator,
            last: None,
            limit: None,
            next_call: Instant::now(),
            doubts: 0,
            ends: EndAnswers::default(),
        }
    }

    /// Limits the records per page, for a reader that rarely needs more than the first page. A large page
    /// takes the shard's read throughput of several seconds.
    pub(crate) fn limit(self, records: i32) -> Self {
        ShardPages {
            limit: Some(records),
            ..self
        }
    }

    pub(crate) fn shard(&self) -> &str {
        &self.shard
    }

    /// Returns the next page; `None` at the shard's end or tip. After an error the caller can call again.
    pub(crate) async fn next(&mut self) -> Result<Option<Page>, PageError> {
        let Some(iterator) = self.iterator.clone() else {
            return Ok(None);
        };
        sleep_until(self.next_call).await;
        self.next_call = Instant::now() + PAUSE;
        let asked_at = wall_clock::now();
        let call = self.client.get_records().shard_iterator(&iterator);
        let call = call.set_stream_arn(self.stream.arn().map(str::to_owned));
        let page = match call.set_limit(self.limit).send().await {
            Ok(page) => page,
            Err(error) if error.code() == Some("ExpiredIteratorException") && self.last.is_some() => {
                self.iterator = Some(self.after_last().await?);
                return Ok(Some(Page {
                    records: Vec::new(),
                    asked_at,
                }));
            }
            Err(error) => return Err(self.failed(error)),
        };
        if let Some(last) = page.records.last() {
            self.last = Some(last.sequence_number.clone());
        }
        let is_empty = page.records.is_empty();
        // The answer `{}` proves nothing. A complete answer states a lag, which need not be 0 at the end of a
        // closed shard.
        let is_complete = is_empty && page.millis_behind_latest.is_some();
        self.ends
            .note(is_empty, is_complete, page.next_shard_iterator.is_some());
        let has_children = !page.child_shards().is_empty();
        self.iterator = match page.next_shard_iterator {
            // Only child shards, or an ending sequence number in the listing, prove that a shard has ended.
            None if has_children => None,
            None => match is_complete && self.ends.are_enough() && self.is_listed_as_closed().await? {
                true => None,
                false => {
                    self.doubt()?;
                    Some(match self.last {
                        Some(_) => self.after_last().await?,
                        // The iterator returned no record, so it still points to the same place.
                        None => iterator,
                    })
                }
            },
            // An empty page behind the tip proves nothing: the next page may be full. A page with records at
            // the tip does not prove that they are the last ones.
            Some(next) => match page.millis_behind_latest {
                Some(0) if is_empty => None,
                None if is_empty => {
                    self.doubt()?;
                    Some(next)
                }
                _ => {
                    self.doubts = 0;
                    Some(next)
                }
            },
        };
        Ok(Some(Page {
            records: page.records,
            asked_at,
        }))
    }

    fn doubt(&mut self) -> Result<(), PageError> {
        self.doubts += 1;
        match self.doubts > DOUBTS {
            true => Err(self.no_proof()),
            false => Ok(()),
        }
    }

    async fn is_listed_as_closed(&self) -> Result<bool, PageError> {
        let shards = list_shards(&self.client, &self.stream).await;
        let shards = shards.map_err(|source| PageError::Call {
            shard: self.shard.clone(),
            code: FailedCall::code(&*source).map(str::to_owned),
            source,
        })?;
        let shard = shards.iter().find(|shard| shard.shard_id == self.shard);
        Ok(shard.is_some_and(is_closed))
    }

    /// Returns an iterator behind the last record of the last page.
    async fn after_last(&self) -> Result<String, PageError> {
        let Some(last) = &self.last else {
            return Err(self.no_proof());
        };
        let (name, arn) = self.stream.name_or_arn();
        let call = self.client.get_shard_iterator();
        let call = call
            .set_stream_name(name)
            .set_stream_arn(arn)
            .shard_id(&self.shard)
            .shard_iterator_type(ShardIteratorType::AfterSequenceNumber)
            .starting_sequence_number(last);
        let answer = call.send().await.map_err(|error| self.failed(error))?;
        answer.shard_iterator.ok_or_else(|| self.no_proof())
    }

    fn no_proof(&self) -> PageError {
        PageError::NoProof {
            shard: self.shard.clone(),
        }
    }

    fn failed<E>(&self, error: E) -> PageError
    where
        E: aws_sdk_kinesis::error::ProvideErrorMetadata + Into<BoxError>,
    {
        PageError::Call {
            shard: self.shard.clone(),
            code: error.code().map(str::to_owned),
            source: error.into(),
        }
    }
}

/// Converts a record of a page into a [`Record`].
pub(crate) fn record(source: &Arc<Source>, read: types::Record) -> Result<Record, ParseSequenceNumberError> {
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
