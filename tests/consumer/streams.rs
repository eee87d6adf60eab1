//! Several streams in one process: each has its own consumer, and the consumers may share the limits of the
//! process.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use redrive::checkpoint::CheckpointStore as _;
use redrive::observer::{Event, Observer};
use redrive::pipeline::{Capacity, Pipeline};
use redrive::{Consumer, Record, Resilient, checkpoint, dead_letter, processor_with};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::scene::{STREAM, Scene, records};
use redrive::testing::kinesis::create_stream;
use support::proxy::by_arn;
use support::stream;
use support::waiting::{eventually, finished};
use support::wire::wire;

#[derive(Default)]
struct Seen {
    running: AtomicUsize,
    most: AtomicUsize,
    /// The number of times each record was processed, by stream and sequence number.
    records: Mutex<HashMap<(String, String), usize>>,
}

async fn see(seen: Arc<Seen>, record: Record) -> Result<(), std::io::Error> {
    let running = seen.running.fetch_add(1, SeqCst) + 1;
    seen.most.fetch_max(running, SeqCst);
    sleep(Duration::from_millis(2)).await;
    seen.running.fetch_sub(1, SeqCst);
    let place = (record.stream().to_owned(), record.sequence_number().to_string());
    *seen.records.lock().expect("no panic").entry(place).or_default() += 1;
    Ok(())
}

/// Collects the streams that events name.
#[derive(Clone, Default)]
struct Named(Arc<Mutex<HashSet<String>>>);

impl Observer for Named {
    fn on(&self, event: &Event<'_>) {
        let mut streams = self.0.lock().expect("no panic");
        streams.extend(event.stream().map(str::to_owned));
    }
}

#[tokio::test]
async fn consumer_of_an_arn_reports_the_stream_name() {
    let scene = Scene::new(2).await;
    let described = scene.client().describe_stream_summary().stream_name(STREAM);
    let described = described.send().await.expect("DescribeStreamSummary");
    let arn = described
        .stream_description_summary
        .expect("a summary")
        .stream_arn;
    scene.proxy.script(by_arn(&arn));
    scene
        .put(records(40, 10, |number| if number == 3 { "bad" } else { "ok" }))
        .await;
    let (named, store) = (Named::default(), checkpoint::Memory::new());
    let consumer = Consumer::builder(scene.proxy.client(), &arn)
        .wire(wire())
        .checkpoints(store.clone())
        .calls_per_second(200.0)
        .idle_interval(Duration::from_millis(20));
    let running = scene.run(consumer, scene.resilient().observer(named.clone()));
    scene.ledger.settled(40).await;
    running.stop().await.expect("nothing halted");
    assert_eq!(
        *named.0.lock().expect("no panic"),
        HashSet::from([STREAM.to_owned()])
    );
    assert_eq!(scene.letters.letters()[0].stream, STREAM);
    let rows = store.list("billing", STREAM).await.expect("the store answers");
    assert_eq!(rows.expect("a list").len(), 2);
    for operation in ["ListShards", "GetShardIterator", "DescribeStreamSummary"] {
        let calls = scene.proxy.calls(operation);
        assert!(!calls.is_empty(), "{operation}");
        assert!(
            calls.iter().all(|call| call.body["StreamARN"] == *arn),
            "{calls:?}"
        );
    }
}

#[tokio::test]
async fn streams_of_one_process_share_only_bounds_and_store() {
    const PAYMENTS: &str = "payments";
    let scene = Scene::new(2).await;
    let client = scene.client();
    create_stream(&client, PAYMENTS, 3).await.expect("a stream");
    let seen = Arc::new(Seen::default());
    let store = checkpoint::Memory::new();
    let capacity = Capacity::builder()
        .running(4)
        .bytes(64 << 20)
        .build()
        .expect("valid");
    for (round, count) in [300, 600].into_iter().enumerate() {
        for stream in [STREAM, PAYMENTS] {
            stream::put(&client, stream, records(150, 30, |_| "ok")).await;
        }
        let stop = CancellationToken::new();
        let runs = [STREAM, PAYMENTS].map(|stream| {
            let resilient = Resilient::builder("billing", processor_with(seen.clone(), see));
            let resilient = resilient.dead_letters(dead_letter::Memory::new()).build();
            let consumer = Consumer::builder(client.clone(), stream)
                .wire(wire())
                .checkpoints(store.clone())
                .pipeline(
                    Pipeline::builder()
                        .capacity(capacity.clone())
                        .build()
                        .expect("valid"),
                )
                .calls_per_second(200.0)
                .idle_interval(Duration::from_millis(20))
                .build()
                .expect("valid");
            let health = consumer.health();
            let stopped = stop.clone().cancelled_owned();
            let run = consumer.run_until(resilient.expect("valid"), stopped);
            (tokio::spawn(run), health)
        });
        let settled = || seen.records.lock().expect("no panic").len();
        eventually("all records are settled", || settled() == count).await;
        let shards = runs.each_ref().map(|(_, health)| health.report().shards.len());
        assert_eq!(shards, [2, 3], "each consumer reports its own shards");
        stop.cancel();
        for (run, _) in runs {
            let ended = finished("the consumer ends", run).await;
            ended.expect("no panic").expect("nothing halted");
        }
        // The second round started from the checkpoints of the first, in each stream.
        let records = seen.records.lock().expect("no panic");
        assert!(records.values().all(|times| *times == 1), "round {round}");
    }
    assert_eq!(seen.most.load(SeqCst), 4);
}
