//! The time from the start of the Lambda example to its request for the first event:
//! `cargo bench -p redrive-benches --bench cold_start`.
//!
//! The baseline is a Python process that imports what the same function needs there (the batch processor and
//! the idempotency of Powertools, and boto3) and creates its two clients. Both are started repeatedly and in
//! turn, with a runtime API that records the time of the request. The first start also counts, because it may
//! have to read the files from disk. The work of Lambda itself (fetching the code, starting a virtual
//! machine) is in neither. The bench needs Python, and the network at first use.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;
use support::python;

use axum::Router;
use axum::routing::get;
use bench::median;
use bench::report::Table;
use support::emulator::target;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const RUNS: usize = 15;
/// The maximum wait for a start, many times the usual time.
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::main]
async fn main() -> Result<ExitCode> {
    // `cargo test` also runs the benches. There it is enough that this bench compiles.
    if !bench::is_bench() {
        return Ok(ExitCode::SUCCESS);
    }
    let function = build(&target())?;
    let python = python::with("benches/cold_start/requirements.txt").ok_or("Python is needed")?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("cold_start/function.py");

    let (asked, mut asks) = mpsc::unbounded_channel();
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let api = listener.local_addr()?.to_string();
    let next = get(move || {
        let _ = asked.send(Instant::now());
        std::future::pending::<()>()
    });
    let router = Router::new().route("/2018-06-01/runtime/invocation/next", next);
    tokio::spawn(async move { axum::serve(listener, router).await });

    let mut ours = Vec::new();
    let mut theirs = Vec::new();
    for _ in 0..RUNS {
        ours.push(start(&mut Command::new(&function), &api, &mut asks).await?);
        theirs.push(start(Command::new(&python).arg(&script), &api, &mut asks).await?);
    }
    let (first, theirs_first) = (ours[0], theirs[0]);
    let (ours, theirs) = (median(&mut ours), median(&mut theirs));
    let bytes = std::fs::metadata(&function)?.len();
    let mut table = Table::new(
        "cold_start",
        &["process               ", "median  ", "first start"],
    );
    for (name, median, first) in [
        ("redrive", ours, first),
        ("Python with Powertools", theirs, theirs_first),
    ] {
        table.row([
            name.to_owned(),
            format!("{median:.1} ms"),
            format!("{first:.1} ms"),
        ]);
    }
    table.note(format!(
        "From the start of the process to its request for the first event, medians of {RUNS}. The program has {:.1} MB.",
        bytes as f64 / 1e6
    ));
    table.finish();
    Ok(ExitCode::SUCCESS)
}

/// Builds the example in release mode, and returns the program.
fn build(target: &Path) -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["build", "--release", "--package", "lambda"])
        .arg("--target-dir")
        .arg(target)
        .status()?;
    if !built.success() {
        return Err("the example does not build".into());
    }
    Ok(target.join("release/lambda"))
}

/// Starts a process, and returns the milliseconds until its request for the first event.
async fn start(command: &mut Command, api: &str, asks: &mut mpsc::UnboundedReceiver<Instant>) -> Result<f64> {
    let command = command
        .env("AWS_LAMBDA_RUNTIME_API", api)
        .env("AWS_LAMBDA_FUNCTION_NAME", "orders")
        .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "256")
        .env("AWS_LAMBDA_FUNCTION_VERSION", "1")
        .env("AWS_REGION", "us-east-1")
        .env("AWS_DEFAULT_REGION", "us-east-1")
        .env("AWS_ACCESS_KEY_ID", "test")
        .env("AWS_SECRET_ACCESS_KEY", "test")
        .env("AWS_SESSION_TOKEN", "test")
        .env("DEAD_LETTER_STREAM", "orders-dlq")
        .env("SEEN_TABLE", "orders-seen")
        .stdout(Stdio::null());
    let began = Instant::now();
    let mut process = command.spawn()?;
    let asked = timeout(PATIENCE, asks.recv()).await;
    process.kill()?;
    process.wait()?;
    let asked = asked?.ok_or("the runtime API has ended")?;
    Ok((asked - began).as_secs_f64() * 1_000.0)
}
