//! Reads one shard with GetRecords, a page ahead of the pipeline.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::error::ProvideErrorMetadata;
use aws_sdk_kinesis::operation::get_records::GetRecordsOutput;
use aws_sdk_kinesis::types::ShardIteratorType;
use rand::rngs::SmallRng;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, sleep, sleep_until};

use super::{Polling, StreamId};
use crate::failure::BoxError;
use crate::kpl::{Deaggregator, Expanded};
use crate::observer::{Event, Interest, Observers};
use crate::pipeline::{Batch, Capacity};
use crate::record::{Position, Record, SequenceNumber, ShardId, Source};
use crate::retry::{Backoff, Jitter};

/// What one GetRecords call can bring at most.
const MAX_PAGE_BYTES: usize = 10 * 1024 * 1024;
/// Between calls that fail.
const BACKOFF: Backoff = Backoff::exponential();

/// The task that reads a shard.
pub(super) struct Poller {
    pub(super) client: Client,
    pub(super) stream: StreamId,
    pub(super) shard: ShardId,
    pub(super) polling: Polling,
    pub(super) calls: Arc<Semaphore>,
    pub(super) deaggregator: Deaggregator,
    pub(super) capacity: Capacity,
    pub(super) observers: Observers,
    pub(super) rng: SmallRng,
}

/// Where reading goes on.
enum From {
    TrimHorizon,
    /// At the checkpoint's record: it may hold others, of which not all are settled.
    At(SequenceNumber),
    /// Behind the last one handed over.
    After(SequenceNumber),
}

/// Why reading came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReadingEnded {
    /// The shard is closed and every record of it was handed over.
    ShardClosed,
    /// Nobody takes the records any more.
    NotWanted,
}

impl Poller {
    /// Reads what comes after this position, until the shard ends.
    pub(super) async fn run(self, from: Position, pages: mpsc::Sender<Batch>) -> ReadingEnded {
        let mut from = match from {
            Position::Record { sequence_number, .. } => From::At(sequence_number),
            Position::TrimHorizon | Position::ShardEnd => From::TrimHorizon,
        };
        let mut iterator: Option<String> = None;
        let mut failures = Failures::new(&self);
        let mut next_call = Instant::now();
        loop {
            // Room first, then memory, then the call: nothing is read that has no place. Memory last of
            // what may take its time, so that it lies idle for nobody.
            let Ok(room) = pages.reserve().await else {
                return ReadingEnded::NotWanted;
            };
            let token = match iterator.take() {
                Some(token) => token,
                None => match self.iterator(&from).await {
                    Ok(token) => token,
                    Err(error) => {
                        drop(room);
                        failures.wait(error).await;
                        continue;
                    }
                },
            };
            sleep_until(next_call).await;
            let memory = self.capacity.reserve(MAX_PAGE_BYTES).await;
            let page = {
                let _call = self.calls.acquire().await;
                next_call = Instant::now() + self.polling.interval;
                let call = self.client.get_records().shard_iterator(&token);
                call.limit(self.polling.page).send().await
            };
            let page = match page {
                Ok(page) => page,
                Err(error) => {
                    drop((room, memory));
                    match error.code() {
                        Some("ExpiredIteratorException") => {
                            self.tell(|stream, shard| Event::IteratorExpired { stream, shard });
                        }
                        Some("ProvisionedThroughputExceededException" | "KMSThrottlingException") => {
                            iterator = Some(token);
                            failures.throttled().await;
                        }
                        // Whatever is wrong, a new iterator is no worse than the old one.
                        _ => failures.wait(error.into()).await,
                    }
                    continue;
                }
            };
            failures.none();
            let behind = page
                .millis_behind_latest
                .and_then(|millis| u64::try_from(millis).ok());
            let behind = behind.map(Duration::from_millis);
            iterator = page.next_shard_iterator.clone();
            let is_empty = page.records.is_empty();
            let (records, last) = match self.records(page) {
                Ok(records) => records,
                Err(error) => {
                    drop((room, memory));
                    iterator = None;
                    failures.wait(error).await;
                    continue;
                }
            };
            self.tell(|stream, shard| Event::Fetched {
                stream,
                shard,
                records: records.len(),
                bytes: records.iter().map(|record| record.payload().len()).sum(),
                behind,
            });
            let at_tip = is_empty && behind.is_none_or(|behind| behind.is_zero());
            if records.is_empty() {
                drop((room, memory));
            } else {
                room.send(Batch::reserved(records, memory));
            }
            if let Some(last) = last {
                from = From::After(last);
            }
            if iterator.is_none() {
                return ReadingEnded::ShardClosed;
            }
            // An empty page of a shard that is behind says nothing: the next may be full.
            if at_tip {
                sleep(self.polling.idle).await;
            }
        }
    }

    async fn iterator(&self, from: &From) -> Result<String, BoxError> {
        let (name, arn) = self.stream.name_or_arn();
        let (kind, number) = match from {
            From::TrimHorizon => (ShardIteratorType::TrimHorizon, None),
            From::At(number) => (ShardIteratorType::AtSequenceNumber, Some(number)),
            From::After(number) => (ShardIteratorType::AfterSequenceNumber, Some(number)),
        };
        let call = self
            .client
            .get_shard_iterator()
            .set_stream_name(name)
            .set_stream_arn(arn)
            .shard_id(self.shard.as_str())
            .shard_iterator_type(kind)
            .set_starting_sequence_number(number.map(|number| number.as_str().to_owned()));
        let reply = call.send().await?;
        reply
            .shard_iterator
            .ok_or_else(|| "GetShardIterator answered without an iterator".into())
    }

    /// The users' records of a page, all of which share their source, and the number of the last record that
    /// Kinesis has.
    fn records(&self, page: GetRecordsOutput) -> Result<(Vec<Record>, Option<SequenceNumber>), BoxError> {
        let source = Arc::new(Source {
            stream: self.stream.name().clone(),
            shard: self.shard.clone(),
        });
        let mut records = Vec::with_capacity(page.records.len());
        let mut last = None;
        let mut left = page.records.len();
        for record in page.records {
            let number: SequenceNumber = record.sequence_number.try_into()?;
            left -= 1;
            if left == 0 {
                last = Some(number.clone());
            }
            let mut builder = Record::read_from(source.clone(), number).payload(record.data.into_bytes());
            if let Some(key) = record.partition_key {
                builder = builder.partition_key(key);
            }
            let arrival = record.approximate_arrival_timestamp;
            if let Some(arrival) = arrival.and_then(|time| SystemTime::try_from(time).ok()) {
                builder = builder.arrival(arrival);
            }
            self.expand(builder.build(), &mut records);
        }
        Ok((records, last))
    }

    /// Adds the records inside of one that the KPL has aggregated, and any other as it is.
    #[inline]
    fn expand(&self, record: Record, into: &mut Vec<Record>) {
        let before = into.len();
        match self.deaggregator.expand(record, into) {
            Expanded::Plain | Expanded::Aggregate { out_of_range: 0, .. } => {}
            Expanded::Aggregate { out_of_range, .. } => {
                self.tell(|_, _| Event::AggregateOutOfRange {
                    record: &into[before],
                    records: out_of_range,
                    dropped: false,
                });
            }
            Expanded::Dropped { record, records } => {
                self.tell(|_, _| Event::AggregateOutOfRange {
                    record: &record,
                    records,
                    dropped: true,
                });
            }
            Expanded::Damaged(error) => {
                self.tell(|_, _| Event::AggregateDamaged {
                    record: &into[before],
                    error: &error,
                });
            }
        }
    }

    fn tell<'a>(&'a self, event: impl FnOnce(&'a str, &'a ShardId) -> Event<'a>) {
        if self.observers.want(Interest::SHARDS) {
            self.observers.tell(&event(self.stream.name(), &self.shard));
        }
    }
}

/// Calls that fail, in a row.
struct Failures<'a> {
    poller: &'a Poller,
    count: u32,
    rng: SmallRng,
}

impl<'a> Failures<'a> {
    fn new(poller: &'a Poller) -> Self {
        Failures {
            poller,
            count: 0,
            rng: poller.rng.clone(),
        }
    }

    fn none(&mut self) {
        self.count = 0;
    }

    fn next_delay(&mut self) -> Duration {
        let delay = Jitter::Equal.delay(&BACKOFF, self.count, Duration::ZERO, &mut self.rng);
        self.count = self.count.saturating_add(1);
        delay
    }

    async fn throttled(&mut self) {
        let delay = self.next_delay();
        self.poller
            .tell(|stream, shard| Event::FetchThrottled { stream, shard, delay });
        sleep(delay).await;
    }

    async fn wait(&mut self, error: BoxError) {
        let delay = self.next_delay();
        self.poller.tell(|stream, shard| Event::FetchFailed {
            stream,
            shard,
            failures: self.count,
            error: &*error,
            delay,
        });
        sleep(delay).await;
    }
}
