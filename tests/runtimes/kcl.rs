//! Beside KCL itself, on one lease table: what one has stored the other goes on from.
//!
//! Slow: KCL takes a minute or more before its first record.

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
use support::kcl::{self, Kcl, Pace};
use support::stream;
use support::waiting::finished;
use tokio::sync::{Mutex, MutexGuard};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

const STREAM: &str = "orders";
/// Many times what KCL takes to start.
const PATIENCE: Duration = Duration::from_secs(400);

/// One test after the other: each has two JVMs, and a lease must not be lost because the machine is busy.
static TURN: Mutex<()> = Mutex::const_new(());

/// Servers of a test's own: KCL makes several tables.
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

    /// Puts so many more records, whose data are numbers. Which.
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

    /// `failover`: after which time it takes over from a holder that does nothing.
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
                DynamoDb::new(self.dynamo.client(), self.application.as_str()).failover_time(failover),
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

    /// Splits the first shard that still takes records.
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
        // What is put before the split has taken effect goes into the parent.
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
        let text = format!("{event:?}");
        if text.starts_with("Lease") {
            println!("{text}");
        }
        let kind = text.split([' ', '(']).next().unwrap_or_default().to_owned();
        self.events.lock().expect("no panic").push(kind);
    }
}

struct Redrive {
    seen: Arc<Seen>,
    stop: CancellationToken,
    task: JoinHandle<Result<(), ConsumerError>>,
}

impl Redrive {
    /// Every record that its handler got, as often as it did.
    fn records(&self) -> Vec<u64> {
        self.seen.records.lock().expect("no panic").clone()
    }

    fn events(&self, kind: &str) -> usize {
        let events = self.seen.events.lock().expect("no panic");
        events.iter().filter(|event| *event == kind).count()
    }

    async fn stop(self) -> Vec<u64> {
        self.stop.cancel();
        self.task.await.expect("no panic").expect("nothing halts");
        let mut records = self.seen.records.lock().expect("no panic").clone();
        records.sort_unstable();
        records
    }
}

/// Every record that its processors got, as often as they did.
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

/// KCL, then redrive, through a split, then KCL again: each goes on exactly where the other has stored.
#[tokio::test(flavor = "multi_thread")]
async fn a_service_moves_from_kcl_and_back() {
    let Some(world) = World::new(2).await else { return };
    let first = world.put(200).await;
    // Only one of the two ever works on the shards.
    let kcl = world.kcl(Pace::Fast);
    eventually("KCL reads", Some(&kcl), || records(&kcl).len() == 200).await;

    // A live KCL keeps what it has.
    let redrive = world.redrive(Duration::from_secs(30));
    eventually("redrive stands by", None, || {
        redrive.events("ShardLeasedElsewhere") >= 2
    })
    .await;
    let second = world.put(100).await;
    eventually("KCL reads on", Some(&kcl), || records(&kcl).len() == 300).await;
    // Stored, too: what KCL has read and not stored, redrive would read again.
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
        redrive.events("ShardEnded") == 1
    })
    .await;
    assert_eq!(redrive.stop().await, ours.into_iter().collect::<Vec<_>>());

    let last = world.put(100).await;
    let kcl = world.kcl(Pace::Fast);
    eventually("KCL goes on", Some(&kcl), || records(&kcl).len() == 100).await;
    sleep(Duration::from_secs(2)).await;
    assert_eq!(records(&kcl), last.into_iter().collect::<Vec<_>>());
    // It takes the parent for what it is, and begins its children behind what is stored of them.
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

/// KCL 3 joins a redrive that lives, and takes nothing from it; then it dies.
#[tokio::test(flavor = "multi_thread")]
async fn kcl_takes_over_from_a_redrive_that_has_died_and_not_before() {
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
    // It looks for leases to assign every 10 s.
    let start = Instant::now();
    let mut all = 200;
    while start.elapsed() < Duration::from_secs(45) {
        all += world.put(20).await.len();
        sleep(Duration::from_millis(500)).await;
    }
    eventually("redrive reads on", None, || redrive.records().len() == all).await;
    assert_eq!(records(&kcl), [] as [u64; 0]);
    for lost in ["LeaseLost", "ShardHandedOver"] {
        assert_eq!(redrive.events(lost), 0, "{lost}");
    }

    let ours: BTreeSet<u64> = redrive.records().into_iter().collect();
    redrive.task.abort();
    let rest = world.put(100).await;
    eventually("KCL takes over", Some(&kcl), || {
        records(&kcl).last() == rest.last()
    })
    .await;
    let theirs: BTreeSet<u64> = records(&kcl).into_iter().collect();
    assert!(theirs.is_superset(&rest));
    assert_eq!(&ours | &theirs, (0..all as u64 + 100).collect::<BTreeSet<u64>>());
}
