//! Answers that are empty, partial or repeated. None of them ends a shard or the consumer, or starts a shard
//! twice.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use redrive::testing::kinesis::KinesisServer;
use redrive::{Position, consumer::Retrieval};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::scene::{Scene, records};
use support::proxy::Fault;
use support::waiting::eventually;

/// Creates a fault that changes the response.
fn rewrite(change: impl FnOnce(&mut Value) + Send + 'static) -> Fault {
    Fault::Rewrite(Box::new(change))
}

#[tokio::test]
async fn open_shard_without_a_next_iterator_is_still_read() {
    let replies: [fn() -> Fault; 2] = [
        || {
            rewrite(|reply| {
                reply["NextShardIterator"] = Value::Null;
            })
        },
        || Fault::Reply(200, json!({})),
    ];
    for make in replies {
        let scene = Scene::new(1).await;
        scene.put(records(50, 5, |_| "ok")).await;
        scene
            .proxy
            .script(move |call| match (&*call.target, call.number) {
                // The second call finds the shard at its tip. The third and fourth belong to the search for
                // proof.
                ("GetRecords", 2..=4) => make(),
                _ => Fault::None,
            });
        let running = scene.start();
        scene.ledger.settled(50).await;
        eventually("the consumer has requested another iterator", || {
            scene.proxy.calls("GetShardIterator").len() >= 4
        })
        .await;
        scene.put(records(50, 5, |_| "ok")).await;
        scene.settle_all(running).await;
        assert_eq!(scene.ledger.events("ShardEvent::Ended"), 0);
        assert!(
            scene.ledger.events("ShardEvent::FetchFailed") >= 3,
            "the failures are not reported"
        );
        let saved = scene.ledger.book().last_saved();
        let ended = saved.values().filter(|it| *it.position() == Position::ShardEnd);
        assert_eq!(ended.count(), 0);
    }
}

/// Returns answers without an iterator in the middle of a closed shard. The rest is read before the shard's
/// end is stored. An empty answer is no proof of the end, however often it is repeated.
#[tokio::test]
async fn a_closed_shard_without_a_next_iterator_is_read_to_its_end() {
    let scene = Scene::new(1).await;
    scene.put(records(90, 9, |_| "ok")).await;
    let open = scene.open_shards().await;
    scene.split(&open[0]).await;
    scene.proxy.script(|call| match (&*call.target, call.number) {
        ("GetRecords", 2..=4) => Fault::Reply(200, json!({})),
        _ => Fault::None,
    });
    let consumer = scene.consumer().records_per_call(30);
    let running = scene.run(consumer, scene.resilient());
    eventually("the shard's end is stored", || {
        scene.ledger.events("ShardEvent::Ended") == 1
    })
    .await;
    scene.settle_all(running).await;
}

/// Reads a closed shard whose last record is older than a day. Reading resumes at that record and receives it
/// again. The shard still ends, even if no answer names child shards.
#[tokio::test]
async fn a_closed_shard_of_old_records_ends() {
    let scene = Scene::new(1).await;
    scene.put(records(30, 3, |_| "ok")).await;
    let open = scene.open_shards().await;
    scene.split(&open[0]).await;
    let long_ago = SystemTime::now() - Duration::from_secs(30 * 60 * 60);
    let long_ago = long_ago.duration_since(UNIX_EPOCH).expect("after 1970");
    scene.proxy.script(move |call| match &*call.target {
        "GetRecords" => rewrite(move |reply| {
            reply["ChildShards"] = Value::Null;
            for record in reply["Records"].as_array_mut().into_iter().flatten() {
                record["ApproximateArrivalTimestamp"] = json!(long_ago.as_secs());
            }
        }),
        "DescribeStreamSummary" => rewrite(|reply| {
            reply["StreamDescriptionSummary"]["RetentionPeriodHours"] = json!(168);
        }),
        _ => Fault::None,
    });
    let running = scene.start();
    eventually("the shard's end is stored", || {
        scene.ledger.events("ShardEvent::Ended") == 1
    })
    .await;
    scene.settle_all(running).await;
}

#[tokio::test]
async fn empty_listing_is_retried() {
    let scene = Scene::new(2).await;
    scene.put(records(40, 4, |_| "ok")).await;
    scene.proxy.script(|call| match (&*call.target, call.number) {
        ("ListShards", 1) => Fault::Reply(200, json!({})),
        ("ListShards", 2) => Fault::Reply(200, json!({"Shards": []})),
        _ => Fault::None,
    });
    let running = scene.start();
    scene.settle_all(running).await;
    assert_eq!(scene.ledger.events("StreamEvent::DiscoveryFailed"), 2);
}

#[tokio::test]
async fn a_listing_that_repeats_its_pages_starts_each_shard_once() {
    let scene = Scene::new(2).await;
    scene.put(records(40, 4, |_| "ok")).await;
    scene.proxy.script(|call| match (&*call.target, call.number) {
        // The first listing repeats its token and never ends. The third call returns each shard twice.
        ("ListShards", 1) => rewrite(|reply| reply["NextToken"] = json!("again")),
        ("ListShards", 2) => Fault::Reply(200, json!({"Shards": [], "NextToken": "again"})),
        ("ListShards", _) => rewrite(|reply| {
            let shards = reply["Shards"].as_array().expect("shards").clone();
            reply["Shards"] = json!([shards.clone(), shards].concat());
        }),
        _ => Fault::None,
    });
    let running = scene.start();
    scene.settle_all(running).await;
    assert_eq!(scene.ledger.events("ShardEvent::Started"), 2);
    assert!(scene.ledger.events("StreamEvent::DiscoveryFailed") >= 1);
}

/// Counts each subscription that ends at once as a failure. In the end the shard is polled.
#[tokio::test]
async fn subscriptions_that_end_without_an_event_are_failures() {
    let scene = Scene::on(1, KinesisServer::builder().subscription_lifetime(Duration::ZERO)).await;
    scene.put(records(20, 4, |_| "ok")).await;
    scene.proxy.script(|call| match &*call.target {
        "SubscribeToShard" => Fault::EndAtOnce,
        _ => Fault::None,
    });
    let running = scene.run(
        scene.consumer().retrieval(Retrieval::fan_out()),
        scene.resilient(),
    );
    scene.ledger.settled(20).await;
    assert!(scene.ledger.events("ShardEvent::FetchFailed") >= 9);
    assert_eq!(scene.ledger.events("ShardEvent::FanOutUnavailable"), 1);
    running.stop().await.expect("nothing halted");
}

/// Lets the children of an existing parent wait while the listing lacks that parent.
#[tokio::test]
async fn children_wait_for_an_unlisted_parent() {
    let scene = Scene::new(1).await;
    // The parent has a checkpoint before its records become slow.
    let steps = |number: usize| if number < 5 { "ok" } else { "sleep:300" };
    scene.put(records(10, 1, steps)).await;
    let running = scene.start();
    scene.ledger.settled(6).await;
    running.stop().await.expect("nothing halted");
    let open = scene.open_shards().await;
    scene.split(&open[0]).await;
    scene.put(records(10, 1, |_| "ok")).await;
    let parent = open[0].shard_id().to_owned();
    scene
        .proxy
        .script(move |call| match (&*call.target, call.number) {
            // These are the listings of the second start.
            ("ListShards", 2..=3) => {
                let parent = parent.clone();
                rewrite(move |reply| {
                    let shards = reply["Shards"].as_array_mut().expect("shards");
                    shards.retain(|shard| shard["ShardId"] != json!(parent));
                })
            }
            _ => Fault::None,
        });
    let running = scene.start();
    sleep(Duration::from_millis(500)).await;
    let sent = scene.read().await;
    scene.ledger.settled(sent.len()).await;
    running.stop().await.expect("nothing halted");
    scene.ledger.check(&sent);
    assert_eq!(scene.ledger.events("ShardEvent::DataLoss"), 0);
}
