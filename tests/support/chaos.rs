//! Consumers in separate processes that share a stream's shards through a lease table.
//!
//! The tests stop, kill and suspend these processes. All of them write to one journal, which survives them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::OpenOptions;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use aws_sdk_kinesis::Client;
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
use super::wire::wire;

const TASK: &str = "REDRIVE_TEST_FLEET";
const APPLICATION: &str = "billing";
const STREAM: &str = "orders";
const LETTERS: &str = "orders-dlq";
const KEYS: usize = 600;
/// The time limit for settling the remaining records after the last kill.
const PATIENCE: Duration = Duration::from_secs(180);

/// The task of a child, passed in an environment variable.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Task {
    kinesis: String,
    dynamodb: String,
    table: String,
    journal: PathBuf,
    failover_time: Duration,
    worker: String,
}

/// Runs the consumer if this process was started as a child. Returns at once otherwise.
pub fn child() {
    let Ok(task) = std::env::var(TASK) else {
        return;
    };
    let task: Task = serde_json::from_str(&task).expect("a task");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(consume(task));
}

async fn consume(task: Task) {
    tracing_subscriber::fmt().with_ansi(false).init();
    let client = kinesis::client(&task.kinesis);
    let resilient = Resilient::builder(APPLICATION, Journal::append(&task.journal))
        .retry(RetryPolicy::exponential().max_attempts(10))
        .dead_letters(dead_letter::Kinesis::new(client.clone(), LETTERS))
        .build()
        .expect("a valid processor");
    let store = DynamoDb::new(dynamodb::client(&task.dynamodb), task.table.as_str())
        .worker(&task.worker)
        .failover_time(task.failover_time)
        .write_interval(Duration::from_millis(300));
    let capacity = Capacity::builder().running(8).bytes(256 * 1024 * 1024).build();
    let pipeline = Pipeline::builder().capacity(capacity.expect("valid")).build();
    let consumer = Consumer::builder(client, STREAM)
        .wire(wire())
        .checkpoints(store)
        .pipeline(pipeline.expect("valid"))
        .records_per_call(200)
        .idle_interval(Duration::from_millis(300))
        .build()
        .expect("a valid consumer");
    let stop = async {
        tokio::select! {
            () = end_of_input() => {}
            () = redrive::shutdown_signal() => {}
        }
    };
    let ended = consumer.run_until(resilient, stop).await;
    ended.expect("the consumer ends without an error");
}

/// A running consumer process. Dropping this value kills the process.
struct Worker {
    name: String,
    child: Child,
}

impl Worker {
    fn signal(&self, name: &str) {
        let sent = Command::new("kill")
            .args([name, &self.child.id().to_string()])
            .status();
        assert!(sent.expect("kill is installed").success());
    }

    fn kill(&mut self) {
        self.child.kill().expect("a child that runs");
        self.child.wait().expect("a child");
    }

    /// Waits until the process has ended in order after a signal.
    async fn ended(&mut self) {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                assert!(status.success(), "{}: {status}", self.name);
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "{} does not end", self.name);
            sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The places of the servers, and the full name of the ignored test that calls [`child`].
#[derive(Debug, Clone, Copy)]
pub struct Scene<'a> {
    pub kinesis: &'a str,
    pub dynamodb: &'a str,
    pub table: &'a str,
    pub test: &'a str,
}

/// A stream, and the processes that read it.
struct Fleet<'a> {
    scene: Scene<'a>,
    _folder: tempfile::TempDir,
    task: Task,
    client: Client,
    dynamo: aws_sdk_dynamodb::Client,
    workers: Vec<Worker>,
    started: usize,
    put: usize,
}

impl<'a> Fleet<'a> {
    /// Creates the stream and starts the processes.
    async fn start(scene: Scene<'a>, shards: i32, workers: usize, failover_time: Duration) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let task = Task {
            kinesis: scene.kinesis.to_owned(),
            dynamodb: scene.dynamodb.to_owned(),
            table: scene.table.to_owned(),
            journal: folder.path().join("journal"),
            failover_time,
            worker: String::new(),
        };
        let client = kinesis::client(scene.kinesis);
        for (name, shards) in [(STREAM, shards), (LETTERS, 1)] {
            let created = kinesis::create_stream(&client, name, shards).await;
            created.expect("a stream");
        }
        let mut fleet = Fleet {
            scene,
            _folder: folder,
            task,
            client,
            dynamo: dynamodb::client(scene.dynamodb),
            workers: Vec::new(),
            started: 0,
            put: 0,
        };
        for _ in 0..workers {
            let worker = fleet.new_worker();
            fleet.workers.push(worker);
        }
        fleet
    }

    fn new_worker(&mut self) -> Worker {
        self.started += 1;
        let name = format!("worker{}", self.started);
        let path = self.task.journal.with_file_name(format!("{name}.log"));
        let log = OpenOptions::new().create(true).append(true).open(path);
        let log = log.expect("a log");
        let task = Task {
            worker: name.clone(),
            ..self.task.clone()
        };
        let child = Command::new(std::env::current_exe().expect("this binary"))
            .args(["--exact", self.scene.test, "--ignored", "--nocapture"])
            .env(TASK, serde_json::to_string(&task).expect("JSON"))
            .stdin(Stdio::piped())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn();
        let child = child.expect("a child");
        Worker { name, child }
    }

    /// Puts this many records.
    async fn put(&mut self, count: usize) {
        let records = (self.put..self.put + count).map(|number| {
            let data = if number % 97 == 5 { "bad" } else { "ok" };
            (format!("key-{}", number % KEYS), data)
        });
        stream::put(&self.client, STREAM, records).await;
        self.put += count;
    }

    /// Splits a random shard that is open.
    async fn split(&self, rng: &mut SmallRng) {
        let reply = self.client.list_shards().stream_name(STREAM).send().await;
        let shards = reply.expect("ListShards").shards.unwrap_or_default();
        let is_open = |shard: &aws_sdk_kinesis::types::Shard| {
            let numbers = shard.sequence_number_range();
            numbers.is_some_and(|numbers| numbers.ending_sequence_number().is_none())
        };
        let open: Vec<_> = shards.iter().filter(|shard| is_open(shard)).collect();
        let shard = open[rng.random_range(0..open.len())];
        let keys = shard.hash_key_range().expect("a range");
        let key = |key: &str| key.parse::<u128>().expect("a hash key");
        let (first, last) = (key(keys.starting_hash_key()), key(keys.ending_hash_key()));
        let call = self.client.split_shard().stream_name(STREAM);
        let call = call.shard_to_split(shard.shard_id());
        let middle = (first + (last - first) / 2).to_string();
        call.new_starting_hash_key(middle)
            .send()
            .await
            .expect("SplitShard");
    }

    /// Returns the number of open shards that each worker owns.
    async fn shares(&self) -> BTreeMap<String, usize> {
        let mut shares: BTreeMap<String, usize> = self
            .workers
            .iter()
            .map(|worker| (worker.name.clone(), 0))
            .collect();
        let call = self
            .dynamo
            .scan()
            .table_name(&self.task.table)
            .consistent_read(true);
        let Ok(reply) = call.send().await else {
            return shares;
        };
        for row in reply.items.unwrap_or_default() {
            let text = |name: &str| {
                row.get(name)
                    .and_then(|value| value.as_s().ok())
                    .map_or("", |it| it)
            };
            if text("checkpoint") == "SHARD_END" {
                continue;
            }
            // During a hand-over the old owner still reads the shard.
            let owner = match text("checkpointOwner") {
                "" => text("leaseOwner"),
                owner => owner,
            };
            let name = owner.rsplit_once('-').map_or(owner, |(name, _)| name);
            *shares.entry(name.to_owned()).or_default() += 1;
        }
        shares
    }

    /// Waits until all shards are owned by the running workers, and their shares differ by at most one. Returns
    /// how long it took.
    async fn is_even(&self, what: &str, shards: usize) -> Duration {
        let begun = Instant::now();
        loop {
            let shares = self.shares().await;
            let all = shares.values().sum::<usize>() == shards;
            let running = shares.len() == self.workers.len();
            let (least, most) = (shares.values().min(), shares.values().max());
            if all && running && least.zip(most).is_some_and(|(least, most)| most - least <= 1) {
                println!("{what}: even after {:.1?}", begun.elapsed());
                return begun.elapsed();
            }
            assert!(begun.elapsed() < PATIENCE, "{what}: {shares:?}\n{}", self.logs());
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Puts a record into each shard and waits until all are processed. Returns how long it took.
    async fn is_read(&mut self, what: &str) -> Duration {
        let before: HashSet<Place> = self.sent().await.into_iter().map(|sent| sent.place).collect();
        let begun = Instant::now();
        self.put(KEYS).await;
        let new = self.sent().await.into_iter().filter(|sent| sent.data == b"ok");
        let new: HashSet<Place> = new
            .map(|sent| sent.place)
            .filter(|place| !before.contains(place))
            .collect();
        loop {
            let done: HashSet<Place> = self.processed().into_iter().collect();
            if new.is_subset(&done) {
                println!("{what}: all shards are read after {:.1?}", begun.elapsed());
                return begun.elapsed();
            }
            assert!(begun.elapsed() < PATIENCE, "{what}\n{}", self.logs());
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Returns the index of the worker that leads.
    async fn leader(&self) -> Option<usize> {
        let table = format!("{}-CoordinatorState", self.task.table);
        let call = self.dynamo.get_item().table_name(table).consistent_read(true);
        let reply = call
            .key("key", AttributeValue::S("Leader".to_owned()))
            .send()
            .await;
        let item = reply.ok()?.item?;
        let owner = item.get("ownerName")?.as_s().ok()?;
        let name = owner.rsplit_once('-')?.0;
        self.workers.iter().position(|worker| worker.name == name)
    }

    async fn sent(&self) -> Vec<Sent> {
        stream::read(&self.client, STREAM).await
    }

    /// Returns the places of all processed records, in the order in which they were processed.
    fn processed(&self) -> Vec<Place> {
        processed_lines(&self.task.journal)
    }

    /// Returns how many records were processed again.
    fn repeats(&self) -> usize {
        let processed = self.processed();
        processed.len() - processed.iter().collect::<HashSet<_>>().len()
    }

    /// Waits until every record is settled. Asserts that none is lost, and that none is processed for the first
    /// time before earlier records of its key.
    async fn check(&self) -> String {
        let sent = self.sent().await;
        let begun = Instant::now();
        loop {
            let letters = stream::read(&self.client, LETTERS).await;
            let mut settled: HashSet<Place> = self.processed().into_iter().collect();
            settled.extend(letters.into_iter().map(place_of));
            let open = sent.iter().filter(|sent| !settled.contains(&sent.place)).count();
            if open == 0 {
                break;
            }
            let late = begun.elapsed() > PATIENCE;
            assert!(
                !late,
                "{open} of {} records are lost\n{}",
                sent.len(),
                self.logs()
            );
            sleep(Duration::from_millis(200)).await;
        }
        check_order(&self.processed(), &sent);
        format!(
            "{} records, 0 lost, {} processed again",
            sent.len(),
            self.repeats()
        )
    }

    /// Returns the ends of the workers' logs.
    fn logs(&self) -> String {
        let end = |worker: &Worker| {
            let path = self.task.journal.with_file_name(format!("{}.log", worker.name));
            let log = std::fs::read_to_string(path).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let end = lines[lines.len().saturating_sub(25)..].join("\n");
            format!("--- {}\n{end}\n", worker.name)
        };
        self.workers.iter().map(end).collect()
    }
}

/// The number of kills, suspensions and splits of a test.
#[derive(Debug, Clone, Copy)]
pub struct Chaos {
    pub workers: usize,
    pub shards: i32,
    pub kills: u64,
    pub stops: u64,
    pub splits: u64,
}

/// Runs consumers of a stream, kills them with SIGKILL and suspends them with SIGSTOP at random. A process that
/// is suspended for longer than the failover time has lost its leases when it wakes up.
///
/// Then the test compares the journal with the stream. No record may be lost. No record may be processed for
/// the first time before earlier records of its key.
pub async fn a_fleet_survives(scene: Scene<'_>, chaos: Chaos) {
    let failover = Duration::from_secs(3);
    let mut fleet = Fleet::start(scene, chaos.shards, chaos.workers, failover).await;
    let mut rng = SmallRng::seed_from_u64(7);
    let (mut kills, mut stops, mut splits) = (0, 0, 0);
    while kills < chaos.kills || stops < chaos.stops {
        fleet.put(60).await;
        sleep(Duration::from_millis(rng.random_range(300..1_500))).await;
        if splits < chaos.splits
            && (kills + stops) * (chaos.splits + 1) > (chaos.kills + chaos.stops) * (splits + 1)
        {
            fleet.split(&mut rng).await;
            splits += 1;
        }
        let which = rng.random_range(0..chaos.workers);
        let left = (chaos.kills - kills, chaos.stops - stops);
        if rng.random_range(0..left.0 + left.1) < left.0 {
            fleet.workers[which].kill();
            fleet.workers[which] = fleet.new_worker();
            kills += 1;
        } else {
            fleet.workers[which].signal("-STOP");
            sleep(failover + Duration::from_millis(rng.random_range(0..3_000))).await;
            fleet.workers[which].signal("-CONT");
            stops += 1;
        }
    }
    let result = fleet.check().await;
    println!("{kills} kills, {stops} suspensions, {splits} splits: {result}");
}

/// Three processes share six shards with the default failover time. One is killed, one joins, the leader is
/// killed, and one is stopped in order. The times are printed; their limits are for busy machines.
pub async fn processes_share(scene: Scene<'_>) {
    let failover = Duration::from_secs(10);
    let mut fleet = Fleet::start(scene, 6, 3, failover).await;
    let took = fleet.is_even("three processes", 6).await;
    assert!(took <= failover * 6, "two each");
    fleet.is_read("three processes").await;

    let leader = fleet.leader().await.expect("a leader");
    let mut killed = fleet.workers.remove((leader + 1) % 3);
    killed.kill();
    let took = fleet.is_read("one was killed").await;
    assert!(took <= failover * 6, "read again");
    fleet.is_even("one was killed", 6).await;

    let repeats = fleet.repeats();
    let joined = fleet.new_worker();
    fleet.workers.push(joined);
    let took = fleet.is_even("one joins", 6).await;
    assert!(took <= failover * 12);
    fleet.is_read("one joins").await;
    assert_eq!(fleet.repeats(), repeats, "a record was repeated by a hand-over");

    let leader = fleet.leader().await.expect("a leader");
    let mut stopped = fleet.workers.remove((leader + 1) % 3);
    stopped.signal("-TERM");
    let took = fleet.is_read("one stops").await;
    assert!(took <= failover * 3, "read elsewhere");
    stopped.ended().await;
    assert_eq!(
        fleet.repeats(),
        repeats,
        "a record was repeated by an orderly stop"
    );

    let leader = fleet.leader().await.expect("a leader");
    let mut killed = fleet.workers.remove(leader);
    killed.kill();
    // The lock of the leader lasts for three failover times.
    let took = fleet.is_read("the leader was killed").await;
    assert!(took <= failover * 12);
    println!("{}", fleet.check().await);
}

/// Stops and replaces each of five processes that share sixty shards, one after the other, under load.
pub async fn processes_are_replaced(scene: Scene<'_>) {
    const SHARDS: usize = 60;
    const WORKERS: usize = 5;
    let failover = Duration::from_secs(8);
    let mut fleet = Fleet::start(scene, SHARDS as i32, WORKERS, failover).await;
    fleet.is_even("five processes", SHARDS).await;
    // The times since which a worker holds more than 1.5 times the average.
    let mut above: HashMap<String, Instant> = HashMap::new();
    let mut longest = Duration::ZERO;
    for _ in 0..WORKERS {
        let mut stopped = fleet.workers.remove(0);
        stopped.signal("-TERM");
        stopped.ended().await;
        let new = fleet.new_worker();
        fleet.workers.push(new);
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(12) {
            fleet.put(120).await;
            let shares = fleet.shares().await;
            let most = SHARDS * 3 / WORKERS / 2;
            for worker in &fleet.workers {
                if shares[&worker.name] > most {
                    let since = above.entry(worker.name.clone()).or_insert_with(Instant::now);
                    longest = longest.max(since.elapsed());
                } else {
                    above.remove(&worker.name);
                }
            }
            sleep(Duration::from_millis(500)).await;
        }
    }
    let took = fleet.is_even("all are replaced", SHARDS).await;
    println!(
        "{}; above 1.5 times the average for {longest:.1?} at most",
        fleet.check().await
    );
    assert!(longest < Duration::from_secs(60) && took < Duration::from_secs(120));
    assert_eq!(fleet.repeats(), 0, "an orderly stop repeats no record");
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
