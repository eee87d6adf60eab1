//! Tests of a dead-letter stream as a source whose service gives incomplete answers.

use redrive::dead_letter::{self, DeadLetter, DeadLetterSink};
use redrive::replay::{DeadLetterSource, SourceError, source};
use redrive::testing::kinesis::{self, KinesisServer};
use redrive::testing::sinks::{confirmed, letter};
use serde_json::{Value, json};
use support::emulator::unique;
use support::localstack::LocalStack;
use support::proxy::{Fault, Proxy};

/// A stream of 20 dead letters behind a proxy.
struct Scene {
    _server: Option<KinesisServer>,
    proxy: Proxy,
    dlq: String,
    letters: Vec<DeadLetter>,
}

impl Scene {
    async fn new() -> Self {
        let server = KinesisServer::start().await.expect("a free port");
        let scene = Scene::at(server.endpoint()).await;
        Scene {
            _server: Some(server),
            ..scene
        }
    }

    async fn at(endpoint: &str) -> Self {
        let (client, dlq) = (kinesis::client(endpoint), unique("orders-dlq"));
        kinesis::create_stream(&client, &dlq, 1).await.expect("a stream");
        let letters: Vec<_> = (0..20)
            .map(|i| letter(i, Some("a"), format!("order {i}")))
            .collect();
        confirmed(dead_letter::Kinesis::new(client, &dlq).put(&letters).await);
        Scene {
            _server: None,
            proxy: Proxy::start(endpoint).await.expect("a free port"),
            dlq,
            letters,
        }
    }

    async fn read(&self) -> Result<Vec<DeadLetter>, SourceError> {
        self.read_stream(&self.dlq).await
    }

    async fn read_stream(&self, stream: &str) -> Result<Vec<DeadLetter>, SourceError> {
        let mut source = source::Kinesis::new(self.proxy.client(), stream);
        let mut letters = Vec::new();
        loop {
            let page = source.read().await?;
            if page.is_empty() {
                return Ok(letters);
            }
            letters.extend(
                page.iter()
                    .map(|message| DeadLetter::decode(&message.body).expect("a letter")),
            );
        }
    }
}

#[tokio::test]
async fn a_page_without_an_iterator_does_not_end_an_open_shard() {
    let scene = Scene::new().await;
    // The first page has half of the records and no next iterator.
    scene.proxy.script(|call| match (&*call.target, call.number) {
        ("GetRecords", 1) => Fault::Rewrite(Box::new(|reply: &mut Value| {
            reply["Records"].as_array_mut().expect("records").truncate(10);
            reply["NextShardIterator"] = Value::Null;
        })),
        _ => Fault::None,
    });
    assert_eq!(scene.read().await.expect("the stream is read"), scene.letters);
}

#[tokio::test]
async fn empty_page_without_an_iterator_is_not_the_end() {
    let scene = Scene::new().await;
    let empty = || {
        Fault::Rewrite(Box::new(|reply: &mut Value| {
            *reply = json!({"Records": [], "NextShardIterator": null});
        }))
    };
    // The source uses the same iterator again, so it skips no record.
    scene
        .proxy
        .script(move |call| match (&*call.target, call.number) {
            ("GetRecords", 1..=2) => empty(),
            _ => Fault::None,
        });
    assert_eq!(scene.read().await.expect("the stream is read"), scene.letters);

    scene.proxy.script(move |call| match &*call.target {
        "GetRecords" => empty(),
        _ => Fault::None,
    });
    let error = scene
        .read()
        .await
        .expect_err("the end of the shard is not confirmed");
    assert!(matches!(error, SourceError::Unavailable { .. }), "{error:?}");
    // The next read continues.
    scene.proxy.script(|_| Fault::None);
    assert_eq!(scene.read().await.expect("the stream is read"), scene.letters);
}

#[tokio::test]
async fn a_listing_that_is_empty_or_repeats_its_token_is_an_error() {
    let scene = Scene::new().await;
    for answer in [
        json!({}),
        json!({"Shards": []}),
        json!({"Shards": [], "NextToken": "again"}),
    ] {
        let answer = answer.clone();
        scene.proxy.script(move |call| match &*call.target {
            "ListShards" => Fault::Reply(200, answer.clone()),
            _ => Fault::None,
        });
        let error = scene.read().await.expect_err("every stream has shards");
        assert!(matches!(error, SourceError::Unavailable { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn stream_deleted_during_a_read_is_an_error() {
    let scene = Scene::new().await;
    scene.proxy.script(|call| match (&*call.target, call.number) {
        ("GetShardIterator", _) => Fault::error(400, "ResourceNotFoundException"),
        ("ListShards", 2..) => Fault::error(400, "ResourceNotFoundException"),
        _ => Fault::None,
    });
    scene.read().await.expect_err("the stream is deleted");
}

#[tokio::test]
async fn every_call_of_a_stream_with_an_arn_names_the_arn() {
    // The embedded server accepts no ARN in these calls.
    let Some(localstack) = LocalStack::shared() else {
        return;
    };
    let scene = Scene::at(localstack.endpoint()).await;
    let client = scene.proxy.client();
    let described = client
        .describe_stream_summary()
        .stream_name(&scene.dlq)
        .send()
        .await;
    let summary = described
        .expect("DescribeStreamSummary")
        .stream_description_summary;
    let arn = summary.expect("a summary").stream_arn;
    assert_eq!(
        scene.read_stream(&arn).await.expect("the stream is read"),
        scene.letters
    );
    let sink = dead_letter::Kinesis::new(client, &arn);
    confirmed(sink.put(&[letter(21, Some("a"), "x")]).await);
    for target in ["ListShards", "GetShardIterator", "GetRecords", "PutRecords"] {
        let calls = scene.proxy.calls(target);
        assert!(!calls.is_empty(), "{target}");
        for call in calls {
            assert_eq!(call.body["StreamARN"], arn.as_str(), "{target}: {:?}", call.body);
            assert!(call.body["StreamName"].is_null(), "{target}: {:?}", call.body);
        }
    }
}
