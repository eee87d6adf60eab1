//! Shards that an operator rewinds.

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use redrive::checkpoint::{Checkpoint, Memory};
use redrive::operator::OperatorError;
use redrive::{Position, SequenceNumber};

use super::scene::{Handler, Scene, load, position, save, settle, shard};
use support::proxy::{Fault, Proxy};
use support::stream::Sent;

fn millis(time: SystemTime) -> Position {
    let since = time.duration_since(UNIX_EPOCH).expect("after 1970");
    Position::AtTimestamp {
        millis: u64::try_from(since.as_millis()).expect("a time that fits"),
    }
}

/// Creates records whose stated arrival times are a minute apart.
async fn a_minute_apart(count: u32) -> (Scene, Proxy, Vec<Sent>, Vec<SystemTime>) {
    let payloads: Vec<String> = (0..count).map(|number| number.to_string()).collect();
    let payloads: Vec<&str> = payloads.iter().map(String::as_str).collect();
    let (mut scene, sent) = Scene::with(&payloads).await;
    let (proxy, arrivals) = seem_a_minute_apart(&mut scene, &sent).await;
    (scene, proxy, sent, arrivals)
}

/// Makes the arrival times of these records appear a minute apart for every later reader of the scene. The
/// server states whole seconds, and no test should wait for real ones.
async fn seem_a_minute_apart(scene: &mut Scene, sent: &[Sent]) -> (Proxy, Vec<SystemTime>) {
    let minute = Duration::from_secs(60);
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    let began = UNIX_EPOCH + Duration::from_secs(since.as_secs()) - minute * 120;
    let arrivals: Vec<SystemTime> = (0..)
        .map(|number| began + minute * number)
        .take(sent.len())
        .collect();
    let told: HashMap<String, u64> = sent
        .iter()
        .zip(&arrivals)
        .map(|(sent, arrival)| {
            let since = arrival.duration_since(UNIX_EPOCH).expect("after 1970");
            (sent.place.number.to_string(), since.as_secs())
        })
        .collect();
    let proxy = Proxy::start(scene.server.endpoint()).await.expect("a free port");
    proxy.script(move |call| {
        if call.target != "GetRecords" {
            return Fault::None;
        }
        let told = told.clone();
        Fault::Rewrite(Box::new(move |reply| {
            for record in reply["Records"].as_array_mut().expect("a list") {
                let number = record["SequenceNumber"].as_str().expect("a number");
                record["ApproximateArrivalTimestamp"] = told[number].into();
            }
        }))
    });
    scene.client = proxy.client();
    (proxy, arrivals)
}

async fn rewind(scene: &Scene, store: &Memory, to: Position) -> Result<Checkpoint, OperatorError> {
    scene.shards(store).rewind(&shard(), to).await?.carry_out().await
}

#[tokio::test]
async fn records_after_the_rewind_position_are_processed_again() {
    let (scene, _proxy, sent, arrivals) = a_minute_apart(6).await;
    for (to, again) in [
        (sent[3].record().position(), &["4", "5"][..]),
        (millis(arrivals[2]), &["2", "3", "4", "5"]),
        (Position::TrimHorizon, &["0", "1", "2", "3", "4", "5"]),
    ] {
        let store = Memory::new();
        settle(&store, &sent[5]).await;
        let stands = rewind(&scene, &store, to.clone()).await.expect("rewound");
        assert_eq!((stands.position(), load(&store).await), (&to, stands.clone()));
        assert_eq!(scene.consume(&store, again.len()).await, again);
        assert_eq!(position(&store).await, sent[5].record().position());
    }
}

#[tokio::test]
async fn rewind_repeats_records_settled_ahead() {
    let (scene, sent) = Scene::with(&["0", "1", "hang", "3", "4"]).await;
    let store = Memory::new();
    let handler = Handler::default();
    let running = scene.run(&store, &handler);
    handler.has_done(4).await;
    running.stop().await;
    assert!(load(&store).await.ahead().is_some());
    rewind(&scene, &store, sent[0].record().position())
        .await
        .expect("rewound");
    assert_eq!(load(&store).await, Checkpoint::at(sent[0].record().position()));
    assert_eq!(scene.consume(&store, 3).await, ["1", "3", "4"]);
}

#[tokio::test]
async fn rewind_never_passes_an_unsettled_record() {
    let (scene, _proxy, sent, arrivals) = a_minute_apart(6).await;
    let store = Memory::new();
    settle(&store, &sent[2]).await;
    let now = SystemTime::now();
    let tick = Duration::from_millis(1);
    let behind = |sent: &Sent, sub_sequence_number| Position::Record {
        sequence_number: sent.place.number.clone(),
        sub_sequence_number,
    };
    for forward in [
        behind(&sent[3], 0),
        behind(&sent[2], 1),
        millis(arrivals[3] + tick),
        millis(now + Duration::from_secs(3_600)),
        Position::ShardEnd,
    ] {
        let refused = rewind(&scene, &store, forward.clone()).await;
        assert!(
            matches!(refused, Err(OperatorError::Forward { .. })),
            "{forward}: {refused:?}"
        );
    }
    // At the tip, a record that arrives now may not be visible yet.
    settle(&store, &sent[5]).await;
    let refused = rewind(&scene, &store, millis(now)).await;
    assert!(
        matches!(refused, Err(OperatorError::Forward { .. })),
        "{refused:?}"
    );
    assert_eq!(load(&store).await, Checkpoint::at(sent[5].record().position()));

    // A time has no position among the records; the next record after it counts.
    save(&store, Checkpoint::at(millis(arrivals[3]))).await;
    for (to, is_back) in [
        (behind(&sent[3], 0), false),
        (behind(&sent[2], 0), true),
        (millis(arrivals[1]), true),
        (millis(arrivals[3]), true),
        (millis(arrivals[4]), false),
    ] {
        save(&store, Checkpoint::at(millis(arrivals[3]))).await;
        let result = rewind(&scene, &store, to.clone()).await;
        assert_eq!(result.is_ok(), is_back, "{to}: {result:?}");
    }
}

fn one_less(number: &SequenceNumber) -> SequenceNumber {
    let digits = number.as_str();
    let kept = digits.trim_end_matches('0').len() - 1;
    let digit: u32 = digits[kept..=kept].parse().expect("a digit");
    let nines = "9".repeat(digits.len() - kept - 1);
    format!("{}{}{nines}", &digits[..kept], digit - 1)
        .parse()
        .expect("digits")
}

#[tokio::test]
async fn rewind_to_an_unknown_sequence_number_is_refused() {
    let (scene, sent) = Scene::with(&["0", "1"]).await;
    let store = Memory::new();
    settle(&store, &sent[1]).await;
    let other = one_less(&sent[1].place.number);
    let to = Position::Record {
        sequence_number: other.clone(),
        sub_sequence_number: 0,
    };
    match rewind(&scene, &store, to).await {
        Err(OperatorError::NoSuchRecord { sequence_number, .. }) => assert_eq!(sequence_number, other),
        result => panic!("{result:?}"),
    }
    assert_eq!(position(&store).await, sent[1].record().position());
}

#[tokio::test]
async fn rewind_of_a_split_shard_names_its_children() {
    let (scene, _) = Scene::with(&["0", "1"]).await;
    let store = Memory::new();
    let split = scene.client.split_shard().stream_name(crate::scene::STREAM);
    let half = (u128::MAX / 2).to_string();
    let split = split.shard_to_split(shard().as_str()).new_starting_hash_key(half);
    split.send().await.expect("SplitShard");
    save(&store, Checkpoint::at(Position::ShardEnd)).await;
    let shards = scene.shards(&store);
    let rewind = shards.rewind(&shard(), Position::TrimHorizon).await;
    let rewind = rewind.expect("a valid rewind");
    let children = ["shardId-000000000001", "shardId-000000000002"];
    assert_eq!(rewind.children(), children.map(Into::into));
    rewind.carry_out().await.expect("rewound");

    let listed = shards.list().await.expect("the shards are listed");
    let parents: Vec<usize> = listed.iter().map(|status| status.parents.len()).collect();
    assert_eq!(parents, [0, 1, 1]);
    assert!(listed[0].closed && !listed[1].closed);
    let stands = listed[0].checkpoint.as_ref().expect("a readable checkpoint");
    assert_eq!(*stands, Some(Checkpoint::at(Position::TrimHorizon)));
    assert!(matches!(listed[1].checkpoint, Ok(None)));
    assert_eq!(scene.consume(&store, 2).await, ["0", "1"]);
}

#[tokio::test]
async fn rewind_plan_that_became_forward_is_refused() {
    let (scene, sent) = Scene::with(&["0", "1", "2", "3"]).await;
    let store = Memory::new();
    settle(&store, &sent[3]).await;
    let shards = scene.shards(&store);
    let rewind = shards.rewind(&shard(), sent[2].record().position()).await;
    let rewind = rewind.expect("a valid rewind");
    // Another operator has meanwhile rewound further.
    settle(&store, &sent[0]).await;
    let refused = rewind.carry_out().await;
    assert!(
        matches!(refused, Err(OperatorError::Forward { .. })),
        "{refused:?}"
    );
    assert_eq!(position(&store).await, sent[0].record().position());
}

/// Rewinds one shard to a time. That time must not become the starting position of shards without a
/// checkpoint.
#[tokio::test]
async fn rewind_to_a_time_does_not_affect_other_shards() {
    let mut scene = Scene::of(2).await;
    let payloads: Vec<String> = (0..20).map(|number| number.to_string()).collect();
    let payloads: Vec<&str> = payloads.iter().map(String::as_str).collect();
    scene.put(&payloads).await;
    // The records of the rewound shard arrived last.
    let mut sent = scene.read().await;
    sent.sort_by_key(|sent| sent.place.shard == shard());
    let (_proxy, arrivals) = seem_a_minute_apart(&mut scene, &sent).await;
    let first = sent.iter().position(|sent| sent.place.shard == shard());
    let first = first
        .filter(|first| (1..19).contains(first))
        .expect("both shards have records");
    let store = Memory::new();
    settle(&store, &sent[19]).await;
    let to = millis(arrivals[first]);
    rewind(&scene, &store, to).await.expect("rewound");
    assert_eq!(scene.consume(&store, 20).await.len(), 20);
}
