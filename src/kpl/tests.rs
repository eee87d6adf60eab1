use bytes::{BufMut, Bytes, BytesMut};
use proptest::prelude::*;
use prost::Message as _;

use super::wire::{Inner, MAGIC, Message, checksum, hash_key};
use super::{Aggregator, DamagedAggregate, Deaggregator, Expanded, OutOfRangePolicy};
use crate::record::Record;

fn record(payload: impl Into<Bytes>) -> Record {
    Record::builder("orders", "shardId-0".into(), 7.into())
        .partition_key("outer")
        .arrival(std::time::UNIX_EPOCH)
        .payload(payload)
        .build()
}

fn framed(message: &[u8]) -> Bytes {
    let mut data = BytesMut::new();
    data.put_slice(&MAGIC);
    data.put_slice(message);
    data.put_slice(&checksum(message));
    data.freeze()
}

fn inner(partition_key: u64, explicit_hash_key: Option<u64>, data: &'static str) -> Inner {
    Inner {
        partition_key: Some(partition_key),
        explicit_hash_key,
        data: Some(data.into()),
        tags: Vec::new(),
    }
}

fn message(partition_keys: &[&'static str], records: Vec<Inner>) -> Message {
    Message {
        partition_keys: partition_keys.iter().map(|key| Bytes::from(*key)).collect(),
        explicit_hash_keys: vec![Bytes::from("5"), Bytes::from("no number")],
        records,
    }
}

fn expand(deaggregator: &Deaggregator, payload: Bytes) -> (Expanded, Vec<Record>) {
    // What is there before stays, whatever becomes of the aggregate.
    let mut records = vec![record("before")];
    let expanded = deaggregator.expand(record(payload), &mut records);
    assert_eq!(records.remove(0).payload(), "before");
    (expanded, records)
}

#[test]
fn inner_records_have_the_outer_position_and_their_own_keys() {
    let message = message(
        &["a", "b"],
        vec![inner(1, None, "x"), inner(0, Some(0), "yy"), inner(1, None, "")],
    );
    let (expanded, records) = expand(&Deaggregator::new(), framed(&message.encode_to_vec()));
    assert!(
        matches!(
            expanded,
            Expanded::Aggregate {
                records: 3,
                out_of_range: 0
            }
        ),
        "{expanded:?}"
    );
    let seen: Vec<_> = records
        .iter()
        .map(|record| {
            assert_eq!(record.sequence_number().as_str(), "7");
            assert_eq!(record.arrival(), Some(std::time::UNIX_EPOCH));
            assert_eq!(
                (record.stream(), record.shard().as_str()),
                ("orders", "shardId-0")
            );
            (
                record.sub_sequence_number(),
                record.partition_key().unwrap(),
                &record.payload()[..],
            )
        })
        .collect();
    assert_eq!(seen, [(0, "b", &b"x"[..]), (1, "a", b"yy"), (2, "b", b"")]);
}

/// All records of an aggregate may name one long key. A copy of it for each record would fill the memory.
#[test]
fn long_key_that_all_records_name_is_stored_once() {
    let long: &str = Box::leak("k".repeat(257).into_boxed_str());
    for keys in [[long, "b"], ["b", long]] {
        let named = keys.iter().position(|key| *key == long).unwrap() as u64;
        let message = message(&keys, vec![inner(named, None, "x"), inner(named, None, "y")]);
        let (_, records) = expand(&Deaggregator::new(), framed(&message.encode_to_vec()));
        let [first, second] = [0, 1].map(|index: usize| records[index].partition_key().unwrap());
        assert_eq!((first, second), (long, long));
        assert!(std::ptr::eq(first, second), "the text is copied");
    }
}

/// A damaged aggregate is delivered once, as it came, with the reason.
#[test]
fn what_cannot_be_opened_is_delivered_as_it_is() {
    let whole = message(&["a"], vec![inner(0, None, "x"), inner(0, None, "y")]);
    let good = framed(&whole.encode_to_vec());
    let mut cut = good.to_vec();
    cut.pop();
    let mut flipped = good.to_vec();
    flipped[8] ^= 1;
    let without = |change: fn(&mut Message)| {
        let mut message = whole.clone();
        change(&mut message);
        framed(&message.encode_to_vec())
    };
    type Expected = fn(&DamagedAggregate) -> bool;
    let damages: Vec<(Bytes, Expected)> = vec![
        (cut.into(), |damage| matches!(damage, DamagedAggregate::Checksum)),
        (flipped.into(), |damage| {
            matches!(damage, DamagedAggregate::Checksum)
        }),
        (Bytes::from_static(&MAGIC), |damage| {
            matches!(damage, DamagedAggregate::Checksum)
        }),
        (framed(b"\xff\xff\xff"), |damage| {
            matches!(damage, DamagedAggregate::Format(_))
        }),
        (framed(b""), |damage| matches!(damage, DamagedAggregate::Empty)),
        (without(|message| message.partition_keys.clear()), |damage| {
            matches!(damage, DamagedAggregate::Record { record: 0 })
        }),
        (
            without(|message| message.partition_keys[0] = Bytes::from_static(b"\xff")),
            |damage| matches!(damage, DamagedAggregate::Format(_)),
        ),
        // The halves of an "é" in two keys.
        (
            without(|message| {
                message.partition_keys = vec![Bytes::from_static(b"\xc3"), Bytes::from_static(b"\xa9")]
            }),
            |damage| matches!(damage, DamagedAggregate::Format(_)),
        ),
        (
            without(|message| message.records[1].partition_key = None),
            |damage| matches!(damage, DamagedAggregate::Record { record: 1 }),
        ),
        (
            without(|message| message.records[1].partition_key = Some(u64::MAX)),
            |damage| matches!(damage, DamagedAggregate::Record { record: 1 }),
        ),
        (
            without(|message| message.records[1].explicit_hash_key = Some(2)),
            |damage| matches!(damage, DamagedAggregate::Record { record: 1 }),
        ),
        (without(|message| message.records[1].data = None), |damage| {
            matches!(damage, DamagedAggregate::Record { record: 1 })
        }),
    ];
    for (payload, expected) in damages {
        let (expanded, records) = expand(&Deaggregator::new(), payload.clone());
        let Expanded::Damaged(damage) = expanded else {
            panic!("{payload:?}: {expanded:?}")
        };
        assert!(expected(&damage), "{payload:?}: {damage:?}");
        assert_eq!(records.len(), 1);
        assert_eq!(records[0].payload(), &payload);
        assert_eq!(records[0].partition_key(), Some("outer"));
    }
}

#[test]
fn a_wrong_checksum_can_be_let_pass() {
    let mut payload = framed(&message(&["a"], vec![inner(0, None, "x")]).encode_to_vec()).to_vec();
    *payload.last_mut().unwrap() ^= 1;
    let (expanded, records) = expand(&Deaggregator::new().without_checksum(), payload.into());
    assert!(matches!(expanded, Expanded::Aggregate { records: 1, .. }));
    assert_eq!(records[0].partition_key(), Some("a"));
}

#[test]
fn out_of_range_aggregates_are_delivered_or_dropped_whole() {
    let (a, b) = (hash_key(b"a"), hash_key(b"b"));
    let records = || {
        vec![
            inner(0, None, "a"),
            inner(1, None, "b"),
            inner(1, Some(0), "five"),
            inner(0, Some(1), "?"),
        ]
    };
    let payload = framed(&message(&["a", "b"], records()).encode_to_vec());
    for (keys, outside) in [
        (0..=u128::MAX, 0),
        (a..=a, 3),
        (b..=b, 3),
        (5..=5, 3),
        (0..=a.max(b), 1),
        (6..=6, 4),
    ] {
        let deaggregator = Deaggregator::new().hash_keys(keys.clone());
        let (expanded, delivered) = expand(&deaggregator, payload.clone());
        assert!(
            matches!(expanded, Expanded::Aggregate { records: 4, out_of_range } if out_of_range == outside),
            "{keys:?}: {expanded:?}"
        );
        assert_eq!(delivered.len(), 4);
        let (expanded, delivered) = expand(
            &deaggregator.out_of_range_policy(OutOfRangePolicy::Drop),
            payload.clone(),
        );
        match outside {
            0 => assert_eq!(delivered.len(), 4),
            _ => {
                assert!(
                    matches!(expanded, Expanded::Dropped { records: 4, .. }),
                    "{expanded:?}"
                );
                assert!(delivered.is_empty());
            }
        }
    }
}

/// Kinesis places a key by its MD5, read as a big-endian number.
#[test]
fn a_key_hashes_to_where_kinesis_puts_it() {
    assert_eq!(
        format!("{:032x}", hash_key(b"a")),
        "0cc175b9c0f1b6a831c399e269772661"
    );
}

/// On a stream that ignores keys, no record is in the wrong place.
#[test]
fn without_an_outer_key_nothing_is_out_of_range() {
    let payload = framed(&message(&["a"], vec![inner(0, None, "x")]).encode_to_vec());
    let record = Record::builder("orders", "shardId-0".into(), 7.into())
        .payload(payload)
        .build();
    let expanded = Deaggregator::new()
        .hash_keys(1..=1)
        .expand(record, &mut Vec::new());
    assert!(
        matches!(expanded, Expanded::Aggregate { out_of_range: 0, .. }),
        "{expanded:?}"
    );
}

#[test]
fn an_aggregate_that_is_full_takes_no_more_and_loses_nothing() {
    let mut aggregator = Aggregator::new(110);
    assert!(aggregator.finish().is_none());
    let mut added = 0;
    let full = loop {
        match aggregator.add("key", Some(u128::MAX), vec![b'x'; 10]) {
            Ok(()) => added += 1,
            Err(full) => break full,
        }
    };
    assert_eq!((added, aggregator.records(), full.max_bytes), (2, 2, 110));
    let bytes = aggregator.bytes();
    assert!(bytes <= 110 && bytes + full.bytes > 110);
    let put = aggregator.finish().expect("two records");
    assert_eq!((put.data.len(), &*put.partition_key), (bytes, "key"));
    assert_eq!(put.explicit_hash_key, Some(u128::MAX));
    assert_eq!(aggregator.records(), 0);
    assert_eq!(aggregator.bytes(), Aggregator::new(110).bytes());
    assert_eq!(expand(&Deaggregator::new(), put.data).1.len(), 2);
}

proptest! {
    #[test]
    fn what_is_aggregated_comes_out_as_it_went_in(
        put in prop::collection::vec(
            (".{1,12}", prop::option::of(any::<u128>()), prop::collection::vec(any::<u8>(), 0..40)),
            1..40,
        )
    ) {
        let mut aggregator = Aggregator::new(usize::MAX);
        for (key, hash, data) in &put {
            aggregator.add(key, *hash, data.clone()).expect("room for all");
        }
        let bytes = aggregator.bytes();
        let aggregated = aggregator.finish().expect("some");
        prop_assert_eq!(aggregated.data.len(), bytes);
        prop_assert_eq!(&aggregated.partition_key, &put[0].0);
        prop_assert_eq!(aggregated.explicit_hash_key, put[0].1);
        let (expanded, records) = expand(&Deaggregator::new(), aggregated.data);
        let is_aggregate = matches!(expanded, Expanded::Aggregate { records, .. } if records == put.len());
        prop_assert!(is_aggregate);
        let seen: Vec<_> = records.iter().map(|it| (it.partition_key().unwrap(), it.payload())).collect();
        for (record, (key, _, data)) in seen.iter().zip(&put) {
            prop_assert_eq!(record.0, key);
            prop_assert_eq!(record.1, data);
        }
        prop_assert_eq!(seen.len(), put.len());
    }

    #[test]
    fn any_bytes_come_out_once_or_opened(bytes in prop::collection::vec(any::<u8>(), 0..200), checked in any::<bool>()) {
        let payload = match checked {
            true => framed(&bytes),
            false => [&MAGIC[..], &bytes].concat().into(),
        };
        let (expanded, records) = expand(&Deaggregator::new(), payload.clone());
        match expanded {
            Expanded::Aggregate { records: count, .. } => prop_assert_eq!(count, records.len()),
            _ => {
                prop_assert_eq!(records.len(), 1);
                prop_assert_eq!(records[0].payload(), &payload);
            }
        }
    }
}

/// A packed aggregate yields the same records as one that is opened at once.
#[cfg(any(feature = "kinesis", feature = "lambda"))]
mod packed {
    use super::super::Unpacking;
    use super::*;

    fn unpacked(deaggregator: &Deaggregator, payload: Bytes) -> (Expanded, Vec<Record>) {
        let mut records = Vec::new();
        // This simulates many records before the aggregate.
        records.resize_with(16 * 1024, || record("before"));
        let expanded = deaggregator.expand_or_pack(record(payload), &mut records);
        let rest = records.split_off(16 * 1024);
        let unpack = |record: Record| match record.is_packed() {
            true => {
                let count = record.count();
                let inside: Vec<Record> = Unpacking::of(record).expect("checked").collect();
                assert_eq!(inside.len(), count);
                inside
            }
            false => vec![record],
        };
        (expanded, rest.into_iter().flat_map(unpack).collect())
    }

    fn seen(records: &[Record]) -> Vec<(u64, Option<String>, Bytes, String)> {
        let each = records.iter().map(|record| {
            (
                record.sub_sequence_number(),
                record.partition_key().map(str::to_owned),
                record.payload().clone(),
                format!("{:?}", record.redriven()),
            )
        });
        each.collect()
    }

    fn assert_same(deaggregator: &Deaggregator, payload: &Bytes) {
        let (expected, records) = expand(deaggregator, payload.clone());
        let (expanded, unpacked) = unpacked(deaggregator, payload.clone());
        assert_eq!(seen(&unpacked), seen(&records));
        match (expected, expanded) {
            (Expanded::Damaged(_), Expanded::Damaged(_)) => {}
            (expected, expanded) => {
                assert_eq!(
                    std::mem::discriminant(&expected),
                    std::mem::discriminant(&expanded),
                    "{expected:?} {expanded:?}"
                );
            }
        }
    }

    #[test]
    fn its_records_are_the_same() {
        let mut aggregator = Aggregator::new(1 << 20);
        let redriven = crate::record::Redriven::new("07".repeat(32).parse().expect("an id"), 2, None);
        for number in 0..100u128 {
            let key = format!("customer-{}", number % 7);
            let explicit = (number % 3 == 0).then_some(number);
            let added = match number % 10 {
                0 => aggregator.add_redriven(&key, explicit, number.to_string(), &redriven),
                _ => aggregator.add(&key, explicit, number.to_string()),
            };
            added.expect("there is room");
        }
        let payload = aggregator.finish().expect("there are records").data;
        for deaggregator in [
            Deaggregator::new(),
            Deaggregator::new().hash_keys(0..=u128::MAX / 2),
            Deaggregator::new()
                .hash_keys(0..=0)
                .out_of_range_policy(OutOfRangePolicy::Drop),
        ] {
            assert_same(&deaggregator, &payload);
        }
    }

    /// An aggregate with as many records as 10 MiB can hold adds one packed record, and no other.
    #[test]
    fn ten_mib_of_empty_records_stay_packed_until_unpacked() {
        let inside = inner(0, None, "");
        let count = 10 * 1024 * 1024 / 6 - 10;
        let message = message(&["a"], vec![inside; count]);
        let mut records = Vec::new();
        let payload = framed(&message.encode_to_vec());
        let expanded = Deaggregator::new().expand_or_pack(record(payload), &mut records);
        assert!(
            matches!(expanded, Expanded::Aggregate { records, out_of_range: 0 } if records == count),
            "{expanded:?}"
        );
        assert_eq!((records.len(), records[0].count()), (1, count));
        let first = Unpacking::of(records.remove(0)).expect("checked").take(3);
        assert_eq!(
            first
                .map(|record| record.sub_sequence_number())
                .collect::<Vec<_>>(),
            [0, 1, 2]
        );
    }

    #[test]
    fn more_keys_than_records_are_a_damage() {
        let mut message = message(&["a"], vec![inner(0, None, "x")]);
        message.partition_keys = vec![Bytes::new(); 100_000];
        let (expanded, records) = unpacked(&Deaggregator::new(), framed(&message.encode_to_vec()));
        assert!(
            matches!(expanded, Expanded::Damaged(DamagedAggregate::Format(_))),
            "{expanded:?}"
        );
        assert_eq!(records.len(), 1);
    }

    proptest! {
        #[test]
        fn any_bytes_give_the_same(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            assert_same(&Deaggregator::new(), &framed(&bytes));
        }
    }
}
