//! The cost of `Resilient::settle` for a record that succeeds, compared with other retry loops:
//! `cargo bench -p redrive-benches --bench settle`. Compare figures only within one run.
//!
//! | contestant | retries | attempt timeout | panics caught | argument of the processor |
//! |---|---|---|---|---|
//! | `bare` | | | | `&Record` |
//! | `bare_owned` | | | | a clone |
//! | `redrive` | yes, jitter | yes | yes | `&Record` |
//! | `redrive_fn` (`processor_fn`) | yes, jitter | yes | yes | a clone |
//! | `backon` | yes | | | `&Record` |
//! | `backon_jitter` | yes, jitter | | | `&Record` |
//! | `backon_owned` | yes | | | a clone |
//! | `backon_guarded` | yes | yes | yes | `&Record` |
//! | `tower` | yes, jitter | | | a clone, and another clone is kept for a retry |

use std::hint::black_box;

use bench::handlers::{Noop, handle, handle_owned, resilient};
use bench::{records, retries};
use criterion::{Criterion, criterion_group, criterion_main};
use redrive::processor_fn;

fn settle(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    let record = records::one();
    let native = resilient(Noop);
    let function = resilient(processor_fn(handle_owned));
    let plain = retries::exponential();
    let jitter = plain.with_jitter();
    let mut tower = retries::tower_retry();

    let mut group = criterion.benchmark_group("settle");
    group.bench_function("bare", |b| {
        b.to_async(&runtime).iter(|| handle(black_box(&record)));
    });
    group.bench_function("bare_owned", |b| {
        b.to_async(&runtime)
            .iter(|| handle_owned(black_box(&record).clone()));
    });
    group.bench_function("redrive", |b| {
        b.to_async(&runtime).iter(|| native.settle(black_box(&record)));
    });
    group.bench_function("redrive_fn", |b| {
        b.to_async(&runtime).iter(|| function.settle(black_box(&record)));
    });
    group.bench_function("backon", |b| {
        b.to_async(&runtime)
            .iter(|| retries::backon(black_box(&record), black_box(plain)));
    });
    group.bench_function("backon_jitter", |b| {
        b.to_async(&runtime)
            .iter(|| retries::backon(black_box(&record), black_box(jitter)));
    });
    group.bench_function("backon_owned", |b| {
        b.to_async(&runtime)
            .iter(|| retries::backon_owned(black_box(&record), black_box(plain)));
    });
    group.bench_function("backon_guarded", |b| {
        b.to_async(&runtime)
            .iter(|| retries::backon_guarded(black_box(&record), black_box(plain)));
    });
    group.bench_function("tower", |b| {
        b.iter_custom(|iterations| {
            runtime.block_on(async {
                let start = std::time::Instant::now();
                for _ in 0..iterations {
                    let _ = black_box(retries::call(&mut tower, black_box(&record)).await);
                }
                start.elapsed()
            })
        });
    });
    group.finish();
}

criterion_group!(benches, settle);
criterion_main!(benches);
