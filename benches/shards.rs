//! The memory of an idle shard, and the time to the first record:
//! `cargo bench -p redrive-benches --bench shards`.
//!
//! The bench compares the peak resident memory of a consumer of many shards with that of a consumer of one
//! shard, and divides the difference by the additional shards. Memory is measured once every shard has been
//! polled three times, and only on Linux. Each consumer and the embedded Kinesis server run in their own
//! processes.
//!
//! The first record comes from a stream of four shards, with a new lease table on DynamoDB Local. Without
//! DynamoDB Local (`REDRIVE_SKIP_EMULATORS=1`), this part is skipped with a message.

use std::collections::HashMap;
use std::env;
use std::error::Error;
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aws_sdk_kinesis::primitives::Blob;
use bench::report::Table;
use bench::server::Server;
use redrive::observer::{Event, Interest, Observer, ShardEvent};
use redrive::testing::kinesis;
use redrive::{Consumer, Record, Resilient, ShardId, checkpoint, dead_letter, processor_with};
use support::dynamodb::DynamoDbLocal;
use tokio::sync::{Notify, mpsc};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// The environment variable that makes this program a consumer. Its value is an endpoint and a stream name.
const CONSUME: &str = "REDRIVE_BENCH_CONSUME";
/// The number of polls of each shard before memory is measured.
const POLLS: u32 = 3;
/// The maximum bytes of memory per idle shard.
const MOST_BYTES: f64 = 24.0 * 1024.0;
/// The maximum time from the start of a consumer to its first record.
const SOON: Duration = Duration::from_secs(1);

#[tokio::main]
async fn main() -> Result<ExitCode> {
    if let Ok(what) = env::var(CONSUME) {
        let (endpoint, stream) = what
            .split_once(' ')
            .ok_or("REDRIVE_BENCH_CONSUME must be an endpoint and a stream")?;
        println!("{}", idle(endpoint, stream).await?);
        return Ok(ExitCode::SUCCESS);
    }
    let (shards, rounds) = if bench::is_bench() { (1_000, 5) } else { (10, 1) };
    let server = bench::start_server!("kinesis")?;
    let client = kinesis::client(&server.endpoint);
    kinesis::create_stream(&client, "one", 1).await?;
    kinesis::create_stream(&client, "many", shards).await?;
    let (mut one, mut many) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        one.push(consume(&server, "one")?);
        many.push(consume(&server, "many")?);
    }
    let (one, many) = (bench::median(&mut one), bench::median(&mut many));
    let each = (many - one) / f64::from(shards - 1);
    let mut table = Table::new(
        "shards",
        &["measured                                       ", "result      "],
    );
    table.row([
        format!("peak resident memory, {shards} idle shards"),
        format!("{:.1} MiB", many / 1_048_576.0),
    ]);
    table.row([
        "peak resident memory, one idle shard".to_owned(),
        format!("{:.1} MiB", one / 1_048_576.0),
    ]);
    table.row([
        "memory per additional idle shard".to_owned(),
        format!("{:.1} KiB", each / 1_024.0),
    ]);
    let mut missed = each > MOST_BYTES;

    if let Some(dynamo) = DynamoDbLocal::shared() {
        let mut times = Vec::new();
        for round in 0..rounds {
            times.push(first_record(&server, dynamo, round).await?.as_secs_f64());
        }
        let longest = times.iter().copied().fold(0.0, f64::max);
        table.row([
            "4 shards, a new lease table: first record after".to_owned(),
            format!("{:.0} ms", bench::median(&mut times) * 1_000.0),
        ]);
        table.row([
            "the same, longest of all rounds".to_owned(),
            format!("{:.0} ms", longest * 1_000.0),
        ]);
        missed |= longest > SOON.as_secs_f64();
    }
    table.note(format!("Medians of {rounds} rounds."));
    table.finish();
    if bench::is_bench() && missed {
        println!(
            "more than {} KiB per shard, or a first record later than {SOON:?}",
            MOST_BYTES / 1_024.0
        );
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs a consumer in its own process, and returns the consumer's peak resident bytes.
fn consume(server: &Server, stream: &str) -> Result<f64> {
    let output = Command::new(env::current_exe()?)
        .env(CONSUME, format!("{} {stream}", server.endpoint))
        .stderr(Stdio::inherit())
        .output()?;
    Ok(String::from_utf8(output.stdout)?.trim().parse()?)
}

/// Counts the polls of each shard.
#[derive(Default)]
struct Polls {
    shards: Mutex<HashMap<ShardId, u32>>,
    enough: Notify,
}

impl Observer for Polls {
    fn interest(&self) -> Interest {
        Interest::SHARDS
    }

    fn on(&self, event: &Event<'_>) {
        let Event::Shard { shard, event, .. } = event else {
            return;
        };
        let mut shards = self.shards.lock().expect("no panic");
        match event {
            ShardEvent::Started { .. } => drop(shards.insert((*shard).clone(), 0)),
            ShardEvent::Fetched { .. } => *shards.entry((*shard).clone()).or_default() += 1,
            _ => return,
        }
        if shards.values().all(|polls| *polls >= POLLS) {
            self.enough.notify_one();
        }
    }
}

/// Reads a stream until each shard has been polled `POLLS` times, and returns the peak resident bytes.
async fn idle(endpoint: &str, stream: &str) -> Result<u64> {
    let polls = Arc::new(Polls::default());
    let (sender, _records) = mpsc::unbounded_channel();
    let resilient = resilient(sender, polls.clone())?;
    let consumer = Consumer::builder(kinesis::client(endpoint), stream)
        .checkpoints(checkpoint::Memory::new())
        .build()?;
    let enough = async {
        polls.enough.notified().await;
    };
    consumer.run_until(resilient, enough).await?;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = peak.and_then(|peak| peak.trim().trim_end_matches(" kB").parse::<u64>().ok());
    Ok(kib.unwrap_or(0) * 1_024)
}

/// Measures the time from the start of a consumer to its first record.
async fn first_record(server: &Server, dynamo: &DynamoDbLocal, round: usize) -> Result<Duration> {
    let stream = format!("first-{round}");
    let client = kinesis::client(&server.endpoint);
    kinesis::create_stream(&client, &stream, 4).await?;
    let put = client.put_record().stream_name(&stream).partition_key("key");
    put.data(Blob::new("an order")).send().await?;
    let (sender, mut records) = mpsc::unbounded_channel();
    let resilient = resilient(sender, Arc::new(Polls::default()))?;
    let start = Instant::now();
    let consumer = Consumer::builder(client, stream.as_str())
        .checkpoints(checkpoint::DynamoDb::new(dynamo.client(), stream.as_str()))
        .build()?;
    let running = tokio::spawn(consumer.run(resilient));
    records
        .recv()
        .await
        .ok_or("the consumer ended without a record")?;
    let took = start.elapsed();
    running.abort();
    Ok(took)
}

type Handler = mpsc::UnboundedSender<Record>;

fn resilient(
    sender: Handler,
    polls: Arc<Polls>,
) -> Result<Resilient<impl redrive::RecordProcessor + 'static>> {
    let send = async |sender: Handler, record: Record| -> std::result::Result<(), std::io::Error> {
        let _ = sender.send(record);
        Ok(())
    };
    let builder = Resilient::builder("bench", processor_with(sender, send));
    Ok(builder
        .dead_letters(dead_letter::Memory::new())
        .observer(polls)
        .build()?)
}
