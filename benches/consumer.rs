//! The cost of a `Consumer` compared with a bare GetRecords loop:
//! `cargo bench -p redrive-benches --bench consumer`.
//!
//! All read the same 500,000 records of 200 bytes from the same 4 shards of the embedded Kinesis server, as fast as
//! they can: the loop with the SDK as it is, the consumer in JSON and in CBOR. All use the same client: the same HTTP
//! stack, no retries, an attempt timeout of 30 s, and the same limit per call. All hand each record to a function
//! that only counts. The consumer has key order, checkpoints and dead letters in memory, a page read ahead, and its
//! window. The loop has none of these.
//!
//! The bench measures **this process's CPU time** per record. The server runs in its own process. Runs
//! alternate. Single runs are noisy, so the result is the median of the ratios to the loop of the same round.
//! Allocations are counted in a run on one thread.

use std::error::Error;
use std::hint::black_box;
use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::config::retry::RetryConfig;
use aws_sdk_kinesis::config::timeout::TimeoutConfig;
use aws_sdk_kinesis::types::ShardIteratorType;
use bench::median;
use bench::report::Table;
use bench::server::Server;
use bench::stream;
use redrive::consumer::Wire;
use redrive::observer::{Event, Interest, Observer, ShardEvent};
use redrive::processor::Attempt;
use redrive::testing::kinesis;
use redrive::{Consumer, Record, RecordProcessor, Resilient, checkpoint, dead_letter};
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::Notify;
use tokio::task::JoinSet;

const STREAM: &str = "orders";
const SHARDS: i32 = 4;
/// The maximum CPU time of the consumer per record, compared with the loop, at the largest limit.
const TARGETS: [(Reader, f64); 2] = [
    (Reader::Consumer(Wire::Json), 1.0),
    (Reader::Consumer(Wire::Cbor), 0.8),
];
/// The maximum number of allocations of the consumer per record. Two are its payload and its metadata. The
/// rest is what the SDK allocates for each call, about 400 times, and the start.
const ALLOCATIONS: f64 = 2.1;
type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// A way to read the records.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Reader {
    Loop,
    Consumer(Wire),
}

const READERS: [Reader; 3] = [
    Reader::Loop,
    Reader::Consumer(Wire::Json),
    Reader::Consumer(Wire::Cbor),
];

impl Reader {
    fn name(self) -> &'static str {
        match self {
            Reader::Loop => "loop, JSON",
            Reader::Consumer(Wire::Cbor) => "consumer, CBOR",
            Reader::Consumer(_) => "consumer, JSON",
        }
    }

    async fn run(self, server: &Server, records: u64, limit: u32) -> Result<Run> {
        match self {
            Reader::Loop => bare_loop(server, records, limit).await,
            Reader::Consumer(wire) => consumer(server, records, limit, wire).await,
        }
    }
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let (records, rounds) = if bench::is_bench() {
        (500_000, 21)
    } else {
        (2_000, 1)
    };
    let server = bench::start_server!("kinesis")?;
    kinesis::create_stream(&kinesis::client(&server.endpoint), STREAM, SHARDS).await?;
    stream::fill(&kinesis::client(&server.endpoint), STREAM, records).await?;
    let mut missed = false;
    let mut table = Table::new(
        "consumer",
        &[
            "records per call",
            "reader         ",
            "CPU per record",
            "compared with the loop",
            "all rounds  ",
            "calls  ",
            "records/s",
            "allocations per record",
        ],
    );
    for limit in [10_000, 1_000] {
        let mut runs: [Vec<Run>; READERS.len()] = Default::default();
        for round in 0..rounds {
            // Another one begins in each round, because each run changes the state of the server.
            for place in 0..READERS.len() {
                let place = (place + round) % READERS.len();
                runs[place].push(READERS[place].run(&server, records, limit).await?);
            }
        }
        let [of_loop, ..] = &runs;
        for (reader, runs) in READERS.into_iter().zip(&runs) {
            let ratios = runs
                .iter()
                .zip(of_loop)
                .map(|(run, of_loop)| run.cpu / of_loop.cpu);
            let mut ratios: Vec<f64> = ratios.collect();
            let ratio = median(&mut ratios);
            let middle = |of: fn(&Run) -> f64| median(&mut runs.iter().map(of).collect::<Vec<_>>());
            let cpu = middle(|run| run.cpu);
            let allocations = allocations(&server, reader, records, limit)?;
            table.row([
                limit.to_string(),
                reader.name().to_owned(),
                format!("{cpu:.2} µs"),
                format!("{ratio:.2}"),
                format!("{:.2} to {:.2}", ratios[0], ratios[ratios.len() - 1]),
                format!("{:.0}", middle(|run| run.calls as f64)),
                format!("{:.0}", middle(|run| run.rate)),
                format!("{allocations:.2}"),
            ]);
            if limit == 10_000 {
                table.bar(
                    "client CPU per record in µs, 10,000 records per call",
                    reader.name(),
                    cpu,
                );
                let target = TARGETS.iter().find(|(of, _)| *of == reader);
                missed |= target.is_some_and(|(_, target)| ratio > *target);
                missed |= reader != Reader::Loop && allocations > ALLOCATIONS;
            }
        }
    }
    table.note(format!(
        "{records} records of {} bytes in {SHARDS} shards, medians of {rounds} rounds. The consumer allocates twice per \
         record, for its payload and its metadata; the SDK allocates for each call, in the loop as well.",
        stream::PAYLOAD_BYTES
    ));
    table.finish();
    if bench::is_bench() && missed {
        println!(
            "the consumer costs more than {TARGETS:?} of the loop, or more than {ALLOCATIONS} allocations"
        );
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// Counts the allocations per record, on a thread that does everything.
fn allocations(server: &Server, reader: Reader, records: u64, limit: u32) -> Result<f64> {
    std::thread::scope(|scope| {
        let counting = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            let mut result = Ok(());
            let counted = allocation_counter::measure(|| {
                result = runtime.block_on(reader.run(server, records, limit)).map(drop);
            });
            result.map(|()| counted.count_total as f64 / records as f64)
        });
        counting.join().map_err(|_| "the run panicked")?
    })
}

fn client(server: &Server) -> Client {
    let client = kinesis::client(&server.endpoint);
    let timeouts = TimeoutConfig::builder().operation_attempt_timeout(Duration::from_secs(30));
    let config = client.config().to_builder();
    let config = config
        .retry_config(RetryConfig::disabled())
        .timeout_config(timeouts.build());
    Client::from_conf(config.build())
}

/// The measurements of one run.
struct Run {
    /// Microseconds of this process's CPU time per record.
    cpu: f64,
    /// Records per second.
    rate: f64,
    /// The number of GetRecords calls.
    calls: u64,
}

impl Run {
    async fn measure(records: u64, reading: impl Future<Output = Result<u64>>) -> Result<Run> {
        let (cpu, start) = (cpu_time(), Instant::now());
        let calls = reading.await?;
        Ok(Run {
            cpu: (cpu_time() - cpu).as_secs_f64() * 1e6 / records as f64,
            rate: records as f64 / start.elapsed().as_secs_f64(),
            calls,
        })
    }
}

fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Counts records, and notifies when all have arrived.
struct Counter {
    left: AtomicU64,
    done: Notify,
}

impl Counter {
    fn new(records: u64) -> Arc<Self> {
        Arc::new(Counter {
            left: AtomicU64::new(records),
            done: Notify::new(),
        })
    }

    /// Handles a record, for the consumer and for the bare loop.
    fn handle(&self, payload: &[u8]) {
        black_box(payload.len());
        if self.left.fetch_sub(1, Relaxed) == 1 {
            self.done.notify_one();
        }
    }
}

async fn bare_loop(server: &Server, records: u64, limit: u32) -> Result<Run> {
    let client = client(server);
    let counter = Counter::new(records);
    Run::measure(records, async {
        let shards = client.list_shards().stream_name(STREAM).send().await?;
        let mut loops = JoinSet::new();
        for shard in shards.shards() {
            loops.spawn(read(
                client.clone(),
                shard.shard_id().to_owned(),
                limit as i32,
                counter.clone(),
            ));
        }
        let mut calls = 0;
        while let Some(done) = loops.join_next().await {
            calls += done??;
        }
        assert_eq!(counter.left.load(Relaxed), 0);
        Ok(calls)
    })
    .await
}

/// Reads one shard to its tip and returns the number of calls.
async fn read(client: Client, shard: String, limit: i32, counter: Arc<Counter>) -> Result<u64> {
    let first = client.get_shard_iterator().stream_name(STREAM).shard_id(shard);
    let first = first
        .shard_iterator_type(ShardIteratorType::TrimHorizon)
        .send()
        .await?;
    let mut iterator = first.shard_iterator;
    let mut calls = 0;
    while let Some(token) = iterator {
        let page = client
            .get_records()
            .shard_iterator(token)
            .limit(limit)
            .send()
            .await?;
        calls += 1;
        for record in page.records() {
            counter.handle(record.data.as_ref());
        }
        if page.records.is_empty() {
            break;
        }
        iterator = page.next_shard_iterator;
    }
    Ok(calls)
}

async fn consumer(server: &Server, records: u64, limit: u32, wire: Wire) -> Result<Run> {
    let client = client(server);
    let counter = Counter::new(records);
    let calls = Arc::new(Calls::default());
    let resilient = Resilient::builder("bench", Counting(counter.clone()))
        .dead_letters(dead_letter::Memory::new())
        .observer(calls.clone())
        .build()?;
    let consumer = Consumer::builder(client, STREAM)
        .wire(wire)
        .checkpoints(checkpoint::Memory::new())
        .calls_per_second(1e6)
        .records_per_call(limit)
        .build()?;
    Run::measure(records, async {
        consumer.run_until(resilient, counter.done.notified()).await?;
        assert_eq!(counter.left.load(Relaxed), 0);
        Ok(calls.0.load(Relaxed))
    })
    .await
}

struct Counting(Arc<Counter>);

impl RecordProcessor for Counting {
    type Error = io::Error;

    async fn process(&self, record: &Record, _: &Attempt<'_>) -> io::Result<()> {
        self.0.handle(record.payload());
        Ok(())
    }
}

/// Counts GetRecords calls.
#[derive(Default)]
struct Calls(AtomicU64);

impl Observer for Calls {
    fn interest(&self) -> Interest {
        Interest::SHARDS
    }

    fn on(&self, event: &Event<'_>) {
        if matches!(
            event,
            Event::Shard {
                event: ShardEvent::Fetched { .. },
                ..
            }
        ) {
            self.0.fetch_add(1, Relaxed);
        }
    }
}
