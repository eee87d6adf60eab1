//! Tests of redrive and KCL on one lease table: each continues from the checkpoints of the other.
//!
//! These tests are slow, because KCL takes at least a minute before its first record.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use redrive::checkpoint::DynamoDb;
use redrive::observer::{Event, Observer};
use redrive::testing::kinesis::{self, KinesisServer};
use redrive::{Consumer, ConsumerError, Record, Resilient, dead_letter, processor_with};
use support::dynamodb::DynamoDbLocal;
use support::emulator::unique;
use support::events::{known, name};
use support::kcl::{self, Kcl, Pace};
use support::stream;
use support::waiting::finished;
use tokio::sync::{Mutex, MutexGuard};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

const STREAM: &str = "orders";
/// The maximum waiting time, a multiple of the start time of KCL.
const PATIENCE: Duration = Duration::from_secs(400);

/// Runs one test at a time: each has two JVMs, and a busy machine must not cause a lost lease.
static TURN: Mutex<()> = Mutex::const_new(());

/// The servers and the application of one test. KCL creates several tables.
struct World {
    kinesis: KinesisServer,
    dynamo: &'static DynamoDbLocal,
    application: String,
    put: AtomicU64,
    _turn: MutexGuard<'static, ()>,
}

impl World {
    async fn new(shards: i32) -> Option<Self> {
        let log = tracing_subscriber::fmt().with_max_level(tracing::Level::WARN);
        let _ = log.with_test_writer().try_init();
        let turn = TURN.lock().await;
        let dynamo = DynamoDbLocal::shared()?;
        let kinesis = KinesisServer::start().await.expect("a free port");
        let created = kinesis::create_stream(&kinesis.client(), STREAM, shards).await;
        created.expect("a stream");
        Some(World {
            kinesis,
            dynamo,
            application: unique("billing"),
            put: AtomicU64::new(0),
            _turn: turn,
        })
    }

    /// Puts `count` more records whose data are numbers. Returns the numbers.
    async fn put(&self, count: u64) -> BTreeSet<u64> {
        let first = self.put.fetch_add(count, Relaxed);
        let numbers = first..first + count;
        let records = numbers
            .clone()
            .map(|number| (format!("key-{}", number % 30), number.to_string()));
        stream::put(&self.kinesis.client(), STREAM, records).await;
        numbers.collect()
    }

    fn kcl(&self, pace: Pace) -> Kcl {
        let places = (self.kinesis.endpoint(), self.dynamo.endpoint());
        Kcl::start(places, &self.application, STREAM, pace).expect("not skipped")
    }

    /// Starts a consumer. It takes over the lease of an owner that has not renewed it for `failover`.
    fn redrive(&self, failover: Duration) -> Redrive {
        let seen = Arc::new(Seen::default());
        let note = async |seen: Arc<Seen>, record: Record| -> Result<(), std::io::Error> {
            let data = std::str::from_utf8(record.payload()).expect("a number");
            let number = data.parse().expect("a number");
            seen.records.lock().expect("no panic").push(number);
            Ok(())
        };
        let resilient = Resilient::builder(self.application.as_str(), processor_with(seen.clone(), note))
            .dead_letters(dead_letter::Memory::new())
            .observer(seen.clone())
            .build()
            .expect("valid");
        let consumer = Consumer::builder(self.kinesis.client(), STREAM)
            .checkpoints(
                DynamoDb::new(self.dynamo.client(), self.application.as_str())
                    .failover_time(failover)
                    .standby(),
            )
            .calls_per_second(50.0)
            .idle_interval(Duration::from_millis(100))
            .build()
            .expect("valid");
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        Redrive {
            seen,
            stop,
            task: tokio::spawn(consumer.run_until(resilient, stopped)),
        }
    }

    /// Splits the first open shard.
    async fn split(&self) {
        let client = self.kinesis.client();
        let shards = client.list_shards().stream_name(STREAM).send().await;
        let shards = shards.expect("ListShards").shards.unwrap_or_default();
        let open = shards.iter().find(|shard| {
            let numbers = shard.sequence_number_range();
            numbers.is_some_and(|numbers| numbers.ending_sequence_number().is_none())
        });
        let open = open.expect("an open shard");
        let keys = open.hash_key_range().expect("a range");
        let key = |text: &str| text.parse::<u128>().expect("a number");
        let middle = key(keys.starting_hash_key()) / 2 + key(keys.ending_hash_key()) / 2;
        let call = client
            .split_shard()
            .stream_name(STREAM)
            .shard_to_split(open.shard_id());
        let call = call.new_starting_hash_key(middle.to_string());
        call.send().await.expect("SplitShard");
        // Records put before the split takes effect go into the parent.
        let is_split = async {
            loop {
                let listed = client.list_shards().stream_name(STREAM).send().await;
                let listed = listed.expect("ListShards").shards.unwrap_or_default();
                if listed.len() >= shards.len() + 2 {
                    return;
                }
                sleep(Duration::from_millis(50)).await;
            }
        };
        finished("the shard is split", is_split).await;
    }
}

#[derive(Default)]
struct Seen {
    records: std::sync::Mutex<Vec<u64>>,
    events: std::sync::Mutex<Vec<String>>,
}

impl Observer for Seen {
    fn on(&self, event: &Event<'_>) {
        let name = name(event);
        if name.starts_with("ShardEvent::Lease") {
            println!("{event:?}");
        }
        self.events.lock().expect("no panic").push(name);
    }
}

struct Redrive {
    seen: Arc<Seen>,
    stop: CancellationToken,
    task: JoinHandle<Result<(), ConsumerError>>,
}

impl Redrive {
    /// Returns every record that the handler received, including repetitions.
    fn records(&self) -> Vec<u64> {
        self.seen.records.lock().expect("no panic").clone()
    }

    fn events(&self, name: &str) -> usize {
        let (name, events) = (known(name), self.seen.events.lock().expect("no panic"));
        events.iter().filter(|event| *event == name).count()
    }

    async fn stop(self) -> Vec<u64> {
        self.stop.cancel();
        self.task.await.expect("no panic").expect("nothing halts");
        let mut records = self.seen.records.lock().expect("no panic").clone();
        records.sort_unstable();
        records
    }
}

/// Returns every record that the processors of KCL received, including repetitions.
fn records(kcl: &Kcl) -> Vec<u64> {
    let given = kcl.given().into_iter();
    let mut records: Vec<u64> = given.map(|given| given.data.parse().expect("a number")).collect();
    records.sort_unstable();
    records
}

async fn eventually(what: &str, kcl: Option<&Kcl>, holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        let log = || kcl.map(Kcl::log).unwrap_or_default();
        assert!(
            start.elapsed() < PATIENCE,
            "{what}: not within {PATIENCE:?}\n{}",
            log()
        );
        sleep(Duration::from_millis(100)).await;
    }
}

/// Runs KCL, then redrive during a split, then KCL again. Each continues at the checkpoint of the other.
#[tokio::test(flavor = "multi_thread")]
async fn a_service_moves_from_kcl_and_back() {
    let Some(world) = World::new(2).await else { return };
    let first = world.put(200).await;
    // Only one of the two works on the shards at any time.
    let kcl = world.kcl(Pace::Fast);
    eventually("KCL reads", Some(&kcl), || records(&kcl).len() == 200).await;

    // A live KCL keeps its leases.
    let redrive = world.redrive(Duration::from_secs(30));
    eventually("redrive stands by", None, || {
        redrive.events("ShardEvent::LeasedElsewhere") >= 2
    })
    .await;
    let second = world.put(100).await;
    eventually("KCL reads on", Some(&kcl), || records(&kcl).len() == 300).await;
    // Wait for the checkpoint too: redrive would read again what KCL has read without a checkpoint.
    let stored = || kcl.notes().iter().filter(|note| note[0] == "checkpoint").count();
    let before = stored();
    let third = world.put(50).await;
    eventually("KCL stores", Some(&kcl), || {
        records(&kcl).len() == 350 && stored() > before
    })
    .await;
    sleep(Duration::from_secs(2)).await;
    assert_eq!(redrive.records(), [] as [u64; 0]);
    let read = records(&kcl);
    assert_eq!(
        read,
        first.into_iter().chain(second).chain(third).collect::<Vec<_>>()
    );
    drop(kcl);
    kcl::release_leader(&world.dynamo.client(), &world.application).await;

    let mut ours = world.put(100).await;
    eventually("redrive takes over", None, || redrive.records().len() == 100).await;
    world.split().await;
    ours.extend(world.put(100).await);
    eventually("redrive reads on", None, || redrive.records().len() == 200).await;
    eventually("the parent's end is stored", None, || {
        redrive.events("ShardEvent::Ended") == 1
    })
    .await;
    assert_eq!(redrive.stop().await, ours.into_iter().collect::<Vec<_>>());

    let last = world.put(100).await;
    let kcl = world.kcl(Pace::Fast);
    eventually("KCL continues", Some(&kcl), || records(&kcl).len() == 100).await;
    sleep(Duration::from_secs(2)).await;
    assert_eq!(records(&kcl), last.into_iter().collect::<Vec<_>>());
    // KCL treats the parent as ended, and starts its children behind their checkpoints.
    let began: BTreeSet<(String, String)> = kcl
        .notes()
        .iter()
        .filter(|note| note[0] == "began")
        .map(|note| (note[1].clone(), note[2].clone()))
        .collect();
    assert!(
        began
            .iter()
            .all(|(shard, from)| shard == "shardId-000000000000" || from != "TRIM_HORIZON"),
        "{began:?}"
    );
}

/// KCL 3 joins a live redrive and takes no lease from it. Then redrive dies, and KCL takes over.
#[tokio::test(flavor = "multi_thread")]
async fn kcl_takes_over_only_after_redrive_has_died() {
    let Some(world) = World::new(2).await else { return };
    kcl::create_lease_table(&world.dynamo.client(), &world.application).await;
    let redrive = world.redrive(Duration::from_secs(20));
    world.put(200).await;
    eventually("redrive reads", None, || redrive.records().len() == 200).await;
    let kcl = world.kcl(Pace::Patient);
    eventually("KCL is up", Some(&kcl), || {
        kcl.log().contains("is the current leader")
    })
    .await;
    // The leader of KCL assigns leases every 10 s.
    let start = Instant::now();
    let mut all = 200;
    while start.elapsed() < Duration::from_secs(45) {
        all += world.put(20).await.len();
        sleep(Duration::from_millis(500)).await;
    }
    eventually("redrive reads on", None, || redrive.records().len() == all).await;
    assert_eq!(records(&kcl), [] as [u64; 0]);
    for lost in ["ShardEvent::LeaseLost", "ShardEvent::HandedOver"] {
        assert_eq!(redrive.events(lost), 0, "{lost}");
    }

    let ours: BTreeSet<u64> = redrive.records().into_iter().collect();
    redrive.task.abort();
    let rest = world.put(100).await;
    // KCL takes the shards one after the other: the last record says nothing of the other shard.
    let theirs = || records(&kcl).into_iter().collect::<BTreeSet<u64>>();
    eventually("KCL takes over", Some(&kcl), || theirs().is_superset(&rest)).await;
    let theirs = theirs();
    assert_eq!(&ours | &theirs, (0..all as u64 + 100).collect::<BTreeSet<u64>>());
}
