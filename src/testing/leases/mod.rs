//! The conformance suite of leases, for checkpoint stores that several processes share.
//!
//! The suite uses the [`Harness`](super::checkpoints::Harness) of checkpoint stores. Each call of [`open`](super::checkpoints::Harness::open) returns the store
//! of another process over the same storage. A check that fails panics with the reason.
//! [`lease_conformance!`](crate::lease_conformance) generates a test for each check.
//!
//! Several checks wait for the [failover time](Leases::failover_time) in real time: let the harness set a
//! short one, such as 300 ms. No check depends on how long a call takes.
//!
//! The suite does not check what the port cannot cause: a worker that requests a shard
//! ([`Renewal::Wanted`]), and a wall clock that is wrong.

use std::time::Duration;

use tokio::time::sleep;

use super::checkpoints::{at, key};
use crate::checkpoint::{
    Checkpoint, CheckpointError, CheckpointStore, Holder, LeaseOutcome, Leases, NewShard, Renewal,
};
use crate::record::Position;

mod owners;
mod rows;

pub use owners::*;
pub use rows::*;

/// Generates a module of this name with a test for each check of the suite. Each test awaits the future to
/// get a [`Harness`](crate::testing::checkpoints::Harness) of its own. With `optional` before the future, the
/// future returns an `Option`, and `None` skips the test.
///
/// The caller's crate needs tokio with the feature `macros`.
#[macro_export]
macro_rules! lease_conformance {
    ($name:ident, $($fresh:tt)+) => {
        $crate::conformance_tests!(leases, $name, [
            shard_has_one_owner,
            one_of_many_workers_takes_a_shard,
            only_the_owner_writes,
            taken_shard_continues_at_its_checkpoint,
            given_up_shard_is_taken_at_once,
            owner_that_renews_keeps_its_shard,
            save_counts_as_a_renewal,
            silent_owner_loses_its_shard,
            holders_are_reported_and_not_taken,
            holders_counts_as_a_first_call,
            existing_row_is_kept,
            rows_of_parents_come_first,
            ended_shard_is_not_taken,
            missing_row_is_reported,
            seize_takes_a_shard_from_a_living_owner,
            seize_takes_an_ended_shard,
            late_write_of_a_former_owner_changes_nothing,
            lease_results_follow_the_order_of_the_request,
        ], $($fresh)+);
    };
}

fn leases(store: &impl CheckpointStore) -> &dyn Leases {
    store.leases().expect("the store has leases")
}

async fn create(store: &impl CheckpointStore, rows: &[NewShard]) {
    let created = leases(store).create(rows).await;
    assert_eq!(created.len(), rows.len(), "one result for each row");
    for created in created {
        created.expect("the row is created");
    }
}

async fn take(store: &impl CheckpointStore, shard: u64) -> LeaseOutcome {
    let mut taken = leases(store).take(&[key(shard)]).await;
    assert_eq!(taken.len(), 1, "one result for each shard");
    taken.remove(0).expect("the store answers")
}

async fn seize(store: &impl CheckpointStore, shard: u64) -> LeaseOutcome {
    let seized = leases(store).seize(&key(shard)).await;
    seized.expect("the store answers")
}

async fn renew(store: &impl CheckpointStore, shard: u64) -> Renewal {
    let renewed = leases(store).renew(&key(shard)).await;
    renewed.expect("the store answers")
}

async fn give_up(store: &impl CheckpointStore, shard: u64) {
    let given_up = leases(store).give_up(&key(shard)).await;
    given_up.expect("the store answers");
}

async fn name_child(store: &impl CheckpointStore, shard: u64) -> Result<(), CheckpointError> {
    leases(store).name_children(&key(shard), &[key(90).shard]).await
}

async fn holder(store: &impl CheckpointStore, shard: u64) -> Option<Holder> {
    let mut holders = leases(store).holders(&[key(shard)]).await;
    assert_eq!(holders.len(), 1, "one result for each shard");
    holders.remove(0).expect("the store answers")
}

async fn save(store: &impl CheckpointStore, shard: u64, number: u64) -> Result<(), CheckpointError> {
    let mut saved = store.save(&[(key(shard), Checkpoint::at(at(number)))]).await;
    assert_eq!(saved.len(), 1, "one result for each checkpoint");
    saved.remove(0)
}

fn begun(shard: u64) -> NewShard {
    NewShard::new(key(shard), Checkpoint::at(Position::TrimHorizon))
}

/// Creates the shard's row and takes the shard.
async fn own(store: &impl CheckpointStore, shard: u64) {
    create(store, &[begun(shard)]).await;
    let taken = take(store, shard).await;
    assert!(is_leased(&taken), "a shard without an owner is taken: {taken:?}");
}

/// Waits until an owner that does nothing has lost its shard.
async fn failover(store: &impl CheckpointStore) {
    sleep(leases(store).failover_time() + Duration::from_millis(10)).await;
}

fn is_leased(outcome: &LeaseOutcome) -> bool {
    matches!(outcome, LeaseOutcome::Leased(_))
}

fn assert_elsewhere(outcome: &LeaseOutcome) {
    let is_elsewhere = matches!(outcome, LeaseOutcome::Elsewhere { .. });
    assert!(is_elsewhere, "the shard has a living owner: {outcome:?}");
}

fn assert_lost(result: &Result<(), CheckpointError>) {
    let is_lost = matches!(result, Err(CheckpointError::LeaseLost { .. }));
    assert!(is_lost, "a write without the lease: {result:?}");
}
