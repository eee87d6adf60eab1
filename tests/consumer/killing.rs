//! The process is killed in the middle of a run.

use std::time::Duration;

use redrive::testing::kinesis::KinesisServer;
use support::chaos::{self, Chaos};
use support::dynamodb::DynamoDbLocal;
use support::emulator::unique;
use support::kill;
use support::script::Script;
use support::waiting::eventually;

use crate::scene::{Scene, records};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_that_is_killed_loses_nothing_and_repeats_only_what_no_checkpoint_covers() {
    let server = KinesisServer::start().await.expect("a free port");
    kill::survives_kills(server.endpoint(), "killing::child_consumer", "orders", 4, 1_800).await;
}

/// One record in hand ends the process, which no catch can stop: it becomes a letter, and no other does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_ends_every_process_becomes_a_letter() {
    let server = KinesisServer::start().await.expect("a free port");
    kill::survives_a_record_that_aborts(server.endpoint(), "killing::child_consumer", "orders").await;
}

/// The handler waits for a dependency that hangs, and the process is killed for another reason, again and again: the record
/// did not end it.
#[tokio::test]
async fn a_record_that_waits_while_the_process_is_killed_is_innocent() {
    let scene = Scene::new(1).await;
    scene.put(records(3, 1, |_| "gate")).await;
    let script = Script::default();
    for _ in 0..8 {
        let calls = script.calls().len();
        let running = scene.run(scene.consumer(), scene.resilient_with(script.clone()));
        eventually("the record is in flight", || script.calls().len() > calls).await;
        // A handler that is not woken for 2 s waits.
        tokio::time::sleep(Duration::from_millis(2_500)).await;
        running.abort().await;
    }
    assert!(scene.ledger.events("CrashLoopSuspected") >= 5);
    script.open_gate();
    let running = scene.run(scene.consumer(), scene.resilient_with(script));
    scene.ledger.settled(3).await;
    running.stop().await.expect("nothing halted");
    assert_eq!(scene.letters.letters().len(), 0);
}

/// Three consumers share a stream. One after the other is killed, or suspended for longer than the failover time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_that_is_killed_and_suspended_loses_nothing() {
    let Some(dynamo) = DynamoDbLocal::shared() else {
        return;
    };
    let server = KinesisServer::start().await.expect("a free port");
    let places = (server.endpoint(), dynamo.endpoint());
    let chaos = Chaos {
        kills: support::volume(10, 100),
        stops: support::volume(3, 30),
    };
    chaos::a_fleet_survives(places, &unique("fleet"), "killing::child_of_a_fleet", chaos).await;
}

#[test]
#[ignore = "the process that another test starts and kills"]
fn child_consumer() {
    kill::child();
}

#[test]
#[ignore = "the process that another test starts, kills and suspends"]
fn child_of_a_fleet() {
    chaos::child();
}
