//! Consumers in separate processes that share a stream through a lease table.
//!
//! The test kills and suspends these processes at random. All of them write to one journal, which survives
//! them.

use std::collections::{HashMap, HashSet};
use std::fs::OpenOptions;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use redrive::checkpoint::DynamoDb;
use redrive::dead_letter::{self, DeadLetter};
use redrive::pipeline::{Capacity, Pipeline};
use redrive::testing::kinesis;
use redrive::{Consumer, Resilient, RetryPolicy};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use super::dynamodb;
use super::kill::{Journal, end_of_input, processed_lines, ranks};
use super::stream::{self, Place, Sent};

const TASK: &str = "REDRIVE_TEST_FLEET";
const APPLICATION: &str = "billing";
const WORKERS: usize = 3;
const SHARDS: i32 = 6;
const KEYS: u64 = 60;
/// The failover time. A process that is suspended for longer has lost its leases when it wakes up.
const FAILOVER: Duration = Duration::from_secs(3);
/// The time limit for settling the remaining records after the last kill.
const PATIENCE: Duration = Duration::from_secs(180);

#[derive(Debug, Serialize, Deserialize)]
struct Task {
    kinesis: String,
    dynamodb: String,
    table: String,
    stream: String,
    letters: String,
    journal: PathBuf,
}

/// The number of kills and suspensions of a test.
#[derive(Debug, Clone, Copy)]
pub struct Chaos {
    pub kills: u64,
    pub stops: u64,
}

/// Runs the consumer if this process was started as a child. Returns at once otherwise.
pub fn child() {
    let Ok(task) = std::env::var(TASK) else {
        return;
    };
    let task: Task = serde_json::from_str(&task).expect("a task");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(consume(task));
}

async fn consume(task: Task) {
    let client = kinesis::client(&task.kinesis);
    let resilient = Resilient::builder(APPLICATION, Journal::append(&task.journal))
        .retry(RetryPolicy::exponential().max_attempts(10))
        .dead_letters(dead_letter::Kinesis::new(client.clone(), &task.letters))
        .build()
        .expect("a valid processor");
    let store = DynamoDb::new(dynamodb::client(&task.dynamodb), task.table.as_str())
        .failover_time(FAILOVER)
        .write_interval(Duration::from_millis(300));
    let consumer = Consumer::builder(client, &*task.stream)
        .checkpoints(store)
        .pipeline(
            Pipeline::builder()
                .capacity(
                    Capacity::builder()
                        .running(8)
                        .bytes(64 * 1024 * 1024)
                        .build()
                        .expect("valid"),
                )
                .build()
                .expect("valid"),
        )
        .records_per_call(200)
        .idle_interval(Duration::from_millis(100))
        .build()
        .expect("a valid consumer");
    let ended = consumer.run_until(resilient, end_of_input()).await;
    ended.expect("the consumer ends without an error");
}

impl Task {
    fn start(&self, test: &str) -> Worker {
        let path = self.journal.with_extension("log");
        let log = OpenOptions::new().create(true).append(true).open(path);
        let log = log.expect("a log");
        let child = Command::new(std::env::current_exe().expect("this binary"))
            .args(["--exact", test, "--ignored", "--nocapture"])
            .env(TASK, serde_json::to_string(self).expect("JSON"))
            .stdin(Stdio::piped())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn();
        Worker(child.expect("a child"))
    }

    /// Returns the places of all processed records, in the order in which they were processed.
    fn processed(&self) -> Vec<Place> {
        processed_lines(&self.journal)
    }
}

/// A running consumer process. Dropping this value kills the process.
struct Worker(Child);

impl Worker {
    fn signal(&self, name: &str) {
        let sent = Command::new("kill")
            .args([name, &self.0.id().to_string()])
            .status();
        assert!(sent.expect("kill is installed").success());
    }

    fn kill(&mut self) {
        self.0.kill().expect("a child that runs");
        self.0.wait().expect("a child");
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs consumers of a stream, kills them with SIGKILL and suspends them with SIGSTOP at random.
///
/// Then the test compares the journal with the stream. No record may be lost. No record may be processed for
/// the first time before earlier records of its key.
///
/// `test` is the full name of the ignored test that calls [`child`].
pub async fn a_fleet_survives((kinesis, dynamodb): (&str, &str), table: &str, test: &str, chaos: Chaos) {
    let folder = tempfile::tempdir().expect("a folder");
    let task = Task {
        kinesis: kinesis.to_owned(),
        dynamodb: dynamodb.to_owned(),
        table: table.to_owned(),
        stream: "orders".to_owned(),
        letters: "orders-dlq".to_owned(),
        journal: folder.path().join("journal"),
    };
    let client = kinesis::client(kinesis);
    for (name, shards) in [(&task.stream, SHARDS), (&task.letters, 1)] {
        let created = kinesis::create_stream(&client, name, shards).await;
        created.expect("a stream");
    }
    let mut rng = SmallRng::seed_from_u64(7);
    let mut workers: Vec<Worker> = (0..WORKERS).map(|_| task.start(test)).collect();
    let (mut kills, mut stops, mut put) = (0, 0, 0);
    while kills < chaos.kills || stops < chaos.stops {
        let records = (put..put + 60).map(|number| {
            let data = if number % 97 == 5 { "bad" } else { "ok" };
            (format!("key-{}", number % KEYS), data)
        });
        stream::put(&client, &task.stream, records).await;
        put += 60;
        sleep(Duration::from_millis(rng.random_range(300..1_500))).await;
        let worker = &mut workers[rng.random_range(0..WORKERS)];
        let left = (chaos.kills - kills, chaos.stops - stops);
        if rng.random_range(0..left.0 + left.1) < left.0 {
            worker.kill();
            *worker = task.start(test);
            kills += 1;
        } else {
            worker.signal("-STOP");
            sleep(FAILOVER + Duration::from_millis(rng.random_range(0..3_000))).await;
            worker.signal("-CONT");
            stops += 1;
        }
    }

    let sent = stream::read(&client, &task.stream).await;
    let begun = Instant::now();
    let letters = loop {
        let letters = stream::read(&client, &task.letters).await;
        let mut settled: HashSet<Place> = task.processed().into_iter().collect();
        settled.extend(letters.into_iter().map(place_of));
        let open = sent.iter().filter(|sent| !settled.contains(&sent.place)).count();
        if open == 0 {
            break settled.len();
        }
        assert!(
            begun.elapsed() < PATIENCE,
            "{open} of {} records are lost",
            sent.len()
        );
        sleep(Duration::from_millis(200)).await;
    };
    let processed = task.processed();
    check_order(&processed, &sent);
    println!(
        "{} records, {kills} kills, {stops} suspensions: 0 lost, {} processed again ({letters} settled)",
        sent.len(),
        processed.len() - processed.iter().collect::<HashSet<_>>().len(),
    );
}

fn place_of(letter: Sent) -> Place {
    let letter = DeadLetter::decode(&letter.data.into()).expect("a dead letter");
    Place {
        shard: letter.shard,
        number: letter.sequence_number,
    }
}

/// Asserts that no record is processed for the first time before earlier records of its key.
fn check_order(processed: &[Place], sent: &[Sent]) {
    let ranks = ranks(sent);
    let mut firsts: HashMap<&str, usize> = HashMap::new();
    for place in processed {
        let (key, rank) = ranks[place];
        let first = firsts.entry(key).or_default();
        assert!(rank <= *first, "{place:?} overtakes a record of its key");
        *first = (*first).max(rank + 1);
    }
}
