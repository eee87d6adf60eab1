//! Checks of keys, of requests with many shards, and of concurrent requests.

use std::pin::pin;

use futures_util::future::join_all;
use tokio::task::yield_now;

use super::{Harness, at, full_checkpoint, key, load, save};
use crate::checkpoint::{Checkpoint, CheckpointStore, ShardKey};
use crate::record::Position;

/// A shard without a checkpoint has none, whatever other shards have.
pub async fn unknown_shard_has_no_checkpoint(harness: &impl Harness) {
    let store = harness.open().await;
    assert_eq!(load(&store, &key(1)).await, None);
    save(&store, &[(key(1), Checkpoint::at(at(5)))]).await;
    assert_eq!(load(&store, &key(2)).await, None);
}

/// A saved checkpoint is loaded, and loading changes nothing.
pub async fn saved_checkpoint_is_loaded(harness: &impl Harness) {
    let store = harness.open().await;
    let checkpoint = Checkpoint::at(at(5));
    save(&store, &[(key(1), checkpoint.clone())]).await;
    for _ in 0..2 {
        assert_eq!(load(&store, &key(1)).await, Some(checkpoint.clone()));
    }
}

/// The last saved checkpoint is loaded, also if its position is an earlier one.
pub async fn last_save_wins(harness: &impl Harness) {
    let store = harness.open().await;
    for number in [5, 900, 30] {
        save(&store, &[(key(1), Checkpoint::at(at(number)))]).await;
    }
    assert_eq!(load(&store, &key(1)).await, Some(Checkpoint::at(at(30))));
}

/// Two keys never share a checkpoint. A store that [serves one stream](Harness::serves_one_stream) returns no
/// checkpoint for a shard of the same name in another stream.
pub async fn applications_streams_and_shards_are_separate(harness: &impl Harness) {
    let store = harness.open().await;
    if harness.serves_one_stream() {
        let rows = [1, 10, 11].map(|shard| (key(shard), Checkpoint::at(at(shard))));
        save(&store, &rows).await;
        for (key, checkpoint) in rows {
            assert_eq!(load(&store, &key).await, Some(checkpoint), "{key:?}");
        }
        let foreign = ShardKey::new("billing", "payments", key(1).shard);
        let loaded = store.load(&[foreign]).await.remove(0);
        assert!(!matches!(loaded, Ok(Some(_))), "of another stream: {loaded:?}");
        return;
    }
    let names = ["a", "b", "ab", "", "a/b", "a:b", "grün"];
    let mut rows = Vec::new();
    for application in names {
        for stream in names {
            for shard in names {
                let key = ShardKey::new(application, stream, shard.into());
                rows.push((key, Checkpoint::at(at(rows.len() as u64))));
            }
        }
    }
    save(&store, &rows).await;
    for (key, checkpoint) in rows {
        assert_eq!(load(&store, &key).await, Some(checkpoint), "{key:?}");
    }
}

/// Loads return one result for each shard, in the order of the shards.
pub async fn results_follow_the_order_of_the_request(harness: &impl Harness) {
    let store = harness.open().await;
    let rows = [3, 1].map(|shard| (key(shard), Checkpoint::at(at(shard * 11))));
    save(&store, &rows).await;
    let loaded = store.load(&[key(1), key(2), key(3), key(1)]).await;
    let loaded: Vec<_> = loaded
        .into_iter()
        .map(|result| result.expect("the store answers"))
        .collect();
    let expected = [Some(11), None, Some(33), Some(11)];
    assert_eq!(
        loaded,
        expected.map(|number| number.map(|number| Checkpoint::at(at(number))))
    );
}

/// A request without shards returns no results.
pub async fn empty_request_has_no_results(harness: &impl Harness) {
    let store = harness.open().await;
    assert!(store.load(&[]).await.is_empty());
    assert!(store.save(&[]).await.is_empty());
    save(&store, &[(key(1), Checkpoint::at(at(1)))]).await;
    assert!(store.load(&[]).await.is_empty());
}

/// A request may have more shards than a service accepts in one call.
pub async fn many_shards_are_saved_at_once(harness: &impl Harness) {
    let store = harness.open().await;
    let rows: Vec<_> = (0..500)
        .map(|shard| (key(shard), Checkpoint::at(at(shard * 7))))
        .collect();
    save(&store, &rows).await;
    let keys: Vec<_> = rows.iter().map(|(key, _)| key.clone()).collect();
    let loaded = store.load(&keys).await;
    assert_eq!(loaded.len(), rows.len(), "one result for each shard");
    for (result, (_, checkpoint)) in loaded.into_iter().zip(rows) {
        assert_eq!(result.expect("the store answers"), Some(checkpoint));
    }
}

/// Concurrent saves of different shards are all kept.
pub async fn concurrent_saves_are_all_kept(harness: &impl Harness) {
    let store = harness.open().await;
    let rows: Vec<_> = (0..40)
        .map(|shard| [(key(shard), Checkpoint::at(at(shard + 1)))])
        .collect();
    join_all(rows.iter().map(|row| save(&store, row))).await;
    for [(key, checkpoint)] in rows {
        assert_eq!(load(&store, &key).await, Some(checkpoint));
    }
}

/// All parts of a loaded checkpoint come from the same save, also during concurrent saves.
pub async fn concurrent_saves_of_a_shard_do_not_mix(harness: &impl Harness) {
    let store = harness.open().await;
    let saved = [full_checkpoint(100), full_checkpoint(300)];
    save(&store, &[(key(1), saved[0].clone())]).await;
    let write = |checkpoint: &Checkpoint| {
        let row = [(key(1), checkpoint.clone())];
        let store = &store;
        async move {
            for _ in 0..10 {
                save(store, &row).await;
                yield_now().await;
            }
        }
    };
    let read = async {
        for _ in 0..20 {
            let loaded = load(&store, &key(1)).await.expect("a checkpoint");
            assert!(saved.contains(&loaded), "parts of two checkpoints: {loaded:?}");
            yield_now().await;
        }
    };
    tokio::join!(write(&saved[0]), write(&saved[1]), read);
}

/// A save whose future is dropped stores the whole checkpoint or nothing. Later saves still work.
pub async fn dropped_save_is_whole_or_nothing(harness: &impl Harness) {
    let store = harness.open().await;
    let (before, dropped) = (full_checkpoint(100), [(key(1), full_checkpoint(300))]);
    save(&store, &[(key(1), before.clone())]).await;
    for polls in 1..5 {
        {
            let mut save = pin!(store.save(&dropped));
            for _ in 0..polls {
                if futures_util::poll!(save.as_mut()).is_ready() {
                    break;
                }
                yield_now().await;
            }
        }
        let loaded = load(&store, &key(1)).await.expect("a checkpoint");
        let is_whole = loaded == before || loaded == dropped[0].1;
        assert!(is_whole, "parts of two checkpoints: {loaded:?}");
    }
    save(&store, &[(key(1), before)]).await;
}

/// A confirmed checkpoint is still there after a restart, with all its parts.
pub async fn saved_checkpoints_survive_a_restart(harness: &impl Harness) {
    if !harness.survives_restart() {
        return;
    }
    let rows = [
        (key(1), full_checkpoint(100)),
        (key(2), Checkpoint::at(Position::ShardEnd)),
        (key(3), Checkpoint::at(Position::TrimHorizon)),
    ];
    let store = harness.open().await;
    save(&store, &rows).await;
    drop(store);
    let store = harness.open().await;
    for (key, checkpoint) in rows {
        assert_eq!(load(&store, &key).await, Some(checkpoint), "after a restart");
    }
    assert_eq!(load(&store, &key(4)).await, None);
}

/// A store that can list its shards returns each shard of the application and the stream once, with its
/// checkpoint, and no other shards.
pub async fn list_returns_the_shards_of_a_stream(harness: &impl Harness) {
    let store = harness.open().await;
    let list = async || store.list("billing", "orders").await.expect("the store answers");
    let Some(listed) = list().await else { return };
    assert_eq!(listed, [], "the list of an empty store");
    let rows: Vec<_> = (0..300)
        .map(|shard| (key(shard), full_checkpoint(shard)))
        .collect();
    save(&store, &rows).await;
    if !harness.serves_one_stream() {
        let others = [
            ("billing", "payments"),
            ("shipping", "orders"),
            ("billing", "orders-2"),
        ];
        let shard = || key(1).shard;
        let others = others.map(|(application, stream)| ShardKey::new(application, stream, shard()));
        save(&store, &others.map(|key| (key, Checkpoint::at(at(1))))).await;
    }
    let mut listed = list().await.expect("the store can list its shards");
    listed.sort_by(|(one, _), (other, _)| one.cmp(other));
    let expected: Vec<_> = rows
        .into_iter()
        .map(|(key, checkpoint)| (key.shard, checkpoint))
        .collect();
    assert!(listed == expected, "the list has {} of 300 shards", listed.len());
}

/// The store's name is a single line, and the store's `Debug` output has no credentials.
pub async fn name_is_fit_for_a_log(harness: &impl Harness) {
    let store = harness.open().await;
    let name = store.name();
    assert!(
        !name.is_empty() && !name.contains('\n'),
        "a single line: {name:?}"
    );
    assert!(!format!("{store:?}").contains("Credentials"));
}
