//! Reads one shard by enhanced fan-out: Kinesis pushes its records, to this consumer alone.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_kinesis::error::ProvideErrorMetadata;
use aws_sdk_kinesis::types::{StartingPosition, SubscribeToShardEvent, SubscribeToShardEventStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use super::cursor::{Failures, ReadFrom, Reading, ReadingEnded, Refusal};
use super::registration::Registration;
use crate::consumer::ANSWER_TIMEOUT;
use crate::failure::BoxError;
use crate::failure::classify::StandardClassifier;
use crate::pipeline::{Batch, Capacity, OVERHEAD};
use crate::sabotage::Sabotage;
use crate::wall_clock;

/// A subscription sends something every few seconds, if only that there is nothing. (KCL waits as long.)
const SILENCE: Duration = Duration::from_secs(35);
/// A second call within it is refused; later it takes the subscription over (SubscribeToShard, Kinesis API
/// reference).
const TAKE_OVER: Duration = Duration::from_secs(5);
/// One call a second for each shard.
const CALL_INTERVAL: Duration = Duration::from_secs(1);
/// So many in a row, and the shard is polled for a while.
const FAILURES_TO_FALL_BACK: u32 = 10;

/// How a shard is subscribed to.
pub(in crate::consumer) struct FanOut {
    pub(in crate::consumer) registration: Arc<Registration>,
    pub(in crate::consumer) capacity: Capacity,
}

/// Why a subscription came to its end.
enum End {
    Ended(ReadingEnded),
    /// After five minutes, as all do.
    Expired,
    Failed(BoxError),
    /// Another subscription of this consumer to this shard is under way.
    InUse(BoxError),
    /// Nobody may subscribe, or not so.
    Refused(BoxError),
}

#[derive(Debug, thiserror::Error)]
#[error("the subscription ended without an event")]
struct NoEvent;

#[derive(Debug, thiserror::Error)]
#[error("the subscription has sent nothing for {SILENCE:?}")]
struct Silent;

impl FanOut {
    /// Reads what comes next until the shard ends; an error if it cannot be subscribed to.
    pub(in crate::consumer) async fn run(
        &self,
        reading: &mut Reading,
        pages: &mpsc::Sender<Batch>,
    ) -> Result<ReadingEnded, BoxError> {
        let mut failures = Failures::new(reading);
        let mut next_call = Instant::now();
        loop {
            sleep_until(next_call).await;
            next_call = Instant::now() + CALL_INTERVAL;
            match self.subscribe(reading, pages, &mut failures).await {
                End::Ended(ended) => return Ok(ended),
                End::Expired => {}
                End::Refused(error) => return Err(error),
                End::Failed(error) | End::InUse(error) if failures.count >= FAILURES_TO_FALL_BACK => {
                    return Err(error);
                }
                End::InUse(error) => failures.wait_at_least(TAKE_OVER, reading, error).await,
                End::Failed(error) => failures.wait(reading, error).await,
            }
        }
    }

    /// One subscription, from its call to its end.
    async fn subscribe(
        &self,
        reading: &mut Reading,
        pages: &mpsc::Sender<Batch>,
        failures: &mut Failures,
    ) -> End {
        // With a full window nothing is renewed: it would run out unread.
        if pages.reserve().await.is_err() {
            return End::Ended(ReadingEnded::NotWanted);
        }
        let consumer = match Box::pin(self.registration.arn(&reading.client)).await {
            Ok(arn) => arn,
            Err(error) => return End::Refused(error),
        };
        reading.resume();
        let from = StartingPosition::builder()
            .r#type(reading.from.kind())
            .set_sequence_number(reading.from.number())
            .set_timestamp(reading.from.time());
        let from = match from.build() {
            Ok(from) => from,
            Err(error) => return End::Failed(error.into()),
        };
        let call = reading.client.subscribe_to_shard().consumer_arn(&*consumer);
        let call = call.shard_id(reading.shard.as_str()).starting_position(from);
        let mut events = match timeout(ANSWER_TIMEOUT, Box::pin(call.send())).await {
            Ok(Ok(reply)) => reply.event_stream,
            Ok(Err(error)) => match reading.refused(error.code()) {
                Refusal::Ends(ended) => return End::Ended(ended),
                Refusal::Earlier => return End::Failed(error.into()),
                Refusal::None => return self.end(&consumer, error.code().map(str::to_owned), error.into()),
            },
            Err(elapsed) => return End::Failed(elapsed.into()),
        };
        let mut has_sent = false;
        loop {
            let Ok(room) = pages.reserve().await else {
                return End::Ended(ReadingEnded::NotWanted);
            };
            // Time counts only while it is read: without room nothing is heard.
            let event = match timeout(SILENCE, events.recv()).await {
                Ok(Ok(Some(SubscribeToShardEventStream::SubscribeToShardEvent(event)))) => event,
                // One that a newer service sends, and that nobody here needs.
                Ok(Ok(Some(_))) => continue,
                Ok(Ok(None)) if Sabotage::ExpiredIsClosed.is_committed() => {
                    return End::Ended(ReadingEnded::ShardClosed);
                }
                Ok(Ok(None)) if has_sent => return End::Expired,
                // An open subscription sends an event every five seconds, if only that there is nothing.
                Ok(Ok(None)) => return End::Failed(NoEvent.into()),
                Ok(Err(error)) => return self.end(&consumer, error.code().map(str::to_owned), error.into()),
                Err(_) if Sabotage::TrustSilence.is_committed() => pending().await,
                Err(_) => return End::Failed(Silent.into()),
            };
            let closed = is_end(&event);
            let span = reading.span();
            let behind = Some(event.millis_behind_latest);
            if let Err(ended) = reading.verify(&event.records, behind).await {
                return End::Ended(ended);
            }
            let read_until = reading.read_until(wall_clock::now(), (behind, closed), &event.records);
            let (records, last) = match reading.records(event.records) {
                Ok(records) => records,
                Err(error) => return End::Failed(error),
            };
            failures.none();
            has_sent = true;
            reading.fetched(&records, behind, &span);
            // They are here already; a subscription must not lie on memory while it waits for them.
            let payloads: usize = records.iter().map(|record| record.payload().len()).sum();
            let bytes = payloads + records.len() * OVERHEAD;
            let batch = match records.is_empty() {
                true => Batch::from(records),
                false => Batch::reserved(records, self.capacity.reserve(bytes).await),
            };
            match read_until {
                Some(time) => room.send(batch.read_until(time)),
                None if batch.is_empty() => {}
                None => room.send(batch),
            }
            match last {
                Some(last) => reading.handed_over(last),
                // What an empty event says to go on from spares Kinesis the way there, and is there still
                // when the last record is trimmed. AT, which passes nothing by; what comes twice is known.
                None => {
                    if let Ok(next) = event.continuation_sequence_number.try_into() {
                        reading.from = ReadFrom::Continuation(next);
                    }
                }
            }
            if closed {
                return End::Ended(match reading.verify_end().await {
                    Ok(()) => ReadingEnded::ShardClosed,
                    Err(ended) => ended,
                });
            }
        }
    }

    fn end(&self, consumer: &str, code: Option<String>, error: BoxError) -> End {
        match code.as_deref() {
            Some("ResourceInUseException") => End::InUse(error),
            Some("ResourceNotFoundException") => {
                self.registration.forget(consumer);
                End::Failed(error)
            }
            _ if StandardClassifier::is_passing(&*error) => End::Failed(error),
            _ => End::Refused(error),
        }
    }
}

/// The last event of a closed shard names its children, and nothing to go on from.
fn is_end(event: &SubscribeToShardEvent) -> bool {
    let has_children = event
        .child_shards
        .as_ref()
        .is_some_and(|children| !children.is_empty());
    has_children && (event.continuation_sequence_number.is_empty() || event.records.is_empty())
}
