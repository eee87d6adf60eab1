//! Tests of the idempotency stores: the conformance suite for all stores, and tests of single stores.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::AttributeValue;
use redrive::idempotency::{
    Claimed, Completion, DynamoDb, IdempotencyStore, Memory, Redb, Status, StoreError,
};
use redrive::idempotency_conformance;
use redrive::testing::idempotency::{Harness, claim, key};
use serde_json::{Value, json};
use support::dynamodb::{DynamoDbLocal, client as dynamodb_client};
use support::emulator::unique;
use support::proxy::{Fault, Proxy};
use tempfile::TempDir;

idempotency_conformance!(memory, async { InMemory(Memory::new()) });
idempotency_conformance!(shared, async { InMemory(Arc::new(Memory::new())) });
idempotency_conformance!(redb, async { InAFolder(tempfile::tempdir().expect("a folder")) });
idempotency_conformance!(dynamodb, optional Table::new());

struct InMemory<S>(S);

impl<S: IdempotencyStore + Clone> Harness for InMemory<S> {
    type Store = S;

    async fn open(&self) -> S {
        self.0.clone()
    }

    fn survives_restart(&self) -> bool {
        false
    }
}

struct InAFolder(TempDir);

impl Harness for InAFolder {
    type Store = Redb;

    async fn open(&self) -> Redb {
        Redb::open(self.0.path().join("seen.redb")).expect("the store opens")
    }
}

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

    /// Lets the store create its table.
    async fn create(&self) {
        let known = self.store.status(&[key(1)], SystemTime::now()).await.remove(0);
        assert_eq!(known.expect("the store answers"), None);
    }

    /// Starts a proxy in front of the server, and creates a second store on the table behind the proxy.
    async fn behind_proxy(&self) -> (Proxy, DynamoDb) {
        let server = DynamoDbLocal::shared().expect("the server has the table");
        let proxy = Proxy::start(server.endpoint()).await.expect("a free port");
        let store = DynamoDb::new(dynamodb_client(proxy.endpoint()), self.name.as_str());
        (proxy, store)
    }

    /// Returns the attribute of the table's time to live, if enabled.
    async fn time_to_live(&self) -> Option<String> {
        let call = self.client.describe_time_to_live().table_name(&self.name);
        let reply = call.send().await.expect("the table exists");
        reply.time_to_live_description?.attribute_name
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

impl Harness for Table {
    type Store = DynamoDb;

    async fn open(&self) -> DynamoDb {
        DynamoDb::new(self.client.clone(), self.name.as_str())
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
    store.claim(&[claim(key(1), owner, now)]).await.remove(0)
}

/// A file belongs to one process. After a crash the next process finds the completed keys, but no claims.
#[tokio::test]
async fn redb_keeps_completed_keys_but_no_claims_over_a_restart() {
    let now = SystemTime::now();
    let (store, folder) = redb_in_a_new_folder();
    let begun = [claim(key(1), 1, now), claim(key(2), 1, now)];
    assert!(store.claim(&begun).await.iter().all(Result::is_ok));
    let done = store.complete(&begun[1..]).await.remove(0);
    assert_eq!(done.expect("the store answers"), Completion::Stored);
    drop(store);

    let store = Redb::open(folder.path().join("seen.redb")).expect("the store opens again");
    let answers = store.claim(&[claim(key(1), 2, now), claim(key(2), 2, now)]).await;
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
    let claims: Vec<_> = (0..100).map(|number| claim(key(number), 1, now)).collect();
    assert!(store.complete(&claims).await.iter().all(Result::is_ok));
    let later = now + Duration::from_secs(3 * 24 * 60 * 60);
    for number in 100..110 {
        let completed = store.complete(&[claim(key(number), 1, later)]).await;
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
        let mut claim = claim(key(number), 1, now);
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
    let claim = claim(key(1), 1, now);
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
    table.create().await;
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
    table.create().await;
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
    let claims: Vec<_> = (1..=3).map(|number| claim(key(number), 1, now)).collect();
    for result in table.store.claim(&claims).await {
        result.expect("claimed");
    }
    for result in table.store.complete(&claims).await {
        assert_eq!(result.expect("completed"), Completion::Stored);
    }
    let (proxy, store) = table.behind_proxy().await;
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
    let keys: Vec<_> = (1..=4).map(key).collect();
    let found = store.status(&keys, now).await;
    let completed =
        |found: &Result<Option<Status>, StoreError>| matches!(found, Ok(Some(Status::Completed { .. })));
    assert_eq!(found.iter().filter(|it| completed(it)).count(), 3, "{found:?}");
    assert!(matches!(found[3], Ok(None)), "{found:?}");
    assert_eq!(proxy.calls("BatchGetItem").len(), 3);
}

#[tokio::test]
async fn read_without_any_processed_key_fails_in_the_end() {
    let Some(table) = Table::new().await else { return };
    table.create().await;
    let (proxy, store) = table.behind_proxy().await;
    let name = table.name.clone();
    proxy.script(move |call| match call.target.as_str() {
        "BatchGetItem" => {
            let left = json!({&name: call.body["RequestItems"][&name]});
            Fault::Reply(200, json!({"Responses": {}, "UnprocessedKeys": left}))
        }
        _ => Fault::None,
    });
    let known = store.status(&[key(1)], SystemTime::now()).await.remove(0);
    let error = known.expect_err("throttled");
    let text = std::error::Error::source(&error).expect("a reason").to_string();
    assert!(text.ends_with("are throttled; raise its read capacity"), "{text}");
    assert_eq!(proxy.calls("BatchGetItem").len(), 6);
}

#[tokio::test]
async fn table_of_another_program_is_refused() {
    let Some(table) = Table::new().await else { return };
    let leases = redrive::checkpoint::DynamoDb::new(table.client.clone(), table.name.as_str());
    let shard = redrive::checkpoint::ShardKey::new("billing", "orders", "shardId-0".into());
    assert!(redrive::checkpoint::CheckpointStore::load(&leases, &[shard]).await[0].is_ok());
    let (now, claims) = (
        SystemTime::now(),
        [
            claim(key(1), 1, SystemTime::now()),
            claim(key(2), 1, SystemTime::now()),
        ],
    );
    let errors = [
        table
            .store
            .claim(&claims)
            .await
            .into_iter()
            .filter_map(Result::err)
            .collect::<Vec<_>>(),
        table
            .store
            .complete(&claims)
            .await
            .into_iter()
            .filter_map(Result::err)
            .collect(),
        table
            .store
            .release(&claims)
            .await
            .into_iter()
            .filter_map(Result::err)
            .collect(),
        table
            .store
            .status(&[key(1), key(2)], now)
            .await
            .into_iter()
            .filter_map(Result::err)
            .collect(),
    ];
    for errors in errors {
        assert_eq!(errors.len(), 2, "{errors:?}");
        for error in errors {
            assert!(matches!(error, StoreError::Unusable(_)), "{error:?}");
            let text = std::error::Error::source(&error).expect("a reason").to_string();
            assert!(text.contains("is not a table of idempotency keys"), "{text}");
        }
    }
}

/// Two processes meet a missing table at the same time.
#[tokio::test]
async fn missing_table_is_created_by_the_first_call() {
    let Some(table) = Table::new().await else { return };
    let (proxy, other) = table.behind_proxy().await;
    let now = SystemTime::now();
    let (one, two) = tokio::join!(claimed(&table.store, 1, now), claimed(&other, 2, now));
    let answers = [one.expect("the store answers"), two.expect("the store answers")];
    let granted = answers.iter().filter(|it| matches!(it, Claimed::Granted { .. }));
    assert_eq!(granted.count(), 1, "{answers:?}");
    assert_eq!(table.time_to_live().await.as_deref(), Some("expiration"));
    // The table is checked only once, also by clones of the store.
    let checks = proxy.calls("DescribeTable").len();
    for number in 2..5 {
        let known = other.clone().status(&[key(number)], now).await.remove(0);
        assert_eq!(known.expect("the store answers"), None);
    }
    assert_eq!(proxy.calls("DescribeTable").len(), checks);
}

#[tokio::test]
async fn existing_table_costs_one_check() {
    let Some(table) = Table::new().await else { return };
    table.create().await;
    let (proxy, store) = table.behind_proxy().await;
    let now = SystemTime::now();
    assert!(claimed(&store, 1, now).await.is_ok());
    assert!(store.complete(&[claim(key(1), 1, now)]).await[0].is_ok());
    assert_eq!(proxy.calls("DescribeTable").len(), 1);
    assert!(proxy.calls("CreateTable").is_empty());
    // The settings of an existing table stay as they are.
    assert!(proxy.calls("UpdateTimeToLive").is_empty());
}

#[tokio::test]
async fn role_with_item_permissions_uses_an_existing_table() {
    let Some(table) = Table::new().await else { return };
    table.create().await;
    let (proxy, store) = table.behind_proxy().await;
    proxy.script(|call| match call.target.as_str() {
        "DescribeTable" | "CreateTable" | "UpdateTimeToLive" => Fault::error(400, "AccessDeniedException"),
        _ => Fault::None,
    });
    let now = SystemTime::now();
    let granted = claimed(&store, 1, now).await.expect("the store answers");
    assert_eq!(granted, Claimed::Granted { abandoned: 0 });
    assert!(store.complete(&[claim(key(1), 1, now)]).await[0].is_ok());
    assert_eq!(proxy.calls("DescribeTable").len(), 1);

    // A table that does not exist is named by the calls for its items.
    let missing = DynamoDb::new(dynamodb_client(proxy.endpoint()), unique("missing"));
    let error = claimed(&missing, 1, now).await.expect_err("no table");
    assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
    let text = std::error::Error::source(&error).expect("a reason").to_string();
    assert!(text.contains("it does not exist"), "{text}");
}

#[tokio::test]
async fn denied_creation_names_the_missing_permission() {
    let Some(table) = Table::new().await else { return };
    let (proxy, store) = table.behind_proxy().await;
    proxy.script(|call| match call.target.as_str() {
        "CreateTable" => Fault::error(400, "AccessDeniedException"),
        _ => Fault::None,
    });
    let error = claimed(&store, 1, SystemTime::now()).await.expect_err("denied");
    assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
    let text = std::error::Error::source(&error).expect("a reason").to_string();
    assert!(text.ends_with("the role needs dynamodb:CreateTable"), "{text}");
}

/// The first call fails after it has created the table. A later call enables the time to live.
#[tokio::test]
async fn interrupted_creation_is_finished_by_a_later_call() {
    let Some(table) = Table::new().await else { return };
    let (proxy, store) = table.behind_proxy().await;
    proxy.script(|call| match (call.target.as_str(), call.number) {
        ("DescribeTable", 2) | ("UpdateTimeToLive", 1) => Fault::error(500, "InternalServerError"),
        _ => Fault::None,
    });
    let now = SystemTime::now();
    for _ in 0..2 {
        let error = claimed(&store, 1, now).await.expect_err("the check fails");
        assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
    }
    assert!(claimed(&store, 1, now).await.is_ok());
    assert_eq!(proxy.calls("CreateTable").len(), 1);
    assert_eq!(table.time_to_live().await.as_deref(), Some("expiration"));
}

#[tokio::test]
async fn denied_time_to_live_does_not_stop_the_store() {
    let Some(table) = Table::new().await else { return };
    let (proxy, store) = table.behind_proxy().await;
    proxy.script(|call| match call.target.as_str() {
        "UpdateTimeToLive" => Fault::error(400, "AccessDeniedException"),
        _ => Fault::None,
    });
    let now = SystemTime::now();
    assert!(claimed(&store, 1, now).await.is_ok());
    assert!(claimed(&store, 1, now).await.is_ok());
    assert_eq!(proxy.calls("UpdateTimeToLive").len(), 1);
}

#[tokio::test]
async fn redb_file_has_one_process() {
    let (store, folder) = redb_in_a_new_folder();
    let path = folder.path().join("seen.redb");
    let second = Redb::open(&path);
    assert!(matches!(second, Err(StoreError::InUse { .. })), "{second:?}");
    drop(store);
    assert!(Redb::open(&path).is_ok());
    let opened = Redb::open(folder.path().join("no/such/folder"));
    assert!(matches!(opened, Err(StoreError::Unusable(_))), "{opened:?}");
}
