//! Test of redrive under two MultiLangDaemons of KCL: one daemon dies, and a shard is split.

use std::collections::{HashMap, HashSet};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use redrive::testing::kinesis;
use redrive::{BoxError, Record, Resilient, dead_letter, multilang, processor_with};
use support::dynamodb::DynamoDbLocal;
use support::emulator::{self, Supervised};
use support::kcl::Pace;
use support::localstack::LocalStack;
use support::{kcl, stream};
use tokio::time::{Instant, sleep};

const SHARDS: i32 = 8;
const KEYS: u64 = 40;
/// The maximum waiting time, a multiple of the time in which KCL starts or takes over.
const PATIENCE: Duration = Duration::from_secs(400);

/// Runs the child process. Its handler writes the key and the number of each record into a file.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "the child process of another test"]
async fn child() {
    let Some(notes) = std::env::args().find_map(|argument| Some(argument.strip_prefix("notes=")?.to_owned()))
    else {
        return;
    };
    let handle = async |notes: PathBuf, record: Record| -> Result<(), BoxError> {
        let number: u64 = std::str::from_utf8(record.payload())?.parse()?;
        let line = format!("{} {number}\n", record.partition_key().unwrap_or_default());
        let file = OpenOptions::new().create(true).append(true).open(notes);
        // One write per line, because several processes append to the file.
        file?.write_all(line.as_bytes())?;
        Ok(())
    };
    let resilient = Resilient::builder("billing", processor_with(PathBuf::from(notes), handle))
        .dead_letters(dead_letter::Memory::new())
        .build()
        .expect("valid");
    multilang::run(resilient, "orders")
        .await
        .expect("the daemon speaks as it should");
}

struct World {
    /// The embedded server does not name the child shards at the end of a shard, which KCL requires.
    kinesis: &'static LocalStack,
    stream: String,
    application: String,
    dynamo: &'static DynamoDbLocal,
    jars: PathBuf,
    notes: PathBuf,
    put: u64,
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.notes);
    }
}

impl World {
    async fn new() -> Option<Self> {
        let (_, jars) = kcl::install()?;
        let dynamo = DynamoDbLocal::shared()?;
        let kinesis = LocalStack::shared()?;
        let stream = emulator::unique("orders");
        let created = kinesis::create_stream(&kinesis::client(kinesis.endpoint()), &stream, SHARDS).await;
        created.expect("a stream");
        let notes = emulator::home("kcl").join(format!("children-{}", std::process::id()));
        let _ = fs::remove_file(&notes);
        Some(World {
            kinesis,
            stream,
            application: emulator::unique("billing"),
            dynamo,
            jars,
            notes,
            put: 0,
        })
    }

    fn daemon(&self) -> Supervised {
        let child = std::env::current_exe().expect("this binary");
        // The test harness treats the last argument as another test name, which matches no test.
        let executable = format!(
            "{} daemons::child --ignored --nocapture --exact notes={}",
            child.display(),
            self.notes.display()
        );
        let places = (self.kinesis.endpoint(), self.dynamo.endpoint());
        kcl::daemon(
            places,
            &self.application,
            &self.stream,
            &executable,
            (&self.jars, Pace::Fast),
        )
    }

    async fn put(&mut self, count: u64) {
        let numbers = self.put..self.put + count;
        self.put += count;
        let records = numbers.map(|number| (format!("key-{}", number % KEYS), number.to_string()));
        stream::put(&kinesis::client(self.kinesis.endpoint()), &self.stream, records).await;
    }

    /// Returns the processed records in order.
    fn noted(&self) -> Vec<(String, u64)> {
        let notes = fs::read_to_string(&self.notes).unwrap_or_default();
        let whole = notes.rfind('\n').map_or("", |end| &notes[..end]);
        let line = |line: &str| {
            let (key, number) = line.split_once(' ').expect("key and number");
            (key.to_owned(), number.parse().expect("a number"))
        };
        whole.lines().map(line).collect()
    }

    async fn all_processed(&self, daemon: &Supervised) {
        let start = Instant::now();
        loop {
            let seen: HashSet<u64> = self.noted().into_iter().map(|(_, number)| number).collect();
            if seen.len() as u64 == self.put {
                return;
            }
            let waited = start.elapsed();
            assert!(
                waited < PATIENCE,
                "{} of {}\n{}",
                seen.len(),
                self.put,
                daemon.log_tail()
            );
            sleep(Duration::from_millis(200)).await;
        }
    }

    async fn split(&self) {
        let client = kinesis::client(self.kinesis.endpoint());
        let shards = client.list_shards().stream_name(&self.stream).send().await;
        let shard = shards.expect("ListShards").shards.unwrap_or_default().remove(0);
        let keys = shard.hash_key_range().expect("a range");
        let key = |text: &str| text.parse::<u128>().expect("a number");
        let middle = key(keys.starting_hash_key()) / 2 + key(keys.ending_hash_key()) / 2;
        let call = client.split_shard().stream_name(&self.stream);
        let call = call.shard_to_split(shard.shard_id());
        let call = call.new_starting_hash_key(middle.to_string());
        call.send().await.expect("SplitShard");
    }
}

/// One daemon dies, and a shard is split while the other runs.
#[tokio::test]
async fn two_daemons_lose_no_record() {
    let Some(mut world) = World::new().await else {
        return;
    };
    let first = world.daemon();
    let second = world.daemon();
    world.put(1_000).await;
    world.all_processed(&second).await;
    world.put(500).await;
    // The child processes of the daemon die with it.
    drop(first);
    kcl::release_leader(&world.dynamo.client(), &world.application).await;
    world.put(500).await;
    world.all_processed(&second).await;
    world.split().await;
    world.put(500).await;
    world.all_processed(&second).await;

    // Each key keeps its order. Repetitions after the crash are ignored.
    let mut newest: HashMap<String, u64> = HashMap::new();
    let mut seen = HashSet::new();
    for (key, number) in world.noted() {
        if seen.insert(number) {
            let before = newest.insert(key, number);
            assert!(
                before.is_none_or(|before| before < number),
                "{before:?} before {number}"
            );
        }
    }
    let repeated = world.noted().len() - seen.len();
    println!(
        "{} records, {repeated} of them processed again after a death",
        seen.len()
    );
}
