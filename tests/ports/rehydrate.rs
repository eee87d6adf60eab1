//! Tests of rehydration: on-failure messages of Lambda become dead letters. A message names the positions of
//! a batch, or contains the batch.

use std::future::pending;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use aws_sdk_kinesis::Client;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use redrive::dead_letter::{self, DeadLetter, Reason};
use redrive::kpl::Aggregator;
use redrive::replay::{Rehydrate, Replay, ReplayError, Report, SourceError, Stream, ledger, source};
use redrive::testing::kinesis::{self, KinesisServer};
use redrive::{Class, Idempotency, Record, Resilient, Scope, Settled, idempotency, processor_fn};
use serde_json::{Value, json};
use support::proxy::{Fault, Proxy, by_arn};
use support::stream::{self, Sent};
use tempfile::TempDir;

const STREAM: &str = "orders";
const ARN: &str = "arn:aws:kinesis:us-east-1:111122223333:stream/orders";

/// A stream with its records behind a proxy, and a folder for the file of messages.
struct Scene {
    _server: KinesisServer,
    proxy: Proxy,
    sent: Vec<Sent>,
    folder: TempDir,
    letters: dead_letter::Memory,
    said: Arc<Mutex<Vec<String>>>,
}

impl Scene {
    async fn of(records: impl IntoIterator<Item = (String, Vec<u8>)>) -> Self {
        let server = KinesisServer::start().await.expect("a free port");
        let client = server.client();
        kinesis::create_stream(&client, STREAM, 1)
            .await
            .expect("a stream");
        stream::put(&client, STREAM, records).await;
        Scene {
            proxy: Proxy::start(server.endpoint()).await.expect("a free port"),
            sent: stream::read(&client, STREAM).await,
            _server: server,
            folder: tempfile::tempdir().expect("a folder"),
            letters: dead_letter::Memory::new(),
            said: Arc::default(),
        }
    }

    async fn plain(count: u64) -> Self {
        let records = (0..count).map(|i| (format!("k{}", i % 3), format!("{{\"order\":{i}}}").into_bytes()));
        Scene::of(records).await
    }

    fn client(&self) -> Client {
        self.proxy.client()
    }

    /// Creates the on-failure message of Lambda for the records from `first` to `last`.
    fn message(&self, first: usize, last: usize, batch_size: u64) -> Value {
        let (first, last) = (&self.sent[first].place, &self.sent[last].place);
        json!({
            "requestContext": {
                "requestId": "c9b8fa9f-5a7f-4a3c-af9c-0c604cde93a5",
                "functionArn": "arn:aws:lambda:us-east-1:111122223333:function:bill",
                "condition": "RetryAttemptsExhausted",
                "approximateInvokeCount": 4,
            },
            "responseContext": {"statusCode": 200, "executedVersion": "7", "functionError": "Unhandled"},
            "version": "1.0",
            "timestamp": "2026-11-14T00:38:06.021Z",
            "KinesisBatchInfo": {
                "shardId": first.shard.as_str(),
                "startSequenceNumber": first.number.as_str(),
                "endSequenceNumber": last.number.as_str(),
                "approximateArrivalOfFirstRecord": "2026-11-14T00:38:04.835Z",
                "approximateArrivalOfLastRecord": "2026-11-14T00:38:05.580Z",
                "batchSize": batch_size,
                "streamArn": ARN,
            },
        })
    }

    fn replay(&self, messages: &[Value]) -> Replay {
        let lines: Vec<String> = messages.iter().map(Value::to_string).collect();
        let path = self.folder.path().join("on-failure.jsonl");
        std::fs::write(&path, lines.join("\n")).expect("written");
        let said = self.said.clone();
        Replay::new(source::File::new(path))
            .rate(1e6)
            .ledger(ledger::Memory::new())
            .rehydrated(Rehydrate::new(self.client()).stream(STREAM).stream("nowhere"))
            .on_progress(move |each, _| said.lock().expect("not poisoned").push(each.outcome.to_string()))
    }

    async fn letters_of(&self, messages: &[Value]) -> (Report, Vec<DeadLetter>) {
        let report = self
            .replay(messages)
            .to_sink(self.letters.clone(), pending())
            .await;
        (report.expect("the replay ends"), self.letters.letters())
    }

    fn said(&self) -> Vec<String> {
        self.said.lock().expect("not poisoned").clone()
    }

    /// Makes the stream drop the records before this one.
    fn trim_before(&self, oldest: usize) {
        let oldest = self.sent[oldest].place.number.clone();
        self.proxy.script(move |call| {
            let oldest = oldest.clone();
            match &*call.target {
                "GetRecords" => Fault::Rewrite(Box::new(move |reply: &mut Value| {
                    let Some(records) = reply["Records"].as_array_mut() else {
                        return;
                    };
                    records.retain(|record| {
                        let number = record["SequenceNumber"].as_str().expect("a number");
                        number
                            .parse()
                            .is_ok_and(|number: redrive::SequenceNumber| number >= oldest)
                    });
                })),
                _ => Fault::None,
            }
        });
    }
}

#[tokio::test]
async fn batch_becomes_one_dead_letter_per_record() {
    let scene = Scene::plain(20).await;
    let (report, letters) = scene
        .letters_of(&[scene.message(3, 7, 5), scene.message(12, 12, 1)])
        .await;
    assert_eq!(
        (report.read, report.replayed, report.gone),
        (2, 6, 0),
        "{report:?}"
    );
    let expected: Vec<&Sent> = scene.sent[3..=7].iter().chain([&scene.sent[12]]).collect();
    assert_eq!(letters.len(), expected.len());
    for (letter, sent) in letters.iter().zip(expected) {
        assert_eq!(
            (letter.stream.as_str(), &letter.shard),
            (STREAM, &sent.place.shard)
        );
        assert_eq!(letter.sequence_number, sent.place.number);
        assert_eq!(letter.partition_key.as_deref(), Some(&*sent.key));
        assert_eq!(letter.payload, sent.data);
        assert!(letter.arrival.is_some());
        assert_eq!((letter.application.as_str(), letter.attempts.count), ("bill", 4));
        assert_eq!(letter.reason, Reason::AttemptsExhausted);
        assert_eq!((letter.class, letter.scope), (Class::Transient, Scope::Unknown));
        assert_eq!(letter.code.as_deref(), Some("Unhandled"));
        assert_eq!(
            letter.processor,
            "arn:aws:lambda:us-east-1:111122223333:function:bill"
        );
        assert_eq!(letter.processor_version.as_deref(), Some("7"));
        let at = letter
            .dead_lettered_at
            .duration_since(SystemTime::UNIX_EPOCH)
            .expect("since 1970");
        assert_eq!(at, Duration::from_millis(1_794_616_686_021));
        assert!(!letter.suspect);
        assert_eq!(
            DeadLetter::decode(&letter.encode()).expect("the dead letter reads back"),
            *letter
        );
    }
}

#[tokio::test]
async fn aggregated_records_become_separate_dead_letters() {
    let mut aggregator = Aggregator::new(50_000);
    for i in 0..4 {
        aggregator
            .add(&format!("inner-{i}"), None, format!("order {i}"))
            .expect("the aggregate has room");
    }
    let aggregate = aggregator.finish().expect("records");
    let records = [
        ("a".to_owned(), b"plain".to_vec()),
        (aggregate.partition_key, aggregate.data.to_vec()),
    ];
    let scene = Scene::of(records).await;
    let (report, letters) = scene.letters_of(&[scene.message(0, 1, 2)]).await;
    assert_eq!(report.replayed, 5, "{report:?}");
    let inner: Vec<_> = letters[1..]
        .iter()
        .map(|letter| {
            (
                letter.sub_sequence_number,
                letter.partition_key.clone().expect("a key"),
            )
        })
        .collect();
    let expected: Vec<_> = (0..4).map(|i| (i, format!("inner-{i}"))).collect();
    assert_eq!(inner, expected);
    assert!(letters.iter().all(|letter| !letter.suspect));
}

#[tokio::test]
async fn surplus_records_are_suspect_and_completed_ones_are_skipped() {
    let scene = Scene::plain(10).await;
    let (report, letters) = scene.letters_of(&[scene.message(2, 8, 3)]).await;
    assert_eq!(report.replayed, 7, "{report:?}");
    assert!(letters.iter().all(|letter| letter.suspect));

    // The function has processed some of them.
    let store = Arc::new(idempotency::Memory::new());
    let bill = processor_fn(async |_: Record| -> Result<(), std::io::Error> { Ok(()) });
    let bill = Resilient::builder("billing", bill)
        .idempotency(Idempotency::new(store.clone()))
        .dead_letters(dead_letter::Memory::new())
        .build()
        .expect("complete");
    for number in [3, 5, 6, 8] {
        let settled = bill.settle(&scene.sent[number].record()).await;
        assert_eq!(settled.expect("settled"), Settled::Processed);
    }
    let into = dead_letter::Memory::new();
    let rehydrate = Rehydrate::new(scene.client())
        .stream(STREAM)
        .application("billing");
    let replay = scene.replay(&[scene.message(2, 8, 3)]).rehydrated(rehydrate);
    let report = replay
        .without_completed(Idempotency::new(store))
        .to_sink(into.clone(), pending())
        .await;
    let report = report.expect("the replay ends");
    assert_eq!((report.replayed, report.duplicates), (3, 4), "{report:?}");
    let left: Vec<_> = into
        .letters()
        .iter()
        .map(|letter| letter.payload.clone())
        .collect();
    let expected: Vec<_> = [2, 4, 7].map(|number| scene.sent[number].data.clone()).into();
    assert_eq!(left, expected);
}

#[tokio::test]
async fn missing_records_are_reported_one_by_one() {
    let scene = Scene::plain(10).await;
    scene.trim_before(4);
    let messages = [
        scene.message(1, 6, 6),
        scene.message(2, 2, 1),
        scene.message(5, 6, 2),
    ];
    let (report, letters) = scene.letters_of(&messages).await;
    // Three records of the first batch and the only record of the second are gone. The third batch repeats
    // records of the first.
    assert_eq!(
        (report.replayed, report.already, report.gone),
        (3, 2, 3 + 1),
        "{report:?}: {:?}",
        scene.said()
    );
    assert!(letters.iter().all(|letter| !letter.suspect));
    let said = scene.said();
    for number in [1, 2] {
        let number = scene.sent[number].place.number.as_str();
        assert!(
            said.iter()
                .any(|said| said.starts_with(&format!("record {number} is no longer"))),
            "{said:?}"
        );
    }
    let known = said
        .iter()
        .find(|said| said.contains("record 3 of 3 after"))
        .expect("the third");
    for part in [
        "function bill",
        "RetryAttemptsExhausted",
        "2026-11-14T00:38:04.835Z",
        "c9b8fa9f",
    ] {
        assert!(known.contains(part), "{known}");
    }
    assert!(!report.is_clean());
}

#[tokio::test]
async fn message_with_its_event_needs_no_stream() {
    let scene = Scene::plain(1).await;
    let record = |number: u64| {
        json!({
            "kinesis": {
                "kinesisSchemaVersion": "1.0",
                "partitionKey": "a",
                "sequenceNumber": number.to_string(),
                "data": BASE64.encode(format!("order {number}")),
                "approximateArrivalTimestamp": 1_790_000_000.25,
            },
            "eventSource": "aws:kinesis",
            "eventID": format!("shardId-000000000006:{number}"),
            "eventSourceARN": "arn:aws:kinesis:us-east-1:111122223333:stream/elsewhere",
        })
    };
    let event = json!({"Records": [record(7), record(8)]}).to_string();
    let mut message = scene.message(0, 0, 2);
    message["payload"] = event.into();
    let (report, letters) = scene.letters_of(&[message]).await;
    assert_eq!(report.replayed, 2, "{report:?}: {:?}", scene.said());
    assert_eq!(letters[1].stream, "elsewhere");
    assert_eq!(letters[1].payload, "order 8");
    assert_eq!(letters[1].shard, "shardId-000000000006".into());
}

#[tokio::test]
async fn unreadable_messages_are_kept_and_the_rest_is_replayed() {
    let scene = Scene::plain(3).await;
    let mut nowhere = scene.message(0, 0, 1);
    nowhere["KinesisBatchInfo"]["streamArn"] = Value::Null;
    let mut damaged = scene.message(0, 0, 1);
    damaged["payload"] = "{\"Records\":[{}]}".into();
    let mut empty = scene.message(0, 0, 1);
    empty["payload"] = "{\"Records\":[]}".into();
    let no_info = json!({"KinesisBatchInfo": 7});
    let foreign = json!({"an": "order"});
    let messages = [nowhere, damaged, empty, no_info, foreign, scene.message(1, 1, 1)];
    let (report, letters) = scene.letters_of(&messages).await;
    let said = scene.said();
    assert_eq!(
        (report.replayed, report.unreadable, report.foreign),
        (1, 4, 1),
        "{said:?}"
    );
    assert_eq!(letters[0].payload, scene.sent[1].data);
    assert!(said[0].contains("does not say where"), "{said:?}");
}

#[tokio::test]
async fn missing_shard_loses_records_and_missing_stream_is_an_error() {
    let scene = Scene::plain(2).await;
    let mut message = scene.message(0, 1, 2);
    message["KinesisBatchInfo"]["shardId"] = "shardId-000000000099".into();
    let (report, _) = scene.letters_of(&[message]).await;
    assert_eq!((report.gone, report.replayed), (2, 0), "{report:?}");
    let mut message = scene.message(0, 1, 2);
    message["KinesisBatchInfo"]["streamArn"] = ARN.replace("orders", "nowhere").into();
    let error = scene
        .replay(&[message])
        .to_sink(dead_letter::Memory::new(), pending())
        .await;
    let error = error.expect_err("the stream does not exist");
    assert!(error.to_string().contains("cannot be read"), "{error:?}");
}

#[tokio::test]
async fn rehydrated_records_are_replayed_into_a_stream() {
    let scene = Scene::plain(6).await;
    kinesis::create_stream(&scene.client(), "repaired", 1)
        .await
        .expect("a stream");
    let replay = scene.replay(&[scene.message(0, 5, 6)]);
    let report = replay
        .into_stream(Stream::new(scene.client(), "repaired"), pending())
        .await;
    assert_eq!(report.expect("the replay ends").replayed, 6);
    let mut back: Vec<_> = stream::read(&scene.client(), "repaired")
        .await
        .into_iter()
        .map(|sent| sent.data)
        .collect();
    back.sort();
    let mut first: Vec<_> = scene.sent.iter().map(|sent| sent.data.clone()).collect();
    first.sort();
    assert_eq!(back, first);
}

/// Some servers of the Kinesis API begin a page too early, or return it unsorted. No record of the range is
/// lost.
#[tokio::test]
async fn early_or_unsorted_page_loses_no_record() {
    let scene = Scene::plain(10).await;
    let (early, late) = (scene.sent[0].clone(), scene.sent[9].clone());
    scene.proxy.script(move |call| {
        let numbers = [&early, &late].map(|sent| sent.place.number.to_string());
        match &*call.target {
            "GetRecords" => Fault::Rewrite(Box::new(move |reply: &mut Value| {
                let Some(records) = reply["Records"].as_array_mut() else {
                    return;
                };
                let Some(record) = records.first().cloned() else {
                    return;
                };
                for number in numbers {
                    let mut other = record.clone();
                    other["SequenceNumber"] = number.into();
                    records.insert(0, other);
                }
                records.reverse();
            })),
            _ => Fault::None,
        }
    });
    let (report, letters) = scene.letters_of(&[scene.message(3, 6, 4)]).await;
    assert_eq!(
        (report.replayed, report.gone),
        (4, 0),
        "{report:?}: {:?}",
        scene.said()
    );
    let numbers: Vec<_> = letters
        .iter()
        .map(|letter| letter.sequence_number.clone())
        .collect();
    let expected: Vec<_> = scene.sent[3..=6]
        .iter()
        .map(|sent| sent.place.number.clone())
        .collect();
    assert_eq!(numbers, expected);
    assert!(letters.iter().all(|letter| !letter.suspect));
}

/// The size that a message states must not be trusted.
#[tokio::test]
async fn absurd_batch_size_is_capped() {
    let scene = Scene::plain(3).await;
    let mut message = scene.message(0, 2, u64::MAX);
    let (report, letters) = scene.letters_of(&[message.clone()]).await;
    // The largest batch of Lambda has 10,000 records. The others count as missing, and the message is kept.
    assert_eq!((report.replayed, report.gone), (3, 9_997), "{report:?}");
    assert_eq!(letters.len(), 3);
    message["KinesisBatchInfo"]["shardId"] = "shardId-000000000099".into();
    let (report, _) = scene.letters_of(&[message]).await;
    assert_eq!(report.gone, 10_000, "{report:?}");
}

#[tokio::test]
async fn range_larger_than_a_batch_is_unreadable() {
    let records = (0..10_001).map(|i| (format!("k{i}"), Vec::new()));
    let scene = Scene::of(records).await;
    let message = scene.message(0, 10_000, 1);
    let (report, letters) = scene.letters_of(&[message]).await;
    assert_eq!((report.unreadable, letters.len()), (1, 0), "{report:?}");
    assert!(scene.said()[0].contains("10,000 records"), "{:?}", scene.said());
}

#[tokio::test]
async fn only_named_streams_are_read() {
    let scene = Scene::plain(3).await;
    let other = "arn:aws:kinesis:us-east-1:444455556666:stream/orders";
    let replay = |rehydrate: Rehydrate, message: &Value| {
        scene
            .replay(std::slice::from_ref(message))
            .rehydrated(rehydrate)
            .to_sink(scene.letters.clone(), pending())
    };
    let message = scene.message(0, 2, 3);
    for refused in [
        Rehydrate::new(scene.client()),
        Rehydrate::new(scene.client()).stream("payments"),
        Rehydrate::new(scene.client()).stream(other),
    ] {
        let report = replay(refused, &message).await.expect("the replay ends");
        assert_eq!((report.unreadable, report.replayed), (1, 0), "{report:?}");
    }
    assert!(scene.proxy.calls("GetShardIterator").is_empty());
    assert!(scene.said()[0].contains("--from-stream"), "{:?}", scene.said());
    let mut of_consumer = message.clone();
    of_consumer["KinesisBatchInfo"]["streamArn"] = format!("{ARN}/consumer/bill:1").into();
    let allowed = Rehydrate::new(scene.client()).stream(STREAM);
    let report = replay(allowed, &of_consumer).await.expect("the replay ends");
    assert_eq!(report.replayed, 3, "{report:?}");
}

#[tokio::test]
async fn stream_given_by_its_arn_is_read_by_its_arn() {
    let scene = Scene::plain(3).await;
    scene.proxy.script(by_arn(ARN));
    let replay = |stream: &str| {
        scene
            .replay(&[scene.message(0, 2, 3)])
            .rehydrated(Rehydrate::new(scene.client()).stream(stream))
            .to_sink(scene.letters.clone(), pending())
    };
    let report = replay(ARN).await.expect("the replay ends");
    assert_eq!(report.replayed, 3, "{report:?}");
    assert!(
        scene
            .letters
            .letters()
            .iter()
            .all(|letter| letter.stream == STREAM)
    );
    let calls = scene.proxy.calls("GetShardIterator");
    assert!(
        calls.iter().all(|call| call.body["StreamARN"] == ARN),
        "{calls:?}"
    );
    let error = replay("arn:aws:sqs:us-east-1:111122223333:orders").await;
    let error = error.expect_err("the ARN of a queue");
    assert!(
        matches!(error, ReplayError::Source(SourceError::Unavailable { .. })),
        "{error:?}"
    );
    assert_eq!(scene.proxy.calls("GetShardIterator").len(), calls.len());
}

/// Drops the record in the middle, or the last one, from GetRecords.
#[tokio::test]
async fn range_with_a_missing_record_is_reported() {
    for missing in [4, 6] {
        let scene = Scene::plain(10).await;
        let gone = scene.sent[missing].place.number.to_string();
        scene.proxy.script(move |call| {
            let gone = gone.clone();
            match &*call.target {
                "GetRecords" => Fault::Rewrite(Box::new(move |reply: &mut Value| {
                    if let Some(records) = reply["Records"].as_array_mut() {
                        records.retain(|record| record["SequenceNumber"] != gone.as_str());
                    }
                })),
                _ => Fault::None,
            }
        });
        let (report, _) = scene.letters_of(&[scene.message(3, 6, 4)]).await;
        assert_eq!((report.replayed, report.gone), (3, 1), "{report:?}");
    }
}
