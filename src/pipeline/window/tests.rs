//! Tests that compare the window with a model that keeps every record.

use proptest::prelude::*;

use super::*;

fn record(number: u64) -> Record {
    Record::builder("s", "shardId-0".into(), (1_000 + number).into())
        .payload(vec![0; 10])
        .build()
}

/// A model of the window that keeps every record and scans all of them.
#[derive(Default)]
struct Model {
    settled: Vec<bool>,
}

impl Model {
    fn watermark(&self) -> Position {
        match self.settled.iter().take_while(|&&settled| settled).count() {
            0 => Position::TrimHorizon,
            count => record(count as u64 - 1).position(),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn agrees_with_a_model_that_looks_at_everything(
        steps in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 1..120)
    ) {
        let mut window = Window::new(Checkpoint::at(Position::TrimHorizon));
        let mut model = Model::default();
        for (admit, which) in steps {
            if admit || model.settled.is_empty() {
                let number = model.settled.len() as u64;
                prop_assert_eq!(window.admit(record(number), 0, 10), number);
                model.settled.push(false);
            } else {
                let which = which.index(model.settled.len());
                let released = window.settle(which as u64, Settled::Processed);
                prop_assert_eq!(released.is_some(), !model.settled[which], "settled once only");
                model.settled[which] = true;
            }
            let unsettled = model.settled.iter().filter(|&&settled| !settled).count();
            prop_assert_eq!(window.in_flight(), unsettled);
            prop_assert_eq!(window.watermark(), &model.watermark());
            let oldest = model.settled.iter().position(|&settled| !settled);
            prop_assert_eq!(window.oldest().map(|(ordinal, _)| ordinal as usize), oldest);

            // A restart from this checkpoint repeats exactly the unsettled records.
            let checkpoint = window.checkpoint();
            for (number, &settled) in model.settled.iter().enumerate() {
                let record = record(number as u64);
                let skipped = checkpoint.position().covers(&record)
                    || checkpoint.ahead().is_some_and(|ahead| ahead.covers(&record));
                prop_assert_eq!(skipped, settled, "record {}", number);
            }
        }
    }
}

/// Returns whether a restart from this checkpoint skips the record.
fn skips(checkpoint: &Checkpoint, record: &Record) -> bool {
    checkpoint.position().covers(record) || checkpoint.ahead().is_some_and(|ahead| ahead.covers(record))
}

proptest! {
    /// The second run ends before it has reread everything that the first run settled.
    #[test]
    fn a_checkpoint_forgets_nothing_that_an_earlier_run_settled(
        first in prop::collection::vec(any::<bool>(), 1..60),
        again in prop::collection::vec(any::<bool>(), 0..60),
    ) {
        let mut window = Window::new(Checkpoint::at(Position::TrimHorizon));
        for (number, &settle) in first.iter().enumerate() {
            window.admit(record(number as u64), 0, 10);
            if settle {
                window.settle(number as u64, Settled::Processed);
            }
        }
        let earlier = window.checkpoint();
        let mut window = Window::new(earlier.clone());
        let mut settled = first.clone();
        for (number, &settle) in again.iter().enumerate().take(first.len()) {
            let record = record(number as u64);
            match window.earlier(&record) {
                Earlier::Passed => prop_assert!(earlier.position().covers(&record)),
                Earlier::Settled => {
                    prop_assert!(first[number]);
                    let ordinal = window.admit(record, 0, 10);
                    window.settle(ordinal, Settled::Processed);
                }
                Earlier::Unsettled => {
                    prop_assert!(!first[number]);
                    let ordinal = window.admit(record, 0, 10);
                    if settle {
                        window.settle(ordinal, Settled::Processed);
                        settled[number] = true;
                    }
                }
            }
            let checkpoint = window.checkpoint();
            let bytes = checkpoint.ahead().map(SettledAhead::to_bytes);
            let read = bytes.map(|bytes| SettledAhead::from_bytes(&bytes).expect("reads back"));
            prop_assert_eq!(read.as_ref(), checkpoint.ahead());
            for (number, &settled) in settled.iter().enumerate() {
                let record = self::record(number as u64);
                prop_assert_eq!(skips(&checkpoint, &record), settled, "record {}", number);
            }
        }
    }
}

#[test]
fn records_settled_ahead_keep_no_payload_and_one_position() {
    let mut window = Window::new(Checkpoint::at(Position::TrimHorizon));
    for number in 0..100 {
        window.admit(record(number), 0, 10);
    }
    for ordinal in (1..90).rev() {
        assert!(window.settle(ordinal, Settled::Processed).is_some());
    }
    let kept: Vec<&Record> = window
        .ring
        .iter()
        .filter(|entry| entry.settled)
        .filter_map(|entry| entry.record.as_ref())
        .collect();
    assert_eq!(kept.len(), 1);
    assert_eq!(kept[0].sequence_number(), record(89).sequence_number());
    assert!(kept[0].payload().is_empty());
}

#[test]
fn a_settled_record_names_the_next_of_its_lane() {
    let mut window = Window::new(Checkpoint::at(Position::TrimHorizon));
    let first = window.admit(record(0), 7, 10);
    let other = window.admit(record(1), 8, 10);
    let second = window.admit(record(2), 7, 10);
    window.follow(first, second);
    let released = window.settle(first, Settled::Processed).expect("unsettled");
    assert_eq!(
        (released.lane, released.next, released.bytes),
        (7, Some(second), 10)
    );
    assert_eq!(
        window.settle(other, Settled::Processed).expect("unsettled").next,
        None
    );
    assert!(window.settle(first, Settled::Processed).is_none(), "only once");
    assert!(window.settle(99, Settled::Processed).is_none(), "never admitted");
}
