//! Checkpoints whose record is gone. A loss is reported, and no loss is reported where nothing was lost.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use redrive::checkpoint::{Checkpoint, CheckpointStore, ShardKey};
use redrive::consumer::DataLoss;
use redrive::observer::{Event, Observer, ShardEvent};
use redrive::{
    ConsumerError, Position, SequenceNumber, StartingPosition,
    consumer::{DataLossPolicy, Retrieval},
};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::scene::{STREAM, Scene, records};
use support::proxy::Fault;
use support::stream::Sent;
use support::waiting::eventually;

const HOUR: Duration = Duration::from_secs(60 * 60);

impl Scene {
    /// Stores a checkpoint after this record, in its shard.
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

    /// Makes Kinesis refuse this sequence number as one that is not from this stream.
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

    /// Makes Kinesis drop all records older than this one: no response contains them.
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

/// The reported losses, each as `from`, `to` and `certain`.
#[derive(Default)]
struct Losses(Mutex<Vec<(Option<SystemTime>, SystemTime, bool)>>);

impl Observer for Losses {
    fn on(&self, event: &Event<'_>) {
        if let Event::Shard {
            event: ShardEvent::DataLoss {
                from, to, certain, ..
            },
            ..
        } = event
        {
            self.0.lock().expect("no panic").push((*from, *to, *certain));
        }
    }
}

/// Creates a stream of 100 records, of which the first 60 are dropped and the first 20 were settled.
async fn trimmed(read_until: Option<SystemTime>) -> (Scene, Vec<Sent>) {
    let scene = Scene::new(1).await;
    scene.put(records(100, 10, |_| "ok")).await;
    let sent = scene.read().await;
    scene.begin_behind(&sent[19], read_until).await;
    scene.trim_before(&sent[60]);
    (scene, sent)
}

#[tokio::test]
async fn trimmed_checkpoint_is_a_loss_unless_all_was_read() {
    let now = SystemTime::now();
    // The retention is one day.
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
            // Times are stored in whole milliseconds.
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

/// Halts the shard. KCL does not report such a loss.
#[tokio::test]
async fn halt_policy_halts_the_shard_at_a_data_loss() {
    let (scene, _) = trimmed(None).await;
    let asked: Arc<Mutex<Vec<DataLoss>>> = Arc::default();
    let asks = asked.clone();
    let consumer = scene.consumer().on_data_loss(move |loss| {
        asks.lock().expect("no panic").push(loss.clone());
        DataLossPolicy::Halt
    });
    let running = scene.run(consumer, scene.resilient());
    eventually("the shard halts", || {
        scene.ledger.events("ShardEvent::Halted") == 1
    })
    .await;
    match running.stop().await {
        Err(ConsumerError::DataLoss(loss)) => assert_eq!([*loss], asked.lock().expect("no panic")[..]),
        other => panic!("{other:?}"),
    }
    assert_eq!(scene.ledger.book().settled.len(), 0);
}

/// Detects a trimmed record by its sequence number, however recently the shard was read.
#[tokio::test]
async fn trimmed_unsettled_record_is_detected_by_its_number() {
    for (oldest, loss) in [(30, None), (31, Some(true)), (60, Some(true))] {
        let scene = Scene::new(1).await;
        // One record blocks the watermark, and the records after it do not wait.
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
        // Each loss is reported only once.
        for _ in 0..2 {
            let running = run(&losses);
            let before = scene.ledger.events("ShardEvent::Fetched");
            eventually("the shard is read", || {
                scene.ledger.events("ShardEvent::Fetched") > before + 1
            })
            .await;
            running.stop().await.expect("nothing halted");
        }
        let told = losses.0.lock().expect("no panic").clone();
        assert_eq!(told.len(), usize::from(loss.is_some()), "{oldest}: {told:?}");
        assert_eq!(told.first().map(|loss| loss.2), loss, "{oldest}");
    }
}

/// Refuses every start at a sequence number, as Kinesis does for a position of an earlier stream of this
/// name.
#[tokio::test]
async fn refused_position_falls_back_to_the_oldest_record() {
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
        // The record of the checkpoint is still there, so nothing is lost and nothing is repeated.
        assert_eq!(losses.0.lock().expect("no panic").len(), 0);
        assert_eq!(scene.ledger.book().settled.len(), 30);
    }
}

/// Starts from a sequence number that the shard does not have, for example of a deleted stream. All records
/// are read, and the loss of the other stream's records is reported.
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
        // This number is higher than any number of this stream.
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
            eventually("the shard halts", || {
                scene.ledger.events("ShardEvent::Halted") == 1
            })
            .await;
            let ended = running.stop().await;
            assert!(matches!(ended, Err(ConsumerError::DataLoss(_))), "{ended:?}");
            assert_eq!(scene.ledger.book().settled.len(), 0);
        } else {
            scene.ledger.settled(50).await;
            running.stop().await.expect("nothing halted");
        }
        assert_eq!(scene.ledger.events("ShardEvent::PositionRefused"), 1);
        assert_eq!(scene.ledger.events("ShardEvent::DataLoss"), 1);
    }
}

/// Restarts an application that was down while its shard was split and trimmed. The starting position does
/// not apply to the children.
#[tokio::test]
async fn children_of_a_trimmed_shard_are_read_from_the_beginning() {
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
        assert_eq!(
            scene.ledger.events("ShardEvent::DataLoss"),
            losses,
            "one report over all starts"
        );
    }
}

/// Checks a quiet shard, whose position is a time. That time shows whether records may have been dropped
/// since.
#[tokio::test]
async fn quiet_shard_detects_loss_by_its_read_until_time() {
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
        assert_eq!(
            scene.ledger.events("ShardEvent::DataLoss"),
            losses,
            "{hours} hours"
        );
    }
}

/// Delays a running shard by less and by more than the retention of a day. If it was more, the records
/// trimmed after its last record are reported.
#[tokio::test]
async fn delayed_shard_reports_records_trimmed_meanwhile() {
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
                // The first page holds twenty old records.
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
        assert_eq!(
            scene.ledger.events("ShardEvent::DataLoss"),
            losses,
            "{hours} hours"
        );
        assert_eq!(scene.ledger.book().settled.len(), 60);
    }
}

/// Delays a shard whose iterator is still valid, while Kinesis does not state the retention. The retention
/// may be the shortest possible, so one loss is reported, and no further loss with each page.
#[tokio::test]
async fn day_of_lag_is_reported_once_if_retention_is_unknown() {
    let denied = || Fault::error(400, "AccessDeniedException");
    let empty = || Fault::Reply(200, json!({}));
    let losses = tokio::join!(
        losses_of_a_lag(20, |_| false, denied),
        losses_of_a_lag(30, |_| true, denied),
        losses_of_a_lag(30, |_| false, denied),
        // The retention was a week when the consumer started, and may have been lowered.
        losses_of_a_lag(30, |call| call == 1, denied),
        losses_of_a_lag(30, |call| call == 1, empty),
    );
    assert_eq!(losses, (0, 0, 1, 1, 1));
}

/// Reads records that arrived `hours` ago, page by page, from a stream with a retention of a week. Only the
/// calls that `states` selects state the retention, the others get another answer. Returns the number of
/// reported losses.
async fn losses_of_a_lag(
    hours: u32,
    states: impl Fn(usize) -> bool + Send + Sync + 'static,
    other: fn() -> Fault,
) -> usize {
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
        "DescribeStreamSummary" => other(),
        _ => Fault::None,
    });
    let running = scene.run(scene.consumer().records_per_call(10), scene.resilient());
    // The consumer reuses an answer for five seconds.
    sleep(Duration::from_secs(6)).await;
    scene.put(records(60, 10, |_| "ok")).await;
    scene.ledger.settled(60).await;
    running.stop().await.expect("nothing halted");
    scene.ledger.events("ShardEvent::DataLoss")
}

/// Keeps only the wanted records in a GetRecords response.
fn keep(reply: &mut Value, wanted: impl Fn(SequenceNumber) -> bool) {
    if let Some(records) = reply["Records"].as_array_mut() {
        records.retain(|record| {
            let number = record["SequenceNumber"].as_str().expect("a number");
            number.parse().is_ok_and(&wanted)
        });
    }
}

/// Keeps the information for a restart current while no records arrive.
#[tokio::test]
async fn idle_shard_stores_the_time_until_which_it_was_read() {
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
    eventually("the time is stored", || until().is_some()).await;
    running.stop().await.expect("nothing halted");
    let until = until().expect("stored");
    // Clocks may differ by a minute.
    assert!(
        until >= start - Duration::from_secs(61) && until <= SystemTime::now(),
        "{until:?}"
    );
    assert_eq!(scene.ledger.events("ShardEvent::DataLoss"), 0);
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
