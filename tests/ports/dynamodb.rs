//! Tests of checkpoints in DynamoDB Local: the conformance suites of stores and leases, and tests of the rows.

use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::AttributeValue;
use redrive::Position;
use redrive::checkpoint::{
    Checkpoint, CheckpointError, CheckpointStore, DynamoDb, LeaseOutcome, Leases, NewShard, Renewal, ShardKey,
};
use redrive::testing::checkpoints::{Harness, at, key, settled_ahead};
use redrive::{checkpoint_conformance, lease_conformance, sharing_conformance};
use support::dynamodb::{DynamoDbLocal, client, create_table, patient};
use support::emulator::unique;
use support::proxy::{Fault, Proxy};
use tokio::time::sleep;

/// The failover time, short so that the tests are fast. No test depends on how long a call takes.
const FAILOVER: Duration = Duration::from_millis(300);

/// A table that belongs to one test.
pub(crate) struct Table {
    pub(crate) client: Client,
    pub(crate) name: String,
}

/// Runs a test on the shared server, or skips it without a server.
pub(crate) async fn with_table<T: Future<Output = ()>>(test: impl FnOnce(Table) -> T) {
    if let Some(table) = Table::new() {
        test(table).await;
    }
}

impl Table {
    fn new() -> Option<Self> {
        Some(Table {
            client: DynamoDbLocal::shared()?.patient_client(),
            name: unique("billing"),
        })
    }

    pub(crate) fn store(&self) -> DynamoDb {
        DynamoDb::new(self.client.clone(), self.name.as_str()).failover_time(FAILOVER)
    }

    /// Reads the row of a shard.
    async fn row(&self, shard: u64) -> HashMap<String, AttributeValue> {
        let name = text(key(shard).shard.as_str());
        let call = self.client.get_item().table_name(&self.name);
        let reply = call.key("leaseKey", name).consistent_read(true).send().await;
        reply.expect("the store answers").item.expect("a row")
    }

    /// Writes columns of a row, as another program does.
    async fn put(&self, shard: u64, columns: &[(&str, AttributeValue)]) {
        let mut item = self.row(shard).await;
        for (name, value) in columns {
            item.insert((*name).to_owned(), value.clone());
        }
        self.put_item(item).await;
    }

    async fn put_item(&self, item: HashMap<String, AttributeValue>) {
        let call = self.client.put_item().table_name(&self.name).set_item(Some(item));
        call.send().await.expect("written");
    }
}

impl Harness for Table {
    type Store = DynamoDb;

    async fn open(&self) -> DynamoDb {
        self.store()
    }

    /// A lease table belongs to one application and stream.
    fn serves_one_stream(&self) -> bool {
        true
    }
}

checkpoint_conformance!(table, optional async { Table::new() });
lease_conformance!(leases, optional async { Table::new() });
sharing_conformance!(sharing, optional async { Table::new() });

pub(crate) fn begun(number: u64) -> NewShard {
    NewShard::new(key(number), Checkpoint::at(Position::TrimHorizon))
}

pub(crate) async fn create(store: &DynamoDb, shards: &[NewShard]) {
    for created in store.create(shards).await {
        created.expect("the row is created");
    }
}

pub(crate) async fn take(store: &DynamoDb, shard: u64) -> LeaseOutcome {
    let mut taken = store.take(&[key(shard)]).await;
    taken.remove(0).expect("the store answers")
}

async fn hold(store: &DynamoDb, shard: u64) {
    create(store, &[begun(shard)]).await;
    assert!(matches!(take(store, shard).await, LeaseOutcome::Leased(_)));
}

async fn save(store: &DynamoDb, shard: u64, position: Position) -> Result<(), CheckpointError> {
    let mut saved = store.save(&[(key(shard), Checkpoint::at(position))]).await;
    saved.remove(0)
}

pub(crate) fn text(value: &str) -> AttributeValue {
    AttributeValue::S(value.to_owned())
}

fn number(value: u64) -> AttributeValue {
    AttributeValue::N(value.to_string())
}

#[tokio::test]
async fn table_is_created_with_the_rows_of_kcl() {
    with_table(async |table| {
        let (first, second) = (table.store().worker("first"), table.store());
        // Both stores create the table at the same time.
        let shards = [key(1)];
        let (one, two) = tokio::join!(first.load(&shards), second.load(&shards));
        assert!(
            matches!((&one[0], &two[0]), (Ok(None), Ok(None))),
            "{one:?} {two:?}"
        );

        let mut child = begun(3);
        child.parents = vec![key(1).shard, key(2).shard];
        child.hash_keys = Some(0..=u128::MAX);
        create(&first, &[begun(1), begun(2), child]).await;
        // An existing row is not changed.
        create(&second, &[NewShard::new(key(1), Checkpoint::at(at(9)))]).await;
        assert!(
            matches!(take(&first, 1).await, LeaseOutcome::Leased(from) if *from.position() == Position::TrimHorizon)
        );
        let position = Position::Record {
            sequence_number: 77.into(),
            sub_sequence_number: 5,
        };
        save(&first, 1, position).await.expect("leased");
        first.name_children(&key(1), &[key(3).shard]).await.expect("leased");

        let parent = table.row(1).await;
        let owner = parent["leaseOwner"].as_s().expect("a text");
        assert!(owner.starts_with("first-"), "{owner}");
        assert_eq!(parent["checkpoint"], text("77"));
        assert_eq!(parent["checkpointSubSequenceNumber"], number(5));
        assert_eq!(parent["ownerSwitchesSinceCheckpoint"], number(0));
        assert_eq!(parent["leaseCounter"], number(3));
        let child = table.row(3).await;
        assert_eq!(
            parent["childShardIds"],
            AttributeValue::Ss(vec!["shardId-000000000003".into()])
        );
        assert!(!child.contains_key("leaseOwner"));
        assert_eq!(child["checkpoint"], text("TRIM_HORIZON"));
        assert_eq!(child["startingHashKey"], text("0"));
        assert_eq!(
            child["endingHashKey"],
            text("340282366920938463463374607431768211455")
        );
        let mut parents = child["parentShardId"].as_ss().expect("a set").clone();
        parents.sort();
        assert_eq!(parents, ["shardId-000000000001", "shardId-000000000002"]);
    })
    .await;
}

#[tokio::test]
async fn row_follows_the_lease() {
    with_table(async |table| {
        let (first, second) = (table.store().worker("first"), table.store().worker("second"));
        hold(&first, 1).await;
        save(&first, 1, at(5)).await.expect("leased");
        let before = table.row(1).await;
        let holder = second.holders(&[key(1)]).await.remove(0);
        let holder = holder.expect("the store answers").expect("leased");
        assert!(holder.name.starts_with("first-"), "{holder:?}");
        assert!(
            matches!(take(&second, 1).await, LeaseOutcome::Elsewhere { owner } if owner.starts_with("first-"))
        );
        assert_eq!(table.row(1).await, before);
        first.give_up(&key(1)).await.expect("the store answers");
        let row = table.row(1).await;
        assert!(!row.contains_key("leaseOwner"), "{row:?}");
        assert_eq!(row["checkpoint"], text("5"));
        // A shard that was given up is no switch of owners, and a shard that was abandoned is.
        for (store, switches) in [(&second, 0), (&first, 1)] {
            let _ = take(store, 1).await;
            sleep(FAILOVER + Duration::from_millis(10)).await;
            assert!(matches!(take(store, 1).await, LeaseOutcome::Leased(_)));
            assert_eq!(
                table.row(1).await["ownerSwitchesSinceCheckpoint"],
                number(switches)
            );
        }
    })
    .await;
}

#[tokio::test]
async fn shard_is_seized_during_a_requested_handover() {
    with_table(async |table| {
        let (first, second) = (table.store(), table.store());
        hold(&second, 1).await;
        let owner = table.row(1).await["leaseOwner"].clone();
        table
            .put(1, &[("leaseOwner", text("kcl")), ("checkpointOwner", owner)])
            .await;
        let taken = first.seize(&key(1)).await;
        assert!(matches!(taken, Ok(LeaseOutcome::Leased(_))), "{taken:?}");
        assert!(!table.row(1).await.contains_key("checkpointOwner"));
    })
    .await;
}

/// Models a write whose answer was lost: this worker still owns the row, with another counter.
#[tokio::test]
async fn lost_answer_of_a_write_does_not_lose_the_lease() {
    with_table(async |table| {
        let store = table.store();
        hold(&store, 1).await;
        table
            .put(1, &[("leaseCounter", number(2)), ("checkpoint", text("8"))])
            .await;
        assert_eq!(
            store.renew(&key(1)).await.expect("the store answers"),
            Renewal::Leased
        );
        assert_eq!(table.row(1).await["leaseCounter"], number(3));
        table.put(1, &[("leaseCounter", number(4))]).await;
        save(&store, 1, at(9)).await.expect("leased");
        table.put(1, &[("leaseCounter", number(6))]).await;
        store.give_up(&key(1)).await.expect("the store answers");
        let row = table.row(1).await;
        assert_eq!((&row["checkpoint"], row.get("leaseOwner")), (&text("9"), None));
        // A row of another owner is not taken.
        table.put(1, &[("leaseOwner", text("another-worker"))]).await;
        assert!(matches!(take(&store, 1).await, LeaseOutcome::Elsewhere { .. }));
    })
    .await;
}

/// The row names this worker, but with a counter that no lost answer explains. Another worker had the lease
/// in between, and the leader of KCL has assigned it to this worker again. The earlier lease must not write.
#[tokio::test]
async fn reassigned_lease_is_lost_to_its_earlier_owner() {
    with_table(async |table| {
        let lost = |result| matches!(result, Err(CheckpointError::LeaseLost { .. }));
        for counter in [3, 40] {
            let store = table.store();
            hold(&store, counter).await;
            table
                .put(
                    counter,
                    &[("leaseCounter", number(counter)), ("checkpoint", text("8"))],
                )
                .await;
            assert!(lost(save(&store, counter, at(5)).await), "{counter}");
            assert_eq!(
                store.renew(&key(counter)).await.expect("the store answers"),
                Renewal::Lost
            );
            store.give_up(&key(counter)).await.expect("the store answers");
            let row = table.row(counter).await;
            assert_eq!(
                (&row["checkpoint"], &row["leaseCounter"]),
                (&text("8"), &number(counter))
            );
        }
    })
    .await;
}

/// KCL 3 requests a shard: `leaseOwner` is the requesting worker, and `checkpointOwner` is the current one.
#[tokio::test]
async fn requested_shard_is_handed_over() {
    with_table(async |table| {
        let store = table.store();
        hold(&store, 1).await;
        let ours = table.row(1).await["leaseOwner"].clone();
        table
            .put(1, &[("leaseOwner", text("kcl")), ("checkpointOwner", ours)])
            .await;
        assert_eq!(
            store.renew(&key(1)).await.expect("the store answers"),
            Renewal::Wanted
        );
        save(&store, 1, at(12))
            .await
            .expect("the store still has the lease");
        store.give_up(&key(1)).await.expect("the store answers");
        let row = table.row(1).await;
        assert_eq!(
            (&row["leaseOwner"], row.get("checkpointOwner")),
            (&text("kcl"), None)
        );
        assert_eq!(row["checkpoint"], text("12"));
        let late = save(&store, 1, at(13)).await;
        assert!(matches!(late, Err(CheckpointError::LeaseLost { .. })), "{late:?}");
    })
    .await;
}

/// A worker that stores checkpoints often need not renew its lease to see a request.
#[tokio::test]
async fn saved_checkpoint_shows_a_request() {
    with_table(async |table| {
        let store = table.store();
        let is_wanted = || store.last_renewal(&key(1)).map(|last| last.is_wanted);
        assert_eq!(is_wanted(), None);
        hold(&store, 1).await;
        save(&store, 1, at(12)).await.expect("the store has the lease");
        assert_eq!(is_wanted(), Some(false));
        let ours = table.row(1).await["leaseOwner"].clone();
        table
            .put(1, &[("leaseOwner", text("kcl")), ("checkpointOwner", ours)])
            .await;
        save(&store, 1, at(13)).await.expect("the store has the lease");
        assert_eq!(is_wanted(), Some(true));
        store.give_up(&key(1)).await.expect("the store answers");
        assert_eq!(is_wanted(), None);
    })
    .await;
}

#[tokio::test]
async fn columns_and_rows_of_other_programs_are_kept() {
    with_table(async |table| {
        let store = table.store();
        create(&store, &[begun(1)]).await;
        let pending = [
            ("pendingCheckpoint", text("3")),
            ("pendingCheckpointSubSequenceNumber", number(0)),
            ("pendingCheckpointState", number(0)),
        ];
        let own = [
            ("throughputKBps", AttributeValue::N("12.5".into())),
            ("somebodyElses", AttributeValue::L(vec![number(1), text("x")])),
            ("entityType", text("LEASE")),
        ];
        table.put(1, &[&pending[..], &own[..]].concat()).await;
        let leader = [
            ("leaseKey", text("Leader")),
            ("entityType", text("LEADER")),
            ("ownerName", text("kcl-7")),
        ];
        let leader: HashMap<String, AttributeValue> =
            leader.map(|(name, value)| (name.to_owned(), value)).into();
        table.put_item(leader.clone()).await;

        assert!(matches!(take(&store, 1).await, LeaseOutcome::Leased(_)));
        save(&store, 1, at(5)).await.expect("leased");
        store.give_up(&key(1)).await.expect("the store answers");
        let after = table.row(1).await;
        for (name, value) in own {
            assert_eq!(after[name], value);
        }
        // A checkpoint clears the pending checkpoint.
        assert!(
            pending.iter().all(|(name, _)| !after.contains_key(*name)),
            "{after:?}"
        );

        let name = ShardKey::new("billing", "orders", "Leader".into());
        let taken = store.take(std::slice::from_ref(&name)).await.remove(0);
        assert!(matches!(taken, Err(CheckpointError::Corrupt { .. })), "{taken:?}");
        let call = table
            .client
            .get_item()
            .table_name(&table.name)
            .key("leaseKey", text("Leader"));
        assert_eq!(call.send().await.expect("the row").item, Some(leader));
    })
    .await;
}

/// A program that ignores the column moves the checkpoint. What was settled ahead of the old checkpoint is
/// void.
#[tokio::test]
async fn settled_ahead_is_bound_to_its_checkpoint() {
    with_table(async |table| {
        let store = table.store();
        hold(&store, 1).await;
        let ahead = settled_ahead(at(100), &[103..=105], 110);
        let checkpoint = Checkpoint::at(at(100)).with_ahead(ahead);
        let saved = store.save(&[(key(1), checkpoint.clone())]).await.remove(0);
        saved.expect("leased");
        let loaded = store.load(&[key(1)]).await.remove(0).expect("the store answers");
        assert_eq!(loaded, Some(checkpoint));
        for moved in ["95", "101"] {
            table.put(1, &[("checkpoint", text(moved))]).await;
            let loaded = store.load(&[key(1)]).await.remove(0).expect("the store answers");
            assert_eq!(loaded.and_then(|loaded| loaded.ahead().cloned()), None);
        }
        // A save without it clears the column.
        save(&store, 1, at(100)).await.expect("leased");
        assert!(!table.row(1).await.contains_key("redriveAhead"));
    })
    .await;
}

/// An operator who reads the table must be able to find the machine.
#[test]
#[cfg(target_os = "linux")]
fn a_worker_is_named_after_its_host() {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").expect("exists on Linux");
    let store = DynamoDb::new(support::dynamodb::client("http://127.0.0.1:1"), "billing");
    let expected = format!("worker: \"{}-", host.trim());
    assert!(format!("{store:?}").contains(&expected), "{store:?}");
}

#[tokio::test]
async fn foreign_rows_and_tables_are_refused() {
    with_table(async |table| {
        let store = table.store();
        hold(&store, 1).await;
        // A shard of another stream in the same table.
        let foreign = ShardKey::new("billing", "payments", key(1).shard);
        let loaded = store.load(std::slice::from_ref(&foreign)).await.remove(0);
        assert!(
            matches!(loaded, Err(CheckpointError::OtherStream { .. })),
            "{loaded:?}"
        );
        // An ended shard and a missing shard have no owner.
        create(
            &store,
            &[NewShard::new(key(2), Checkpoint::at(Position::ShardEnd))],
        )
        .await;
        assert_eq!(take(&store, 2).await, LeaseOutcome::Ended);
        assert_eq!(take(&store, 3).await, LeaseOutcome::Missing);
        // A lease whose row is deleted is lost.
        let call = table
            .client
            .delete_item()
            .table_name(&table.name)
            .key("leaseKey", text("shardId-000000000001"));
        call.send().await.expect("deleted");
        assert_eq!(
            store.renew(&key(1)).await.expect("the store answers"),
            Renewal::Lost
        );

        // A table of another program.
        let other = DynamoDb::new(table.client.clone(), "seen");
        create_table(&table.client, "seen", "id").await;
        let loaded = other.load(&[key(1)]).await.remove(0).expect_err("refused");
        let text = format!("{:?}", anyhow::Error::from(loaded));
        assert!(text.contains("is not a lease table"), "{text}");
    })
    .await;
}

#[tokio::test]
async fn role_with_item_permissions_uses_an_existing_table() {
    with_table(async |table| {
        create(&table.store(), &[begun(1)]).await;
        let server = DynamoDbLocal::shared().expect("the server has the table");
        let proxy = Proxy::start(server.endpoint()).await.expect("a free port");
        proxy.script(|call| match call.target.as_str() {
            "DescribeTable" => Fault::error(400, "AccessDeniedException"),
            _ => Fault::None,
        });
        let client = patient(&client(proxy.endpoint()));
        let store = DynamoDb::new(client, table.name.as_str()).failover_time(FAILOVER);
        assert!(matches!(take(&store, 1).await, LeaseOutcome::Leased(_)));
        assert_eq!(proxy.calls("DescribeTable").len(), 1);
    })
    .await;
}
