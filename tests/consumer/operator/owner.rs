//! Shards that somebody holds: on DynamoDB Local.

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

/// The failover time where the owner lives: DynamoDB Local may not answer a busy machine for some seconds.
const PATIENT: Duration = Duration::from_secs(8);
/// The failover time where the owner is dead, which a test waits for.
const SHORT: Duration = Duration::from_secs(4);

/// Makes stores of a table of a test's own. None without DynamoDB Local.
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
    created.expect("it is made");
    assert!(matches!(take(store).await, LeaseOutcome::Leased(_)));
}

async fn take(store: &DynamoDb) -> LeaseOutcome {
    store.take(&[key()]).await.remove(0).expect("it answers")
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
    let holder = shards.holder(&shard()).await.expect("it answers");
    assert!(holder.is_some_and(|holder| holder.name.starts_with("first-")));
    let listed = shards.list().await.expect("it lists");
    let holder = listed[0].holder.as_ref().expect("the same");
    assert!(holder.name.starts_with("first-"));
    let before = holder.name.clone();
    running.stop().await;

    // One that comes back to life between look and move.
    assert_eq!(position(&operator).await, sent[0].record().position());
    let skip = shards.skip(&shard(), ONE).await.expect("it is let go");
    let running = scene.run(&store("first"), &Handler::default());
    let comes_back = async {
        // On a busy machine the first may have had no time to give the shard up.
        let is_back = |holder: Option<Holder>| holder.is_some_and(|holder| holder.name != before);
        while !is_back(shards.holder(&shard()).await.expect("it answers")) {
            sleep(Duration::from_millis(20)).await;
        }
    };
    finished("it comes back", comes_back).await;
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
    let skip = shards.skip(&shard(), ONE).await.expect("nobody lives");
    skip.carry_out(&letters).await.expect("it is skipped");
    assert!(began.elapsed() >= SHORT);
    assert_eq!(letters.letters()[0].payload, "1");
    // Nobody waits for the operator, and the dead come too late.
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
    finished("what is settled ahead is stored", stored).await;
    let (operator, letters) = (store("operator"), dead_letter::Memory::new());
    let shards = scene.shards(&operator).force();
    let skip = shards.skip(&shard(), ONE).await.expect("there is one");
    skip.carry_out(&letters).await.expect("it is skipped");
    assert_eq!(letters.letters()[0].sequence_number, sent[1].place.number);
    handler.hears("LeaseLost").await;
    scene.put(&["3"]).await;
    handler.has_done(3).await;
    let mut done = handler.done();
    done.sort_unstable();
    assert_eq!(done, ["0", "2", "3"], "2 was settled ahead");
    running.stop().await;
    let sent = scene.read().await;
    assert_eq!(position(&operator).await, sent[3].record().position());

    // The same way back.
    let handler = Handler::default();
    let running = scene.run(&store("second"), &handler);
    handler.hears("ShardStarted").await;
    let shards = scene.shards(&operator).force();
    let rewind = shards.rewind(&shard(), sent[1].record().position()).await;
    rewind.expect("it can").carry_out().await.expect("it is back");
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

/// Another worker takes the shard by force.
async fn seize(store: DynamoDb) {
    let taken = store.seize(&key()).await.expect("it answers");
    assert!(matches!(taken, LeaseOutcome::Leased(_)), "{taken:?}");
}

/// Another worker waits for the shard, for longer than the failover time.
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
    operator.give_up(&key()).await.expect("it answers");
    let shards = scene.shards(&operator);
    let skip = shards.skip(&shard(), ONE).await.expect("there is one");
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
    other.give_up(&key()).await.expect("it answers");
    let third = store("third");
    let sink = confirms_after(move || stand_by(third.clone()));
    skip.carry_out(&sink).await.expect("it is skipped");
    assert_eq!(position(&operator).await, sent[1].record().position());
}

#[tokio::test]
async fn ended_shard_without_an_owner_can_be_rewound() {
    let Some(store) = table(PATIENT).await else { return };
    let (scene, _) = Scene::with(&["0"]).await;
    let operator = store("operator");
    let end = NewShard::new(key(), Checkpoint::at(Position::ShardEnd));
    operator.create(&[end]).await.remove(0).expect("it is made");
    let shards = scene.shards(&operator);
    let rewind = shards.rewind(&shard(), Position::TrimHorizon).await;
    rewind.expect("it can").carry_out().await.expect("it is back");
    assert_eq!(load(&operator).await, Checkpoint::at(Position::TrimHorizon));
    assert!(matches!(take(&store("next")).await, LeaseOutcome::Leased(_)));
}
