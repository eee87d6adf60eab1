//! Tests of components that are given a stream by its ARN: calls to Kinesis name the ARN, and reports name the
//! stream. An invalid ARN is an error before the first call.

use std::error::Error;
use std::future::pending;
use std::num::NonZeroUsize;

use redrive::checkpoint::{self, Checkpoint, CheckpointStore as _, ShardKey};
use redrive::dead_letter::{self, DeadLetter, DeadLetterSink as _, SinkError, SourceStream, TargetError};
use redrive::operator::{OperatorError, Shards};
use redrive::replay::{
    DeadLetterSource as _, Filter, Replay, ReplayError, SourceError, Stream, ledger, source,
};
use redrive::testing::kinesis::{self, KinesisServer};
use redrive::testing::sinks::{confirmed, letter};
use redrive::{ConfigError, Position, ShardId};
use support::proxy::{Proxy, by_arn};
use support::stream;

const STREAM: &str = "orders";
/// Texts that a component takes as an ARN, and that are not the ARN of a stream.
const INVALID: [&str; 3] = [
    "arn:aws:sqs:us-east-1:000000000000:orders",
    "arn:aws:kinesis:us-east-1:000000000000:orders",
    "arn:aws:kinesis:us-east-1:000000000000:stream/orders/consumer/billing:1",
];

/// A stream with one shard behind a proxy that takes the stream only by its ARN.
struct Scene {
    server: KinesisServer,
    proxy: Proxy,
    arn: String,
}

impl Scene {
    async fn new() -> Self {
        let server = KinesisServer::start().await.expect("a free port");
        let client = server.client();
        kinesis::create_stream(&client, STREAM, 1)
            .await
            .expect("a stream");
        let described = client.describe_stream_summary().stream_name(STREAM).send().await;
        let summary = described
            .expect("DescribeStreamSummary")
            .stream_description_summary;
        let arn = summary.expect("a summary").stream_arn;
        let proxy = Proxy::start(server.endpoint()).await.expect("a free port");
        proxy.script(by_arn(&arn));
        Scene { server, proxy, arn }
    }

    /// Checks that each of these operations was called with the ARN.
    fn named_the_arn(&self, operations: &[&str]) {
        for operation in operations {
            let calls = self.proxy.calls(operation);
            assert!(!calls.is_empty(), "{operation}");
            for call in calls {
                assert_eq!(call.body["StreamARN"], *self.arn, "{operation}: {:?}", call.body);
                assert!(call.body["StreamName"].is_null(), "{operation}: {:?}", call.body);
            }
        }
    }
}

fn letters() -> Vec<DeadLetter> {
    (0..5)
        .map(|i| letter(i, Some("a"), format!("order {i}")))
        .collect()
}

/// Creates a replay of these dead letters from a file in the folder.
async fn replay(folder: &tempfile::TempDir, letters: &[DeadLetter]) -> Replay {
    let path = folder.path().join("letters.jsonl");
    let file = dead_letter::File::open(&path).expect("the file opens");
    confirmed(file.put(letters).await);
    Replay::new(source::File::new(path))
        .rate(1e6)
        .ledger(ledger::Memory::new())
}

#[tokio::test]
async fn sink_and_source_call_kinesis_with_the_arn() {
    let scene = Scene::new().await;
    let sink = dead_letter::Kinesis::new(scene.proxy.client(), &scene.arn);
    sink.check(&SourceStream::new("payments"))
        .await
        .expect("the stream exists");
    let letters = letters();
    for receipt in confirmed(sink.put(&letters).await) {
        assert!(receipt.location.starts_with("orders/shardId-"), "{receipt:?}");
    }
    let mut source = source::Kinesis::new(scene.proxy.client(), &scene.arn);
    let page = source.read().await.expect("the stream is read");
    let read: Vec<_> = page
        .iter()
        .map(|message| DeadLetter::decode(&message.body).expect("a dead letter"))
        .collect();
    assert_eq!(read, letters);
    assert!(page[0].place.starts_with("orders/shardId-"), "{}", page[0].place);
    scene.named_the_arn(&[
        "DescribeStreamSummary",
        "PutRecords",
        "ListShards",
        "GetShardIterator",
        "GetRecords",
    ]);
}

#[tokio::test]
async fn replay_target_calls_kinesis_with_the_arn() {
    let scene = Scene::new().await;
    let folder = tempfile::tempdir().expect("a folder");
    let target = Stream::new(scene.proxy.client(), &scene.arn);
    let replay = replay(&folder, &letters()).await;
    // A dead letter has only the stream's name, which the filter compares.
    let replay = replay.filter(Filter::new().stream(&scene.arn));
    let report = replay.into_stream(target, pending()).await;
    assert_eq!(report.expect("the replay ends").replayed, 5);
    assert_eq!(stream::read(&scene.server.client(), STREAM).await.len(), 5);
    scene.named_the_arn(&["DescribeStreamSummary", "PutRecords"]);
}

#[tokio::test]
async fn operator_calls_kinesis_with_the_arn() {
    let scene = Scene::new().await;
    stream::put(&scene.server.client(), STREAM, [("a", "first"), ("a", "second")]).await;
    let shard = ShardId::from("shardId-000000000000");
    // Checkpoints have the stream's name in their keys.
    let store = checkpoint::Memory::new();
    let key = ShardKey::new("billing", STREAM, shard.clone());
    let start = Checkpoint::at(Position::TrimHorizon);
    let saved = store.save(&[(key, start)]).await.remove(0);
    saved.expect("saved");
    let shards = Shards::new(scene.proxy.client(), store, "billing", &scene.arn);
    let listed = shards.list().await.expect("the shards are listed");
    assert!(matches!(listed[0].checkpoint, Ok(Some(_))), "{listed:?}");
    let skip = shards.skip(&shard, NonZeroUsize::MIN).await;
    let skip = skip.expect("a record to skip");
    assert_eq!(skip.records()[0].stream(), STREAM);
    let sink = dead_letter::Memory::new();
    skip.carry_out(&sink).await.expect("the record is skipped");
    assert_eq!(sink.letters()[0].stream, STREAM);
    scene.named_the_arn(&["ListShards", "GetShardIterator", "GetRecords"]);
}

/// Returns the [`ConfigError`] in the chain of an error.
fn config_error<'a>(error: &'a (dyn Error + 'static)) -> &'a ConfigError {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return found;
        }
        next = error.source();
    }
    panic!("no ConfigError in {error:?}");
}

#[tokio::test]
async fn invalid_arn_fails_before_the_first_call() {
    let scene = Scene::new().await;
    let client = || scene.proxy.client();
    let letters = letters();
    for arn in INVALID {
        let sink = dead_letter::Kinesis::new(client(), arn);
        let error = sink.check(&SourceStream::new(STREAM)).await.expect_err(arn);
        assert!(matches!(error, TargetError::Unreachable { .. }), "{error:?}");
        assert_eq!(config_error(&error).setting(), "dead_letter::Kinesis::new");
        let results = sink.put(&letters).await;
        assert_eq!(results.len(), letters.len());
        for result in results {
            let error = result.expect_err(arn);
            assert!(matches!(error, SinkError::Unavailable(_)), "{error:?}");
            assert!(config_error(&error).to_string().contains(arn), "{error:?}");
        }

        let mut source = source::Kinesis::new(client(), arn);
        let error = source.read().await.expect_err(arn);
        assert!(matches!(error, SourceError::Unavailable { .. }), "{error:?}");
        assert_eq!(config_error(&error).setting(), "source::Kinesis::new");

        let folder = tempfile::tempdir().expect("a folder");
        let replay_of = || replay(&folder, &letters);
        let into = replay_of()
            .await
            .into_stream(Stream::new(client(), arn), pending());
        let error = into.await.expect_err(arn);
        assert!(matches!(error, ReplayError::TargetCheck(_)), "{error:?}");
        config_error(&error);
        let filtered = replay_of().await.filter(Filter::new().stream(arn));
        let error = filtered
            .to_sink(dead_letter::Memory::new(), pending())
            .await
            .expect_err(arn);
        assert!(matches!(error, ReplayError::Config(_)), "{error:?}");

        let shards = Shards::new(client(), checkpoint::Memory::new(), "billing", arn);
        let shard = ShardId::from("shardId-000000000000");
        for error in [
            shards.list().await.err(),
            shards.holder(&shard).await.err(),
            shards.skip(&shard, NonZeroUsize::MIN).await.err(),
            shards.rewind(&shard, Position::TrimHorizon).await.err(),
        ] {
            assert!(matches!(error, Some(OperatorError::Config(_))), "{error:?}");
        }
    }
    for operation in [
        "DescribeStreamSummary",
        "PutRecords",
        "ListShards",
        "GetShardIterator",
    ] {
        assert!(scene.proxy.calls(operation).is_empty(), "{operation}");
    }
}
