//! Records per second of `pipeline::Pipeline` compared with a loop over `FuturesUnordered`:
//! `cargo bench -p redrive-benches --bench pipeline`. Compare figures only within one run.
//!
//! The loop keeps the same order and the same watermark; support/bare_loop.rs describes what it omits.
//!
//! The input is 1,000,000 records of 200 bytes with 1,000 random keys, in batches of 5,000, all made before
//! the measurement. One thread runs up to 64 calls, with up to 4,096 records in flight. One processor is
//! ready at once, another yields once. `one_by_one` is a plain loop that awaits each record: the minimum cost
//! of shard order.

use std::hint::black_box;
use std::time::{Duration, Instant};

use bench::handlers::{Noop, YieldOnce, resilient};
use bench::{bare_loop, records};
use criterion::measurement::WallTime;
use criterion::{
    BenchmarkGroup, BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main,
};
use futures_util::stream;
use redrive::pipeline::{Batch, Pipeline, RecordOrder};
use redrive::{Record, RecordProcessor, Resilient};
use tokio::runtime::Runtime;

const RECORDS: usize = 1_000_000;
const KEYS: u64 = 1_000;
const BATCH: usize = 5_000;

type Batches = Vec<Vec<Record>>;

fn throughput(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    let batches = records::batches(RECORDS, KEYS, BATCH);
    contest(criterion, "ready at once", &runtime, &batches, resilient(Noop));
    contest(criterion, "yields once", &runtime, &batches, resilient(YieldOnce));
}

fn contest<P: RecordProcessor>(
    criterion: &mut Criterion,
    handler: &str,
    runtime: &Runtime,
    batches: &Batches,
    resilient: Resilient<P>,
) {
    let mut group = criterion.benchmark_group(handler);
    group
        .throughput(Throughput::Elements(RECORDS as u64))
        .sampling_mode(SamplingMode::Flat)
        .sample_size(20)
        .warm_up_time(Duration::from_secs(1));
    for ordering in [
        RecordOrder::Shard,
        RecordOrder::PartitionKey,
        RecordOrder::Unordered,
    ] {
        let name = format!("{ordering:?}");
        let pipeline = Pipeline::builder().ordering(ordering).build().expect("valid");
        measure(
            &mut group,
            BenchmarkId::new("redrive", &name),
            batches,
            |batches| {
                let batches = stream::iter(batches.into_iter().map(Batch::from));
                let finished = runtime.block_on(pipeline.run(&resilient, batches));
                assert!(finished.expect("nothing halts").complete);
            },
        );
        measure(
            &mut group,
            BenchmarkId::new("bare_loop", &name),
            batches,
            |batches| {
                let watermark = runtime.block_on(bare_loop::run(&resilient, ordering, stream::iter(batches)));
                black_box(watermark.expect("all settled"));
            },
        );
    }
    measure(
        &mut group,
        BenchmarkId::new("one_by_one", "Shard"),
        batches,
        |batches| {
            let watermark = runtime.block_on(bare_loop::one_by_one(&resilient, stream::iter(batches)));
            black_box(watermark.expect("all settled"));
        },
    );
    group.finish();
}

/// Measures `run` with a copy of the batches. The copying, which shares payloads and metadata, is not
/// measured.
fn measure(
    group: &mut BenchmarkGroup<'_, WallTime>,
    id: BenchmarkId,
    batches: &Batches,
    mut run: impl FnMut(Batches),
) {
    group.bench_function(id, |b| {
        b.iter_custom(|iterations| {
            let mut total = Duration::ZERO;
            for _ in 0..iterations {
                let copy = batches.clone();
                let start = Instant::now();
                run(copy);
                total += start.elapsed();
            }
            total
        });
    });
}

criterion_group!(benches, throughput);
criterion_main!(benches);
