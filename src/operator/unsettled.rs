//! Finds the unsettled records after a shard's checkpoint.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_sdk_kinesis::error::ProvideErrorMetadata;
use aws_sdk_kinesis::types::{self, ShardIteratorType};

use super::{OperatorError, Shards};
use crate::aws::shard_pages::{ShardPages, record};
use crate::checkpoint::Checkpoint;
use crate::failure::BoxError;
use crate::kpl::Deaggregator;
use crate::record::{Position, Record, SequenceNumber, ShardId, Source};

/// The maximum number of records per page. The first few usually suffice.
const PAGE: i32 = 1_000;

/// The unsettled records after a checkpoint.
pub(super) struct Unsettled {
    /// The first unsettled records, in their order.
    pub(super) records: Vec<Record>,
    /// True if the checkpoint's own record is gone from the stream.
    pub(super) trimmed: bool,
    /// The time of the last read. Records that arrived later may be missing.
    pub(super) asked_at: SystemTime,
}

impl Shards {
    /// Returns the first unsettled records of a shard, up to `at_most`.
    pub(super) async fn unsettled(
        &self,
        shard: &ShardId,
        checkpoint: &Checkpoint,
        at_most: usize,
    ) -> Result<Unsettled, OperatorError> {
        let mut found = Unsettled {
            records: Vec::new(),
            trimmed: false,
            asked_at: SystemTime::now(),
        };
        let position = checkpoint.position();
        if *position == Position::ShardEnd {
            return Ok(found);
        }
        let mut reader = Reader::at(self, shard, position).await?;
        found.trimmed = reader.is_elsewhere;
        let mut own = own_number(position);
        let source = Arc::new(Source {
            stream: self.stream.shared_name(),
            shard: shard.clone(),
        });
        let is_settled = |record: &Record| {
            position.covers(record) || checkpoint.ahead().is_some_and(|ahead| ahead.covers(record))
        };
        let mut inside = Vec::new();
        while let Some(page) = reader.page().await? {
            for read in page {
                let record = record(&source, read).map_err(|error| self.unreadable(error))?;
                if let Some(own) = own.take_if(|own| **own <= *record.sequence_number()) {
                    found.trimmed = own != record.sequence_number();
                }
                // An aggregate that cannot be opened is delivered as it is.
                let _ = Deaggregator::new().expand(record, &mut inside);
                let left = at_most - found.records.len();
                let unsettled = inside.drain(..).filter(|record| !is_settled(record));
                found.records.extend(unsettled.take(left));
                if found.records.len() == at_most {
                    return Ok(found);
                }
            }
            found.asked_at = reader.asked_at;
        }
        Ok(found)
    }

    /// Returns true if the shard has a record with this sequence number.
    pub(super) async fn holds(
        &self,
        shard: &ShardId,
        position: &Position,
        number: &SequenceNumber,
    ) -> Result<bool, OperatorError> {
        let mut reader = Reader::at(self, shard, position).await?;
        while let Some(page) = reader.page().await? {
            for read in page {
                let read: SequenceNumber = read
                    .sequence_number
                    .try_into()
                    .map_err(|error| self.unreadable(error))?;
                if read >= *number {
                    return Ok(read == *number);
                }
            }
        }
        Ok(false)
    }

    pub(super) fn unreadable(&self, error: impl Into<BoxError>) -> OperatorError {
        OperatorError::Unreadable {
            stream: self.stream.to_string(),
            source: error.into(),
        }
    }

    pub(super) fn failed<E>(&self, error: E) -> OperatorError
    where
        E: ProvideErrorMetadata + Into<BoxError>,
    {
        match error.code() {
            Some("ResourceNotFoundException") => self.not_found(error),
            _ => self.unreadable(error),
        }
    }

    pub(super) fn not_found(&self, error: impl Into<BoxError>) -> OperatorError {
        OperatorError::NotFound {
            stream: self.stream.to_string(),
            source: error.into(),
        }
    }
}

fn own_number(position: &Position) -> Option<&SequenceNumber> {
    match position {
        Position::Record { sequence_number, .. } => Some(sequence_number),
        _ => None,
    }
}

/// Reads a shard from a checkpoint to its tip.
struct Reader<'a> {
    shards: &'a Shards,
    pages: ShardPages,
    /// True if Kinesis does not know the position, so that the shard is read from its oldest record.
    is_elsewhere: bool,
    /// The time before which records are ignored. Some emulators of Kinesis start at the oldest record if
    /// none has arrived since.
    since: Option<SystemTime>,
    asked_at: SystemTime,
}

impl<'a> Reader<'a> {
    /// Starts at the record of this position, which may be an aggregate of several records.
    async fn at(shards: &'a Shards, shard: &ShardId, position: &Position) -> Result<Self, OperatorError> {
        let (name, arn) = shards.stream.name_or_arn();
        let call = shards.client.get_shard_iterator();
        let call = call
            .set_stream_name(name)
            .set_stream_arn(arn)
            .shard_id(shard.as_str());
        let oldest = call.clone().shard_iterator_type(ShardIteratorType::TrimHorizon);
        let mut since = None;
        let call = match position {
            Position::Record { sequence_number, .. } => call
                .shard_iterator_type(ShardIteratorType::AtSequenceNumber)
                .starting_sequence_number(sequence_number.as_str()),
            Position::AtTimestamp { millis } => {
                since = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(*millis));
                call.shard_iterator_type(ShardIteratorType::AtTimestamp)
                    .set_timestamp(since.map(Into::into))
            }
            _ => oldest.clone(),
        };
        let mut reply = call.send().await;
        let is_elsewhere = own_number(position).is_some()
            && reply
                .as_ref()
                .is_err_and(|error| error.code() == Some("InvalidArgumentException"));
        if is_elsewhere {
            reply = oldest.send().await;
        }
        let reply = reply.map_err(|error| shards.failed(error))?;
        let no_iterator = || shards.unreadable("GetShardIterator answered without an iterator");
        let iterator = reply.shard_iterator.ok_or_else(no_iterator)?;
        let pages = ShardPages::from(&shards.client, &shards.stream, shard.as_str(), Some(iterator));
        Ok(Reader {
            shards,
            pages: pages.limit(PAGE),
            is_elsewhere,
            since,
            asked_at: SystemTime::now(),
        })
    }

    /// Returns the next page; `None` at the shard's end or tip.
    async fn page(&mut self) -> Result<Option<Vec<types::Record>>, OperatorError> {
        let page = self.pages.next().await.map_err(|error| match error.code() {
            Some("ResourceNotFoundException") => self.shards.not_found(error),
            _ => self.shards.unreadable(error),
        })?;
        let Some(mut page) = page else { return Ok(None) };
        self.asked_at = page.asked_at;
        if let Some(since) = self.since {
            let is_older = |read: &types::Record| {
                let arrival = read.approximate_arrival_timestamp;
                arrival.is_some_and(|arrival| SystemTime::try_from(arrival).is_ok_and(|it| it < since))
            };
            let first = page.records.iter().position(|read| !is_older(read));
            page.records.drain(..first.unwrap_or(page.records.len()));
            self.since = first.is_none().then_some(since);
        }
        Ok(Some(page.records))
    }
}
