//! What breaks down that is no handler: a store, an observer. Nothing is lost by it, and nobody is left behind.

use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use redrive::checkpoint::{Checkpoint, CheckpointError, CheckpointStore, Memory, ShardKey};
use redrive::observer::{Event, Observer};

use crate::scene::{Scene, records};

/// Panics for the first few calls of each kind.
#[derive(Debug, Default)]
struct Panics {
    store: Memory,
    loads: AtomicUsize,
    saves: AtomicUsize,
}

fn panic_at_first(count: &AtomicUsize, calls: usize) {
    assert!(count.fetch_add(1, Ordering::Relaxed) >= calls, "a bug in a store");
}

#[async_trait]
impl CheckpointStore for Panics {
    async fn load(&self, shards: &[ShardKey]) -> Vec<Result<Option<Checkpoint>, CheckpointError>> {
        panic_at_first(&self.loads, 1);
        self.store.load(shards).await
    }

    async fn save(&self, checkpoints: &[(ShardKey, Checkpoint)]) -> Vec<Result<(), CheckpointError>> {
        panic_at_first(&self.saves, 2);
        self.store.save(checkpoints).await
    }
}

#[tokio::test]
async fn a_store_that_panics_has_failed_and_is_asked_again() {
    let scene = Scene::new(1).await;
    scene.put(records(200, 20, |_| "ok")).await;
    scene
        .split(
            &scene
                .client()
                .list_shards()
                .stream_name("orders")
                .send()
                .await
                .expect("ListShards")
                .shards()[0],
        )
        .await;
    scene.put(records(200, 20, |_| "ok")).await;
    let running = scene.run(scene.consumer().checkpoints(Panics::default()), scene.resilient());
    scene.ledger.settled(400).await;
    running.stop().await.expect("nothing halted");
    assert_eq!(scene.ledger.events("DiscoveryFailed"), 1);
    assert_eq!(scene.ledger.events("CheckpointFailed"), 2);
    scene.ledger.check(&scene.read().await);
}

/// Panics at the first event of a kind.
struct Stumbles(&'static str, AtomicUsize);

impl Observer for Stumbles {
    fn on(&self, event: &Event<'_>) {
        if format!("{event:?}").starts_with(self.0) {
            assert!(self.1.fetch_add(1, Ordering::Relaxed) > 0, "a bug in an observer");
        }
    }
}

/// In the task that reads, and in the one that settles.
#[tokio::test]
async fn a_shard_whose_task_breaks_down_begins_again_at_its_checkpoint() {
    for event in ["Fetched", "Settled"] {
        let scene = Scene::new(2).await;
        scene.put(records(200, 20, |_| "ok")).await;
        let stumbles = Stumbles(event, AtomicUsize::new(0));
        let running = scene.run(scene.consumer(), scene.resilient().observer(stumbles));
        let sent = scene.read().await;
        scene.ledger.settled(sent.len()).await;
        running.stop().await.expect("a restart mends it");
        assert_eq!(scene.ledger.events("ShardFailed"), 1, "{event}");
        assert_eq!(scene.ledger.events("ShardStarted"), 3, "{event}");
        scene.ledger.check(&sent);
        assert!(scene.ledger.is_stored(&sent), "{event}");
    }
}
