//! Several consumers that share a stream's shards through a lease table: each gets its part, takes over from
//! consumers that stop or fail, and gives some of its shards to consumers that join.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use aws_sdk_dynamodb::types::AttributeValue;

use crate::scene::{Running, records};
use crate::shared::{FAILOVER, Shared, text};
use support::ledger::Note;

/// The share of each worker that owns open shards, by name.
async fn shares(shared: &Shared) -> BTreeMap<String, usize> {
    let mut shares = BTreeMap::new();
    for row in shared.rows().await.values() {
        if text(row, "checkpoint") == "SHARD_END" || !text(row, "checkpointOwner").is_empty() {
            continue;
        }
        let owner = text(row, "leaseOwner");
        // The store appends a hyphen and 16 digits.
        let name = owner.rsplit_once('-').map_or(owner, |(name, _)| name);
        *shares.entry(name.to_owned()).or_insert(0) += 1;
    }
    shares
}

/// Waits until these workers own this many shards, and returns how long it took.
async fn shares_become(shared: &Shared, what: &str, expected: &[(&str, usize)]) -> Duration {
    let expected: BTreeMap<String, usize> = expected
        .iter()
        .map(|(name, count)| ((*name).to_owned(), *count))
        .collect();
    let start = Instant::now();
    loop {
        let found = shares(shared).await;
        if found == expected {
            println!("{what}: {:?}", start.elapsed());
            return start.elapsed();
        }
        assert!(start.elapsed() < Duration::from_secs(90), "{what}: {found:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Returns the name of the leader.
async fn leader(shared: &Shared) -> String {
    let call = shared
        .dynamo
        .get_item()
        .table_name(format!("{}-CoordinatorState", shared.table));
    let key = AttributeValue::S("Leader".to_owned());
    let reply = call
        .key("key", key)
        .consistent_read(true)
        .send()
        .await
        .expect("read");
    text(&reply.item.expect("a leader"), "ownerName").to_owned()
}

async fn stop_all(running: Vec<Running>) {
    for running in running {
        running.stop().await.expect("nothing halted");
    }
}

#[tokio::test]
async fn workers_share_evenly_and_follow_each_change() {
    let Some(shared) = Shared::new(6).await else {
        return;
    };
    let scene = &shared.scene;
    let steps = |number: usize| if number % 40 == 7 { "sleep:30" } else { "ok" };
    scene.put(records(600, 60, steps)).await;
    let first = shared.join("first");
    let (second, third) = (shared.join("second"), shared.join("third"));
    let even = [("first", 2), ("second", 2), ("third", 2)];
    shares_become(&shared, "three workers", &even).await;
    scene.put(records(600, 60, steps)).await;
    scene.ledger.settled(1_200).await;

    third.stop().await.expect("nothing halted");
    shares_become(&shared, "one has stopped", &[("first", 3), ("second", 3)]).await;
    scene.put(records(600, 60, steps)).await;
    let fourth = shared.join("fourth");
    let even = [("first", 2), ("fourth", 2), ("second", 2)];
    shares_become(&shared, "one has joined", &even).await;
    scene.put(records(600, 60, steps)).await;
    let sent = scene.read().await;
    scene.ledger.settled(sent.len()).await;
    stop_all(vec![second, fourth]).await;
    shares_become(&shared, "one is left", &[("first", 6)]).await;
    first.stop().await.expect("nothing halted");

    // Shards change hands without a repeated record, and the last worker releases all of them.
    scene.ledger.check_settled_once(&sent);
    assert_eq!(scene.ledger.events("ShardEvent::LeaseLost"), 0);
    assert_eq!(scene.ledger.events("FleetEvent::LeaseExpired"), 0);
    assert!(scene.ledger.events("ShardEvent::HandedOver") >= 2);
    assert_eq!(shares(&shared).await, BTreeMap::from([(String::new(), 6)]));
}

#[tokio::test]
async fn shards_of_a_killed_worker_are_shared_by_the_others() {
    let Some(shared) = Shared::new(6).await else {
        return;
    };
    let scene = &shared.scene;
    scene.put(records(600, 60, |_| "ok")).await;
    // The first worker leads, so that the killed one does not.
    let first = shared.join("first");
    shares_become(&shared, "one worker", &[("first", 6)]).await;
    let (second, third) = (shared.join("second"), shared.join("third"));
    let even = [("first", 2), ("second", 2), ("third", 2)];
    shares_become(&shared, "three workers", &even).await;
    third.abort().await;
    scene.ledger.note(Note::Run);
    let took = shares_become(&shared, "one was killed", &[("first", 3), ("second", 3)]).await;
    // The last renewal may be a third of the failover time old, or a little more on a busy machine.
    assert!(took >= FAILOVER / 4, "a lease was taken before it had expired");
    scene.put(records(600, 60, |_| "ok")).await;
    let sent = scene.read().await;
    scene.ledger.settled(sent.len()).await;
    stop_all(vec![first, second]).await;
    scene.ledger.check(&sent);
    assert!(scene.ledger.events("FleetEvent::LeaseExpired") >= 2);
}

#[tokio::test]
async fn another_worker_leads_when_the_leader_stops_or_dies() {
    let Some(shared) = Shared::new(4).await else {
        return;
    };
    let scene = &shared.scene;
    let first = shared.join("first");
    shares_become(&shared, "one worker", &[("first", 4)]).await;
    let second = shared.join("second");
    shares_become(&shared, "two workers", &[("first", 2), ("second", 2)]).await;
    first.stop().await.expect("nothing halted");
    shares_become(&shared, "the leader has stopped", &[("second", 4)]).await;
    let third = shared.join("third");
    shares_become(&shared, "another leads", &[("second", 2), ("third", 2)]).await;
    let leader = leader(&shared).await;
    println!("leader: {leader}");
    let (killed, other) = match leader.starts_with("second") {
        true => (second, third),
        false => (third, second),
    };
    killed.abort().await;
    let name = if leader.starts_with("second") {
        "third"
    } else {
        "second"
    };
    let took = shares_become(&shared, "the leader was killed", &[(name, 4)]).await;
    assert!(took >= FAILOVER, "the leadership was taken before it had expired");
    scene.put(records(200, 20, |_| "ok")).await;
    scene.ledger.settled(200).await;
    stop_all(vec![other]).await;
}

#[tokio::test]
async fn children_are_shared_after_their_parents() {
    let Some(shared) = Shared::new(2).await else {
        return;
    };
    let running = shared
        .resharded(|| vec![shared.join("first"), shared.join("second")])
        .await;
    shares_become(
        &shared,
        "the open shards are shared",
        &[("first", 1), ("second", 1)],
    )
    .await;
    stop_all(running).await;
    let sent = shared.scene.read().await;
    shared.scene.ledger.check_settled_once(&sent);
    shared.scene.check_lineage().await;
}

/// A table from an earlier version has no index.
#[tokio::test]
async fn table_without_the_index_is_read_as_a_whole() {
    let Some(shared) = Shared::new(2).await else {
        return;
    };
    let scene = &shared.scene;
    support::dynamodb::create_table(&shared.dynamo, &shared.table, "leaseKey").await;
    scene.put(records(100, 10, |_| "ok")).await;
    let (first, second) = (shared.join("first"), shared.join("second"));
    shares_become(&shared, "two workers", &[("first", 1), ("second", 1)]).await;
    scene.ledger.settled(100).await;
    stop_all(vec![first, second]).await;
    assert_eq!(scene.ledger.events("FleetEvent::IndexMissing"), 2);
}

/// KCL 3.5 keeps the leader and the announcements in the lease table of a new application.
#[tokio::test]
async fn single_table_of_kcl_is_used_where_it_is_established() {
    let Some(shared) = Shared::new(2).await else {
        return;
    };
    let scene = &shared.scene;
    // The row of a leader that has resigned.
    support::dynamodb::create_table(&shared.dynamo, &shared.table, "leaseKey").await;
    let text_of = |value: &str| AttributeValue::S(value.to_owned());
    let leader = shared.dynamo.put_item().table_name(&shared.table);
    let leader = leader
        .item("leaseKey", text_of("Leader"))
        .item("entityType", text_of("LEADER"))
        .item("ownerName", text_of("java"))
        .item("leaseDuration", text_of("120000"))
        .item("recordVersionNumber", text_of("v1"))
        .item("isReleased", text_of("1"));
    leader.send().await.expect("written");
    scene.put(records(100, 10, |_| "ok")).await;
    let (first, second) = (shared.join("first"), shared.join("second"));
    scene.ledger.settled(100).await;
    let rows = shared.rows().await;
    let announced = rows
        .values()
        .filter(|row| text(row, "entityType") == "WORKER_METRIC_STATS");
    assert_eq!(announced.count(), 2);
    assert_eq!(text(&rows["Leader"], "entityType"), "LEADER");
    stop_all(vec![first, second]).await;
    for suffix in ["CoordinatorState", "WorkerMetricStats"] {
        let call = shared.dynamo.describe_table();
        let described = call.table_name(format!("{}-{suffix}", shared.table)).send().await;
        assert!(described.is_err(), "{suffix} was created");
    }
}

#[tokio::test]
async fn announcement_of_a_worker_that_is_long_gone_is_deleted() {
    let Some(shared) = Shared::new(1).await else {
        return;
    };
    let table = format!("{}-WorkerMetricStats", shared.table);
    support::dynamodb::create_table(&shared.dynamo, &table, "wid").await;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    const HOUR: u64 = 60 * 60;
    for (name, hours) in [("gone", 25), ("old", 23)] {
        let announced = now.as_secs() - hours * HOUR;
        let row = shared.dynamo.put_item().table_name(&table);
        let row = row
            .item("wid", AttributeValue::S(name.to_owned()))
            .item("lut", AttributeValue::N(announced.to_string()));
        row.send().await.expect("written");
    }
    let worker = shared.join("worker");
    let start = Instant::now();
    loop {
        let scan = shared.dynamo.scan().table_name(&table).consistent_read(true);
        let rows = scan.send().await.expect("read").items.unwrap_or_default();
        let names: BTreeSet<String> = rows.iter().map(|row| text(row, "wid").to_owned()).collect();
        if !names.contains("gone") {
            assert!(names.contains("old"), "{names:?}");
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "{names:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    worker.stop().await.expect("nothing halted");
}
