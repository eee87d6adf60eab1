//! Checkpoints whose record is gone: what is lost with it is told, and what is not lost is not.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use redrive::checkpoint::{Checkpoint, CheckpointStore, ShardKey};
use redrive::observer::{Event, Observer};
use redrive::{
    ConsumerError, DataLoss, DataLossPolicy, Position, Retrieval, SequenceNumber, StartingPosition,
};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::scene::{STREAM, Scene, records};
use support::proxy::Fault;
use support::stream::Sent;
use support::waiting::eventually;

const HOUR: Duration = Duration::from_secs(60 * 60);

impl Scene {
    /// Stores that everything up to this record is settled, of the one shard there is.
    async fn begin_behind(&self, last: &Sent, read_until: Option<SystemTime>) {
        let checkpoint = Checkpoint::at(last.record().position());
        let checkpoint = match read_until {
            Some(time) => {
                let described = self.client().describe_stream_summary().stream_name(STREAM);
                let described = described.send().await.expect("described");
                let stream = described.stream_description_summary.expect("a stream");
                let created = stream.stream_creation_timestamp.try_into().expect("a time");
                checkpoint.with_read_until(time).with_stream_created(created)
            }
            None => checkpoint,
        };
        let key = ShardKey::new("billing", STREAM, last.place.shard.clone());
        self.store
            .save(&[(key, checkpoint)])
            .await
            .remove(0)
            .expect("saved");
    }

    /// Kinesis takes this number for none of the shard.
    fn refuse(&self, number: &SequenceNumber) {
        let number = number.to_string();
        let unknown = json!({
            "__type": "InvalidArgumentException",
            "message": "StartingSequenceNumber is invalid because it did not come from this stream",
        });
        self.proxy.script(move |call| {
            let asked = match call.target.as_str() {
                "GetShardIterator" => &call.body["StartingSequenceNumber"],
                "SubscribeToShard" => &call.body["StartingPosition"]["SequenceNumber"],
                _ => return Fault::None,
            };
            match asked.as_str() == Some(&number) {
                true => Fault::Reply(400, unknown.clone()),
                false => Fault::None,
            }
        });
    }

    /// Kinesis has dropped what is older than this record: no reply holds it.
    fn trim_before(&self, oldest: &Sent) {
        let oldest = oldest.place.number.clone();
        self.proxy.script(move |call| {
            if call.target != "GetRecords" {
                return Fault::None;
            }
            let oldest = oldest.clone();
            Fault::Rewrite(Box::new(move |reply: &mut Value| {
                let Some(records) = reply["Records"].as_array_mut() else {
                    return;
                };
                records.retain(|record| {
                    let number = record["SequenceNumber"].as_str().expect("a number");
                    number
                        .parse()
                        .is_ok_and(|number: redrive::SequenceNumber| number >= oldest)
                });
            }))
        });
    }
}

/// What was told: from, to, certain.
#[derive(Default)]
struct Losses(Mutex<Vec<(Option<SystemTime>, SystemTime, bool)>>);

impl Observer for Losses {
    fn on(&self, event: &Event<'_>) {
        if let Event::DataLoss {
            from, to, certain, ..
        } = event
        {
            self.0.lock().expect("no panic").push((*from, *to, *certain));
        }
    }
}

/// A stream of 100 records, of which the first 60 are dropped, and the first 20 were settled.
async fn trimmed(read_until: Option<SystemTime>) -> (Scene, Vec<Sent>) {
    let scene = Scene::new(1).await;
    scene.put(records(100, 10, |_| "ok")).await;
    let sent = scene.read().await;
    scene.begin_behind(&sent[19], read_until).await;
    scene.trim_before(&sent[60]);
    (scene, sent)
}

#[tokio::test]
async fn a_checkpoint_whose_record_is_gone_is_a_loss_unless_all_was_read() {
    let now = SystemTime::now();
    // Retention is a day.
    for (read_until, loss) in [
        (None, Some(None)),
        (Some(now - 30 * HOUR), Some(Some(now - 30 * HOUR))),
        (Some(now - 20 * HOUR), None),
    ] {
        let (scene, sent) = trimmed(read_until).await;
        let losses = Arc::new(Losses::default());
        let running = scene.run(scene.consumer(), scene.resilient().observer(losses.clone()));
        scene.ledger.settled(40).await;
        running.stop().await.expect("nothing halted");
        let told = losses.0.lock().expect("no panic").clone();
        let expected = loss.is_some();
        assert_eq!(told.len(), usize::from(expected), "{read_until:?}: {told:?}");
        for (from, to, certain) in told {
            // In whole milliseconds.
            let same = |a: SystemTime, b: SystemTime| {
                a <= b && b.duration_since(a).is_ok_and(|it| it.as_millis() < 1)
            };
            assert!(match (from, loss.flatten()) {
                (Some(from), Some(loss)) => same(from, loss),
                (from, loss) => from == loss,
            });
            assert!(to >= now - 24 * HOUR && to <= now);
            assert!(!certain);
        }
        let left = &sent[60..];
        assert_eq!(scene.ledger.book().settled.len(), left.len());
    }
}

/// KCL's users have learned of it when they missed the records.
#[tokio::test]
async fn whoever_wants_it_halts_at_a_loss() {
    let (scene, _) = trimmed(None).await;
    let asked: Arc<Mutex<Vec<DataLoss>>> = Arc::default();
    let asks = asked.clone();
    let consumer = scene.consumer().on_data_loss(move |loss| {
        asks.lock().expect("no panic").push(loss.clone());
        DataLossPolicy::Halt
    });
    let running = scene.run(consumer, scene.resilient());
    eventually("it halts", || scene.ledger.events("ShardHalted") == 1).await;
    match running.stop().await {
        Err(ConsumerError::DataLoss(loss)) => assert_eq!([*loss], asked.lock().expect("no panic")[..]),
        other => panic!("{other:?}"),
    }
    assert_eq!(scene.ledger.book().settled.len(), 0);
}

/// A record that was not settled is known by its number, however lately the shard was read.
#[tokio::test]
async fn a_record_that_was_not_settled_is_missed_by_its_number() {
    for (oldest, loss) in [(30, None), (31, Some(true)), (60, Some(true))] {
        let scene = Scene::new(1).await;
        // One holds up the watermark, and those behind it do not wait.
        let steps = |number: usize| if number == 30 { "hang" } else { "ok" };
        scene.put(records(100, 100, steps)).await;
        let sent = scene.read().await;
        let run = |losses: &Arc<Losses>| {
            let consumer = scene.consumer().shutdown_timeout(Duration::from_millis(200));
            scene.run(consumer, scene.resilient().observer(losses.clone()))
        };
        let losses = Arc::new(Losses::default());
        let running = run(&losses);
        scene.ledger.settled(99).await;
        running.stop().await.expect("nothing halted");
        scene.trim_before(&sent[oldest]);
        // What is lost is lost once.
        for _ in 0..2 {
            let running = run(&losses);
            let before = scene.ledger.events("Fetched");
            eventually("it is read", || scene.ledger.events("Fetched") > before + 1).await;
            running.stop().await.expect("nothing halted");
        }
        let told = losses.0.lock().expect("no panic").clone();
        assert_eq!(told.len(), usize::from(loss.is_some()), "{oldest}: {told:?}");
        assert_eq!(told.first().map(|loss| loss.2), loss, "{oldest}");
    }
}

/// A number that Kinesis does not take: of a stream that had this name before.
#[tokio::test]
async fn a_place_that_kinesis_does_not_know_is_left_for_the_oldest_record() {
    for retrieval in [Retrieval::Polling, Retrieval::fan_out()] {
        let scene = Scene::new(1).await;
        scene.put(records(50, 5, |_| "ok")).await;
        let sent = scene.read().await;
        scene.begin_behind(&sent[19], None).await;
        let unknown = json!({
            "__type": "InvalidArgumentException",
            "message": "StartingSequenceNumber is invalid because it did not come from this stream",
        });
        scene.proxy.script(move |call| {
            let from = match call.target.as_str() {
                "GetShardIterator" => &call.body["ShardIteratorType"],
                "SubscribeToShard" => &call.body["StartingPosition"]["Type"],
                _ => return Fault::None,
            };
            match from.as_str() {
                Some("AT_SEQUENCE_NUMBER") => Fault::Reply(400, unknown.clone()),
                _ => Fault::None,
            }
        });
        let losses = Arc::new(Losses::default());
        let consumer = scene.consumer().retrieval(retrieval);
        let running = scene.run(consumer, scene.resilient().observer(losses.clone()));
        scene.ledger.settled(30).await;
        running.stop().await.expect("nothing halted");
        // Its record was there all the same: nothing is lost, and nothing comes twice.
        assert_eq!(losses.0.lock().expect("no panic").len(), 0);
        assert_eq!(scene.ledger.book().settled.len(), 30);
    }
}

/// A number that is none of the shard's, of a stream that was deleted for example: everything is read, and the loss of what
/// the other stream held is reported.
#[tokio::test]
async fn a_position_of_another_stream_is_reported_and_all_is_read() {
    for (retrieval, halts) in [
        (Retrieval::Polling, false),
        (Retrieval::fan_out(), false),
        (Retrieval::Polling, true),
    ] {
        let scene = Scene::new(1).await;
        scene.put(records(50, 5, |_| "ok")).await;
        let sent = scene.read().await;
        // Higher than any number of this stream.
        let other: SequenceNumber = format!("{}0", sent[49].place.number).parse().expect("a number");
        let position = Position::Record {
            sequence_number: other.clone(),
            sub_sequence_number: 0,
        };
        let key = ShardKey::new("billing", STREAM, sent[0].place.shard.clone());
        let saved = scene
            .store
            .save(&[(key, Checkpoint::at(position))])
            .await
            .remove(0);
        saved.expect("saved");
        scene.refuse(&other);
        let decision = if halts {
            DataLossPolicy::Halt
        } else {
            DataLossPolicy::Resume
        };
        let consumer = scene
            .consumer()
            .retrieval(retrieval)
            .on_data_loss(move |_| decision);
        let running = scene.run(consumer, scene.resilient());
        if halts {
            eventually("it halts", || scene.ledger.events("ShardHalted") == 1).await;
            let ended = running.stop().await;
            assert!(matches!(ended, Err(ConsumerError::DataLoss(_))), "{ended:?}");
            assert_eq!(scene.ledger.book().settled.len(), 0);
        } else {
            scene.ledger.settled(50).await;
            running.stop().await.expect("nothing halted");
        }
        assert_eq!(scene.ledger.events("PositionRefused"), 1);
        assert_eq!(scene.ledger.events("DataLoss"), 1);
    }
}

/// The application has started long ago, and was down while its shard was split and trimmed: what its children hold is no
/// start.
#[tokio::test]
async fn children_of_a_shard_that_was_trimmed_while_it_was_down_are_read_from_their_beginning() {
    for (is_ended, losses) in [(true, 0), (false, 1)] {
        let scene = Scene::new(2).await;
        scene.put(records(30, 6, |_| "ok")).await;
        let checkpoint = match is_ended {
            true => Checkpoint::at(Position::ShardEnd),
            false => Checkpoint::at(Position::Record {
                sequence_number: 7.into(),
                sub_sequence_number: 0,
            }),
        };
        let parent = ShardKey::new("billing", STREAM, "shardId-000000000077".into());
        let saved = scene.store.save(&[(parent, checkpoint)]).await.remove(0);
        saved.expect("saved");
        for _ in 0..2 {
            let consumer = scene.consumer().starting_position(StartingPosition::Latest);
            let running = scene.run(consumer, scene.resilient());
            scene.ledger.settled(30).await;
            running.stop().await.expect("nothing halted");
        }
        assert_eq!(scene.ledger.events("DataLoss"), losses, "once, over all starts");
    }
}

/// A shard whose position is a time, as it was quiet: the time tells whether records may have been dropped since.
#[tokio::test]
async fn a_quiet_shard_is_missed_by_the_time_until_which_it_was_read() {
    for (hours, losses) in [(20, 0), (30, 1)] {
        let scene = Scene::new(1).await;
        scene.put(records(10, 5, |_| "ok")).await;
        let sent = scene.read().await;
        let read_until = SystemTime::now() - hours * HOUR;
        let millis = read_until
            .duration_since(SystemTime::UNIX_EPOCH)
            .expect("after 1970");
        let position = Position::AtTimestamp {
            millis: millis.as_millis() as u64,
        };
        let key = ShardKey::new("billing", STREAM, sent[0].place.shard.clone());
        let checkpoint = Checkpoint::at(position).with_read_until(read_until);
        let saved = scene.store.save(&[(key, checkpoint)]).await.remove(0);
        saved.expect("saved");
        let running = scene.start();
        scene.ledger.settled(10).await;
        running.stop().await.expect("nothing halted");
        assert_eq!(scene.ledger.events("DataLoss"), losses, "{hours} hours");
    }
}

/// A running shard that was held up for longer than the retention: what was trimmed behind its last record is reported.
#[tokio::test]
async fn a_shard_that_was_held_up_for_too_long_reports_what_was_trimmed() {
    for (hours, losses) in [(20, 0), (30, 1)] {
        let scene = Scene::new(1).await;
        scene.put(records(100, 10, |_| "ok")).await;
        let sent = scene.read().await;
        let (last_read, oldest) = (sent[19].place.number.clone(), sent[60].place.number.clone());
        let arrival = SystemTime::now() - hours * HOUR;
        let arrival = arrival
            .duration_since(SystemTime::UNIX_EPOCH)
            .expect("after 1970")
            .as_secs_f64();
        scene.proxy.script(move |call| {
            if call.target != "GetRecords" {
                return Fault::None;
            }
            let (last_read, oldest) = (last_read.clone(), oldest.clone());
            match call.number {
                // Twenty records, long ago.
                1 => Fault::Rewrite(Box::new(move |reply: &mut Value| {
                    reply["MillisBehindLatest"] = json!(hours * 3_600_000);
                    keep(reply, |number| number <= last_read);
                    for record in reply["Records"].as_array_mut().expect("records") {
                        record["ApproximateArrivalTimestamp"] = json!(arrival);
                    }
                })),
                2 => Fault::error(400, "ExpiredIteratorException"),
                _ => Fault::Rewrite(Box::new(move |reply: &mut Value| {
                    keep(reply, |number| number >= oldest)
                })),
            }
        });
        let running = scene.start();
        scene.ledger.settled(60).await;
        running.stop().await.expect("nothing halted");
        assert_eq!(scene.ledger.events("DataLoss"), losses, "{hours} hours");
        assert_eq!(scene.ledger.book().settled.len(), 60);
    }
}

/// The same, of a shard whose iterator is still valid, while Kinesis does not state the retention. It may be the shortest one, so
/// that one loss is reported, and not another with each page.
#[tokio::test]
async fn a_lag_of_a_day_is_reported_once_while_the_retention_is_not_known() {
    let losses = tokio::join!(
        losses_of_a_lag(20, |_| false),
        losses_of_a_lag(30, |_| true),
        losses_of_a_lag(30, |_| false),
        // It was a week when the consumer started, and may have been lowered.
        losses_of_a_lag(30, |call| call == 1),
    );
    assert_eq!(losses, (0, 0, 1, 1));
}

/// Reads records that arrived so many hours ago, page by page, of a stream that keeps them for a week. Its retention is
/// stated by some calls only.
async fn losses_of_a_lag(hours: u32, states: impl Fn(usize) -> bool + Send + Sync + 'static) -> usize {
    let scene = Scene::new(1).await;
    let arrival = SystemTime::now() - hours * HOUR;
    let arrival = arrival
        .duration_since(SystemTime::UNIX_EPOCH)
        .expect("after 1970")
        .as_secs_f64();
    scene.proxy.script(move |call| match &*call.target {
        "GetRecords" => Fault::Rewrite(Box::new(move |reply: &mut Value| {
            reply["MillisBehindLatest"] = json!(hours * 3_600_000);
            for record in reply["Records"].as_array_mut().expect("records") {
                record["ApproximateArrivalTimestamp"] = json!(arrival);
            }
        })),
        "DescribeStreamSummary" if states(call.number) => Fault::Rewrite(Box::new(|reply: &mut Value| {
            reply["StreamDescriptionSummary"]["RetentionPeriodHours"] = json!(168);
        })),
        "DescribeStreamSummary" => Fault::error(400, "AccessDeniedException"),
        _ => Fault::None,
    });
    let running = scene.run(scene.consumer().records_per_call(10), scene.resilient());
    // An answer is used for five seconds.
    sleep(Duration::from_secs(6)).await;
    scene.put(records(60, 10, |_| "ok")).await;
    scene.ledger.settled(60).await;
    running.stop().await.expect("nothing halted");
    scene.ledger.events("DataLoss")
}

/// Leaves the records of these numbers in a GetRecords reply.
fn keep(reply: &mut Value, wanted: impl Fn(SequenceNumber) -> bool) {
    if let Some(records) = reply["Records"].as_array_mut() {
        records.retain(|record| {
            let number = record["SequenceNumber"].as_str().expect("a number");
            number.parse().is_ok_and(&wanted)
        });
    }
}

/// What a restart needs to know is kept up while nothing comes.
#[tokio::test]
async fn a_shard_that_is_read_at_its_tip_says_so_beside_its_checkpoint() {
    let start = SystemTime::now();
    let scene = Scene::new(1).await;
    scene.put(records(10, 5, |_| "ok")).await;
    let running = scene.start();
    let sent = scene.read().await;
    let until = || {
        let saved = scene.ledger.book().last_saved();
        let (_, checkpoint) = saved.into_iter().next()?;
        let is_last = checkpoint.position().covers(&sent[9].record());
        checkpoint.read_until().filter(|_| is_last)
    };
    eventually("it is stored", || until().is_some()).await;
    running.stop().await.expect("nothing halted");
    let until = until().expect("stored");
    // Clocks may differ by a minute.
    assert!(
        until >= start - Duration::from_secs(61) && until <= SystemTime::now(),
        "{until:?}"
    );
    assert_eq!(scene.ledger.events("DataLoss"), 0);
    assert!(matches!(
        scene
            .ledger
            .book()
            .last_saved()
            .values()
            .next()
            .map(Checkpoint::position),
        Some(Position::Record { .. })
    ));
}
