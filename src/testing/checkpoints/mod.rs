//! The conformance suite of checkpoint stores.
//!
//! A check that fails panics with the reason. [`checkpoint_conformance!`](crate::checkpoint_conformance)
//! generates a test for each check. A store with leases also passes the suite of [`leases`](super::leases).
//!
//! The suite does not check what it cannot cause: unreadable rows, and a store that does not answer.

use std::future::Future;
use std::ops::RangeInclusive;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::checkpoint::{
    Checkpoint, CheckpointStore, CrashCount, InFlightRecord, LeaseOutcome, NewShard, Renewal, SettledAhead,
    ShardKey,
};

use crate::record::{Position, Record};

mod parts;
mod requests;

pub use parts::*;
pub use requests::*;

/// Access to the empty storage of a test, such as a folder or a table.
pub trait Harness {
    /// The type of the store.
    type Store: CheckpointStore;

    /// Opens the store over the storage of this test. A second call opens the same storage again.
    ///
    /// A store without leases is open once at a time: a check drops the store before it opens the next. A
    /// store with leases is open several times, and each time counts as another process.
    fn open(&self) -> impl Future<Output = Self::Store>;

    /// Returns true if checkpoints outlive the process. Default: true. If false, no check restarts the store.
    fn survives_restart(&self) -> bool {
        true
    }

    /// Returns true if the storage takes a single application and stream, such as a lease table. Default:
    /// false.
    fn serves_one_stream(&self) -> bool {
        false
    }
}

/// Generates a module of this name with a test for each check of the suite. Each test awaits the future to
/// get a [`Harness`](crate::testing::checkpoints::Harness) of its own. With `optional` before the future, the
/// future returns an `Option`, and `None` skips the test.
///
/// The caller's crate needs tokio with the feature `macros`.
#[macro_export]
macro_rules! checkpoint_conformance {
    ($name:ident, $($fresh:tt)+) => {
        $crate::conformance_tests!(checkpoints, $name, [
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
            concurrent_saves_of_a_shard_do_not_mix,
            dropped_save_is_whole_or_nothing,
            saved_checkpoints_survive_a_restart,
            list_returns_the_shards_of_a_stream,
            name_is_fit_for_a_log,
        ], $($fresh)+);
    };
}

/// Creates the key of this shard of the stream `orders`, for the application `billing`.
pub fn key(shard: u64) -> ShardKey {
    ShardKey::new("billing", "orders", format!("shardId-{shard:012}").into())
}

/// Creates the position at the record with this sequence number.
pub fn at(number: u64) -> Position {
    inside(number, 0)
}

/// Creates a list of the records that are settled behind `base`: all up to and including `through`, except
/// the holes.
pub fn settled_ahead(base: Position, holes: &[RangeInclusive<u64>], through: u64) -> SettledAhead {
    let mut builder = SettledAhead::builder(base);
    for hole in holes {
        builder.hole(&record(*hole.start()), &record(*hole.end()));
    }
    builder.settled_through(&record(through))
}

/// Saves these checkpoints. Takes the leases of the shards first, if the store has leases. Panics unless the
/// store confirms every checkpoint.
pub async fn save(store: &impl CheckpointStore, rows: &[(ShardKey, Checkpoint)]) {
    own(store, rows.iter().map(|(key, _)| key.clone())).await;
    let results = store.save(rows).await;
    assert_eq!(results.len(), rows.len(), "one result for each checkpoint");
    for result in results {
        result.expect("the checkpoint is saved");
    }
}

/// Loads the checkpoint of this shard. Panics if the store fails.
pub async fn load(store: &impl CheckpointStore, key: &ShardKey) -> Option<Checkpoint> {
    let mut results = store.load(std::slice::from_ref(key)).await;
    assert_eq!(results.len(), 1, "one result for each shard");
    results.remove(0).expect("the store answers")
}

fn inside(number: u64, sub_sequence_number: u64) -> Position {
    Position::Record {
        sequence_number: number.into(),
        sub_sequence_number,
    }
}

fn record(number: u64) -> Record {
    Record::builder("orders", key(1).shard, number.into()).build()
}

fn time() -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(1_700_000_000_123)
}

/// Creates a checkpoint that has every part.
pub(super) fn full_checkpoint(number: u64) -> Checkpoint {
    let base = inside(number, 2);
    let ahead = settled_ahead(base.clone(), &[number + 1..=number + 9], number + 90);
    let alone = InFlightRecord::new(at(number + 1), 3);
    Checkpoint::at(base)
        .with_ahead(ahead)
        .with_starts(CrashCount::new(2, Some(alone)))
        .with_read_until(time() + Duration::from_secs(number))
        .with_stream_created(time() - Duration::from_secs(number))
}

/// Takes the leases of these shards, if the store has leases and does not own the shards.
async fn own(store: &impl CheckpointStore, shards: impl Iterator<Item = ShardKey>) {
    let Some(leases) = store.leases() else { return };
    let mut lost = Vec::new();
    for shard in shards {
        if leases.renew(&shard).await.expect("the store answers") == Renewal::Lost {
            lost.push(shard);
        }
    }
    let new = |shard: &ShardKey| NewShard::new(shard.clone(), Checkpoint::at(Position::TrimHorizon));
    let rows: Vec<NewShard> = lost.iter().map(new).collect();
    for created in leases.create(&rows).await {
        created.expect("the row is created");
    }
    for taken in leases.take(&lost).await {
        let taken = taken.expect("the store answers");
        assert!(matches!(taken, LeaseOutcome::Leased(_)), "no owner: {taken:?}");
    }
}
