//! Faults of a stream, its operators and its checkpoints.
//!
//! Each fault leads to an error that names the problem or to a reported wait, never to a busy loop.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use redrive::checkpoint::{Checkpoint, CheckpointError, CheckpointStore, Memory, ShardKey};
use redrive::{ConsumerError, ShardId};
use tokio::time::sleep;

use crate::scene::{STREAM, Scene, records};
use support::proxy::Fault;
use support::waiting::eventually;

#[tokio::test]
async fn deleted_stream_ends_the_run() {
    let scene = Scene::new(2).await;
    scene.put(records(20, 5, |_| "ok")).await;
    let running = scene.start();
    scene.ledger.settled(20).await;
    let call = scene.client().delete_stream().stream_name(STREAM);
    call.send().await.expect("DeleteStream");
    match running.end().await {
        Err(ConsumerError::StreamNotFound { stream, .. }) => assert_eq!(stream, STREAM),
        other => panic!("{other:?}"),
    }
    // The records that were read are settled and stored.
    assert_eq!(scene.ledger.book().last_saved().len(), 2);
}

#[tokio::test]
async fn a_stream_that_is_being_created_is_waited_for() {
    let scene = Scene::new(1).await;
    let mut refusals = 3;
    scene.proxy.script(move |call| match call.target.as_str() {
        "ListShards" if refusals > 0 => {
            refusals -= 1;
            Fault::error(400, "ResourceInUseException")
        }
        _ => Fault::None,
    });
    scene.put(records(20, 5, |_| "ok")).await;
    let running = scene.start();
    scene.settle_all(running).await;
    assert_eq!(scene.ledger.events("StreamEvent::DiscoveryFailed"), 3);
}

/// Covers errors that an operator has to fix. Until then the consumer makes few calls and reports each
/// failure.
#[tokio::test]
async fn denied_calls_are_reported_and_retried() {
    for error in [
        "AccessDeniedException",
        "ExpiredTokenException",
        "UnrecognizedClientException",
        "KMSDisabledException",
    ] {
        for target in ["ListShards", "GetShardIterator", "GetRecords"] {
            let scene = Scene::new(1).await;
            scene.put(records(20, 5, |_| "ok")).await;
            let refused = Arc::new(Mutex::new(true));
            let is_refused = refused.clone();
            scene.proxy.script(move |call| {
                match call.target == target && *is_refused.lock().expect("no panic") {
                    true => Fault::error(400, error),
                    false => Fault::None,
                }
            });
            let running = scene.start();
            let told = || {
                scene.ledger.events("StreamEvent::DiscoveryFailed")
                    + scene.ledger.events("ShardEvent::FetchFailed")
            };
            eventually("the failures are reported", || told() >= 3).await;
            let calls = scene.proxy.calls(target).len();
            assert!(calls <= told() + 1, "{error}: {calls} calls of {target}");
            *refused.lock().expect("no panic") = false;
            scene.settle_all(running).await;
        }
    }
}

/// A checkpoint store in which some rows are unreadable.
#[derive(Debug, Clone)]
struct Corrupt {
    inner: Memory,
    rows: Arc<Mutex<HashSet<ShardId>>>,
}

#[async_trait]
impl CheckpointStore for Corrupt {
    async fn load(&self, shards: &[ShardKey]) -> Vec<Result<Option<Checkpoint>, CheckpointError>> {
        let loaded = self.inner.load(shards).await.into_iter().zip(shards);
        let rows = self.rows.lock().expect("no panic").clone();
        loaded
            .map(|(loaded, key)| match rows.contains(&key.shard) {
                true => Err(CheckpointError::Corrupt {
                    shard: key.shard.clone(),
                    text: "?".to_owned(),
                    source: "not a position".into(),
                }),
                false => loaded,
            })
            .collect()
    }

    async fn save(&self, rows: &[(ShardKey, Checkpoint)]) -> Vec<Result<(), CheckpointError>> {
        self.inner.save(rows).await
    }
}

#[tokio::test]
async fn unreadable_checkpoint_blocks_only_its_shard() {
    let scene = Scene::new(2).await;
    scene.put(records(100, 20, |_| "ok")).await;
    let sent = scene.read().await;
    let shard = sent[0].place.shard.clone();
    let store = Corrupt {
        inner: Memory::new(),
        rows: Arc::new(Mutex::new(HashSet::from([shard.clone()]))),
    };
    let of_others = sent.iter().filter(|sent| sent.place.shard != shard).count();
    assert!(of_others > 0 && of_others < 100);
    let running = scene.run(scene.consumer().checkpoints(store.clone()), scene.resilient());
    scene.ledger.settled(of_others).await;
    assert_eq!(scene.ledger.events("ShardEvent::CheckpointUnreadable"), 1);
    sleep(Duration::from_millis(300)).await;
    assert_eq!(scene.ledger.book().settled.len(), of_others);
    running.stop().await.expect("nothing halted");

    store.rows.lock().expect("no panic").clear();
    let running = scene.run(scene.consumer().checkpoints(store), scene.resilient());
    scene.ledger.settled(100).await;
    running.stop().await.expect("nothing halted");
    assert_eq!(scene.ledger.book().repeats(), 0);
}
