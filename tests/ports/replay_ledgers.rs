//! Tests of the replay ledgers: a conformance suite for all ledgers, and tests of single ledgers.

use std::sync::Arc;
use std::time::Duration;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::AttributeValue;
use bytes::Bytes;
use redrive::ledger_conformance;
use redrive::replay::Ledger;
use redrive::replay::ledger::{DynamoDb, Key, LedgerError, Memory, Redb, State};
use redrive::testing::ledgers::{Harness, entry, key};
use support::dynamodb::DynamoDbLocal;
use support::emulator::unique;
use tempfile::TempDir;

ledger_conformance!(memory, async { InMemory(Memory::new()) });
ledger_conformance!(shared, async { InMemory(Arc::new(Memory::new())) });
ledger_conformance!(redb_file, async {
    InAFolder(tempfile::tempdir().expect("a folder"))
});
ledger_conformance!(dynamodb_table, optional async { Table::new() });

struct InMemory<L>(L);

impl<L: Ledger + Clone> Harness for InMemory<L> {
    type Ledger = L;

    async fn open(&self) -> L {
        self.0.clone()
    }

    fn survives_restart(&self) -> bool {
        false
    }
}

struct InAFolder(TempDir);

impl Harness for InAFolder {
    type Ledger = Redb;

    async fn open(&self) -> Redb {
        Redb::open(self.0.path().join("replay.redb")).expect("the ledger opens")
    }
}

/// A table that belongs to one test, on the shared server. The first use of a ledger creates the table.
struct Table {
    client: Client,
    name: String,
}

impl Table {
    fn new() -> Option<Self> {
        Some(Table {
            client: DynamoDbLocal::shared()?.client(),
            name: unique("replay-ledger"),
        })
    }
}

impl Harness for Table {
    type Ledger = DynamoDb;

    async fn open(&self) -> DynamoDb {
        DynamoDb::new(self.client.clone(), self.name.as_str())
    }

    /// Moves the expiry times of the locks into the past.
    async fn pass(&self, time: Duration) {
        let items = self.client.scan().table_name(&self.name).send().await;
        for mut item in items.expect("the table").items.unwrap_or_default() {
            if !item["id"].as_s().expect("a text").starts_with("lock/") {
                continue;
            }
            let until = item["expiration"].as_n().expect("a number");
            let until: u64 = until.parse().expect("seconds");
            let earlier = AttributeValue::N((until - time.as_secs()).to_string());
            item.insert("expiration".to_owned(), earlier);
            let put = self.client.put_item().table_name(&self.name).set_item(Some(item));
            put.send().await.expect("written");
        }
    }
}

fn redb() -> (Redb, TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let ledger = Redb::open(folder.path().join("replay.redb")).expect("the ledger opens");
    (ledger, folder)
}

#[tokio::test]
async fn file_has_one_process_and_survives_a_restart() {
    let (ledger, folder) = redb();
    let path = folder.path().join("replay.redb");
    ledger
        .write(&[(key(1), entry(1, State::Done))])
        .await
        .expect("written");
    let second = Redb::open(&path).expect_err("the file is open");
    assert!(matches!(second, LedgerError::InUse { .. }), "{second:?}");
    assert!(second.to_string().contains("another process"), "{second}");
    drop(ledger);
    let ledger = Redb::open(&path).expect("the ledger opens");
    let known = ledger.look_up(&[key(1)]).await.expect("the ledger answers");
    assert_eq!(known, [Some(entry(1, State::Done))]);
    let none = Redb::open(folder.path().join("no/such/folder")).expect_err("there is no folder");
    assert!(matches!(none, LedgerError::Unusable(_)), "{none:?}");
}

#[tokio::test]
async fn table_is_created_with_time_to_live() {
    let Some(server) = DynamoDbLocal::shared() else {
        return;
    };
    let (client, name) = (server.client(), unique("replay-ledger"));
    let ledger = DynamoDb::new(client.clone(), name.as_str());
    ledger
        .write(&[(key(1), entry(1, State::Done))])
        .await
        .expect("written");
    let described = client.describe_time_to_live().table_name(name).send().await;
    let described = described.expect("the table exists").time_to_live_description;
    let attribute = described.and_then(|it| it.attribute_name);
    assert_eq!(attribute.as_deref(), Some("expiration"));
}

#[tokio::test]
async fn table_of_another_program_is_refused() {
    let Some(server) = DynamoDbLocal::shared() else {
        return;
    };
    let (client, name) = (server.client(), unique("leases"));
    let leases = redrive::checkpoint::DynamoDb::new(client.clone(), name.as_str());
    let shard = redrive::checkpoint::ShardKey::new("billing", "orders", "shardId-0".into());
    assert!(redrive::checkpoint::CheckpointStore::load(&leases, &[shard]).await[0].is_ok());
    let ledger = DynamoDb::new(client, name);
    let error = ledger.look_up(&[key(1)]).await.expect_err("refused");
    assert!(matches!(error, LedgerError::Unusable(_)), "{error:?}");
    let error = ledger.lock("file:a", "one").await.expect_err("refused");
    let text = std::error::Error::source(&error).expect("a reason").to_string();
    assert!(text.contains("is not a replay ledger"), "{text}");
}

#[tokio::test]
async fn lock_in_a_table_has_a_lock_time() {
    let Some(table) = Table::new() else { return };
    let ledger = table.open().await;
    let time = ledger.lock_time().expect("the lock of a table expires");
    assert!(time >= Duration::from_secs(30));
    ledger.lock("file:a", "one").await.expect("the lock is free");
    ledger
        .lock("file:a", "two")
        .await
        .expect_err("another owner has the lock");
}

#[test]
fn record_key_depends_on_partition_key_and_payload() {
    let of = |key: Option<&str>, payload: &'static str| {
        Key::record("kinesis:orders", key, &Bytes::from_static(payload.as_bytes()))
    };
    assert_eq!(of(Some("a"), "bc"), of(Some("a"), "bc"));
    assert_ne!(of(Some("a"), "bc"), of(Some("ab"), "c"));
    assert_ne!(of(Some(""), "x"), of(None, "x"));
    assert!(!of(Some("alice"), "secret").as_str().contains("alice"));
}
