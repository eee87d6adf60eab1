//! Checks that any payload is delivered once as it is, or as the records of its aggregate.
//!
//! Run it with `cargo fuzz run --fuzz-dir tests/fuzz deaggregate`.
#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};
use redrive::Record;
use redrive::kpl::{Deaggregator, Expanded, OutOfRangePolicy};

const MAGIC: [u8; 4] = [0xF3, 0x89, 0x9A, 0xC2];

fuzz_target!(|bytes: &[u8]| -> Corpus {
    let Some((&settings, message)) = bytes.split_first() else {
        return Corpus::Reject;
    };
    // A fuzzer does not find a valid MD5, so some runs de-aggregate without the checksum.
    let payload = match settings & 3 {
        0 => message.to_vec(),
        1 => [&MAGIC, message].concat(),
        _ => [&MAGIC[..], message, &[0; 16]].concat(),
    };
    let mut deaggregator = Deaggregator::new();
    if settings & 4 == 0 {
        deaggregator = deaggregator.without_checksum();
    }
    if settings & 8 == 0 {
        deaggregator = deaggregator.hash_keys(0..=u128::MAX / 2);
    }
    if settings & 16 == 0 {
        deaggregator = deaggregator.out_of_range_policy(OutOfRangePolicy::Drop);
    }
    let record = Record::builder("orders", "shardId-0".into(), 1.into())
        .partition_key("outer")
        .payload(payload.clone())
        .build();
    let mut records = Vec::new();
    match deaggregator.expand(record, &mut records) {
        Expanded::Aggregate {
            records: count,
            out_of_range,
            ..
        } => {
            assert!(count > 0 && count == records.len() && out_of_range <= count);
            let bytes: usize = records.iter().map(|record| record.payload().len()).sum();
            assert!(bytes <= payload.len());
            assert!(
                (0..)
                    .zip(&records)
                    .all(|(sub, record)| record.sub_sequence_number() == sub)
            );
        }
        Expanded::Dropped {
            record,
            records: count,
            ..
        } => {
            assert!(records.is_empty() && count > 0);
            assert_eq!(record.payload(), &payload);
        }
        _ => {
            assert_eq!(records.len(), 1);
            assert_eq!(records[0].payload(), &payload);
        }
    }
    Corpus::Keep
});
