//! Records that the KPL has aggregated: the handler receives the inner records, and a checkpoint may lie
//! between them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use aws_sdk_kinesis::primitives::Blob;
use bytes::Bytes;
use redrive::checkpoint::{Checkpoint, CheckpointStore, Memory, ShardKey};
use redrive::dead_letter;
use redrive::kpl::{Aggregated, Aggregator, OutOfRangePolicy};
use redrive::observer::{Event, Observer, RecordEvent};
use redrive::processor::Attempt;
use redrive::{BoxError, Failure, Position, Record, RecordProcessor, Resilient};
use tokio_util::sync::CancellationToken;

use crate::scene::{STREAM, Scene};
use support::proxy::Fault;
use support::waiting::eventually;

/// A handler that follows each payload. `bad` fails permanently, `gate` waits until the gate is open, and any
/// other payload succeeds at once.
#[derive(Clone, Default)]
struct Inside {
    done: Arc<Mutex<Vec<(u64, String, Bytes)>>>,
    told: Arc<Mutex<Vec<String>>>,
    gate: CancellationToken,
}

impl Inside {
    fn done(&self) -> Vec<(u64, String, Bytes)> {
        self.done.lock().expect("no panic while locked").clone()
    }

    fn payloads(&self) -> Vec<Bytes> {
        self.done().into_iter().map(|(_, _, payload)| payload).collect()
    }

    fn told(&self) -> Vec<String> {
        self.told.lock().expect("no panic while locked").clone()
    }
}

impl RecordProcessor for Inside {
    type Error = BoxError;

    async fn process(&self, record: &Record, _: &Attempt<'_>) -> Result<(), BoxError> {
        match &record.payload()[..] {
            b"bad" => return Err(Failure::permanent("bad data").into()),
            b"gate" => self.gate.cancelled().await,
            _ => {}
        }
        let key = record.partition_key().unwrap_or_default().to_owned();
        let seen = (record.sub_sequence_number(), key, record.payload().clone());
        self.done.lock().expect("no panic while locked").push(seen);
        Ok(())
    }
}

impl Observer for Inside {
    fn on(&self, event: &Event<'_>) {
        let text = match event {
            Event::Record {
                event: RecordEvent::AggregateDamaged { error, .. },
                ..
            } => format!("damaged: {error}"),
            Event::Record {
                event: RecordEvent::AggregateOutOfRange { records, dropped, .. },
                ..
            } => {
                format!("out of range: {records}, dropped: {dropped}")
            }
            _ => return,
        };
        self.told.lock().expect("no panic while locked").push(text);
    }
}

fn aggregate(records: &[(&str, Option<u128>, &str)]) -> Aggregated {
    let mut aggregator = Aggregator::new(1024 * 1024);
    for &(key, hash, data) in records {
        aggregator.add(key, hash, data.to_owned()).expect("room");
    }
    aggregator.finish().expect("records")
}

impl Scene {
    async fn put_one(&self, put: Aggregated) -> String {
        let call = self.client().put_record().stream_name(STREAM);
        let call = call.partition_key(put.partition_key).data(Blob::new(put.data));
        let call = call.set_explicit_hash_key(put.explicit_hash_key.map(|key| key.to_string()));
        call.send().await.expect("PutRecord").sequence_number
    }

    async fn put_plain(&self, key: &str, data: &str) {
        let call = self.client().put_record().stream_name(STREAM).partition_key(key);
        let call = call.data(Blob::new(data.to_owned()));
        call.send().await.expect("PutRecord");
    }

    /// Runs a consumer until the condition `holds` is true.
    async fn run_inside(
        &self,
        inside: &Inside,
        store: &Memory,
        policy: OutOfRangePolicy,
        letters: &dead_letter::Memory,
        holds: impl FnMut() -> bool,
    ) {
        let resilient = Resilient::builder("billing", inside.clone())
            .dead_letters(letters.clone())
            .observer(inside.clone());
        let consumer = self
            .consumer()
            .checkpoints(store.clone())
            .out_of_range_policy(policy);
        let running = self.run(consumer, resilient);
        eventually("the condition holds", holds).await;
        running.stop().await.expect("nothing halted");
    }
}

#[tokio::test]
async fn records_of_an_aggregate_are_settled_individually() {
    let scene = Scene::new(1).await;
    scene.put_plain("plain", "0").await;
    let number = scene
        .put_one(aggregate(&[
            ("a", None, "1"),
            ("b", None, "bad"),
            ("a", None, "2"),
            ("c", None, "3"),
        ]))
        .await;
    scene.put_plain("plain", "4").await;
    let (inside, store, letters) = (Inside::default(), Memory::new(), dead_letter::Memory::new());
    scene
        .run_inside(&inside, &store, OutOfRangePolicy::Deliver, &letters, || {
            inside.done().len() == 5 && letters.letters().len() == 1
        })
        .await;
    let mut keys: HashMap<String, Vec<(u64, Bytes)>> = HashMap::new();
    for (sub, key, payload) in inside.done() {
        keys.entry(key).or_default().push((sub, payload));
    }
    assert_eq!(keys["plain"], [(0, "0".into()), (0, "4".into())]);
    assert_eq!(keys["a"], [(0, "1".into()), (2, "2".into())]);
    assert_eq!(keys["c"], [(3, "3".into())]);
    let letter = &letters.letters()[0];
    assert_eq!(letter.sequence_number.as_str(), number);
    assert_eq!(letter.sub_sequence_number, 1);
    assert_eq!(letter.partition_key.as_deref(), Some("b"));
    assert_eq!(&letter.payload[..], b"bad");
    assert!(inside.told().is_empty());
}

/// Restarts from a checkpoint inside an aggregate. Only the inner records after the checkpoint are
/// redelivered.
#[tokio::test]
async fn restart_resumes_inside_an_aggregate() {
    let scene = Scene::new(1).await;
    let steps = ["1", "2", "gate", "4"].map(|data| ("key", None, data));
    let number = scene.put_one(aggregate(&steps)).await;
    scene.put_plain("key", "5").await;
    let (inside, store, letters) = (Inside::default(), Memory::new(), dead_letter::Memory::new());
    let position = async || {
        let key = ShardKey::new("billing", STREAM, "shardId-000000000000".into());
        let stored = store.load(&[key]).await.remove(0).expect("a store");
        stored.as_ref().map(Checkpoint::position).cloned()
    };
    let running = scene.run(
        scene
            .consumer()
            .checkpoints(store.clone())
            .shutdown_timeout(std::time::Duration::from_millis(100)),
        Resilient::builder("billing", inside.clone()).dead_letters(letters.clone()),
    );
    eventually("two records are processed", || inside.done().len() == 2).await;
    running.stop().await.expect("nothing halted");
    let inside_it = Position::Record {
        sequence_number: number.parse().expect("a number"),
        sub_sequence_number: 1,
    };
    assert_eq!(position().await, Some(inside_it));

    inside.gate.cancel();
    scene
        .run_inside(&inside, &store, OutOfRangePolicy::Deliver, &letters, || {
            inside.done().len() >= 5
        })
        .await;
    assert_eq!(inside.payloads(), ["1", "2", "gate", "4", "5"]);
    let call = scene.proxy.calls("GetShardIterator").pop().expect("a call");
    assert_eq!(call.body["ShardIteratorType"], "AT_SEQUENCE_NUMBER");
    assert_eq!(call.body["StartingSequenceNumber"], number);
}

/// Replaces an expired iterator after an aggregate that was delivered completely. The new iterator starts
/// after that aggregate.
#[tokio::test]
async fn expired_iterator_resumes_after_a_delivered_aggregate() {
    let scene = Scene::new(1).await;
    scene
        .put_one(aggregate(&["1", "2"].map(|data| ("key", None, data))))
        .await;
    scene
        .put_one(aggregate(&["3", "4"].map(|data| ("key", None, data))))
        .await;
    scene.proxy.script(|call| match (&*call.target, call.number) {
        ("GetRecords", 2) => Fault::error(400, "ExpiredIteratorException"),
        _ => Fault::None,
    });
    let (inside, letters) = (Inside::default(), dead_letter::Memory::new());
    let running = scene.run(
        scene.consumer().checkpoints(Memory::new()).records_per_call(1),
        Resilient::builder("billing", inside.clone()).dead_letters(letters),
    );
    eventually("all records are processed", || inside.done().len() >= 4).await;
    running.stop().await.expect("nothing halted");
    assert_eq!(inside.payloads(), ["1", "2", "3", "4"]);
}

#[tokio::test]
async fn damaged_aggregate_is_delivered_unopened() {
    let scene = Scene::new(1).await;
    let mut damaged = aggregate(&[("key", None, "1")]);
    let mut data = damaged.data.to_vec();
    data[6] ^= 1;
    damaged.data = data.into();
    let data = damaged.data.clone();
    scene.put_one(damaged).await;
    let (inside, store, letters) = (Inside::default(), Memory::new(), dead_letter::Memory::new());
    scene
        .run_inside(&inside, &store, OutOfRangePolicy::Drop, &letters, || {
            inside.done().len() == 1
        })
        .await;
    assert_eq!(inside.done(), [(0, "key".to_owned(), data)]);
    assert_eq!(
        inside.told(),
        ["damaged: the checksum of the aggregated record is wrong"]
    );
}

#[tokio::test]
async fn out_of_range_records_are_delivered_or_dropped() {
    let scene = Scene::new(2).await;
    // The aggregate goes to the first shard, which has the lower half of the hash keys.
    let put = || {
        aggregate(&[
            ("key", Some(1), "1"),
            ("key", Some(u128::MAX), "2"),
            ("key", Some(2), "3"),
        ])
    };
    scene.put_one(put()).await;
    for (policy, delivered, told) in [
        (OutOfRangePolicy::Deliver, 3, "out of range: 1, dropped: false"),
        (OutOfRangePolicy::Drop, 0, "out of range: 3, dropped: true"),
    ] {
        let (inside, store, letters) = (Inside::default(), Memory::new(), dead_letter::Memory::new());
        let seen = || inside.done().len() == delivered && !inside.told().is_empty();
        scene.run_inside(&inside, &store, policy, &letters, seen).await;
        assert_eq!(inside.told(), [told]);
        assert_eq!(inside.done().len(), delivered);
    }
}
