//! Shards that somebody holds: on DynamoDB Local.

use std::time::Duration;

use async_trait::async_trait;
use redrive::Position;
use redrive::checkpoint::{
    Checkpoint, CheckpointError, CheckpointStore as _, DynamoDb, Leases as _, NewShard, Taken,
};
use redrive::dead_letter::{self, DeadLetter, DeadLetterSink, Receipt, SinkError};
use redrive::operator::OperatorError;
use tokio::time::{Instant, sleep};

use super::scene::{Handler, ONE, Scene, key, load, position, settle, shard};
use support::dynamodb::DynamoDbLocal;
use support::emulator::unique;
use support::waiting::finished;

const FAILOVER: Duration = Duration::from_secs(1);

/// Makes stores of a table of a test's own. None without DynamoDB Local.
async fn table() -> Option<impl Fn(&str) -> DynamoDb> {
    let client = DynamoDbLocal::shared()?.client();
    let name = unique("operated");
    Some(move |worker: &str| {
        DynamoDb::new(client.clone(), name.as_str())
            .worker(worker)
            .failover_time(FAILOVER)
            .write_interval(Duration::from_millis(50))
    })
}

async fn hold(store: &DynamoDb, checkpoint: Checkpoint) {
    let created = store.create(&[NewShard::new(key(), checkpoint)]).await.remove(0);
    created.expect("it is made");
    assert!(matches!(take(store).await, Taken::Held(_)));
}

async fn take(store: &DynamoDb) -> Taken {
    store.take(&[key()]).await.remove(0).expect("it answers")
}

#[tokio::test]
async fn nothing_is_moved_while_the_owner_lives() {
    let Some(store) = table().await else { return };
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
    running.stop().await;

    // One that comes back to life between look and move.
    assert_eq!(position(&operator).await, sent[0].record().position());
    let skip = shards.skip(&shard(), ONE).await.expect("it is let go");
    let running = scene.run(&store("first"), &Handler::default());
    let comes_back = async {
        while shards.holder(&shard()).await.expect("it answers").is_none() {
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
async fn the_shard_of_a_dead_owner_is_moved_after_the_failover_time_and_let_go() {
    let Some(store) = table().await else { return };
    let (scene, sent) = Scene::with(&["0", "1", "2"]).await;
    let dead = store("dead");
    hold(&dead, Checkpoint::at(Position::TrimHorizon)).await;
    settle(&dead, &sent[0]).await;
    let (operator, letters) = (store("operator"), dead_letter::Memory::new());
    let shards = scene.shards(&operator);
    let began = Instant::now();
    let skip = shards.skip(&shard(), ONE).await.expect("nobody lives");
    skip.carry_out(&letters).await.expect("it is skipped");
    assert!(began.elapsed() >= FAILOVER);
    assert_eq!(letters.letters()[0].payload, "1");
    // Nobody waits for the operator, and the dead come too late.
    let next = store("next");
    assert!(
        matches!(take(&next).await, Taken::Held(from) if *from.position() == sent[1].record().position())
    );
    let late = dead
        .save(&[(key(), Checkpoint::at(sent[2].record().position()))])
        .await
        .remove(0);
    assert!(matches!(late, Err(CheckpointError::LeaseLost { .. })), "{late:?}");
}

#[tokio::test]
async fn by_force_an_owner_that_lives_loses_the_shard_and_goes_on_behind_the_skipped_record() {
    let Some(store) = table().await else { return };
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

/// Does what a test wants before it confirms.
#[derive(Debug)]
struct Meanwhile<F>(F);

#[async_trait]
impl<F> DeadLetterSink for Meanwhile<F>
where
    F: AsyncMeanwhile,
{
    async fn put(&self, letters: &[DeadLetter]) -> Vec<Result<Receipt, SinkError>> {
        self.0.happens().await;
        letters.iter().map(|_| Ok(Receipt::new("here"))).collect()
    }
}

#[async_trait]
trait AsyncMeanwhile: Send + Sync + std::fmt::Debug {
    async fn happens(&self);
}

/// Another takes the shard by force.
#[derive(Debug)]
struct Seizes(DynamoDb);

#[async_trait]
impl AsyncMeanwhile for Seizes {
    async fn happens(&self) {
        let taken = self.0.seize(&key()).await.expect("it answers");
        assert!(matches!(taken, Taken::Held(_)), "{taken:?}");
    }
}

/// Another waits for the shard, for longer than the dead are waited for.
#[derive(Debug)]
struct StandsBy(DynamoDb);

#[async_trait]
impl AsyncMeanwhile for StandsBy {
    async fn happens(&self) {
        let began = Instant::now();
        while began.elapsed() < FAILOVER * 2 {
            let taken = take(&self.0).await;
            assert!(matches!(taken, Taken::Elsewhere { .. }), "{taken:?}");
            sleep(FAILOVER / 20).await;
        }
    }
}

#[tokio::test]
async fn a_shard_that_is_lost_meanwhile_is_not_moved_and_a_slow_sink_loses_none() {
    let Some(store) = table().await else { return };
    let (scene, sent) = Scene::with(&["0", "1", "2"]).await;
    let operator = store("operator");
    hold(&operator, Checkpoint::at(Position::TrimHorizon)).await;
    settle(&operator, &sent[0]).await;
    operator.give_up(&key()).await.expect("it answers");
    let shards = scene.shards(&operator);
    let skip = shards.skip(&shard(), ONE).await.expect("there is one");
    let other = store("other");
    match skip.carry_out(&Meanwhile(Seizes(other.clone()))).await {
        Err(OperatorError::NotStored { source, .. }) => {
            assert!(matches!(source, CheckpointError::LeaseLost { .. }), "{source:?}");
        }
        result => panic!("{result:?}"),
    }
    assert_eq!(position(&operator).await, sent[0].record().position());
    other.give_up(&key()).await.expect("it answers");
    let skipped = skip.carry_out(&Meanwhile(StandsBy(store("third")))).await;
    skipped.expect("it is skipped");
    assert_eq!(position(&operator).await, sent[1].record().position());
}

#[tokio::test]
async fn a_shard_at_its_end_that_nobody_can_take_goes_back() {
    let Some(store) = table().await else { return };
    let (scene, _) = Scene::with(&["0"]).await;
    let operator = store("operator");
    let end = NewShard::new(key(), Checkpoint::at(Position::ShardEnd));
    operator.create(&[end]).await.remove(0).expect("it is made");
    let shards = scene.shards(&operator);
    let rewind = shards.rewind(&shard(), Position::TrimHorizon).await;
    rewind.expect("it can").carry_out().await.expect("it is back");
    assert_eq!(load(&operator).await, Checkpoint::at(Position::TrimHorizon));
    assert!(matches!(take(&store("next")).await, Taken::Held(_)));
}
