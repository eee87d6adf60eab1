//! Tests of the checkpoint stores: the conformance suite for all stores, and tests of single stores.

use std::sync::Arc;

use redrive::checkpoint::{Checkpoint, CheckpointError, CheckpointStore, Memory, Redb};
use redrive::checkpoint_conformance;
use redrive::testing::checkpoints::{Harness, at, key, load, save, settled_ahead};
use tempfile::TempDir;

checkpoint_conformance!(memory, async { InMemory(Memory::new()) });
checkpoint_conformance!(shared, async { InMemory(Arc::new(Memory::new())) });
checkpoint_conformance!(redb, async { InAFolder(tempfile::tempdir().expect("a folder")) });

struct InMemory<S>(S);

impl<S: CheckpointStore + Clone> Harness for InMemory<S> {
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
        Redb::open(self.0.path().join("checkpoints.redb")).expect("the store opens")
    }
}

fn redb_in_a_new_folder() -> (Redb, TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let store = Redb::open(folder.path().join("checkpoints.redb")).expect("the store opens");
    (store, folder)
}

#[tokio::test]
async fn redb_is_opened_once_and_shared_by_its_clones() {
    let (store, folder) = redb_in_a_new_folder();
    let second = Redb::open(folder.path().join("checkpoints.redb"));
    assert!(matches!(second, Err(CheckpointError::InUse { .. })), "{second:?}");
    save(&store.clone(), &[(key(1), Checkpoint::at(at(5)))]).await;
    assert_eq!(load(&store, &key(1)).await, Some(Checkpoint::at(at(5))));
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
    let store: Arc<dyn CheckpointStore> = Arc::new(Memory::new());
    save(&store, &[(key(1), Checkpoint::at(at(5)))]).await;
    assert_eq!(load(&store, &key(1)).await, Some(Checkpoint::at(at(5))));
}

/// An operator moves a position by editing the file. Every record behind the new position is delivered again,
/// because what was settled ahead of the old position is void.
#[tokio::test]
async fn edited_position_redelivers_every_record() {
    use ::redb::ReadableTable;
    use redrive::pipeline::{Batch, Pipeline};
    use redrive::{Record, Resilient, processor_with};
    use std::sync::Mutex;

    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("checkpoints.redb");
    let store = Redb::open(&path).expect("the store opens");
    let row = Checkpoint::at(at(100)).with_ahead(settled_ahead(at(100), &[103..=105], 110));
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
    assert_eq!(stored, Checkpoint::at(at(95)));
    assert_eq!(read_on(stored).await, (96..=112).collect::<Vec<u64>>());
}
