//! Tests of a function with the real client of the Lambda runtime API and the emulator of `cargo lambda`.
//! The function is another process of this test program.
//!
//! The tests need Python, cargo and, at first use, the network.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use redrive::dead_letter::{DeadLetter, Reason};
use redrive::telemetry::Emf;
use redrive::testing::kinesis::{self, KinesisServer};
use redrive::{
    Idempotency, Record, Resilient, RetryPolicy, dead_letter, idempotency, lambda, processor_with,
};
use serde_json::{Value, json};
use support::emulator::{Supervised, free_port, home, is_skipped, repository, unique};
use support::{python, stream};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

/// The environment variable with the folder into which the function writes.
const FOLDER: &str = "REDRIVE_TEST_LAMBDA_FOLDER";
const EVENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/lambda/event.json");
/// The environment variable with the endpoint of the dead-letter stream. It selects the function that always
/// fails.
const LETTERS_ENDPOINT: &str = "REDRIVE_TEST_LAMBDA_LETTERS_ENDPOINT";
const LETTERS: &str = "letters";
/// The maximum waiting time, a multiple of the start time.
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
#[ignore = "the function process of another test"]
async fn function() {
    let Ok(folder) = std::env::var(FOLDER).map(PathBuf::from) else {
        return;
    };
    let handle = async |folder: PathBuf, record: Record| -> Result<(), serde_json::Error> {
        let order: Value = serde_json::from_slice(record.payload())?;
        let notes = OpenOptions::new()
            .create(true)
            .append(true)
            .open(folder.join("notes"));
        writeln!(notes.expect("a file"), "{order}").expect("written");
        Ok(())
    };
    if let Ok(endpoint) = std::env::var(LETTERS_ENDPOINT) {
        return fail_always(folder, &endpoint).await;
    }
    let seen = idempotency::Redb::open(folder.join("seen.redb")).expect("the file opens");
    let resilient = Resilient::builder("billing", processor_with(folder.clone(), handle))
        .dead_letters(dead_letter::File::open(folder.join("letters")).expect("the file opens"))
        .idempotency(Idempotency::new(seen).json_field("/id"))
        .observer(Emf::new().writer(File::create(folder.join("metrics")).expect("a file")))
        .build()
        .expect("valid");
    lambda::run(resilient).await.expect("the runtime API");
}

/// Runs a function whose processor writes down each call and fails, with 3 retries and a dead-letter stream.
async fn fail_always(folder: PathBuf, endpoint: &str) {
    let handle = async |folder: PathBuf, _: Record| -> Result<(), std::io::Error> {
        let notes = OpenOptions::new()
            .create(true)
            .append(true)
            .open(folder.join("notes"));
        writeln!(notes?, "called")?;
        Err(std::io::Error::other("could not store the order"))
    };
    let letters = dead_letter::Kinesis::new(kinesis::client(endpoint), LETTERS);
    let resilient = Resilient::builder("billing", processor_with(folder, handle))
        .retry(RetryPolicy::exponential().max_attempts(4))
        .dead_letters(letters)
        .build()
        .expect("valid");
    lambda::run(resilient).await.expect("the runtime API");
}

/// The emulator, and the function that handles its invocations.
struct Emulator {
    cargo_lambda: PathBuf,
    port: u16,
    folder: PathBuf,
    function: Child,
    _emulator: Supervised,
}

impl Drop for Emulator {
    fn drop(&mut self) {
        let _ = self.function.kill();
        let _ = self.function.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

impl Emulator {
    async fn start(env: &[(&str, &str)]) -> Option<Self> {
        if is_skipped() {
            return None;
        }
        let home = home("lambda");
        let python = python::with("tests/lambda/requirements.txt")?;
        let cargo_lambda = python.parent()?.join("cargo-lambda");
        let port = free_port();
        let folder = home.join(unique("function"));
        let _ = fs::remove_dir_all(&folder);
        // The emulator requires a package with a binary, but does not start the binary.
        fs::create_dir_all(folder.join("src")).expect("a folder");
        let package =
            "[package]\nname = \"function\"\nversion = \"0.1.0\"\nedition = \"2024\"\n[workspace]\n";
        fs::write(folder.join("Cargo.toml"), package).expect("written");
        fs::write(folder.join("src/main.rs"), "fn main() {}\n").expect("written");
        let emulator = Supervised::spawn(&home, |_| {
            let mut command = Command::new(&cargo_lambda);
            command.args(["lambda", "watch", "--only-lambda-apis", "--ignore-changes"]);
            command.args([
                "--invoke-address",
                "127.0.0.1",
                "--invoke-port",
                &port.to_string(),
            ]);
            command.arg("--manifest-path").arg(folder.join("Cargo.toml"));
            command
        });
        let start = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            assert!(start.elapsed() < PATIENCE, "{}", emulator.log_tail());
            sleep(Duration::from_millis(50)).await;
        }
        let function = Command::new(std::env::current_exe().ok()?)
            .args(["--exact", "lambda_emulator::function", "--ignored", "--nocapture"])
            .env(FOLDER, &folder)
            .env("AWS_LAMBDA_RUNTIME_API", format!("http://127.0.0.1:{port}/.rt"))
            .env("AWS_LAMBDA_FUNCTION_NAME", "_")
            .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "256")
            .env("AWS_LAMBDA_FUNCTION_VERSION", "1")
            .envs(env.iter().copied())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Some(Emulator {
            cargo_lambda,
            port,
            folder,
            function: function.expect("this binary"),
            _emulator: emulator,
        })
    }

    /// Invokes the function. Returns its answer or the error text.
    async fn invoke(&self, event: &Path) -> Result<Value, String> {
        let mut command = tokio::process::Command::new(&self.cargo_lambda);
        command.args(["lambda", "invoke", "_", "--invoke-address", "127.0.0.1"]);
        command.args(["--invoke-port", &self.port.to_string()]);
        command.arg("--data-file").arg(event).kill_on_drop(true);
        let output = timeout(PATIENCE, command.output()).await.expect("an answer");
        let output = output.expect("cargo-lambda runs");
        match output.status.success() {
            true => Ok(serde_json::from_slice(&output.stdout).expect("JSON")),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    fn orders(&self) -> Vec<String> {
        let notes = fs::read_to_string(self.folder.join("notes")).unwrap_or_default();
        notes.lines().map(str::to_owned).collect()
    }
}

/// Checks the SAM template with `cfn-lint`, which transforms it and applies the schemas of CloudFormation.
#[test]
fn template_passes_cfn_lint() {
    if is_skipped() {
        return;
    }
    let python = python::with("tests/lambda/requirements.txt").expect("not skipped");
    let lint = |template: &Path| {
        let output = Command::new(python.with_file_name("cfn-lint"))
            .arg(template)
            .output();
        let output = output.expect("cfn-lint runs");
        (
            output.status.success(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
        )
    };
    let template = repository().join("examples/lambda/template.yaml");
    let (accepted, said) = lint(&template);
    assert!(accepted, "{said}");

    let text = fs::read_to_string(&template).expect("the template exists");
    // The linter does not check these settings. Partial responses lose records without the function response
    // type, and finite retries or ages lose records too.
    for line in [
        "FunctionResponseTypes: [ReportBatchItemFailures]\n",
        "REDRIVE_PARTIAL_RESPONSES: \"1\"\n",
        "MaximumRetryAttempts: -1\n",
        "MaximumRecordAgeInSeconds: -1\n",
    ] {
        assert!(text.contains(line), "{line}");
    }
    let broken = tempfile::Builder::new()
        .suffix(".yaml")
        .tempfile()
        .expect("a file");
    for (whole, part) in [
        ("MemorySize: 256", "MemorySize: 25"),
        ("GivenUp.Arn", "Given.Arn"),
    ] {
        assert!(text.contains(whole));
        fs::write(broken.path(), text.replace(whole, part)).expect("written");
        assert!(!lint(broken.path()).0, "{part} is accepted");
    }
}

#[tokio::test]
async fn function_answers_the_real_runtime_client() {
    let Some(emulator) = Emulator::start(&[]).await else {
        return;
    };
    let settled = json!({"batchItemFailures": []});
    let event = Path::new(EVENT);
    for (processed, duplicates) in [(1, 0), (0, 1)] {
        assert_eq!(emulator.invoke(event).await, Ok(settled.clone()));
        // A redelivery is a duplicate.
        assert_eq!(emulator.orders(), ["{\"cents\":250,\"id\":1}"]);
        // The metrics are written before the answer.
        let metrics = fs::read_to_string(emulator.folder.join("metrics")).expect("metrics");
        let last: Value = serde_json::from_str(metrics.lines().last().expect("a line")).expect("JSON");
        assert_eq!(last["RecordsProcessed"], json!(processed));
        assert_eq!(
            (&last["RecordsDuplicate"], &last["RecordsDeadLettered"]),
            (&json!(duplicates), &json!(1))
        );
    }
    let letters = fs::read_to_string(emulator.folder.join("letters")).expect("letters");
    let ids: Vec<Value> = letters
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON")["id"].clone())
        .collect();
    assert_eq!(ids.len(), 2);
    assert_eq!(ids[0], ids[1], "the same dead letter");

    // An invalid event is an error, and the function continues.
    let nonsense = emulator.folder.join("nonsense.json");
    fs::write(&nonsense, "{\"Records\": [{\"kinesis\": 7}]}").expect("written");
    let error = emulator.invoke(&nonsense).await.expect_err("no event");
    assert!(error.contains("kinesis"), "{error}");
    assert_eq!(emulator.invoke(event).await, Ok(settled));
}

/// Tests the main use case: a function retries a record three times with backoff and then writes it to the
/// dead-letter stream, in one invocation.
#[tokio::test]
async fn failing_record_is_retried_three_times_then_dead_lettered() {
    let server = KinesisServer::builder().start().await.expect("a free port");
    let created = kinesis::create_stream(&server.client(), LETTERS, 1).await;
    created.expect("a stream");
    let env = [(LETTERS_ENDPOINT, server.endpoint())];
    let Some(emulator) = Emulator::start(&env).await else {
        return;
    };
    let event = fs::read(EVENT).expect("an event");
    let mut event: Value = serde_json::from_slice(&event).expect("JSON");
    event["Records"].as_array_mut().expect("records").truncate(1);
    let one = emulator.folder.join("one.json");
    fs::write(&one, event.to_string()).expect("written");
    assert_eq!(emulator.invoke(&one).await, Ok(json!({"batchItemFailures": []})));
    assert_eq!(emulator.orders().len(), 4, "the first call and three retries");
    let sent = stream::read(&server.client(), LETTERS).await;
    assert_eq!(sent.len(), 1);
    let letter = DeadLetter::decode(&sent[0].data.clone().into()).expect("a letter");
    assert_eq!(
        (letter.reason, letter.attempts.count),
        (Reason::AttemptsExhausted, 4)
    );
    assert_eq!(letter.partition_key.as_deref(), Some("customer-1"));
}
