//! The cost of failing records for the other records, in wall-clock time:
//! `cargo bench -p redrive-benches --bench failures`.
//!
//! 1 % of the records fail twice before they succeed, with 50 ms of backoff (no jitter) each time. A
//! processor call sleeps 1 ms. 64 calls run concurrently, 4,096 records are in flight, and the records have
//! 10,000 keys, evenly chosen. Runs with and without failures alternate. The result is the median of the
//! pairs' ratios.
//!
//! `Shard` order is included for contrast: in this order a failing record must block all records after it.

use std::future::Future;
use std::io;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use bench::report::Table;
use bench::{median, records};
use futures_util::stream;
use redrive::pipeline::{Batch, Capacity, Pipeline, RecordOrder};
use redrive::processor::Attempt;
use redrive::{Jitter, Record, RecordProcessor, Resilient, RetryPolicy, dead_letter};

const WORK: Duration = Duration::from_millis(1);
const BACKOFF: Duration = Duration::from_millis(50);
const FAILING: u32 = 100;
const FAILURES: u32 = 2;
const KEYS: u64 = 10_000;
const BATCH: usize = 5_000;
const RUNNING: usize = 64;
const HELD: usize = 4_096;
const BYTES: usize = 256 * 1024 * 1024;
/// The minimum share of the throughput that key order keeps when records fail.
const TARGET: f64 = 0.90;

/// A processor that sleeps. If `fails` is set, the first attempts of one record in [`FAILING`] fail.
struct Work {
    fails: bool,
}

impl RecordProcessor for Work {
    type Error = io::Error;

    fn process(
        &self,
        record: &Record,
        attempt: &Attempt<'_>,
    ) -> impl Future<Output = Result<(), io::Error>> + Send {
        // The payload starts with random bytes, so failures also come in clusters.
        let unlucky = u32::from_be_bytes(record.payload()[..4].try_into().expect("4 bytes")) % FAILING == 0;
        let fails = self.fails && unlucky && attempt.number() <= FAILURES;
        async move {
            tokio::time::sleep(WORK).await;
            if fails {
                Err(io::Error::other("not yet"))
            } else {
                Ok(())
            }
        }
    }
}

fn main() -> ExitCode {
    let (scale, rounds) = if bench::is_bench() { (1, 5) } else { (100, 1) };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    let mut table = Table::new(
        "failures",
        &[
            "order         ",
            "records ",
            "records/s without failures",
            "records/s with failures",
            "throughput kept",
            "all pairs      ",
        ],
    );
    let mut kept_by_key = 0.0;
    for (ordering, count) in [
        (RecordOrder::PartitionKey, 100_000),
        (RecordOrder::Unordered, 100_000),
        (RecordOrder::Shard, 2_000),
    ] {
        let count = count / scale;
        let batches = records::batches(count, KEYS, BATCH);
        let mut without = Vec::new();
        let mut with = Vec::new();
        let mut kept = Vec::new();
        for _ in 0..rounds {
            let calm = rate(&runtime, ordering, &batches, false);
            let failing = rate(&runtime, ordering, &batches, true);
            without.push(calm);
            with.push(failing);
            kept.push(failing / calm);
        }
        kept.sort_by(f64::total_cmp);
        let share = median(&mut kept.clone());
        table.row([
            format!("`{ordering:?}`"),
            count.to_string(),
            format!("{:.0}", median(&mut without)),
            format!("{:.0}", median(&mut with)),
            format!("{:.1} %", share * 100.0),
            format!("{:.1} to {:.1} %", kept[0] * 100.0, kept[kept.len() - 1] * 100.0),
        ]);
        table.bar(
            "throughput kept with 1 % of failing records, in %",
            format!("{ordering:?}"),
            share * 100.0,
        );
        if ordering == RecordOrder::PartitionKey {
            kept_by_key = share;
        }
    }
    table.note(format!(
        "1 of {FAILING} records fails {FAILURES} times, {BACKOFF:?} apart. A call takes {WORK:?}, {RUNNING} run at once, \
         {HELD} records are in flight, with {KEYS} keys. Medians of {rounds} rounds."
    ));
    table.finish();
    if bench::is_bench() && kept_by_key < TARGET {
        println!(
            "PartitionKey order keeps less than {:.0} % of its throughput",
            TARGET * 100.0
        );
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Runs the pipeline and returns the records per second.
fn rate(
    runtime: &tokio::runtime::Runtime,
    ordering: RecordOrder,
    batches: &[Vec<Record>],
    fails: bool,
) -> f64 {
    let resilient = Resilient::builder("bench", Work { fails })
        .retry(RetryPolicy::constant(BACKOFF).jitter(Jitter::None))
        .dead_letters(dead_letter::Memory::new())
        .build()
        .expect("valid settings");
    let pipeline = Pipeline::builder()
        .ordering(ordering)
        .in_flight(HELD)
        .capacity(
            Capacity::builder()
                .running(RUNNING)
                .bytes(BYTES)
                .build()
                .expect("valid settings"),
        )
        .build()
        .expect("valid");
    let count: usize = batches.iter().map(Vec::len).sum();
    let batches = stream::iter(batches.iter().cloned().map(Batch::from));
    let start = Instant::now();
    let finished = runtime.block_on(pipeline.run(&resilient, batches));
    assert!(finished.expect("nothing halts").complete);
    count as f64 / start.elapsed().as_secs_f64()
}
