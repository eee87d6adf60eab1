//! Tests of the checkpoint stores: the conformance suite for all stores, and tests of single stores.

use crate::conformance::stores::{ahead, at, key, load, save};
use redrive::Position;
use redrive::checkpoint::{Checkpoint, CheckpointError, CheckpointStore, Memory, Redb};
use tempfile::TempDir;

crate::store_conformance!(memory, async { (Memory::new(), ()) });
crate::store_conformance!(redb, async { redb_in_a_new_folder() });
crate::store_conformance!(shared, async { (std::sync::Arc::new(Memory::new()), ()) });

fn redb_in_a_new_folder() -> (Redb, TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let store = Redb::open(folder.path().join("checkpoints.redb")).expect("the store opens");
    (store, folder)
}

#[tokio::test]
async fn redb_keeps_checkpoints_over_a_restart() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("checkpoints.redb");
    let base = at(100, 2);
    let rows = [
        (
            key(1),
            Checkpoint::at(base.clone()).with_ahead(ahead(&base, &[(101, 110)], 200)),
        ),
        (key(2), Checkpoint::at(Position::ShardEnd)),
        (key(3), Checkpoint::at(Position::TrimHorizon)),
    ];
    let store = Redb::open(&path).expect("the store opens");
    save(&store, &rows).await;
    drop(store);

    let store = Redb::open(&path).expect("the store opens again");
    for (key, checkpoint) in rows {
        assert_eq!(load(&store, &key).await, Some(checkpoint));
    }
    assert_eq!(load(&store, &key(4)).await, None);
}

#[tokio::test]
async fn redb_is_opened_once_and_shared_by_its_clones() {
    let (store, folder) = redb_in_a_new_folder();
    let second = Redb::open(folder.path().join("checkpoints.redb"));
    assert!(matches!(second, Err(CheckpointError::InUse { .. })), "{second:?}");
    save(&store.clone(), &[(key(1), Checkpoint::at(at(5, 0)))]).await;
    assert_eq!(load(&store, &key(1)).await, Some(Checkpoint::at(at(5, 0))));
}

#[tokio::test]
async fn redb_refuses_a_foreign_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("checkpoints.redb");
    std::fs::write(&path, vec![b'x'; 10_000]).expect("the file is written");
    let opened = Redb::open(&path);
    assert!(matches!(opened, Err(CheckpointError::Unusable(_))), "{opened:?}");
}

#[tokio::test]
async fn stores_can_be_trait_objects() {
    let store: std::sync::Arc<dyn CheckpointStore> = std::sync::Arc::new(Memory::new());
    save(&store, &[(key(1), Checkpoint::at(at(5, 0)))]).await;
    assert_eq!(load(&store, &key(1)).await, Some(Checkpoint::at(at(5, 0))));
}

/// An operator moves a position by editing the file. Every record behind the new position is delivered again,
/// because what was settled ahead of the old position is void.
#[tokio::test]
async fn edited_position_redelivers_every_record() {
    use ::redb::ReadableTable;
    use redrive::pipeline::{Batch, Pipeline};
    use redrive::{Record, Resilient, processor_with};
    use std::sync::{Arc, Mutex};

    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("checkpoints.redb");
    let store = Redb::open(&path).expect("the store opens");
    let base = at(100, 0);
    let row = Checkpoint::at(base.clone()).with_ahead(ahead(&base, &[(103, 105)], 110));
    save(&store, &[(key(1), row)]).await;

    let read_on = async |from: Checkpoint| {
        let called = Arc::new(Mutex::new(Vec::new()));
        let handler = async |called: Arc<Mutex<Vec<u64>>>, record: Record| -> Result<(), std::io::Error> {
            let number = record.sequence_number().as_str().parse().expect("a small number");
            called.lock().expect("no panic while locked").push(number);
            Ok(())
        };
        let resilient = Resilient::builder("billing", processor_with(called.clone(), handler));
        let resilient = resilient.without_dead_letters().build().expect("valid");
        let records = (90..=112).map(|number: u64| {
            Record::builder("orders", "shardId-1".into(), number.into())
                .partition_key(number.to_string())
                .build()
        });
        let batches = futures_util::stream::iter([Batch::from(records.collect::<Vec<_>>())]);
        let pipeline = Pipeline::default();
        let never = std::future::pending();
        let run = pipeline.run_until(&resilient, batches, from, |_| async {}, never);
        assert!(run.await.expect("nothing halts").complete);
        let mut called = called.lock().expect("no panic while locked").clone();
        called.sort_unstable();
        called
    };
    let stored = load(&store, &key(1)).await.expect("a row");
    assert_eq!(read_on(stored).await, [103, 104, 105, 111, 112]);

    drop(store);
    {
        let database = ::redb::Database::open(&path).expect("the store opens");
        let table = ::redb::TableDefinition::<(&str, &str, &str), &[u8]>::new("checkpoints");
        let change = database.begin_write().expect("a transaction");
        {
            let mut table = change.open_table(table).expect("the table");
            let key = key(1);
            let at = (&*key.application, &*key.stream, key.shard.as_str());
            let row = table.get(at).expect("readable").expect("a row").value().to_vec();
            let row = String::from_utf8(row).expect("JSON");
            assert!(row.contains("ahead"), "{row}");
            let rewound = row.replace("\"100\"", "\"95\"");
            assert_ne!(row, rewound);
            table.insert(at, rewound.as_bytes()).expect("written");
        }
        change.commit().expect("committed");
    }
    let store = Redb::open(&path).expect("the store opens again");
    let stored = load(&store, &key(1)).await.expect("a row");
    assert_eq!(stored, Checkpoint::at(at(95, 0)));
    assert_eq!(read_on(stored).await, (96..=112).collect::<Vec<u64>>());
}
