//! Checks of ownership: who gets a shard, and who loses it.

use futures_util::future::join_all;
use tokio::task::yield_now;
use tokio::time::sleep;

use super::{
    assert_elsewhere, assert_lost, begun, create, failover, give_up, holder, is_leased, leases, name_child,
    own, renew, save, seize, take,
};
use crate::checkpoint::{Checkpoint, LeaseOutcome, NewShard, Renewal};
use crate::record::Position;
use crate::testing::checkpoints::{Harness, at, key, load};

/// A shard has one owner. The other stores do not count as the same owner, and get the owner's name.
pub async fn shard_has_one_owner(harness: &impl Harness) {
    let (first, second) = (harness.open().await, harness.open().await);
    own(&first, 1).await;
    let name = holder(&second, 1).await.expect("the shard has an owner").name;
    assert_eq!(
        take(&second, 1).await,
        LeaseOutcome::Elsewhere { owner: name },
        "the shard has an owner"
    );
    assert_eq!(renew(&first, 1).await, Renewal::Leased);
    assert_eq!(renew(&second, 1).await, Renewal::Lost, "another owner's lease");
    own(&second, 2).await;
    let other = holder(&first, 2).await.expect("the shard has an owner").name;
    let name = holder(&first, 1).await.expect("the shard has an owner").name;
    assert_ne!(name, other, "two stores have the same name");
}

/// One of several workers that take a shard at the same time owns the shard.
pub async fn one_of_many_workers_takes_a_shard(harness: &impl Harness) {
    let workers = join_all((0..6).map(|_| harness.open())).await;
    for shard in 0..5 {
        create(&workers[0], &[begun(shard)]).await;
        let taken = join_all(workers.iter().map(|worker| take(worker, shard))).await;
        let owners = taken.iter().filter(|taken| is_leased(taken)).count();
        assert_eq!(owners, 1, "owners of a shard: {taken:?}");
        for (worker, taken) in workers.iter().zip(&taken) {
            let saved = save(worker, shard, 5).await;
            assert_eq!(
                saved.is_ok(),
                is_leased(taken),
                "only the owner writes: {saved:?}"
            );
        }
    }
}

/// A shard that its owner has given up is taken at once, and its former owner cannot write.
pub async fn given_up_shard_is_taken_at_once(harness: &impl Harness) {
    let (first, second) = (harness.open().await, harness.open().await);
    own(&first, 1).await;
    assert_elsewhere(&take(&second, 1).await);
    save(&first, 1, 5).await.expect("the store owns the shard");
    give_up(&first, 1).await;
    assert_eq!(holder(&second, 1).await, None, "the shard is given up");
    assert_lost(&save(&first, 1, 6).await);
    let taken = take(&second, 1).await;
    assert_eq!(
        taken,
        LeaseOutcome::Leased(Checkpoint::at(at(5))),
        "the shard is given up"
    );
    assert_lost(&save(&first, 1, 6).await);
    assert_lost(&name_child(&first, 1).await);
    assert_eq!(renew(&first, 1).await, Renewal::Lost);
    give_up(&first, 1).await;
    assert_eq!(renew(&second, 1).await, Renewal::Leased);
    assert_eq!(load(&second, &key(1)).await, Some(Checkpoint::at(at(5))));
}

/// An owner that renews its lease keeps the shard for longer than the failover time.
pub async fn owner_that_renews_keeps_its_shard(harness: &impl Harness) {
    let (first, second) = (harness.open().await, harness.open().await);
    own(&first, 1).await;
    for _ in 0..4 {
        assert_elsewhere(&take(&second, 1).await);
        sleep(leases(&first).failover_time() / 2).await;
        // The renewal voids what the second store has observed, however long the calls take.
        assert_eq!(renew(&first, 1).await, Renewal::Leased);
    }
    assert_elsewhere(&take(&second, 1).await);
}

/// A saved checkpoint shows that the owner lives, as a renewal does.
pub async fn save_counts_as_a_renewal(harness: &impl Harness) {
    let (first, second) = (harness.open().await, harness.open().await);
    own(&first, 1).await;
    for number in 1..3 {
        assert_elsewhere(&take(&second, 1).await);
        failover(&second).await;
        save(&first, 1, number).await.expect("the store owns the shard");
    }
    assert_elsewhere(&take(&second, 1).await);
}

/// An owner that does nothing for the failover time loses its shard. A store needs two calls to see that.
pub async fn silent_owner_loses_its_shard(harness: &impl Harness) {
    let (first, second) = (harness.open().await, harness.open().await);
    own(&first, 1).await;
    save(&first, 1, 5).await.expect("the store owns the shard");
    failover(&second).await;
    assert_elsewhere(&take(&second, 1).await);
    failover(&second).await;
    let taken = take(&second, 1).await;
    assert_eq!(
        taken,
        LeaseOutcome::Leased(Checkpoint::at(at(5))),
        "the owner does nothing"
    );
    assert_eq!(renew(&first, 1).await, Renewal::Lost);
    assert_lost(&save(&first, 1, 6).await);
    assert_lost(&name_child(&first, 1).await);
    save(&second, 1, 7).await.expect("the store owns the shard");
}

/// A call of `holders` counts as one of the two calls that show that an owner does nothing.
pub async fn holders_counts_as_a_first_call(harness: &impl Harness) {
    let (first, second) = (harness.open().await, harness.open().await);
    own(&first, 1).await;
    assert!(holder(&second, 1).await.is_some());
    failover(&second).await;
    let taken = take(&second, 1).await;
    assert!(is_leased(&taken), "the owner does nothing: {taken:?}");
}

/// An operator takes a shard from a living owner. That owner notices at its next write.
pub async fn seize_takes_a_shard_from_a_living_owner(harness: &impl Harness) {
    let (first, second) = (harness.open().await, harness.open().await);
    own(&first, 1).await;
    save(&first, 1, 5).await.expect("the store owns the shard");
    let seized = seize(&second, 1).await;
    assert_eq!(
        seized,
        LeaseOutcome::Leased(Checkpoint::at(at(5))),
        "the shard is seized"
    );
    assert_lost(&save(&first, 1, 6).await);
    assert_eq!(renew(&first, 1).await, Renewal::Lost);
    save(&second, 1, 2).await.expect("the store owns the shard");
    give_up(&second, 1).await;
    // The former owner cannot write either once the lease is given up.
    assert_lost(&save(&first, 1, 6).await);
    assert_eq!(take(&first, 1).await, LeaseOutcome::Leased(Checkpoint::at(at(2))));

    let writes = async {
        for number in 3..8 {
            // Fails once the shard is seized.
            let _ = save(&first, 1, number).await;
            yield_now().await;
        }
    };
    let (seized, ()) = tokio::join!(seize(&second, 1), writes);
    assert!(is_leased(&seized), "while the owner writes: {seized:?}");
    assert_lost(&save(&first, 1, 9).await);
}

/// An operator takes a shard that is settled to its end.
pub async fn seize_takes_an_ended_shard(harness: &impl Harness) {
    let store = harness.open().await;
    let end = Checkpoint::at(Position::ShardEnd);
    create(&store, &[NewShard::new(key(1), end.clone())]).await;
    assert_eq!(
        seize(&store, 1).await,
        LeaseOutcome::Leased(end),
        "an ended shard"
    );
    save(&store, 1, 5).await.expect("the store owns the shard");
}
