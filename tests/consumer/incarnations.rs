//! Stream incarnations: a position belongs to one incarnation, and a stream that is deleted and created again
//! has other positions.
//!
//! The consumer also refreshes the stream's description while it runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use redrive::checkpoint::{Checkpoint, CheckpointStore, DynamoDb, Leases, NewShard, ShardKey};
use redrive::pipeline::{ExpiryPolicy, Pipeline};
use redrive::testing::kinesis;
use redrive::{ConsumerError, Position, StartingPosition, consumer::DataLossPolicy};
use serde_json::json;

use crate::scene::{STREAM, Scene, records};
use support::dynamodb::DynamoDbLocal;
use support::emulator::unique;
use support::ledger::Store;
use support::proxy::Fault;
use support::waiting::eventually;

const SHARD: &str = "shardId-000000000000";

impl Scene {
    /// Deletes the stream and creates it again. Creation times are in whole seconds, and count as different
    /// if they are at least 1 s apart.
    async fn create_again(&self, shards: i32) {
        let client = self.client();
        let deleted = client.delete_stream().stream_name(STREAM).send().await;
        deleted.expect("DeleteStream");
        eventually_gone(&client).await;
        tokio::time::sleep(Duration::from_millis(2_100)).await;
        let created = kinesis::create_stream(&client, STREAM, shards).await;
        created.expect("CreateStream");
    }

    async fn save(&self, checkpoint: Checkpoint) {
        let key = ShardKey::new("billing", STREAM, SHARD.into());
        let saved = self.store.save(&[(key, checkpoint)]).await.remove(0);
        saved.expect("saved");
    }

    fn reported(&self) -> (usize, usize) {
        (
            self.ledger.events("ShardEvent::StreamRecreated"),
            self.ledger.events("ShardEvent::DataLoss"),
        )
    }
}

async fn eventually_gone(client: &aws_sdk_kinesis::Client) {
    while client
        .describe_stream_summary()
        .stream_name(STREAM)
        .send()
        .await
        .is_ok()
    {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn recreated_stream_is_read_from_its_beginning() {
    let scene = Scene::new(1).await;
    scene.put(records(30, 3, |_| "ok")).await;
    let running = scene.start();
    scene.settle_all(running).await;
    scene.create_again(1).await;
    scene.put(records(20, 3, |_| "ok")).await;
    for _ in 0..2 {
        // The application has started before, so the starting position does not apply.
        let consumer = scene.consumer().starting_position(StartingPosition::Latest);
        let running = scene.run(consumer, scene.resilient());
        scene.ledger.settled(50).await;
        running.stop().await.expect("nothing halted");
    }
    assert_eq!(scene.reported(), (1, 1), "one report of each over all starts");
}

/// The shard has no records, so that Kinesis accepts its position in the new stream too.
#[tokio::test]
async fn stream_recreated_during_a_pause_is_reported() {
    let scene = Scene::new(1).await;
    let running = scene.start();
    eventually("the shard is read", || {
        scene.ledger.events("ShardEvent::Fetched") > 0
    })
    .await;
    let paused = Arc::new(AtomicBool::new(true));
    let is_paused = paused.clone();
    scene.proxy.script(move |call| match &*call.target {
        "GetRecords" | "GetShardIterator" | "DescribeStreamSummary" if is_paused.load(Relaxed) => {
            Fault::error(400, "ExpiredIteratorException")
        }
        _ => Fault::None,
    });
    scene.create_again(1).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    paused.store(false, Relaxed);
    scene.put(records(20, 3, |_| "ok")).await;
    scene.ledger.settled(20).await;
    running.stop().await.expect("nothing halted");
    assert_eq!(scene.reported(), (1, 1));
}

/// Reads the open shard of a new stream although a shard of the same name has ended.
#[tokio::test]
async fn shard_that_ended_in_an_earlier_incarnation_is_read() {
    let scene = Scene::new(1).await;
    scene.put(records(30, 3, |_| "ok")).await;
    let open = scene.open_shards().await;
    scene.split(&open[0]).await;
    let running = scene.start();
    eventually("the shard's end is stored", || {
        scene.ledger.events("ShardEvent::Ended") == 1
    })
    .await;
    running.stop().await.expect("nothing halted");
    scene.create_again(1).await;
    scene.put(records(20, 3, |_| "ok")).await;
    let running = scene.start();
    scene.ledger.settled(50).await;
    running.stop().await.expect("nothing halted");
    let (recreated, losses) = scene.reported();
    assert_eq!(recreated, 1);
    // A child with a row that the new stream does not list may count as a loss as well.
    assert!((1..=3).contains(&losses), "{losses}");
}

/// Recognizes rows without the stream's creation time, from an earlier version: the stream was last read
/// before it was created.
#[tokio::test]
async fn rows_older_than_the_stream_are_recognized() {
    let behind_all = Position::Record {
        sequence_number: "9".repeat(56).parse().expect("digits"),
        sub_sequence_number: 0,
    };
    for position in [Position::ShardEnd, behind_all] {
        let scene = Scene::new(1).await;
        scene.put(records(20, 3, |_| "ok")).await;
        let before = SystemTime::now() - Duration::from_secs(3_600);
        scene.save(Checkpoint::at(position).with_read_until(before)).await;
        let running = scene.start();
        scene.ledger.settled(20).await;
        running.stop().await.expect("nothing halted");
        assert_eq!(scene.reported(), (1, 1));
    }
}

#[tokio::test]
async fn halt_at_a_loss_leaves_the_row_unchanged() {
    let scene = Scene::new(1).await;
    scene.put(records(20, 3, |_| "ok")).await;
    let before = SystemTime::now() - Duration::from_secs(3_600);
    let row = Checkpoint::at(Position::ShardEnd).with_read_until(before);
    scene.save(row.clone()).await;
    let consumer = scene.consumer().on_data_loss(|_| DataLossPolicy::Halt);
    let ended = scene.run(consumer, scene.resilient()).end().await;
    assert!(matches!(ended, Err(ConsumerError::DataLoss(_))), "{ended:?}");
    assert_eq!(scene.reported(), (1, 1));
    let key = ShardKey::new("billing", STREAM, SHARD.into());
    let stored = scene.store.load(&[key]).await.remove(0).expect("loaded");
    assert_eq!(stored, Some(row));
}

/// Reads a shard whose row, written by KCL without any time, says that the shard has ended. The listing keeps
/// showing the shard as open.
#[tokio::test]
async fn open_shard_with_an_ended_row_is_read() {
    let Some(server) = DynamoDbLocal::shared() else {
        return;
    };
    let scene = Scene::new(1).await;
    scene.put(records(20, 3, |_| "ok")).await;
    let table = unique("billing");
    let store = DynamoDb::new(server.patient_client(), table.as_str()).failover_time(Duration::from_secs(4));
    let key = ShardKey::new("billing", STREAM, SHARD.into());
    let ended = NewShard::new(key, Checkpoint::at(Position::ShardEnd));
    store.create(&[ended]).await.remove(0).expect("created");
    let store = Store::over(&scene.ledger, store);
    let running = scene.run(scene.consumer().checkpoints(store), scene.resilient());
    // The consumer waits for 30 s, because a listing may lag behind.
    eventually("the shard is read", || scene.ledger.book().settled.len() == 20).await;
    running.stop().await.expect("nothing halted");
    assert_eq!(scene.reported(), (1, 1));
}

/// Refreshes the description, because the retention may change while the consumer runs.
#[tokio::test]
async fn stream_description_is_refreshed() {
    let scene = Scene::new(1).await;
    let consumer = scene.consumer().refresh_interval(Duration::from_millis(50));
    let running = scene.run(consumer, scene.resilient());
    let calls = || scene.proxy.calls("DescribeStreamSummary").len();
    eventually("the stream is described repeatedly", || calls() >= 5).await;
    assert_eq!(scene.ledger.events("StreamEvent::NotDescribed"), 0);
    scene.proxy.script(|call| match &*call.target {
        "DescribeStreamSummary" => Fault::error(400, "AccessDeniedException"),
        _ => Fault::None,
    });
    let told = || scene.ledger.events("StreamEvent::NotDescribed");
    eventually("a failure is reported", || told() >= 2).await;
    scene.put(records(20, 3, |_| "ok")).await;
    scene.settle_all(running).await;
}

#[tokio::test]
async fn expiry_dead_letters_need_a_known_retention() {
    for (on_expiring, is_refused) in [(ExpiryPolicy::Hold, false), (ExpiryPolicy::DeadLetter, true)] {
        let scene = Scene::new(1).await;
        scene.put(records(20, 3, |_| "ok")).await;
        scene.proxy.script(|call| match &*call.target {
            "DescribeStreamSummary" => Fault::Reply(400, json!({"__type": "AccessDeniedException"})),
            _ => Fault::None,
        });
        let running = scene.run(
            scene.consumer().pipeline(
                Pipeline::builder()
                    .expiry_policy(on_expiring)
                    .build()
                    .expect("valid"),
            ),
            scene.resilient(),
        );
        if is_refused {
            let ended = running.end().await;
            assert!(
                matches!(ended, Err(ConsumerError::RetentionUnknown { .. })),
                "{ended:?}"
            );
        } else {
            scene.settle_all(running).await;
            assert_eq!(scene.ledger.events("StreamEvent::NotDescribed"), 1, "one warning");
        }
    }
}
