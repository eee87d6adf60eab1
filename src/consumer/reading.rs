//! What every way of reading a shard has in common.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::primitives::DateTime;
use aws_sdk_kinesis::types;
use rand::rngs::SmallRng;
use tokio::time::{Instant, sleep};
use tracing::field::Empty;
use tracing::{Span, debug_span};

use super::StreamId;
use super::data_loss::{AfterDataLoss, DataLoss, Expected, OnDataLoss, horizon};
use crate::failure::BoxError;
use crate::kpl::Deaggregator;
use crate::observer::{Event, Interest, Observers};
use crate::record::{Position, Record, SequenceNumber, ShardId, Source};
use crate::retry::{Backoff, Jitter};
use crate::unpack::unpack;

/// Between calls that fail.
const BACKOFF: Backoff = Backoff::exponential();

/// A shard, and where reading it goes on.
pub(super) struct Reading {
    pub(super) client: Client,
    pub(super) stream: StreamId,
    pub(super) shard: ShardId,
    pub(super) deaggregator: Deaggregator,
    pub(super) observers: Observers,
    pub(super) rng: SmallRng,
    pub(super) from: ReadFrom,
    /// The last record handed over. No shard has a record of a lower number behind it, but a subscription
    /// may begin a little early.
    pub(super) newest: Option<SequenceNumber>,
    /// Records without a partition key are refused: the order that was asked for is that of keys.
    pub(super) needs_keys: bool,
    /// The checkpoint's own record, until it has come, or another in its place.
    pub(super) expected: Option<Expected>,
    pub(super) on_data_loss: OnDataLoss,
    pub(super) read_until: ReadUntil,
}

/// Until when all that arrived was read.
#[derive(Debug, Default)]
pub(super) struct ReadUntil {
    time: Option<SystemTime>,
    /// When it was said of a page without records.
    said: Option<Instant>,
}

/// By how much the clocks of this machine and of Kinesis may differ.
const SKEW: Duration = Duration::from_secs(60);
/// How often an idle shard says that it was read.
const SAY_AFTER: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
#[error(
    "a record has no partition key, as on a stream with AUTO distribution, and so no order within one: choose \
     Ordering::Unordered or Ordering::Shard"
)]
struct NoPartitionKey;

/// Where reading goes on.
#[derive(Debug, Clone)]
pub(super) enum ReadFrom {
    TrimHorizon,
    /// At the first record that arrived then or later.
    Time(DateTime),
    /// At this number, which may be the checkpoint's record: it may hold others, of which not all are
    /// settled.
    At(SequenceNumber),
    /// Behind the last one handed over.
    After(SequenceNumber),
}

impl ReadFrom {
    pub(super) fn checkpoint(position: &Position) -> Self {
        match position {
            Position::Record { sequence_number, .. } => ReadFrom::At(sequence_number.clone()),
            Position::AtTimestamp { millis } => {
                ReadFrom::Time(DateTime::from_millis(i64::try_from(*millis).unwrap_or(i64::MAX)))
            }
            Position::TrimHorizon | Position::ShardEnd => ReadFrom::TrimHorizon,
        }
    }

    /// As Kinesis names it.
    pub(super) fn kind(&self) -> types::ShardIteratorType {
        match self {
            ReadFrom::TrimHorizon => types::ShardIteratorType::TrimHorizon,
            ReadFrom::Time(_) => types::ShardIteratorType::AtTimestamp,
            ReadFrom::At(_) => types::ShardIteratorType::AtSequenceNumber,
            ReadFrom::After(_) => types::ShardIteratorType::AfterSequenceNumber,
        }
    }

    pub(super) fn number(&self) -> Option<String> {
        match self {
            ReadFrom::At(number) | ReadFrom::After(number) => Some(number.as_str().to_owned()),
            _ => None,
        }
    }

    pub(super) fn time(&self) -> Option<DateTime> {
        match self {
            ReadFrom::Time(time) => Some(*time),
            _ => None,
        }
    }
}

/// Why reading came to its end.
#[derive(Debug)]
pub(super) enum ReadingEnded {
    /// The shard is closed and every record of it was handed over.
    ShardClosed,
    /// There is no such shard any more, or no such stream.
    NotFound(BoxError),
    /// Records are lost, and nobody is to go on as if they were not.
    Lost(Box<DataLoss>),
    /// Nobody takes the records any more.
    NotWanted,
}

impl Reading {
    /// The users' records among those of Kinesis, all of which share their source, and the number of the
    /// last one that Kinesis has.
    pub(super) fn records(
        &self,
        read: Vec<types::Record>,
    ) -> Result<(Vec<Record>, Option<SequenceNumber>), BoxError> {
        let source = Arc::new(Source {
            stream: self.stream.name().clone(),
            shard: self.shard.clone(),
        });
        let mut records = Vec::with_capacity(read.len());
        let mut last = None;
        let mut left = read.len();
        let mut newest = self.newest.as_ref();
        let mut since = self.from.time();
        for record in read {
            let number: SequenceNumber = record.sequence_number.try_into()?;
            left -= 1;
            match newest {
                Some(newest) if number <= *newest => continue,
                _ => newest = None,
            }
            // Emulators of Kinesis begin at the beginning where nothing has arrived since.
            match (since, record.approximate_arrival_timestamp) {
                (Some(since), Some(arrival)) if arrival < since => continue,
                _ => since = None,
            }
            if left == 0 {
                last = Some(number.clone());
            }
            let mut builder = Record::read_from(source.clone(), number).payload(record.data.into_bytes());
            match record.partition_key {
                Some(key) => builder = builder.partition_key(key),
                None if self.needs_keys => return Err(NoPartitionKey.into()),
                None => {}
            }
            let arrival = record.approximate_arrival_timestamp;
            if let Some(arrival) = arrival.and_then(|time| SystemTime::try_from(time).ok()) {
                builder = builder.arrival(arrival);
            }
            unpack(&self.deaggregator, builder.build(), &self.observers, &mut records);
        }
        Ok((records, last))
    }

    /// Before a page is handed over: is the checkpoint's own record there? If not, others may be gone with it.
    pub(super) async fn verify(
        &mut self,
        read: &[types::Record],
        behind_millis: Option<i64>,
    ) -> Result<(), Box<DataLoss>> {
        let Some(expected) = &self.expected else {
            return Ok(());
        };
        let numbers = read
            .iter()
            .filter_map(|record| record.sequence_number.parse().ok());
        let first: Option<SequenceNumber> = numbers.filter(|number| *number >= expected.number).min();
        match &first {
            Some(first) if *first == expected.number => {
                self.expected = None;
                return Ok(());
            }
            // It may be on the next page.
            None if !read.is_empty() || behind_millis != Some(0) => return Ok(()),
            _ => {}
        }
        let horizon = Box::pin(horizon(&self.client, &self.stream)).await;
        let missed = self
            .expected
            .take()
            .and_then(|it| it.missed(first.as_ref(), horizon));
        let Some((from, certain)) = missed else {
            return Ok(());
        };
        let loss = Box::new(DataLoss {
            stream: self.stream.name().clone(),
            shard: self.shard.clone(),
            from,
            to: horizon,
            certain,
        });
        self.tell(|stream, shard| Event::DataLoss {
            stream,
            shard,
            from,
            to: horizon,
            certain,
        });
        match self.on_data_loss.decide(&loss) {
            AfterDataLoss::Resume => Ok(()),
            AfterDataLoss::Halt => Err(loss),
        }
    }

    /// A call has failed with this. If Kinesis does not know the place where reading was to go on (it is trimmed, or
    /// of a stream that had this name before), it goes on with the oldest record there is. Whether that is so.
    pub(super) fn begin_anew(&mut self, code: Option<&str>) -> bool {
        let (Some("InvalidArgumentException"), ReadFrom::At(number) | ReadFrom::After(number)) =
            (code, &self.from)
        else {
            return false;
        };
        let behind = Expected {
            number: number.clone(),
            read_until: self.read_until.time,
            first_unsettled: None,
        };
        self.expected.get_or_insert(behind);
        self.from = ReadFrom::TrimHorizon;
        true
    }

    /// Until when all that arrived is read with this page, whose call began then. Of pages without records it is said
    /// once in a while.
    pub(super) fn read_until(
        &mut self,
        called: SystemTime,
        behind_millis: Option<i64>,
        read: &[types::Record],
    ) -> Option<SystemTime> {
        let at_tip = behind_millis == Some(0);
        let tip = called.checked_sub(SKEW).filter(|_| at_tip);
        let arrival = read
            .last()
            .and_then(|record| record.approximate_arrival_timestamp);
        let arrival = arrival.and_then(|time| SystemTime::try_from(time).ok());
        let time = tip.max(arrival)?;
        let until = &mut self.read_until;
        until.time = until.time.max(Some(time));
        let now = Instant::now();
        let is_due = until.said.is_none_or(|said| now - said >= SAY_AFTER);
        if read.is_empty() && !is_due {
            return None;
        }
        until.said = Some(now);
        until.time
    }

    /// Everything up to this record of Kinesis is handed over.
    pub(super) fn handed_over(&mut self, last: SequenceNumber) {
        self.newest = Some(last.clone());
        self.from = ReadFrom::After(last);
    }

    /// For what is read together, if anybody wants it.
    pub(super) fn span(&self) -> Span {
        debug_span!(
            "batch",
            stream = &**self.stream.name(),
            shard = self.shard.as_str(),
            records = Empty,
            behind_ms = Empty,
        )
    }

    /// Tells what was read. How far it is behind the stream's tip.
    pub(super) fn fetched(
        &self,
        records: &[Record],
        behind_millis: Option<i64>,
        span: &Span,
    ) -> Option<Duration> {
        span.record("records", records.len());
        span.record("behind_ms", behind_millis);
        let behind = behind_millis.and_then(|millis| u64::try_from(millis).ok());
        let behind = behind.map(Duration::from_millis);
        self.tell(|stream, shard| Event::Fetched {
            stream,
            shard,
            records: records.len(),
            bytes: records.iter().map(|record| record.payload().len()).sum(),
            behind,
        });
        behind
    }

    pub(super) fn tell<'a>(&'a self, event: impl FnOnce(&'a str, &'a ShardId) -> Event<'a>) {
        if self.observers.want(Interest::SHARDS) {
            self.observers.tell(&event(self.stream.name(), &self.shard));
        }
    }
}

/// Calls that fail, in a row.
pub(super) struct Failures {
    pub(super) count: u32,
    rng: SmallRng,
}

impl Failures {
    pub(super) fn new(reading: &Reading) -> Self {
        Failures {
            count: 0,
            rng: reading.rng.clone(),
        }
    }

    pub(super) fn none(&mut self) {
        self.count = 0;
    }

    fn next_delay(&mut self, at_least: Duration) -> Duration {
        let delay = Jitter::Equal.delay(&BACKOFF, self.count, Duration::ZERO, &mut self.rng);
        self.count = self.count.saturating_add(1);
        delay.max(at_least)
    }

    pub(super) async fn throttled(&mut self, reading: &Reading) {
        let delay = self.next_delay(Duration::ZERO);
        reading.tell(|stream, shard| Event::FetchThrottled { stream, shard, delay });
        sleep(delay).await;
    }

    pub(super) async fn wait(&mut self, reading: &Reading, error: BoxError) {
        self.wait_at_least(Duration::ZERO, reading, error).await;
    }

    pub(super) async fn wait_at_least(&mut self, at_least: Duration, reading: &Reading, error: BoxError) {
        let delay = self.next_delay(at_least);
        reading.tell(|stream, shard| Event::FetchFailed {
            stream,
            shard,
            failures: self.count,
            error: &*error,
            delay,
        });
        sleep(delay).await;
    }
}
