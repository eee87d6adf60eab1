//! Instructions per record, counted by valgrind: `cargo bench -p redrive-benches --bench instructions`.
//!
//! The counts are the same in every run, however busy the machine. If a tool is missing, the bench prints
//! what to install.
//!
//! `settle` counts 1,000 records. `pipeline` counts 20,000 records of 1,000 keys in batches of 5,000, from
//! start to end, and `pipeline_measured` the same with metrics. The records are kept alive, so that the cost
//! of freeing them is not counted. settle.rs and support/bare_loop.rs describe the contestants.

use std::env;
use std::path::Path;
use std::process::{Command, ExitCode};

/// The program that runs the benches in valgrind. Its version must be that of the library `gungraun`.
const RUNNER: &str = "gungraun-runner";
const RUNNER_VERSION: &str = "0.20.0";
/// The folder of a runner that is not on the `PATH`.
const TOOLS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/tools/bin");

fn main() -> ExitCode {
    // The runner starts this program again, inside valgrind, for each of the benches.
    let inside = env::args()
        .nth(1)
        .is_some_and(|argument| argument == "--gungraun-run");
    if inside || (is_installed("valgrind") && is_installed(RUNNER)) {
        counted::start();
        return ExitCode::SUCCESS;
    }
    if is_installed("valgrind") && Path::new(TOOLS).join(RUNNER).exists() {
        return again_with_tools();
    }
    println!("Nothing was counted: this bench needs valgrind (a package of your system) and {RUNNER}:");
    println!("cargo install {RUNNER} --version {RUNNER_VERSION} --locked --root target/tools");
    ExitCode::SUCCESS
}

fn is_installed(program: &str) -> bool {
    let folders = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&folders).any(|folder| folder.join(program).is_file())
}

fn again_with_tools() -> ExitCode {
    let folders = env::var_os("PATH").unwrap_or_default();
    let folders = env::join_paths(std::iter::once(TOOLS.into()).chain(env::split_paths(&folders)));
    let mut arguments = env::args_os();
    let program = arguments.next().expect("a program has a name");
    let status = Command::new(program)
        .args(arguments)
        .env("PATH", folders.expect("a list of folders"))
        .status();
    match status {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

mod counted {
    use std::hint::black_box;
    use std::pin::{Pin, pin};

    use futures_util::stream;
    use gungraun::prelude::*;
    use gungraun::{Callgrind, EntryPoint};
    use redrive::pipeline::{Batch, Pipeline, RecordOrder};
    use redrive::{RecordProcessor, Resilient, processor_fn};
    use tokio::runtime::Runtime;

    use bench::handlers::{Noop, YieldOnce, handle, handle_owned, measured, resilient, unprotected};
    use bench::{bare_loop, records, retries};

    const SETTLED: usize = 1_000;
    const RECORDS: usize = 20_000;
    const KEYS: u64 = 1_000;
    const BATCH: usize = 5_000;

    pub(super) fn start() {
        main();
    }

    fn runtime() -> Runtime {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime")
    }

    /// The entry point of the count: callgrind counts only what runs in this function. The function is not
    /// generic, so that its symbol name is fixed.
    #[inline(never)]
    fn count(runtime: &Runtime, work: Pin<&mut dyn Future<Output = ()>>) {
        runtime.block_on(work);
    }

    #[derive(Clone, Copy)]
    enum Loop {
        Bare,
        Redrive,
        RedriveUnprotected,
        RedriveFn,
        RedriveMeasured,
        Backon,
        BackonJitter,
        BackonOwned,
        BackonGuarded,
        Tower,
    }

    #[library_benchmark]
    #[bench::bare(Loop::Bare)]
    #[bench::redrive(Loop::Redrive)]
    #[bench::redrive_unprotected(Loop::RedriveUnprotected)]
    #[bench::redrive_fn(Loop::RedriveFn)]
    #[bench::redrive_measured(Loop::RedriveMeasured)]
    #[bench::backon(Loop::Backon)]
    #[bench::backon_jitter(Loop::BackonJitter)]
    #[bench::backon_owned(Loop::BackonOwned)]
    #[bench::backon_guarded(Loop::BackonGuarded)]
    #[bench::tower(Loop::Tower)]
    fn settle(contestant: Loop) {
        let record = &records::one();
        let plain = retries::exponential();
        match contestant {
            Loop::Bare => repeat(async || handle(black_box(record)).await),
            Loop::Redrive => {
                let resilient = resilient(Noop);
                repeat(async || resilient.settle(black_box(record)).await);
            }
            Loop::RedriveUnprotected => {
                let resilient = unprotected(Noop);
                repeat(async || resilient.settle(black_box(record)).await);
            }
            Loop::RedriveFn => {
                let resilient = resilient(processor_fn(handle_owned));
                repeat(async || resilient.settle(black_box(record)).await);
            }
            Loop::RedriveMeasured => {
                let resilient = measured(Noop);
                repeat(async || resilient.settle(black_box(record)).await);
            }
            Loop::Backon => repeat(async || retries::backon(black_box(record), black_box(plain)).await),
            Loop::BackonJitter => {
                let jitter = plain.with_jitter();
                repeat(async || retries::backon(black_box(record), black_box(jitter)).await);
            }
            Loop::BackonOwned => {
                repeat(async || retries::backon_owned(black_box(record), black_box(plain)).await);
            }
            Loop::BackonGuarded => {
                repeat(async || retries::backon_guarded(black_box(record), black_box(plain)).await);
            }
            Loop::Tower => {
                let mut service = retries::tower_retry();
                repeat(async || retries::call(&mut service, black_box(record)).await);
            }
        }
    }

    fn repeat<T>(mut call: impl AsyncFnMut() -> T) {
        let runtime = runtime();
        // The first call makes what is made once, so that it is not counted as a cost of the records.
        runtime.block_on(async { black_box(call().await) });
        let work = async {
            for _ in 0..SETTLED {
                black_box(call().await);
            }
        };
        count(&runtime, pin!(work));
    }

    #[library_benchmark]
    #[bench::shard(RecordOrder::Shard)]
    #[bench::partition_key(RecordOrder::PartitionKey)]
    #[bench::unordered(RecordOrder::Unordered)]
    fn pipeline(ordering: RecordOrder) {
        count_pipeline(ordering, &resilient(Noop));
    }

    #[library_benchmark]
    #[bench::shard(RecordOrder::Shard)]
    #[bench::partition_key(RecordOrder::PartitionKey)]
    #[bench::unordered(RecordOrder::Unordered)]
    fn pipeline_measured(ordering: RecordOrder) {
        count_pipeline(ordering, &measured(Noop));
    }

    #[library_benchmark]
    #[bench::shard(RecordOrder::Shard)]
    #[bench::partition_key(RecordOrder::PartitionKey)]
    #[bench::unordered(RecordOrder::Unordered)]
    fn futures_unordered(ordering: RecordOrder) {
        count_bare_loop(ordering, Noop);
    }

    #[library_benchmark]
    #[bench::shard(RecordOrder::Shard)]
    #[bench::partition_key(RecordOrder::PartitionKey)]
    #[bench::unordered(RecordOrder::Unordered)]
    fn pipeline_yields(ordering: RecordOrder) {
        count_pipeline(ordering, &resilient(YieldOnce));
    }

    #[library_benchmark]
    #[bench::shard(RecordOrder::Shard)]
    #[bench::partition_key(RecordOrder::PartitionKey)]
    #[bench::unordered(RecordOrder::Unordered)]
    fn futures_unordered_yields(ordering: RecordOrder) {
        count_bare_loop(ordering, YieldOnce);
    }

    fn count_pipeline(ordering: RecordOrder, resilient: &Resilient<impl RecordProcessor>) {
        let pipeline = Pipeline::builder().ordering(ordering).build().expect("valid");
        let batches = records::batches(RECORDS, KEYS, BATCH);
        let copy = stream::iter(batches.clone().into_iter().map(Batch::from));
        let work = async {
            let finished = pipeline.run(resilient, copy).await;
            assert!(finished.expect("nothing halts").complete);
        };
        count(&runtime(), pin!(work));
    }

    fn count_bare_loop(ordering: RecordOrder, processor: impl RecordProcessor) {
        let resilient = resilient(processor);
        let batches = records::batches(RECORDS, KEYS, BATCH);
        let copy = stream::iter(batches.clone());
        let work = async {
            let watermark = bare_loop::run(&resilient, ordering, copy).await;
            black_box(watermark.expect("all settled"));
        };
        count(&runtime(), pin!(work));
    }

    library_benchmark_group!(name = of_1000_records, benchmarks = [settle]);
    library_benchmark_group!(
        name = of_20000_records,
        benchmarks = [
            pipeline,
            pipeline_measured,
            futures_unordered,
            pipeline_yields,
            futures_unordered_yields
        ]
    );
    gungraun::main!(
        config = LibraryBenchmarkConfig::default()
            .tool(Callgrind::default().entry_point(EntryPoint::Custom("*counted::count".to_owned()))),
        library_benchmark_groups = [of_1000_records, of_20000_records]
    );
}
