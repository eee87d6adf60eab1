//! Metrics in the log: lines in CloudWatch's embedded metric format, with correct sums.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures_util::stream;
use redrive::lambda::{Event as Invocation, Function};
use redrive::pipeline::{Batch, Pipeline};
use redrive::telemetry::{Emf, Metric, Unit};
use redrive::testing::Script;
use redrive::testing::kinesis::{self, KinesisServer};
use redrive::{Consumer, Jitter, Record, Resilient, RetryPolicy, checkpoint, dead_letter};
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// A log in memory.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no panic while locked").extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().expect("no panic while locked").clone()).expect("text")
    }

    /// Returns the lines of the log, after asserting that each follows the format.
    fn lines(&self) -> Vec<Value> {
        let text = self.text();
        assert!(text.is_empty() || text.ends_with('\n'));
        let lines: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).expect("a line is JSON"))
            .collect();
        lines.iter().for_each(check);
        lines
    }

    fn sum(&self, metric: &str) -> u64 {
        let lines = self.lines();
        lines.iter().filter_map(|line| line[metric].as_u64()).sum()
    }
}

/// Asserts that a line follows the specification.
fn check(line: &Value) {
    let members = line.as_object().expect("an object");
    let aws = &line["_aws"];
    let timestamp = aws["Timestamp"].as_u64().expect("milliseconds");
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .expect("a clock")
        .as_millis() as u64;
    assert!(timestamp <= now && now - timestamp < 600_000);
    let directives = aws["CloudWatchMetrics"].as_array().expect("a list");
    assert!(!directives.is_empty());
    for directive in directives {
        let namespace = directive["Namespace"].as_str().expect("a namespace");
        assert!((1..=256).contains(&namespace.len()));
        let mut known = vec!["_aws"];
        for dimensions in directive["Dimensions"].as_array().expect("a list") {
            let dimensions = dimensions.as_array().expect("a list");
            assert!((1..=30).contains(&dimensions.len()));
            for dimension in dimensions {
                let dimension = dimension.as_str().expect("a name");
                let value = line[dimension].as_str().expect("a dimension's value is text");
                assert!((1..=1024).contains(&value.len()));
                known.push(dimension);
            }
        }
        let metrics = directive["Metrics"].as_array().expect("a list");
        assert!((1..=100).contains(&metrics.len()));
        for metric in metrics {
            let name = metric["Name"].as_str().expect("a name");
            assert!(["Count", "Bytes", "Milliseconds"].contains(&metric["Unit"].as_str().expect("a unit")));
            match &line[name] {
                Value::Number(_) => {}
                Value::Array(values) => {
                    assert!((1..=100).contains(&values.len()));
                    assert!(values.iter().all(Value::is_number));
                }
                other => panic!("{name} is {other}"),
            }
            known.push(name);
        }
        let unknown: Vec<&String> = members
            .keys()
            .filter(|member| !known.contains(&member.as_str()))
            .collect();
        assert_eq!(unknown, Vec::<&String>::new());
    }
}

fn resilient(log: &Log) -> Resilient<Script> {
    let policy = RetryPolicy::constant(Duration::from_millis(10)).jitter(Jitter::None);
    Resilient::builder("billing", Script::default())
        .retry(policy.max_attempts(3))
        .dead_letters(dead_letter::Memory::new())
        .observer(Emf::new().writer(log.clone()))
        .build()
        .expect("valid")
}

/// Refuses an observer that two applications share: its metrics would be those of one of them.
#[test]
fn observer_of_another_application_is_refused() {
    let emf = Arc::new(Emf::new().writer(Log::default()));
    let build = |application: &str| {
        Resilient::builder(application, Script::default())
            .dead_letters(dead_letter::Memory::new())
            .observer(emf.clone())
            .build()
    };
    for _ in 0..2 {
        assert!(build("billing").is_ok());
    }
    let error = build("shipping").expect_err("another application");
    assert_eq!(error.setting(), "observer");
    assert!(error.to_string().contains("billing"), "{error}");
}

fn record_of_age(number: u64, age: Duration, script: &str) -> Record {
    Record::builder("orders", "shardId-0".into(), number.into())
        .partition_key(format!("key-{number}"))
        .payload(script.to_owned())
        .arrival(SystemTime::now() - age)
        .build()
}

fn event(scripts: &[&str]) -> Invocation {
    let items = scripts.iter().enumerate().map(|(number, script)| {
        json!({
            "kinesis": {
                "partitionKey": format!("key-{number}"),
                "sequenceNumber": (1_000 + number).to_string(),
                "data": BASE64.encode(script),
                "approximateArrivalTimestamp": 1_545_084_650.987,
            },
            "eventID": format!("shardId-000000000006:{}", 1_000 + number),
            "eventSourceARN": "arn:aws:kinesis:us-east-2:123456789012:stream/orders",
        })
    });
    let event = json!({ "Records": items.collect::<Vec<_>>() }).to_string();
    Invocation::from_slice(event.as_bytes()).expect("an event")
}

#[tokio::test(start_paused = true)]
async fn invocation_writes_its_metrics_before_it_answers() {
    let log = Log::default();
    let function = Function::new(resilient(&log)).partial_responses(true);
    let scripts = ["ok", "bad", "fail,ok", "own", "ok"];
    let deadline = Instant::now() + Duration::from_secs(30);
    let answer = function.settle(event(&scripts), deadline).await;
    assert_eq!(answer.expect("an answer").first_unsettled(), None);
    let lines = log.lines();
    let [line] = &lines[..] else {
        panic!("{lines:?}");
    };
    let expected = json!({
        "RecordsProcessed": 3,
        "RecordsDeadLettered": 2,
        "AttemptsFailed": 5,
        "AttemptsFailedPermanently": 1,
        "Retries": 3,
        "Application": "billing",
        "Stream": "orders",
    });
    for (name, value) in expected.as_object().expect("an object") {
        assert_eq!(&line[name], value, "{name}");
    }
    assert_eq!(line["EndToEndLatency"].as_array().map(Vec::len), Some(5));
    assert_eq!(line["_aws"]["CloudWatchMetrics"][0]["Namespace"], "redrive");

    // The next invocation starts from zero. It also reports that nothing failed, so that a rate can be
    // computed.
    let settled = function.settle(event(&["ok"]), deadline).await;
    settled.expect("an answer");
    let lines = log.lines();
    assert_eq!(lines.len(), 2);
    assert_eq!(
        (&lines[1]["RecordsProcessed"], &lines[1]["AttemptsFailed"]),
        (&json!(1), &json!(0))
    );

    // The third invocation has an unsettled record.
    let hangs = function
        .settle(event(&["hang"]), Instant::now() + Duration::from_secs(5))
        .await;
    assert!(hangs.expect("an answer").first_unsettled().is_some());
    assert_eq!(log.lines()[2]["RecordsUnsettled"], json!(1));
    // An empty invocation writes no line.
    let none = function.settle(event(&[]), deadline).await;
    none.expect("an answer");
    assert_eq!(log.lines().len(), 3);
}

/// Reports the breaker in every invocation while it is open, because that is a state. An event at its opening
/// alone would not show how long it lasts.
#[tokio::test(start_paused = true)]
async fn open_breaker_is_reported_by_every_invocation() {
    let log = Log::default();
    let function = Function::new(resilient(&log)).partial_responses(true);
    let open = |log: &Log| {
        let lines = log.lines().into_iter();
        let told = lines.filter_map(|line| line.get("BreakersOpen").cloned());
        told.collect::<Vec<_>>()
    };
    let in_a_second = || Instant::now() + Duration::from_secs(1);
    let down = ["fail"; 8];
    for _ in 0..2 {
        let answer = function.settle(event(&down), in_a_second()).await;
        assert!(answer.expect("an answer").first_unsettled().is_some());
    }
    assert_eq!(open(&log), [json!([1.0]), json!([1.0])]);
    // The dependency is back, as a few probes show.
    let deadline = Instant::now() + Duration::from_secs(600);
    for _ in 0..2 {
        let answer = function.settle(event(&["ok"; 8]), deadline).await;
        assert_eq!(answer.expect("an answer").first_unsettled(), None);
    }
    assert_eq!(open(&log)[2..], [json!([0.0])]);
}

#[tokio::test(start_paused = true)]
async fn many_latencies_are_sampled_and_keep_the_highest() {
    let log = Log::default();
    let emf = Arc::new(Emf::new().writer(log.clone()));
    let resilient = Resilient::builder("billing", Script::default())
        .dead_letters(dead_letter::Memory::new())
        .observer(emf.clone())
        .build()
        .expect("valid");
    let late = |number: u64| record_of_age(number, Duration::from_secs(number), "ok");
    let mut records: Vec<Record> = (1..5_000).map(late).collect();
    records.swap(10, 4_000);
    records.insert(200, late(9_999));
    let count = records.len() as u64;
    let batches = stream::iter([Batch::from(records)]);
    let finished = Pipeline::default().run(&resilient, batches).await;
    assert!(finished.expect("no halt").complete);
    redrive::observer::Observer::flush(&emf);
    let lines = log.lines();
    assert_eq!(log.sum("RecordsProcessed"), count);
    let latencies: Vec<f64> = lines[0]["EndToEndLatency"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|value| value.as_f64().expect("a number"))
        .collect();
    assert_eq!(latencies.len(), 100);
    let highest = latencies.iter().copied().fold(0.0, f64::max);
    assert!((9_999_000.0..9_999_900.0).contains(&highest), "{highest}");
    let mean = latencies.iter().sum::<f64>() / 100.0;
    assert!(
        (1_500_000.0..3_500_000.0).contains(&mean),
        "of 0 to 5,000 s: {mean}"
    );
}

#[tokio::test(start_paused = true)]
async fn unwritable_log_stops_no_processing() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::Error::other("full"))
        }

        fn flush(&mut self) -> io::Result<()> {
            Err(io::Error::other("full"))
        }
    }
    let emf = Arc::new(Emf::new().writer(Full).interval(Duration::ZERO));
    let resilient = Resilient::builder("billing", Script::default())
        .dead_letters(dead_letter::Memory::new())
        .observer(emf.clone())
        .build()
        .expect("valid");
    for number in 0..600 {
        let record = record_of_age(number, Duration::from_millis(1_500), "ok");
        let _ = resilient.settle(&record).await.expect("settled");
    }
    // The observer receives two events for each record: its attempt and its settlement.
    assert_eq!(emf.dropped(), 4, "it checks the time at every 256th event");
}

/// Writes metrics at intervals, and the rest when the service ends.
#[tokio::test]
async fn stopped_consumer_has_written_all_metrics() {
    let server = KinesisServer::start().await.expect("a free port");
    let created = kinesis::create_stream(&server.client(), "orders", 2).await;
    created.expect("a stream");
    let orders = (0..300).map(|number| {
        (
            format!("key-{number}"),
            if number % 100 == 7 { "bad" } else { "ok" },
        )
    });
    support::stream::put(&server.client(), "orders", orders).await;
    let log = Log::default();
    let (script, letters) = (Script::default(), dead_letter::Memory::new());
    let resilient = Resilient::builder("billing", script.clone())
        .dead_letters(letters.clone())
        .observer(Emf::new().namespace("shop").writer(log.clone()))
        .build()
        .expect("valid");
    let (running, stop) = {
        let consumer = Consumer::builder(server.client(), "orders")
            .checkpoints(checkpoint::Memory::new())
            .build()
            .expect("valid");
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        (tokio::spawn(consumer.run_until(resilient, stopped)), stop)
    };
    support::waiting::finished("all records are settled", async {
        while letters.letters().len() < 3 || script.done().len() < 297 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    stop.cancel();
    running.await.expect("no panic").expect("nothing halted");
    assert_eq!(log.sum("RecordsFetched"), 300);
    assert_eq!(log.sum("RecordsProcessed") + log.sum("RecordsDeadLettered"), 300);
    assert_eq!(log.sum("RecordsDeadLettered"), 3);
    let lines = log.lines();
    assert_eq!(lines[0]["_aws"]["CloudWatchMetrics"][0]["Namespace"], "shop");
    assert!(lines[0]["BehindLatest"].is_array());
}

/// Writes neither payloads, partition keys nor error texts.
#[tokio::test(start_paused = true)]
async fn emf_lines_contain_no_record_content() {
    let log = Log::default();
    let resilient = resilient(&log);
    let marked = Record::builder("orders", "shardId-0".into(), 1.into())
        .partition_key("MARKER")
        .payload("MARKER")
        .build();
    let _ = resilient.settle(&marked).await.expect("settled");
    let panics = record_of_age(2, Duration::from_millis(1_500), "panic");
    let _ = resilient.settle(&panics).await.expect("settled");
    let function = Function::new(resilient);
    // The end of the invocation flushes the metrics.
    let flushed = function
        .settle(event(&["ok"]), Instant::now() + Duration::from_secs(5))
        .await;
    flushed.expect("an answer");
    assert_eq!(log.sum("RecordsDeadLettered"), 2);
    let text = log.text();
    assert!(!text.contains("MARKER") && !text.contains("scripted"), "{text}");
}

#[test]
fn metric_names_are_unique_and_match_their_units() {
    let names: std::collections::BTreeSet<&str> = Metric::ALL.iter().map(|metric| metric.name()).collect();
    assert_eq!(names.len(), Metric::ALL.len());
    for (place, metric) in Metric::ALL.iter().enumerate() {
        assert_eq!(*metric as usize, place);
        assert_eq!(format!("{metric:?}"), metric.name());
        let is_a_time = metric.name().ends_with("Latency")
            || metric.name().ends_with("Age")
            || ["BehindLatest", "BackoffTime"].contains(&metric.name());
        assert_eq!(metric.unit() == Unit::Milliseconds, is_a_time, "{metric:?}");
        assert!(metric.description().ends_with('.'), "{metric:?}");
    }
}
