//! Tests of KPL aggregation against the public Python implementation, in both directions.

use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use redrive::Record;
use redrive::kpl::{Aggregator, Deaggregator, Expanded};
use serde_json::{Value, json};
use support::python;

const SCRIPT: &str = "tests/kpl/aggregation.py";

fn python() -> Option<PathBuf> {
    python::with("tests/kpl/requirements.txt")
}

/// A partition key, an optional explicit hash key, and a payload.
type Put = (String, Option<u128>, Vec<u8>);

fn some_records(seed: u64) -> Vec<Put> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let keys = ["a", "customer-17", "ключ", "with \"quotes\"\n", &"k".repeat(256)];
    (0..2_000)
        .map(|_| {
            let key = match keys.get(rng.random_range(0..8)) {
                Some(&key) => key.to_owned(),
                None => format!("key-{}", rng.random::<u32>()),
            };
            // Python expects that all records of an aggregate have a hash key, or none.
            let hash_key = (seed % 2 == 1).then(|| rng.random::<u128>() >> rng.random_range(0..120));
            let data = (0..rng.random_range(0..300)).map(|_| rng.random()).collect();
            (key, hash_key, data)
        })
        .collect()
}

#[test]
fn aggregates_of_python_are_deaggregated() {
    let Some(python) = python() else { return };
    for seed in 0..4 {
        let put = some_records(seed);
        let lines: String = put
            .iter()
            .map(|(key, hash_key, data)| {
                let hash_key = hash_key.map(|key| key.to_string());
                format!("{}\n", json!([key, hash_key, BASE64.encode(data)]))
            })
            .collect();
        let aggregates = python::ask(&python, SCRIPT, &["aggregate", "51200"], lines);
        assert!(aggregates.lines().count() > 3);
        let mut opened = Vec::new();
        for (number, line) in (0u64..).zip(aggregates.lines()) {
            let aggregate: Value = serde_json::from_str(line).expect("JSON");
            let data = BASE64
                .decode(aggregate[2].as_str().expect("base64"))
                .expect("base64");
            let record = Record::builder("orders", "shardId-0".into(), number.into())
                .partition_key(aggregate[0].as_str().expect("a key"))
                .payload(data)
                .build();
            let expanded = Deaggregator::new().expand(record, &mut opened);
            assert!(matches!(expanded, Expanded::Aggregate { .. }), "{expanded:?}");
        }
        assert_eq!(opened.len(), put.len());
        for (record, (key, _, data)) in opened.iter().zip(&put) {
            assert_eq!(record.partition_key(), Some(&**key));
            assert_eq!(record.payload(), data);
        }
    }
}

#[test]
fn python_deaggregates_our_aggregates() {
    let Some(python) = python() else { return };
    for seed in 0..4 {
        let put = some_records(seed);
        let mut aggregates = String::new();
        let mut aggregator = Aggregator::new(51_200);
        let mut add = |aggregated: Option<redrive::kpl::Aggregated>| {
            let data = aggregated.expect("records").data;
            assert!(data.len() <= 51_200);
            aggregates += &format!("{}\n", BASE64.encode(data));
        };
        for (key, hash_key, data) in &put {
            if aggregator.add(key, *hash_key, data.clone()).is_err() {
                add(aggregator.finish());
                aggregator
                    .add(key, *hash_key, data.clone())
                    .expect("an empty aggregate has room");
            }
        }
        add(aggregator.finish());

        let opened = python::ask(&python, SCRIPT, &["deaggregate"], aggregates);
        let mut put = put.iter();
        for line in opened.lines() {
            let records: Vec<(String, Option<String>, u64, String)> =
                serde_json::from_str(line).expect("output of the script");
            for (number, (key, hash_key, sub, data)) in (0..).zip(records) {
                let (expected_key, expected_hash_key, expected_data) =
                    put.next().expect("no more than were put");
                assert_eq!((&key, sub), (expected_key, number));
                assert_eq!(hash_key, expected_hash_key.map(|key| key.to_string()));
                assert_eq!(&BASE64.decode(data).expect("base64"), expected_data);
            }
        }
        assert_eq!(put.next(), None);
    }
}
