//! Reading: each record is delivered once and in order, whatever happens to the calls.

use std::time::Duration;

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::config::timeout::TimeoutConfig;
use redrive::testing::kinesis::KinesisServer;
use serde_json::json;
use tokio::time::Instant;

use crate::scene::{Scene, records};
use support::proxy::{Call, Fault};
use support::waiting::eventually;

const GET_RECORDS: &str = "GetRecords";
const THROTTLED: &str = "ProvisionedThroughputExceededException";

/// Applies a fault to GetRecords calls only, by their number.
fn on_get_records(fault: impl Fn(usize) -> Fault + Send + 'static) -> impl FnMut(&Call) -> Fault + Send {
    move |call| {
        if call.target == GET_RECORDS {
            fault(call.number)
        } else {
            Fault::None
        }
    }
}

#[tokio::test]
async fn throttled_reads_are_backed_off() {
    let scene = Scene::new(1).await;
    scene.put(records(500, 20, |_| "ok")).await;
    const THROTTLES: usize = 4;
    scene.proxy.script(on_get_records(|number| {
        if (3..3 + THROTTLES).contains(&number) {
            Fault::error(400, THROTTLED)
        } else {
            Fault::None
        }
    }));
    let running = scene.run(scene.consumer().records_per_call(100), scene.resilient());
    scene.settle_all(running).await;

    assert_eq!(scene.ledger.events("ShardEvent::FetchThrottled"), THROTTLES);
    let calls = scene.proxy.calls(GET_RECORDS);
    let mut least = Duration::from_millis(50);
    for pair in calls[2..3 + THROTTLES].windows(2) {
        let waited = pair[1].at - pair[0].at;
        assert!(
            waited >= least,
            "the backoff was {waited:?}, expected at least {least:?}"
        );
        least *= 2;
    }
    assert_eq!(
        scene.proxy.calls("GetShardIterator").len(),
        1,
        "a throttled iterator was replaced"
    );
}

/// Neither reads delivered records again nor skips records that are not delivered.
#[tokio::test]
async fn expired_iterator_resumes_after_the_last_record() {
    let scene = Scene::new(1).await;
    scene.put(records(500, 20, |_| "ok")).await;
    scene.proxy.script(on_get_records(|number| match number {
        1 | 5 | 9 => Fault::error(400, "ExpiredIteratorException"),
        _ => Fault::None,
    }));
    let running = scene.run(scene.consumer().records_per_call(50), scene.resilient());
    let sent = scene.settle_all(running).await;

    assert_eq!(scene.ledger.events("ShardEvent::IteratorExpired"), 3);
    let starts: Vec<(String, String)> = scene
        .proxy
        .calls("GetShardIterator")
        .iter()
        .map(|call| {
            let field = |name: &str| call.body[name].as_str().unwrap_or("").to_owned();
            (field("ShardIteratorType"), field("StartingSequenceNumber"))
        })
        .collect();
    let after = |index: usize| {
        let number = sent[index].place.number.to_string();
        ("AFTER_SEQUENCE_NUMBER".to_owned(), number)
    };
    let beginning = ("TRIM_HORIZON".to_owned(), String::new());
    assert_eq!(
        starts,
        [beginning.clone(), beginning, after(149), after(299)],
        "three pages of 50 before each"
    );
}

#[tokio::test]
async fn iterator_past_its_lifetime_is_replaced() {
    let scene = Scene::on(
        1,
        KinesisServer::builder().iterator_lifetime(Duration::from_secs(1)),
    )
    .await;
    scene.put(records(50, 5, |_| "ok")).await;
    let consumer = scene.consumer().idle_interval(Duration::from_millis(1_500));
    let running = scene.run(consumer, scene.resilient());
    eventually("an iterator expires", || {
        scene.ledger.events("ShardEvent::IteratorExpired") > 0
    })
    .await;
    scene.put(records(50, 5, |_| "ok")).await;
    scene.settle_all(running).await;
}

/// Sets an idle interval far above the time limit of the test, so that following a page late cannot pass.
#[tokio::test]
async fn empty_page_behind_the_tip_is_followed_immediately() {
    let scene = Scene::new(1).await;
    scene.put(records(10, 5, |_| "ok")).await;
    scene.proxy.script(|call| match call.number {
        1..=10 if call.target == GET_RECORDS => {
            let iterator = call.body["ShardIterator"].clone();
            let reply = json!({"Records": [], "NextShardIterator": iterator, "MillisBehindLatest": 5_000});
            Fault::Reply(200, reply)
        }
        _ => Fault::None,
    });
    let running = scene.run(
        scene.consumer().idle_interval(Duration::from_secs(600)),
        scene.resilient(),
    );
    scene.settle_all(running).await;
}

/// Sends each call no sooner than the idle interval after the previous response.
#[tokio::test]
async fn idle_shard_waits_for_the_idle_interval() {
    let scene = Scene::new(1).await;
    let idle = Duration::from_millis(150);
    let running = scene.run(scene.consumer().idle_interval(idle), scene.resilient());
    eventually("the shard is read", || scene.proxy.calls(GET_RECORDS).len() >= 6).await;
    running.stop().await.expect("nothing halted");
    for pair in scene.proxy.calls(GET_RECORDS).windows(2) {
        let apart = pair[1].at - pair[0].at;
        assert!(
            apart >= idle,
            "the calls were {apart:?} apart, expected at least {idle:?}"
        );
    }
}

/// Serves empty pages of a shard that stays behind, which make a reader call as often as it may.
#[tokio::test]
async fn shard_reads_respect_the_call_rate_limit() {
    const CALLS: u32 = 15;
    let scene = Scene::new(1).await;
    scene.proxy.script(|call| match &*call.target {
        GET_RECORDS => {
            let iterator = call.body["ShardIterator"].clone();
            let reply = json!({"Records": [], "NextShardIterator": iterator, "MillisBehindLatest": 5_000});
            Fault::Reply(200, reply)
        }
        _ => Fault::None,
    });
    let start = Instant::now();
    let running = scene.run(scene.consumer().calls_per_second(20.0), scene.resilient());
    eventually("the shard is read", || {
        scene.proxy.calls(GET_RECORDS).len() >= CALLS as usize
    })
    .await;
    running.stop().await.expect("nothing halted");
    let calls = scene.proxy.calls(GET_RECORDS);
    let took = calls[CALLS as usize - 1].at - start;
    let due = Duration::from_millis(50) * (CALLS - 1);
    assert!(
        took >= due,
        "{CALLS} calls took {took:?}, expected at least {due:?}"
    );
}

#[tokio::test]
async fn lost_replies_neither_lose_nor_repeat_records() {
    let scene = Scene::new(2).await;
    scene
        .put(records(600, 30, |number| match number % 50 {
            7 => "fail,ok",
            9 => "bad",
            _ => "ok",
        }))
        .await;
    scene.proxy.script(on_get_records(|number| match number {
        2 | 8 => Fault::LoseReply,
        4 | 10 => Fault::CutReply,
        5 => Fault::Drop,
        6 => Fault::error(500, "InternalFailure"),
        12 => Fault::Rewrite(Box::new(|reply| {
            for record in reply["Records"].as_array_mut().into_iter().flatten() {
                record["SequenceNumber"] = json!("no number");
            }
        })),
        _ => Fault::None,
    }));
    let running = scene.run(scene.consumer().records_per_call(40), scene.resilient());
    scene.settle_all(running).await;
    assert!(scene.ledger.events("ShardEvent::FetchFailed") >= 6);
    assert_eq!(scene.letters.letters().len(), 12);
}

#[tokio::test]
async fn hanging_read_times_out_and_is_retried() {
    let scene = Scene::new(1).await;
    scene.put(records(100, 10, |_| "ok")).await;
    scene.proxy.script(on_get_records(|number| match number {
        1 | 3 => Fault::Hang,
        4 => Fault::Delay(Duration::from_millis(100)),
        _ => Fault::None,
    }));
    let config = scene.proxy.client().config().to_builder().timeout_config(
        TimeoutConfig::builder()
            .operation_attempt_timeout(Duration::from_millis(700))
            .build(),
    );
    let consumer = scene.consumer_of(Client::from_conf(config.build()));
    let running = scene.run(consumer.records_per_call(25), scene.resilient());
    scene.settle_all(running).await;
    assert_eq!(scene.ledger.events("ShardEvent::FetchFailed"), 2);
}

#[tokio::test]
async fn discovery_is_retried_and_reads_all_pages() {
    let scene = Scene::new(4).await;
    scene.put(records(200, 40, |_| "ok")).await;
    let mut rest = Vec::new();
    let listed = scene.client().list_shards().stream_name("orders").send().await;
    for shard in listed.expect("ListShards").shards() {
        rest.push(json!({
            "ShardId": shard.shard_id(),
            "HashKeyRange": {
                "StartingHashKey": shard.hash_key_range().map(|range| range.starting_hash_key()),
                "EndingHashKey": shard.hash_key_range().map(|range| range.ending_hash_key()),
            },
            "SequenceNumberRange": {"StartingSequenceNumber": "1"},
        }));
    }
    let first: Vec<_> = rest.drain(..3).collect();
    scene
        .proxy
        .script(move |call| match (&*call.target, call.number) {
            ("ListShards", 1) => Fault::Drop,
            ("ListShards", 2) => Fault::error(400, "LimitExceededException"),
            // After an expired token the listing restarts from the first page.
            ("ListShards", 4) => Fault::error(400, "ExpiredNextTokenException"),
            ("ListShards", _) if call.body.get("NextToken").is_some() => {
                assert_eq!(
                    call.body,
                    json!({"NextToken": "page-2"}),
                    "the token replaces the stream's name"
                );
                Fault::Reply(200, json!({"Shards": rest}))
            }
            ("ListShards", _) => Fault::Reply(200, json!({"Shards": first, "NextToken": "page-2"})),
            ("GetShardIterator", 1..=3) => Fault::error(500, "InternalFailure"),
            _ => Fault::None,
        });
    let running = scene.start();
    scene.settle_all(running).await;
    assert_eq!(scene.ledger.events("StreamEvent::DiscoveryFailed"), 3);
    assert_eq!(scene.ledger.events("StreamEvent::HashKeysUncovered"), 0);
    assert_eq!(scene.ledger.events("ShardEvent::Started"), 4);
}
