//! Checkpoints under failures of the store. None is lost once the store is back.
//!
//! Every test also asserts that no checkpoint passes an unsettled record.

use std::time::Duration;

use crate::scene::{Scene, records};
use support::ledger::Note;
use support::waiting::eventually;

#[tokio::test]
async fn processing_continues_while_the_store_is_down() {
    let scene = Scene::new(2).await;
    scene.store.set_down(true);
    // Discovery comes first, and it also loads the starting positions from the store.
    let running = scene.start();
    eventually("the start is retried", || {
        scene.ledger.events("StreamEvent::DiscoveryFailed") >= 2
    })
    .await;
    scene
        .put(records(400, 40, |number| match number % 40 {
            3 => "fail,ok",
            5 => "bad",
            _ => "ok",
        }))
        .await;
    scene.store.set_down(false);
    scene.ledger.settled(100).await;
    scene.store.set_down(true);
    scene.put(records(400, 40, |_| "ok")).await;
    scene.ledger.settled(800).await;
    eventually("the store is retried", || {
        scene.ledger.events("ShardEvent::CheckpointFailed") >= 4
    })
    .await;
    let sent = scene.read().await;
    assert!(!scene.ledger.is_stored(&sent));

    scene.store.set_down(false);
    scene.ledger.stored(&sent).await;
    scene.settle_all(running).await;
}

/// Shuts down when the pause before the next attempt at the store is longer than the shutdown timeout.
#[tokio::test]
async fn shutdown_retries_a_store_that_was_down() {
    let scene = Scene::new(1).await;
    scene.put(records(100, 10, |_| "ok")).await;
    let consumer = scene.consumer().shutdown_timeout(Duration::from_secs(4));
    let running = scene.run(consumer, scene.resilient());
    scene.ledger.settled(100).await;
    scene.store.set_down(true);
    scene.put(records(100, 10, |_| "ok")).await;
    eventually("the store fails", || {
        scene.ledger.events("ShardEvent::CheckpointFailed") >= 6
    })
    .await;
    scene.store.set_down(false);
    scene.settle_all(running).await;
}

/// Does not wait for the write interval, which is longer than the test.
#[tokio::test]
async fn dead_letter_is_checkpointed_immediately() {
    let mut scene = Scene::new(1).await;
    scene.store = scene.store.interval(Duration::from_secs(600));
    scene
        .put(records(100, 10, |number| if number == 50 { "bad" } else { "ok" }))
        .await;
    let running = scene.start();
    eventually("the dead letter is checkpointed", || {
        let book = scene.ledger.book();
        let lettered = book
            .notes
            .iter()
            .position(|note| matches!(note, Note::Lettered(_)));
        lettered.is_some_and(|at| {
            let after = &book.notes[at..];
            after.iter().any(|note| matches!(note, Note::Saved(..)))
        })
    })
    .await;
    let saved = |note: &&Note| matches!(note, Note::Saved(..));
    assert_eq!(
        scene.ledger.book().notes.iter().filter(saved).count(),
        2,
        "one at the start and one after the dead letter"
    );
    scene.settle_all(running).await;
    assert_eq!(
        scene.ledger.book().notes.iter().filter(saved).count(),
        3,
        "and one at the end"
    );
}
