//! Records that an operator skips. Each becomes a dead letter.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use aws_sdk_kinesis::primitives::Blob;
use redrive::Position;
use redrive::checkpoint::{Checkpoint, Memory};
use redrive::dead_letter::{self, Reason, TargetError};
use redrive::kpl::Aggregator;
use redrive::operator::OperatorError;

use super::scene::{Handler, ONE, STREAM, Scene, load, position, save, settle, shard, up_to};
use support::proxy::{Fault, Proxy};
use support::sink::{Answer, ScriptedSink};

#[tokio::test]
async fn skipped_record_is_dead_lettered_before_the_position_moves() {
    let (scene, sent) = Scene::with(&["0", "1", "2", "3"]).await;
    let store = Memory::new();
    settle(&store, &sent[0]).await;
    let shards = scene.shards(&store);
    let skip = shards.skip(&shard(), ONE).await.expect("a record to skip");
    assert_eq!(skip.records()[0].payload(), "1");
    assert!(!skip.is_trimmed());
    assert_eq!(
        position(&store).await,
        sent[0].record().position(),
        "the position moved too early"
    );

    // The sink notes the shard's position at each put.
    let (watching, stood) = (ScriptedSink::default(), Arc::new(Mutex::new(Vec::new())));
    let (noted, watched) = (stood.clone(), store.clone());
    watching.on_put(move |_, _| {
        let (noted, watched) = (noted.clone(), watched.clone());
        Answer::TakeAfter(Box::pin(async move {
            let stands = position(&watched).await;
            noted.lock().expect("no panic while locked").push(stands);
        }))
    });
    skip.carry_out(&watching).await.expect("the record is skipped");
    assert_eq!(
        *stood.lock().expect("no panic while locked"),
        [sent[0].record().position()]
    );
    assert_eq!(watching.letters().len(), 1);
    assert_eq!(position(&store).await, sent[1].record().position());

    let letters = dead_letter::Memory::new();
    let skip = shards.skip(&shard(), ONE).await.expect("another record to skip");
    let skipped = skip.carry_out(&letters).await.expect("the record is skipped");
    let letter = &letters.letters()[0];
    assert_eq!(letter.reason, Reason::Operator);
    assert_eq!((&letter.application[..], &letter.stream[..]), ("billing", STREAM));
    assert_eq!(letter.sequence_number, sent[2].place.number);
    assert_eq!(letter.payload, "2");
    assert_eq!(letter.partition_key.as_deref(), Some("alice-2"));
    assert_eq!(letter.attempts.count, 0);
    assert_eq!(skipped.letters[0].0, letter.id);
    assert_eq!(skipped.to, load(&store).await);
    assert!(skipped.to.read_until() <= letter.arrival);
    assert_eq!(scene.consume(&store, 1).await, ["3"]);
}

#[tokio::test]
async fn unconfirmed_dead_letters_keep_the_position() {
    let (scene, sent) = Scene::with(&["0", "1", "2", "3"]).await;
    let store = Memory::new();
    settle(&store, &sent[0]).await;
    let before = load(&store).await;
    for takes in [0, 2] {
        let shards = scene.shards(&store);
        let skip = shards
            .skip(&shard(), up_to(3))
            .await
            .expect("three records to skip");
        let sink = ScriptedSink::default();
        sink.on_put(move |_, _| Answer::TakeFirst(takes));
        match skip.carry_out(&sink).await {
            Err(OperatorError::NotConfirmed {
                confirmed, letters, ..
            }) => assert_eq!((confirmed, letters), (takes, 3)),
            other => panic!("{other:?}"),
        }
        assert_eq!(load(&store).await, before);
    }
    // The skip is also refused if the sink would write to the source stream.
    let shards = scene.shards(&store);
    let skip = shards.skip(&shard(), ONE).await.expect("a record to skip");
    let source = dead_letter::Kinesis::new(scene.client.clone(), STREAM);
    let refused = skip.carry_out(&source).await;
    assert!(
        matches!(
            refused,
            Err(OperatorError::Target(TargetError::SourceItself { .. }))
        ),
        "{refused:?}"
    );
    assert_eq!(load(&store).await, before);
}

#[tokio::test]
async fn records_of_an_aggregate_are_skipped_individually() {
    let scene = Scene::new().await;
    let mut aggregator = Aggregator::new(1024 * 1024);
    for payload in ["a", "b", "c"] {
        aggregator.add("alice", None, payload).expect("room");
    }
    let put = aggregator.finish().expect("records");
    let call = scene.client.put_record().stream_name(STREAM);
    let call = call.partition_key(put.partition_key).data(Blob::new(put.data));
    call.send().await.expect("PutRecord");
    scene.put(&["d"]).await;
    let sent = scene.read().await;
    let at = |sub_sequence_number| Position::Record {
        sequence_number: sent[0].place.number.clone(),
        sub_sequence_number,
    };
    let store = Memory::new();
    save(&store, Checkpoint::at(at(0))).await;
    let letters = dead_letter::Memory::new();
    let skip = async |at_most| {
        let shards = scene.shards(&store);
        let skip = shards
            .skip(&shard(), up_to(at_most))
            .await
            .expect("records to skip");
        let skipped = skip.carry_out(&letters).await.expect("the records are skipped");
        (skipped.letters.len(), position(&store).await)
    };
    assert_eq!(skip(1).await, (1, at(1)));
    assert_eq!(letters.letters()[0].payload, "b");
    assert_eq!(letters.letters()[0].sub_sequence_number, 1);
    // A skip of more records than there are skips them all.
    assert_eq!(skip(5).await, (2, sent[1].record().position()));
    let payloads: Vec<_> = letters.letters().into_iter().map(|it| it.payload).collect();
    assert_eq!(payloads, ["b", "c", "d"]);
}

#[tokio::test]
async fn records_settled_ahead_are_neither_skipped_nor_repeated() {
    let (scene, sent) = Scene::with(&["0", "hang", "2", "hang", "4"]).await;
    let store = Memory::new();
    let handler = Handler::default();
    let running = scene.run(&store, &handler);
    handler.has_done(3).await;
    running.stop().await;
    assert_eq!(position(&store).await, sent[0].record().position());

    let letters = dead_letter::Memory::new();
    let shards = scene.shards(&store);
    let skip = shards.skip(&shard(), ONE).await.expect("a record to skip");
    skip.carry_out(&letters).await.expect("the record is skipped");
    assert_eq!(letters.letters()[0].sequence_number, sent[1].place.number);
    let skip = shards
        .skip(&shard(), up_to(9))
        .await
        .expect("another record to skip");
    let places: Vec<_> = skip.records().iter().map(|record| record.position()).collect();
    assert_eq!(places, [sent[3].record().position()], "2 and 4 are settled");

    scene.put(&["5"]).await;
    let handler = Handler::default();
    let running = scene.run(&store, &handler);
    handler.hangs().await;
    handler.has_done(1).await;
    assert_eq!(handler.done(), ["5"]);
    running.stop().await;
}

#[tokio::test]
async fn skip_without_a_record_to_skip_is_refused() {
    let (scene, sent) = Scene::with(&["0", "1"]).await;
    let store = Memory::new();
    let shards = scene.shards(&store);
    let refused = shards.skip(&shard(), ONE).await.map(drop);
    assert!(
        matches!(refused, Err(OperatorError::NotBegun { .. })),
        "{refused:?}"
    );
    for position in [sent[1].record().position(), Position::ShardEnd] {
        save(&store, Checkpoint::at(position)).await;
        let refused = shards.skip(&shard(), ONE).await.map(drop);
        assert!(
            matches!(refused, Err(OperatorError::NothingToSkip { .. })),
            "{refused:?}"
        );
    }
}

#[tokio::test]
async fn skip_plan_is_refused_if_other_records_come_first() {
    let (scene, sent) = Scene::with(&["0", "1", "2"]).await;
    let store = Memory::new();
    settle(&store, &sent[0]).await;
    let shards = scene.shards(&store);
    let letters = dead_letter::Memory::new();
    let skip = shards.skip(&shard(), ONE).await.expect("a record to skip");
    settle(&store, &sent[1]).await;
    let moved = skip.carry_out(&letters).await;
    assert!(matches!(moved, Err(OperatorError::Moved { .. })), "{moved:?}");
    assert_eq!(
        (letters.letters().len(), position(&store).await),
        (0, sent[1].record().position())
    );

    // Another checkpoint before the same record does not invalidate the plan.
    let skip = shards.skip(&shard(), ONE).await.expect("a record to skip");
    let now = SystemTime::now() - Duration::from_secs(60);
    save(&store, load(&store).await.with_read_until(now)).await;
    skip.carry_out(&letters).await.expect("the record is skipped");
    assert_eq!(position(&store).await, sent[2].record().position());
}

#[tokio::test]
async fn skip_reports_a_trimmed_position() {
    let (scene, sent) = Scene::with(&["0", "1", "2"]).await;
    let proxy = Proxy::start(scene.server.endpoint()).await.expect("a free port");
    let store = Memory::new();
    settle(&store, &sent[0]).await;
    // The proxy drops the first two records, as Kinesis does after the retention.
    let left = sent[2].place.number.to_string();
    proxy.script(move |call| match &call.target[..] {
        "GetRecords" => {
            let left = left.clone();
            Fault::Rewrite(Box::new(move |reply| {
                let records = reply["Records"].as_array_mut().expect("a list");
                records.retain(|record| record["SequenceNumber"] == *left);
            }))
        }
        _ => Fault::None,
    });
    let shards = redrive::operator::Shards::new(proxy.client(), store.clone(), "billing", STREAM);
    let skip = shards.skip(&shard(), ONE).await.expect("a record to skip");
    assert!(skip.is_trimmed());
    assert_eq!(skip.records()[0].payload(), "2");
    // Kinesis may also refuse the sequence number of the checkpoint.
    proxy.script(
        |call| match call.body["ShardIteratorType"] == "AT_SEQUENCE_NUMBER" {
            true => Fault::error(400, "InvalidArgumentException"),
            false => Fault::None,
        },
    );
    settle(&store, &sent[0]).await;
    let shards = Arc::new(shards);
    let skip = shards.skip(&shard(), ONE).await.expect("a record to skip");
    assert!(
        !skip.is_trimmed(),
        "the record is found by reading from the oldest one"
    );
    assert_eq!(skip.records()[0].payload(), "1");
}
