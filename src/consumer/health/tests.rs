//! Liveness of tasks that have no new polls.

use std::task::Poll;

use futures_core::Stream;

use super::*;
use crate::checkpoint::Checkpoint;
use crate::pipeline::{Batch, NoGate, Pipeline};
use crate::{Resilient, dead_letter, processor_fn};

#[test]
fn fleet_is_reported_as_far_as_this_worker_knows_it() {
    let health = Health::default();
    let shard = &ShardId::from("shardId-0");
    let of_fleet = |event| {
        health.on(&Event::Fleet {
            stream: "orders",
            event,
        })
    };
    let of_shard = |event| {
        let stream = "orders";
        health.on(&Event::Shard { stream, shard, event });
    };
    let position = &Position::TrimHorizon;
    of_shard(ShardEvent::Started { position });
    of_shard(ShardEvent::HandedOver);
    let report = health.report();
    assert_eq!(report.fleet, None);
    assert_eq!(report.shards[0].state, ShardState::StandingBy);

    health.assigned(3);
    let fleet = |health: &Health| health.report().fleet.expect("a fleet");
    let follower = FleetHealth {
        leases: 3,
        ..FleetHealth::default()
    };
    assert_eq!(fleet(&health), follower);
    of_fleet(FleetEvent::LeaderGained { worker: "a" });
    of_fleet(FleetEvent::WorkerJoined {
        worker: "a",
        workers: 1,
    });
    of_fleet(FleetEvent::WorkerJoined {
        worker: "b",
        workers: 2,
    });
    let leader = fleet(&health);
    assert_eq!((leader.is_leader, leader.workers), (true, Some(2)));
    of_fleet(FleetEvent::LeaderLost { worker: "a" });
    assert_eq!(fleet(&health), follower);
    // The shards of other workers are theirs to report.
    of_shard(ShardEvent::Started { position });
    of_shard(ShardEvent::HandedOver);
    assert_eq!(health.report().shards, []);
}

/// A stream without batches that ends at once.
struct Ended;

impl Stream for Ended {
    type Item = Batch;

    fn poll_next(self: std::pin::Pin<&mut Self>, _: &mut std::task::Context<'_>) -> Poll<Option<Batch>> {
        Poll::Ready(None)
    }
}

/// A stream that never yields a batch and never ends.
struct Nothing;

impl Stream for Nothing {
    type Item = Batch;

    fn poll_next(self: std::pin::Pin<&mut Self>, _: &mut std::task::Context<'_>) -> Poll<Option<Batch>> {
        Poll::Pending
    }
}

#[derive(Default)]
struct Stands(std::sync::atomic::AtomicU32);

impl Observer for Stands {
    fn interest(&self) -> Interest {
        Interest::STATUS
    }

    fn on(&self, event: &Event<'_>) {
        assert!(
            matches!(
                event,
                Event::Shard {
                    event: ShardEvent::Status {
                        in_flight: 0,
                        oldest: None,
                        ..
                    },
                    ..
                }
            ),
            "{event:?}"
        );
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }
}

async fn ok(_: crate::Record) -> Result<(), std::io::Error> {
    Ok(())
}

/// A shard that is read to its end waits for the checkpoint store and for ListShards while these are down.
#[tokio::test(start_paused = true)]
async fn an_ended_shard_that_waits_for_a_store_is_alive() {
    let resilient = Resilient::builder("billing", processor_fn(ok));
    let resilient = resilient.dead_letters(dead_letter::Memory::new()).build();
    let resilient = resilient.expect("valid");
    let health = Health::default();
    let looking = tokio::spawn(health.clone().look_on(
        resilient.dependencies(),
        "orders".into(),
        resilient.observers().clone(),
    ));
    let (shard, progress) = ("shardId-0".into(), Arc::new(Progress::new()));
    health.started(&shard, &progress);
    let (pipeline, never) = (Pipeline::default(), std::future::pending());
    let finished = pipeline.run_from(
        &resilient,
        Ended,
        Checkpoint::at(Position::TrimHorizon),
        &NoGate,
        &progress,
        never,
    );
    assert!(finished.await.is_ok_and(|finished| finished.complete));
    health.on(&Event::Shard {
        stream: "orders",
        shard: &shard,
        event: ShardEvent::CheckpointFailed {
            failures: 1,
            error: &std::fmt::Error,
            delay: Duration::ZERO,
        },
    });
    for _ in 0..30 {
        sleep(Duration::from_secs(10)).await;
        assert!(health.report().live);
    }
    let report = health.report();
    assert!(!report.ready);
    assert_eq!(report.waits_for, [WaitsFor::CheckpointStore]);
    looking.abort();
}

/// An idle shard's task is polled, because it is woken. A task that is not polled, for example because a
/// processor blocks its thread, is not live.
#[tokio::test(start_paused = true)]
async fn a_shard_whose_task_has_no_turns_is_not_alive() {
    let stands = Arc::new(Stands::default());
    let resilient = Resilient::builder("billing", processor_fn(ok)).observer(stands.clone());
    let resilient = resilient.dead_letters(dead_letter::Memory::new()).build();
    let resilient = resilient.expect("valid");
    let health = Health::default();
    assert!(health.report().live);
    let looking = tokio::spawn(health.clone().look_on(
        resilient.dependencies(),
        "orders".into(),
        resilient.observers().clone(),
    ));
    let progress = Arc::new(Progress::new());
    health.started(&"shardId-0".into(), &progress);
    let (pipeline, never) = (Pipeline::default(), std::future::pending());
    let from = Checkpoint::at(Position::TrimHorizon);
    let mut shard = Box::pin(pipeline.run_from(&resilient, Nothing, from, &NoGate, &progress, never));
    for _ in 0..60 {
        let passed = sleep(Duration::from_secs(10));
        tokio::select! {
            _ = &mut shard => unreachable!("the stream has no end"),
            () = passed => {}
        }
        assert!(health.report().live);
    }
    let told = stands.0.load(std::sync::atomic::Ordering::Relaxed);
    assert!((59..=61).contains(&told), "{told} events in ten minutes");
    sleep(Duration::from_secs(85)).await;
    assert!(!health.report().live);
    tokio::select! {
        biased;
        _ = &mut shard => unreachable!("the stream has no end"),
        () = sleep(Duration::from_secs(15)) => {}
    }
    assert!(health.report().live, "the task is polled again");
    health.ended(&"shardId-0".into());
    drop(shard);
    sleep(Duration::from_secs(300)).await;
    assert!(health.report().live, "the task has ended");
    looking.abort();
}
