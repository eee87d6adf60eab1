//! Errors at the start: a configuration that cannot work is refused before the first record.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering as Atomic};
use std::time::Duration;

use async_trait::async_trait;
use redrive::checkpoint::{Checkpoint, CheckpointError, CheckpointStore, ShardKey};
use redrive::consumer::ConsumerBuilder;
use redrive::dead_letter::TargetError;
use redrive::pipeline::Pipeline;
use redrive::{
    Consumer, ConsumerError, Position, RecordOrder, StartingPosition, checkpoint, consumer::Retrieval,
    dead_letter,
};

use crate::scene::{STREAM, Scene, records};
use redrive::testing::kinesis::create_stream;
use support::ledger::{Note, Sink};
use support::proxy::Fault;
use support::stream::Sent;
use support::waiting::eventually;
use support::wire::wire;

fn consumer(scene: &Scene, stream: &str) -> ConsumerBuilder {
    let consumer = Consumer::builder(scene.proxy.client(), stream);
    consumer.wire(wire()).checkpoints(scene.store.clone())
}

#[tokio::test]
async fn a_stream_that_does_not_exist_is_an_error() {
    let scene = Scene::new(1).await;
    for resilient in [scene.resilient(), scene.resilient().without_dead_letters()] {
        let running = scene.run(consumer(&scene, "invoices"), resilient);
        let error = running.end().await.expect_err("no such stream");
        assert!(
            matches!(&error, ConsumerError::StreamNotFound { stream, .. } if stream == "invoices"),
            "{error:?}"
        );
    }
}

#[tokio::test]
async fn the_source_cannot_be_the_dead_letter_stream() {
    let scene = Scene::new(1).await;
    scene.put(records(10, 5, |_| "bad")).await;
    let sink = dead_letter::Kinesis::new(scene.client(), STREAM);
    let running = scene.run(scene.consumer(), scene.resilient().dead_letters(sink));
    let error = running.end().await.expect_err("the target is the source");
    assert!(
        matches!(
            &error,
            ConsumerError::DeadLetterTarget(TargetError::SourceItself { name }) if name == STREAM
        ),
        "{error:?}"
    );
    assert!(scene.proxy.calls("GetRecords").is_empty());
}

#[tokio::test]
async fn a_dead_letter_stream_that_does_not_exist_is_an_error() {
    let scene = Scene::new(1).await;
    let sink = dead_letter::Kinesis::new(scene.client(), "nowhere");
    let running = scene.run(scene.consumer(), scene.resilient().dead_letters(sink));
    let error = running.end().await.expect_err("no such stream");
    assert!(
        matches!(
            &error,
            ConsumerError::DeadLetterTarget(TargetError::Unreachable { name, .. }) if name == "nowhere"
        ),
        "{error:?}"
    );
    assert!(scene.proxy.calls("GetRecords").is_empty());
}

/// Uses the default retention of one day, which is short for a dead letter.
#[tokio::test]
async fn short_dead_letter_retention_is_a_warning() {
    let scene = Scene::new(1).await;
    create_stream(&scene.client(), "orders-dlq", 1)
        .await
        .expect("a stream");
    scene
        .put(records(
            40,
            4,
            |number| if number % 4 == 1 { "bad" } else { "ok" },
        ))
        .await;
    let sink = Sink::new(
        &scene.ledger,
        dead_letter::Kinesis::new(scene.client(), "orders-dlq"),
    );
    let running = scene.run(scene.consumer(), scene.resilient().dead_letters(sink));
    scene.settle_all(running).await;
    assert!(scene.ledger.events("DeadLetterEvent::TargetWarning") > 0);
}

#[tokio::test]
async fn invalid_settings_are_refused_by_name() {
    let scene = Scene::new(1).await;
    let refused = |builder: ConsumerBuilder| builder.build().expect_err("refused").setting();
    let valid = || consumer(&scene, STREAM);
    assert!(valid().build().is_ok());
    assert_eq!(refused(Consumer::builder(scene.client(), STREAM)), "checkpoints");
    for stream in ["", "arn:aws:sqs:us-east-1:000000000000:orders"] {
        assert_eq!(refused(consumer(&scene, stream)), "builder", "{stream}");
    }
    for calls in [0.0, -1.0, f64::NAN, 1e-9, 1e-19, 1e-300] {
        assert_eq!(
            refused(valid().calls_per_second(calls)),
            "calls_per_second",
            "{calls}"
        );
    }
    for records in [0, 10_001, u32::MAX] {
        assert_eq!(
            refused(valid().records_per_call(records)),
            "records_per_call",
            "{records}"
        );
    }
    for calls in [0, usize::MAX] {
        assert_eq!(
            refused(valid().calls_in_flight(calls)),
            "calls_in_flight",
            "{calls}"
        );
    }
    assert_eq!(
        refused(valid().refresh_interval(Duration::ZERO)),
        "refresh_interval"
    );

    let text = Consumer::builder(scene.client(), STREAM)
        .build()
        .expect_err("refused")
        .to_string();
    assert!(text.contains(".checkpoints("), "{text}");
    let memory = Consumer::builder(scene.client(), STREAM).checkpoints(checkpoint::Memory::new());
    let endless = memory
        .shutdown_timeout(Duration::MAX)
        .idle_interval(Duration::MAX);
    assert!(endless.build().is_ok());
}

/// A store whose first answer contains no shard.
#[derive(Debug)]
struct Forgetful {
    inner: support::ledger::Store,
    asked: AtomicBool,
}

#[async_trait]
impl CheckpointStore for Forgetful {
    async fn load(&self, shards: &[ShardKey]) -> Vec<Result<Option<Checkpoint>, CheckpointError>> {
        match self.asked.swap(true, Atomic::Relaxed) {
            true => self.inner.load(shards).await,
            false => Vec::new(),
        }
    }

    async fn save(&self, rows: &[(ShardKey, Checkpoint)]) -> Vec<Result<(), CheckpointError>> {
        self.inner.save(rows).await
    }
}

#[tokio::test]
async fn store_answer_for_too_few_shards_is_retried() {
    let scene = Scene::new(2).await;
    scene.put(records(20, 5, |_| "ok")).await;
    let sent = scene.settle_all(scene.start()).await;
    assert_eq!(sent.len(), 20);
    let store = Forgetful {
        inner: scene.store.clone(),
        asked: AtomicBool::new(false),
    };
    let running = scene.run(scene.consumer().checkpoints(store), scene.resilient());
    scene.put(records(20, 5, |_| "ok")).await;
    // If the consumer accepted the empty answer, it would repeat all records.
    scene.settle_all(running).await;
    assert_eq!(scene.ledger.events("StreamEvent::DiscoveryFailed"), 1);
}

async fn a_moment() {
    // The embedded server states arrival times in whole seconds.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
}

impl Scene {
    /// Returns the number of these records that are settled.
    fn settled_of(&self, sent: &[Sent]) -> usize {
        let book = self.ledger.book();
        sent.iter()
            .filter(|sent| book.settled.contains(&sent.place))
            .count()
    }
}

#[tokio::test]
async fn application_starts_at_a_time_or_after_given_records() {
    let scene = Scene::new(1).await;
    scene.put(records(50, 20, |_| "ok")).await;
    a_moment().await;
    let time = std::time::SystemTime::now();
    scene.put(records(50, 20, |_| "ok")).await;
    let sent = scene.read().await;
    let (before, after) = sent.split_at(50);
    let consumer = scene
        .consumer()
        .starting_position(StartingPosition::AtTimestamp(time));
    let running = scene.run(consumer, scene.resilient());
    scene.ledger.settled(50).await;
    running.stop().await.expect("nothing halted");
    assert_eq!((scene.settled_of(before), scene.settled_of(after)), (0, 50));

    let scene = Scene::new(1).await;
    scene.put(records(50, 20, |_| "ok")).await;
    let sent = scene.read().await;
    let (before, after) = sent.split_at(31);
    let last = &before[30].place;
    let numbers = HashMap::from([(last.shard.clone(), last.number.clone())]);
    let start = StartingPosition::AfterSequenceNumbers(numbers);
    let running = scene.run(scene.consumer().starting_position(start), scene.resilient());
    scene.ledger.settled(19).await;
    running.stop().await.expect("nothing halted");
    assert_eq!((scene.settled_of(before), scene.settled_of(after)), (0, 19));

    let future = StartingPosition::AtTimestamp(time + Duration::from_secs(3_600));
    let refused = scene.consumer().starting_position(future).build();
    assert_eq!(
        refused.expect_err("a time in the future").setting(),
        "starting_position"
    );
}

/// Refuses to keep an order per key on streams with AUTO distribution, whose records have no keys.
#[tokio::test]
async fn key_order_is_refused_on_streams_without_keys() {
    let scene = Scene::new(1).await;
    scene.put(records(50, 20, |_| "ok")).await;
    let auto = |described: bool| {
        scene.proxy.script(move |call| match &*call.target {
            "DescribeStreamSummary" if described => Fault::Rewrite(Box::new(|reply| {
                reply["StreamDescriptionSummary"]["RecordDistributionStrategy"] = "AUTO".into();
            })),
            "DescribeStreamSummary" => Fault::error(400, "AccessDeniedException"),
            "GetRecords" => Fault::Rewrite(Box::new(|reply| {
                for record in reply["Records"].as_array_mut().into_iter().flatten() {
                    record.as_object_mut().expect("a record").remove("PartitionKey");
                }
            })),
            _ => Fault::None,
        });
    };
    auto(true);
    for resilient in [scene.resilient(), scene.resilient().without_dead_letters()] {
        let running = scene.run(scene.consumer(), resilient);
        let error = running.end().await.expect_err("no keys");
        assert!(
            matches!(&error, ConsumerError::NoPartitionKeys { stream } if stream == STREAM),
            "{error:?}"
        );
    }
    // Without permission to describe the stream, the consumer notices missing keys in the records and passes
    // none of them.
    auto(false);
    let running = scene.run(scene.consumer(), scene.resilient());
    eventually("the failure is reported", || {
        scene.ledger.events("ShardEvent::FetchFailed") > 1
    })
    .await;
    running.stop().await.expect("nothing halted");
    assert!(scene.ledger.book().settled.is_empty());

    for ordering in [RecordOrder::Shard, RecordOrder::Unordered] {
        auto(true);
        let before = scene.ledger.book().notes.len();
        let consumer = scene
            .consumer()
            .pipeline(Pipeline::builder().ordering(ordering).build().expect("valid"))
            .checkpoints(checkpoint::Memory::new());
        let running = scene.run(consumer, scene.resilient());
        // Each record has two notes: begun and processed.
        eventually("all records are processed", || {
            scene.ledger.book().notes.len() >= before + 100
        })
        .await;
        running.stop().await.expect("nothing halted");
    }
    assert_eq!(scene.ledger.book().settled.len(), 50);
}

/// Simulates a machine whose clock is ahead: Kinesis refuses a time in its future. No record that arrives
/// meanwhile is skipped, also after a restart.
#[tokio::test]
async fn start_time_ahead_of_kinesis_is_moved_back() {
    for retrieval in [Retrieval::Polling, Retrieval::fan_out()] {
        let scene = Scene::new(1).await;
        scene.proxy.script(|call| {
            let kind = match &*call.target {
                "GetShardIterator" => &call.body["ShardIteratorType"],
                "SubscribeToShard" => &call.body["StartingPosition"]["Type"],
                _ => return Fault::None,
            };
            match (kind.as_str(), call.number) {
                (Some("AT_TIMESTAMP"), 1..=2) => Fault::error(400, "InvalidArgumentException"),
                _ => Fault::None,
            }
        });
        let consumer = scene
            .consumer()
            .starting_position(StartingPosition::Latest)
            .retrieval(retrieval);
        let running = scene.run(consumer, scene.resilient());
        eventually("the consumer has started", || {
            scene.ledger.events("ShardEvent::Fetched") > 0
        })
        .await;
        scene.put(records(20, 4, |_| "ok")).await;
        scene.ledger.settled(20).await;
        running.stop().await.expect("nothing halted");
        let notes = scene.ledger.book();
        let times = notes.notes.iter().filter_map(|note| match note {
            Note::Saved(_, checkpoint) => match checkpoint.position() {
                Position::AtTimestamp { millis } => Some(*millis),
                _ => None,
            },
            _ => None,
        });
        let mut times: Vec<u64> = times.collect();
        times.dedup();
        assert!(
            times.len() == 3 && times.is_sorted_by(|a, b| *a == *b + 60_000),
            "{times:?}"
        );
    }
}
