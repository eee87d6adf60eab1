//! A consumer in a separate process, for tests that kill it.
//!
//! The process is this test binary: the parent starts an ignored test by its name, and that test calls
//! [`child`]. The child appends what it did to a journal. Each line is a single write, so that a kill never
//! leaves part of a line. The checkpoints are in a redb file, and the dead letters in a Kinesis stream.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_kinesis::Client;
use redrive::checkpoint::{self, Checkpoint, CheckpointError, CheckpointStore, ShardKey};
use redrive::dead_letter::{self, DeadLetter, Reason};
use redrive::pipeline::{Capacity, Pipeline};
use redrive::processor::Attempt;
use redrive::testing::kinesis;
use redrive::{BoxError, Consumer, Failure, Record, RecordProcessor, Resilient, RetryPolicy, Scope, ShardId};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::ledger::covers;
use super::stream::{self, Place, Sent};
use super::waiting::{eventually, finished};
use super::wire::wire;

const TASK: &str = "REDRIVE_TEST_CONSUMER";
const APPLICATION: &str = "billing";
const KILLS: usize = 3;

/// The task of the child, passed in an environment variable.
#[derive(Debug, Serialize, Deserialize)]
struct Task {
    endpoint: String,
    stream: String,
    letters: String,
    folder: PathBuf,
}

impl Task {
    fn journal(&self) -> PathBuf {
        self.folder.join("journal")
    }

    fn checkpoints(&self) -> PathBuf {
        self.folder.join("checkpoints.redb")
    }
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
    let journal = Journal::open(&task.journal());
    let client = kinesis::client(&task.endpoint);
    let resilient = Resilient::builder(APPLICATION, journal.clone())
        .retry(RetryPolicy::exponential().max_attempts(10))
        .dead_letters(dead_letter::Kinesis::new(client.clone(), &task.letters))
        .build()
        .expect("a valid processor");
    let store = checkpoint::Redb::open(task.checkpoints()).expect("a checkpoint file");
    // The consumer is slow enough that a kill interrupts it.
    let consumer = Consumer::builder(client, &*task.stream)
        .wire(wire())
        .checkpoints(Noted {
            store,
            journal,
            last: Mutex::default(),
        })
        .pipeline(
            Pipeline::builder()
                .capacity(
                    Capacity::builder()
                        .running(4)
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
    ended.expect("the consumer ends well");
}

/// Completes when the parent closes its end of the child's standard input, or dies.
pub(super) fn end_of_input() -> impl Future<Output = ()> + Send {
    let (open, closed) = oneshot::channel::<()>();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        drop(open);
    });
    async {
        let _ = closed.await;
    }
}

/// The file in which the child notes what it did.
#[derive(Debug, Clone)]
pub(super) struct Journal(Arc<File>);

impl Journal {
    /// Opens a journal that several processes write to.
    pub(super) fn append(path: &Path) -> Self {
        let file = OpenOptions::new().create(true).append(true).open(path);
        Journal(Arc::new(file.expect("a journal")))
    }

    fn open(path: &Path) -> Self {
        let file = OpenOptions::new().create(true).append(true).open(path);
        let file = file.expect("a journal");
        // If the last process was killed within a line, the line is removed. What it describes was not done.
        let whole = whole_lines(&fs::read(path).expect("a journal")).len();
        file.set_len(whole as u64).expect("a journal");
        Journal(Arc::new(file))
    }

    fn write(&self, line: &str) {
        let written = (&*self.0).write(line.as_bytes()).expect("room on the disk");
        assert_eq!(written, line.len(), "a line is one write");
    }
}

/// Returns the journal without an incomplete last line. A reader can see part of a line that is being
/// written.
fn whole_lines(journal: &[u8]) -> &[u8] {
    let end = journal.iter().rposition(|&byte| byte == b'\n');
    &journal[..end.map_or(0, |end| end + 1)]
}

/// Returns the places of the records that a journal lists as processed, in its order.
pub(super) fn processed_lines(journal: &Path) -> Vec<Place> {
    let journal = fs::read(journal).unwrap_or_default();
    let journal = std::str::from_utf8(whole_lines(&journal)).expect("text");
    let place = |line: &str| {
        let mut parts = line.strip_prefix("processed ")?.split(' ');
        Some(Place {
            shard: parts.next()?.into(),
            number: parts.next()?.parse().expect("a sequence number"),
        })
    };
    journal.lines().filter_map(place).collect()
}

impl RecordProcessor for Journal {
    type Error = BoxError;

    async fn process(&self, record: &Record, attempt: &Attempt<'_>) -> Result<(), BoxError> {
        tokio::time::sleep(Duration::from_millis(8)).await;
        match &record.payload()[..] {
            // No panic catch can stop an abort.
            b"abort" => std::process::abort(),
            b"bad" => return Err(Failure::permanent("bad data").into()),
            // Fails for about three seconds, and again after each restart.
            b"late" if attempt.number() < 5 => {
                let busy = Failure::transient("busy").with_scope(Scope::Record);
                return Err(busy.with_retry_after(Duration::from_millis(750)).into());
            }
            _ => {}
        }
        self.write(&format!(
            "processed {} {}\n",
            record.shard(),
            record.sequence_number()
        ));
        Ok(())
    }
}

/// A checkpoint store that notes each stored change in the journal.
#[derive(Debug)]
struct Noted {
    store: checkpoint::Redb,
    journal: Journal,
    last: Mutex<HashMap<ShardId, Checkpoint>>,
}

#[async_trait]
impl CheckpointStore for Noted {
    async fn load(&self, shards: &[ShardKey]) -> Vec<Result<Option<Checkpoint>, CheckpointError>> {
        self.store.load(shards).await
    }

    async fn save(&self, rows: &[(ShardKey, Checkpoint)]) -> Vec<Result<(), CheckpointError>> {
        let results = self.store.save(rows).await;
        for ((key, checkpoint), result) in rows.iter().zip(&results) {
            // Only a new position, or a change of what is settled ahead, is noted.
            let place = Checkpoint::at(checkpoint.position().clone());
            let place = match checkpoint.ahead() {
                Some(ahead) => place.with_ahead(ahead.clone()),
                None => place,
            };
            let mut last = self.last.lock().expect("no panic");
            if result.is_ok() && last.insert(key.shard.clone(), place.clone()) != Some(place) {
                self.journal.write(&format!("saved {} -\n", key.shard));
            }
        }
        results
    }

    fn write_interval(&self) -> Duration {
        self.store.write_interval()
    }
}

/// Puts records into this stream and has a child process them. The child is killed three times, each time after
/// it has processed at least `part` records.
///
/// After each kill the test compares the journal, the checkpoints and the dead letters with the stream.
///
/// `test` is the full name of the ignored test that calls [`child`].
pub async fn survives_kills(endpoint: &str, test: &str, stream: &str, shards: i32, part: usize) {
    let folder = tempfile::tempdir().expect("a folder");
    let (task, client) = Task::begin(endpoint, stream, shards, folder.path()).await;
    let mut sent = Vec::new();
    let mut kills = Vec::new();
    for kill in 1..=KILLS {
        let before = task.done().len();
        let mut child = task.start(test);
        finished("the child has processed its part and stored some of it", async {
            loop {
                child.must_run();
                let done = task.done();
                let enough = done.len() - before >= part;
                if enough && before_last_save(&done, before).len() > part / 4 {
                    break;
                }
                // A child that runs out of records stores nothing more. On a busy machine it can process
                // many before this task runs again.
                if processed(&done).count() + part > sent.len() {
                    let count = sent.len() + 2 * part;
                    put_part(&client, stream, sent.len()..count).await;
                    sent = stream::read(&client, stream).await;
                    assert_eq!(sent.len(), count);
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        child.kill();
        let killed = Killed::look(&task, &client, before).await;
        killed.check(&sent);
        println!("kill {kill}: {}", killed.figures(&sent));
        kills.push(killed);
    }

    let child = task.start(test);
    let killed = kills.last().expect("the child was killed");
    let (bad, good): (Vec<&Sent>, Vec<&Sent>) = sent
        .iter()
        .filter(|sent| !covers(&killed.stored, sent))
        .partition(|sent| sent.data == b"bad");
    // Records that an earlier run processed but did not store must be processed again.
    eventually("every record that no checkpoint covers is processed", || {
        let done = task.done();
        let again: HashSet<Place> = processed(&done[killed.done.len()..])
            .map(|(_, place)| place)
            .collect();
        good.iter().all(|sent| again.contains(&sent.place))
    })
    .await;
    finished(
        "every bad record that no checkpoint covers is dead-lettered",
        async {
            loop {
                let letters = task.letters(&client).await;
                let again = &letters[killed.letters.len()..];
                if bad.iter().all(|sent| again.contains(&sent.place)) {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        },
    )
    .await;
    child.stop();

    let last = Killed::look(&task, &client, 0).await;
    let settled = last.settled();
    let lost = sent.iter().find(|sent| !settled.contains(&sent.place));
    assert_eq!(lost, None, "lost");
    let open = sent.iter().find(|sent| !covers(&last.stored, sent));
    assert_eq!(open, None, "the shutdown did not store the last checkpoint");
    let ahead: usize = kills.iter().map(|killed| killed.ahead(&sent)).sum();
    assert!(ahead > 0, "no kill found a record settled ahead of the watermark");
    check_order(&last.done, &kills, &sent);
    for killed in &kills {
        killed.check_repeats(&last, &sent);
    }
    let processed = processed(&last.done).count();
    println!(
        "{} records, {KILLS} kills: {processed} processed, {} dead-lettered; {} repeated",
        sent.len(),
        last.letters.len(),
        processed + last.letters.len() - sent.len()
    );
}

/// Puts the records with these numbers. Some of them are bad, and some fail for a while.
async fn put_part(client: &Client, stream: &str, numbers: Range<usize>) {
    let records = numbers.map(|number| {
        let payload = match number % 60 {
            7 => "late",
            19 | 49 => "bad",
            _ => "ok",
        };
        (format!("key-{}", number % 97), payload)
    });
    stream::put(client, stream, records).await;
}

/// Puts records into this stream, one of which aborts every process that handles it. Starts child processes
/// until one survives.
pub async fn survives_a_record_that_aborts(endpoint: &str, test: &str, stream: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let (task, client) = Task::begin(endpoint, stream, 2, folder.path()).await;
    let records = (0..400).map(|number| {
        let payload = if number == 150 { "abort" } else { "ok" };
        (format!("key-{}", number % 97), payload)
    });
    stream::put(&client, stream, records).await;
    let sent = stream::read(&client, stream).await;
    let aborts = sent
        .iter()
        .find(|sent| sent.data == b"abort")
        .expect("the record was put");

    let mut crashes = 0;
    let child = loop {
        let mut child = task.start(test);
        let mut crashed = false;
        eventually("the child has crashed or settled all records", || {
            crashed = child.has_ended();
            let done = task.done();
            let processed: HashSet<Place> = processed(&done).map(|(_, place)| place).collect();
            crashed || processed.len() == sent.len() - 1
        })
        .await;
        // The other records may all be processed before the aborting record is dead-lettered.
        if !crashed {
            while task.letters(&client).await.is_empty() && !child.has_ended() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            crashed = child.has_ended();
        }
        if !crashed {
            break child;
        }
        crashes += 1;
        assert!(crashes <= 10, "it crashes again and again:\n{}", child.log());
        let letters = task.letters(&client).await;
        assert_eq!(letters, [], "after {crashes} crashes");
    };
    child.stop();
    let last = Killed::look(&task, &client, 0).await;
    let settled = last.settled();
    let lost = sent.iter().find(|sent| !settled.contains(&sent.place));
    assert_eq!(lost, None, "lost");
    assert_eq!(
        last.letters,
        std::slice::from_ref(&aborts.place),
        "a record that did not crash is dead-lettered"
    );
    let letter = stream::read(&client, &task.letters).await.remove(0);
    let letter = DeadLetter::decode(&letter.data.into()).expect("a dead letter");
    assert_eq!(letter.reason, Reason::CrashLoop);
    // Three crashes count against the record. In the crashes before those, it was one of several records in
    // flight.
    assert!(crashes >= 5, "{crashes} crashes");
    let starts = last.stored.values().filter_map(Checkpoint::starts).count();
    assert_eq!(starts, 0, "an orderly end leaves no start counts behind");
    println!("{crashes} crashes of one record among 400");
}

/// A line of the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Done {
    Processed(Place),
    Saved(ShardId),
}

impl Task {
    /// Creates the streams and the task.
    async fn begin(endpoint: &str, stream: &str, shards: i32, folder: &Path) -> (Self, Client) {
        let task = Task {
            endpoint: endpoint.to_owned(),
            stream: stream.to_owned(),
            letters: format!("{stream}-dlq"),
            folder: folder.to_owned(),
        };
        let client = kinesis::client(endpoint);
        for (name, shards) in [(&task.stream, shards), (&task.letters, 1)] {
            kinesis::create_stream(&client, name, shards)
                .await
                .expect("a stream");
        }
        (task, client)
    }

    fn start(&self, test: &str) -> Running {
        let log = self.folder.join("log");
        let output = OpenOptions::new().create(true).append(true).open(&log);
        let output = output.expect("a log");
        let child = Command::new(std::env::current_exe().expect("this binary"))
            .args(["--exact", test, "--ignored", "--nocapture"])
            .env(TASK, serde_json::to_string(self).expect("JSON"))
            .stdin(Stdio::piped())
            .stdout(output.try_clone().expect("a second handle"))
            .stderr(output)
            .spawn();
        Running {
            child: child.expect("a child"),
            log,
        }
    }

    /// Returns the lines of the journal.
    fn done(&self) -> Vec<Done> {
        let journal = fs::read(self.journal()).unwrap_or_default();
        let journal = std::str::from_utf8(whole_lines(&journal)).expect("text");
        let parse = |line: &str| {
            let parts: Vec<&str> = line.split(' ').collect();
            match parts[..] {
                ["processed", shard, number] => Done::Processed(Place {
                    shard: shard.into(),
                    number: number.parse().expect("a sequence number"),
                }),
                ["saved", shard, _] => Done::Saved(shard.into()),
                _ => panic!("not a line of the journal: {line:?}"),
            }
        };
        journal.lines().map(parse).collect()
    }

    /// Returns the places of the records in the dead-letter stream, in order.
    async fn letters(&self, client: &Client) -> Vec<Place> {
        let letters = stream::read(client, &self.letters).await;
        let place = |sent: Sent| {
            let letter = DeadLetter::decode(&sent.data.into()).expect("a dead letter");
            Place {
                shard: letter.shard,
                number: letter.sequence_number,
            }
        };
        letters.into_iter().map(place).collect()
    }

    /// Returns the checkpoints in the file, which no other process has open.
    async fn stored(&self, client: &Client) -> HashMap<ShardId, Checkpoint> {
        let store = checkpoint::Redb::open(self.checkpoints()).expect("the file outlives the kill");
        let shards = stream::shards(client, &self.stream).await;
        let keys: Vec<ShardKey> = shards
            .into_iter()
            .map(|shard| ShardKey::new(APPLICATION, &*self.stream, shard))
            .collect();
        let stored = store.load(&keys).await.into_iter();
        let stored = keys.into_iter().zip(stored).filter_map(|(key, row)| {
            let row = row.expect("a readable checkpoint");
            row.map(|checkpoint| (key.shard, checkpoint))
        });
        stored.collect()
    }
}

fn processed(done: &[Done]) -> impl Iterator<Item = (usize, Place)> + '_ {
    done.iter().enumerate().filter_map(|(at, done)| match done {
        Done::Processed(place) => Some((at, place.clone())),
        Done::Saved(_) => None,
    })
}

/// Returns the records that this run processed before the second to last checkpoint of their shard was
/// stored. The last checkpoint was made after that, so it must cover all of them.
fn before_last_save(done: &[Done], start: usize) -> HashSet<Place> {
    let mut saves: HashMap<&ShardId, Vec<usize>> = HashMap::new();
    for (at, done) in done.iter().enumerate().skip(start) {
        if let Done::Saved(shard) = done {
            saves.entry(shard).or_default().push(at);
        }
    }
    let due = |&(at, ref place): &(usize, Place)| match saves.get(&place.shard).map(Vec::as_slice) {
        // Records that an earlier run processed but did not store are repeated, perhaps only later.
        Some([.., last_but_one, _]) => (start..*last_but_one).contains(&at),
        _ => false,
    };
    processed(done).filter(due).map(|(_, place)| place).collect()
}

/// A running child. Dropping this value kills the process.
struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    fn must_run(&mut self) {
        if let Some(status) = self.child.try_wait().expect("a child") {
            panic!("the child ended: {status}\n{}", self.log());
        }
    }

    fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("a child").is_some()
    }

    /// Kills the process with SIGKILL.
    fn kill(&mut self) {
        self.child.kill().expect("a child that runs");
        self.child.wait().expect("a child");
    }

    fn stop(mut self) {
        // `wait` closes the child's standard input, which ends the child.
        let status = self.child.wait().expect("a child");
        assert!(status.success(), "{status}\n{}", self.log());
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The state that a child left behind.
struct Killed {
    /// The number of journal lines from before its run.
    start: usize,
    done: Vec<Done>,
    letters: Vec<Place>,
    stored: HashMap<ShardId, Checkpoint>,
}

impl Killed {
    async fn look(task: &Task, client: &Client, start: usize) -> Self {
        Killed {
            start,
            done: task.done(),
            letters: task.letters(client).await,
            stored: task.stored(client).await,
        }
    }

    fn settled(&self) -> HashSet<Place> {
        let processed = processed(&self.done).map(|(_, place)| place);
        processed.chain(self.letters.iter().cloned()).collect()
    }

    /// Asserts that the checkpoints pass no unsettled record, and that they are no older than the last one
    /// that was due.
    fn check(&self, sent: &[Sent]) {
        let settled = self.settled();
        let due = before_last_save(&self.done, self.start);
        for sent in sent {
            if covers(&self.stored, sent) {
                assert!(
                    settled.contains(&sent.place),
                    "stored as settled, but not settled: {sent:?}"
                );
            } else {
                assert!(!due.contains(&sent.place), "repeated without need: {sent:?}");
            }
        }
    }

    /// Asserts that no record covered by these checkpoints was processed or dead-lettered later.
    fn check_repeats(&self, last: &Killed, sent: &[Sent]) {
        let again: HashSet<Place> = processed(&last.done[self.done.len()..])
            .map(|(_, place)| place)
            .chain(last.letters[self.letters.len()..].iter().cloned())
            .collect();
        let repeated = sent
            .iter()
            .find(|sent| covers(&self.stored, sent) && again.contains(&sent.place));
        assert_eq!(repeated, None, "stored as settled, and settled again");
    }

    /// Returns the number of records that are stored as settled ahead of the watermark.
    fn ahead(&self, sent: &[Sent]) -> usize {
        let ahead = sent.iter().filter(|sent| {
            let record = sent.record();
            let checkpoint = self.stored.get(&sent.place.shard);
            let ahead = checkpoint.and_then(Checkpoint::ahead);
            ahead.is_some_and(|ahead| ahead.covers(&record))
                && checkpoint.is_some_and(|checkpoint| !checkpoint.position().covers(&record))
        });
        ahead.count()
    }

    fn figures(&self, sent: &[Sent]) -> String {
        let settled = self.settled().len();
        let covered = sent.iter().filter(|sent| covers(&self.stored, sent)).count();
        format!(
            "{settled} settled, {covered} stored as such ({} of them ahead of the watermark): {} to repeat",
            self.ahead(sent),
            settled - covered
        )
    }
}

/// Asserts that each run processes the records of a key in order, and that none is processed for the first
/// time before earlier records of its key.
fn check_order(done: &[Done], kills: &[Killed], sent: &[Sent]) {
    let ranks = ranks(sent);
    let mut firsts: HashMap<&str, usize> = HashMap::new();
    let mut last: HashMap<&str, usize> = HashMap::new();
    let mut runs = kills.iter().map(|killed| killed.done.len()).peekable();
    for (at, place) in processed(done) {
        while runs.next_if(|&end| end <= at).is_some() {
            last.clear();
        }
        let (key, rank) = ranks[&place];
        let first = firsts.entry(key).or_default();
        assert!(rank <= *first, "{place:?} overtakes a record of its key");
        *first = (*first).max(rank + 1);
        let before = last.insert(key, rank);
        assert!(
            before.is_none_or(|before| before < rank),
            "{place:?} is processed after a later record of its key"
        );
    }
}

/// Maps each record that can be processed to its key and to the number of earlier records of that key.
pub(super) fn ranks(sent: &[Sent]) -> HashMap<&Place, (&str, usize)> {
    let mut ranks = HashMap::new();
    let mut counts: HashMap<&str, usize> = HashMap::new();
    for sent in sent.iter().filter(|sent| sent.data != b"bad") {
        let count = counts.entry(&sent.key).or_default();
        ranks.insert(&sent.place, (&*sent.key, *count));
        *count += 1;
    }
    ranks
}
