//! The bounds: what is read at a time, held at a time, called at a time.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use redrive::pipeline::{Capacity, RecordOrder};
use redrive::{Attempt, BoxError, Record, RecordProcessor};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::scene::{STREAM, Scene, records};
use support::ledger::Note;
use support::proxy::Fault;
use support::script::Script;
use support::stream::{self, Place, Sent};
use support::waiting::eventually;

const MIB: usize = 1024 * 1024;
/// The most that a GetRecords call brings, and so what is reserved for one.
const PAGE: usize = 10 * MIB;

/// What is there now, and the most there ever was.
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

/// Waits for the gate, and counts payload bytes and calls.
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

/// Reads so many records of 300 KiB, and says how many of their bytes were there at a time at most: handed
/// out by the server, and not done with by the handler.
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
    let capacity = Capacity::new(4, memory).expect("valid");
    let running = scene.run(
        scene.consumer().capacity(capacity.clone()).records_per_call(12),
        scene.resilient_with(counting.clone()),
    );
    // All handlers wait, so that all is read that is read without them.
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
        "all is given back"
    );
    counting.payloads.most()
}

#[tokio::test]
async fn no_more_is_read_than_the_memory_takes() {
    let memory = 12 * MIB;
    let most = most_bytes_at_once(memory, 50).await;
    assert!(most <= memory, "{most} of {memory} bytes");
}

/// Less memory than a page may need: one page at a time goes through, or nothing ever would.
#[tokio::test]
async fn with_little_memory_there_is_one_page_at_a_time() {
    let most = most_bytes_at_once(MIB, 16).await;
    assert!(most <= PAGE, "{most} of {PAGE} bytes");
}

/// The payloads of a GetRecords reply, which are base64 there.
fn payload_bytes(reply: &Value) -> usize {
    let records = reply["Records"].as_array().into_iter().flatten();
    let lengths = records.map(|record| {
        let data = record["Data"].as_str().unwrap_or("");
        data.len() / 4 * 3 - data.bytes().rev().take_while(|&byte| byte == b'=').count()
    });
    lengths.sum()
}

#[tokio::test]
async fn no_more_records_are_open_than_may_be_held_nor_lie_apart_more_than_the_span() {
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
    let running = scene.run(scene.consumer().in_flight(HELD).span(SPAN), scene.resilient());
    let sent = scene.settle_all(running).await;
    let (most_open, most_apart) = extent(&scene, &sent);
    assert!(most_open <= HELD, "{most_open} open");
    assert!(most_apart <= SPAN, "{most_apart} apart");
    assert!(most_apart > HELD, "what is settled ahead is not held");
}

/// More handler calls are allowed, and every record has a key of its own.
#[tokio::test]
async fn what_may_be_held_bounds_the_records_begun() {
    const HELD: usize = 12;
    let scene = Scene::new(2).await;
    scene.put(records(200, 200, |_| "gate")).await;
    let script = Script::default();
    let running = scene.run(
        scene.consumer().in_flight(HELD).records_per_call(10),
        scene.resilient_with(script.clone()),
    );
    eventually("handlers run", || script.calls().len() >= 2 * HELD).await;
    scene.reading_stops().await;
    assert_eq!(script.calls().len(), 2 * HELD, "each shard holds its own");
    script.open_gate();
    scene.settle_all(running).await;
}

/// A shard that waits for its next call leaves the memory to others. One page needs all of it.
#[tokio::test]
async fn memory_is_taken_when_a_call_may_be_made_and_not_before() {
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
    let consumer = consumer.capacity(Capacity::new(4, PAGE).expect("valid"));
    let running = scene.run(consumer, scene.resilient());
    let reads = || scene.proxy.calls("GetRecords");
    eventually("each shard is read twice", || reads().len() >= 2 * SHARDS).await;
    running.stop().await.expect("nothing halted");
    let reads = reads();
    let took = reads[2 * SHARDS - 1].at - reads[0].at;
    assert!(
        took < interval * SHARDS as u32 * 2 / 3,
        "{took:?}: one after the other"
    );
}

/// Of the records begun and not settled the most at a time, and of the distance from the oldest unsettled
/// record to the newest begun the longest.
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
                newest = newest.max(rank(place).expect("of the stream") + 1);
            }
            Note::Processed(place) | Note::Lettered(place) => {
                open.remove(place);
                settled[rank(place).expect("of the stream")] = true;
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
async fn in_shard_order_one_record_follows_the_other() {
    let scene = Scene::new(2).await;
    let steps = |number| match number % 40 {
        7 => "fail,fail,ok",
        13 => "bad",
        _ => "ok",
    };
    scene.put(records(200, 50, steps)).await;
    let consumer = scene.consumer().ordering(RecordOrder::Shard);
    let running = scene.run(consumer, scene.resilient());
    let mut sent = scene.settle_all(running).await;
    // As if all records of a shard had one key.
    for sent in &mut sent {
        sent.key = sent.place.shard.to_string();
    }
    scene.ledger.check(&sent);
}

/// One key, and yet no record waits for another.
#[tokio::test]
async fn without_order_a_failing_record_holds_up_not_even_its_key() {
    let scene = Scene::new(1).await;
    scene
        .put(records(200, 1, |number| if number == 0 { "hang" } else { "ok" }))
        .await;
    let consumer = scene.consumer().ordering(RecordOrder::Unordered);
    let consumer = consumer.shutdown_timeout(Duration::from_secs(1));
    let running = scene.run(consumer, scene.resilient());
    scene.ledger.settled(199).await;
    running.stop().await.expect("nothing halted");
    let sent = scene.read().await;
    assert!(scene.ledger.is_stored(&sent));
}

/// Many shards share the handler calls and the reads, and none is left out.
#[tokio::test]
async fn many_shards_are_read_side_by_side() {
    let scene = Scene::new(24).await;
    let steps = |number| match number % 100 {
        7 => "fail,ok",
        9 => "bad",
        11 => "sleep:30",
        _ => "ok",
    };
    scene.put(records(2_000, 400, steps)).await;
    let consumer = scene.consumer().calls_in_flight(3);
    let consumer = consumer.capacity(Capacity::new(2, 64 * MIB).expect("valid"));
    let running = scene.run(consumer, scene.resilient());
    let sent = scene.settle_all(running).await;
    let shards: HashSet<_> = sent.iter().map(|sent| &sent.place.shard).collect();
    assert_eq!(shards.len(), 24);
}
