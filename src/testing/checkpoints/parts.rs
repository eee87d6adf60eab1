//! Checks of what a checkpoint contains.

use super::{Harness, at, inside, key, load, record, save, settled_ahead, time};
use crate::checkpoint::{Checkpoint, CrashCount, InFlightRecord};
use crate::record::{Position, SequenceNumber};

/// Every kind of position reads back.
pub async fn every_position_reads_back(harness: &impl Harness) {
    let store = harness.open().await;
    let millis = 1_700_000_000_123;
    let positions = [
        Position::AtTimestamp { millis },
        Position::TrimHorizon,
        at(0),
        at(7),
        inside(7, 41),
        inside(u64::MAX, u64::MAX),
        Position::ShardEnd,
    ];
    for position in positions {
        let checkpoint = Checkpoint::at(position);
        save(&store, &[(key(1), checkpoint.clone())]).await;
        assert_eq!(
            load(&store, &key(1)).await,
            Some(checkpoint),
            "position reads back"
        );
    }
}

/// The longest sequence number, of 129 digits, reads back.
pub async fn sequence_numbers_have_129_digits(harness: &impl Harness) {
    let store = harness.open().await;
    let checkpoint = Checkpoint::at(Position::Record {
        sequence_number: "9".repeat(SequenceNumber::MAX_DIGITS).parse().expect("digits"),
        sub_sequence_number: 3,
    });
    save(&store, &[(key(1), checkpoint.clone())]).await;
    assert_eq!(load(&store, &key(1)).await, Some(checkpoint));
}

/// The list of records settled ahead of the position reads back, and covers the same records.
pub async fn settled_ahead_reads_back(harness: &impl Harness) {
    let store = harness.open().await;
    for base in [Position::TrimHorizon, at(100), inside(100, 9)] {
        let ahead = settled_ahead(base.clone(), &[101..=103, 107..=107], 120);
        let checkpoint = Checkpoint::at(base).with_ahead(ahead);
        save(&store, &[(key(1), checkpoint.clone())]).await;
        let loaded = load(&store, &key(1)).await.expect("a checkpoint");
        assert_eq!(loaded, checkpoint);
        let ahead = loaded.ahead().expect("the position has records settled ahead");
        let covered: Vec<u64> = (101..125)
            .filter(|&number| ahead.covers(&record(number)))
            .collect();
        let settled = [&[104, 105, 106][..], &(108..=120).collect::<Vec<_>>()].concat();
        assert_eq!(covered, settled);
    }
}

/// A save without a list of records settled ahead clears the list of the save before.
pub async fn save_without_settled_ahead_clears_it(harness: &impl Harness) {
    let store = harness.open().await;
    let with = Checkpoint::at(at(100)).with_ahead(settled_ahead(at(100), &[101..=101], 120));
    assert!(with.ahead().is_some());
    save(&store, &[(key(1), with)]).await;
    save(&store, &[(key(1), Checkpoint::at(at(100)))]).await;
    assert_eq!(load(&store, &key(1)).await, Some(Checkpoint::at(at(100))));
}

/// The time up to which records were read reads back, and the next save clears it.
pub async fn read_until_reads_back(harness: &impl Harness) {
    let store = harness.open().await;
    let with = Checkpoint::at(at(100)).with_read_until(time());
    save(&store, &[(key(1), with.clone())]).await;
    let loaded = load(&store, &key(1)).await;
    assert_eq!(loaded.as_ref().and_then(Checkpoint::read_until), Some(time()));
    assert_eq!(loaded, Some(with));
    save(&store, &[(key(1), Checkpoint::at(at(100)))]).await;
    assert_eq!(load(&store, &key(1)).await, Some(Checkpoint::at(at(100))));
}

/// The creation time of the stream reads back, and the next save clears it.
pub async fn stream_creation_time_reads_back(harness: &impl Harness) {
    let store = harness.open().await;
    let with = Checkpoint::at(Position::ShardEnd).with_stream_created(time());
    save(&store, &[(key(1), with.clone())]).await;
    let loaded = load(&store, &key(1)).await;
    assert_eq!(loaded.as_ref().and_then(Checkpoint::stream_created), Some(time()));
    assert_eq!(loaded, Some(with));
    save(&store, &[(key(1), Checkpoint::at(at(100)))]).await;
    assert_eq!(load(&store, &key(1)).await, Some(Checkpoint::at(at(100))));
}

/// Counts of crashes read back, and the next save clears them.
pub async fn crash_counts_read_back(harness: &impl Harness) {
    let store = harness.open().await;
    let begun = Checkpoint::at(at(100)).with_starts(CrashCount::new(2, None));
    save(&store, &[(key(1), begun.clone())]).await;
    assert_eq!(load(&store, &key(1)).await, Some(begun));
    let alone = CrashCount::new(0, Some(InFlightRecord::new(inside(101, 7), 3)));
    let alone = Checkpoint::at(Position::TrimHorizon).with_starts(alone);
    save(&store, &[(key(1), alone.clone())]).await;
    assert_eq!(load(&store, &key(1)).await, Some(alone));
    save(&store, &[(key(1), Checkpoint::at(at(100)))]).await;
    assert_eq!(load(&store, &key(1)).await, Some(Checkpoint::at(at(100))));
}

/// A list of records settled ahead of another position is not stored.
pub async fn settled_ahead_of_another_position_is_dropped(harness: &impl Harness) {
    let store = harness.open().await;
    let stale = settled_ahead(at(100), &[101..=101], 120);
    let checkpoint = Checkpoint::at(at(110)).with_ahead(stale);
    assert_eq!(checkpoint.ahead(), None);
    save(&store, &[(key(1), checkpoint)]).await;
    assert_eq!(load(&store, &key(1)).await, Some(Checkpoint::at(at(110))));
}
