//! A stream, its lease table, and the workers that share the stream's shards.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use redrive::checkpoint::DynamoDb;
use redrive::observer::{Event, Observer};
use redrive::testing::kinesis::{self, KinesisServer};
use redrive::{Consumer, ConsumerError, Record, Resilient, dead_letter, processor_with};
use support::dynamodb::DynamoDbLocal;
use support::emulator::unique;
use support::events::{known, name};
use support::journal::{Journal, record};
use support::kcl::{self, FLEET_FAILOVER, Kcl, Role};
use support::localstack::LocalStack;
use support::stream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// The maximum waiting time, a multiple of the time in which KCL starts or takes over.
const PATIENCE: Duration = Duration::from_secs(240);

pub struct Fleet {
    kinesis: aws_sdk_kinesis::Client,
    endpoint: String,
    _server: Option<KinesisServer>,
    stream: String,
    places: &'static DynamoDbLocal,
    pub dynamo: aws_sdk_dynamodb::Client,
    pub table: String,
    pub journal: Arc<Journal>,
    /// The shard whose records redrive does not finish.
    blocked: watch::Sender<Option<String>>,
    /// The shard of the last record that waited.
    waiting: watch::Sender<Option<String>>,
    started: Instant,
}

/// The number of open shards of a worker, without those that are being handed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    pub worker: String,
    pub shards: usize,
}

impl Share {
    pub fn of(worker: &str, shards: usize) -> Self {
        let worker = worker.to_owned();
        Share { worker, shards }
    }
}

/// A row of the lease table.
#[derive(Debug, Clone)]
struct Row {
    owner: String,
    checkpoint_owner: String,
    checkpoint: String,
    counter: u64,
    /// Shown if a test fails: KCL balances by it.
    #[allow(dead_code)]
    throughput: String,
}

impl Fleet {
    /// Creates a stream on an embedded server. The server does not name the children at the end of a shard,
    /// which KCL requires: a worker of KCL must not read a shard to its end.
    pub async fn embedded(shards: i32) -> Option<Self> {
        let dynamo = DynamoDbLocal::shared()?;
        kcl::install()?;
        let server = KinesisServer::start().await.expect("a free port");
        let endpoint = server.endpoint().to_owned();
        Some(Fleet::new(dynamo, endpoint, Some(server), shards).await)
    }

    pub async fn localstack(shards: i32) -> Option<Self> {
        let dynamo = DynamoDbLocal::shared()?;
        kcl::install()?;
        let endpoint = LocalStack::shared()?.endpoint().to_owned();
        Some(Fleet::new(dynamo, endpoint, None, shards).await)
    }

    async fn new(
        places: &'static DynamoDbLocal,
        endpoint: String,
        server: Option<KinesisServer>,
        shards: i32,
    ) -> Self {
        let log = tracing_subscriber::fmt().with_max_level(tracing::Level::WARN);
        let _ = log.with_test_writer().try_init();
        let (kinesis, stream) = (kinesis::client(&endpoint), unique("orders"));
        let created = kinesis::create_stream(&kinesis, &stream, shards).await;
        created.expect("a stream");
        Fleet {
            kinesis,
            endpoint,
            _server: server,
            stream,
            places,
            dynamo: places.client(),
            table: unique("billing"),
            journal: Arc::new(Journal::new()),
            blocked: watch::Sender::new(None),
            waiting: watch::Sender::new(None),
            started: Instant::now(),
        }
    }

    /// Puts records into the stream until the flow is stopped.
    pub fn flow(&self) -> Flow {
        let stop = CancellationToken::new();
        let (kinesis, stream) = (self.kinesis.clone(), self.stream.clone());
        let until = stop.clone();
        let task = tokio::spawn(async move {
            let mut first = 0;
            while !until.is_cancelled() {
                stream::put(&kinesis, &stream, (first..first + 20).map(record)).await;
                first += 20;
                sleep(Duration::from_millis(250)).await;
            }
            first
        });
        Flow {
            stop,
            task,
            journal: self.journal.clone(),
        }
    }

    /// Starts a worker of KCL, which balances the shards in every run in which it leads. Dropping it kills the
    /// process.
    pub fn java(&self, worker: &str) -> Kcl {
        self.kcl(worker, Role::Balances)
    }

    /// Starts a worker of KCL that balances the shards once, when it becomes the leader.
    pub fn calm_java(&self, worker: &str) -> Kcl {
        self.kcl(worker, Role::BalancesOnce)
    }

    /// Starts a worker of KCL that takes shards for itself, as KCL 2 does.
    pub fn taking_java(&self, worker: &str) -> Kcl {
        self.kcl(worker, Role::Takes)
    }

    /// Creates the lease table for a worker of KCL that starts first.
    ///
    /// KCL adds the index to a table that it has created, and DynamoDB Local fails its writes until the index is
    /// there.
    pub async fn create_lease_table(&self) {
        kcl::create_lease_table(&self.dynamo, &self.table).await;
    }

    fn kcl(&self, worker: &str, role: Role) -> Kcl {
        let places = (&*self.endpoint, self.places.endpoint());
        let joined = Kcl::join(
            places,
            &self.table,
            &self.stream,
            (worker, role),
            self.journal.path(),
        );
        joined.expect("not skipped")
    }

    /// Starts a worker of redrive.
    pub fn redrive(&self, worker: &str) -> Redrive {
        let handle = async |handler: Handler, record: Record| {
            let shard = Some(record.shard().as_str());
            let mut blocked = handler.blocked.clone();
            if blocked.borrow().as_deref() == shard {
                handler.waiting.send_replace(shard.map(str::to_owned));
            }
            let _ = blocked.wait_for(|blocked| blocked.as_deref() != shard).await;
            handler.journal.note(&handler.worker, &record);
            Ok::<(), std::io::Error>(())
        };
        let events = Arc::new(Events {
            worker: worker.to_owned(),
            started: self.started,
            counts: Mutex::default(),
        });
        let state = Handler {
            worker: worker.to_owned(),
            journal: self.journal.clone(),
            blocked: self.blocked.subscribe(),
            waiting: self.waiting.clone(),
        };
        let resilient = Resilient::builder(self.table.as_str(), processor_with(state, handle))
            .dead_letters(dead_letter::Memory::new())
            .observer(events.clone())
            .build()
            .expect("valid");
        let store = DynamoDb::new(self.dynamo.clone(), self.table.as_str());
        let consumer = Consumer::builder(self.kinesis.clone(), self.stream.as_str())
            .checkpoints(store.worker(worker).failover_time(FLEET_FAILOVER))
            .idle_interval(Duration::from_millis(200))
            .build()
            .expect("valid");
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        Redrive {
            events,
            stop,
            task: tokio::spawn(consumer.run_until(resilient, stopped)),
        }
    }

    async fn rows(&self) -> BTreeMap<String, Row> {
        let call = self.dynamo.scan().table_name(&self.table).consistent_read(true);
        // The table may not exist yet.
        let items = call.send().await.map(|reply| reply.items.unwrap_or_default());
        let row = |item: HashMap<String, AttributeValue>| {
            let text = |name: &str| item.get(name).and_then(|value| value.as_s().ok().cloned());
            let counter = item
                .get("leaseCounter")
                .and_then(|value| value.as_n().ok()?.parse().ok());
            let row = Row {
                owner: text("leaseOwner").unwrap_or_default(),
                checkpoint_owner: text("checkpointOwner").unwrap_or_default(),
                checkpoint: text("checkpoint").unwrap_or_default(),
                counter: counter.unwrap_or_default(),
                throughput: format!("{:?}", item.get("throughputKBps")),
            };
            (text("leaseKey").expect("a key"), row)
        };
        items.unwrap_or_default().into_iter().map(row).collect()
    }

    /// Returns the shares of the workers, sorted by name.
    fn shares(rows: &BTreeMap<String, Row>) -> Vec<Share> {
        let mut shares: BTreeMap<&str, usize> = BTreeMap::new();
        let open = rows.values().filter(|row| row.checkpoint != "SHARD_END");
        for row in open.filter(|row| row.checkpoint_owner.is_empty()) {
            *shares.entry(short(&row.owner)).or_default() += 1;
        }
        shares
            .into_iter()
            .map(|(worker, shards)| Share::of(worker, shards))
            .collect()
    }

    pub async fn shares_become(&self, what: &str, java: &[&Kcl], holds: impl Fn(&[Share]) -> bool) {
        self.until(what, java, async || holds(&Fleet::shares(&self.rows().await)))
            .await;
    }

    /// Waits until the condition holds.
    async fn until(&self, what: &str, java: &[&Kcl], holds: impl AsyncFn() -> bool) {
        let start = Instant::now();
        while !holds().await {
            if start.elapsed() > PATIENCE {
                let logs: Vec<String> = java.iter().map(|java| java.log()).collect();
                let rows = self.rows().await;
                panic!("{what}: not within {PATIENCE:?}: {rows:#?}\n{}", logs.join("\n"));
            }
            sleep(Duration::from_millis(100)).await;
        }
        println!("{:?} {what}, after {:?}", self.started.elapsed(), start.elapsed());
    }

    /// Waits until the worker processes another record.
    pub async fn reads(&self, worker: &str, java: &[&Kcl]) {
        let before = self.journal.entries().len();
        let what = format!("{worker} reads");
        let is_record = |worker: &str| {
            let entries = self.journal.entries();
            entries[before..]
                .iter()
                .any(|entry| entry.what == "record" && entry.worker == worker)
        };
        self.until(&what, java, async || is_record(worker)).await;
    }

    /// Waits until a worker processes a record of the shard.
    pub async fn is_read(&self, shard: &str, java: &[&Kcl]) {
        self.until(&format!("{shard} is read"), java, async || self.has_begun(shard))
            .await;
    }

    /// Keeps the handlers of redrive from finishing records of this shard, and waits until one of them has such a
    /// record. The shard does not end before [`unblock`](Fleet::unblock).
    pub async fn block(&self, shard: &str, java: &[&Kcl]) {
        self.blocked.send_replace(Some(shard.to_owned()));
        let waits = async || self.waiting.borrow().as_deref() == Some(shard);
        self.until(&format!("a record of {shard} waits"), java, waits)
            .await;
    }

    pub fn unblock(&self) {
        self.blocked.send_replace(None);
    }

    /// Waits until the shard is settled to its end.
    pub async fn ends(&self, shard: &str, java: &[&Kcl]) {
        let has_ended = async || self.rows().await[shard].checkpoint == "SHARD_END";
        self.until(&format!("{shard} has ended"), java, has_ended).await;
    }

    /// Waits until this worker has renewed the leases for about the failover time. No other worker gets them.
    pub async fn renews(&self, worker: &str, shards: &[&str], java: &[&Kcl]) {
        let first = self.rows().await;
        let are_renewed = async || {
            let rows = self.rows().await;
            for &shard in shards {
                assert_eq!(short(&rows[shard].owner), worker, "{shard} was not renewed");
            }
            let is_renewed = |shard: &&str| rows[*shard].counter >= first[*shard].counter + 5;
            shards.iter().all(is_renewed)
        };
        self.until(&format!("{worker} renews {shards:?}"), java, are_renewed)
            .await;
    }

    /// Assigns a shard as the leader of KCL assigns a lease without an owner.
    pub async fn assign(&self, shard: &str, to: &str) {
        let call = self.dynamo.update_item().table_name(&self.table);
        let call = call
            .key("leaseKey", text(shard))
            .update_expression("SET leaseOwner = :new REMOVE checkpointOwner ADD leaseCounter :one")
            .condition_expression("attribute_exists(leaseKey)")
            .expression_attribute_values(":new", text(&self.full_name(to).await))
            .expression_attribute_values(":one", number(1));
        call.send().await.expect("a row");
    }

    /// Creates the row of a child whose parent has not ended, as the audit of KCL does. KCL may be faster.
    pub async fn create_row(&self, child: &str, parent: &str) {
        let call = self.dynamo.put_item().table_name(&self.table);
        let call = call
            .item("leaseKey", text(child))
            .item("leaseCounter", number(0))
            .item("ownerSwitchesSinceCheckpoint", number(0))
            .item("checkpoint", text("TRIM_HORIZON"))
            .item("checkpointSubSequenceNumber", number(0))
            .item("parentShardId", AttributeValue::Ss(vec![parent.to_owned()]))
            .condition_expression("attribute_not_exists(leaseKey)");
        let created = call.send().await.map_err(aws_sdk_dynamodb::Error::from);
        let is_there = matches!(
            created,
            Ok(_) | Err(aws_sdk_dynamodb::Error::ConditionalCheckFailedException(_))
        );
        assert!(is_there, "{created:?}");
    }

    /// Returns whether a record of the shard was processed.
    pub fn has_begun(&self, shard: &str) -> bool {
        let entries = self.journal.entries();
        entries
            .iter()
            .any(|entry| entry.what == "record" && entry.shard == shard)
    }

    /// Returns whether the worker has done this, according to the journal.
    pub fn did(&self, worker: &str, what: &str) -> bool {
        let entries = self.journal.entries();
        entries
            .iter()
            .any(|entry| entry.worker == worker && entry.what == what)
    }

    /// Waits until the worker owns an open shard that is not being handed over, and returns the shard.
    pub async fn shard_of(&self, worker: &str) -> String {
        let start = Instant::now();
        loop {
            let rows = self.rows().await;
            let shard = rows.iter().find(|(_, row)| {
                short(&row.owner) == worker
                    && row.checkpoint_owner.is_empty()
                    && row.checkpoint != "SHARD_END"
            });
            if let Some((shard, _)) = shard {
                return shard.clone();
            }
            assert!(start.elapsed() < PATIENCE, "{worker} owns no shard: {rows:#?}");
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Hands a shard over as the leader of KCL does, and waits until the new owner reads the shard. The leader may
    /// move the shard again before. In that case another shard is handed over.
    pub async fn hand_over(&self, from: &str, to: &str, java: &[&Kcl]) {
        let new_owner = self.full_name(to).await;
        let requested: Mutex<Option<(String, usize)>> = Mutex::default();
        let is_done = async || {
            let last = requested.lock().expect("no panic").clone();
            if let Some((shard, before)) = last {
                let entries = self.journal.entries();
                if entries[before..]
                    .iter()
                    .any(|entry| entry.is_record_of(to, &shard))
                {
                    println!("{shard} was handed over by {from} to {to}");
                    return true;
                }
                if self.rows().await[&shard].owner == new_owner {
                    return false;
                }
            }
            let shard = self.shard_of(from).await;
            let old_owner = self.full_name(from).await;
            let before = self.journal.entries().len();
            let call = self.dynamo.update_item().table_name(&self.table);
            let call = call
                .key("leaseKey", text(&shard))
                .update_expression("SET leaseOwner = :new, checkpointOwner = :old")
                .condition_expression("leaseOwner = :old AND attribute_not_exists(checkpointOwner)")
                .expression_attribute_values(":new", text(&new_owner))
                .expression_attribute_values(":old", text(&old_owner));
            // The leader may have moved the shard meanwhile.
            let requests = call.send().await.is_ok().then_some((shard, before));
            *requested.lock().expect("no panic") = requests;
            false
        };
        self.until(&format!("{from} hands over to {to}"), java, is_done)
            .await;
    }

    /// Returns the name of a worker in the rows.
    async fn full_name(&self, worker: &str) -> String {
        let rows = self.rows().await;
        let row = rows.values().find(|row| short(&row.owner) == worker);
        row.expect("a worker with a shard").owner.clone()
    }

    pub async fn leader_becomes(&self, worker: &str, java: &[&Kcl]) {
        self.until(&format!("{worker} leads"), java, async || {
            self.leader().await == worker
        })
        .await;
    }

    /// Returns the leader's name; an empty name if the leadership was released.
    pub async fn leader(&self) -> String {
        let call = self.dynamo.get_item();
        let call = call.table_name(format!("{}-CoordinatorState", self.table));
        let call = call.key("key", AttributeValue::S("Leader".to_owned()));
        let reply = call.consistent_read(true).send().await.expect("read");
        let item = reply.item.expect("a leader");
        if item.contains_key("isReleased") {
            return String::new();
        }
        short(item["ownerName"].as_s().expect("a name")).to_owned()
    }

    /// Splits the shard, and returns its children.
    pub async fn split(&self, shard: &str) -> Vec<String> {
        let shards = async || {
            let reply = self.kinesis.list_shards().stream_name(&self.stream).send().await;
            reply.expect("ListShards").shards.unwrap_or_default()
        };
        let parent = shards()
            .await
            .into_iter()
            .find(|listed| listed.shard_id() == shard);
        let keys = parent.expect("listed").hash_key_range.expect("a range");
        let key = |text: &str| text.parse::<u128>().expect("a number");
        let middle = key(keys.starting_hash_key()) / 2 + key(keys.ending_hash_key()) / 2;
        let call = self.kinesis.split_shard().stream_name(&self.stream);
        let call = call
            .shard_to_split(shard)
            .new_starting_hash_key(middle.to_string());
        call.send().await.expect("SplitShard");
        let start = Instant::now();
        loop {
            let listed = shards().await;
            let children = listed
                .iter()
                .filter(|child| child.parent_shard_id() == Some(shard));
            let children: Vec<String> = children.map(|child| child.shard_id().to_owned()).collect();
            let summary = self.kinesis.describe_stream_summary().stream_name(&self.stream);
            let summary = summary.send().await.expect("DescribeStreamSummary");
            let status = summary
                .stream_description_summary
                .map(|summary| summary.stream_status);
            if children.len() == 2 && status.is_some_and(|status| status.as_str() == "ACTIVE") {
                println!("{:?} split {shard} into {children:?}", self.started.elapsed());
                return children;
            }
            assert!(start.elapsed() < PATIENCE, "{shard} is not split: {children:?}");
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Removes the report of a worker. The reports of a dead worker of KCL are old before its leadership expires.
    pub async fn remove_report(&self, worker: &str) {
        let call = self.dynamo.delete_item();
        let call = call.table_name(format!("{}-WorkerMetricStats", self.table));
        call.key("wid", text(worker)).send().await.expect("removed");
    }

    /// Asserts that a worker of KCL, which has written to the row of this shard, has kept the columns of redrive.
    pub async fn has_columns_of_redrive(&self, shard: &str) {
        let call = self.dynamo.get_item().table_name(&self.table);
        let reply = call
            .key("leaseKey", text(shard))
            .consistent_read(true)
            .send()
            .await;
        let row = reply.expect("read").item.expect("a row");
        for column in ["throughputKBps", "redriveStream", "redriveStreamCreated"] {
            assert!(row.contains_key(column), "{shard} has no {column}: {row:?}");
        }
    }

    /// Asserts that the log of a worker of KCL has no error about the fleet.
    pub fn has_no_errors(&self, java: &Kcl) {
        let log = java.whole_log();
        let about = ["Lease", "Lock", "Leader", "WorkerMetric", "Coordinator"];
        let is_error = |line: &&str| line.contains(" ERROR ") && about.iter().any(|name| line.contains(name));
        let Some(error) = log.lines().find(is_error) else {
            return;
        };
        // The causes follow the line of the error.
        let from = log.find(error).expect("a line of the log");
        let report: Vec<&str> = log[from..].lines().take(80).collect();
        panic!("KCL reports an error:\n{}", report.join("\n"));
    }
}

fn text(value: &str) -> AttributeValue {
    AttributeValue::S(value.to_owned())
}

fn number(value: u64) -> AttributeValue {
    AttributeValue::N(value.to_string())
}

/// Returns the name of a worker without the hyphen and the 16 digits that redrive appends.
fn short(owner: &str) -> &str {
    match owner.rsplit_once('-') {
        Some((name, digits)) if digits.len() == 16 => name,
        _ => owner,
    }
}

/// Records that are put into the stream all the time.
pub struct Flow {
    stop: CancellationToken,
    task: JoinHandle<u64>,
    journal: Arc<Journal>,
}

impl Flow {
    /// Stops the flow, and waits until all records are processed.
    pub async fn stop(self, java: &[&Kcl]) {
        self.stop.cancel();
        let put = self.task.await.expect("no panic");
        let start = Instant::now();
        loop {
            let processed = self.journal.processed();
            if processed == put {
                return;
            }
            if start.elapsed() > PATIENCE {
                let logs: Vec<String> = java.iter().map(|java| java.log()).collect();
                panic!("{processed} of {put} records processed\n{}", logs.join("\n"));
            }
            sleep(Duration::from_millis(100)).await;
        }
    }
}

/// The handler of a worker of redrive.
#[derive(Debug, Clone)]
struct Handler {
    worker: String,
    journal: Arc<Journal>,
    blocked: watch::Receiver<Option<String>>,
    waiting: watch::Sender<Option<String>>,
}

#[derive(Debug)]
struct Events {
    worker: String,
    started: Instant,
    counts: Mutex<HashMap<String, usize>>,
}

impl Observer for Events {
    fn on(&self, event: &Event<'_>) {
        let name = name(event);
        if matches!(event, Event::Fleet { .. }) || name.contains("Lease") || name.contains("HandedOver") {
            println!("{:?} {}: {event:?}", self.started.elapsed(), self.worker);
        }
        *self.counts.lock().expect("no panic").entry(name).or_default() += 1;
    }
}

/// A running worker of redrive.
pub struct Redrive {
    events: Arc<Events>,
    stop: CancellationToken,
    task: JoinHandle<Result<(), ConsumerError>>,
}

impl Redrive {
    pub fn events(&self, name: &str) -> usize {
        let counts = self.events.counts.lock().expect("no panic");
        counts.get(known(name)).copied().unwrap_or(0)
    }

    pub async fn stop(self) {
        self.stop.cancel();
        self.task.await.expect("no panic").expect("nothing halts");
    }
}
