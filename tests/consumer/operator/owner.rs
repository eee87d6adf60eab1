//! Operator commands on leased shards, on DynamoDB Local.

use std::time::Duration;

use redrive::Position;
use redrive::checkpoint::{
    Checkpoint, CheckpointError, CheckpointStore as _, DynamoDb, Holder, LeaseOutcome, Leases as _, NewShard,
};
use redrive::dead_letter;
use redrive::operator::OperatorError;
use tokio::time::{Instant, sleep};

use super::scene::{Handler, ONE, Scene, key, load, position, settle, shard};
use support::dynamodb::DynamoDbLocal;
use support::emulator::unique;
use support::sink::{Answer, ScriptedSink};
use support::waiting::finished;

/// The failover time for tests with a live owner. On a busy machine DynamoDB Local may not respond for some
/// seconds.
const PATIENT: Duration = Duration::from_secs(8);
/// The failover time for tests with a dead owner, which wait for its end.
const SHORT: Duration = Duration::from_secs(4);

/// Returns a function that creates stores on a table of this test. Returns `None` without DynamoDB Local.
async fn table(failover_time: Duration) -> Option<impl Fn(&str) -> DynamoDb> {
    let client = DynamoDbLocal::shared()?.patient_client();
    let name = unique("operated");
    Some(move |worker: &str| {
        DynamoDb::new(client.clone(), name.as_str())
            .worker(worker)
            .failover_time(failover_time)
            .write_interval(Duration::from_millis(50))
    })
}

async fn hold(store: &DynamoDb, checkpoint: Checkpoint) {
    let created = store.create(&[NewShard::new(key(), checkpoint)]).await.remove(0);
    created.expect("created");
    assert!(matches!(take(store).await, LeaseOutcome::Leased(_)));
}

async fn take(store: &DynamoDb) -> LeaseOutcome {
    store.take(&[key()]).await.remove(0).expect("the store answers")
}

#[tokio::test]
async fn shard_with_a_live_owner_is_not_moved() {
    let Some(store) = table(PATIENT).await else { return };
    let (scene, sent) = Scene::with(&["0", "hang", "2"]).await;
    let handler = Handler::default();
    let running = scene.run(&store("first"), &handler);
    handler.has_done(2).await;
    let operator = store("operator");
    let shards = scene.shards(&operator);
    let is_alive = |refused: Result<(), OperatorError>| match refused {
        Err(OperatorError::Alive { owner, .. }) => assert!(owner.starts_with("first-"), "{owner}"),
        other => panic!("{other:?}"),
    };
    is_alive(shards.skip(&shard(), ONE).await.map(drop));
    is_alive(shards.rewind(&shard(), Position::TrimHorizon).await.map(drop));
    let holder = shards.holder(&shard()).await.expect("the store answers");
    assert!(holder.is_some_and(|holder| holder.name.starts_with("first-")));
    let listed = shards.list().await.expect("the shards are listed");
    let holder = listed[0].holder.as_ref().expect("a holder");
    assert!(holder.name.starts_with("first-"));
    let before = holder.name.clone();
    running.stop().await;

    // The owner returns between the plan and its execution.
    assert_eq!(position(&operator).await, sent[0].record().position());
    let skip = shards.skip(&shard(), ONE).await.expect("the lease is released");
    let running = scene.run(&store("first"), &Handler::default());
    let comes_back = async {
        // On a busy machine the first worker may have had no time to release the shard.
        let is_back = |holder: Option<Holder>| holder.is_some_and(|holder| holder.name != before);
        while !is_back(shards.holder(&shard()).await.expect("the store answers")) {
            sleep(Duration::from_millis(20)).await;
        }
    };
    finished("the owner returns", comes_back).await;
    let letters = dead_letter::Memory::new();
    is_alive(skip.carry_out(&letters).await.map(drop));
    assert_eq!(letters.letters().len(), 0);
    assert_eq!(position(&operator).await, sent[0].record().position());
    running.stop().await;
}

#[tokio::test]
async fn shard_of_a_dead_owner_moves_after_the_failover_time() {
    let Some(store) = table(SHORT).await else { return };
    let (scene, sent) = Scene::with(&["0", "1", "2"]).await;
    let dead = store("dead");
    hold(&dead, Checkpoint::at(Position::TrimHorizon)).await;
    settle(&dead, &sent[0]).await;
    let (operator, letters) = (store("operator"), dead_letter::Memory::new());
    let shards = scene.shards(&operator);
    let began = Instant::now();
    let skip = shards.skip(&shard(), ONE).await.expect("the owner is dead");
    skip.carry_out(&letters).await.expect("the record is skipped");
    assert!(began.elapsed() >= SHORT);
    assert_eq!(letters.letters()[0].payload, "1");
    // The operator has released the shard, and the dead owner's save comes too late.
    let next = store("next");
    assert!(
        matches!(take(&next).await, LeaseOutcome::Leased(from) if *from.position() == sent[1].record().position())
    );
    let late = dead
        .save(&[(key(), Checkpoint::at(sent[2].record().position()))])
        .await
        .remove(0);
    assert!(matches!(late, Err(CheckpointError::LeaseLost { .. })), "{late:?}");
}

#[tokio::test]
async fn force_takes_the_shard_and_owner_resumes_after_the_skip() {
    let Some(store) = table(PATIENT).await else { return };
    let (scene, sent) = Scene::with(&["0", "hang", "2"]).await;
    let handler = Handler::default();
    let running = scene.run(&store("first"), &handler);
    handler.has_done(2).await;
    handler.hangs().await;
    let stored = async {
        while load(&store("looking")).await.ahead().is_none() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    finished("the records settled ahead are stored", stored).await;
    let (operator, letters) = (store("operator"), dead_letter::Memory::new());
    let shards = scene.shards(&operator).force();
    let skip = shards.skip(&shard(), ONE).await.expect("a record to skip");
    skip.carry_out(&letters).await.expect("the record is skipped");
    assert_eq!(letters.letters()[0].sequence_number, sent[1].place.number);
    handler.hears("ShardEvent::LeaseLost").await;
    scene.put(&["3"]).await;
    handler.has_done(3).await;
    let mut done = handler.done();
    done.sort_unstable();
    assert_eq!(done, ["0", "2", "3"], "2 was settled ahead");
    running.stop().await;
    let sent = scene.read().await;
    assert_eq!(position(&operator).await, sent[3].record().position());

    // A rewind by force works in the same way.
    let handler = Handler::default();
    let running = scene.run(&store("second"), &handler);
    handler.hears("ShardEvent::Started").await;
    let shards = scene.shards(&operator).force();
    let rewind = shards.rewind(&shard(), sent[1].record().position()).await;
    rewind
        .expect("a valid rewind")
        .carry_out()
        .await
        .expect("rewound");
    handler.has_done(2).await;
    let mut done = handler.done();
    done.sort_unstable();
    assert_eq!(done, ["2", "3"]);
    running.stop().await;
}

/// Creates a sink that waits for this future before it confirms.
fn confirms_after<F>(meanwhile: impl Fn() -> F + Send + 'static) -> ScriptedSink
where
    F: Future<Output = ()> + Send + 'static,
{
    let sink = ScriptedSink::default();
    sink.on_put(move |_, _| Answer::TakeAfter(Box::pin(meanwhile())));
    sink
}

/// Takes the shard by force, as another worker.
async fn seize(store: DynamoDb) {
    let taken = store.seize(&key()).await.expect("the store answers");
    assert!(matches!(taken, LeaseOutcome::Leased(_)), "{taken:?}");
}

/// Tries to take the shard for longer than the failover time, as another worker.
async fn stand_by(store: DynamoDb) {
    let began = Instant::now();
    while began.elapsed() < PATIENT * 5 / 4 {
        let taken = take(&store).await;
        assert!(matches!(taken, LeaseOutcome::Elsewhere { .. }), "{taken:?}");
        sleep(PATIENT / 20).await;
    }
}

#[tokio::test]
async fn lost_lease_prevents_the_skip_and_slow_sink_does_not() {
    let Some(store) = table(PATIENT).await else { return };
    let (scene, sent) = Scene::with(&["0", "1", "2"]).await;
    let operator = store("operator");
    hold(&operator, Checkpoint::at(Position::TrimHorizon)).await;
    settle(&operator, &sent[0]).await;
    operator.give_up(&key()).await.expect("the store answers");
    let shards = scene.shards(&operator);
    let skip = shards.skip(&shard(), ONE).await.expect("a record to skip");
    let other = store("other");
    let seizes = other.clone();
    let sink = confirms_after(move || seize(seizes.clone()));
    match skip.carry_out(&sink).await {
        Err(OperatorError::NotStored { source, .. }) => {
            assert!(matches!(source, CheckpointError::LeaseLost { .. }), "{source:?}");
        }
        result => panic!("{result:?}"),
    }
    assert_eq!(position(&operator).await, sent[0].record().position());
    other.give_up(&key()).await.expect("the store answers");
    let third = store("third");
    let sink = confirms_after(move || stand_by(third.clone()));
    skip.carry_out(&sink).await.expect("the record is skipped");
    assert_eq!(position(&operator).await, sent[1].record().position());
}

#[tokio::test]
async fn ended_shard_without_an_owner_can_be_rewound() {
    let Some(store) = table(PATIENT).await else { return };
    let (scene, _) = Scene::with(&["0"]).await;
    let operator = store("operator");
    let end = NewShard::new(key(), Checkpoint::at(Position::ShardEnd));
    operator.create(&[end]).await.remove(0).expect("created");
    let shards = scene.shards(&operator);
    let rewind = shards.rewind(&shard(), Position::TrimHorizon).await;
    rewind
        .expect("a valid rewind")
        .carry_out()
        .await
        .expect("rewound");
    assert_eq!(load(&operator).await, Checkpoint::at(Position::TrimHorizon));
    assert!(matches!(take(&store("next")).await, LeaseOutcome::Leased(_)));
}
