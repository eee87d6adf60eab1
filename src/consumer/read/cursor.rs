//! The state and the checks that polling and enhanced fan-out share.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_kinesis::primitives::DateTime;
use aws_smithy_runtime_api::http::Response;
use rand::rngs::SmallRng;
use tokio::time::Instant;
use tracing::field::Empty;
use tracing::{Span, debug_span};

use super::fetched_bytes::FetchedBytes;
use super::incarnation::{Incarnation, Recreated};
use super::read_from::ReadFrom;
use super::read_until::{Page, ReadUntil};
use super::wire::ShardWire;
use crate::aws::{FailedCall, Located};
use crate::checkpoint::Checkpoint;
use crate::consumer::calls::CALLS_BEFORE_LOSS;
use crate::consumer::data_loss::{
    CLOCK_SKEW, DataLoss, DataLossPolicy, Expected, OnDataLoss, Refused, is_older_than_shortest,
};
use crate::consumer::stream_facts::StreamFacts;
use crate::failure::BoxError;
use crate::kpl::Deaggregator;
use crate::kpl::expand::{count, unpack};
use crate::observer::{Event, Interest, Observers, ShardEvent, StreamEvent};
use crate::record::StreamId;
use crate::record::{Position, Record, SequenceNumber, ShardId};
use crate::sabotage::Sabotage;
use crate::wall_clock;

/// A shard, and the position from which reading continues.
pub(in crate::consumer) struct Reading {
    pub(in crate::consumer) client: Located<Client>,
    pub(in crate::consumer) wire: ShardWire,
    pub(in crate::consumer) stream: StreamId,
    pub(in crate::consumer) shard: ShardId,
    pub(in crate::consumer) deaggregator: Deaggregator,
    pub(in crate::consumer) observers: Observers,
    pub(in crate::consumer) rng: SmallRng,
    pub(in crate::consumer) from: ReadFrom,
    /// The last record handed over. Sequence numbers increase within a shard, but a subscription may start a
    /// little early: records up to this number are skipped.
    pub(in crate::consumer) newest: Option<SequenceNumber>,
    /// True if records without a partition key are refused, because the records are ordered by key.
    pub(in crate::consumer) needs_keys: bool,
    /// The record that should come first. `None` once this record or another one has come.
    pub(in crate::consumer) expected: Option<Expected>,
    pub(in crate::consumer) on_data_loss: OnDataLoss,
    pub(in crate::consumer) facts: Arc<StreamFacts>,
    pub(in crate::consumer) incarnation: Incarnation,
    pub(in crate::consumer) fetched_bytes: FetchedBytes,
    pub(in crate::consumer) read_until: ReadUntil,
    /// The time at which the last page was read.
    pub(in crate::consumer) last_page: Option<Instant>,
    /// True if a loss was reported without knowing the stream's retention, and the shard is still a day
    /// behind.
    pub(in crate::consumer) is_lag_reported: bool,
    /// The first page of a shard that was far behind, since Kinesis last stated the retention.
    pub(in crate::consumer) unverified: Option<UnverifiedPage>,
}

/// A page before which the stream may have dropped records, because the shard was more than a day behind.
#[derive(Debug, Clone, Copy)]
pub(in crate::consumer) struct UnverifiedPage {
    at: Instant,
    /// The time up to which everything was read before the page.
    read_until: SystemTime,
}

/// The most by which this machine's clock is expected to be ahead.
const CLOCK_AHEAD: Duration = Duration::from_secs(60 * 60);
/// The lifetime of a shard iterator (GetShardIterator, Kinesis API reference).
const ITERATOR_LIFE: Duration = Duration::from_secs(5 * 60);
#[derive(Debug, thiserror::Error)]
#[error(
    "a record has no partition key to order by, as on a stream with AUTO record distribution; use \
     RecordOrder::Unordered or RecordOrder::Shard"
)]
struct NoPartitionKey;

/// The reason why reading ended.
#[derive(Debug)]
pub(in crate::consumer) enum ReadingEnded {
    /// The shard is closed, and all its records were handed over.
    ShardClosed,
    /// The shard or the stream does not exist any more.
    NotFound(BoxError),
    /// Records are lost, and the user's policy halts the shard.
    Lost(Box<DataLoss>),
    /// Kinesis refuses the position, or the stream was created again. The shard restarts at this
    /// checkpoint.
    PositionRefused(Box<Checkpoint>),
    /// Kinesis refused the calls, and no shard was read since the consumer started.
    Refused(BoxError),
    /// The pipeline takes no more records.
    NotWanted,
}

/// The consequence of an error from Kinesis.
pub(in crate::consumer) enum Refusal {
    /// The position is not refused.
    None,
    /// Reading continues from an earlier position.
    Earlier,
    /// The shard restarts at another position. That position is stored first, because records may arrive
    /// before the refused time is reached.
    Ends(ReadingEnded),
}

/// Returns the latest time at which a record with this arrival may have arrived. Kinesis states milliseconds, emulators
/// whole seconds.
fn latest(arrival: SystemTime) -> SystemTime {
    let since_epoch = arrival.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    match since_epoch.subsec_nanos() {
        0 => arrival + Duration::from_millis(999),
        _ => arrival,
    }
}

/// Handles a start time that Kinesis refuses. If the time is not long past, this machine's clock is ahead:
/// the shard restarts a minute earlier.
fn earlier(time: DateTime) -> Refusal {
    let is_recent = |time: &SystemTime| {
        let age = wall_clock::now().duration_since(*time).unwrap_or_default();
        age < CLOCK_AHEAD
    };
    let Some(time) = SystemTime::try_from(time).ok().filter(is_recent) else {
        return Refusal::None;
    };
    tracing::warn!(
        "start refused by Kinesis: this machine's clock is ahead; reading starts a minute earlier"
    );
    let earlier = time.checked_sub(CLOCK_SKEW).unwrap_or(SystemTime::UNIX_EPOCH);
    let since = earlier.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let millis = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
    let earlier = Checkpoint::at(Position::AtTimestamp { millis });
    Refusal::Ends(ReadingEnded::PositionRefused(Box::new(earlier)))
}

impl Reading {
    /// Returns the records of a page that were not read before, with the records inside aggregates. Also returns the
    /// number of the last Kinesis record.
    pub(in crate::consumer) fn records(
        &self,
        read: Vec<Record>,
    ) -> Result<(Vec<Record>, Option<SequenceNumber>), BoxError> {
        let mut records = Vec::with_capacity(read.len());
        let last = read.last().map(|last| last.sequence_number().clone());
        let mut newest = self.newest.as_ref();
        let mut since = self.from.time().and_then(|time| SystemTime::try_from(time).ok());
        for record in read {
            match newest {
                Some(newest) if record.sequence_number() <= newest => continue,
                _ => newest = None,
            }
            // Emulators of Kinesis start at the oldest record if nothing has arrived since the requested
            // time.
            match (since, record.arrival()) {
                (Some(since), Some(arrival)) if latest(arrival) < since => continue,
                _ => since = None,
            }
            if self.needs_keys && record.partition_key().is_none() {
                return Err(NoPartitionKey.into());
            }
            unpack(&self.deaggregator, record, &self.observers, &mut records);
        }
        Ok((records, last))
    }

    /// Prepares each new iterator or subscription. After a pause in which the stream may have dropped
    /// records, reading resumes at the last record instead of after it: if that record is gone, others may be
    /// gone too.
    pub(in crate::consumer) fn resume(&mut self) {
        self.incarnation
            .resume(self.last_page, self.read_until.stated_time());
        let read_until = self.read_until.time();
        // Directly after a recent page nothing is verified, just as nothing is while an iterator is valid.
        let is_recent = self.last_page.is_some_and(|at| at.elapsed() < ITERATOR_LIFE);
        if is_recent || self.expected.is_some() || !read_until.is_some_and(is_older_than_shortest) {
            return;
        }
        let number = match &self.from {
            ReadFrom::After(number) => Some(number.clone()),
            _ => None,
        };
        if let Some(number) = &number {
            self.from = ReadFrom::At(number.clone());
        }
        self.expected = Some(Expected {
            number,
            read_until,
            first_unsettled: None,
            refused: None,
        });
    }

    /// Checks, before a page is handed over, that the expected record comes first. If another one does, more
    /// records may be gone than the expected one. Returns an error if reading must end.
    pub(in crate::consumer) async fn verify(
        &mut self,
        read: &[Record],
        behind_millis: Option<i64>,
    ) -> Result<(), ReadingEnded> {
        self.last_page = Some(Instant::now());
        if let Some(recreated) = self.incarnation.verify(&self.facts, &self.observers).await {
            return Err(self.recreated(&recreated));
        }
        let Some(expected) = &mut self.expected else {
            return self.verify_lag().await;
        };
        let Some(number) = &expected.number else {
            return self.first_is(None).await;
        };
        let numbers = read.iter().map(Record::sequence_number);
        let (below, rest): (Vec<&SequenceNumber>, Vec<_>) = numbers.partition(|read| *read < number);
        let first = rest.into_iter().min().cloned();
        if let Some(refused) = &mut expected.refused {
            refused.seen_below |= !below.is_empty();
        }
        match &first {
            Some(first) if first == number => {
                self.expected = None;
                Ok(())
            }
            // The expected record may be on the next page.
            None if !read.is_empty() || behind_millis != Some(0) => Ok(()),
            // The refused number does not belong to this shard: the shard has records before and after it,
            // but not the record itself. Or the shard has no records at all, or was read too recently for the
            // record to be trimmed.
            _ if expected
                .refused
                .is_some_and(|it| it.seen_below || first.is_none() || expected.is_recent()) =>
            {
                let number = number.clone();
                self.expected = None;
                Err(self.position_refused(&number))
            }
            _ => self.first_is(first).await,
        }
    }

    /// Reports records that may have been trimmed since the last page, if the shard's lag exceeds the
    /// retention. Only an answer about the retention that was given after the page proves that nothing is lost:
    /// the retention may be lowered at any time. A page may be verified with a later one, because a shard that
    /// is days behind has many pages.
    async fn verify_lag(&mut self) -> Result<(), ReadingEnded> {
        let read_until = self.read_until.time();
        let read_until = read_until.filter(|time| is_older_than_shortest(*time));
        let this = read_until.map(|read_until| UnverifiedPage {
            at: Instant::now(),
            read_until,
        });
        if this.is_none() {
            self.is_lag_reported = false;
        }
        let Some(page) = self.unverified.or(this) else {
            return Ok(());
        };
        self.unverified = Some(page);
        self.verify_page(page).await
    }

    async fn verify_page(&mut self, page: UnverifiedPage) -> Result<(), ReadingEnded> {
        // After such a report each page makes one call: a shard that is days behind still has to catch up.
        let tries = if self.is_lag_reported {
            1
        } else {
            CALLS_BEFORE_LOSS
        };
        let asked = self.facts.recent_horizon(page.at, tries, &self.observers);
        let (horizon, is_final) = Box::pin(asked).await;
        let is_lost = page.read_until < horizon.since;
        if is_lost || is_final {
            self.unverified = None;
        }
        if !is_lost {
            return Ok(());
        }
        // While the retention is unknown, each page of a shard that is a day behind would cause a report.
        if !horizon.is_known && std::mem::replace(&mut self.is_lag_reported, true) {
            return Ok(());
        }
        self.report_loss(self.loss(Some(page.read_until), horizon.since, false))
    }

    /// Checks at the end of a shard for an expected record, which can no longer come.
    pub(in crate::consumer) async fn verify_end(&mut self) -> Result<(), ReadingEnded> {
        if self.expected.is_some() {
            self.first_is(None).await?;
        }
        let Some(page) = self.unverified.take() else {
            return Ok(());
        };
        let horizon = Box::pin(self.facts.horizon(CALLS_BEFORE_LOSS, &self.observers)).await;
        match page.read_until >= horizon.since {
            true => Ok(()),
            false => self.report_loss(self.loss(Some(page.read_until), horizon.since, false)),
        }
    }

    /// Reports a loss if this record came first instead of the expected one, or if no record came.
    async fn first_is(&mut self, first: Option<SequenceNumber>) -> Result<(), ReadingEnded> {
        let Some(expected) = self.expected.take().filter(|expected| !expected.is_recent()) else {
            return Ok(());
        };
        let horizon = Box::pin(self.facts.horizon(CALLS_BEFORE_LOSS, &self.observers))
            .await
            .since;
        let Some((from, certain)) = expected.missed(first.as_ref(), horizon) else {
            return Ok(());
        };
        self.report_loss(self.loss(from, horizon, certain))
    }

    /// Handles a failed call with this error code. If Kinesis refuses the sequence number at which reading
    /// should start, reading starts at the oldest record instead. That shows whether the number belongs to
    /// this shard. If Kinesis refuses a time, that time is in the future by its clock.
    pub(in crate::consumer) fn refused(&mut self, code: Option<&str>) -> Refusal {
        if code != Some("InvalidArgumentException") {
            return Refusal::None;
        }
        let number = match &self.from {
            ReadFrom::At(number) | ReadFrom::After(number) => number,
            // A continuation number says nothing about the stream. Records that were handed over are not
            // handed over again.
            ReadFrom::Continuation(_) => {
                self.from = self.newest.clone().map_or(ReadFrom::TrimHorizon, ReadFrom::After);
                return Refusal::Earlier;
            }
            ReadFrom::Time(time) => return earlier(*time),
            ReadFrom::TrimHorizon => return Refusal::None,
        };
        if Sabotage::TrustRefusal.is_committed() {
            return Refusal::Ends(ReadingEnded::PositionRefused(Box::new(self.facts.beginning())));
        }
        let expected = Expected {
            number: Some(number.clone()),
            read_until: self.read_until.time(),
            first_unsettled: None,
            refused: None,
        };
        let expected = self.expected.get_or_insert(expected);
        expected.refused = Some(Refused { seen_below: false });
        self.from = ReadFrom::TrimHorizon;
        Refusal::Earlier
    }

    /// Reports that the number at which reading should start belongs to another shard, or to an earlier
    /// stream of this name. Returns how reading ends.
    fn position_refused(&self, number: &SequenceNumber) -> ReadingEnded {
        self.report(|| ShardEvent::PositionRefused {
            sequence_number: number,
        });
        let loss = self.loss(self.read_until.time(), wall_clock::now(), false);
        match self.report_loss(loss) {
            Ok(()) => ReadingEnded::PositionRefused(Box::new(self.facts.beginning())),
            Err(lost) => lost,
        }
    }

    /// Reports that the stream was deleted and created again during a pause. Returns how reading ends.
    fn recreated(&self, recreated: &Recreated) -> ReadingEnded {
        let created = recreated.created;
        self.report(|| ShardEvent::StreamRecreated { created });
        let loss = self.loss(
            recreated.read_until,
            created.unwrap_or_else(wall_clock::now),
            false,
        );
        match self.report_loss(loss) {
            Ok(()) => ReadingEnded::PositionRefused(Box::new(self.facts.beginning())),
            Err(lost) => lost,
        }
    }

    fn loss(&self, from: Option<SystemTime>, to: SystemTime, certain: bool) -> Box<DataLoss> {
        Box::new(DataLoss {
            stream: self.stream.name().to_owned(),
            shard: self.shard.clone(),
            from,
            to,
            certain,
        })
    }

    /// Reports a loss. Returns an error if the user's policy halts the shard.
    fn report_loss(&self, loss: Box<DataLoss>) -> Result<(), ReadingEnded> {
        match self.on_data_loss.report(&loss, &self.observers) {
            DataLossPolicy::Resume => Ok(()),
            DataLossPolicy::Halt => Err(ReadingEnded::Lost(loss)),
        }
    }

    /// Returns the time up to which everything that arrived is read with this page, if the page states it.
    pub(in crate::consumer) fn read_until(&mut self, page: &Page<'_>) -> Option<SystemTime> {
        let Reading {
            read_until, facts, ..
        } = self;
        read_until.advance(page, |called| facts.kept_since(called))
    }

    /// Notes that all records up to this Kinesis record are handed over.
    pub(in crate::consumer) fn handed_over(&mut self, last: SequenceNumber) {
        self.newest = self.newest.take().max(Some(last.clone()));
        self.from = ReadFrom::After(last);
    }

    /// Creates the tracing span of a page.
    pub(in crate::consumer) fn span(&self) -> Span {
        debug_span!(
            "batch",
            stream = self.stream.name(),
            shard = self.shard.as_str(),
            records = Empty,
            behind_ms = Empty,
        )
    }

    /// Reports a page. Returns how far the page is behind the stream's tip.
    pub(in crate::consumer) fn fetched(
        &self,
        records: &[Record],
        behind_millis: Option<i64>,
        span: &Span,
    ) -> Option<Duration> {
        span.record("records", count(records));
        span.record("behind_ms", behind_millis);
        self.facts.note_read();
        self.fetched_bytes.note(records);
        let behind = behind_millis.and_then(|millis| u64::try_from(millis).ok());
        let behind = behind.map(Duration::from_millis);
        self.report(|| ShardEvent::Fetched {
            records: count(records),
            bytes: records.iter().map(|record| record.payload().len()).sum(),
            behind,
        });
        behind
    }

    /// Describes a failed call that reads the shard.
    pub(in crate::consumer) fn failed<E, R>(&self, action: &'static str, error: SdkError<E, R>) -> FailedCall
    where
        E: Error + ProvideErrorMetadata + Send + Sync + 'static,
        R: fmt::Debug + Send + Sync + 'static,
    {
        let task = format!("read {} of {:?}", self.shard, self.stream.to_string());
        self.client.failed(task, action, error)
    }

    /// Reports that a call in CBOR failed because of its encoding.
    pub(in crate::consumer) fn cbor_refused<E>(&self, error: SdkError<E, Response>)
    where
        E: ProvideErrorMetadata + Error + Send + Sync + 'static,
    {
        if self.observers.want(Interest::SHARDS) {
            let error = self.failed("kinesis:GetRecords", error);
            self.observers.tell(&Event::Stream {
                stream: self.stream.name(),
                event: StreamEvent::CborRefused { error: &error },
            });
        }
    }

    pub(in crate::consumer) fn report<'a>(&'a self, event: impl FnOnce() -> ShardEvent<'a>) {
        if self.observers.want(Interest::SHARDS) {
            self.observers.tell(&Event::Shard {
                stream: self.stream.name(),
                shard: &self.shard,
                event: event(),
            });
        }
    }
}
