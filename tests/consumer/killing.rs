//! Processes that are killed in the middle of a run.

use std::time::Duration;

use redrive::testing::Script;
use redrive::testing::kinesis::KinesisServer;
use support::chaos::{self, Chaos};
use support::dynamodb::DynamoDbLocal;
use support::emulator::unique;
use support::kill;
use support::waiting::eventually;
use tokio::sync::Semaphore;

use crate::scene::{Scene, records};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_consumer_loses_nothing_and_repeats_only_unstored() {
    let server = KinesisServer::start().await.expect("a free port");
    kill::survives_kills(server.endpoint(), "killing::child_consumer", "orders", 4, 360).await;
}

/// Processes a record that aborts the process, which no panic catch can stop. Only that record is
/// dead-lettered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn record_that_aborts_every_process_is_dead_lettered() {
    let server = KinesisServer::start().await.expect("a free port");
    kill::survives_a_record_that_aborts(server.endpoint(), "killing::child_consumer", "orders").await;
}

/// Kills the process repeatedly while the handler waits for a dependency that hangs. The record did not cause
/// these ends.
#[tokio::test]
async fn waiting_record_is_not_blamed_for_kills() {
    let scene = Scene::new(1).await;
    scene.put(records(3, 1, |_| "gate")).await;
    let script = Script::default();
    for _ in 0..8 {
        let calls = script.calls().len();
        let running = scene.run(scene.consumer(), scene.resilient_with(script.clone()));
        eventually("the record is in flight", || script.calls().len() > calls).await;
        // A handler that has not been woken for 2 s counts as waiting.
        tokio::time::sleep(Duration::from_millis(2_500)).await;
        running.abort().await;
    }
    assert!(scene.ledger.events("ShardEvent::CrashLoopSuspected") >= 5);
    script.open_gate();
    let running = scene.run(scene.consumer(), scene.resilient_with(script));
    scene.ledger.settled(3).await;
    running.stop().await.expect("nothing halted");
    assert_eq!(scene.letters.letters().len(), 0);
}

/// The scenarios that run at the same time. Each has up to six processes, and those of other tests need the machine,
/// too: a process that gets no time loses its leases.
static SCENARIOS: Semaphore = Semaphore::const_new(2);

/// Runs a scenario with processes that share a stream.
async fn with_processes(scenario: impl AsyncFnOnce(chaos::Scene<'_>)) {
    let Some(dynamo) = DynamoDbLocal::shared() else {
        return;
    };
    let _turn = SCENARIOS.acquire().await.expect("never closed");
    let server = KinesisServer::start().await.expect("a free port");
    let table = unique("fleet");
    let scene = chaos::Scene {
        kinesis: server.endpoint(),
        dynamodb: dynamo.endpoint(),
        table: &table,
        test: "killing::child_of_a_fleet",
    };
    scenario(scene).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_and_suspended_fleet_loses_nothing() {
    let chaos = Chaos {
        workers: support::volume(3, 10) as usize,
        shards: 6,
        kills: support::volume(10, 300),
        stops: support::volume(3, 100),
        splits: support::volume(1, 3),
    };
    with_processes(async |scene| chaos::a_fleet_survives(scene, chaos).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_share_the_shards_through_each_change() {
    with_processes(async |scene| chaos::processes_share(scene).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rolling_restart_keeps_the_shares_even() {
    with_processes(async |scene| chaos::processes_are_replaced(scene).await).await;
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
