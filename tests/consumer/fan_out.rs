//! Enhanced fan-out: the same guarantees for records that Kinesis pushes.
//!
//! The embedded server starts each subscription at the shard's first record, whatever number it receives. The
//! consumer therefore has to recognize repeated records. LocalStack starts at the requested position.

use std::time::Duration;

use redrive::consumer::FanOutConsumer;
use redrive::consumer::Retrieval;
use redrive::pipeline::Pipeline;
use redrive::testing::kinesis::KinesisServer;

use crate::scene::{STREAM, Scene, records};
use support::proxy::Fault;
use support::waiting::eventually;

/// The lifetime of a subscription. In Kinesis it is five minutes.
const SHORT: Duration = Duration::from_millis(700);

impl Scene {
    fn subscriptions(&self) -> usize {
        self.proxy.calls("SubscribeToShard").len()
    }
}

fn steps(number: usize) -> &'static str {
    match number % 50 {
        3 => "fail,fail,ok",
        11 => "bad",
        _ => "ok",
    }
}

#[tokio::test]
async fn subscriptions_are_renewed() {
    let scene = Scene::on(2, KinesisServer::builder().subscription_lifetime(SHORT)).await;
    scene.put(records(300, 50, steps)).await;
    let running = scene.run(
        scene.consumer().retrieval(Retrieval::fan_out()),
        scene.resilient(),
    );
    for _ in 0..3 {
        let before = scene.subscriptions();
        eventually("subscriptions are renewed", || {
            scene.subscriptions() >= before + 2
        })
        .await;
        scene.put(records(100, 50, steps)).await;
    }
    let split = scene.client().list_shards().stream_name(STREAM).send().await;
    let split = split.expect("ListShards").shards.unwrap_or_default().remove(0);
    scene.split(&split).await;
    scene.put(records(100, 50, steps)).await;
    scene.settle_all(running).await;
    scene.check_lineage().await;
    assert!(scene.ended().contains(&split.shard_id().into()));
    assert!(scene.proxy.calls("GetRecords").is_empty(), "the consumer polled");
    let registered = scene.proxy.calls("RegisterStreamConsumer");
    assert_eq!(registered.len(), 1, "one registration for all shards");
    assert_eq!(registered[0].body["ConsumerName"], "billing");

    // The next run finds the consumer registered, and resumes at the checkpoints.
    scene.put(records(100, 50, steps)).await;
    let running = scene.run(
        scene.consumer().retrieval(Retrieval::fan_out()),
        scene.resilient(),
    );
    scene.settle_all(running).await;
}

/// Resumes after the last delivered record, however a subscription ends.
#[tokio::test]
async fn broken_subscriptions_are_resumed() {
    let scene = Scene::on(1, KinesisServer::builder().records_per_event(20)).await;
    scene.put(records(400, 50, steps)).await;
    scene.proxy.script(|call| match (&*call.target, call.number) {
        ("SubscribeToShard", 1) => Fault::error(500, "InternalFailure"),
        ("SubscribeToShard", 2) => Fault::Drop,
        ("SubscribeToShard", 3..=5) => Fault::BreakAfter(Duration::from_millis(900)),
        ("SubscribeToShard", 6) => Fault::error(400, "ResourceInUseException"),
        _ => Fault::None,
    });
    let consumer = scene
        .consumer()
        .retrieval(Retrieval::FanOut(FanOutConsumer::Name("other".to_owned())));
    let running = scene.run(consumer, scene.resilient());
    scene.settle_all(running).await;
    let calls = scene.proxy.calls("SubscribeToShard");
    assert!(calls.len() > 6, "{}", calls.len());
    let waited = calls[6].at - calls[5].at;
    assert!(waited >= Duration::from_secs(5), "in use for {waited:?}");
    assert!(scene.proxy.calls("GetRecords").is_empty());
    assert!(scene.ledger.events("ShardEvent::FetchFailed") >= 4);
}

/// Falls back to polling and reports it.
#[tokio::test]
async fn a_shard_that_cannot_be_subscribed_to_is_polled() {
    let arn = "arn:aws:kinesis:us-east-1:000000000000:stream/orders/consumer/missing:1";
    for (refused, consumer) in [
        ("RegisterStreamConsumer", FanOutConsumer::Application),
        ("SubscribeToShard", FanOutConsumer::Arn(arn.to_owned())),
    ] {
        let scene = Scene::new(2).await;
        scene.put(records(200, 50, steps)).await;
        scene.proxy.script(move |call| match call.target == refused {
            true => Fault::error(400, "AccessDeniedException"),
            false => Fault::None,
        });
        let consumer = scene.consumer().retrieval(Retrieval::FanOut(consumer));
        let running = scene.run(consumer, scene.resilient());
        scene.settle_all(running).await;
        assert_eq!(
            scene.ledger.events("ShardEvent::FanOutUnavailable"),
            2,
            "{refused}"
        );
        assert!(
            scene.proxy.calls("RegisterStreamConsumer").len() <= 1,
            "one registration for all shards"
        );
    }
}

/// Renews no subscription while the window is full, and loses no pushed record.
#[tokio::test]
async fn full_window_renews_no_subscription() {
    let scene = Scene::on(
        1,
        KinesisServer::builder()
            .subscription_lifetime(SHORT)
            .records_per_event(40),
    )
    .await;
    let script = redrive::testing::Script::default();
    scene.put(records(100, 50, |_| "gate")).await;
    let consumer = scene
        .consumer()
        .pipeline(Pipeline::builder().in_flight(10).build().expect("valid"))
        .retrieval(Retrieval::fan_out());
    let running = scene.run(consumer, scene.resilient_with(script.clone()));
    eventually("the window is full", || {
        scene.ledger.events("ShardEvent::WindowFull") == 1
    })
    .await;
    let before = scene.subscriptions();
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    assert!(
        scene.subscriptions() <= before + 1,
        "a subscription was renewed while the window was full"
    );
    script.open_gate();
    scene.settle_all(running).await;
}
