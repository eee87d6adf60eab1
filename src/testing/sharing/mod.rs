//! The conformance suite of [`Sharing`], for checkpoint stores whose workers share the shards evenly.
//!
//! The suite uses the [`Harness`](super::checkpoints::Harness) of checkpoint stores. Each call of
//! [`open`](super::checkpoints::Harness::open) returns the store of another worker over the same storage. Run the
//! suite of [leases](super::leases) too, with the same harness. A check that fails panics with the reason.
//! [`sharing_conformance!`](crate::sharing_conformance) generates a test for each check.
//!
//! Several checks wait for up to three times the [failover time](Leases::failover_time) in real time: let the
//! harness set a short one, such as 300 ms.
//!
//! The suite does not check what the port cannot cause: an announcement that is long gone, a worker that announces
//! its end, and a fleet whose workers [take shards for themselves](crate::checkpoint::Assigner::Takers).

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::checkpoints::{at, key};
use crate::checkpoint::{
    Checkpoint, CheckpointError, CheckpointStore, LeaseOutcome, Leases, NewShard, Renewal, SharedLease,
    Sharing,
};
use crate::record::{Position, ShardId};

mod fleet;
mod shards;

pub use fleet::*;
pub use shards::*;

/// Generates a module of this name with a test for each check of the suite. Each test awaits the future to
/// get a [`Harness`](crate::testing::checkpoints::Harness) of its own. With `optional` before the future, the
/// future returns an `Option`, and `None` skips the test.
///
/// The caller's crate needs tokio with the feature `macros`.
#[macro_export]
macro_rules! sharing_conformance {
    ($name:ident, $($fresh:tt)+) => {
        $crate::conformance_tests!(sharing, $name, [
            assigned_shard_is_found_and_adopted,
            unassigned_shard_is_not_adopted,
            ended_shard_is_adopted,
            requested_shard_is_adopted_after_it_is_given_up,
            request_is_no_sign_of_life,
            stale_request_changes_nothing,
            stale_assignment_changes_nothing,
            one_of_two_leaders_assigns_a_shard,
            assigned_shard_is_lost_by_its_owner,
            stuck_hand_over_is_finished,
            changed_row_is_not_deleted,
            deleted_row_is_missing,
            rows_are_complete_and_in_order,
            announced_worker_is_listed,
            withdrawn_worker_is_not_listed,
            announcement_is_forgotten_if_unchanged,
            fleet_has_one_leader,
            one_of_many_workers_becomes_the_leader,
            resigned_leader_is_followed_at_once,
            failed_leader_is_followed,
            leader_that_calls_stays,
            free_leadership_is_left_to_others,
        ], $($fresh)+);
    };
}

/// The longest time for which an answer may be old.
const OLD: Duration = Duration::from_secs(10);

fn leases(store: &impl CheckpointStore) -> &dyn Leases {
    store.leases().expect("the store has leases")
}

fn sharing(store: &impl CheckpointStore) -> &dyn Sharing {
    leases(store).sharing().expect("the store shares its shards")
}

async fn create(store: &impl CheckpointStore, row: NewShard) {
    for created in leases(store).create(&[row]).await {
        created.expect("the row is created");
    }
}

fn begun(shard: u64) -> NewShard {
    NewShard::new(key(shard), Checkpoint::at(Position::TrimHorizon))
}

async fn row(store: &impl CheckpointStore, shard: u64) -> Option<SharedLease> {
    let mut rows = sharing(store).rows(&[key(shard)]).await;
    assert_eq!(rows.len(), 1, "one result for each shard");
    rows.remove(0).expect("the store answers")
}

async fn existing(store: &impl CheckpointStore, shard: u64) -> SharedLease {
    row(store, shard).await.expect("the shard has a row")
}

async fn assign(store: &impl CheckpointStore, lease: &SharedLease, to: &impl CheckpointStore) -> bool {
    let assigned = sharing(store).assign(lease, sharing(to).worker()).await;
    assigned.expect("the store answers")
}

async fn request(store: &impl CheckpointStore, lease: &SharedLease, to: &impl CheckpointStore) -> bool {
    let requested = sharing(store).request(lease, sharing(to).worker()).await;
    requested.expect("the store answers")
}

async fn adopt(store: &impl CheckpointStore, shard: u64) -> LeaseOutcome {
    let mut adopted = sharing(store).adopt(&[key(shard)]).await;
    assert_eq!(adopted.len(), 1, "one result for each shard");
    adopted.remove(0).expect("the store answers")
}

/// Creates the shard's row, and lets this worker own it.
async fn own(store: &impl CheckpointStore, shard: u64) {
    create(store, begun(shard)).await;
    let lease = existing(store, shard).await;
    assert!(assign(store, &lease, store).await, "an unchanged row");
    let adopted = adopt(store, shard).await;
    assert!(is_leased(&adopted), "an assigned shard: {adopted:?}");
}

async fn save(store: &impl CheckpointStore, shard: u64, number: u64) -> Result<(), CheckpointError> {
    let mut saved = store.save(&[(key(shard), Checkpoint::at(at(number)))]).await;
    assert_eq!(saved.len(), 1, "one result for each checkpoint");
    saved.remove(0)
}

async fn renew(store: &impl CheckpointStore, shard: u64) -> Renewal {
    let renewed = leases(store).renew(&key(shard)).await;
    renewed.expect("the store answers")
}

/// Waits until the shards that are assigned to this worker are these.
async fn assigned_become(store: &impl CheckpointStore, shards: &[u64]) {
    let expected: Vec<ShardId> = shards.iter().map(|shard| key(*shard).shard).collect();
    let start = Instant::now();
    loop {
        let any = key(0);
        let assigned = sharing(store).assigned(&any.application, &any.stream).await;
        let mut assigned = assigned.expect("the store answers").shards;
        assigned.sort();
        if assigned == expected {
            return;
        }
        assert!(start.elapsed() < OLD, "assigned: {assigned:?}, not {expected:?}");
        sleep(Duration::from_millis(5)).await;
    }
}

fn is_leased(outcome: &LeaseOutcome) -> bool {
    matches!(outcome, LeaseOutcome::Leased(_))
}

fn assert_not_adopted(outcome: &LeaseOutcome) {
    let is_elsewhere = matches!(outcome, LeaseOutcome::Elsewhere { .. });
    assert!(is_elsewhere, "the shard is not this worker's: {outcome:?}");
}

fn assert_lost(result: &Result<(), CheckpointError>) {
    let is_lost = matches!(result, Err(CheckpointError::LeaseLost { .. }));
    assert!(is_lost, "a write without the lease: {result:?}");
}
