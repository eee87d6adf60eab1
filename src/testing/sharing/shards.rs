//! Checks of rows: who gets a shard, and when a row changes.

use super::{
    adopt, assert_lost, assert_not_adopted, assign, assigned_become, begun, create, existing, is_leased,
    leases, own, renew, request, row, save, sharing,
};
use crate::checkpoint::{Checkpoint, LeaseOutcome, NewShard, Renewal};
use crate::record::Position;
use crate::testing::checkpoints::{Harness, at, full_checkpoint, key};

/// A worker finds the shards that are assigned to it and no others, and takes them up at their checkpoints.
pub async fn assigned_shard_is_found_and_adopted(harness: &impl Harness) {
    let (leader, worker) = (harness.open().await, harness.open().await);
    for shard in [1, 2, 3] {
        let checkpoint = full_checkpoint(shard * 100);
        create(&leader, NewShard::new(key(shard), checkpoint)).await;
    }
    assigned_become(&worker, &[]).await;
    for (shard, to) in [(1, &worker), (2, &leader), (3, &worker)] {
        let lease = existing(&leader, shard).await;
        assert!(assign(&leader, &lease, to).await, "an unchanged row");
    }
    assigned_become(&worker, &[1, 3]).await;
    assigned_become(&leader, &[2]).await;
    for shard in [1, 3] {
        let adopted = adopt(&worker, shard).await;
        let expected = LeaseOutcome::Leased(full_checkpoint(shard * 100));
        assert_eq!(adopted, expected, "an assigned shard");
        assert_eq!(renew(&worker, shard).await, Renewal::Leased);
        save(&worker, shard, 500)
            .await
            .expect("the worker owns the shard");
    }
    // A worker that has lost an answer takes up its shard again.
    assert_eq!(
        adopt(&worker, 1).await,
        LeaseOutcome::Leased(Checkpoint::at(at(500))),
        "adopted again"
    );
}

/// A worker takes up neither a shard without an owner, nor a shard of another worker, nor a shard without a row.
pub async fn unassigned_shard_is_not_adopted(harness: &impl Harness) {
    let (first, second) = (harness.open().await, harness.open().await);
    create(&first, begun(1)).await;
    assert_not_adopted(&adopt(&second, 1).await);
    assert_lost(&save(&second, 1, 5).await);
    own(&first, 2).await;
    assert_not_adopted(&adopt(&second, 2).await);
    assert_eq!(
        renew(&first, 2).await,
        Renewal::Leased,
        "the owner keeps its shard"
    );
    assert_eq!(adopt(&second, 3).await, LeaseOutcome::Missing, "no row");
}

/// A shard that is settled to its end is taken up like any other: its owner deletes the row.
pub async fn ended_shard_is_adopted(harness: &impl Harness) {
    let worker = harness.open().await;
    let end = Checkpoint::at(Position::ShardEnd);
    create(&worker, NewShard::new(key(1), end.clone())).await;
    let lease = existing(&worker, 1).await;
    assert!(assign(&worker, &lease, &worker).await, "an unchanged row");
    assert_eq!(
        adopt(&worker, 1).await,
        LeaseOutcome::Leased(end),
        "an ended shard"
    );
}

/// The owner of a requested shard learns of the request, and works on until it gives the shard up. Then the other
/// worker takes it up, at the last checkpoint.
pub async fn requested_shard_is_adopted_after_it_is_given_up(harness: &impl Harness) {
    let (first, second) = (harness.open().await, harness.open().await);
    own(&first, 1).await;
    let lease = existing(&second, 1).await;
    assert!(request(&second, &lease, &second).await, "an unchanged row");
    assigned_become(&second, &[1]).await;
    assert_not_adopted(&adopt(&second, 1).await);
    assert_lost(&save(&second, 1, 9).await);
    let requested = existing(&second, 1).await;
    let workers = (requested.owner.as_deref(), requested.handed_over_by.as_deref());
    let expected = (Some(sharing(&second).worker()), Some(sharing(&first).worker()));
    assert_eq!(workers, expected, "a row in a hand-over");
    assert_eq!(renew(&first, 1).await, Renewal::Wanted, "the shard is requested");
    save(&first, 1, 7).await.expect("the owner works on");
    leases(&first).give_up(&key(1)).await.expect("the store answers");
    assert_lost(&save(&first, 1, 8).await);
    assert_eq!(
        adopt(&second, 1).await,
        LeaseOutcome::Leased(Checkpoint::at(at(7))),
        "the shard is handed over"
    );
    assert_eq!(renew(&second, 1).await, Renewal::Leased);
    assert_eq!(renew(&first, 1).await, Renewal::Lost);
}

/// A request does not count as a sign of life of the owner: an owner that has failed expires as usual.
pub async fn request_is_no_sign_of_life(harness: &impl Harness) {
    let (first, second) = (harness.open().await, harness.open().await);
    own(&first, 1).await;
    let lease = existing(&second, 1).await;
    assert!(request(&second, &lease, &second).await, "an unchanged row");
    let requested = existing(&second, 1).await;
    assert_eq!(requested.counter, lease.counter, "the owner did nothing");
    renew(&first, 1).await;
    let renewed = existing(&second, 1).await;
    assert!(renewed.counter > lease.counter, "the owner has renewed its lease");
}

/// A request changes nothing if the shard has another owner by now, or is requested already.
pub async fn stale_request_changes_nothing(harness: &impl Harness) {
    let (first, second, third) = (harness.open().await, harness.open().await, harness.open().await);
    own(&first, 1).await;
    let old = existing(&third, 1).await;
    assert!(assign(&second, &old, &second).await, "an unchanged row");
    assert!(is_leased(&adopt(&second, 1).await), "an assigned shard");
    assert!(
        !request(&third, &old, &third).await,
        "the shard has another owner"
    );
    assert_eq!(
        renew(&second, 1).await,
        Renewal::Leased,
        "no worker waits for the shard"
    );
    let lease = existing(&third, 1).await;
    assert!(request(&third, &lease, &third).await, "an unchanged row");
    assert!(
        !request(&first, &lease, &first).await,
        "the shard is requested already"
    );
    let requested = existing(&first, 1).await;
    assert_eq!(requested.owner.as_deref(), Some(sharing(&third).worker()));
}

/// An assignment changes nothing if the owner has written to its row since the leader read it.
pub async fn stale_assignment_changes_nothing(harness: &impl Harness) {
    let (first, second) = (harness.open().await, harness.open().await);
    own(&first, 1).await;
    for change in ["a renewal", "a checkpoint", "a release"] {
        let old = existing(&second, 1).await;
        match change {
            "a renewal" => assert_eq!(renew(&first, 1).await, Renewal::Leased),
            "a checkpoint" => save(&first, 1, 5).await.expect("the worker owns the shard"),
            _ => leases(&first).give_up(&key(1)).await.expect("the store answers"),
        }
        assert!(
            !assign(&second, &old, &second).await,
            "{change} has changed the row"
        );
        assert_not_adopted(&adopt(&second, 1).await);
    }
}

/// Two leaders that have read the same row do not both assign it.
pub async fn one_of_two_leaders_assigns_a_shard(harness: &impl Harness) {
    let (first, second) = (harness.open().await, harness.open().await);
    for shard in 1..6 {
        create(&first, begun(shard)).await;
        let lease = existing(&first, shard).await;
        let assigned = tokio::join!(assign(&first, &lease, &first), assign(&second, &lease, &second));
        assert!(assigned.0 != assigned.1, "two leaders assign a row: {assigned:?}");
        let adopted = (adopt(&first, shard).await, adopt(&second, shard).await);
        let adopted = (is_leased(&adopted.0), is_leased(&adopted.1));
        assert_eq!(adopted, assigned, "the worker whose assignment took effect");
    }
}

/// A leader takes a shard from an owner, living or not. That owner notices at its next write.
pub async fn assigned_shard_is_lost_by_its_owner(harness: &impl Harness) {
    let (first, second) = (harness.open().await, harness.open().await);
    own(&first, 1).await;
    save(&first, 1, 5).await.expect("the worker owns the shard");
    let lease = existing(&second, 1).await;
    assert!(assign(&second, &lease, &second).await, "an unchanged row");
    assert_lost(&save(&first, 1, 6).await);
    assert_eq!(renew(&first, 1).await, Renewal::Lost);
    assert_eq!(
        adopt(&second, 1).await,
        LeaseOutcome::Leased(Checkpoint::at(at(5))),
        "an assigned shard"
    );
}

/// A leader ends a hand-over whose former owner has failed.
pub async fn stuck_hand_over_is_finished(harness: &impl Harness) {
    let (first, second) = (harness.open().await, harness.open().await);
    own(&first, 1).await;
    let lease = existing(&second, 1).await;
    assert!(request(&second, &lease, &second).await, "an unchanged row");
    let stuck = existing(&second, 1).await;
    assert!(assign(&second, &stuck, &second).await, "an unchanged row");
    assert_lost(&save(&first, 1, 6).await);
    assert!(is_leased(&adopt(&second, 1).await), "the hand-over is finished");
    let lease = existing(&second, 1).await;
    assert_eq!(lease.handed_over_by, None, "the hand-over is finished");
}

/// A row is not deleted if it has changed since it was read.
pub async fn changed_row_is_not_deleted(harness: &impl Harness) {
    let (first, second) = (harness.open().await, harness.open().await);
    let end = Checkpoint::at(Position::ShardEnd);
    create(&first, NewShard::new(key(1), end)).await;
    let old = existing(&second, 1).await;
    assert!(assign(&first, &old, &first).await, "an unchanged row");
    let deleted = sharing(&second).delete(&old).await.expect("the store answers");
    assert!(!deleted, "the row has changed");
    assert!(row(&second, 1).await.is_some(), "the row is kept");
}

/// A row that is deleted does not exist any more, and neither does its lease.
pub async fn deleted_row_is_missing(harness: &impl Harness) {
    let worker = harness.open().await;
    let end = Checkpoint::at(Position::ShardEnd);
    create(&worker, NewShard::new(key(1), end)).await;
    let lease = existing(&worker, 1).await;
    assert!(assign(&worker, &lease, &worker).await, "an unchanged row");
    assert!(is_leased(&adopt(&worker, 1).await), "an assigned shard");
    let lease = existing(&worker, 1).await;
    let deleted = sharing(&worker).delete(&lease).await.expect("the store answers");
    assert!(deleted, "an unchanged row");
    assert_eq!(row(&worker, 1).await, None, "the row is deleted");
    assert_eq!(renew(&worker, 1).await, Renewal::Lost);
    assert_eq!(adopt(&worker, 1).await, LeaseOutcome::Missing);
}

/// Rows have all that is known of a shard, in the order of the request. All rows of a stream are listed.
pub async fn rows_are_complete_and_in_order(harness: &impl Harness) {
    let worker = harness.open().await;
    create(&worker, begun(1)).await;
    let child = NewShard {
        parents: vec![key(1).shard, key(9).shard],
        hash_keys: Some(5..=u128::MAX),
        ..NewShard::new(key(2), full_checkpoint(300))
    };
    create(&worker, child.clone()).await;
    let lease = existing(&worker, 1).await;
    assert!(assign(&worker, &lease, &worker).await, "an unchanged row");
    assert!(is_leased(&adopt(&worker, 1).await), "an assigned shard");
    let named = leases(&worker).name_children(&key(1), &[key(2).shard]).await;
    named.expect("the worker owns the shard");

    let keys = [2, 7, 1, 2].map(key);
    let rows = sharing(&worker).rows(&keys).await;
    let rows: Vec<_> = rows
        .into_iter()
        .map(|row| row.expect("the store answers"))
        .collect();
    let shards: Vec<_> = rows.iter().map(|row| row.as_ref().map(|row| &row.key)).collect();
    let expected = [Some(&keys[0]), None, Some(&keys[2]), Some(&keys[3])];
    assert_eq!(shards, expected, "in the order of the shards");
    let found = rows[0].as_ref().expect("a row");
    assert_eq!(found.checkpoint, child.checkpoint);
    assert_eq!(found.parents, child.parents, "the parents of a shard");
    assert_eq!(found.hash_keys, child.hash_keys, "the hash keys of a shard");
    assert_eq!((&found.owner, &found.handed_over_by), (&None, &None));
    let parent = rows[2].as_ref().expect("a row");
    assert_eq!(parent.owner.as_deref(), Some(sharing(&worker).worker()));
    assert_eq!(parent.children, [key(2).shard], "the children of a shard");

    let any = key(0);
    let listed = sharing(&worker).leases(&any.application, &any.stream).await;
    let mut listed = listed.expect("the store answers");
    listed.sort_by(|a, b| a.key.shard.cmp(&b.key.shard));
    let shards: Vec<_> = listed.iter().map(|row| &row.key).collect();
    assert_eq!(shards, [&key(1), &key(2)], "all rows of the stream");
    assert_eq!(listed[1], *found, "a listed row");
}
