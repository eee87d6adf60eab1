//! The conformance suite of checkpoint stores.

use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use redrive::checkpoint::{
    Checkpoint, CheckpointError, CheckpointStore, CrashCount, InFlightRecord, SettledAhead, ShardKey,
};
use redrive::{Position, Record, SequenceNumber};

/// Runs the suite: one test for each check, each with a new store.
///
/// `$fresh` creates an empty store and a value that must live as long as the store.
#[macro_export]
macro_rules! store_conformance {
    ($adapter:ident, $fresh:expr) => {
        $crate::store_conformance!(
            $adapter,
            $fresh,
            [
                unknown_shard_has_no_checkpoint,
                saved_checkpoint_is_loaded,
                last_save_wins,
                every_position_reads_back,
                sequence_numbers_have_129_digits,
                applications_streams_and_shards_are_separate,
                results_follow_the_order_of_the_request,
                empty_request_has_no_results,
                settled_ahead_reads_back,
                save_without_settled_ahead_clears_it,
                read_until_reads_back,
                stream_creation_time_reads_back,
                crash_counts_read_back,
                settled_ahead_of_another_position_is_dropped,
                many_shards_are_saved_at_once,
                concurrent_saves_are_all_kept,
            ]
        );
    };
    ($adapter:ident, $fresh:expr, [$($check:ident),* $(,)?]) => {
        mod $adapter {
            use super::*;
            $(
                #[tokio::test]
                async fn $check() {
                    let (store, _lives_as_long) = $fresh.await;
                    $crate::conformance::stores::$check(&store).await;
                }
            )*
        }
    };
}

pub fn key(shard: u64) -> ShardKey {
    ShardKey::new("billing", "orders", format!("shardId-{shard:012}").into())
}

pub fn at(number: u64, sub: u64) -> Position {
    Position::Record {
        sequence_number: number.into(),
        sub_sequence_number: sub,
    }
}

/// Creates the records settled after `base`: everything up to `through` except the holes. The function writes
/// the format that `SettledAhead::to_bytes` documents.
pub fn ahead(base: &Position, holes: &[(u64, u64)], through: u64) -> SettledAhead {
    fn number(out: &mut Vec<u8>, mut number: u64) {
        while number >= 0x80 {
            out.push(number as u8 | 0x80);
            number >>= 7;
        }
        out.push(number as u8);
    }
    fn place(out: &mut Vec<u8>, sequence: &SequenceNumber, sub: u64) {
        // The number shares no prefix with the number before it.
        number(out, 0);
        number(out, sequence.as_str().len() as u64);
        out.extend_from_slice(sequence.as_str().as_bytes());
        number(out, sub);
    }
    let mut out = vec![1];
    match base {
        Position::Record {
            sequence_number,
            sub_sequence_number,
        } => {
            out.push(1);
            place(&mut out, sequence_number, *sub_sequence_number);
        }
        _ => out.push(0),
    }
    place(&mut out, &through.into(), 0);
    number(&mut out, holes.len() as u64);
    for &(from, to) in holes {
        place(&mut out, &from.into(), 0);
        place(&mut out, &to.into(), 0);
    }
    SettledAhead::from_bytes(&out).expect("the bytes are well formed")
}

pub async fn save(store: &impl CheckpointStore, rows: &[(ShardKey, Checkpoint)]) {
    let results = store.save(rows).await;
    assert_eq!(results.len(), rows.len());
    for result in results {
        result.expect("the checkpoint is saved");
    }
}

pub async fn load(store: &impl CheckpointStore, key: &ShardKey) -> Option<Checkpoint> {
    let mut results: Vec<Result<_, CheckpointError>> = store.load(std::slice::from_ref(key)).await;
    assert_eq!(results.len(), 1);
    results.remove(0).expect("the store answers")
}

pub async fn unknown_shard_has_no_checkpoint(store: &impl CheckpointStore) {
    assert_eq!(load(store, &key(1)).await, None);
    save(store, &[(key(1), Checkpoint::at(at(5, 0)))]).await;
    assert_eq!(load(store, &key(2)).await, None);
}

pub async fn saved_checkpoint_is_loaded(store: &impl CheckpointStore) {
    let checkpoint = Checkpoint::at(at(5, 0));
    save(store, &[(key(1), checkpoint.clone())]).await;
    assert_eq!(load(store, &key(1)).await, Some(checkpoint.clone()));
    assert_eq!(
        load(store, &key(1)).await,
        Some(checkpoint),
        "loading changes nothing"
    );
}

pub async fn last_save_wins(store: &impl CheckpointStore) {
    for number in [5, 900, 30] {
        save(store, &[(key(1), Checkpoint::at(at(number, 0)))]).await;
    }
    assert_eq!(load(store, &key(1)).await, Some(Checkpoint::at(at(30, 0))));
}

pub async fn every_position_reads_back(store: &impl CheckpointStore) {
    let positions = [
        Position::TrimHorizon,
        at(0, 0),
        at(7, 0),
        at(7, 41),
        at(u64::MAX, u64::MAX),
        Position::ShardEnd,
    ];
    for position in positions {
        let checkpoint = Checkpoint::at(position);
        save(store, &[(key(1), checkpoint.clone())]).await;
        assert_eq!(load(store, &key(1)).await, Some(checkpoint));
    }
}

pub async fn sequence_numbers_have_129_digits(store: &impl CheckpointStore) {
    let checkpoint = Checkpoint::at(Position::Record {
        sequence_number: "9".repeat(SequenceNumber::MAX_DIGITS).parse().expect("digits"),
        sub_sequence_number: 3,
    });
    save(store, &[(key(1), checkpoint.clone())]).await;
    assert_eq!(load(store, &key(1)).await, Some(checkpoint));
}

pub async fn applications_streams_and_shards_are_separate(store: &impl CheckpointStore) {
    let names = ["a", "b", "ab", "", "a/b", "a:b", "grün"];
    let mut rows = Vec::new();
    for application in names {
        for stream in names {
            for shard in names {
                let key = ShardKey::new(application, stream, shard.into());
                rows.push((key, Checkpoint::at(at(rows.len() as u64, 0))));
            }
        }
    }
    save(store, &rows).await;
    for (key, checkpoint) in rows {
        assert_eq!(load(store, &key).await, Some(checkpoint), "{key:?}");
    }
}

pub async fn results_follow_the_order_of_the_request(store: &impl CheckpointStore) {
    save(
        store,
        &[
            (key(3), Checkpoint::at(at(33, 0))),
            (key(1), Checkpoint::at(at(11, 0))),
        ],
    )
    .await;
    let loaded: Vec<_> = store
        .load(&[key(1), key(2), key(3), key(1)])
        .await
        .into_iter()
        .map(|result| result.expect("the store answers"))
        .collect();
    assert_eq!(
        loaded,
        [
            Some(Checkpoint::at(at(11, 0))),
            None,
            Some(Checkpoint::at(at(33, 0))),
            Some(Checkpoint::at(at(11, 0))),
        ]
    );
}

pub async fn empty_request_has_no_results(store: &impl CheckpointStore) {
    assert!(store.load(&[]).await.is_empty());
    assert!(store.save(&[]).await.is_empty());
    save(store, &[(key(1), Checkpoint::at(at(1, 0)))]).await;
    assert!(store.load(&[]).await.is_empty());
}

pub async fn settled_ahead_reads_back(store: &impl CheckpointStore) {
    for base in [Position::TrimHorizon, at(100, 0), at(100, 9)] {
        let ahead = ahead(&base, &[(101, 103), (107, 107)], 120);
        let checkpoint = Checkpoint::at(base).with_ahead(ahead);
        save(store, &[(key(1), checkpoint.clone())]).await;
        let loaded = load(store, &key(1)).await.expect("a checkpoint");
        assert_eq!(loaded, checkpoint);
        // The loaded value covers the same records.
        let settled = |number: u64| {
            let record = Record::builder("orders", key(1).shard, number.into()).build();
            loaded
                .ahead()
                .expect("the position has records settled ahead")
                .covers(&record)
        };
        let settled: Vec<u64> = (101..125).filter(|&number| settled(number)).collect();
        assert_eq!(
            settled,
            [&[104, 105, 106][..], &(108..=120).collect::<Vec<_>>()].concat()
        );
    }
}

pub async fn save_without_settled_ahead_clears_it(store: &impl CheckpointStore) {
    let base = at(100, 0);
    let with = Checkpoint::at(base.clone()).with_ahead(ahead(&base, &[(101, 101)], 120));
    assert!(with.ahead().is_some());
    save(store, &[(key(1), with)]).await;
    save(store, &[(key(1), Checkpoint::at(base.clone()))]).await;
    assert_eq!(load(store, &key(1)).await, Some(Checkpoint::at(base)));
}

pub async fn read_until_reads_back(store: &impl CheckpointStore) {
    let time = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123);
    let with = Checkpoint::at(at(100, 0)).with_read_until(time);
    save(store, &[(key(1), with.clone())]).await;
    let loaded = load(store, &key(1)).await;
    assert_eq!(loaded.as_ref().and_then(Checkpoint::read_until), Some(time));
    assert_eq!(loaded, Some(with));
    // The next save has no such time.
    save(store, &[(key(1), Checkpoint::at(at(100, 0)))]).await;
    assert_eq!(load(store, &key(1)).await, Some(Checkpoint::at(at(100, 0))));
}

pub async fn stream_creation_time_reads_back(store: &impl CheckpointStore) {
    let time = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123);
    let with = Checkpoint::at(Position::ShardEnd).with_stream_created(time);
    save(store, &[(key(1), with.clone())]).await;
    let loaded = load(store, &key(1)).await;
    assert_eq!(loaded.as_ref().and_then(Checkpoint::stream_created), Some(time));
    assert_eq!(loaded, Some(with));
    save(store, &[(key(1), Checkpoint::at(at(100, 0)))]).await;
    assert_eq!(load(store, &key(1)).await, Some(Checkpoint::at(at(100, 0))));
}

pub async fn crash_counts_read_back(store: &impl CheckpointStore) {
    let begun = Checkpoint::at(at(100, 0)).with_starts(CrashCount::new(2, None));
    save(store, &[(key(1), begun.clone())]).await;
    assert_eq!(load(store, &key(1)).await, Some(begun));
    let in_hand = Some(InFlightRecord::new(at(101, 7), 3));
    let in_hand = Checkpoint::at(Position::TrimHorizon).with_starts(CrashCount::new(0, in_hand));
    save(store, &[(key(1), in_hand.clone())]).await;
    assert_eq!(load(store, &key(1)).await, Some(in_hand));
    save(store, &[(key(1), Checkpoint::at(at(100, 0)))]).await;
    assert_eq!(load(store, &key(1)).await, Some(Checkpoint::at(at(100, 0))));
}

pub async fn settled_ahead_of_another_position_is_dropped(store: &impl CheckpointStore) {
    let stale = ahead(&at(100, 0), &[(101, 101)], 120);
    let checkpoint = Checkpoint::at(at(110, 0)).with_ahead(stale);
    assert_eq!(checkpoint.ahead(), None);
    save(store, &[(key(1), checkpoint)]).await;
    assert_eq!(load(store, &key(1)).await, Some(Checkpoint::at(at(110, 0))));
}

pub async fn many_shards_are_saved_at_once(store: &impl CheckpointStore) {
    let rows: Vec<_> = (0..500)
        .map(|shard| (key(shard), Checkpoint::at(at(shard * 7, 0))))
        .collect();
    save(store, &rows).await;
    let keys: Vec<_> = rows.iter().map(|(key, _)| key.clone()).collect();
    for (result, (_, checkpoint)) in store.load(&keys).await.into_iter().zip(rows) {
        assert_eq!(result.expect("the store answers"), Some(checkpoint));
    }
}

pub async fn concurrent_saves_are_all_kept(store: &impl CheckpointStore) {
    let rows: Vec<_> = (0..40)
        .map(|shard| [(key(shard), Checkpoint::at(at(shard + 1, 0)))])
        .collect();
    for results in join_all(rows.iter().map(|row| store.save(row))).await {
        for result in results {
            result.expect("the checkpoint is saved");
        }
    }
    for [(key, checkpoint)] in rows {
        assert_eq!(load(store, &key).await, Some(checkpoint));
    }
}
