//! Failures of stores, observers and shard tasks. No record is lost, and no shard stays stopped.

use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use redrive::checkpoint::{Checkpoint, CheckpointError, CheckpointStore, Memory, ShardKey};
use redrive::observer::{Event, Observer, ShardEvent};
use redrive::processor::Attempt;
use redrive::{Record, RecordProcessor};

use support::events::name;
use support::ledger::{Ledger, Note};

use crate::scene::{Scene, records};

/// A store that panics in the first calls of each kind.
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
async fn panicking_checkpoint_store_is_retried() {
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
    assert_eq!(scene.ledger.events("StreamEvent::DiscoveryFailed"), 1);
    assert_eq!(scene.ledger.events("ShardEvent::CheckpointFailed"), 2);
    scene.ledger.check(&scene.read().await);
}

/// An observer that panics at every event of this name.
struct Stumbles(&'static str);

impl Observer for Stumbles {
    fn on(&self, event: &Event<'_>) {
        assert!(name(event) != self.0, "a bug in an observer");
    }
}

/// Panics in the task that reads, in the one that settles, and in the one that stores checkpoints.
#[tokio::test]
async fn an_observer_that_panics_stops_no_task() {
    for event in [
        "ShardEvent::Fetched",
        "RecordEvent::Settled",
        "ShardEvent::Checkpointed",
    ] {
        let scene = Scene::new(2).await;
        scene.put(records(200, 20, |_| "ok")).await;
        let running = scene.run(scene.consumer(), scene.resilient().observer(Stumbles(event)));
        let sent = scene.read().await;
        scene.ledger.settled(sent.len()).await;
        scene.ledger.stored(&sent).await;
        running.stop().await.expect("nothing halted");
        assert_eq!(scene.ledger.events("ShardEvent::Failed"), 0, "{event}");
        assert!(
            scene.ledger.events("ProtectionEvent::UserCodePanicked") > 0,
            "{event}"
        );
        scene.ledger.check(&sent);
    }
}

/// A handler that fails once, with an error that panics when it is dropped.
#[derive(Default)]
struct FailsBadly(AtomicUsize);

#[derive(Debug, thiserror::Error)]
#[error("it panics when it is dropped")]
struct Bad;

impl Drop for Bad {
    fn drop(&mut self) {
        panic!("a bug in an error");
    }
}

impl RecordProcessor for FailsBadly {
    type Error = Bad;

    async fn process(&self, _: &Record, _: &Attempt<'_>) -> Result<(), Bad> {
        match self.0.fetch_add(1, Ordering::Relaxed) {
            50 => Err(Bad),
            _ => Ok(()),
        }
    }
}

/// Notes a restart of a shard. Records settled since its last checkpoint are repeated.
struct NotesRestarts(Ledger);

impl Observer for NotesRestarts {
    fn on(&self, event: &Event<'_>) {
        if matches!(
            event,
            Event::Shard {
                event: ShardEvent::Failed { .. },
                ..
            }
        ) {
            self.0.note(Note::Run);
        }
    }
}

#[tokio::test]
async fn shard_with_a_crashed_task_restarts_at_its_checkpoint() {
    let scene = Scene::new(2).await;
    scene.put(records(200, 20, |_| "ok")).await;
    let resilient = scene.resilient_with(FailsBadly::default());
    let resilient = resilient.observer(NotesRestarts(scene.ledger.clone()));
    let running = scene.run(scene.consumer(), resilient);
    let sent = scene.read().await;
    scene.ledger.settled(sent.len()).await;
    running.stop().await.expect("a restart fixes it");
    assert_eq!(scene.ledger.events("ShardEvent::Failed"), 1);
    assert_eq!(scene.ledger.events("ShardEvent::Started"), 3);
    scene.ledger.check(&sent);
    assert!(scene.ledger.is_stored(&sent));
}
