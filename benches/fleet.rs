//! The cost of a fleet's tables: `cargo bench -p redrive-benches --bench fleet`.
//!
//! The bench *counts* the calls of two workers that share 8 shards on DynamoDB Local, and the capacity units that its
//! answers report: with idle shards, and with shards that store a checkpoint at every write interval. It *computes* the
//! same from the intervals of the code, and fails if the two differ by more than a quarter, as they may on a busy
//! machine. From the same formulas it computes the cost of 1,000 and of 10,000 shards, and compares them with KCL 3.
//!
//! Without DynamoDB Local (`REDRIVE_SKIP_EMULATORS=1`), nothing is counted.

use std::collections::{BTreeMap, HashMap};
use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::primitives::Blob;
use aws_sdk_kinesis::types::PutRecordsRequestEntry;
use bench::meter::{Call, Meter, Used};
use redrive::testing::kinesis::{self, KinesisServer};
use redrive::{
    Consumer, ConsumerError, Record, Resilient, StartingPosition, checkpoint, dead_letter, processor_fn,
};
use support::dynamodb::DynamoDbLocal;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Few enough for their rows to be read with one unit, whatever the workers have stored in them.
const SHARDS: usize = 8;
const WORKERS: usize = 2;
/// The largest difference between a counted and a computed rate.
const TOLERANCE: f64 = 0.25;
const PATIENCE: Duration = Duration::from_secs(120);

/// The load of the shards, and the write interval as a part of the failover time. The default is one half: 5 s of
/// 10 s.
const LOADS: [(&str, Option<f64>); 3] = [
    ("idle", None),
    ("a checkpoint each 1/2 failover time", Some(0.5)),
    ("a checkpoint each 3/10 failover time", Some(0.3)),
];

#[tokio::main]
async fn main() -> Result<ExitCode> {
    // The default failover time; a short one for `cargo test`.
    let (failover, window) = match bench::is_bench() {
        true => (Duration::from_secs(10), Duration::from_secs(150)),
        false => (Duration::from_secs(2), Duration::from_secs(6)),
    };
    let mut is_close = true;
    let mut row = 450.0;
    if let Some(dynamo) = DynamoDbLocal::shared() {
        let server = KinesisServer::start().await?;
        let (client, dynamo) = (server.client(), dynamo.client());
        let counts = LOADS.map(|(_, part)| {
            let interval = part.map(|part| failover.mul_f64(part));
            count(&client, &dynamo, failover, interval, window)
        });
        let counts = futures_util::future::try_join_all(counts).await?;
        println!(
            "COUNTED: {SHARDS} shards, {WORKERS} workers, failover time {failover:?}, {window:?} on DynamoDB Local, with \
             the units that its answers report. COMPUTED: the same from the intervals of the code.\n"
        );
        for ((name, part), counted) in LOADS.into_iter().zip(counts) {
            row = counted.row;
            is_close &= report(
                name,
                &counted,
                &Computed::new(SHARDS, WORKERS, failover, part, row),
            );
        }
    }
    extrapolate(row);
    if bench::is_bench() && !is_close {
        println!("a counted rate differs from the computed one by more than a quarter; is the machine busy?");
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// The units per second that two workers used.
struct Counted {
    leader: BTreeMap<Call, f64>,
    follower: BTreeMap<Call, f64>,
    /// The bytes of an average row of the lease table.
    row: f64,
}

impl Counted {
    fn all(&self, call: Call) -> f64 {
        let of = |worker: &BTreeMap<Call, f64>| worker.get(&call).copied().unwrap_or_default();
        of(&self.leader) + of(&self.follower)
    }
}

/// Counts what two workers use that share the shards of a stream. They store a checkpoint at each `interval`, or none.
async fn count(
    kinesis: &Client,
    dynamo: &aws_sdk_dynamodb::Client,
    failover: Duration,
    interval: Option<Duration>,
    window: Duration,
) -> Result<Counted> {
    let name = support::emulator::unique("fleet-bench");
    kinesis::create_stream(kinesis, &name, SHARDS as i32).await?;
    let meters = [Meter::default(), Meter::default()];
    let stop = CancellationToken::new();
    let mut running: Vec<JoinHandle<std::result::Result<(), ConsumerError>>> = Vec::new();
    for meter in &meters {
        let store = checkpoint::DynamoDb::new(meter.client(dynamo), name.as_str()).failover_time(failover);
        let consumer = Consumer::builder(kinesis.clone(), name.as_str())
            .starting_position(StartingPosition::TrimHorizon)
            .checkpoints(store.write_interval(interval.unwrap_or(failover / 2)))
            .build()?;
        let process = async |_: Record| -> std::result::Result<(), std::io::Error> { Ok(()) };
        let resilient = Resilient::builder("bench", processor_fn(process));
        let resilient = resilient.dead_letters(dead_letter::Memory::new()).build()?;
        running.push(tokio::spawn(
            consumer.run_until(resilient, stop.clone().cancelled_owned()),
        ));
    }
    let producing =
        interval.map(|_| tokio::spawn(produce(kinesis.clone(), name.as_str().into(), stop.clone())));
    even(dynamo, &name).await?;
    // Let the changes come to rest.
    sleep(failover).await;
    meters.iter().for_each(|meter| drop(meter.take()));
    let start = Instant::now();
    sleep(window).await;
    let used = meters.map(|meter| meter.take());
    let seconds = start.elapsed().as_secs_f64();
    // Now, and not before: the rows of a fleet that has just become even lack what later writes add.
    let row = average(&rows(dynamo, &name).await?);
    stop.cancel();
    for running in running {
        running.await??;
    }
    if let Some(producing) = producing {
        producing.await??;
    }
    let [mut leader, mut follower] = used.map(|used| {
        let rate = |(call, used): (Call, Used)| (call, used.units / seconds);
        used.into_iter().map(rate).collect::<BTreeMap<_, _>>()
    });
    if follower.contains_key(&Call::LeaseScan) {
        std::mem::swap(&mut leader, &mut follower);
    }
    Ok(Counted {
        leader,
        follower,
        row,
    })
}

/// Puts records into each shard, several per write interval.
async fn produce(kinesis: Client, stream: Arc<str>, stop: CancellationToken) -> Result<()> {
    for number in 0_u64.. {
        if stop.is_cancelled() {
            break;
        }
        let entries = (0..100).map(|key| {
            PutRecordsRequestEntry::builder()
                .partition_key(format!("customer-{key}"))
                .data(Blob::new(number.to_string()))
                .build()
        });
        let entries = entries.collect::<std::result::Result<Vec<_>, _>>()?;
        let call = kinesis.put_records().stream_name(&*stream);
        call.set_records(Some(entries)).send().await?;
        sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

type Row = HashMap<String, AttributeValue>;

/// Reads the lease table.
async fn rows(dynamo: &aws_sdk_dynamodb::Client, table: &str) -> Result<Vec<Row>> {
    let scan = dynamo
        .scan()
        .table_name(table)
        .consistent_read(true)
        .send()
        .await?;
    Ok(scan.items.unwrap_or_default())
}

/// Returns the bytes of an average row.
fn average(rows: &[Row]) -> f64 {
    let attributes = rows.iter().flatten();
    let bytes: usize = attributes.map(|(name, value)| name.len() + length(value)).sum();
    bytes as f64 / rows.len() as f64
}

/// Waits until both workers have the same number of shards.
async fn even(dynamo: &aws_sdk_dynamodb::Client, table: &str) -> Result<()> {
    let start = Instant::now();
    loop {
        // The table does not exist before a worker has made it.
        let rows = rows(dynamo, table).await.unwrap_or_default();
        let mut shares: BTreeMap<&str, usize> = BTreeMap::new();
        for row in rows.iter().filter(|row| !row.contains_key("checkpointOwner")) {
            if let Some(AttributeValue::S(owner)) = row.get("leaseOwner") {
                *shares.entry(owner).or_default() += 1;
            }
        }
        if shares.len() == WORKERS && shares.values().all(|share| *share == SHARDS / WORKERS) {
            return Ok(());
        }
        if start.elapsed() > PATIENCE {
            return Err(format!("the shards are not shared evenly after {PATIENCE:?}: {shares:?}").into());
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// Returns the bytes of a value, as DynamoDB counts them.
fn length(value: &AttributeValue) -> usize {
    match value {
        AttributeValue::S(text) => text.len(),
        AttributeValue::N(number) => number.len().div_ceil(2) + 1,
        AttributeValue::B(bytes) => bytes.as_ref().len(),
        AttributeValue::Ss(texts) => 3 + texts.iter().map(String::len).sum::<usize>(),
        _ => 1,
    }
}

/// The units per second that a fleet uses, computed from the intervals of the code.
struct Computed {
    /// Writes that only renew a lease.
    renewals: f64,
    checkpoints: f64,
    /// The renewals if a checkpoint did not count as one.
    plain_renewals: f64,
    queries: f64,
    announcements: f64,
    announcement_reads: f64,
    /// The followers' reads of the leader's item.
    leader_reads: f64,
    heartbeats: f64,
    lease_scans: f64,
    worker_scans: f64,
    /// Listing the shards and reading their rows, every 5 min.
    surveys: f64,
}

/// The time in seconds between two checkpoints of an idle shard: they store the time up to which it was read.
const IDLE_CHECKPOINT: f64 = 60.0;
/// The mean of a time with jitter: between three quarters and all of it.
const JITTER: f64 = 0.875;
/// The bytes of a worker's own row, and of an entry of the index.
const WORKER_ROW: f64 = 150.0;
const INDEX_ENTRY: f64 = 100.0;

impl Computed {
    fn new(shards: usize, workers: usize, failover: Duration, write_interval: Option<f64>, row: f64) -> Self {
        let (shards, workers) = (shards as f64, workers as f64);
        let failover = failover.as_secs_f64();
        // Leases are renewed a third of the failover time after the last write, a checkpoint included.
        let plain_renewals = 3.0 / failover;
        let interval = write_interval.map_or(IDLE_CHECKPOINT, |part| part * failover);
        let renewals = (interval * plain_renewals - 1e-9).ceil() - 1.0;
        let (checkpoints, renewals) = (1.0 / interval, renewals / interval);
        // A worker looks for its shards a third of the failover time after the last look, and announces itself when
        // the last announcement is 30 s old at that moment.
        let look = failover / 3.0 * JITTER;
        // The leader scans both tables every quarter of the failover time, and writes its item when the last write
        // is as old as the failover time at that moment.
        let run = failover / 4.0 * JITTER;
        let announcement = look * (30.0 / look).ceil();
        Computed {
            renewals: renewals * shards,
            checkpoints: checkpoints * shards,
            plain_renewals: plain_renewals * shards,
            queries: workers * eventual(shards / workers * INDEX_ENTRY) / look,
            announcements: workers / announcement,
            announcement_reads: (workers - 1.0) * 0.5 / announcement,
            leader_reads: (workers - 1.0) / (failover * JITTER),
            heartbeats: 1.0 / (run * (failover / run).ceil()),
            lease_scans: eventual(shards * row) / run,
            worker_scans: eventual(workers * WORKER_ROW) / run,
            surveys: (shards + 2.0 * eventual(shards * row)) / 300.0,
        }
    }

    fn writes(&self) -> f64 {
        self.renewals + self.checkpoints + self.announcements + self.heartbeats
    }

    fn reads(&self) -> f64 {
        self.queries
            + self.announcement_reads
            + self.leader_reads
            + self.lease_scans
            + self.worker_scans
            + self.surveys
    }
}

/// Returns the read units of an eventually consistent read.
fn eventual(bytes: f64) -> f64 {
    (bytes / 4_096.0).ceil().max(1.0) / 2.0
}

/// Prints the counted and the computed rates. Returns false if they differ.
fn report(load: &str, counted: &Counted, computed: &Computed) -> bool {
    let (shards, workers) = (SHARDS as f64, WORKERS as f64);
    println!("{load}: average row {:.0} bytes", counted.row);
    println!("{:<54} {:>8} {:>9}", "", "counted", "computed");
    let mut is_close = true;
    let mut line = |what: &str, counted: f64, computed: f64| {
        println!("  {what:<52} {counted:>8.3} {computed:>9.3}");
        is_close &= (counted - computed).abs() <= TOLERANCE * computed.max(0.1);
    };
    let (renewals, checkpoints) = (counted.all(Call::Renewal), counted.all(Call::Checkpoint));
    line(
        "renewals, WCU/s per lease",
        renewals / shards,
        computed.renewals / shards,
    );
    line(
        "checkpoints, WCU/s per lease",
        checkpoints / shards,
        computed.checkpoints / shards,
    );
    line(
        "index queries, RCU/s per worker",
        counted.all(Call::Query) / workers,
        computed.queries / workers,
    );
    let announcements = counted.all(Call::Announcement);
    line(
        "announcements, WCU/s per worker",
        announcements / workers,
        computed.announcements / workers,
    );
    line(
        "followers' reads of the leader's announcement, RCU/s",
        counted.all(Call::LeaderAnnouncement),
        computed.announcement_reads,
    );
    line(
        "a follower's reads of the leader, RCU/s",
        counted.all(Call::LeaderRead),
        computed.leader_reads,
    );
    line(
        "the leader's heartbeats, WCU/s",
        counted.all(Call::Heartbeat),
        computed.heartbeats,
    );
    line(
        "the leader's scans of leases, RCU/s",
        counted.all(Call::LeaseScan),
        computed.lease_scans,
    );
    line(
        "the leader's scans of workers, RCU/s",
        counted.all(Call::WorkerScan),
        computed.worker_scans,
    );
    let (now, before) = (renewals + checkpoints, checkpoints + computed.plain_renewals);
    println!(
        "  writes per lease {:.3} WCU/s; {:.3} if a checkpoint were no renewal (checkpoints counted, renewals \
         computed): {:.0} % saved",
        now / shards,
        before / shards,
        100.0 * (1.0 - now / before),
    );
    let rest = counted.all(Call::Change) + counted.all(Call::Rows);
    println!("  other writes and reads of lease rows {rest:.3} units/s\n");
    is_close
}

/// Dollars per million units on demand (us-east-1), and the seconds of a month.
const WRITE_PRICE: f64 = 0.625;
const READ_PRICE: f64 = 0.125;
const MONTH: f64 = 730.5 * 3_600.0;

fn dollars(writes: f64, reads: f64) -> f64 {
    (writes * WRITE_PRICE + reads * READ_PRICE) * MONTH / 1e6
}

/// Prints the computed cost of large fleets.
fn extrapolate(row: f64) {
    println!(
        "COMPUTED: failover time 10 s, 10 shards per worker (5 in the first line), rows of {row:.0} bytes. KCL 3: its \
         intervals, rows of 500 bytes, 0.302 WCU/s per lease for renewals.\n"
    );
    println!(
        "  shards workers  checkpoints       |  lease writes  other writes    reads $/month  | KCL 3: writes  reads $/month"
    );
    println!(
        "                                    |         WCU/s         WCU/s    RCU/s          |         WCU/s  RCU/s"
    );
    let failover = Duration::from_secs(10);
    for (shards, workers) in [(10, 2), (1_000, 100), (10_000, 1_000)] {
        for (name, part) in [("idle", None), ("each 5 s", Some(0.5)), ("each 3 s", Some(0.3))] {
            let fleet = Computed::new(shards, workers, failover, part, row);
            // KCL stores no checkpoint of an idle shard.
            let checkpoints = part.map_or(0.0, |_| fleet.checkpoints);
            let (kcl_writes, kcl_reads) = kcl(shards, workers, checkpoints);
            let lease_writes = fleet.renewals + fleet.checkpoints;
            println!(
                "  {shards:>6} {workers:>7}  {name:<16}  |  {lease_writes:>12.1} {:>13.2} {:>8.1} {:>7.0}  | {kcl_writes:>13.1} {kcl_reads:>6.1} {:>7.0}",
                fleet.writes() - lease_writes,
                fleet.reads(),
                dollars(fleet.writes(), fleet.reads()),
                dollars(kcl_writes, kcl_reads),
            );
        }
    }
    let fleet = Computed::new(10_000, 1_000, failover, None, row);
    println!(
        "\n  of the reads at 10,000 shards: the leader's scans of leases {:.1} and of workers {:.1} RCU/s (once per quarter \
         of the failover time), its surveys {:.1}, index queries {:.1}, reads of the leader's item {:.1}",
        fleet.lease_scans, fleet.worker_scans, fleet.surveys, fleet.queries, fleet.leader_reads
    );
}

/// Returns the writes and reads per second of a fleet of KCL 3 with its default intervals.
fn kcl(shards: usize, workers: usize, checkpoints: f64) -> (f64, f64) {
    let (shards, workers) = (shards as f64, workers as f64);
    // Renewals every failover/3 − 25 ms, checkpoints in addition, a metrics row every 30 s.
    let writes = shards / 3.308 + checkpoints + workers / 30.0;
    // A scan of the leases every 20 s, an index query every 10 s, and a look at the lock every 30 s.
    let reads = eventual(shards * 500.0) / 20.0 + workers * 0.5 / 10.0 + workers * 2.0 / 30.0;
    (writes, reads)
}
