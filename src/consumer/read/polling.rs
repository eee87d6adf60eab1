//! Reads one shard with GetRecords, one page ahead of the pipeline.

use std::sync::Arc;
use std::time::Duration;

use aws_sdk_kinesis::error::ProvideErrorMetadata;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::Instrument as _;

use super::cursor::{Reading, ReadingEnded, Refusal};
use super::failures::Failures;
use super::read_until::Page;
use super::wire::is_of_encoding;
use crate::aws::FailedCall;
use crate::aws::shard_list::{EndAnswers, is_closed, list_shards};
use crate::failure::BoxError;
use crate::observer::ShardEvent;
use crate::pipeline::{Batch, Capacity, OVERHEAD};
use crate::sabotage::Sabotage;
use crate::wall_clock;

/// The maximum size of the records that one GetRecords call returns.
const MAX_PAGE_BYTES: usize = 10 * 1024 * 1024;

/// The settings of polling.
#[derive(Debug, Clone)]
pub(in crate::consumer) struct PollingSettings {
    /// The minimum time between two calls for one shard.
    pub(in crate::consumer) interval: Duration,
    /// The delay after an empty page of a shard that has been read to its tip.
    pub(in crate::consumer) idle: Duration,
    /// The maximum number of records that a call asks for.
    pub(in crate::consumer) page: i32,
    pub(in crate::consumer) calls_in_flight: usize,
}

/// The polling reader of a shard.
pub(in crate::consumer) struct Poller {
    pub(in crate::consumer) polling: PollingSettings,
    pub(in crate::consumer) calls: Arc<Semaphore>,
    pub(in crate::consumer) capacity: Capacity,
}

impl Poller {
    /// Reads pages until the shard ends.
    pub(in crate::consumer) async fn run(
        &self,
        reading: &mut Reading,
        pages: &mpsc::Sender<Box<Batch>>,
    ) -> ReadingEnded {
        let mut iterator: Option<String> = None;
        let mut failures = Failures::new(reading);
        let mut next_call = Instant::now();
        let mut end_answers = EndAnswers::default();
        loop {
            // Room first, then memory, then the call: nothing is read that has no place. Memory comes after
            // the steps that may wait long, so that reserved memory does not lie idle.
            let Ok(room) = pages.reserve().await else {
                return ReadingEnded::NotWanted;
            };
            let token = match iterator.take() {
                Some(token) => token,
                None => match self.new_iterator(reading).await {
                    Ok(token) => token,
                    Err(NoIterator::NotFound(error)) => return ReadingEnded::NotFound(error),
                    Err(NoIterator::Ended(ended)) => return ended,
                    Err(NoIterator::Failed(error)) => {
                        drop(room);
                        if let Err(refused) = failures.wait_after(reading, error).await {
                            return ReadingEnded::Refused(refused);
                        }
                        continue;
                    }
                    Err(NoIterator::Missing) => {
                        drop(room);
                        let error = "GetShardIterator answered without an iterator";
                        failures.wait(reading, error.into()).await;
                        continue;
                    }
                },
            };
            sleep_until(next_call).await;
            let records = usize::try_from(self.polling.page).unwrap_or_default();
            let memory = self.capacity.reserve(MAX_PAGE_BYTES + records * OVERHEAD).await;
            let called = wall_clock::now();
            let span = reading.span();
            let is_cbor = reading.wire.is_cbor();
            let page = {
                let _call = self.calls.acquire().await;
                next_call = Instant::now() + self.polling.interval;
                let call = reading.client.get_records().shard_iterator(&token);
                let call = call.limit(self.polling.page).customize();
                let call = call.config_override(reading.wire.of_pages(is_cbor));
                // Boxed, like all SDK calls: a shard has room for the call only while it runs.
                Box::pin(call.send().instrument(span.clone())).await
            };
            let page = match page {
                Ok(page) => page,
                Err(error) => {
                    drop((room, memory));
                    if is_cbor && is_of_encoding(&error) {
                        iterator = Some(token);
                        if reading.wire.refuse_cbor() {
                            reading.cbor_refused(error);
                        }
                        continue;
                    }
                    match error.code() {
                        Some("ExpiredIteratorException") => {
                            reading.report(|| ShardEvent::IteratorExpired);
                        }
                        Some("ProvisionedThroughputExceededException" | "KMSThrottlingException") => {
                            iterator = Some(token);
                            failures.throttled(reading).await;
                        }
                        Some("ResourceNotFoundException") => {
                            let failed = reading.failed("kinesis:GetRecords", error);
                            return ReadingEnded::NotFound(failed.into());
                        }
                        // Whatever the error is, a new iterator is at least as good as the old one.
                        _ => {
                            let failed = reading.failed("kinesis:GetRecords", error);
                            if let Err(refused) = failures.wait_after(reading, failed).await {
                                return ReadingEnded::Refused(refused);
                            }
                        }
                    }
                    continue;
                }
            };
            let names_children = page.child_shards.as_ref().is_some_and(|it| !it.is_empty());
            let read = match reading.wire.records(page.records) {
                Ok(read) => read,
                Err(error) => {
                    drop((room, memory));
                    failures.wait(reading, error.into()).await;
                    continue;
                }
            };
            let is_empty = read.is_empty();
            // An empty response (`{}`) proves nothing. A complete one states a lag, which need not be 0 at
            // the end of a closed shard.
            let is_complete = is_empty && page.millis_behind_latest.is_some();
            end_answers.note(is_empty, is_complete, page.next_shard_iterator.is_some());
            if page.next_shard_iterator.is_some() {
                failures.reset();
            }
            if let Err(ended) = reading.verify(&read, page.millis_behind_latest).await {
                return ended;
            }
            let is_end = page.next_shard_iterator.is_none();
            let read_until = reading.read_until(&Page {
                called,
                behind_millis: page.millis_behind_latest,
                is_end,
                records: &read,
            });
            let (records, last) = match reading.records(read) {
                Ok(records) => records,
                Err(error) => {
                    drop((room, memory));
                    failures.wait(reading, error).await;
                    continue;
                }
            };
            iterator = page.next_shard_iterator;
            let behind = reading.fetched(&records, page.millis_behind_latest, &span);
            let batch = Batch::reserved(records, memory);
            match read_until {
                Some(time) => room.send(Box::new(batch.read_until(time))),
                None if batch.is_empty() => drop((room, batch)),
                None => room.send(Box::new(batch)),
            }
            if let Some(last) = last {
                reading.handed_over(last);
            }
            if iterator.is_none() {
                // A missing iterator may be an error of the service. The end is proved by child shards, or by
                // the listing together with several answers that state that nothing is left.
                if !names_children && !Sabotage::TrustMissingIterator.is_committed() {
                    match is_listed_as_closed(reading).await {
                        Ok(()) if is_complete && end_answers.are_enough() => {}
                        Ok(()) => {
                            if is_empty && !is_complete {
                                let error = "GetRecords returned an empty response: no iterator, no child shards, no records and no lag";
                                failures.wait(reading, error.into()).await;
                            }
                            continue;
                        }
                        Err(error) => {
                            failures.wait(reading, error).await;
                            continue;
                        }
                    }
                }
                return match reading.verify_end().await {
                    Ok(()) => ReadingEnded::ShardClosed,
                    Err(ended) => ended,
                };
            }
            // An empty page of a shard that is behind proves nothing: the next page may be full.
            if is_empty && behind.is_none_or(|behind| behind.is_zero()) {
                sleep(self.polling.idle).await;
            }
        }
    }

    async fn new_iterator(&self, reading: &mut Reading) -> Result<String, NoIterator> {
        reading.resume();
        // A thousand shards may start at once, and must not open as many connections.
        let _call = self.calls.acquire().await;
        let (name, arn) = reading.stream.name_or_arn();
        let call = reading
            .client
            .get_shard_iterator()
            .set_stream_name(name)
            .set_stream_arn(arn)
            .shard_id(reading.shard.as_str())
            .shard_iterator_type(reading.from.kind())
            .set_starting_sequence_number(reading.from.number())
            .set_timestamp(reading.from.time());
        let reply = match Box::pin(call.send()).await {
            Ok(reply) => reply,
            Err(error) if error.code() == Some("ResourceNotFoundException") => {
                let failed = reading.failed("kinesis:GetShardIterator", error);
                return Err(NoIterator::NotFound(failed.into()));
            }
            Err(error) => {
                return Err(match reading.refused(error.code()) {
                    Refusal::Ends(ended) => NoIterator::Ended(ended),
                    Refusal::None | Refusal::Earlier => {
                        NoIterator::Failed(reading.failed("kinesis:GetShardIterator", error))
                    }
                });
            }
        };
        reply.shard_iterator.ok_or(NoIterator::Missing)
    }
}

/// Succeeds if ListShards lists this shard as closed.
async fn is_listed_as_closed(reading: &Reading) -> Result<(), BoxError> {
    let shards = Box::pin(list_shards(&reading.client, &reading.stream)).await?;
    let listed = shards.iter().find(|it| it.shard_id() == reading.shard.as_str());
    match listed.map(is_closed) {
        Some(true) => Ok(()),
        Some(false) => Err("GetRecords returned no next iterator, although the shard is open".into()),
        None => Err("GetRecords returned no next iterator, and ListShards does not list the shard".into()),
    }
}

enum NoIterator {
    NotFound(BoxError),
    Failed(FailedCall),
    /// The response has no iterator.
    Missing,
    Ended(ReadingEnded),
}
