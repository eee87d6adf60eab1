use std::time::SystemTime;

use proptest::prelude::*;

use super::*;
use crate::checkpoint::InFlightRecord;

/// Creates a record. Each aggregate has three of them.
fn record(i: u64) -> Record {
    Record::builder("orders", "shardId-0".into(), (95 + i / 3).into())
        .sub_sequence_number(i % 3)
        .arrival(at(100 + i))
        .build()
}

fn at(secs: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(secs)
}

/// Creates a checkpoint at the first record. `settled` says which of the records after it are settled.
fn standing(settled: &[bool]) -> Checkpoint {
    let position = record(0).position();
    let at = Checkpoint::at(position.clone());
    let Some(last) = settled.iter().rposition(|&settled| settled) else {
        return at;
    };
    let mut ahead = SettledAhead::builder(position);
    let mut i = 0;
    while i < last {
        let run = settled[i..last].iter().take_while(|&&settled| !settled).count();
        if run > 0 {
            ahead.hole(&record(i as u64 + 1), &record((i + run) as u64));
        }
        i += run.max(1);
    }
    at.with_ahead(ahead.settled_through(&record(last as u64 + 1)))
}

fn is_settled(checkpoint: &Checkpoint, record: &Record) -> bool {
    checkpoint.position().covers(record) || checkpoint.ahead().is_some_and(|ahead| ahead.covers(record))
}

proptest! {
    #[test]
    fn what_was_settled_or_skipped_is_settled_and_nothing_else(
        settled in prop::collection::vec(any::<bool>(), 1..60),
        at_most in 1usize..8,
    ) {
        let stands = standing(&settled);
        let records: Vec<Record> = (0..=settled.len() as u64 + 6).map(record).collect();
        let unsettled = records.iter().filter(|record| !is_settled(&stands, record));
        let skipped: Vec<Record> = unsettled.take(at_most).cloned().collect();
        let past = past(&stands, &skipped);
        for record in &records {
            let is_skipped = skipped.iter().any(|it| it.position() == record.position());
            prop_assert_eq!(is_settled(&past, record), is_settled(&stands, record) || is_skipped);
        }
        // The checkpoint survives encoding and decoding.
        if let Some(ahead) = past.ahead() {
            prop_assert_eq!(SettledAhead::from_bytes(&ahead.to_bytes()), Ok(ahead.clone()));
        }
    }
}

#[test]
fn read_until_never_decreases_or_passes_unsettled_records() {
    let read_until = |stands: Checkpoint| past(&stands, &[record(1)]).read_until();
    let stands = Checkpoint::at(record(0).position());
    // The rest of the aggregate arrived at the same time.
    let before = at(101) - Duration::from_millis(1);
    assert_eq!(read_until(stands.clone()), Some(before));
    assert_eq!(read_until(stands.with_read_until(at(500))), Some(at(500)));
}

#[test]
fn crashes_with_another_record_in_hand_are_remembered() {
    let starts = |in_hand: u64| {
        let in_hand = InFlightRecord::new(record(in_hand).position(), 2);
        let stands =
            Checkpoint::at(record(0).position()).with_starts(CrashCount::new(3, Some(in_hand.clone())));
        (past(&stands, &[record(1)]).starts().cloned(), in_hand)
    };
    assert_eq!(starts(1).0, None);
    let (kept, in_hand) = starts(2);
    assert_eq!(kept, Some(CrashCount::new(0, Some(in_hand))));
}
