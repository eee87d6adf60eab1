//! Tests of a mixed fleet: workers of redrive and of KCL share the shards of one stream through KCL's lease
//! table. Records flow all the time, and a journal shows that none is lost, and that each key keeps its order.

mod fleet;

use support::kcl;
use tokio::time::Instant;

use self::fleet::{Fleet, Share};

/// KCL leads. Redrive joins, and gets shards. Then the worker of KCL is killed, and redrive takes over.
#[tokio::test(flavor = "multi_thread")]
async fn redrive_joins_a_leader_of_kcl_and_follows_it() {
    let Some(fleet) = Fleet::embedded(4).await else {
        return;
    };
    let flow = fleet.flow();
    fleet.create_lease_table().await;
    let java = fleet.java("java");
    fleet
        .shares_become("KCL reads alone", &[&java], |shares| {
            shares == [Share::of("java", 4)]
        })
        .await;
    fleet.reads("java", &[&java]).await;

    let redrive = fleet.redrive("redrive");
    // KCL balances the throughput of the shards, which is not the same for all of them: redrive gets one shard or
    // two.
    fleet
        .shares_become("both have a share", &[&java], |shares| {
            shares.len() == 2 && shares.iter().map(|share| share.shards).sum::<usize>() == 4
        })
        .await;
    fleet.reads("redrive", &[&java]).await;
    fleet.reads("java", &[&java]).await;
    assert!(
        fleet.did("java", "shutdownRequested"),
        "no hand-off by the leader of KCL"
    );
    assert_eq!(fleet.leader().await, "java");

    fleet.hand_over("java", "redrive", &[&java]).await;
    fleet.hand_over("redrive", "java", &[&java]).await;
    assert!(redrive.events("ShardEvent::HandedOver") >= 1);
    assert_eq!(fleet.journal.repeated(), 0, "a hand-off repeats records");
    assert_eq!(fleet.leader().await, "java");
    fleet.has_no_errors(&java);

    let repeated = fleet.journal.repeated();
    drop(java);
    let killed = Instant::now();
    kcl::release_leader(&fleet.dynamo, &fleet.table).await;
    fleet.remove_report("java").await;
    fleet
        .shares_become("redrive has all", &[], |shares| {
            shares == [Share::of("redrive", 4)]
        })
        .await;
    println!("taken over after {:?}", killed.elapsed());
    assert_eq!(fleet.leader().await, "redrive");
    flow.stop(&[]).await;
    redrive.stop().await;
    println!("repeated after the kill: {}", fleet.journal.repeated() - repeated);
    println!(
        "{} records, {} repeated",
        fleet.journal.processed(),
        fleet.journal.repeated()
    );
}

/// Redrive leads, and a worker of KCL follows. Then both are restarted one after the other, and two shards are
/// split meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn kcl_joins_redrive_and_both_are_restarted() {
    let Some(fleet) = Fleet::localstack(4).await else {
        return;
    };
    let flow = fleet.flow();
    let old_redrive = fleet.redrive("redrive-1");
    fleet
        .shares_become("redrive reads alone", &[], |shares| {
            shares == [Share::of("redrive-1", 4)]
        })
        .await;
    let old_java = fleet.calm_java("java-1");
    let even = [Share::of("java-1", 2), Share::of("redrive-1", 2)];
    fleet
        .shares_become("both have a share", &[&old_java], |shares| shares == even)
        .await;
    fleet.reads("java-1", &[&old_java]).await;
    fleet.reads("redrive-1", &[&old_java]).await;
    assert_eq!(fleet.leader().await, "redrive-1");
    assert!(old_java.whole_log().contains("is not a leader, ignore"));
    assert_eq!(fleet.journal.repeated(), 0, "a hand-off repeats records");

    let redrive = fleet.redrive("redrive-2");
    fleet.reads("redrive-2", &[&old_java]).await;
    old_redrive.stop().await;
    assert_eq!(
        fleet.journal.repeated(),
        0,
        "a restart of redrive repeats records"
    );

    // A live worker of KCL has a head start.
    fleet.leader_becomes("java-1", &[&old_java]).await;
    let java = fleet.calm_java("java-2");
    let both = [&old_java, &java];

    // Redrive renews the leases of shards that have ended, and of children whose parents have not.
    let ended = fleet.shard_of("java-1").await;
    let mut children = fleet.split(&ended).await;
    fleet.ends(&ended, &both).await;
    fleet.assign(&ended, "redrive-2").await;
    let parent = fleet.shard_of("redrive-2").await;
    fleet.block(&parent, &both).await;
    let waiting = fleet.split(&parent).await;
    for child in &waiting {
        fleet.create_row(child, &parent).await;
        fleet.assign(child, "redrive-2").await;
    }
    let kept = [&*ended, &*waiting[0], &*waiting[1]];
    fleet.renews("redrive-2", &kept, &both).await;
    assert!(
        !waiting.iter().any(|child| fleet.has_begun(child)),
        "a child is read before its parent"
    );
    fleet.unblock();
    children.extend(waiting);
    for child in &children {
        fleet.is_read(child, &both).await;
    }
    fleet.has_columns_of_redrive("shardId-000000000001").await;
    assert_eq!(fleet.leader().await, "java-1");
    fleet.has_no_errors(&old_java);
    let stopping = tokio::task::spawn_blocking(|| old_java.stop());
    stopping.await.expect("no panic");
    let stopped = Instant::now();
    fleet
        .shares_become("the new workers have all", &[&java], |shares| {
            let names: Vec<&str> = shares.iter().map(|share| &*share.worker).collect();
            names == ["java-2", "redrive-2"] && shares.iter().map(|share| share.shards).sum::<usize>() == 6
        })
        .await;
    println!("taken over after {:?}", stopped.elapsed());
    fleet.reads("java-2", &[&java]).await;
    flow.stop(&[&java]).await;
    println!("leader: {}", fleet.leader().await);
    fleet.has_no_errors(&java);
    redrive.stop().await;
    println!(
        "{} records, {} repeated",
        fleet.journal.processed(),
        fleet.journal.repeated()
    );
}

/// A worker of KCL in the mode that is compatible with KCL 2 obeys no leader. Redrive takes its share from it, gives
/// it back, and takes over when KCL is killed.
#[tokio::test(flavor = "multi_thread")]
async fn redrive_takes_its_share_from_a_taker_of_kcl() {
    let Some(fleet) = Fleet::embedded(4).await else {
        return;
    };
    let flow = fleet.flow();
    fleet.create_lease_table().await;
    let java = fleet.taking_java("java");
    fleet
        .shares_become("KCL reads alone", &[&java], |shares| {
            shares == [Share::of("java", 4)]
        })
        .await;
    let redrive = fleet.redrive("redrive-1");
    let even = [Share::of("java", 2), Share::of("redrive-1", 2)];
    fleet
        .shares_become("both have a share", &[&java], |shares| shares == even)
        .await;
    fleet.reads("redrive-1", &[&java]).await;
    fleet.reads("java", &[&java]).await;
    redrive.stop().await;
    fleet
        .shares_become("KCL has all again", &[&java], |shares| {
            shares == [Share::of("java", 4)]
        })
        .await;
    let redrive = fleet.redrive("redrive-2");
    let even = [Share::of("java", 2), Share::of("redrive-2", 2)];
    fleet
        .shares_become("both have a share again", &[&java], |shares| shares == even)
        .await;
    fleet.has_no_errors(&java);
    drop(java);
    fleet
        .shares_become("redrive has all", &[], |shares| {
            shares == [Share::of("redrive-2", 4)]
        })
        .await;
    flow.stop(&[]).await;
    redrive.stop().await;
    println!(
        "{} records, {} repeated",
        fleet.journal.processed(),
        fleet.journal.repeated()
    );
}
