//! The checkpoint stores: the suite that all of them pass, and what each has of its own.

#![allow(missing_docs, unreachable_pub)]

mod conformance {
    pub mod stores;
}

use conformance::stores::{ahead, at, key, load, save};
use redrive::Position;
use redrive::checkpoint::{Checkpoint, CheckpointError, CheckpointStore, Memory, Redb};
use tempfile::TempDir;

store_conformance!(memory, async { (Memory::new(), ()) });
store_conformance!(redb, async { redb_in_a_new_folder() });
store_conformance!(shared, async { (std::sync::Arc::new(Memory::new()), ()) });

fn redb_in_a_new_folder() -> (Redb, TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let store = Redb::open(folder.path().join("checkpoints.redb")).expect("it opens");
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
    let store = Redb::open(&path).expect("it opens");
    save(&store, &rows).await;
    drop(store);

    let store = Redb::open(&path).expect("it opens again");
    for (key, checkpoint) in rows {
        assert_eq!(load(&store, &key).await, Some(checkpoint));
    }
    assert_eq!(load(&store, &key(4)).await, None);
}

#[tokio::test]
async fn redb_is_opened_once_and_shared_by_its_clones() {
    let (store, folder) = redb_in_a_new_folder();
    let second = Redb::open(folder.path().join("checkpoints.redb"));
    assert!(
        matches!(second, Err(CheckpointError::Unavailable(_))),
        "{second:?}"
    );
    save(&store.clone(), &[(key(1), Checkpoint::at(at(5, 0)))]).await;
    assert_eq!(load(&store, &key(1)).await, Some(Checkpoint::at(at(5, 0))));
}

#[tokio::test]
async fn redb_opens_no_foreign_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("checkpoints.redb");
    std::fs::write(&path, vec![b'x'; 10_000]).expect("it is written");
    let opened = Redb::open(&path);
    assert!(
        matches!(opened, Err(CheckpointError::Unavailable(_))),
        "{opened:?}"
    );
}

#[tokio::test]
async fn stores_are_held_as_trait_objects() {
    let store: std::sync::Arc<dyn CheckpointStore> = std::sync::Arc::new(Memory::new());
    save(&store, &[(key(1), Checkpoint::at(at(5, 0)))]).await;
    assert_eq!(load(&store, &key(1)).await, Some(Checkpoint::at(at(5, 0))));
}
