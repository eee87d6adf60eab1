//! The speed-up of one shard by several workers, for a processor that computes:
//! `cargo bench -p redrive-benches --bench workers`. On an idle machine with at least as many cores.
//!
//! Each call computes for a fixed number of steps. One shard, 1,000 evenly chosen keys, batches of 5,000, order
//! kept per key. A loop that awaits each record is the baseline: one core, no engine. Runs with one and with two
//! workers alternate with it. The results are the medians of the rounds' ratios of wall-clock time.

use std::hint::black_box;
use std::io;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use bench::report::Table;
use bench::{median, records};
use futures_util::stream;
use redrive::pipeline::{Batch, Pipeline};
use redrive::processor::Attempt;
use redrive::{Record, RecordProcessor, Resilient, dead_letter};

const KEYS: u64 = 1_000;
const BATCH: usize = 5_000;
const WORKERS: usize = 2;
/// The minimum speed-up by two workers, for calls of 100 µs.
const TARGET: f64 = 1.8;

/// A processor that computes.
#[derive(Clone, Copy)]
struct Compute {
    steps: u64,
}

impl Compute {
    fn run(self, record: &Record) {
        let mut sum = record.payload().len() as u64;
        for step in 0..self.steps {
            sum = black_box(sum.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17) ^ step);
        }
    }

    /// Returns a processor that computes for about this time.
    fn of(time: Duration, record: &Record) -> Self {
        const STEPS: u64 = 1_000_000;
        let once = || {
            let start = Instant::now();
            Compute { steps: STEPS }.run(record);
            start.elapsed().as_secs_f64()
        };
        let fastest = (0..5).map(|_| once()).fold(f64::INFINITY, f64::min);
        Compute {
            steps: (STEPS as f64 * time.as_secs_f64() / fastest) as u64,
        }
    }
}

impl RecordProcessor for Compute {
    type Error = io::Error;

    async fn process(&self, record: &Record, _: &Attempt<'_>) -> Result<(), io::Error> {
        self.run(record);
        Ok(())
    }
}

fn main() -> ExitCode {
    let rounds = if bench::is_bench() { 9 } else { 1 };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        // One thread for each worker; the shard's own task has little to do.
        .worker_threads(WORKERS)
        .enable_time()
        .build()
        .expect("a runtime");
    let mut table = Table::new(
        "workers",
        &[
            "a call computes",
            "records  ",
            "1 worker, compared with a loop",
            "2 workers, compared with a loop",
            "2 workers, compared with 1",
        ],
    );
    let mut last = 0.0;
    for (time, count) in [(1, 500_000), (10, 100_000), (100, 10_000)] {
        let count = if bench::is_bench() { count } else { count / 100 };
        let batches = records::batches(count, KEYS, BATCH);
        let compute = Compute::of(Duration::from_micros(time), &batches[0][0]);
        let (mut plain, mut one, mut two, mut faster) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for _ in 0..rounds {
            let start = Instant::now();
            batches.iter().flatten().for_each(|record| compute.run(record));
            let bare = start.elapsed().as_secs_f64();
            let [by_one, by_two] = [1, WORKERS].map(|workers| took(&runtime, workers, compute, &batches));
            plain.push(bare / count as f64 * 1e6);
            one.push(bare / by_one);
            two.push(bare / by_two);
            faster.push(by_one / by_two);
        }
        last = median(&mut faster);
        table.row([
            format!("{:.1} µs", median(&mut plain)),
            count.to_string(),
            format!("{:.2} times as fast", median(&mut one)),
            format!("{:.2} times as fast", median(&mut two)),
            format!("{last:.2} times as fast"),
        ]);
        table.bar(
            "speed of 2 workers, compared with 1",
            format!("{time} µs per call"),
            last,
        );
    }
    table.note(format!(
        "One shard, {KEYS} keys, order per key, medians of {rounds} rounds."
    ));
    table.finish();
    if bench::is_bench() && last < TARGET {
        println!("two workers are less than {TARGET} times as fast as one");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Runs the pipeline and returns the seconds that it took.
fn took(runtime: &tokio::runtime::Runtime, workers: usize, compute: Compute, batches: &[Vec<Record>]) -> f64 {
    let resilient = Resilient::builder("bench", compute)
        .workers(workers)
        .dead_letters(dead_letter::Memory::new())
        .build()
        .expect("valid");
    let pipeline = Pipeline::default();
    let batches: Vec<Batch> = batches.iter().map(|batch| batch.clone().into()).collect();
    runtime.block_on(async {
        // On a task of its own, as a consumer runs it: the thread of `block_on` is not one of the workers.
        let task = tokio::spawn(async move {
            let start = Instant::now();
            let run = pipeline.run(&resilient, stream::iter(batches)).await;
            assert!(run.expect("nothing halts").complete);
            start.elapsed().as_secs_f64()
        });
        task.await.expect("no panic")
    })
}
