//! The health report of a consumer.

use std::time::Duration;

use redrive::consumer::{Health, ShardState, WaitsFor};
use redrive::observer::Bound;
use redrive::pipeline::Pipeline;
use tokio::time::sleep;

use crate::scene::{Scene, records};
use crate::shared::Shared;
use support::ledger::SinkState;
use support::proxy::Fault;
use support::waiting::{eventually, finished};

#[tokio::test]
async fn running_consumer_is_live_ready_and_reports_its_progress() {
    let scene = Scene::new(2).await;
    scene.put(records(100, 20, |_| "ok")).await;
    let consumer = scene.consumer();
    let consumer = consumer.build().expect("valid");
    let health = consumer.health();
    let before = health.report();
    assert!(before.live && !before.ready);
    assert_eq!(before.waits_for, [WaitsFor::Start]);

    let stop = tokio_util::sync::CancellationToken::new();
    let resilient = scene.resilient().build().expect("valid");
    let running = tokio::spawn(consumer.run_until(resilient, stop.clone().cancelled_owned()));
    scene.ledger.settled(100).await;
    let stored = || {
        health
            .report()
            .shards
            .iter()
            .filter(|shard| shard.position.is_some())
            .count()
    };
    eventually("both shards are stored", || {
        stored() == 2 && scene.ledger.is_stored(&[])
    })
    .await;
    eventually("both shards are read to the tip", || {
        health
            .report()
            .shards
            .iter()
            .all(|shard| shard.lag == Some(Duration::ZERO))
    })
    .await;
    let report = health.report();
    assert!(report.live && report.ready, "{report:?}");
    assert_eq!(report.shards.len(), 2);
    assert!(
        report
            .shards
            .iter()
            .all(|shard| shard.state == ShardState::Running),
        "{report:?}"
    );
    stop.cancel();
    running.await.expect("no panic").expect("nothing halted");
    let after = health.report();
    assert!(after.live && !after.ready && after.shards.is_empty(), "{after:?}");
}

/// Reports a waiting consumer as live, with the cause of the wait.
#[tokio::test]
async fn health_names_what_the_consumer_waits_for() {
    let scene = Scene::new(1).await;
    scene.put(records(1, 1, |_| "bad")).await;
    scene.sink.set(SinkState::Down);
    let consumer = scene.consumer().build().expect("valid");
    let health = consumer.health();
    let resilient = scene.resilient().build().expect("valid");
    let running = tokio::spawn(consumer.run(resilient));
    eventually("the report names the sink", || {
        health.report().waits_for == [WaitsFor::DeadLetterSink]
    })
    .await;
    assert!(health.report().live && !health.report().ready);
    scene.sink.set(SinkState::Up);
    eventually("the consumer is ready again", || health.report().ready).await;

    scene.store.set_down(true);
    scene.put(records(1, 1, |_| "ok")).await;
    let state = || health.report().shards.first().map(|shard| shard.state);
    eventually("the report names the store", || {
        state() == Some(ShardState::StoringFails)
    })
    .await;
    scene.store.set_down(false);
    eventually("the consumer is ready again", || health.report().ready).await;

    scene.proxy.script(|call| match call.target.as_str() {
        "GetRecords" => Fault::error(500, "InternalFailure"),
        _ => Fault::None,
    });
    eventually("the report names the failing reads", || {
        state() == Some(ShardState::ReadingFails)
    })
    .await;
    assert!(health.report().live && !health.report().ready);
    scene.proxy.script(|_| Fault::None);
    eventually("the consumer is ready again", || health.report().ready).await;
    running.abort();
}

#[tokio::test]
async fn health_shows_an_open_breaker_and_a_full_window() {
    let scene = Scene::new(1).await;
    scene.put(records(10, 10, |_| "hang")).await;
    let consumer = scene
        .consumer()
        .pipeline(Pipeline::builder().in_flight(5).build().expect("valid"))
        .build()
        .expect("valid");
    let health = consumer.health();
    let resilient = scene.resilient().build().expect("valid");
    let running = tokio::spawn(consumer.run(resilient));
    let state = || health.report().shards.first().map(|shard| shard.state);
    eventually("the window is full", || {
        state() == Some(ShardState::Full(Bound::InFlight))
    })
    .await;
    assert!(health.report().live && !health.report().ready);
    age_grows_without_a_read(&scene, &health).await;
    running.abort();

    let scene = Scene::new(1).await;
    scene.put(records(10, 10, |_| "fail")).await;
    let consumer = scene.consumer().build().expect("valid");
    let health = consumer.health();
    let resilient = scene.resilient().build().expect("valid");
    let running = tokio::spawn(consumer.run(resilient));
    eventually("the breaker is open", || {
        health.report().waits_for.contains(&WaitsFor::Dependency(None))
    })
    .await;
    assert!(health.report().live && !health.report().ready);
    age_grows_without_a_read(&scene, &health).await;
    running.abort();
}

/// Asserts that the age of the oldest record grows while nothing is read. The lag stays at the value of the
/// last read, so an alarm should use the age.
async fn age_grows_without_a_read(scene: &Scene, health: &Health) {
    let shard = || health.report().shards.remove(0);
    // The consumer reads some records ahead, and one more page.
    let reads = || scene.proxy.calls("GetRecords").len();
    let stops = async {
        loop {
            scene.put(records(100, 100, |_| "ok")).await;
            let before = reads();
            sleep(Duration::from_millis(300)).await;
            if reads() == before {
                return;
            }
        }
    };
    finished("reading stops", stops).await;
    let (before, read) = (shard(), reads());
    let grown = before.oldest.expect("an oldest record") + Duration::from_millis(300);
    eventually("the age grows", || shard().oldest.is_some_and(|age| age > grown)).await;
    assert_eq!(reads(), read);
    assert_eq!(shard().lag, before.lag);
}

/// Two workers share three shards. Each reports its own leases and shards, and the leader the number of workers.
#[tokio::test]
async fn health_shows_the_part_of_each_worker_in_the_fleet() {
    let Some(shared) = Shared::new(3).await else {
        return;
    };
    let start = |name: &str| {
        let consumer = shared.scene.consumer();
        let consumer = consumer.checkpoints(shared.store(name, &shared.dynamo));
        let consumer = consumer.build().expect("valid");
        let health = consumer.health();
        let resilient = shared.scene.resilient().build().expect("valid");
        (health, tokio::spawn(consumer.run(resilient)))
    };
    let fleet = |health: &Health| health.report().fleet.unwrap_or_default();
    let (first, running_first) = start("first");
    eventually("the first worker leads and has all shards", || {
        let report = first.report();
        let fleet = fleet(&first);
        fleet.is_leader && fleet.workers == Some(1) && (fleet.leases, report.shards.len()) == (3, 3)
    })
    .await;
    let (second, running_second) = start("second");
    eventually("the shards are shared", || {
        let leases = (fleet(&first).leases, fleet(&second).leases);
        let read = (first.report().shards.len(), second.report().shards.len());
        leases == (2, 1) && read == (2, 1) && first.report().ready && second.report().ready
    })
    .await;
    assert_eq!(fleet(&first).workers, Some(2));
    let second = fleet(&second);
    assert!(!second.is_leader && second.workers.is_none(), "{second:?}");
    running_first.abort();
    running_second.abort();
}
