//! Tests of the columns that workers of a fleet write for each other, and for workers of KCL.

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_sdk_dynamodb::types::AttributeValue;
use redrive::checkpoint::{DynamoDb, LeaseOutcome, Leases, Sharing};
use redrive::testing::checkpoints::key;
use support::dynamodb::create_table;
use tokio::time::{Instant, sleep};

use crate::dynamodb::{Table, begun, create, take, text, with_table};

fn sharing(store: &DynamoDb) -> &dyn Sharing {
    store.sharing().expect("the store shares its shards")
}

async fn throughput(store: &DynamoDb) -> Option<f64> {
    let rows = sharing(store).rows(&[key(1)]).await.remove(0);
    rows.expect("the store answers").expect("a row").throughput
}

/// Lets the owner write to the row, more than a second after the last write.
async fn renew_later(store: &DynamoDb) {
    sleep(Duration::from_millis(1_050)).await;
    store.renew(&key(1)).await.expect("the store answers");
}

#[tokio::test]
async fn throughput_is_stored_with_renewals_and_continued_by_the_next_owner() {
    with_table(async |table: Table| {
        let (first, second) = (table.store(), table.store());
        create(&first, &[begun(1)]).await;
        let start = Instant::now();
        assert!(matches!(take(&first, 1).await, LeaseOutcome::Leased(_)));
        renew_later(&first).await;
        assert_eq!(throughput(&second).await, None, "nothing was fetched");
        for _ in 0..10 {
            sharing(&first).note_fetched(&key(1), 100 * 1024);
        }
        renew_later(&first).await;
        let stored = throughput(&second).await.expect("records were fetched");
        let least = 1_000.0 / start.elapsed().as_secs_f64();
        assert!(
            stored >= least && stored <= 1_000.0,
            "{stored} KiB/s, at least {least}"
        );

        // An owner that reports nothing leaves the value. One that reads an idle shard halves it each time.
        first.give_up(&key(1)).await.expect("the store answers");
        assert!(matches!(take(&second, 1).await, LeaseOutcome::Leased(_)));
        renew_later(&second).await;
        assert_eq!(throughput(&second).await, Some(stored));
        sharing(&second).note_fetched(&key(1), 0);
        renew_later(&second).await;
        let halved = throughput(&second).await.expect("a value");
        assert!((halved - stored / 2.0).abs() < 1e-5, "{stored}, then {halved}");
    })
    .await;
}

/// Returns the announcement of a worker while the worker `leader` leads, whose own announcement has these columns.
async fn announced(
    table: &Table,
    leader: Option<(&str, &[(&str, AttributeValue)])>,
) -> HashMap<String, AttributeValue> {
    let workers = format!("{}-WorkerMetricStats", table.name);
    if let Some((leader, columns)) = leader {
        let coordinator = format!("{}-CoordinatorState", table.name);
        create_table(&table.client, &coordinator, "key").await;
        create_table(&table.client, &workers, "wid").await;
        let item = table.client.put_item().table_name(coordinator);
        let item = item
            .item("key", text("Leader"))
            .item("ownerName", text(leader))
            .item("leaseDuration", text("120000"))
            .item("recordVersionNumber", text("v1"));
        item.send().await.expect("written");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
        let mut row = table
            .client
            .put_item()
            .table_name(&workers)
            .item("wid", text(leader));
        row = row.item("lut", AttributeValue::N(now.as_secs().to_string()));
        for (name, value) in columns {
            row = row.item(*name, value.clone());
        }
        row.send().await.expect("written");
    }
    let store = table.store();
    sharing(&store).announce().await.expect("the store answers");
    let name = sharing(&store).worker();
    let call = table.client.get_item().table_name(workers).key("wid", text(name));
    let reply = call.consistent_read(true).send().await.expect("read");
    reply.item.expect("an announcement")
}

/// Returns a column of metrics with these values of the CPU metric.
fn cpu(values: &[&str]) -> AttributeValue {
    let values = values.iter().map(|value| AttributeValue::N((*value).to_owned()));
    let values = AttributeValue::L(values.collect());
    AttributeValue::M(HashMap::from([("C".to_owned(), values)]))
}

fn metrics(announcement: &HashMap<String, AttributeValue>, column: &str) -> HashMap<String, Vec<f64>> {
    let metrics = announcement[column].as_m().expect("a map");
    let values = |values: &AttributeValue| {
        let values = values.as_l().expect("a list").iter();
        let values = values.map(|value| value.as_n().expect("a number").parse().expect("a number"));
        values.collect()
    };
    metrics
        .iter()
        .map(|(name, list)| (name.clone(), values(list)))
        .collect()
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn worker_reports_its_use_of_the_cpu_to_a_leader_of_kcl_that_reports_its_own() {
    with_table(async |table: Table| {
        let columns = [("sts", cpu(&["12.5", "40"])), ("opr", cpu(&["100"]))];
        let announcement = announced(&table, Some(("java", &columns))).await;
        let stats = metrics(&announcement, "sts");
        let [used] = stats["C"][..] else {
            panic!("{stats:?}")
        };
        assert!((0.0..=100.0).contains(&used), "{used} %");
        assert_eq!(
            metrics(&announcement, "opr"),
            HashMap::from([("C".to_owned(), vec![100.0])])
        );
    })
    .await;
}

#[tokio::test]
async fn worker_reports_no_metrics_to_other_leaders() {
    let none = AttributeValue::M(HashMap::new());
    let without = [("sts", none.clone()), ("opr", none)];
    let native = HashMap::from([("redrive".to_owned(), text("0.1.0"))]);
    let native = [("sts", cpu(&["40"])), ("properties", AttributeValue::M(native))];
    let leaders: [Option<(&str, &[_])>; 3] = [None, Some(("java", &without)), Some(("redrive", &native))];
    for leader in leaders {
        with_table(async |table: Table| {
            let announcement = announced(&table, leader).await;
            assert_eq!(metrics(&announcement, "sts"), HashMap::new(), "{leader:?}");
            assert_eq!(metrics(&announcement, "opr"), HashMap::new(), "{leader:?}");
        })
        .await;
    }
}
