//! Several consumers on one lease table: each shard is read by one consumer, and another one takes over when
//! that consumer is gone.

use std::sync::Arc;
use std::time::{Duration, Instant};

use redrive::checkpoint::DynamoDb;
use serde_json::json;

use crate::scene::records;
use crate::shared::{FAILOVER, Shared, counter, set, text};
use support::dynamodb::{self, DynamoDbLocal};
use support::ledger::{Note, Store};
use support::proxy::{Fault, Proxy};
use support::waiting::eventually;

const SHARD: &str = "shardId-000000000000";

/// Lets each record succeed at its first attempt, without delay.
fn steps(_: usize) -> &'static str {
    "ok"
}

#[tokio::test]
async fn standby_takes_over_when_the_first_worker_stops() {
    let Some(shared) = Shared::new(4).await else {
        return;
    };
    let scene = &shared.scene;
    scene.put(records(400, 40, steps)).await;
    let first = shared.start("first");
    shared.held_by("first", 4).await;
    let second = shared.start("second");
    eventually("the second worker stands by", || {
        scene.ledger.events("ShardEvent::LeasedElsewhere") == 4
    })
    .await;
    scene.ledger.settled(400).await;
    first.stop().await.expect("nothing halted");
    shared.held_by("second", 4).await;
    scene.put(records(400, 40, steps)).await;
    scene.settle_all(second).await;
    // Each wait was reported once per shard, and all leases are released.
    assert_eq!(scene.ledger.events("ShardEvent::LeasedElsewhere"), 4);
    assert!(
        shared
            .rows()
            .await
            .values()
            .all(|row| text(row, "leaseOwner").is_empty())
    );
}

#[tokio::test]
async fn leases_of_a_killed_worker_are_taken_over() {
    let Some(shared) = Shared::new(4).await else {
        return;
    };
    let scene = &shared.scene;
    // Some records are in flight when the first worker dies, and some are settled ahead of others.
    let steps = |number: usize| if number % 20 == 7 { "sleep:100" } else { "ok" };
    scene.put(records(2_000, 100, steps)).await;
    let first = shared.start("first");
    shared.held_by("first", 4).await;
    let second = shared.start("second");
    eventually("the second worker stands by", || {
        scene.ledger.events("ShardEvent::LeasedElsewhere") == 4
    })
    .await;
    scene.ledger.settled(700).await;
    first.abort().await;
    scene.ledger.note(Note::Run);
    shared.held_by("second", 4).await;
    scene.ledger.settled(2_000).await;
    second.stop().await.expect("nothing halted");
    let sent = scene.read().await;
    scene.ledger.check(&sent);
    assert!(scene.ledger.is_stored(&sent));
}

/// Waits for several failover times. The lease of a shard without records is also renewed.
#[tokio::test]
async fn an_idle_shard_keeps_its_lease() {
    let Some(shared) = Shared::new(1).await else {
        return;
    };
    let first = shared.start("first");
    shared.held_by("first", 1).await;
    let second = shared.start("second");
    shared
        .rows_become("renewed for four failover times", |rows| {
            counter(&rows[SHARD]) > 12
        })
        .await;
    shared.held_by("first", 1).await;
    assert_eq!(shared.scene.ledger.events("ShardEvent::LeaseLost"), 0);
    for running in [first, second] {
        running.stop().await.expect("nothing halted");
    }
}

#[tokio::test]
async fn stolen_lease_is_respected_and_taken_back_when_free() {
    let Some(shared) = Shared::new(1).await else {
        return;
    };
    let scene = &shared.scene;
    let steps = |number: usize| if number < 10 { "ok" } else { "sleep:20" };
    scene.put(records(2_000, 1, steps)).await;
    let running = shared.start("first");
    scene.ledger.settled(20).await;
    let take = "SET leaseOwner = :owner";
    shared.write(SHARD, take, &[(":owner", "another-worker")]).await;
    eventually("the lease counts as lost", || {
        scene.ledger.events("ShardEvent::LeaseLost") == 1
    })
    .await;
    let begun = || {
        let book = scene.ledger.book();
        let begun = book.notes.iter().filter(|note| matches!(note, Note::Began(_)));
        begun.count()
    };
    let before = begun();
    assert!(before < 2_000);
    // The other worker stays alive for twice the failover time.
    for _ in 0..8 {
        tokio::time::sleep(FAILOVER / 4).await;
        shared.write(SHARD, take, &[(":owner", "another-worker")]).await;
        assert_eq!(begun(), before);
    }
    // Records that were settled but not stored are redelivered.
    scene.ledger.note(Note::Run);
    shared.held_by("first", 1).await;
    scene.ledger.settled(2_000).await;
    running.stop().await.expect("nothing halted");
    let sent = scene.read().await;
    scene.ledger.check(&sent);
}

/// A shard whose checkpoints are stored often needs no other renewal, and gets them again once it is idle.
#[tokio::test]
async fn stored_checkpoint_counts_as_a_renewal() {
    let Some(shared) = Shared::new(1).await else {
        return;
    };
    let scene = &shared.scene;
    let server = DynamoDbLocal::shared().expect("DynamoDB Local runs");
    let proxy = Proxy::start(server.endpoint()).await.expect("a free port");
    // A renewal changes nothing but the counter.
    let renewals = || {
        let is_renewal = |update: &str| update.starts_with("SET #leaseCounter") && !update.contains(',');
        let calls = proxy.calls("UpdateItem");
        let updates = calls
            .iter()
            .filter_map(|call| call.body["UpdateExpression"].as_str());
        updates.filter(|update| is_renewal(update)).count()
    };
    scene.put(records(1_000, 1, |_| "sleep:10")).await;
    let running = shared.start_on("first", &dynamodb::client(proxy.endpoint()));
    scene.ledger.settled(1).await;
    let start = Instant::now();
    scene.ledger.settled(1_000).await;
    let due = start.elapsed().as_secs_f64() / (FAILOVER / 3).as_secs_f64();
    let while_busy = renewals();
    println!(
        "{while_busy} renewals in {:?}, {due:.0} without checkpoints",
        start.elapsed()
    );
    // A busy machine may store a checkpoint late.
    assert!((while_busy as f64) < due / 3.0, "{while_busy} renewals");
    eventually("an idle shard is renewed", || renewals() >= while_busy + 3).await;
    assert_eq!(scene.ledger.events("ShardEvent::LeaseLost"), 0);
    scene.settle_all(running).await;
}

/// Requests a shard as KCL 3 does. The shard stores checkpoints often, so nothing else renews its lease.
#[tokio::test]
async fn requested_shard_is_stored_and_handed_over() {
    let Some(shared) = Shared::new(1).await else {
        return;
    };
    let scene = &shared.scene;
    let steps = |number: usize| if number < 10 { "ok" } else { "sleep:50" };
    scene.put(records(1_500, 3, steps)).await;
    let running = shared.start("first");
    scene.ledger.settled(20).await;
    let ours = text(&shared.rows().await[SHARD], "leaseOwner").to_owned();
    let ask = "SET leaseOwner = :kcl, checkpointOwner = :ours";
    shared
        .write(SHARD, ask, &[(":kcl", "kcl"), (":ours", &ours)])
        .await;
    eventually("the shard is handed over", || {
        scene.ledger.events("ShardEvent::HandedOver") == 1
    })
    .await;
    let settled = scene.ledger.book().settled.len();
    assert!(
        settled < 1_500,
        "the request was noticed only when the shard was idle"
    );
    let row = &shared.rows().await[SHARD];
    assert_eq!(
        (text(row, "leaseOwner"), text(row, "checkpointOwner")),
        ("kcl", "")
    );
    // The worker has finished and stored all begun records, so the next owner repeats nothing.
    let sent = scene.read().await;
    assert!(scene.ledger.is_stored(&sent));
    scene.ledger.check(&sent);
    assert_eq!(scene.ledger.events("ShardEvent::LeaseLost"), 0);
    running.stop().await.expect("nothing halted");
}

/// Begins no record while no worker can tell who owns a shard.
#[tokio::test]
async fn table_outage_stops_shards_that_cannot_renew() {
    let Some(shared) = Shared::new(2).await else {
        return;
    };
    let scene = &shared.scene;
    let server = DynamoDbLocal::shared().expect("DynamoDB Local runs");
    let proxy = Proxy::start(server.endpoint()).await.expect("a free port");
    let steps = |number: usize| if number < 10 { "ok" } else { "sleep:20" };
    scene.put(records(2_500, 2, steps)).await;
    let running = shared.start_on("first", &dynamodb::client(proxy.endpoint()));
    scene.ledger.settled(20).await;
    eventually("both shards are read", || {
        scene.ledger.events("ShardEvent::Started") >= 2
    })
    .await;
    let down = json!({"__type": "InternalServerError", "message": "down"});
    proxy.script(move |_| Fault::Reply(500, down.clone()));
    // Every started shard loses its lease. A busy machine may have lost one before.
    eventually("all leases count as lost", || {
        let (lost, started) = (
            scene.ledger.events("ShardEvent::LeaseLost"),
            scene.ledger.events("ShardEvent::Started"),
        );
        lost >= 2 && lost == started
    })
    .await;
    assert!(scene.ledger.events("ShardEvent::LeaseNotRenewed") >= 2);
    let begun = || scene.ledger.book().notes.len();
    let before = begun();
    eventually("discovery has run again", || {
        scene.ledger.events("StreamEvent::DiscoveryFailed") > 0
    })
    .await;
    assert_eq!(begun(), before, "a record was begun, settled or stored");
    scene.ledger.note(Note::Run);
    proxy.script(|_| Fault::None);
    scene.ledger.settled(2_500).await;
    running.stop().await.expect("nothing halted");
    let sent = scene.read().await;
    scene.ledger.check(&sent);
}

#[tokio::test]
async fn child_rows_exist_before_their_parent_ends() {
    let Some(shared) = Shared::new(2).await else {
        return;
    };
    let scene = &shared.scene;
    let running = shared
        .resharded(|| vec![shared.start("first"), shared.start("second")])
        .await;
    let rows = shared.rows().await;
    for shard in scene.list().await {
        let parents = [shard.parent_shard_id(), shard.adjacent_parent_shard_id()];
        let row = &rows[shard.shard_id()];
        for parent in parents.into_iter().flatten() {
            assert!(set(row, "parentShardId").contains(&parent.to_owned()), "{row:?}");
            let parent = &rows[parent];
            assert!(
                set(parent, "childShardIds").contains(&shard.shard_id().to_owned()),
                "{parent:?}"
            );
        }
        let range = shard.hash_key_range().expect("a range");
        assert_eq!(text(row, "startingHashKey"), range.starting_hash_key());
        assert_eq!(text(row, "endingHashKey"), range.ending_hash_key());
    }
    for running in running {
        running.stop().await.expect("nothing halted");
    }
    let sent = scene.read().await;
    scene.ledger.check_settled_once(&sent);
    scene.check_lineage().await;
}

/// Reads a parent that the listing lacks when the other parent of a merged shard ends. Any worker that sees a
/// child's row treats a parent without a row as finished. The child's row may therefore not be created yet.
#[tokio::test]
async fn unlisted_parent_is_read_before_its_merged_child() {
    let Some(shared) = Shared::new(2).await else {
        return;
    };
    let scene = &shared.scene;
    scene.put(records(100, 10, |_| "ok")).await;
    let open = scene.open_shards().await;
    scene.split(&open[1]).await;
    scene.put(records(100, 10, |_| "ok")).await;
    let open = scene.open_shards().await;
    let lacking = open[1].shard_id().to_owned();
    scene.merge(&open[0], &open[1]).await;
    scene.put(records(100, 10, |_| "ok")).await;
    scene
        .proxy
        .script(move |call| match (&*call.target, call.number) {
            ("ListShards", 1..=12) => {
                let lacking = lacking.clone();
                Fault::Rewrite(Box::new(move |reply| {
                    let shards = reply["Shards"].as_array_mut().expect("shards");
                    shards.retain(|shard| shard["ShardId"] != json!(lacking));
                }))
            }
            _ => Fault::None,
        });
    let running = shared.start("first");
    let sent = scene.read().await;
    scene.ledger.settled(sent.len()).await;
    running.stop().await.expect("nothing halted");
    scene.ledger.check_settled_once(&sent);
    scene.check_lineage().await;
    assert_eq!(scene.ledger.events("ShardEvent::DataLoss"), 0);
}

/// Lets another worker take the shard just before its end is stored. The shard has not ended then, and its
/// children do not begin.
#[tokio::test]
async fn shard_end_counts_only_once_stored() {
    let Some(shared) = Shared::new(1).await else {
        return;
    };
    let shared = Arc::new(shared);
    let scene = &shared.scene;
    scene.put(records(20, 5, steps)).await;
    let server = DynamoDbLocal::shared().expect("DynamoDB Local runs");
    let proxy = Proxy::start(server.endpoint()).await.expect("a free port");
    let taking = shared.clone();
    proxy.script(move |call| {
        let values = call.body["ExpressionAttributeValues"].to_string();
        if !values.contains("SHARD_END") {
            return Fault::None;
        }
        // The other worker takes the lease before the write arrives.
        let shared = taking.clone();
        tokio::spawn(async move {
            let take = "SET leaseOwner = :owner";
            shared.write(SHARD, take, &[(":owner", "another-worker")]).await;
        });
        Fault::Delay(Duration::from_millis(300))
    });
    let client = dynamodb::patient(&dynamodb::client(proxy.endpoint()));
    let running = shared.start_on("first", &client);
    scene.ledger.settled(20).await;
    scene.split(&scene.open_shards().await[0]).await;
    eventually("the lease is lost", || {
        scene.ledger.events("ShardEvent::LeaseLost") >= 1
    })
    .await;
    assert_eq!(scene.ledger.events("ShardEvent::Ended"), 0);
    let rows = shared.rows().await;
    assert_ne!(text(&rows[SHARD], "checkpoint"), "SHARD_END");
    assert_eq!(text(&rows[SHARD], "leaseOwner"), "another-worker");
    assert_eq!(
        rows.len(),
        3,
        "the children's rows are created before the end is stored"
    );
    let mut children = rows.iter().filter(|(name, _)| *name != SHARD);
    assert!(
        children.all(|(_, row)| text(row, "leaseOwner").is_empty()),
        "{rows:?}"
    );
    running.stop().await.expect("nothing halted");
}

/// Renews the first leases while the consumer is still taking the others.
#[tokio::test]
async fn slow_takeover_of_many_leases_loses_none() {
    let shards = support::volume(150, 1_000) as i32;
    // Taking 150 leases one after the other takes 32 s. By then the first ones would have been lost.
    let failover = Duration::from_secs(20);
    let Some(shared) = Shared::new(shards).await else {
        return;
    };
    let proxy = Proxy::start(DynamoDbLocal::shared().expect("DynamoDB Local runs").endpoint())
        .await
        .expect("a free port");
    proxy.script(|call| match &*call.target {
        "UpdateItem" => Fault::Delay(Duration::from_millis(213)),
        _ => Fault::None,
    });
    let store = DynamoDb::new(dynamodb::client(proxy.endpoint()), shared.table.as_str())
        .worker("first")
        .failover_time(failover)
        .standby();
    let scene = &shared.scene;
    let consumer = scene.consumer().idle_interval(Duration::from_secs(10));
    let consumer = consumer.checkpoints(Store::over(&scene.ledger, store));
    let running = scene.run(consumer, scene.resilient());
    shared.held_by("first", shards as usize).await;
    // A lease that counts as lost is not renewed.
    tokio::time::sleep(failover / 2).await;
    assert_eq!(scene.ledger.events("ShardEvent::LeaseLost"), 0);
    let started = scene.ledger.events("ShardEvent::Started");
    assert_eq!(started, shards as usize, "each shard starts once");
    running.stop().await.expect("nothing halted");
}
