//! Records are read in CBOR, and in JSON where CBOR is not understood.

use redrive::Consumer;
use redrive::consumer::Wire;
use serde_json::json;

use crate::scene::{STREAM, Scene, records};
use support::proxy::Fault;

const CBOR: &str = "application/x-amz-cbor-1.1";

/// Returns the number of the calls of GetRecords in CBOR, and in JSON.
fn calls(scene: &Scene) -> (usize, usize) {
    let calls = scene.proxy.calls("GetRecords");
    let in_cbor = calls.iter().filter(|call| call.content_type == CBOR).count();
    (in_cbor, calls.len() - in_cbor)
}

#[tokio::test]
async fn records_are_read_in_cbor() {
    let scene = Scene::new(2).await;
    let steps = |number: usize| if number % 50 == 7 { "bad" } else { "ok" };
    scene.put(records(500, 50, steps)).await;
    let consumer = scene.consumer().wire(Wire::Cbor).records_per_call(30);
    let running = scene.run(consumer, scene.resilient());
    scene.ledger.settled(500).await;
    let open = scene.open_shards().await;
    scene.split(&open[0]).await;
    scene.put(records(500, 50, steps)).await;
    scene.settle_all(running).await;
    let (in_cbor, in_json) = calls(&scene);
    assert!(
        in_cbor > 30 && in_json == 0,
        "{in_cbor} in CBOR, {in_json} in JSON"
    );
    assert_eq!(scene.ledger.events("StreamEvent::CborRefused"), 0);
    assert_eq!(scene.ledger.events("ShardEvent::FetchFailed"), 0);
}

#[tokio::test]
async fn json_is_the_default() {
    let scene = Scene::new(1).await;
    scene.put(records(50, 5, |_| "ok")).await;
    let consumer = Consumer::builder(scene.proxy.client(), STREAM).checkpoints(scene.store.clone());
    let running = scene.run(consumer, scene.resilient());
    scene.settle_all(running).await;
    assert_eq!(calls(&scene).0, 0);
}

/// The third call in CBOR fails. The same page is read in JSON.
#[tokio::test]
async fn endpoint_that_refuses_cbor_is_asked_in_json() {
    let faults: [fn() -> Fault; 5] = [
        || Fault::Reply(415, json!({})),
        // Of a server that reads each body as JSON.
        || Fault::Reply(500, json!({})),
        || Fault::Reply(404, json!("not found")),
        || Fault::error(400, "SerializationException"),
        // An answer that cannot be decoded.
        || Fault::Reply(200, json!({"Records": [{"SequenceNumber": "1"}]})),
    ];
    for make in faults {
        let scene = Scene::new(1).await;
        scene.put(records(300, 30, |_| "ok")).await;
        scene
            .proxy
            .script(move |call| match (&*call.target, call.number) {
                ("GetRecords", 3..) if call.content_type == CBOR => make(),
                _ => Fault::None,
            });
        let consumer = scene.consumer().wire(Wire::Cbor).records_per_call(40);
        let running = scene.run(consumer, scene.resilient());
        scene.settle_all(running).await;
        let (in_cbor, in_json) = calls(&scene);
        assert_eq!(in_cbor, 3);
        assert!(in_json >= 5, "{in_json}");
        assert_eq!(scene.ledger.events("StreamEvent::CborRefused"), 1);
        assert_eq!(scene.ledger.events("ShardEvent::FetchFailed"), 0);
    }
}

/// Errors that have nothing to do with the encoding are errors in CBOR as in JSON.
#[tokio::test]
async fn other_errors_leave_the_encoding() {
    let scene = Scene::new(1).await;
    scene.put(records(200, 20, |_| "ok")).await;
    scene.proxy.script(|call| match (&*call.target, call.number) {
        ("GetRecords", 2) => Fault::error(400, "ExpiredIteratorException"),
        ("GetRecords", 3) => Fault::error(400, "ProvisionedThroughputExceededException"),
        ("GetRecords", 4) => Fault::Reply(503, json!("unavailable")),
        ("GetRecords", 5) => Fault::CutReply,
        _ => Fault::None,
    });
    let consumer = scene.consumer().wire(Wire::Cbor).records_per_call(40);
    let running = scene.run(consumer, scene.resilient());
    scene.settle_all(running).await;
    assert_eq!(calls(&scene).1, 0, "calls in JSON");
    assert_eq!(scene.ledger.events("StreamEvent::CborRefused"), 0);
    assert_eq!(scene.ledger.events("ShardEvent::IteratorExpired"), 1);
    assert!(scene.ledger.events("ShardEvent::FetchFailed") >= 2);
}
