//! The limits on bytes read, records in flight and handler calls.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use redrive::pipeline::{Capacity, Pipeline, RecordOrder};
use redrive::processor::Attempt;
use redrive::{BoxError, Record, RecordProcessor};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::scene::{STREAM, Scene, records};
use redrive::testing::Script;
use support::ledger::Note;
use support::proxy::Fault;
use support::stream::{self, Place, Sent};
use support::waiting::eventually;

const MIB: usize = 1024 * 1024;
/// The maximum size of a GetRecords response, which is reserved for each call.
const PAGE: usize = 10 * MIB;

/// A current amount and its maximum.
#[derive(Debug, Default)]
struct Gauge {
    now: AtomicUsize,
    most: AtomicUsize,
}

impl Gauge {
    fn add(&self, amount: usize) {
        let now = self.now.fetch_add(amount, SeqCst) + amount;
        self.most.fetch_max(now, SeqCst);
    }

    fn sub(&self, amount: usize) {
        self.now.fetch_sub(amount, SeqCst);
    }

    fn most(&self) -> usize {
        self.most.load(SeqCst)
    }
}

/// A handler that waits for the gate, and counts payload bytes and calls. Marked records fail at their first
/// attempt.
#[derive(Clone)]
struct Counting {
    payloads: Arc<Gauge>,
    calls: Arc<Gauge>,
    gate: CancellationToken,
}

impl RecordProcessor for Counting {
    type Error = BoxError;

    async fn process(&self, record: &Record, attempt: &Attempt<'_>) -> Result<(), BoxError> {
        self.calls.add(1);
        self.gate.cancelled().await;
        self.calls.sub(1);
        if attempt.number() == 1 && record.payload().first() == Some(&b'x') {
            return Err("once".into());
        }
        self.payloads.sub(record.payload().len());
        Ok(())
    }
}

/// Reads `count` records of 300 KiB and returns the maximum of their bytes in memory at a time. A record
/// counts from the server's response until the handler succeeds.
async fn most_bytes_at_once(memory: usize, count: usize) -> usize {
    let scene = Scene::new(3).await;
    let large = (0..count).map(|number| {
        let mut data = vec![b'.'; 300 * 1024];
        data[0] = if number % 7 == 0 { b'x' } else { b'o' };
        (format!("key-{number}"), data)
    });
    stream::put(&scene.client(), STREAM, large).await;
    let counting = Counting {
        payloads: Arc::default(),
        calls: Arc::default(),
        gate: CancellationToken::new(),
    };
    let served = counting.payloads.clone();
    scene.proxy.script(move |call| {
        let served = served.clone();
        match &*call.target {
            "GetRecords" => Fault::Rewrite(Box::new(move |reply| served.add(payload_bytes(reply)))),
            _ => Fault::None,
        }
    });
    let capacity = Capacity::builder()
        .running(4)
        .bytes(memory)
        .build()
        .expect("valid");
    let running = scene.run(
        scene
            .consumer()
            .pipeline(
                Pipeline::builder()
                    .capacity(capacity.clone())
                    .build()
                    .expect("valid"),
            )
            .records_per_call(12),
        scene.resilient_with(counting.clone()),
    );
    // All handlers wait, so the consumer reads as far as it may without them.
    eventually("handlers run", || counting.calls.now.load(SeqCst) > 0).await;
    scene.reading_stops().await;
    assert!(capacity.bytes() > 0);
    counting.gate.cancel();
    scene.settle_all(running).await;
    assert!(
        counting.calls.most() <= 4,
        "{} calls at once",
        counting.calls.most()
    );
    assert_eq!(counting.payloads.now.load(SeqCst), 0);
    assert_eq!(
        (capacity.bytes(), capacity.running()),
        (0, 0),
        "all capacity is released"
    );
    counting.payloads.most()
}

#[tokio::test]
async fn reads_stay_within_the_memory_limit() {
    let memory = 12 * MIB;
    let most = most_bytes_at_once(memory, 50).await;
    assert!(most <= memory, "{most} of {memory} bytes");
}

/// Reads one page at a time although a page may exceed the memory limit. Otherwise the consumer would never
/// read at all.
#[tokio::test]
async fn with_little_memory_one_page_is_read_at_a_time() {
    let most = most_bytes_at_once(MIB, 16).await;
    assert!(most <= PAGE, "{most} of {PAGE} bytes");
}

/// Returns the number of payload bytes in a GetRecords response. The payloads are in base64.
fn payload_bytes(reply: &Value) -> usize {
    let records = reply["Records"].as_array().into_iter().flatten();
    let lengths = records.map(|record| {
        let data = record["Data"].as_str().unwrap_or("");
        data.len() / 4 * 3 - data.bytes().rev().take_while(|&byte| byte == b'=').count()
    });
    lengths.sum()
}

#[tokio::test]
async fn in_flight_and_span_limits_are_respected() {
    const HELD: usize = 12;
    const SPAN: usize = 40;
    let scene = Scene::new(1).await;
    let steps = |number| match number % 60 {
        0 => "sleep:80",
        20 => "fail,ok",
        40 => "bad",
        _ => "ok",
    };
    scene.put(records(600, 30, steps)).await;
    let running = scene.run(
        scene.consumer().pipeline(
            Pipeline::builder()
                .in_flight(HELD)
                .span(SPAN)
                .build()
                .expect("valid"),
        ),
        scene.resilient(),
    );
    let sent = scene.settle_all(running).await;
    let (most_open, most_apart) = extent(&scene, &sent);
    assert!(most_open <= HELD, "{most_open} records in flight");
    assert!(most_apart <= SPAN, "a span of {most_apart} records");
    assert!(most_apart > HELD, "records settled ahead count as in flight");
}

/// Allows more handler calls than records in flight, and gives every record its own key.
#[tokio::test]
async fn in_flight_limit_bounds_the_records_begun() {
    const HELD: usize = 12;
    let scene = Scene::new(2).await;
    scene.put(records(200, 200, |_| "gate")).await;
    let script = Script::default();
    let running = scene.run(
        scene
            .consumer()
            .pipeline(Pipeline::builder().in_flight(HELD).build().expect("valid"))
            .records_per_call(10),
        scene.resilient_with(script.clone()),
    );
    eventually("handlers run", || script.calls().len() >= 2 * HELD).await;
    scene.reading_stops().await;
    assert_eq!(script.calls().len(), 2 * HELD, "each shard has its own limit");
    script.open_gate();
    scene.settle_all(running).await;
}

/// Gives the consumer memory for a single page. A shard that waits for its next call must leave that memory
/// to other shards.
#[tokio::test]
async fn shard_waiting_for_its_next_call_reserves_no_memory() {
    const SHARDS: usize = 6;
    let interval = Duration::from_secs(2);
    let scene = Scene::new(SHARDS as i32).await;
    scene.proxy.script(|call| match &*call.target {
        "GetRecords" => Fault::Reply(
            200,
            json!({
                "Records": [],
                "NextShardIterator": call.body["ShardIterator"],
                "MillisBehindLatest": 5_000,
            }),
        ),
        _ => Fault::None,
    });
    let consumer = scene.consumer().calls_per_second(1.0 / interval.as_secs_f64());
    let consumer = consumer.pipeline(
        Pipeline::builder()
            .capacity(Capacity::builder().running(4).bytes(PAGE).build().expect("valid"))
            .build()
            .expect("valid"),
    );
    let running = scene.run(consumer, scene.resilient());
    let reads = || scene.proxy.calls("GetRecords");
    eventually("each shard is read twice", || reads().len() >= 2 * SHARDS).await;
    running.stop().await.expect("nothing halted");
    let reads = reads();
    let took = reads[2 * SHARDS - 1].at - reads[0].at;
    assert!(
        took < interval * SHARDS as u32 * 2 / 3,
        "{took:?}: the shards were read one after the other"
    );
}

/// Returns two maxima: of the records begun and not settled at a time, and of the distance from the oldest
/// unsettled record to the newest begun one.
fn extent(scene: &Scene, sent: &[Sent]) -> (usize, usize) {
    let rank = |place: &Place| sent.iter().position(|sent| sent.place == *place);
    let book = scene.ledger.book();
    let mut open: HashSet<&Place> = HashSet::new();
    let mut settled = vec![false; sent.len()];
    let (mut watermark, mut newest) = (0, 0);
    let (mut most_open, mut most_apart) = (0, 0);
    for note in &book.notes {
        match note {
            Note::Began(place) => {
                open.insert(place);
                newest = newest.max(rank(place).expect("a record of the stream") + 1);
            }
            Note::Processed(place) | Note::Lettered(place) => {
                open.remove(place);
                settled[rank(place).expect("a record of the stream")] = true;
            }
            _ => {}
        }
        while settled.get(watermark) == Some(&true) {
            watermark += 1;
        }
        most_open = most_open.max(open.len());
        most_apart = most_apart.max(newest.saturating_sub(watermark));
    }
    (most_open, most_apart)
}

#[tokio::test]
async fn shard_order_processes_one_record_at_a_time() {
    let scene = Scene::new(2).await;
    let steps = |number| match number % 40 {
        7 => "fail,fail,ok",
        13 => "bad",
        _ => "ok",
    };
    scene.put(records(200, 50, steps)).await;
    let consumer = scene.consumer().pipeline(
        Pipeline::builder()
            .ordering(RecordOrder::Shard)
            .build()
            .expect("valid"),
    );
    let running = scene.run(consumer, scene.resilient());
    let mut sent = scene.settle_all(running).await;
    // The check treats all records of a shard as records of one key.
    for sent in &mut sent {
        sent.key = sent.place.shard.to_string();
    }
    scene.ledger.check(&sent);
}

/// Gives all records one key; none of them waits for another.
#[tokio::test]
async fn unordered_record_does_not_block_its_key() {
    let scene = Scene::new(1).await;
    scene
        .put(records(200, 1, |number| if number == 0 { "hang" } else { "ok" }))
        .await;
    let consumer = scene.consumer().pipeline(
        Pipeline::builder()
            .ordering(RecordOrder::Unordered)
            .build()
            .expect("valid"),
    );
    let consumer = consumer.shutdown_timeout(Duration::from_secs(1));
    let running = scene.run(consumer, scene.resilient());
    scene.ledger.settled(199).await;
    running.stop().await.expect("nothing halted");
    let sent = scene.read().await;
    assert!(scene.ledger.is_stored(&sent));
}

/// Shares two handler calls and three reads among 24 shards. No shard is left out.
#[tokio::test]
async fn many_shards_share_the_calls_and_the_reads() {
    let scene = Scene::new(24).await;
    let steps = |number| match number % 100 {
        7 => "fail,ok",
        9 => "bad",
        11 => "sleep:30",
        _ => "ok",
    };
    scene.put(records(2_000, 400, steps)).await;
    let consumer = scene.consumer().calls_in_flight(3);
    let consumer = consumer.pipeline(
        Pipeline::builder()
            .capacity(
                Capacity::builder()
                    .running(2)
                    .bytes(64 * MIB)
                    .build()
                    .expect("valid"),
            )
            .build()
            .expect("valid"),
    );
    let running = scene.run(consumer, scene.resilient());
    let sent = scene.settle_all(running).await;
    let shards: HashSet<_> = sent.iter().map(|sent| &sent.place.shard).collect();
    assert_eq!(shards.len(), 24);
}
