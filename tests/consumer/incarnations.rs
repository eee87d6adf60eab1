//! A position belongs to one stream: a stream that is deleted and created again under the same name has others. And what the
//! consumer knows of the stream itself is asked for again while it runs.

use std::time::{Duration, SystemTime};

use redrive::checkpoint::{Checkpoint, CheckpointStore, DynamoDb, Leases, NewShard, ShardKey};
use redrive::pipeline::ExpiryPolicy;
use redrive::testing::kinesis;
use redrive::{ConsumerError, DataLossPolicy, Position, StartingPosition};
use serde_json::json;

use crate::scene::{STREAM, Scene, records};
use support::dynamodb::DynamoDbLocal;
use support::emulator::unique;
use support::ledger::Store;
use support::proxy::Fault;
use support::waiting::eventually;

const SHARD: &str = "shardId-000000000000";

impl Scene {
    /// Deletes the stream and creates it again. Creation times are in whole seconds, and count as different from 1 s on.
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
            self.ledger.events("StreamRecreated"),
            self.ledger.events("DataLoss"),
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
async fn a_stream_that_was_created_again_is_read_from_its_beginning() {
    let scene = Scene::new(1).await;
    scene.put(records(30, 3, |_| "ok")).await;
    let running = scene.start();
    scene.settle_all(running).await;
    scene.create_again(1).await;
    scene.put(records(20, 3, |_| "ok")).await;
    for _ in 0..2 {
        // Not a first start.
        let consumer = scene.consumer().starting_position(StartingPosition::Latest);
        let running = scene.run(consumer, scene.resilient());
        scene.ledger.settled(50).await;
        running.stop().await.expect("nothing halted");
    }
    assert_eq!(scene.reported(), (1, 1), "once, over all starts");
}

/// The new stream's open shard has the name of one that has ended.
#[tokio::test]
async fn a_shard_that_ended_in_an_earlier_stream_is_read() {
    let scene = Scene::new(1).await;
    scene.put(records(30, 3, |_| "ok")).await;
    let open = scene.open_shards().await;
    scene.split(&open[0]).await;
    let running = scene.start();
    eventually("its end is stored", || scene.ledger.events("ShardEnded") == 1).await;
    running.stop().await.expect("nothing halted");
    scene.create_again(1).await;
    scene.put(records(20, 3, |_| "ok")).await;
    let running = scene.start();
    scene.ledger.settled(50).await;
    running.stop().await.expect("nothing halted");
    let (recreated, losses) = scene.reported();
    assert_eq!(recreated, 1);
    // Also of a child that had a row, which the new stream does not list.
    assert!((1..=3).contains(&losses), "{losses}");
}

/// A row from a version that did not store the stream's creation time: what was read is older than the stream.
#[tokio::test]
async fn the_time_of_an_earlier_stream_tells_its_rows() {
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
async fn a_consumer_that_is_to_halt_at_a_loss_leaves_the_row_as_it_is() {
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

/// KCL's row of a shard that has ended, without any time. The listing shows the shard as open, and goes on to.
#[tokio::test]
async fn an_open_shard_whose_row_says_that_it_has_ended_is_read() {
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
    // For the 30 s that a listing may lag behind.
    eventually("it is read", || scene.ledger.book().settled.len() == 20).await;
    running.stop().await.expect("nothing halted");
    assert_eq!(scene.reported(), (1, 1));
}

/// The retention may be raised or lowered while the consumer runs.
#[tokio::test]
async fn the_stream_is_described_again_while_it_is_read() {
    let scene = Scene::new(1).await;
    let consumer = scene.consumer().refresh_interval(Duration::from_millis(50));
    let running = scene.run(consumer, scene.resilient());
    let calls = || scene.proxy.calls("DescribeStreamSummary").len();
    eventually("it is asked for", || calls() >= 5).await;
    assert_eq!(scene.ledger.events("StreamNotDescribed"), 0);
    scene.proxy.script(|call| match &*call.target {
        "DescribeStreamSummary" => Fault::error(400, "AccessDeniedException"),
        _ => Fault::None,
    });
    let told = || scene.ledger.events("StreamNotDescribed");
    eventually("a failure is reported", || told() >= 2).await;
    scene.put(records(20, 3, |_| "ok")).await;
    scene.settle_all(running).await;
}

#[tokio::test]
async fn without_a_known_retention_no_record_can_expire_in_time() {
    for (on_expiring, is_refused) in [(ExpiryPolicy::Hold, false), (ExpiryPolicy::DeadLetter, true)] {
        let scene = Scene::new(1).await;
        scene.put(records(20, 3, |_| "ok")).await;
        scene.proxy.script(|call| match &*call.target {
            "DescribeStreamSummary" => Fault::Reply(400, json!({"__type": "AccessDeniedException"})),
            _ => Fault::None,
        });
        let running = scene.run(scene.consumer().expiry_policy(on_expiring), scene.resilient());
        if is_refused {
            let ended = running.end().await;
            assert!(
                matches!(ended, Err(ConsumerError::RetentionUnknown { .. })),
                "{ended:?}"
            );
        } else {
            scene.settle_all(running).await;
            assert_eq!(scene.ledger.events("StreamNotDescribed"), 1, "a warning");
        }
    }
}
