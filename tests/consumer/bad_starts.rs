//! Starts that no retry can fix: the consumer ends with an error that states the next step.

use std::error::Error;
use std::sync::atomic::{AtomicUsize, Ordering as Atomic};
use std::sync::{Arc, Mutex};

use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, future};
use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::config::{BehaviorVersion, Config};
use redrive::checkpoint::{self, Checkpoint, CheckpointStore as _, Leases as _, NewShard, ShardKey};
use redrive::observer::{Event, Interest, Observer, StreamEvent};
use redrive::replay::ledger;
use redrive::{Consumer, ConsumerError, Position, StartingPosition, dead_letter, idempotency};

use crate::scene::{Scene, records};
use support::dynamodb::{DynamoDbLocal, client as dynamodb_client, create_table, patient};
use support::emulator::unique;
use support::proxy::{Fault, Proxy};
use support::waiting::eventually;

/// Returns the texts of an error and of its causes, and asserts that no text is repeated.
fn texts(error: &dyn Error) -> Vec<String> {
    let mut texts = vec![error.to_string()];
    let mut cause = error.source();
    while let Some(error) = cause {
        texts.push(error.to_string());
        cause = error.source();
    }
    let mut different = texts.clone();
    different.dedup();
    assert_eq!(texts, different, "a cause repeats the text of its error");
    texts
}

/// Refuses the first `times` calls of an operation.
fn refuse(scene: &Scene, operation: &'static str, times: usize) {
    let refused = AtomicUsize::new(0);
    scene.proxy.script(move |call| {
        let is_refused = call.target == operation && refused.fetch_add(1, Atomic::Relaxed) < times;
        match is_refused {
            true => Fault::error(400, "AccessDeniedException"),
            false => Fault::None,
        }
    });
}

async fn end_of(scene: &Scene, client: Client) -> ConsumerError {
    let running = scene.run(scene.consumer_of(client), scene.resilient());
    running.end().await.expect_err("the consumer cannot start")
}

#[tokio::test]
async fn access_denied_ends_the_start_after_a_few_tries() {
    for operation in ["ListShards", "GetShardIterator", "GetRecords"] {
        let scene = Scene::new(1).await;
        refuse(&scene, operation, usize::MAX);
        let error = end_of(&scene, scene.proxy.client()).await;
        assert!(matches!(error, ConsumerError::Refused(_)), "{error:?}");
        let what = match operation {
            "ListShards" => r#"list the shards of "orders""#,
            _ => r#"read shardId-000000000000 of "orders""#,
        };
        let expected = format!(
            "cannot {what} at {} ({operation}): access denied; the role needs kinesis:{operation}",
            scene.proxy.endpoint()
        );
        let texts = texts(&error);
        assert_eq!(texts[0], expected);
        assert!(texts[1].starts_with("AccessDeniedException"), "{texts:?}");
        let calls = scene.proxy.calls(operation).len();
        assert!((2..=10).contains(&calls), "{operation}: {calls}");
    }
}

/// Reproduces seeds 1455 and 2242 of the simulation: the other shard was read later, and the refused one
/// stood still forever.
#[tokio::test]
async fn one_denied_shard_ends_the_start() {
    let scene = Scene::new(2).await;
    scene.proxy.script(|call| {
        let is_first = call.body["ShardId"] == "shardId-000000000000";
        match call.target == "GetShardIterator" {
            true if is_first => Fault::error(400, "AccessDeniedException"),
            true => Fault::Hang,
            false => Fault::None,
        }
    });
    let error = end_of(&scene, scene.proxy.client()).await;
    assert!(matches!(error, ConsumerError::Refused(_)), "{error:?}");
}

/// Covers the first start at the tip of a stream that was resharded: the consumer asks for a parent that is not
/// listed, before it stores where each shard starts.
#[tokio::test]
async fn denied_check_of_an_unlisted_parent_ends_the_start() {
    let scene = Scene::new(1).await;
    let open = scene.open_shards().await;
    scene.split(&open[0]).await;
    let parent = open[0].shard_id().to_owned();
    scene.proxy.script(move |call| match &*call.target {
        "ListShards" => {
            let parent = parent.clone();
            Fault::Rewrite(Box::new(move |reply| {
                let shards = reply["Shards"].as_array_mut().expect("shards");
                shards.retain(|shard| shard["ShardId"] != parent.as_str());
            }))
        }
        "GetShardIterator" => Fault::error(400, "AccessDeniedException"),
        _ => Fault::None,
    });
    let consumer = scene.consumer().starting_position(StartingPosition::Latest);
    let running = scene.run(consumer, scene.resilient());
    let error = running.end().await.expect_err("the consumer cannot start");
    assert!(matches!(error, ConsumerError::Refused(_)), "{error:?}");
    let expected = format!(
        "cannot look for shardId-000000000000 of \"orders\" at {} (GetShardIterator): access denied; the role needs \
         kinesis:GetShardIterator",
        scene.proxy.endpoint()
    );
    assert_eq!(texts(&error)[0], expected);
}

#[tokio::test]
async fn permission_granted_late_does_not_end_the_start() {
    for operation in ["ListShards", "GetShardIterator", "GetRecords"] {
        let scene = Scene::new(1).await;
        refuse(&scene, operation, 3);
        scene.put(records(10, 2, |_| "ok")).await;
        let running = scene.start();
        scene.settle_all(running).await;
    }
}

/// Covers a permission that is revoked while the consumer runs. Records are in flight, and the permission may
/// come back.
#[tokio::test]
async fn access_denied_later_does_not_end_the_consumer() {
    let scene = Scene::new(1).await;
    scene.put(records(10, 2, |_| "ok")).await;
    let running = scene.start();
    scene.ledger.settled(10).await;
    refuse(&scene, "GetRecords", 12);
    scene.put(records(10, 2, |_| "ok")).await;
    scene.settle_all(running).await;
}

#[tokio::test]
async fn a_client_without_a_region_cannot_start() {
    let scene = Scene::new(1).await;
    let client = Client::from_conf(
        Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .credentials_provider(Credentials::new("test", "test", None, None, "static"))
            .endpoint_url(scene.proxy.endpoint())
            .http_client(aws_smithy_http_client::Builder::new().build_http())
            .build(),
    );
    let error = end_of(&scene, client).await;
    assert_eq!(
        texts(&error)[0],
        r#"cannot describe the stream "orders" (DescribeStreamSummary): the client has no region; set AWS_REGION, or give the profile a region"#
    );
}

#[derive(Debug)]
struct NoCredentials;

impl ProvideCredentials for NoCredentials {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::ready(Err::<Credentials, _>(CredentialsError::not_loaded(
            "no providers in chain provided credentials",
        )))
    }
}

#[tokio::test]
async fn a_client_without_credentials_cannot_start() {
    let scene = Scene::new(1).await;
    let config = scene.client().config().to_builder();
    let client = Client::from_conf(config.credentials_provider(NoCredentials).build());
    let error = end_of(&scene, client).await;
    let texts = texts(&error);
    assert!(
        texts[0].starts_with(r#"cannot describe the stream "orders" in "#)
            && texts[0].contains("no credentials found; set AWS_ACCESS_KEY_ID"),
        "{texts:?}"
    );
}

#[tokio::test]
async fn missing_stream_error_names_the_endpoint() {
    let scene = Scene::new(1).await;
    let consumer = Consumer::builder(scene.proxy.client(), "invoices").checkpoints(scene.store.clone());
    let error = scene.run(consumer, scene.resilient()).end().await;
    let texts = texts(&error.expect_err("no such stream"));
    let place = scene.proxy.endpoint();
    assert_eq!(texts[0], r#"cannot read the stream "invoices""#);
    assert_eq!(
        texts[1],
        format!(
            r#"cannot describe the stream "invoices" at {place} (DescribeStreamSummary): it does not exist; create it, or check the name, the region and the account"#
        )
    );
}

/// Collects the error texts of failed discoveries.
#[derive(Clone, Default)]
struct Discoveries(Arc<Mutex<Vec<String>>>);

impl Observer for Discoveries {
    fn interest(&self) -> Interest {
        Interest::SHARDS
    }

    fn on(&self, event: &Event<'_>) {
        if let Event::Stream {
            event: StreamEvent::DiscoveryFailed { error, .. },
            ..
        } = event
        {
            self.0.lock().expect("no panic").push(error.to_string());
        }
    }
}

/// Retries, because an emulator or a network may come up later.
#[tokio::test]
async fn a_closed_port_is_retried_and_named() {
    let scene = Scene::new(1).await;
    let closed = "http://127.0.0.1:1";
    let discoveries = Discoveries::default();
    let resilient = scene.resilient().observer(discoveries.clone());
    let running = scene.run(
        scene.consumer_of(redrive::testing::kinesis::client(closed)),
        resilient,
    );
    let failed = || discoveries.0.lock().expect("no panic").len() >= 2;
    eventually("discovery fails", failed).await;
    running.stop().await.expect("the consumer was still retrying");
    assert_eq!(
        discoveries.0.lock().expect("no panic")[0],
        format!(r#"cannot describe the stream "orders" at {closed} (DescribeStreamSummary)"#)
    );
}

#[tokio::test]
async fn a_table_that_is_not_a_lease_table_ends_the_start() {
    let Some(local) = DynamoDbLocal::shared() else {
        return;
    };
    let dynamo = local.patient_client();
    let table = unique("other");
    create_table(&dynamo, &table, "name").await;
    let scene = Scene::new(1).await;
    let store = checkpoint::DynamoDb::new(dynamo, table.as_str());
    let error = scene
        .run(scene.consumer().checkpoints(store), scene.resilient())
        .end()
        .await;
    let error = error.expect_err("another program's table");
    assert!(matches!(error, ConsumerError::CheckpointStore(_)), "{error:?}");
    assert_eq!(
        texts(&error),
        [
            "the checkpoint store cannot be used".to_owned(),
            format!(
                r#"the table {table:?} is not a lease table: its key is ["name"], not "leaseKey"; choose another name"#
            ),
        ]
    );
}

#[tokio::test]
async fn a_lease_table_of_another_stream_ends_the_start() {
    let Some(local) = DynamoDbLocal::shared() else {
        return;
    };
    let table = unique("shared");
    let store = || checkpoint::DynamoDb::new(local.patient_client(), table.as_str());
    let key = ShardKey::new("billing", "few", "shardId-000000000000".into());
    let other = store();
    let row = NewShard::new(key.clone(), Checkpoint::at(Position::TrimHorizon));
    other.create(&[row]).await.remove(0).expect("created");
    other
        .take(std::slice::from_ref(&key))
        .await
        .remove(0)
        .expect("the store answers");
    let checkpoint = Checkpoint::at(Position::TrimHorizon);
    other.save(&[(key, checkpoint)]).await.remove(0).expect("saved");

    let scene = Scene::new(1).await;
    let error = scene
        .run(scene.consumer().checkpoints(store()), scene.resilient())
        .end()
        .await;
    let error = error.expect_err("another stream's table");
    assert_eq!(
        texts(&error),
        [
            r#"the row of shard shardId-000000000000 belongs to the stream "few": give each stream a table of its own"#
        ]
    );
}

#[tokio::test]
async fn missing_idempotency_table_is_created() {
    let Some(local) = DynamoDbLocal::shared() else {
        return;
    };
    let scene = Scene::new(1).await;
    scene.put(records(1, 1, |_| "ok")).await;
    let seen = idempotency::DynamoDb::new(local.patient_client(), unique("missing"));
    let resilient = scene.resilient().idempotency(seen);
    let running = scene.run(scene.consumer(), resilient);
    scene.settle_all(running).await;
}

#[tokio::test]
async fn denied_creation_of_a_table_ends_the_start() {
    let Some(local) = DynamoDbLocal::shared() else {
        return;
    };
    let table = unique("missing");
    let scene = Scene::new(1).await;
    let proxy = Proxy::start(local.endpoint()).await.expect("a free port");
    proxy.script(|call| match call.target.as_str() {
        "CreateTable" => Fault::error(400, "AccessDeniedException"),
        _ => Fault::None,
    });
    let dynamo = patient(&dynamodb_client(proxy.endpoint()));
    let seen = idempotency::DynamoDb::new(dynamo, table.as_str());
    let resilient = scene.resilient().idempotency(seen);
    let error = scene.run(scene.consumer(), resilient).end().await;
    let error = error.expect_err("no such table");
    assert!(matches!(error, ConsumerError::IdempotencyStore(_)), "{error:?}");
    let texts = texts(&error);
    let place = proxy.endpoint();
    assert_eq!(texts[0], "the idempotency store is unavailable");
    assert_eq!(
        texts[1],
        format!(
            "cannot create the table {table:?} at {place} (CreateTable): access denied; the role needs \
             dynamodb:CreateTable"
        )
    );
}

#[tokio::test]
async fn idempotency_table_of_another_program_ends_the_start() {
    let Some(local) = DynamoDbLocal::shared() else {
        return;
    };
    let dynamo = local.patient_client();
    let table = unique("other");
    create_table(&dynamo, &table, "name").await;
    let scene = Scene::new(1).await;
    let seen = idempotency::DynamoDb::new(dynamo, table.as_str());
    let resilient = scene.resilient().idempotency(seen);
    let error = scene.run(scene.consumer(), resilient).end().await;
    let error = error.expect_err("another program's table");
    assert!(matches!(error, ConsumerError::IdempotencyStore(_)), "{error:?}");
    assert_eq!(
        texts(&error),
        [
            "the idempotency store cannot be used".to_owned(),
            format!(
                r#"the table {table:?} is not a table of idempotency keys: its key is ["name"], not "id"; choose another name"#
            ),
        ]
    );
}

#[tokio::test]
async fn file_errors_name_the_path_and_the_next_step() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("orders.redb");
    let open = checkpoint::Redb::open(&path).expect("a new file");
    let error = checkpoint::Redb::open(&path).expect_err("the file is open");
    assert_eq!(
        texts(&error),
        [format!(
            "the checkpoint file {} is open in another process; stop that process (`lsof` names it), or choose another \
             path",
            path.display()
        )]
    );
    drop(open);
    let path = folder.path().join("missing/orders.redb");
    for texts in [
        texts(&checkpoint::Redb::open(&path).expect_err("the folder does not exist")),
        texts(&idempotency::Redb::open(&path).expect_err("the folder does not exist")),
        texts(&ledger::Redb::open(&path).expect_err("the folder does not exist")),
    ] {
        assert_eq!(
            texts[1],
            format!(
                "cannot open the database file {}; its folder must exist, and both must be writable",
                path.display()
            )
        );
        assert!(texts[2].contains("No such file"), "{texts:?}");
        assert_eq!(texts.len(), 3, "{texts:?}");
    }
    let text = std::fs::write(folder.path().join("text"), "not a database");
    text.expect("written");
    let error = checkpoint::Redb::open(folder.path().join("text")).expect_err("not a database");
    assert!(
        texts(&error)[1].contains("move it away if it is not a redb database"),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_missing_dead_letter_stream_is_named() {
    let scene = Scene::new(1).await;
    let sink = dead_letter::Kinesis::new(scene.client(), "nowhere");
    let error = scene
        .run(scene.consumer(), scene.resilient().dead_letters(sink))
        .end()
        .await;
    let texts = texts(&error.expect_err("no such stream"));
    assert_eq!(texts[0], r#"the dead-letter target "nowhere" cannot be checked"#);
    assert!(
        texts[1].starts_with(r#"cannot describe the dead-letter stream "nowhere" at http://"#),
        "{texts:?}"
    );
    assert!(
        texts[1].ends_with("it does not exist; create it, or check the name, the region and the account")
    );
}

/// Collects the consumer's events at its start and at its end.
#[derive(Clone, Default)]
struct StartAndEnd(Arc<Mutex<Vec<String>>>);

impl Observer for StartAndEnd {
    fn interest(&self) -> Interest {
        Interest::SHARDS
    }

    fn on(&self, event: &Event<'_>) {
        let text = match event {
            Event::Stream {
                stream,
                event:
                    StreamEvent::ConsumerStarted {
                        application,
                        place,
                        shards,
                        checkpoints,
                        dead_letters,
                        starting_position,
                        ..
                    },
            } => format!(
                "{application} {stream} {place} {shards} {checkpoints} {dead_letters:?} {starting_position}"
            ),
            Event::Stream {
                event:
                    StreamEvent::ConsumerStopped {
                        processed,
                        duplicates,
                        dead_lettered,
                        ..
                    },
                ..
            } => format!("{processed} {duplicates} {dead_lettered}"),
            _ => return,
        };
        self.0.lock().expect("no panic").push(text);
    }
}

#[tokio::test]
async fn start_and_stop_are_reported_with_settled_counts() {
    let scene = Scene::new(2).await;
    scene
        .put(records(20, 5, |number| if number < 5 { "bad" } else { "ok" }))
        .await;
    let heard = StartAndEnd::default();
    let running = scene.run(scene.consumer(), scene.resilient().observer(heard.clone()));
    scene.ledger.settled(20).await;
    running.stop().await.expect("nothing halted");
    let place = scene.proxy.endpoint();
    let heard = heard.0.lock().expect("no panic");
    assert_eq!(heard.len(), 2, "{heard:?}");
    assert!(
        heard[0].starts_with(&format!("billing orders at {place} 2 ")) && heard[0].ends_with(" TRIM_HORIZON"),
        "{heard:?}"
    );
    assert_eq!(heard[1], "15 0 5");
}
