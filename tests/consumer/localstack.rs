//! The consumer and the Kinesis dead-letter sink against LocalStack, a second implementation of the protocol.
//! Most other tests use the embedded server.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::types::StreamStatus;
use redrive::dead_letter::{self, DeadLetter, DeadLetterSink, Payload, Reason};
use redrive::testing::Script;
use redrive::testing::kinesis::{client, create_stream};
use redrive::{
    Consumer, ConsumerError, Failure, Record, Resilient, RetryPolicy, StartingPosition, consumer::Retrieval,
};
use support::emulator::unique;
use support::kill;
use support::ledger::{Ledger, Note, Sink, Store};
use support::localstack::LocalStack;
use support::proxy::{Fault, Proxy};
use support::stream::{self, Sent};
use support::waiting::{eventually, finished};
use support::wire::wire;
use tokio_util::sync::CancellationToken;

/// Creates a stream with this many shards and returns its name.
async fn new_stream(client: &Client, name: &str, shards: i32) -> String {
    let name = unique(name);
    create_stream(client, &name, shards).await.expect("a stream");
    name
}

/// Runs a consumer of the stream until `count` records are settled.
async fn consume(client: &Client, source: &str, count: usize, sink: impl DeadLetterSink + 'static) -> Ledger {
    let ledger = Ledger::default();
    let resilient = Resilient::builder("billing", ledger.handler(Script::default()))
        .retry(RetryPolicy::constant(Duration::from_millis(50)).max_attempts(4))
        .dead_letters(Sink::new(&ledger, sink))
        .observer(ledger.clone())
        .build()
        .expect("a valid processor");
    let consumer = Consumer::builder(client.clone(), source)
        .wire(wire())
        .checkpoints(Store::new(&ledger))
        .idle_interval(Duration::from_millis(200))
        .build()
        .expect("a valid consumer");
    let stop = CancellationToken::new();
    ledger.note(Note::Run);
    let running = tokio::spawn(consumer.run_until(resilient, stop.clone().cancelled_owned()));
    ledger.settled(count).await;
    stop.cancel();
    let ended = finished("the consumer ends", running).await;
    ended.expect("no panic").expect("nothing halted");
    ledger
}

/// Returns `count` records over `keys` keys. `steps` gives the steps of each record by its number.
fn records(
    count: usize,
    keys: usize,
    steps: fn(usize) -> &'static str,
) -> impl Iterator<Item = (String, &'static str)> {
    (0..count).map(move |number| (format!("key-{}", number % keys), steps(number)))
}

#[tokio::test]
async fn every_record_of_the_stream_is_settled_once_and_in_order() {
    let Some(localstack) = LocalStack::shared() else {
        return;
    };
    let client = client(localstack.endpoint());
    let source = new_stream(&client, "orders", 3).await;
    let letters = dead_letter::Memory::new();
    stream::put(
        &client,
        &source,
        records(1_000, 70, |number| match number % 50 {
            3 => "fail,ok",
            5 => "fail,fail,fail,ok",
            7 => "bad",
            9 => "panic",
            11 => "sleep:40",
            // With an unknown cause these records would be held once no other record succeeds.
            13 => "own",
            _ => "ok",
        }),
    )
    .await;
    let sent = stream::read(&client, &source).await;
    assert_eq!(sent.len(), 1_000);

    // The consumer names the stream by its ARN, which the embedded server does not accept.
    let summary = client.describe_stream_summary().stream_name(&source).send().await;
    let summary = summary.expect("a stream").stream_description_summary;
    let arn = summary.expect("a summary").stream_arn;
    let ledger = consume(&client, &arn, sent.len(), letters.clone()).await;
    ledger.check_settled_once(&sent);
    assert!(ledger.is_stored(&sent));
    let mut reasons: HashMap<Reason, usize> = HashMap::new();
    for letter in letters.letters() {
        *reasons.entry(letter.reason).or_default() += 1;
    }
    let expected = [Reason::Permanent, Reason::Panicked, Reason::AttemptsExhausted];
    assert_eq!(reasons, expected.map(|reason| (reason, 20)).into());
}

/// Returns the open shards, sorted by hash keys: first key, last key and name.
async fn open_shards(client: &Client, source: &str) -> Vec<(u128, u128, String)> {
    let reply = client.list_shards().stream_name(source).send().await;
    let shards = reply.expect("ListShards").shards.unwrap_or_default();
    let mut open: Vec<(u128, u128, String)> = shards
        .iter()
        .filter(|shard| {
            let numbers = shard.sequence_number_range();
            numbers.is_some_and(|numbers| numbers.ending_sequence_number().is_none())
        })
        .map(|shard| {
            let keys = shard.hash_key_range().expect("a range");
            let key = |text: &str| text.parse().expect("a number");
            let (first, last) = (keys.starting_hash_key(), keys.ending_hash_key());
            (key(first), key(last), shard.shard_id().to_owned())
        })
        .collect();
    open.sort();
    open
}

/// Waits until a change of the stream is complete.
async fn is_active(client: &Client, source: &str) {
    let active = async {
        loop {
            let summary = client.describe_stream_summary().stream_name(source).send().await;
            let summary = summary.expect("a stream").stream_description_summary;
            if summary.is_some_and(|summary| summary.stream_status == StreamStatus::Active) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    finished("the change of the stream completes", active).await;
}

#[tokio::test]
async fn order_is_kept_while_the_stream_is_split_and_merged() {
    let Some(localstack) = LocalStack::shared() else {
        return;
    };
    let client = client(localstack.endpoint());
    let source = new_stream(&client, "orders", 2).await;
    let put = || {
        let records = records(200, 20, |number| match number % 40 {
            3 => "fail,ok",
            11 => "sleep:300",
            _ => "ok",
        });
        stream::put(&client, &source, records)
    };
    put().await;
    let changes = async {
        let open = open_shards(&client, &source).await;
        let call = client
            .split_shard()
            .stream_name(&source)
            .shard_to_split(&open[0].2);
        let middle = open[0].1 / 2 + open[0].0 / 2;
        let split = call.new_starting_hash_key(middle.to_string()).send().await;
        split.expect("SplitShard");
        is_active(&client, &source).await;
        put().await;
        let open = open_shards(&client, &source).await;
        assert_eq!(open.len(), 3);
        let call = client.merge_shards().stream_name(&source);
        let call = call
            .shard_to_merge(&open[1].2)
            .adjacent_shard_to_merge(&open[2].2);
        call.send().await.expect("MergeShards");
        is_active(&client, &source).await;
        put().await;
    };
    let (ledger, ()) = tokio::join!(
        consume(&client, &source, 600, dead_letter::Memory::new()),
        changes
    );
    let sent = stream::read(&client, &source).await;
    assert_eq!(sent.len(), 600);
    ledger.check_settled_once(&sent);
    assert!(ledger.is_stored(&sent));
}

/// Reads over at least two subscriptions, each of which starts at the requested position.
#[tokio::test]
async fn a_stream_is_read_by_enhanced_fan_out() {
    let Some(localstack) = LocalStack::shared() else {
        return;
    };
    let client = client(localstack.endpoint());
    let source = new_stream(&client, "pushed", 2).await;
    stream::put(&client, &source, records(300, 40, |_| "ok")).await;
    let proxy = Proxy::start(localstack.endpoint()).await.expect("a free port");
    let breaks = Arc::new(AtomicBool::new(true));
    proxy.script({
        let breaks = breaks.clone();
        move |call| match &*call.target {
            "SubscribeToShard" if breaks.load(Ordering::Relaxed) => Fault::BreakAfter(Duration::from_secs(3)),
            _ => Fault::None,
        }
    });
    let ledger = Ledger::default();
    let resilient = Resilient::builder("billing", ledger.handler(Script::default()));
    let resilient = resilient.without_dead_letters().observer(ledger.clone());
    let consumer = Consumer::builder(proxy.client(), &*source)
        .wire(wire())
        .checkpoints(Store::new(&ledger))
        .retrieval(Retrieval::fan_out())
        .build()
        .expect("valid");
    let stop = CancellationToken::new();
    ledger.note(Note::Run);
    let resilient = resilient.build().expect("valid");
    let running = tokio::spawn(consumer.run_until(resilient, stop.clone().cancelled_owned()));
    ledger.settled(300).await;
    // Both shards have delivered records: from here on each subscription has a position. An earlier one may have been
    // broken before its first event.
    let first = proxy.calls("SubscribeToShard").len();
    stream::put(&client, &source, records(300, 40, |_| "ok")).await;
    ledger.settled(600).await;
    eventually("subscriptions are resumed", || {
        proxy.calls("SubscribeToShard").len() >= first + 2
    })
    .await;
    breaks.store(false, Ordering::Relaxed);
    stream::put(&client, &source, records(300, 40, |_| "ok")).await;
    ledger.settled(900).await;
    stop.cancel();
    let ended = finished("the consumer ends", running).await;
    ended.expect("no panic").expect("nothing halted");
    ledger.check_settled_once(&stream::read(&client, &source).await);
    assert!(proxy.calls("GetRecords").is_empty(), "the consumer polled");
    let later = proxy.calls("SubscribeToShard").split_off(first);
    assert!(
        later
            .iter()
            .all(|call| call.body["StartingPosition"]["SequenceNumber"].is_string())
    );
}

/// Delivers no record from before the first start and all later records, including those that arrive while
/// the consumer is down.
///
/// The embedded server would start at the oldest record here, because no record has arrived since the
/// starting time.
#[tokio::test]
async fn latest_starts_at_the_time_of_the_first_start() {
    let Some(localstack) = LocalStack::shared() else {
        return;
    };
    let client = client(localstack.endpoint());
    for retrieval in [Retrieval::Polling, Retrieval::fan_out()] {
        let source = new_stream(&client, "latest", 2).await;
        let put = |count| stream::put(&client, &source, records(count, 20, |_| "ok"));
        put(100).await;
        let before = stream::read(&client, &source).await;
        let ledger = Ledger::default();
        let store = Store::new(&ledger);
        let start = || {
            ledger.note(Note::Run);
            let resilient = Resilient::builder("billing", ledger.handler(Script::default()));
            let resilient = resilient.without_dead_letters().observer(ledger.clone());
            let consumer = Consumer::builder(client.clone(), &*source)
                .wire(wire())
                .checkpoints(store.clone())
                .retrieval(retrieval.clone())
                .starting_position(StartingPosition::Latest)
                .build()
                .expect("valid");
            let stop = CancellationToken::new();
            let stopped = stop.clone().cancelled_owned();
            let running = consumer.run_until(resilient.build().expect("valid"), stopped);
            (stop, tokio::spawn(running))
        };
        let end = async |(stop, running): (CancellationToken, tokio::task::JoinHandle<_>)| {
            stop.cancel();
            let ended: Result<(), ConsumerError> =
                finished("the consumer ends", running).await.expect("no panic");
            ended.expect("nothing halted");
        };
        // Times are compared to the millisecond.
        tokio::time::sleep(Duration::from_millis(20)).await;
        let running = start();
        eventually("both shards are read", || {
            ledger.events("ShardEvent::Fetched") >= 4
        })
        .await;
        assert_eq!(
            ledger.book().last_saved().len(),
            2,
            "both starting positions are stored"
        );
        end(running).await;

        put(100).await;
        let running = start();
        ledger.settled(100).await;
        let all = stream::read(&client, &source).await;
        let all_after: Vec<_> = all
            .iter()
            .filter(|sent| !before.contains(sent))
            .cloned()
            .collect();
        end(running).await;
        assert_eq!(all_after.len(), 100);
        ledger.check_settled_once(&all_after);
    }
}

#[tokio::test]
async fn missing_stream_is_an_error_by_name_and_by_arn() {
    let Some(localstack) = LocalStack::shared() else {
        return;
    };
    let client = client(localstack.endpoint());
    for stream in ["nowhere", "arn:aws:kinesis:us-east-1:000000000000:stream/nowhere"] {
        let ledger = Ledger::default();
        let resilient = Resilient::builder("billing", ledger.handler(Script::default()));
        let resilient = resilient.without_dead_letters().build().expect("valid");
        let consumer = Consumer::builder(client.clone(), stream).checkpoints(Store::new(&ledger));
        let consumer = consumer.build().expect("valid");
        let ended = finished("the consumer ends", consumer.run(resilient)).await;
        let error = ended.expect_err("no such stream");
        assert!(matches!(error, ConsumerError::StreamNotFound { .. }), "{error:?}");
    }
}

/// Returns a payload with all byte values and with bytes that look like the end of an envelope's header.
fn binary(number: usize) -> Vec<u8> {
    let mut data: Vec<u8> = (0..=255).collect();
    data.rotate_left(number);
    data.extend_from_slice(b"}\n{\n\0\xff");
    data.extend((number as u64).to_be_bytes());
    match number {
        0 => Vec::from([0]),
        1 => Vec::from(*b"\n"),
        2 => Vec::from([0xff]),
        // Large, but small enough to leave room for the envelope in the record.
        3 => data.into_iter().cycle().take(900 * 1024).collect(),
        _ => data,
    }
}

#[tokio::test]
async fn dead_letters_preserve_every_payload_byte() {
    let Some(localstack) = LocalStack::shared() else {
        return;
    };
    let client = client(localstack.endpoint());
    let source = new_stream(&client, "binary", 2).await;
    let keys = ["plain", "with spaces", "ключ", "\"quoted\"\n"];
    stream::put(
        &client,
        &source,
        (0..80).map(|number| (keys[number % keys.len()], binary(number))),
    )
    .await;
    let sent = stream::read(&client, &source).await;
    assert_eq!(sent.len(), 80);
    let by_key = |sent: &[Sent]| {
        let mut keys: HashMap<String, Vec<Vec<u8>>> = HashMap::new();
        for sent in sent {
            keys.entry(sent.key.clone()).or_default().push(sent.data.clone());
        }
        keys
    };
    // The handler finds no steps in these bytes, which is a permanent error.
    for payload in [Payload::Enveloped, Payload::Raw] {
        let target = new_stream(&client, "binary-dlq", 2).await;
        let sink = dead_letter::Kinesis::new(client.clone(), &target).payload(payload);
        let ledger = consume(&client, &source, sent.len(), sink).await;
        ledger.check_settled_once(&sent);

        let mut written = stream::read(&client, &target).await;
        assert_eq!(written.len(), sent.len());
        if payload == Payload::Enveloped {
            for written in &mut written {
                let letter = DeadLetter::decode(&written.data.clone().into()).expect("an envelope");
                let original = sent
                    .iter()
                    .find(|sent| sent.place.number == letter.sequence_number);
                let original = original.expect("a dead letter of this stream");
                assert_eq!(letter.shard, original.place.shard);
                assert_eq!(letter.stream, source);
                assert_eq!(letter.partition_key.as_ref(), Some(&original.key));
                assert_eq!(written.key, original.key);
                assert!(letter.payload == original.data, "{:?}", original.place);
                written.data = letter.payload.into();
            }
        }
        // The dead letters keep their keys, order and bytes.
        assert!(by_key(&written) == by_key(&sent), "{payload:?}");
    }
}

const THROTTLED: &str = "ProvisionedThroughputExceededException";

/// Fails half of the calls. LocalStack then reports an error for every entry of a PutRecords call, but counts
/// only one failed record.
#[tokio::test]
async fn dead_letters_arrive_in_a_throttled_stream() {
    let Some(localstack) = LocalStack::start(&[("KINESIS_ERROR_PROBABILITY", "0.5")]) else {
        return;
    };
    let client = client(localstack.endpoint());
    let target = new_stream(&client, "throttled-dlq", 2).await;
    let proxy = Proxy::start(localstack.endpoint()).await.expect("a free port");
    let throttled = Arc::new(AtomicUsize::new(0));
    proxy.script({
        let throttled = throttled.clone();
        move |_| {
            let throttled = throttled.clone();
            Fault::Rewrite(Box::new(move |reply| {
                let entries = reply["Records"].as_array().into_iter().flatten();
                let failed = entries.filter(|entry| entry["ErrorCode"] == THROTTLED);
                throttled.fetch_add(failed.count(), Ordering::Relaxed);
            }))
        }
    });
    let sink = dead_letter::Kinesis::new(proxy.client(), &target);
    let letters: Vec<DeadLetter> = (0..400)
        .map(|number| {
            let record = Record::builder("orders", "shardId-0".into(), number.into())
                .partition_key(format!("key-{}", number % 20))
                .payload(number.to_be_bytes().to_vec())
                .build();
            DeadLetter::new("billing", &record, Reason::Permanent, &Failure::permanent("bad"))
        })
        .collect();

    // Like the engine, the test retries unconfirmed dead letters in order.
    let mut open = letters.clone();
    let mut locations = HashMap::new();
    let mut puts = 0;
    while !open.is_empty() {
        assert!(puts < 100, "{} dead letters are not confirmed", open.len());
        puts += 1;
        let mut rest = Vec::new();
        for (letter, result) in open.iter().zip(sink.put(&open).await) {
            match result {
                Ok(receipt) => {
                    locations.insert(receipt.location, letter.id);
                }
                Err(_) => rest.push(letter.clone()),
            }
        }
        open = rest;
    }
    assert!(throttled.load(Ordering::Relaxed) > 0, "nothing was throttled");

    let written = stream::read(&client, &target).await;
    let mut seen = HashSet::new();
    let mut first_of_key: HashMap<String, Vec<_>> = HashMap::new();
    for sent in &written {
        let letter = DeadLetter::decode(&sent.data.clone().into()).expect("an envelope");
        let location = format!("{target}/{}/{}", sent.place.shard, sent.place.number);
        if let Some(id) = locations.remove(&location) {
            assert_eq!(id, letter.id, "another dead letter than the one confirmed here");
        }
        if seen.insert(letter.id) {
            let of_key = first_of_key.entry(sent.key.clone()).or_default();
            of_key.push(letter.sequence_number);
        }
    }
    assert_eq!(locations, HashMap::new(), "confirmed dead letters are missing");
    assert_eq!(seen.len(), letters.len());
    assert!(first_of_key.values().all(|numbers| numbers.is_sorted()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_consumer_loses_nothing_and_repeats_only_unstored() {
    let Some(localstack) = LocalStack::shared() else {
        return;
    };
    let source = unique("killed");
    kill::survives_kills(
        localstack.endpoint(),
        "localstack::child_consumer",
        &source,
        3,
        180,
    )
    .await;
}

#[test]
#[ignore = "the process that another test starts and kills"]
fn child_consumer() {
    kill::child();
}
