//! Reads one shard by enhanced fan-out: Kinesis pushes the records, with throughput for this consumer alone.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_kinesis::error::ProvideErrorMetadata;
use aws_sdk_kinesis::types::{StartingPosition, SubscribeToShardEvent, SubscribeToShardEventStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use super::cursor::{Reading, ReadingEnded, Refusal};
use super::failures::Failures;
use super::read_from::ReadFrom;
use super::read_until::Page;
use super::registration::Registration;
use crate::consumer::calls::ANSWER_TIMEOUT;
use crate::failure::classify::{Classify, StandardClassifier};
use crate::failure::{BoxError, Verdict};
use crate::pipeline::{Batch, Capacity, OVERHEAD};
use crate::record::Record;
use crate::sabotage::Sabotage;
use crate::wall_clock;

/// The longest silence of a healthy subscription: it sends an event every few seconds, even without records.
/// (KCL waits as long.)
const SILENCE: Duration = Duration::from_secs(35);
/// The time in which a second call for a subscription is refused. A later call takes the subscription over
/// (SubscribeToShard, Kinesis API reference).
const TAKE_OVER: Duration = Duration::from_secs(5);
/// Interval between calls for one shard: Kinesis allows one a second.
const CALL_INTERVAL: Duration = Duration::from_secs(1);
/// The number of consecutive failures after which the shard is polled for a while.
const FAILURES_TO_FALL_BACK: u32 = 10;

/// The enhanced fan-out reader of a shard.
pub(in crate::consumer) struct FanOut {
    pub(in crate::consumer) registration: Arc<Registration>,
    pub(in crate::consumer) capacity: Capacity,
}

/// The reason why a subscription ended.
enum End {
    Ended(ReadingEnded),
    /// The subscription expired, as every one does after five minutes.
    Expired,
    Failed(BoxError),
    /// Another subscription of this consumer to this shard is under way.
    InUse(BoxError),
    /// The shard cannot be subscribed to: the registration failed, or Kinesis refuses the call.
    Refused(BoxError),
}

#[derive(Debug, thiserror::Error)]
#[error("the subscription ended without an event")]
struct NoEvent;

#[derive(Debug, thiserror::Error)]
#[error("the subscription has sent nothing for {SILENCE:?}")]
struct Silent;

impl FanOut {
    /// Reads the shard until it ends. Returns an error if the shard cannot be subscribed to.
    pub(in crate::consumer) async fn run(
        &self,
        reading: &mut Reading,
        pages: &mpsc::Sender<Box<Batch>>,
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
                End::Failed(error) | End::InUse(error) if failures.count() >= FAILURES_TO_FALL_BACK => {
                    return Err(error);
                }
                End::InUse(error) => failures.wait_at_least(TAKE_OVER, reading, error).await,
                End::Failed(error) => failures.wait(reading, error).await,
            }
        }
    }

    /// Runs one subscription, from its call to its end.
    async fn subscribe(
        &self,
        reading: &mut Reading,
        pages: &mpsc::Sender<Box<Batch>>,
        failures: &mut Failures,
    ) -> End {
        // With a full window no subscription is made: it would expire unread.
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
        let call = call.customize().config_override(reading.wire.of_events());
        let mut events = match timeout(ANSWER_TIMEOUT, Box::pin(call.send())).await {
            Ok(Ok(reply)) => reply.event_stream,
            Ok(Err(error)) => match reading.refused(error.code()) {
                Refusal::Ends(ended) => return End::Ended(ended),
                Refusal::Earlier => return End::Failed(error.into()),
                Refusal::None => return self.end(&consumer, error.into()),
            },
            Err(elapsed) => return End::Failed(elapsed.into()),
        };
        let mut has_sent = false;
        loop {
            let Ok(room) = pages.reserve().await else {
                return End::Ended(ReadingEnded::NotWanted);
            };
            // The silence counts only while events are read: without room none is received.
            let mut event = match timeout(SILENCE, events.recv()).await {
                Ok(Ok(Some(SubscribeToShardEventStream::SubscribeToShardEvent(event)))) => event,
                // An event type of a newer service, which is not needed here.
                Ok(Ok(Some(_))) => continue,
                Ok(Ok(None)) if Sabotage::ExpiredIsClosed.is_committed() => {
                    return End::Ended(ReadingEnded::ShardClosed);
                }
                Ok(Ok(None)) if has_sent => return End::Expired,
                // An open subscription sends an event every five seconds, even without records.
                Ok(Ok(None)) => return End::Failed(NoEvent.into()),
                Ok(Err(error)) => return self.end(&consumer, error.into()),
                Err(_) if Sabotage::TrustSilence.is_committed() => pending().await,
                Err(_) => return End::Failed(Silent.into()),
            };
            let read = match reading.wire.records(std::mem::take(&mut event.records)) {
                Ok(read) => read,
                Err(error) => return End::Failed(error.into()),
            };
            let closed = is_end(&event, &read);
            let span = reading.span();
            let behind = behind_millis(&event, &read);
            if let Err(ended) = reading.verify(&read, behind).await {
                return End::Ended(ended);
            }
            let read_until = reading.read_until(&Page {
                called: wall_clock::now(),
                behind_millis: behind,
                is_end: closed,
                records: &read,
            });
            let (records, last) = match reading.records(read) {
                Ok(records) => records,
                Err(error) => return End::Failed(error),
            };
            failures.reset();
            has_sent = true;
            reading.fetched(&records, behind, &span);
            // The records have arrived already. A subscription must not reserve memory while it waits for
            // them.
            let payloads: usize = records.iter().map(|record| record.payload().len()).sum();
            let bytes = payloads + records.len() * OVERHEAD;
            let batch = match records.is_empty() {
                true => Batch::from(records),
                false => Batch::reserved(records, self.capacity.reserve(bytes).await),
            };
            match read_until {
                Some(time) => room.send(Box::new(batch.read_until(time))),
                None if batch.is_empty() => {}
                None => room.send(Box::new(batch)),
            }
            match last {
                Some(last) => reading.handed_over(last),
                // Resuming at the continuation number of an empty event saves Kinesis a search, and the
                // number stays valid when the last record is trimmed. AT_SEQUENCE_NUMBER skips nothing;
                // records that come twice are skipped.
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

    fn end(&self, consumer: &str, error: BoxError) -> End {
        // The SDK gives an exception inside a subscription no code, only a type. The classifier knows both.
        let verdict = StandardClassifier.classify(&*error);
        match verdict.as_ref().and_then(Verdict::code) {
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

/// Returns true for the last event of a closed shard: it names child shards, and has no continuation number
/// or no records.
fn is_end(event: &SubscribeToShardEvent, read: &[Record]) -> bool {
    let has_children = event
        .child_shards
        .as_ref()
        .is_some_and(|children| !children.is_empty());
    has_children && (event.continuation_sequence_number.is_empty() || read.is_empty())
}

/// Returns how far the event is behind the tip of the shard. Returns `None` for an incomplete event, which would
/// claim to be at the tip: the SDK replaces a missing field by 0 or an empty text.
fn behind_millis(event: &SubscribeToShardEvent, read: &[Record]) -> Option<i64> {
    let is_complete = is_end(event, read) || !event.continuation_sequence_number.is_empty();
    is_complete.then_some(event.millis_behind_latest)
}

#[cfg(test)]
mod tests {
    use aws_sdk_kinesis::types::{ChildShard, HashKeyRange};

    use super::*;

    fn event(continuation: &str, children: &[&str]) -> SubscribeToShardEvent {
        let child = |name: &&str| {
            let child = ChildShard::builder()
                .shard_id(*name)
                .set_parent_shards(Some(Vec::new()));
            let range = HashKeyRange::builder()
                .starting_hash_key("0")
                .ending_hash_key("1");
            let child = child.hash_key_range(range.build().expect("complete"));
            child.build().expect("complete")
        };
        SubscribeToShardEvent::builder()
            .set_records(Some(Vec::new()))
            .continuation_sequence_number(continuation)
            .millis_behind_latest(0)
            .set_child_shards(Some(children.iter().map(child).collect()))
            .build()
            .expect("complete")
    }

    #[test]
    fn incomplete_event_does_not_claim_to_be_at_the_tip() {
        assert_eq!(behind_millis(&event("", &[]), &[]), None);
        assert_eq!(behind_millis(&event("495", &[]), &[]), Some(0));
        let end = event("", &["shardId-000000000001"]);
        assert!(is_end(&end, &[]));
        assert_eq!(behind_millis(&end, &[]), Some(0));
    }
}
