//! Tests of a function whose process crashes on one record, again and again. The function is another process
//! of this test program. Its idempotency store is DynamoDB Local.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, SystemTime};

use redrive::dead_letter::Reason;
use redrive::lambda::{Event, Function, Response};
use redrive::processor::{Attempt, BatchFailure, Handler};
use redrive::{BatchProcessor, Idempotency, Record, RecordProcessor, Resilient, dead_letter, idempotency};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use support::dynamodb::{self, DynamoDbLocal};
use support::emulator::unique;
use tokio::time::Instant;

const TASK: &str = "REDRIVE_TEST_LAMBDA_CRASHES";
const RECORDS: usize = 20;
/// The record that ends every process.
const ABORTS: usize = 7;

#[derive(Debug, Serialize, Deserialize)]
struct Task {
    endpoint: String,
    table: String,
    folder: PathBuf,
    /// The minutes by which the clock of this invocation is ahead, so that all earlier claims have expired.
    minutes: u64,
    /// Set if the handler takes batches of records.
    in_batches: bool,
}

/// A handler that aborts the process on one record, and writes down the others.
struct Orders(PathBuf);

impl Orders {
    async fn handle(&self, records: &[Record]) -> Result<(), std::io::Error> {
        if records.iter().any(|record| record.payload() == "abort") {
            std::process::abort();
        }
        // Long enough for other records to be in flight at the same time.
        tokio::time::sleep(Duration::from_millis(20)).await;
        let notes = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.0.join("notes"));
        let lines = records
            .iter()
            .map(|record| format!("{}\n", record.sequence_number()));
        notes?.write_all(lines.collect::<String>().as_bytes())
    }
}

impl RecordProcessor for Orders {
    type Error = std::io::Error;

    async fn process(&self, record: &Record, _: &Attempt<'_>) -> Result<(), std::io::Error> {
        self.handle(std::slice::from_ref(record)).await
    }
}

struct OrdersTogether(Orders);

impl BatchProcessor for OrdersTogether {
    type Error = std::io::Error;

    async fn process_batch(
        &self,
        records: &[Record],
        _: &Attempt<'_>,
    ) -> Result<(), BatchFailure<std::io::Error>> {
        Ok(self.0.handle(records).await?)
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "the function process of another test"]
async fn function() {
    let Ok(task) = std::env::var(TASK) else { return };
    let task: Task = serde_json::from_str(&task).expect("a task");
    let orders = Orders(task.folder.clone());
    match task.in_batches {
        false => invocation(&task, orders).await,
        true => invocation(&task, OrdersTogether(orders).batched()).await,
    }
}

async fn invocation<P: Handler>(task: &Task, orders: P) {
    let client = dynamodb::client(&task.endpoint);
    let ahead = Duration::from_secs(task.minutes * 60);
    let seen = Idempotency::new(idempotency::DynamoDb::new(client, task.table.as_str()));
    let resilient = Resilient::builder("billing", orders)
        .dead_letters(dead_letter::File::open(task.folder.join("letters")).expect("the file opens"))
        .idempotency(seen.clock(move || SystemTime::now() + ahead))
        .build()
        .expect("valid");
    let function = Function::new(resilient).partial_responses(true);
    let deadline = Instant::now() + Duration::from_secs(30);
    let answer = function.settle(event(), deadline).await.expect("an answer");
    assert_eq!(answer, Response::settled());
}

fn event() -> Event {
    let records: Vec<Value> = (0..RECORDS)
        .map(|number| {
            // The base64 of "abort" and of "ok".
            let data = if number == ABORTS { "YWJvcnQ=" } else { "b2s=" };
            json!({
                "eventID": format!("shardId-000000000000:{}", sequence_number(number)),
                "eventSource": "aws:kinesis",
                "eventSourceARN": "arn:aws:kinesis:us-east-1:123456789012:stream/orders",
                "kinesis": {
                    "approximateArrivalTimestamp": 1_800_000_000.5,
                    "data": data,
                    "partitionKey": format!("key-{number}"),
                    "sequenceNumber": sequence_number(number),
                },
            })
        })
        .collect();
    serde_json::from_value(json!({ "Records": records })).expect("an event")
}

fn sequence_number(number: usize) -> String {
    format!("4959033827149025660855969253836157109592157{number:013}")
}

impl Task {
    /// Runs one invocation in a new process.
    fn invoke(&self) -> ExitStatus {
        Command::new(std::env::current_exe().expect("this binary"))
            .args(["--exact", "lambda_crashes::function", "--ignored", "--nocapture"])
            .env(TASK, serde_json::to_string(self).expect("JSON"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .expect("this binary")
    }
}

/// Two invocations may crash with several records in flight. Later invocations run suspected records alone.
#[tokio::test]
async fn only_the_crashing_record_is_dead_lettered() {
    check_crashing_record(false).await;
}

#[tokio::test]
async fn only_the_crashing_record_of_a_batch_is_dead_lettered() {
    check_crashing_record(true).await;
}

async fn check_crashing_record(in_batches: bool) {
    let Some(server) = DynamoDbLocal::shared() else {
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let mut task = Task {
        endpoint: server.endpoint().to_owned(),
        table: unique("crashes"),
        folder: folder.path().to_owned(),
        minutes: 0,
        in_batches,
    };
    let mut deaths = 0;
    while !task.invoke().success() {
        deaths += 1;
        assert!(deaths <= 10, "the record crashes every invocation");
        task.minutes += 5;
    }
    assert_eq!(deaths, 5);
    let letters = dead_letter::File::read(folder.path().join("letters"));
    let letters: Vec<_> = letters.collect::<Result<_, _>>().expect("letters");
    let [letter] = &letters[..] else {
        panic!("{letters:?}");
    };
    assert_eq!(letter.reason, Reason::CrashLoop);
    assert_eq!(letter.sequence_number.as_str(), sequence_number(ABORTS));
    let notes = fs::read_to_string(folder.path().join("notes")).expect("notes");
    let mut processed: Vec<&str> = notes.lines().collect();
    processed.sort_unstable();
    // A record may be processed but not completed when the process crashes.
    processed.dedup();
    let good: Vec<String> = (0..RECORDS)
        .filter(|&number| number != ABORTS)
        .map(sequence_number)
        .collect();
    assert_eq!(processed, good);
}
