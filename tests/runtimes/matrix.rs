//! Test of the same records and the same processor in every runtime: `settle`, a service, Lambda and KCL.
//! Every record ends in the same way, and every key keeps its order.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use redrive::kpl::Deaggregator;
use redrive::lambda::{Event as Invocation, Function};
use redrive::observer::{Event, Observer, RecordEvent};
use redrive::{
    Consumer, Jitter, Record, Resilient, RetryPolicy, Settled, checkpoint, dead_letter, multilang,
};
use serde::Deserialize;
use serde_json::json;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use redrive::testing::Script;
use redrive::testing::kinesis::{self, KinesisServer};
use support::dynamodb::DynamoDbLocal;
use support::emulator;
use support::kcl::Pace;
use support::stream::{self, Sent};
use support::{kcl, waiting};

const STREAM: &str = "orders";
/// The records of the stream: partition key and data, some aggregated. The data say what the handler does.
const ORDERS: &str = include_str!("orders.jsonl");
/// The maximum waiting time, a multiple of the start time of KCL.
const PATIENCE: Duration = Duration::from_secs(400);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Put {
    partition_key: String,
    data: String,
}

/// Starts a server, and puts the records into a stream with one shard.
async fn recorded() -> (KinesisServer, Vec<Sent>) {
    let server = KinesisServer::start().await.expect("a free port");
    let created = kinesis::create_stream(&server.client(), STREAM, 1).await;
    created.expect("a stream");
    let orders = ORDERS.lines().map(|line| {
        let put: Put = serde_json::from_str(line).expect("JSON");
        (put.partition_key, BASE64.decode(put.data).expect("base64"))
    });
    stream::put(&server.client(), STREAM, orders).await;
    let sent = stream::read(&server.client(), STREAM).await;
    (server, sent)
}

/// The outcomes of all records, one per line, in the order of their settlement.
#[derive(Clone)]
enum Endings {
    Here(Arc<Mutex<String>>),
    InFile(PathBuf),
}

impl Endings {
    fn here() -> Self {
        Endings::Here(Arc::default())
    }

    /// Returns the outcomes by key, in order. The last line is ignored because it may be incomplete.
    fn by_key(&self) -> BTreeMap<String, Vec<String>> {
        let text = match self {
            Endings::Here(text) => text.lock().expect("no panic while locked").clone(),
            Endings::InFile(path) => fs::read_to_string(path).unwrap_or_default(),
        };
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let mut by_key: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for line in whole.lines() {
            let (key, ending) = line.split_once(' ').expect("a key and an outcome");
            by_key.entry(key.to_owned()).or_default().push(ending.to_owned());
        }
        by_key
    }

    fn count(&self) -> usize {
        self.by_key().values().map(Vec::len).sum()
    }
}

impl Observer for Endings {
    fn on(&self, event: &Event<'_>) {
        let Event::Record {
            record,
            event: RecordEvent::Settled {
                settled, attempts, ..
            },
        } = event
        else {
            return;
        };
        let key = record.partition_key().unwrap_or_default();
        let how = match settled {
            Settled::DeadLettered(id) => format!("letter {id}"),
            other => format!("{other:?}"),
        };
        let (shard, position) = (record.shard(), record.position());
        let line = format!("{key} {shard} {position} {how} after {attempts}\n");
        match self {
            Endings::Here(text) => {
                let mut text = text.lock().expect("no panic while locked");
                text.write_str(&line).expect("a string");
            }
            Endings::InFile(path) => {
                let file = OpenOptions::new().create(true).append(true).open(path);
                file.and_then(|mut file| file.write_all(line.as_bytes()))
                    .expect("a file");
            }
        }
    }
}

fn processor(endings: &Endings) -> Resilient<Script> {
    let policy = RetryPolicy::constant(Duration::from_millis(20)).jitter(Jitter::None);
    let policy = policy.max_attempts(4).attempt_timeout(Duration::from_millis(500));
    Resilient::builder("billing", Script::default())
        .retry(policy)
        .dead_letters(dead_letter::Memory::new())
        .observer(endings.clone())
        .build()
        .expect("valid")
}

async fn by_hand(sent: &[Sent]) -> Endings {
    let endings = Endings::here();
    let orders = processor(&endings);
    let mut records: Vec<Record> = Vec::new();
    for sent in sent {
        let record = Record::builder(STREAM, sent.place.shard.clone(), sent.place.number.clone());
        let record = record.partition_key(sent.key.clone()).payload(sent.data.clone());
        let _ = Deaggregator::new().expand(record.build(), &mut records);
    }
    for record in records {
        let _ = orders.settle(&record).await.expect("settled");
    }
    endings
}

async fn in_a_service(server: &KinesisServer, count: usize) -> Endings {
    let endings = Endings::here();
    let stop = CancellationToken::new();
    let consumer = Consumer::builder(server.client(), STREAM)
        .checkpoints(checkpoint::Memory::new())
        .build()
        .expect("valid");
    let running = tokio::spawn(consumer.run_until(processor(&endings), stop.clone().cancelled_owned()));
    let settled = async {
        while endings.count() < count {
            sleep(Duration::from_millis(20)).await;
        }
    };
    waiting::finished("all records are settled", settled).await;
    stop.cancel();
    running.await.expect("no panic").expect("nothing halted");
    endings
}

async fn in_lambda(sent: &[Sent]) -> Endings {
    let endings = Endings::here();
    let function = Function::new(processor(&endings)).partial_responses(true);
    for batch in sent.chunks(15) {
        let items = batch.iter().map(|sent| {
            let (shard, number) = (&sent.place.shard, &sent.place.number);
            json!({
                "kinesis": {
                    "kinesisSchemaVersion": "1.0",
                    "partitionKey": sent.key,
                    "sequenceNumber": number.as_str(),
                    "data": BASE64.encode(&sent.data),
                    "approximateArrivalTimestamp": 1_545_084_650.987,
                },
                "eventSource": "aws:kinesis",
                "eventID": format!("{shard}:{number}"),
                "eventSourceARN": format!("arn:aws:kinesis:us-east-1:000000000000:stream/{STREAM}"),
            })
        });
        let event = json!({ "Records": items.collect::<Vec<_>>() }).to_string();
        let event = Invocation::from_slice(event.as_bytes()).expect("an event");
        let answer = function
            .settle(event, Instant::now() + Duration::from_secs(60))
            .await;
        assert_eq!(answer.expect("an answer").first_unsettled(), None);
    }
    endings
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "the child process of another test"]
async fn child() {
    let Some(path) =
        std::env::args().find_map(|argument| Some(argument.strip_prefix("endings=")?.to_owned()))
    else {
        return;
    };
    let orders = processor(&Endings::InFile(path.into()));
    multilang::run(orders, STREAM)
        .await
        .expect("the daemon speaks as it should");
}

/// Runs the records under KCL. Returns `None` if KCL is not available. The reason is then printed.
async fn under_kcl(server: &KinesisServer, count: usize) -> Option<Endings> {
    let (_, jars) = kcl::install()?;
    let dynamo = DynamoDbLocal::shared()?;
    let path = emulator::home("kcl").join(format!("endings-{}", std::process::id()));
    let _ = fs::remove_file(&path);
    let child = std::env::current_exe().expect("this binary");
    let executable = format!(
        "{} matrix::child --ignored --nocapture --exact endings={}",
        child.display(),
        path.display()
    );
    let places = (server.endpoint(), dynamo.endpoint());
    let daemon = kcl::daemon(
        places,
        &emulator::unique("matrix"),
        STREAM,
        &executable,
        (&jars, Pace::Fast),
    );
    let endings = Endings::InFile(path.clone());
    let start = Instant::now();
    while endings.count() < count {
        let waited = start.elapsed();
        assert!(
            waited < PATIENCE,
            "{} of {count}\n{}",
            endings.count(),
            daemon.log_tail()
        );
        sleep(Duration::from_millis(200)).await;
    }
    let all = Endings::here();
    if let Endings::Here(text) = &all {
        *text.lock().expect("no panic while locked") = fs::read_to_string(&path).expect("the file exists");
    }
    let _ = fs::remove_file(path);
    Some(all)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_runtime_settles_the_same_in_the_same_order() {
    let (server, sent) = recorded().await;
    let by_hand = by_hand(&sent).await;
    let (expected, count) = (by_hand.by_key(), by_hand.count());
    let endings = |what: &str| {
        let all = expected.values().flatten();
        all.filter(|ending| ending.contains(what)).count()
    };
    let (letters, retried) = (endings("letter"), count - endings("after 1"));
    assert!(
        count > 50 && letters > 5 && retried > 20,
        "{count} {letters} {retried}"
    );

    assert_eq!(
        in_a_service(&server, count).await.by_key(),
        expected,
        "in a service"
    );
    assert_eq!(in_lambda(&sent).await.by_key(), expected, "in Lambda");
    if let Some(under_kcl) = under_kcl(&server, count).await {
        assert_eq!(under_kcl.by_key(), expected, "under KCL");
    }
    println!(
        "{count} records in {} stream records: {letters} dead letters, {retried} retried",
        sent.len()
    );
}
