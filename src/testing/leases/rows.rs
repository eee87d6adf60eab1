//! Checks of rows: what is stored, who may write, and what is reported.

use std::pin::pin;
use std::slice;
use std::time::Duration;

use tokio::task::yield_now;
use tokio::time::sleep;

use super::{
    assert_elsewhere, assert_lost, begun, create, give_up, holder, is_leased, leases, name_child, own, renew,
    save, seize, take,
};
use crate::checkpoint::{Checkpoint, CheckpointStore, LeaseOutcome, NewShard, Renewal};
use crate::record::Position;
use crate::testing::checkpoints::{Harness, at, full_checkpoint, key, load};

/// A write to a shard that the store does not own fails and changes nothing. Other results of the same call
/// are not affected.
pub async fn only_the_owner_writes(harness: &impl Harness) {
    let (first, second) = (harness.open().await, harness.open().await);
    for shard in [1, 3] {
        own(&second, shard).await;
    }
    own(&first, 2).await;
    create(&first, &[begun(4)]).await;
    save(&first, 2, 7).await.expect("the store owns the shard");

    let rows = [1, 2, 3].map(|shard| (key(shard), Checkpoint::at(at(9))));
    let saved = second.save(&rows).await;
    assert_eq!(saved.len(), 3, "one result for each checkpoint");
    assert!(saved[0].is_ok() && saved[2].is_ok(), "owned shards: {saved:?}");
    assert_lost(&saved[1]);
    assert_eq!(load(&first, &key(2)).await, Some(Checkpoint::at(at(7))));
    // The shards 4 and 5 have no owner, and 5 has no row.
    for shard in [4, 5] {
        assert_lost(&save(&second, shard, 9).await);
    }
    for shard in [2, 4, 5] {
        assert_lost(&name_child(&second, shard).await);
        assert_eq!(renew(&second, shard).await, Renewal::Lost);
        give_up(&second, shard).await;
    }
    assert_eq!(
        renew(&first, 2).await,
        Renewal::Leased,
        "given up by another store"
    );
    name_child(&first, 2).await.expect("the store owns the shard");
    assert_eq!(load(&first, &key(2)).await, Some(Checkpoint::at(at(7))));
}

/// The owner gets the checkpoint that the previous owner saved last, with all its parts.
pub async fn taken_shard_continues_at_its_checkpoint(harness: &impl Harness) {
    let (first, second) = (harness.open().await, harness.open().await);
    let start = full_checkpoint(100);
    create(&first, &[NewShard::new(key(1), start.clone())]).await;
    assert_eq!(take(&first, 1).await, LeaseOutcome::Leased(start), "a new row");
    let stored = full_checkpoint(300);
    for saved in first.save(&[(key(1), stored.clone())]).await {
        saved.expect("the store owns the shard");
    }
    give_up(&first, 1).await;
    assert_eq!(take(&second, 1).await, LeaseOutcome::Leased(stored.clone()));
    assert_eq!(load(&second, &key(1)).await, Some(stored));
}

/// The owners of shards are reported without a change of the rows. A shard without an owner or a row has no
/// holder. The sign of a holder changes with each renewal.
pub async fn holders_are_reported_and_not_taken(harness: &impl Harness) {
    let (first, second) = (harness.open().await, harness.open().await);
    own(&first, 1).await;
    create(&first, &[begun(2)]).await;
    let held = holder(&second, 1).await.expect("the shard has an owner");
    assert_eq!(
        holder(&second, 1).await.as_ref(),
        Some(&held),
        "nothing has changed"
    );
    assert_eq!(holder(&first, 1).await.as_ref(), Some(&held), "the owner itself");
    for shard in [2, 3] {
        assert_eq!(holder(&second, shard).await, None, "the shard has no owner");
    }
    assert_eq!(renew(&first, 1).await, Renewal::Leased, "the shard is not taken");
    let renewed = holder(&second, 1).await.expect("the shard has an owner");
    assert_eq!(renewed.name, held.name);
    assert_ne!(renewed.sign, held.sign, "a renewal is a sign of life");
}

/// A row that exists keeps its checkpoint and its owner when it is created again.
pub async fn existing_row_is_kept(harness: &impl Harness) {
    let (first, second) = (harness.open().await, harness.open().await);
    own(&first, 1).await;
    save(&first, 1, 5).await.expect("the store owns the shard");
    create(&second, &[NewShard::new(key(1), Checkpoint::at(at(9))), begun(2)]).await;
    assert_eq!(renew(&first, 1).await, Renewal::Leased, "the row is kept");
    assert_eq!(
        load(&second, &key(1)).await,
        Some(Checkpoint::at(at(5))),
        "the row is kept"
    );
    assert!(is_leased(&take(&second, 2).await), "the missing row is created");
}

/// While rows are created, the row of a child never exists before the rows of its parents.
pub async fn rows_of_parents_come_first(harness: &impl Harness) {
    let (first, second) = (harness.open().await, harness.open().await);
    let rows: Vec<NewShard> = (0..12)
        .map(|number| {
            let mut row = begun(number);
            row.parents = number
                .checked_sub(2)
                .map(|parent| key(parent).shard)
                .into_iter()
                .collect();
            row.hash_keys = Some(0..=u128::MAX);
            row
        })
        .collect();
    let mut created = pin!(create(&first, &rows));
    let mut is_created = false;
    while !is_created {
        is_created = futures_util::poll!(created.as_mut()).is_ready();
        for child in (2..12).rev() {
            // The rows are read in two calls: the parent's row exists by then, or never came first.
            if take(&second, child).await != LeaseOutcome::Missing {
                let parent = take(&second, child - 2).await;
                assert_ne!(parent, LeaseOutcome::Missing, "the row of a child has no parent");
                break;
            }
        }
        yield_now().await;
    }
}

/// A shard that is settled to its end needs no owner.
pub async fn ended_shard_is_not_taken(harness: &impl Harness) {
    let store = harness.open().await;
    let end = || Checkpoint::at(Position::ShardEnd);
    create(&store, &[NewShard::new(key(1), end())]).await;
    assert_eq!(take(&store, 1).await, LeaseOutcome::Ended, "the shard is ended");
    own(&store, 2).await;
    for saved in store.save(&[(key(2), end())]).await {
        saved.expect("the store owns the shard");
    }
    give_up(&store, 2).await;
    assert_eq!(take(&store, 2).await, LeaseOutcome::Ended, "the shard is ended");
}

/// A shard without a row is reported as missing, and no row is created.
pub async fn missing_row_is_reported(harness: &impl Harness) {
    let store = harness.open().await;
    for _ in 0..2 {
        assert_eq!(take(&store, 1).await, LeaseOutcome::Missing, "no row");
        assert_eq!(seize(&store, 1).await, LeaseOutcome::Missing, "no row");
    }
    assert_eq!(renew(&store, 1).await, Renewal::Lost);
    assert_eq!(load(&store, &key(1)).await, None);
}

/// A save of a former owner that was cancelled and arrives late changes nothing.
pub async fn late_write_of_a_former_owner_changes_nothing(harness: &impl Harness) {
    for polls in 1..5 {
        let (first, second) = (harness.open().await, harness.open().await);
        own(&first, polls).await;
        let late = (key(polls), Checkpoint::at(at(6)));
        {
            let mut save = pin!(first.save(slice::from_ref(&late)));
            for _ in 0..polls {
                if futures_util::poll!(save.as_mut()).is_ready() {
                    break;
                }
                yield_now().await;
            }
        }
        let seized = seize(&second, polls).await;
        assert!(is_leased(&seized), "the shard is seized: {seized:?}");
        save(&second, polls, 2).await.expect("the store owns the shard");
        assert_lost(&save(&first, polls, 7).await);
        // A late write has arrived by now.
        sleep(Duration::from_millis(50)).await;
        let stored = load(&second, &key(polls)).await;
        assert_eq!(stored, Some(Checkpoint::at(at(2))), "a late write took effect");
    }
}

/// Calls for several shards return one result for each shard, in the order of the shards.
pub async fn lease_results_follow_the_order_of_the_request(harness: &impl Harness) {
    let (first, second) = (harness.open().await, harness.open().await);
    own(&first, 2).await;
    create(&first, &[begun(1)]).await;
    let shards = [3, 2, 1].map(key);
    let holders: Vec<bool> = leases(&second)
        .holders(&shards)
        .await
        .into_iter()
        .map(|holder| holder.expect("the store answers").is_some())
        .collect();
    assert_eq!(holders, [false, true, false], "in the order of the shards");
    let taken: Vec<_> = leases(&second)
        .take(&shards)
        .await
        .into_iter()
        .map(|taken| taken.expect("the store answers"))
        .collect();
    assert_eq!(taken.len(), 3, "one result for each shard");
    assert_eq!(taken[0], LeaseOutcome::Missing, "in the order of the shards");
    assert_elsewhere(&taken[1]);
    assert!(is_leased(&taken[2]), "in the order of the shards: {taken:?}");
    assert!(leases(&first).create(&[]).await.is_empty());
    assert!(leases(&first).take(&[]).await.is_empty());
    assert!(leases(&first).holders(&[]).await.is_empty());
}
