//! Checks of the workers and their leader.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, sleep};

use super::{leases, sharing};
use crate::checkpoint::{AnnouncedWorker, CheckpointStore, Leadership};
use crate::testing::checkpoints::Harness;

async fn announce(store: &impl CheckpointStore) {
    sharing(store).announce().await.expect("the store answers");
}

async fn announced(store: &impl CheckpointStore) -> Vec<AnnouncedWorker> {
    let workers = sharing(store).workers().await;
    let mut workers = workers.expect("the store answers");
    workers.sort_by(|a, b| a.name.cmp(&b.name));
    workers
}

async fn names(store: &impl CheckpointStore) -> Vec<String> {
    let workers = announced(store).await;
    workers.into_iter().map(|worker| worker.name).collect()
}

async fn lead(store: &impl CheckpointStore, patience: Duration) -> Leadership {
    let led = sharing(store).lead(patience).await;
    led.expect("the store answers")
}

async fn leader(store: &impl CheckpointStore) -> Option<String> {
    sharing(store).leader().await.expect("the store answers")
}

async fn resign(store: &impl CheckpointStore) {
    sharing(store).resign().await.expect("the store answers");
}

fn assert_follows(led: &Leadership, leader: &impl CheckpointStore) {
    let other = Some(sharing(leader).worker());
    let follows = matches!(led, Leadership::Follower { leader, .. } if leader.as_deref() == other);
    assert!(follows, "another worker leads: {led:?}");
}

/// Returns true if the leader is late, or was replaced while this machine stood still.
fn is_late(led: &Leadership) -> bool {
    matches!(
        led,
        Leadership::Follower { is_late: true, .. } | Leadership::Leader
    )
}

fn assert_free(led: &Leadership) {
    let is_free = matches!(led, Leadership::Follower { leader: None, .. });
    assert!(is_free, "a free leadership is left to others: {led:?}");
}

/// Announced workers are listed under their own names, as living ones.
pub async fn announced_worker_is_listed(harness: &impl Harness) {
    let (first, second) = (harness.open().await, harness.open().await);
    assert_eq!(names(&first).await, [""; 0], "no worker is announced");
    announce(&first).await;
    announce(&second).await;
    announce(&first).await;
    let mut expected = [&first, &second].map(|store| sharing(store).worker().to_owned());
    expected.sort();
    assert_eq!(
        names(&second).await,
        expected,
        "two workers, each with a name of its own"
    );
    for worker in announced(&second).await {
        let is_living = worker.is_recent && !worker.is_gone && !worker.is_stopping;
        assert!(is_living, "a worker that has just announced itself: {worker:?}");
    }
}

/// A worker that has withdrawn its announcement is not listed.
pub async fn withdrawn_worker_is_not_listed(harness: &impl Harness) {
    let (first, second) = (harness.open().await, harness.open().await);
    announce(&first).await;
    announce(&second).await;
    sharing(&first).withdraw().await.expect("the store answers");
    assert_eq!(
        names(&second).await,
        [sharing(&second).worker()],
        "one has withdrawn"
    );
    // A worker that was not announced, or whose answer was lost.
    sharing(&first).withdraw().await.expect("the store answers");
    announce(&first).await;
    assert_eq!(names(&second).await.len(), 2, "announced again");
}

/// An announcement is deleted for a failed worker, unless the worker has announced itself since it was read.
pub async fn announcement_is_forgotten_if_unchanged(harness: &impl Harness) {
    let (first, second) = (harness.open().await, harness.open().await);
    announce(&first).await;
    let seen = announced(&second).await.remove(0);
    let earlier = AnnouncedWorker::new(seen.name.clone(), seen.sign.wrapping_sub(60));
    let forgotten = sharing(&second).forget(&earlier).await;
    forgotten.expect("the store answers");
    let listed = announced(&second).await;
    assert_eq!(listed, std::slice::from_ref(&seen), "announced since it was read");
    sharing(&second).forget(&seen).await.expect("the store answers");
    assert_eq!(names(&second).await, [""; 0], "the announcement is forgotten");
}

/// One worker is the leader. The others know its name, and do not become the leader.
pub async fn fleet_has_one_leader(harness: &impl Harness) {
    let (first, second) = (harness.open().await, harness.open().await);
    assert_eq!(leader(&second).await, None, "no worker leads");
    assert_eq!(lead(&first, Duration::ZERO).await, Leadership::Leader);
    assert_follows(&lead(&second, Duration::ZERO).await, &first);
    assert_eq!(leader(&second).await.as_deref(), Some(sharing(&first).worker()));
    // Not the leader.
    resign(&second).await;
    assert_eq!(
        lead(&first, Duration::ZERO).await,
        Leadership::Leader,
        "it still leads"
    );
    assert_follows(&lead(&second, Duration::ZERO).await, &first);
}

/// One of several workers that find the leadership free at the same time becomes the leader.
pub async fn one_of_many_workers_becomes_the_leader(harness: &impl Harness) {
    let workers = join_all((0..6).map(|_| harness.open())).await;
    for _ in 0..3 {
        let led = join_all(workers.iter().map(|worker| lead(worker, Duration::ZERO))).await;
        let leaders = led.iter().filter(|led| **led == Leadership::Leader).count();
        assert_eq!(leaders, 1, "leaders: {led:?}");
        join_all(workers.iter().map(resign)).await;
    }
}

/// A leader that resigns is followed at once, and does not lead any more.
pub async fn resigned_leader_is_followed_at_once(harness: &impl Harness) {
    let (first, second) = (harness.open().await, harness.open().await);
    assert_eq!(lead(&first, Duration::ZERO).await, Leadership::Leader);
    resign(&first).await;
    assert_eq!(leader(&second).await, None, "the leader has resigned");
    assert_eq!(
        lead(&second, Duration::ZERO).await,
        Leadership::Leader,
        "a free leadership"
    );
    assert_follows(&lead(&first, Duration::ZERO).await, &second);
}

/// A leader that does nothing is late after two failover times. After three times the failover time it is followed
/// by another.
pub async fn failed_leader_is_followed(harness: &impl Harness) {
    let (first, second) = (harness.open().await, harness.open().await);
    let failover = leases(&first).failover_time();
    assert_eq!(lead(&first, Duration::ZERO).await, Leadership::Leader);
    assert_follows(&lead(&second, Duration::ZERO).await, &first);
    sleep(failover * 2).await;
    let led = lead(&second, Duration::ZERO).await;
    assert!(is_late(&led), "the leader is late: {led:?}");
    sleep(failover * 3 / 2).await;
    assert_eq!(
        lead(&second, Duration::ZERO).await,
        Leadership::Leader,
        "the leader has failed"
    );
    assert_follows(&lead(&first, Duration::ZERO).await, &second);
}

/// A leader that calls every third of the failover time leads on, also beyond three times the failover time.
pub async fn leader_that_calls_stays(harness: &impl Harness) {
    let (first, second) = (harness.open().await, harness.open().await);
    let failover = leases(&first).failover_time();
    let mut called = Instant::now();
    for _ in 0..15 {
        let led = (
            lead(&first, Duration::ZERO).await,
            lead(&second, Duration::ZERO).await,
        );
        if called.elapsed() > failover {
            // This machine stood still: the leader has called too late.
            return;
        }
        assert_eq!(led.0, Leadership::Leader, "the leader calls in time");
        assert_follows(&led.1, &first);
        assert!(!is_late(&led.1), "the leader is in time: {:?}", led.1);
        called = Instant::now();
        sleep(failover / 3).await;
    }
}

/// A worker leaves a free leadership to others for the time that the caller states. Then it becomes the leader.
pub async fn free_leadership_is_left_to_others(harness: &impl Harness) {
    let (first, second) = (harness.open().await, harness.open().await);
    let patience = leases(&first).failover_time();
    assert_free(&lead(&first, patience).await);
    assert_free(&lead(&second, patience * 100).await);
    sleep(patience * 2).await;
    assert_free(&lead(&second, patience * 100).await);
    assert_eq!(lead(&first, patience).await, Leadership::Leader, "it has waited");
    assert_follows(&lead(&second, Duration::ZERO).await, &first);
}
