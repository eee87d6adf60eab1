//! redrive compared with the Kinesis Client Library (KCL) 3 on the same stream:
//! `cargo bench -p redrive-benches --bench kcl`.
//!
//! Both poll the same 2,000,000 records of 200 bytes from the same 4 shards of the embedded Kinesis server.
//! Both write their checkpoints every 5 s to a new lease table on DynamoDB Local. Both hand each record to a
//! processor that only counts. KCL's processor is written in Java and runs in KCL's process, which is the
//! cheapest form. Client, server and table each run in their own process. Each client measures its CPU time
//! when its first and its last record arrive. The bench also reads the peak memory of each client, and the CPU time of
//! the server, which limits a fast client.
//!
//! KCL polls every 200 ms, the shortest interval that it accepts. redrive runs with its default interval, which
//! is the same, and as fast as it can; the latter in JSON and in CBOR, which is what KCL reads. KCL's heap grows
//! while memory is available, so KCL also runs with a heap of 512 MiB. kcl-rs is a port of KCL 3 to Rust, whose
//! processor is written in Python. It polls every 200 ms, too.
//!
//! The bench needs Linux, a JDK, Python and npm, and the network at first use.

use std::env;
use std::error::Error;
use std::fs;
use std::hint::black_box;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use bench::median;
use bench::report::Table;
use bench::server::Server;
use bench::stream;
use redrive::checkpoint::DynamoDb;
use redrive::consumer::Wire;
use redrive::processor::Attempt;
use redrive::testing::kinesis;
use redrive::{Consumer, Record, RecordProcessor, Resilient, dead_letter};
use rustix::time::{ClockId, clock_gettime};
use support::dynamodb;
use support::dynamodb::DynamoDbLocal;
use support::kcl;
use support::python;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// The environment variable that makes this program a consumer.
const CONSUME: &str = "REDRIVE_BENCH_CONSUME";
const STREAM: &str = "orders";
const SHARDS: i32 = 4;
const RECORDS: u64 = 2_000_000;
const ROUNDS: usize = 3;
/// The minimum factors of KCL's CPU time and memory to redrive's, and of redrive's rate to KCL's.
const TARGETS: [f64; 3] = [7.0, 10.0, 3.0];

#[tokio::main]
async fn main() -> Result<ExitCode> {
    if let Ok(what) = env::var(CONSUME) {
        consume(&what).await?;
        return Ok(ExitCode::SUCCESS);
    }
    if !bench::is_bench() {
        println!("skipped: KCL takes minutes");
        return Ok(ExitCode::SUCCESS);
    }
    let (Some((_, jars)), Some(dynamo)) = (kcl::install(), DynamoDbLocal::shared()) else {
        return Ok(ExitCode::SUCCESS);
    };
    let python = python::with("benches/kcl/kcl_rs/requirements.txt").ok_or("Python is needed")?;
    let classes = compile(&jars)?;
    let server = bench::start_server!("kinesis")?;
    let client = kinesis::client(&server.endpoint);
    kinesis::create_stream(&client, STREAM, SHARDS).await?;
    stream::fill(&client, STREAM, RECORDS).await?;
    let dynamodb = dynamo.endpoint();
    let clients = [
        Client::kcl("KCL 3", &classes, &[]),
        Client::kcl("KCL 3, 512 MiB of heap", &classes, &["-Xmx512m"]),
        Client::kcl_rs(&python),
        Client::redrive("redrive", "5", "json"),
        Client::redrive("redrive, unbounded", "1e6", "json"),
        Client::redrive("redrive, unbounded, CBOR", "1e6", "cbor"),
    ];
    let mut runs: Vec<Vec<Run>> = clients.iter().map(|_| Vec::new()).collect();
    for round in 0..ROUNDS {
        for (client, runs) in clients.iter().zip(&mut runs) {
            eprintln!("run {} of {ROUNDS}: {}", round + 1, client.name);
            runs.push(client.run(
                &server,
                dynamodb,
                &format!("{}-{round}", client.name.replace([' ', ','], "-")),
            )?);
        }
    }
    let runs: Vec<Run> = runs.iter().map(|runs| Run::middle(runs)).collect();
    let mut table = Table::new(
        "kcl",
        &[
            "client                ",
            "CPU s per million",
            "with the start",
            "peak memory",
            "records/s",
            "server CPU s per million",
            "first record after",
        ],
    );
    for (client, run) in clients.iter().zip(&runs) {
        table.row([
            client.name.to_owned(),
            format!("{:.2}", run.cpu),
            format!("{:.2}", run.cpu_with_start),
            format!("{:.0} MiB", run.mebibytes),
            format!("{:.0}", run.rate),
            format!("{:.2}", run.server_cpu),
            format!("{:.1} s", run.first_after),
        ]);
        table.bar("seconds of client CPU per million records", client.name, run.cpu);
    }
    table.note(format!(
        "{RECORDS} records of {} bytes in {SHARDS} shards, medians of {ROUNDS} runs.",
        stream::PAYLOAD_BYTES
    ));
    let mut missed = false;
    // The first is judged: in CBOR, which is what KCL reads, and with KCL's default heap.
    for (ours, theirs) in [(5, 0), (5, 1), (5, 2), (4, 0), (3, 0)] {
        let (us, them) = (&runs[ours], &runs[theirs]);
        let times = [
            them.cpu / us.cpu,
            them.mebibytes / us.mebibytes,
            us.rate / them.rate,
        ];
        table.note(format!(
            "{} compared with {}: {:.1} times less CPU, {:.1} times less memory, {:.1} times the rate.",
            clients[ours].name, clients[theirs].name, times[0], times[1], times[2]
        ));
        let is_judged = (ours, theirs) == (5, 0);
        missed |= is_judged && times.iter().zip(TARGETS).any(|(times, target)| *times < target);
    }
    table.finish();
    if missed {
        println!(
            "below the target factors {TARGETS:?} (unbounded redrive in CBOR compared with KCL's default heap)"
        );
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// Compiles the KCL application, and returns the class path with everything that the application needs.
fn compile(jars: &Path) -> Result<String> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("kcl");
    let classes = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("kcl");
    fs::create_dir_all(&classes)?;
    let jars = format!("{}/*", jars.display());
    let mut javac = Command::new("javac");
    javac.arg("-cp").arg(&jars).arg("-d").arg(&classes);
    let compiled = javac.arg(source.join("Beside.java")).status();
    if !compiled
        .map_err(|error| format!("cannot run javac: {error}; install a JDK"))?
        .success()
    {
        return Err("Beside.java does not compile".into());
    }
    Ok(format!("{}:{}:{jars}", classes.display(), source.display()))
}

/// A program that reads the stream.
struct Client {
    name: &'static str,
    program: PathBuf,
    arguments: Vec<String>,
    /// The settings of redrive. Empty: another program, whose settings are fixed.
    settings: String,
}

impl Client {
    fn kcl(name: &'static str, classes: &str, options: &[&str]) -> Self {
        let options = options.iter().map(|option| (*option).to_owned());
        let start = ["-cp".to_owned(), classes.to_owned(), "Beside".to_owned()];
        Client {
            name,
            program: "java".into(),
            arguments: options.chain(start).collect(),
            settings: String::new(),
        }
    }

    fn kcl_rs(python: &Path) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("kcl/kcl_rs/count.py");
        Client {
            name: "kcl-rs",
            program: python.to_path_buf(),
            arguments: vec![script.display().to_string()],
            settings: String::new(),
        }
    }

    fn redrive(name: &'static str, calls_per_second: &str, wire: &str) -> Self {
        Client {
            name,
            program: env::current_exe().unwrap_or_default(),
            arguments: Vec::new(),
            settings: format!("{calls_per_second} {wire}"),
        }
    }

    /// Runs the program from its start to the last record.
    fn run(&self, server: &Server, dynamodb: &str, application: &str) -> Result<Run> {
        let what = [
            &server.endpoint,
            dynamodb,
            application,
            STREAM,
            &RECORDS.to_string(),
        ]
        .map(str::to_owned);
        let mut command = Command::new(&self.program);
        command.args(&self.arguments);
        if self.settings.is_empty() {
            command.args(&what);
        }
        let start = Instant::now();
        let mut child = command
            .env(CONSUME, format!("{} {}", what.join(" "), self.settings))
            .env("AWS_ACCESS_KEY_ID", "test")
            .env("AWS_SECRET_ACCESS_KEY", "test")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut said = BufReader::new(child.stdout.take().ok_or("the client has no output")?).lines();
        let mut until = |what: &str| -> Result<Moment> {
            let line = said.next().ok_or("the client ended before the last record")??;
            let cpu = line
                .strip_prefix(what)
                .ok_or_else(|| format!("unexpected output of the client: {line:?}"))?;
            Ok(Moment {
                time: Instant::now(),
                cpu: cpu.trim().parse()?,
                server_cpu: server.cpu()?,
            })
        };
        let first = until("first")?;
        let last = until("last")?;
        let mebibytes = peak_mebibytes(child.id())?;
        drop(child.stdin.take());
        child.wait()?;
        let millions = RECORDS as f64 / 1e6;
        Ok(Run {
            cpu: (last.cpu - first.cpu) / millions,
            cpu_with_start: last.cpu / millions,
            mebibytes,
            rate: RECORDS as f64 / (last.time - first.time).as_secs_f64(),
            server_cpu: (last.server_cpu - first.server_cpu) / millions,
            first_after: (first.time - start).as_secs_f64(),
        })
    }
}

/// The arrival of a client's first or last record.
struct Moment {
    time: Instant,
    /// Seconds of CPU time that the client has used.
    cpu: f64,
    /// Seconds of CPU time that the server has used.
    server_cpu: f64,
}

/// The measurements of one run.
struct Run {
    /// Seconds of CPU time per million records, from the first record to the last.
    cpu: f64,
    cpu_with_start: f64,
    mebibytes: f64,
    /// Records per second, from the first record to the last.
    rate: f64,
    /// Seconds of the server's CPU time per million records, from the first record to the last.
    server_cpu: f64,
    /// Seconds from the start of the client to its first record.
    first_after: f64,
}

impl Run {
    fn middle(runs: &[Run]) -> Run {
        let middle = |of: fn(&Run) -> f64| median(&mut runs.iter().map(of).collect::<Vec<_>>());
        Run {
            cpu: middle(|run| run.cpu),
            cpu_with_start: middle(|run| run.cpu_with_start),
            mebibytes: middle(|run| run.mebibytes),
            rate: middle(|run| run.rate),
            server_cpu: middle(|run| run.server_cpu),
            first_after: middle(|run| run.first_after),
        }
    }
}

/// Returns the peak resident memory of a process, in MiB.
fn peak_mebibytes(process: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kibibytes = peak.and_then(|peak| peak.trim().strip_suffix("kB"));
    let kibibytes: f64 = kibibytes.ok_or("no peak")?.trim().parse()?;
    Ok(kibibytes / 1_024.0)
}

/// Runs redrive's consumer, until standard input is closed.
async fn consume(what: &str) -> Result<()> {
    let what: Vec<&str> = what.split(' ').collect();
    let [kinesis, dynamodb, application, stream, records, calls, wire] = what[..] else {
        return Err("invalid REDRIVE_BENCH_CONSUME".into());
    };
    let wire = match wire {
        "cbor" => Wire::Cbor,
        _ => Wire::Json,
    };
    let counter = Counter {
        records: records.parse()?,
        seen: Arc::default(),
    };
    let resilient = Resilient::builder(application, counter)
        .dead_letters(dead_letter::Memory::new())
        .build()?;
    let consumer = Consumer::builder(kinesis::client(kinesis), stream)
        .checkpoints(DynamoDb::new(dynamodb::client(dynamodb), application))
        .calls_per_second(calls.parse()?)
        .wire(wire)
        .build()?;
    let stop = async {
        let _ = tokio::task::spawn_blocking(|| io::stdin().read_to_end(&mut Vec::new())).await;
    };
    consumer.run_until(resilient, stop).await?;
    Ok(())
}

struct Counter {
    records: u64,
    seen: Arc<AtomicU64>,
}

impl RecordProcessor for Counter {
    type Error = io::Error;

    async fn process(&self, record: &Record, _: &Attempt<'_>) -> io::Result<()> {
        black_box(record.payload().len());
        let before = self.seen.fetch_add(1, Relaxed);
        if before == 0 {
            say("first");
        }
        if before + 1 == self.records {
            say("last");
        }
        Ok(())
    }
}

fn say(what: &str) {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    println!("{what} {}", time.tv_sec as f64 + time.tv_nsec as f64 / 1e9);
}
