//! Tests of the replay ledgers: a conformance suite for all ledgers, and tests of single ledgers.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use redrive::replay::Ledger;
use redrive::replay::ledger::{DynamoDb, Entry, Key, LedgerError, Memory, Redb, State};
use redrive::testing::sinks::letter;
use support::dynamodb::DynamoDbLocal;
use support::emulator::unique;
use tempfile::TempDir;

fn redb() -> (Redb, TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let ledger = Redb::open(folder.path().join("replay.redb")).expect("the ledger opens");
    (ledger, folder)
}

/// Creates a ledger on the shared server. Its first use creates the table.
async fn dynamodb() -> Option<DynamoDb> {
    let client = DynamoDbLocal::shared()?.client();
    Some(DynamoDb::new(client, unique("replay-ledger")))
}

fn key(number: u64) -> Key {
    Key::letter("kinesis:orders", letter(number, None, "").id)
}

fn entry(number: u64, state: State) -> Entry {
    let origin = letter(number, None, "").origin;
    let at = SystemTime::UNIX_EPOCH + Duration::from_millis(1_790_000_000_123 + number);
    Entry {
        state,
        origin,
        count: number as u32,
        letter_at: at - Duration::from_secs(5),
        run: format!("run-{number}"),
        at,
    }
}

async fn last_written_entry_is_returned(ledger: impl Ledger) {
    assert_eq!(
        ledger
            .look_up(&[key(1), key(2)])
            .await
            .expect("the ledger answers"),
        [None, None]
    );
    let entries: Vec<_> = (0..250).map(|i| (key(i), entry(i, State::Begun))).collect();
    ledger.write(&entries).await.expect("written");
    ledger
        .write(&[(key(7), entry(8, State::Done))])
        .await
        .expect("written");
    // The results follow the order of the request. One key is requested twice.
    let keys: Vec<Key> = (0..260).rev().map(key).chain([key(7)]).collect();
    let known = ledger.look_up(&keys).await.expect("the ledger answers");
    assert_eq!(known.len(), 261);
    for (number, known) in (0..260).rev().zip(&known) {
        let expected = match number {
            7 => Some(entry(8, State::Done)),
            250.. => None,
            _ => Some(entry(number, State::Begun)),
        };
        assert_eq!(*known, expected, "{number}");
    }
    assert_eq!(known[260], Some(entry(8, State::Done)));
    ledger.write(&[]).await.expect("nothing to write");
    assert!(ledger.look_up(&[]).await.expect("the ledger answers").is_empty());
}

async fn source_has_one_owner(ledger: impl Ledger) {
    ledger.lock("file:a", "one").await.expect("the lock is free");
    ledger
        .lock("file:a", "one")
        .await
        .expect("the owner may lock again");
    let held = ledger
        .lock("file:a", "two")
        .await
        .expect_err("another owner has the lock");
    assert!(
        matches!(&held, LedgerError::Locked { owner, .. } if owner == "one"),
        "{held:?}"
    );
    ledger.lock("file:b", "two").await.expect("another source");
    // Only the owner releases a lock.
    ledger.unlock("file:a", "two").await.expect("nothing happens");
    ledger
        .lock("file:a", "two")
        .await
        .expect_err("the first owner still has the lock");
    ledger.unlock("file:a", "one").await.expect("released");
    ledger.lock("file:a", "two").await.expect("the lock is free");
}

macro_rules! ledger_conformance {
    ($name:ident, $fresh:expr) => {
        mod $name {
            use super::*;

            #[tokio::test]
            async fn last_written_entry_is_returned() {
                let Some((ledger, _kept)) = $fresh else {
                    return;
                };
                super::last_written_entry_is_returned(ledger).await;
            }

            #[tokio::test]
            async fn source_has_one_owner() {
                let Some((ledger, _kept)) = $fresh else {
                    return;
                };
                super::source_has_one_owner(ledger).await;
            }
        }
    };
}

ledger_conformance!(memory, Some((Memory::new(), ())));
ledger_conformance!(shared, Some((Arc::new(Memory::new()), ())));
ledger_conformance!(redb_file, Some(redb()));
ledger_conformance!(dynamodb_table, dynamodb().await.map(|ledger| (ledger, ())));

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
    let Some(ledger) = dynamodb().await else { return };
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
