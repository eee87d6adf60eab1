//! Splits and merges: parents are read to their end before their children, whatever the order of events.

use std::collections::{HashMap, HashSet};

use aws_sdk_kinesis::types::{ScalingType, Shard, StreamStatus};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use redrive::checkpoint::{Checkpoint, CheckpointStore, Memory, ShardKey};
use redrive::{ConsumerError, Position, ShardId};
use serde_json::{Value, json};

use crate::scene::{STREAM, Scene, records};
use support::ledger::{Note, SinkState, Store};
use support::proxy::Fault;
use support::waiting::{eventually, finished};

impl Scene {
    pub async fn list(&self) -> Vec<Shard> {
        let reply = self.client().list_shards().stream_name(STREAM).send().await;
        reply.expect("ListShards").shards.unwrap_or_default()
    }

    /// Returns the open shards, in the order of their hash keys.
    pub async fn open_shards(&self) -> Vec<Shard> {
        let mut open = self.list().await;
        open.retain(|shard| {
            let range = shard.sequence_number_range();
            range.is_some_and(|range| range.ending_sequence_number().is_none())
        });
        open.sort_by_key(|shard| hash_keys(shard).0);
        open
    }

    pub async fn split(&self, shard: &Shard) {
        let (first, last) = hash_keys(shard);
        let call = self.client().split_shard().stream_name(STREAM);
        let call = call.shard_to_split(shard.shard_id());
        let middle = (first / 2 + last / 2).to_string();
        call.new_starting_hash_key(middle)
            .send()
            .await
            .expect("SplitShard");
        self.is_active().await;
    }

    pub async fn merge(&self, shard: &Shard, next: &Shard) {
        let call = self.client().merge_shards().stream_name(STREAM);
        let call = call.shard_to_merge(shard.shard_id());
        let call = call.adjacent_shard_to_merge(next.shard_id());
        call.send().await.expect("MergeShards");
        self.is_active().await;
    }

    async fn scale(&self, shards: i32) {
        let call = self.client().update_shard_count().stream_name(STREAM);
        let call = call.target_shard_count(shards);
        let call = call.scaling_type(ScalingType::UniformScaling);
        call.send().await.expect("UpdateShardCount");
        self.is_active().await;
    }

    async fn is_active(&self) {
        let active = async {
            loop {
                let call = self.client().describe_stream_summary().stream_name(STREAM);
                let summary = call.send().await.expect("DescribeStreamSummary");
                let summary = summary.stream_description_summary.expect("a summary");
                if summary.stream_status == StreamStatus::Active {
                    return;
                }
            }
        };
        finished("the resharding completes", active).await;
    }

    /// Asserts that no record of a shard begins before the ends of its parents are stored.
    pub async fn check_lineage(&self) {
        let shards = self.list().await;
        let book = self.ledger.book();
        let mut parents: HashMap<ShardId, Vec<ShardId>> = HashMap::new();
        for shard in &shards {
            let of_shard = [shard.parent_shard_id(), shard.adjacent_parent_shard_id()];
            let of_shard = of_shard.into_iter().flatten().map(ShardId::from);
            parents.insert(shard.shard_id().into(), of_shard.collect());
        }
        let mut ended = HashSet::new();
        for note in &book.notes {
            match note {
                Note::Saved(shard, checkpoint) if *checkpoint.position() == Position::ShardEnd => {
                    ended.insert(shard);
                }
                Note::Began(place) => {
                    let open = parents[&place.shard]
                        .iter()
                        .find(|parent| !ended.contains(parent));
                    assert_eq!(open, None, "{place:?} begins before its parent has ended");
                }
                _ => {}
            }
        }
    }

    /// Returns the shards whose end is stored.
    pub fn ended(&self) -> HashSet<ShardId> {
        let stored = self.ledger.book().last_saved();
        let ended = stored
            .into_iter()
            .filter(|(_, checkpoint)| *checkpoint.position() == Position::ShardEnd);
        ended.map(|(shard, _)| shard).collect()
    }
}

fn hash_keys(shard: &Shard) -> (u128, u128) {
    let range = shard.hash_key_range().expect("a range of hash keys");
    let key = |text: &str| text.parse().expect("a number");
    (key(range.starting_hash_key()), key(range.ending_hash_key()))
}

fn ids<'a>(shards: impl IntoIterator<Item = &'a Shard>) -> HashSet<ShardId> {
    shards.into_iter().map(|shard| shard.shard_id().into()).collect()
}

/// Lets some records fail and some take their time. A parent is then not at its end when its children already
/// have records.
fn steps(number: usize) -> &'static str {
    match number % 50 {
        3 => "fail,fail,ok",
        5 => "sleep:150",
        11 => "bad",
        _ => "ok",
    }
}

#[tokio::test]
async fn shards_are_split_and_merged_while_they_are_read() {
    let scene = Scene::new(2).await;
    let put = || scene.put(records(250, 50, steps));
    put().await;
    let running = scene.start();
    scene.ledger.settled(50).await;

    let open = scene.open_shards().await;
    scene.split(&open[0]).await;
    put().await;
    let open = scene.open_shards().await;
    assert_eq!(open.len(), 3);
    scene.merge(&open[1], &open[2]).await;
    put().await;
    scene.ledger.settled(400).await;
    let open = scene.open_shards().await;
    scene.split(&open[1]).await;
    put().await;
    scene.split(&open[0]).await;
    put().await;
    let open = scene.open_shards().await;
    assert_eq!(open.len(), 4);
    let all = scene.list().await;
    let closed = &ids(&all) - &ids(&open);
    eventually("every closed shard has ended", || scene.ended() == closed).await;
    scene.settle_all(running).await;
    scene.check_lineage().await;

    // Ended shards are not read again.
    let calls = scene.proxy.calls("GetShardIterator").len();
    put().await;
    let running = scene.start();
    scene.settle_all(running).await;
    scene.check_lineage().await;
    let read: HashSet<ShardId> = scene.proxy.calls("GetShardIterator")[calls..]
        .iter()
        .filter_map(|call| call.body["ShardId"].as_str().map(ShardId::from))
        .collect();
    assert_eq!(read, ids(&open));
}

#[tokio::test]
async fn resharded_stream_is_read_from_its_beginning() {
    let scene = Scene::new(1).await;
    scene.put(records(100, 30, steps)).await;
    scene.split(&scene.open_shards().await[0]).await;
    scene.put(records(100, 30, steps)).await;
    let open = scene.open_shards().await;
    scene.merge(&open[0], &open[1]).await;
    scene.put(records(100, 30, steps)).await;
    let running = scene.start();
    scene.settle_all(running).await;
    scene.check_lineage().await;
    assert_eq!(scene.ended().len(), 3);
}

/// Resets the row of an ended shard, as a delayed write may do at any time. No worker writes the row of an
/// ended shard any more.
#[tokio::test]
async fn ended_shard_is_not_read_again_if_its_row_is_reset() {
    let memory = Memory::new();
    let mut scene = Scene::new(1).await;
    scene.store = Store::over(&scene.ledger, memory.clone());
    scene.put(records(100, 30, steps)).await;
    let parent = scene.open_shards().await.remove(0);
    scene.split(&parent).await;
    scene.put(records(100, 30, steps)).await;
    let running = scene.start();
    scene.settle_all(running).await;

    let running = scene.start();
    let put = scene.read().await.len() + 50;
    scene.put(records(50, 30, steps)).await;
    scene.ledger.settled(put).await;
    let key = ShardKey::new("billing", STREAM, parent.shard_id().into());
    let late = memory.save(&[(key, Checkpoint::at(Position::TrimHorizon))]).await;
    assert!(late[0].is_ok());
    let calls = scene.proxy.calls("GetShardIterator").len();
    let child = scene.open_shards().await.remove(0);
    scene.split(&child).await;
    let put = put + 50;
    scene.put(records(50, 30, steps)).await;
    scene.ledger.settled(put).await;
    eventually("the child has ended", || {
        scene.ended().contains(&child.shard_id().into())
    })
    .await;
    running.stop().await.expect("nothing halted");
    let read = &scene.proxy.calls("GetShardIterator")[calls..];
    let again = read.iter().any(|call| call.body["ShardId"] == parent.shard_id());
    assert!(!again, "the run read a shard again that it had seen end");
}

/// Scales the stream. The embedded server names no parents for the shards that UpdateShardCount makes, so
/// order is kept only within each shard.
#[tokio::test]
async fn a_stream_is_scaled_while_it_is_read() {
    let scene = Scene::new(2).await;
    scene.put(records(250, 50, steps)).await;
    let running = scene.start();
    scene.ledger.settled(100).await;
    scene.scale(4).await;
    scene.put(records(250, 50, steps)).await;
    scene.ledger.settled(300).await;
    scene.scale(3).await;
    scene.put(records(250, 50, steps)).await;
    let mut sent = scene.read().await;
    for sent in &mut sent {
        sent.key = format!("{}/{}", sent.place.shard, sent.key);
    }
    scene.ledger.settled(sent.len()).await;
    eventually("every closed shard has ended", || scene.ended().len() == 6).await;
    running.stop().await.expect("nothing halted");
    scene.ledger.check_settled_once(&sent);
    assert!(scene.ledger.is_stored(&sent));
}

/// Keeps the children from beginning while their parent has an unsettled record, also after a restart.
#[tokio::test]
async fn children_of_a_halted_shard_wait() {
    let scene = Scene::new(1).await;
    scene
        .put(records(50, 5, |number| if number == 30 { "bad" } else { "ok" }))
        .await;
    scene.split(&scene.open_shards().await[0]).await;
    scene.put(records(50, 5, |_| "ok")).await;
    scene.sink.set(SinkState::Refuses("key-0".to_owned()));
    for _ in 0..2 {
        let running = scene.start();
        let error = running.end().await.expect_err("no shard is left that may begin");
        assert!(matches!(error, ConsumerError::ShardHalted(_)), "{error:?}");
        assert_eq!(scene.ledger.events("ShardEvent::Ended"), 0);
    }
    scene.check_lineage().await;

    scene.sink.set(SinkState::Up);
    let running = scene.start();
    scene.settle_all(running).await;
    scene.check_lineage().await;
}

/// Builds a ListShards response with these shards.
fn listing(shards: &[Shard]) -> Value {
    let shards = shards.iter().map(|shard| {
        let keys = hash_keys(shard);
        json!({
            "ShardId": shard.shard_id(),
            "HashKeyRange": {"StartingHashKey": keys.0.to_string(), "EndingHashKey": keys.1.to_string()},
            "SequenceNumberRange": {"StartingSequenceNumber": "1"},
        })
    });
    json!({"Shards": shards.collect::<Vec<_>>()})
}

/// Uses a listing that lags behind: it lacks the children of a shard that is already read to its end.
#[tokio::test]
async fn children_that_are_not_listed_yet_are_waited_for() {
    let scene = Scene::new(1).await;
    let before = listing(&scene.list().await);
    scene.put(records(100, 30, steps)).await;
    scene.split(&scene.open_shards().await[0]).await;
    scene.put(records(100, 30, steps)).await;
    scene
        .proxy
        .script(move |call| match (&*call.target, call.number) {
            ("ListShards", 1..=3) => Fault::Reply(200, before.clone()),
            _ => Fault::None,
        });
    let running = scene.start();
    scene.settle_all(running).await;
    scene.check_lineage().await;
    assert_eq!(scene.ledger.events("StreamEvent::HashKeysUncovered"), 0);
}

#[tokio::test]
async fn uncovered_hash_keys_are_reported() {
    let scene = Scene::new(3).await;
    scene.put(records(200, 30, steps)).await;
    let listed = scene.list().await;
    let (lacking, shard) = (listing(&listed[..2]), ShardId::from(listed[2].shard_id()));
    scene
        .proxy
        .script(move |call| match (&*call.target, call.number) {
            ("ListShards", 1..=4) => Fault::Reply(200, lacking.clone()),
            _ => Fault::None,
        });
    let running = scene.start();
    eventually("the uncovered hash keys are reported", || {
        scene.ledger.events("StreamEvent::HashKeysUncovered") == 2
    })
    .await;
    assert!(
        scene
            .ledger
            .book()
            .settled
            .iter()
            .all(|place| place.shard != shard)
    );
    // Discovery repeats until the hash keys are covered.
    scene.settle_all(running).await;
    assert_eq!(scene.proxy.calls("ListShards").len(), 5);
}

/// Splits, merges and restarts at random while records are put. No record is lost, and the order of each key
/// is kept.
#[tokio::test]
async fn random_resharding_loses_nothing_and_keeps_order() {
    for seed in 0..20 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let scene = Scene::new(rng.random_range(1..4)).await;
        let mut running = scene.start();
        let mut put = 0;
        for _ in 0..rng.random_range(3..9) {
            let count = rng.random_range(0..200);
            scene.put(records(count, 40, steps)).await;
            put += count;
            let open = scene.open_shards().await;
            let at = rng.random_range(0..open.len());
            match rng.random_range(0..5) {
                0 | 1 if open.len() < 8 => scene.split(&open[at]).await,
                2 | 3 if at + 1 < open.len() => scene.merge(&open[at], &open[at + 1]).await,
                4 => {
                    running.stop().await.expect("nothing halted");
                    running = scene.start();
                }
                _ => {}
            }
            if rng.random() {
                scene.ledger.settled(put / 2).await;
            }
        }
        let sent = scene.settle_all(running).await;
        scene.check_lineage().await;
        println!(
            "seed {seed}: {} records in {} shards",
            sent.len(),
            scene.list().await.len()
        );
    }
}
