//! The cost of de-aggregating KPL records: `cargo bench -p redrive-benches --bench deaggregation`.
//!
//! The aggregates have 51,200 bytes, the KPL's default, and contain records of 50 and of 200 bytes. The
//! partition keys of the records are all different or few. An aggregate ends with the MD5 of its bytes.
//! Computing it is the floor: no implementation that verifies it can be faster. The public Python
//! implementation reads and writes base64, as in Lambda, which is a part of its time.
//!
//! Each figure is the best of a few rounds, in which floor and ours alternate.

use std::hint::black_box;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bench::report::Table;
use bytes::Bytes;
use md5::{Digest as _, Md5};
use redrive::Record;
use redrive::kpl::{Aggregator, Deaggregator};
use support::python;

const RECORDS: usize = 200_000;
const ROUNDS: usize = 7;
/// The maximum time compared with the floor.
const TARGET: f64 = 1.5;
/// The maximum nanoseconds for a record of 200 bytes without the checksum.
const TARGET_UNCHECKED: f64 = 150.0;

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

/// Returns the nanoseconds per record.
fn time(round: impl FnOnce() -> usize) -> f64 {
    let start = Instant::now();
    let count = round();
    start.elapsed().as_secs_f64() * 1e9 / count as f64
}

/// Computes the checksum of each aggregate.
fn floor(aggregates: &[Bytes]) -> usize {
    for data in aggregates {
        black_box(Md5::digest(black_box(data)));
    }
    RECORDS
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

fn main() -> ExitCode {
    // `cargo test --benches` only checks that the bench starts.
    if !bench::is_bench() {
        return ExitCode::SUCCESS;
    }
    let python = python();
    let mut table = Table::new(
        "deaggregation",
        &[
            "record size",
            "partition keys    ",
            "floor (MD5)",
            "with the checksum",
            "compared with the floor",
            "without the checksum",
            "Python    ",
        ],
    );
    let mut missed = false;
    for bytes in [50, 200] {
        for (keys, what) in [(usize::MAX, "all different"), (100, "100 keys")] {
            let aggregates = aggregates(bytes, keys);
            let [mut floor_time, mut checked, mut unchecked] = [f64::INFINITY; 3];
            let (with, without) = (Deaggregator::new(), Deaggregator::new().without_checksum());
            for _ in 0..ROUNDS {
                floor_time = floor_time.min(time(|| floor(&aggregates)));
                checked = checked.min(time(|| open(&with, &aggregates)));
                unchecked = unchecked.min(time(|| open(&without, &aggregates)));
            }
            let of_python = python.as_ref().map(|python| {
                let lines: String = aggregates.iter().map(|data| BASE64.encode(data) + "\n").collect();
                let rounds = ROUNDS.to_string();
                let rate = python::ask(python, "tests/kpl/aggregation.py", &["time", &rounds], lines);
                1e9 / rate.trim().parse::<f64>().expect("a rate")
            });
            let ratio = checked / floor_time;
            table.row([
                format!("{bytes} bytes"),
                what.to_owned(),
                format!("{floor_time:.0} ns"),
                format!("{checked:.0} ns"),
                format!("{ratio:.2}"),
                format!("{unchecked:.0} ns"),
                of_python.map_or("skipped".to_owned(), |time| format!("{time:.0} ns")),
            ]);
            missed |= ratio > TARGET || (bytes == 200 && unchecked > TARGET_UNCHECKED);
            if bytes == 200 {
                let title = "ns per record of 200 bytes";
                table.bar(title, format!("floor, {what}"), floor_time);
                table.bar(title, format!("with the checksum, {what}"), checked);
                table.bar(title, format!("without the checksum, {what}"), unchecked);
            }
        }
    }
    table.note(format!("Per record of the aggregate, best of {ROUNDS} rounds."));
    table.finish();
    if missed {
        println!("more than {TARGET} times the floor, or {TARGET_UNCHECKED} ns without the checksum");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
