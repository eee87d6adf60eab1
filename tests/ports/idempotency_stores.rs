//! Tests of the idempotency stores: the conformance suite for all stores, and tests of single stores.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::conformance::idempotency::{claim, key};
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::AttributeValue;
use redrive::idempotency::{Claimed, Completion, DynamoDb, IdempotencyStore, Memory, Redb, StoreError};
use serde_json::{Value, json};
use support::dynamodb::{DynamoDbLocal, client as dynamodb_client};
use support::emulator::unique;
use support::proxy::{Fault, Proxy};
use tempfile::TempDir;

crate::idempotency_conformance!(memory, async { Some((Memory::new(), ())) });
crate::idempotency_conformance!(shared, async { Some((Arc::new(Memory::new()), ())) });
crate::idempotency_conformance!(redb, async { Some(redb_in_a_new_folder()) });
crate::idempotency_conformance!(dynamodb, async {
    let table = Table::new().await?;
    Some((table.store.clone(), ()))
});

fn redb_in_a_new_folder() -> (Redb, TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let store = Redb::open(folder.path().join("seen.redb")).expect("the store opens");
    (store, folder)
}

/// A table that belongs to one test, on the shared server.
struct Table {
    client: Client,
    name: String,
    store: DynamoDb,
}

impl Table {
    async fn new() -> Option<Self> {
        let client = DynamoDbLocal::shared()?.client();
        let name = unique("seen");
        let store = DynamoDb::new(client.clone(), name.as_str());
        store.create_table().await.expect("a table");
        Some(Table { client, name, store })
    }

    async fn item(&self, number: u64) -> HashMap<String, AttributeValue> {
        let call = self.client.get_item().table_name(&self.name);
        let call = call.key("id", text(key(number).as_str())).consistent_read(true);
        call.send()
            .await
            .expect("the store answers")
            .item
            .expect("an item")
    }

    /// Writes an item, as another program does.
    async fn put(&self, number: u64, attributes: &[(&str, AttributeValue)]) {
        let attributes = attributes
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.clone()));
        let id = ("id".to_owned(), text(key(number).as_str()));
        let item = attributes.chain([id]).collect();
        let call = self.client.put_item().table_name(&self.name);
        call.set_item(Some(item)).send().await.expect("written");
    }
}

fn text(text: &str) -> AttributeValue {
    AttributeValue::S(text.to_owned())
}

fn number(number: u128) -> AttributeValue {
    AttributeValue::N(number.to_string())
}

fn since_1970(time: SystemTime) -> Duration {
    time.duration_since(SystemTime::UNIX_EPOCH).expect("since 1970")
}

async fn claimed(store: &impl IdempotencyStore, owner: u128, now: SystemTime) -> Result<Claimed, StoreError> {
    store.claim(&[claim(1, owner, now)]).await.remove(0)
}

/// A file belongs to one process. After a crash the next process finds the completed keys, but no claims.
#[tokio::test]
async fn redb_keeps_completed_keys_but_no_claims_over_a_restart() {
    let now = SystemTime::now();
    let (store, folder) = redb_in_a_new_folder();
    let begun = [claim(1, 1, now), claim(2, 1, now)];
    assert!(store.claim(&begun).await.iter().all(Result::is_ok));
    let done = store.complete(&begun[1..]).await.remove(0);
    assert_eq!(done.expect("the store answers"), Completion::Stored);
    drop(store);

    let store = Redb::open(folder.path().join("seen.redb")).expect("the store opens again");
    let answers = store.claim(&[claim(1, 2, now), claim(2, 2, now)]).await;
    let answers: Vec<Claimed> = answers.into_iter().flatten().collect();
    assert_eq!(
        answers,
        [
            Claimed::Granted { abandoned: 0 },
            Claimed::Completed { payload: None }
        ]
    );
}

#[tokio::test]
async fn redb_forgets_expired_keys() {
    let now = SystemTime::now();
    let (store, folder) = redb_in_a_new_folder();
    let claims: Vec<_> = (0..100).map(|number| claim(number, 1, now)).collect();
    assert!(store.complete(&claims).await.iter().all(Result::is_ok));
    let later = now + Duration::from_secs(3 * 24 * 60 * 60);
    for number in 100..110 {
        let completed = store.complete(&[claim(number, 1, later)]).await;
        assert!(completed[0].is_ok());
    }
    drop(store);
    let database = ::redb::Database::open(folder.path().join("seen.redb")).expect("a redb file");
    let rows = ::redb::ReadableDatabase::begin_read(&database).expect("a read transaction");
    let table: ::redb::TableDefinition<'_, &str, (u128, u64, Option<[u8; 32]>)> =
        ::redb::TableDefinition::new("completed");
    let table = rows.open_table(table).expect("the table");
    assert_eq!(
        ::redb::ReadableTableMetadata::len(&table).expect("the length of the table"),
        10
    );
}

#[tokio::test]
async fn memory_forgets_the_earliest_expiring_key_first() {
    let now = SystemTime::now();
    let store = Memory::new().keys(const { NonZeroUsize::new(2).expect("not zero") });
    for number in [3, 1, 2] {
        let mut claim = claim(number, 1, now);
        claim.keep_until = now + Duration::from_secs(number);
        assert!(store.complete(&[claim]).await[0].is_ok());
    }
    let keys = [key(1), key(2), key(3)];
    let known = store.status(&keys, now).await;
    let known: Vec<bool> = known.into_iter().flatten().map(|known| known.is_some()).collect();
    assert_eq!(known, [false, true, true]);
}

/// Checks that attributes and types are those of Powertools for AWS Lambda.
#[tokio::test]
async fn powertools_can_read_items_of_redrive() {
    let Some(table) = Table::new().await else { return };
    let now = SystemTime::now();
    let claim = claim(1, 1, now);
    assert!(table.store.claim(std::slice::from_ref(&claim)).await[0].is_ok());
    let item = table.item(1).await;
    assert_eq!(item["status"], text("INPROGRESS"));
    assert_eq!(
        item["in_progress_expiration"],
        number(since_1970(claim.expires).as_millis())
    );
    let until = number(since_1970(claim.keep_until).as_secs().into());
    assert_eq!(item["expiration"], until);
    assert!(table.store.complete(&[claim]).await[0].is_ok());
    let item = table.item(1).await;
    assert_eq!(item["status"], text("COMPLETED"));
    assert_eq!(item["expiration"], until);
}

/// Reads items without an owner, with the result of a function and a hash of another kind.
#[tokio::test]
async fn items_of_powertools_are_read() {
    let Some(table) = Table::new().await else { return };
    let now = SystemTime::now();
    let soon = since_1970(now + Duration::from_secs(60));
    let begun = [
        ("status", text("INPROGRESS")),
        ("expiration", number((soon.as_secs() + 3_600).into())),
        ("in_progress_expiration", number(soon.as_millis())),
    ];
    table.put(1, &begun).await;
    let answer = claimed(&table.store, 1, now).await.expect("the store answers");
    assert!(matches!(answer, Claimed::InProgress { .. }), "{answer:?}");
    let done = [
        ("status", text("COMPLETED")),
        ("expiration", number((soon.as_secs() + 3_600).into())),
        ("in_progress_expiration", number(soon.as_millis())),
        ("data", text("{\"charged\":true}")),
        ("validation", text("d41d8cd98f00b204e9800998ecf8427e")),
    ];
    table.put(1, &done).await;
    let answer = claimed(&table.store, 1, now).await.expect("the store answers");
    assert_eq!(answer, Claimed::Completed { payload: None });
}

#[tokio::test]
async fn unreadable_item_is_reported_with_its_key() {
    let Some(table) = Table::new().await else { return };
    table.put(1, &[("status", text("DONE"))]).await;
    let error = claimed(&table.store, 1, SystemTime::now())
        .await
        .expect_err("unreadable");
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
    assert!(error.to_string().contains(key(1).as_str()), "{error}");
}

/// DynamoDB may leave keys of a request unprocessed. The store requests them again and does not report them
/// as unknown.
#[tokio::test]
async fn unprocessed_keys_are_requested_again() {
    let Some(table) = Table::new().await else { return };
    let now = SystemTime::now();
    let claims: Vec<_> = (1..=3).map(|number| claim(number, 1, now)).collect();
    for result in table.store.claim(&claims).await {
        result.expect("claimed");
    }
    for result in table.store.complete(&claims).await {
        assert_eq!(result.expect("completed"), Completion::Stored);
    }
    let server = DynamoDbLocal::shared().expect("the server has the table");
    let proxy = Proxy::start(server.endpoint()).await.expect("a free port");
    let name = table.name.clone();
    proxy.script(move |call| match call.number {
        // The first answer has two of the three items, the second answer none.
        1 | 2 if call.target == "BatchGetItem" => {
            let (name, asked) = (name.clone(), call.body["RequestItems"][&name].clone());
            let kept = if call.number == 1 { 2 } else { 0 };
            Fault::Rewrite(Box::new(move |reply| {
                let items = reply["Responses"][&name].as_array_mut().expect("items");
                items.truncate(kept);
                let ids: Vec<Value> = items.iter().map(|item| item["id"].clone()).collect();
                let mut left = asked.clone();
                let keys = left["Keys"].as_array_mut().expect("keys");
                keys.retain(|key| !ids.contains(&key["id"]));
                reply["UnprocessedKeys"] = json!({name: left});
            }))
        }
        _ => Fault::None,
    });
    let store = DynamoDb::new(dynamodb_client(proxy.endpoint()), table.name.as_str());
    let keys: Vec<_> = (1..=4).map(key).collect();
    let found = store.status(&keys, now).await;
    let completed =
        |found: &Result<Option<Claimed>, StoreError>| matches!(found, Ok(Some(Claimed::Completed { .. })));
    assert_eq!(found.iter().filter(|it| completed(it)).count(), 3, "{found:?}");
    assert!(matches!(found[3], Ok(None)), "{found:?}");
    assert_eq!(proxy.calls("BatchGetItem").len(), 3);
}

#[tokio::test]
async fn a_table_of_another_program_is_refused() {
    let Some(server) = DynamoDbLocal::shared() else {
        return;
    };
    let checkpoints = redrive::checkpoint::DynamoDb::new(server.client(), "leases-of-another");
    let key = redrive::checkpoint::ShardKey::new("billing", "orders", "shardId-0".into());
    assert!(redrive::checkpoint::CheckpointStore::load(&checkpoints, &[key]).await[0].is_ok());
    let keys = DynamoDb::new(server.client(), "leases-of-another");
    let error = keys.create_table().await.expect_err("the table has another key");
    let text = std::error::Error::source(&error).expect("why").to_string();
    assert!(text.contains("is not a table of idempotency keys"), "{text}");
}

#[tokio::test]
async fn table_is_created_only_on_request() {
    let Some(table) = Table::new().await else { return };
    table.store.create_table().await.expect("the table exists");
    let missing = DynamoDb::new(table.client.clone(), "missing-table");
    let error = claimed(&missing, 1, SystemTime::now())
        .await
        .expect_err("no table");
    assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
}
