//! The cost of de-aggregating KPL records: `cargo bench -p redrive-benches --bench deaggregation`.
//!
//! The aggregates have 51,200 bytes, the KPL's default, and contain records of 50 and of 200 bytes. The
//! partition keys of the records are all different (each then costs an allocation) or few. The baselines in
//! the same run are the public Python implementation and a plain copy of the same bytes. Each figure is the
//! best of a few rounds. The Python implementation reads and writes base64, as in Lambda, which is a part of
//! its time.

use std::hint::black_box;
use std::path::PathBuf;
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use redrive::Record;
use redrive::kpl::{Aggregator, Deaggregator};
use support::python;

const RECORDS: usize = 200_000;
const ROUNDS: usize = 7;

fn aggregates(bytes: usize, keys: usize) -> Vec<Bytes> {
    let mut aggregates = Vec::new();
    let mut aggregator = Aggregator::new(51_200);
    for number in 0..RECORDS {
        let data = vec![number as u8; bytes];
        let key = format!("customer-{}", number % keys);
        if aggregator.add(&key, None, data.clone()).is_err() {
            aggregates.extend(aggregator.finish().map(|full| full.data));
            aggregator
                .add(&key, None, data)
                .expect("an empty aggregate has room for one record");
        }
    }
    aggregates.extend(aggregator.finish().map(|rest| rest.data));
    aggregates
}

/// Returns the highest number of records per second among the rounds.
fn best(mut round: impl FnMut() -> usize) -> f64 {
    let rates = (0..ROUNDS).map(|_| {
        let start = Instant::now();
        let count = round();
        count as f64 / start.elapsed().as_secs_f64()
    });
    rates.fold(0.0, f64::max)
}

fn open(deaggregator: &Deaggregator, aggregates: &[Bytes]) -> usize {
    let mut count = 0;
    for (number, data) in (1u64..).zip(aggregates) {
        let record = Record::builder("orders", "shardId-000000000000".into(), number.into())
            .partition_key("outer")
            .payload(data.clone())
            .build();
        let mut records = Vec::new();
        let _ = black_box(deaggregator.expand(record, &mut records));
        count += black_box(records).len();
    }
    count
}

fn python() -> Option<PathBuf> {
    python::with("tests/kpl/requirements.txt")
}

fn main() {
    // `cargo test --benches` only checks that the bench starts.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let python = python();
    println!("million records/s                    checked            unchecked        copy   Python");
    for bytes in [50, 200] {
        for (keys, what) in [(usize::MAX, "all keys different"), (100, "100 keys")] {
            let aggregates = aggregates(bytes, keys);
            let checked = best(|| open(&Deaggregator::new(), &aggregates)) / 1e6;
            let unchecked = best(|| open(&Deaggregator::new().without_checksum(), &aggregates)) / 1e6;
            let copy = best(|| {
                for data in &aggregates {
                    black_box(data.to_vec());
                }
                RECORDS
            }) / 1e6;
            print!("{bytes:>4} bytes, {what:<20}");
            let Some(python) = &python else {
                println!("{checked:>7.2}             {unchecked:>7.2}          {copy:>7.2}");
                continue;
            };
            let lines: String = aggregates.iter().map(|data| BASE64.encode(data) + "\n").collect();
            let rounds = ROUNDS.to_string();
            let rate = python::ask(python, "tests/kpl/aggregation.py", &["time", &rounds], lines);
            let rate = rate.trim().parse::<f64>().expect("a rate") / 1e6;
            println!(
                "{checked:>9.2} ({:>4.1} times) {unchecked:>8.2} ({:>4.1} times) {copy:>8.2} {rate:>8.3}",
                checked / rate,
                unchecked / rate
            );
        }
    }
}
