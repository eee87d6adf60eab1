//! Metrics through the `metrics` facade: a recorder receives the right names, labels and sums.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshot};
use redrive::pipeline::{Batch, Pipeline};
use redrive::processor::{Attempt, BatchFailure};
use redrive::telemetry::{Metric, Metrics, Monitor, Rate, Threshold, alert};
use redrive::testing::Script;
use redrive::{
    BatchProcessor, DeadLetterGuard, Failure, Record, Resilient, ResilientBuilder, RetryPolicy, Settled,
    dead_letter, processor_fn,
};
use support::script::record;
use tokio::time::{Instant, advance};

/// Returns the values by name and labels, in the notation of Prometheus.
fn values(snapshot: Snapshot) -> BTreeMap<String, DebugValue> {
    let each = snapshot.into_vec().into_iter();
    each.map(|(key, _, _, value)| {
        let key = key.key();
        let labels: Vec<String> = key
            .labels()
            .map(|label| format!("{}={}", label.key(), label.value()))
            .collect();
        (format!("{}{{{}}}", key.name(), labels.join(",")), value)
    })
    .collect()
}

fn builder(metrics: Arc<Metrics>) -> ResilientBuilder<Script> {
    Resilient::builder("billing", Script::default())
        .retry(RetryPolicy::constant(Duration::from_millis(20)).max_attempts(3))
        .without_breaker()
        .without_guard()
        .dead_letters(dead_letter::Memory::new())
        .observer(metrics)
}

fn count(values: &BTreeMap<String, DebugValue>, key: &str) -> u64 {
    match values.get(key) {
        Some(DebugValue::Counter(count)) => *count,
        other => panic!("{key}: {other:?} among {:#?}", values.keys()),
    }
}

fn histogram(values: &BTreeMap<String, DebugValue>, key: &str) -> Vec<f64> {
    match values.get(key) {
        Some(DebugValue::Histogram(values)) => values.iter().map(|value| value.into_inner()).collect(),
        other => panic!("{key}: {other:?} among {:#?}", values.keys()),
    }
}

#[tokio::test(start_paused = true)]
async fn recorder_receives_names_labels_and_counts() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _installed = metrics::set_default_local_recorder(&recorder);
    Metrics::describe();
    let resilient = builder(Arc::new(Metrics::new())).build().expect("valid");
    for (number, script) in (0..).zip(["ok", "ok", "fail,ok", "bad", "panic,panic"]) {
        let _ = resilient
            .settle(&record(number, "k", script))
            .await
            .expect("settled");
    }
    let values = values(snapshotter.snapshot());
    let of_stream = |name: &str| format!("redrive_{name}{{application=billing,stream=orders}}");
    assert_eq!(count(&values, &of_stream("records_processed_total")), 3);
    assert_eq!(count(&values, &of_stream("retries_total")), 2);
    let failed = |rest: &str| {
        count(
            &values,
            &format!("redrive_attempts_failed_total{{application=billing,stream=orders,{rest}}}"),
        )
    };
    assert_eq!(failed("class=transient,scope=unknown,code=none"), 1);
    assert_eq!(failed("class=permanent,scope=record,code=none"), 1);
    let letters = |reason: &str| {
        let labels = format!("application=billing,stream=orders,reason={reason}");
        count(
            &values,
            &format!("redrive_records_dead_lettered_total{{{labels}}}"),
        )
    };
    assert_eq!((letters("permanent"), letters("panicked")), (1, 1));
    // One value for each call of the handler, in seconds.
    assert_eq!(histogram(&values, &of_stream("attempt_latency_seconds")).len(), 7);
    let backoff = histogram(&values, &of_stream("backoff_time_seconds"));
    assert!(backoff.iter().all(|time| *time < 0.1), "{backoff:?}");
    let text = format!("{:?}", values.keys());
    assert!(!text.contains("scripted") && !text.contains("key="), "{text}");
}

/// A batch handler whose first call fails for all of its records.
#[derive(Default)]
struct Inserts(AtomicBool);

impl BatchProcessor for Inserts {
    type Error = std::io::Error;

    async fn process_batch(&self, _: &[Record], _: &Attempt<'_>) -> Result<(), BatchFailure<Self::Error>> {
        match self.0.swap(true, Relaxed) {
            true => Ok(()),
            false => Err(std::io::Error::other("the table is locked").into()),
        }
    }
}

/// Counts attempts per record. A table that refuses every second insert fails half of the attempts, however
/// many rows each insert has.
#[tokio::test(start_paused = true)]
async fn batch_call_is_an_attempt_of_each_record() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _installed = metrics::set_default_local_recorder(&recorder);
    let alerts = alert::Memory::new();
    let monitor = Monitor::builder()
        .watch(Threshold::on(Rate::FailedAttempts(None)).above(0.9).at_least(10))
        .alert_sink(alerts.clone())
        .build()
        .expect("valid");
    let resilient = Resilient::builder("billing", Inserts::default().batched())
        .dead_letters(dead_letter::Memory::new())
        .observer(Metrics::new())
        .observer(monitor)
        .build()
        .expect("valid");
    let batch = Batch::from((1..=10).map(|number| record(number, "k", "")).collect::<Vec<_>>());
    let finished = Pipeline::default()
        .run(&resilient, futures_util::stream::iter([batch]))
        .await;
    finished.expect("nothing halted");
    let values = values(snapshotter.snapshot());
    let labels = "application=billing,stream=orders";
    let failed = format!("redrive_attempts_failed_total{{{labels},class=transient,scope=unknown,code=none}}");
    assert_eq!(count(&values, &failed), 10);
    assert_eq!(
        count(&values, &format!("redrive_records_processed_total{{{labels}}}")),
        10
    );
    let calls = histogram(&values, &format!("redrive_attempt_latency_seconds{{{labels}}}"));
    assert_eq!(calls.len(), 2);
    tokio::time::sleep(Duration::from_secs(5)).await;
    let first = alerts.alerts().into_iter().next().expect("an alert");
    assert_eq!((first.of, first.share), (10, 1.0));
}

/// Returns the value of a gauge.
fn gauge(values: &BTreeMap<String, DebugValue>, key: &str) -> f64 {
    match values.get(key) {
        Some(DebugValue::Gauge(value)) => value.into_inner(),
        other => panic!("{key}: {other:?} among {:#?}", values.keys()),
    }
}

#[tokio::test(start_paused = true)]
async fn open_breaker_and_stopped_shard_are_gauges() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _installed = metrics::set_default_local_recorder(&recorder);
    let resilient = Resilient::builder("billing", Script::default())
        .retry(RetryPolicy::constant(Duration::from_millis(20)).max_attempts(2))
        .guard(
            DeadLetterGuard::builder()
                .share(0.5)
                .min_records(3)
                .window(Duration::from_secs(60))
                .build()
                .expect("valid"),
        )
        .dead_letters(dead_letter::Memory::new())
        .observer(Metrics::new())
        .build()
        .expect("valid");
    let open = "redrive_breakers_open{application=billing,dependency=any}";
    let stopped = "redrive_shards_stopped{application=billing,stream=orders}";
    let second = Duration::from_secs(1);
    let settle = async |number: u64, script: &str, within: Duration| {
        let record = record(number, &format!("key-{number}"), script);
        resilient
            .settle_by(&record, Instant::now() + within)
            .await
            .is_ok()
    };

    for number in 0..5 {
        settle(number, "fail", second).await;
    }
    assert_eq!(gauge(&values(snapshotter.snapshot()), open), 1.0);
    // The probes run one after the other.
    for number in 10..20 {
        assert!(settle(number, "ok", 600 * second).await);
    }
    assert_eq!(gauge(&values(snapshotter.snapshot()), open), 0.0);

    advance(600 * second).await;
    let mut letters = 0;
    while settle(100 + letters, "bad", second).await {
        letters += 1;
        assert!(letters < 20, "the guard stops nothing");
    }
    assert_eq!(gauge(&values(snapshotter.snapshot()), stopped), 1.0);
    resilient.guard().expect("the guard of this processor").resume();
    assert!(settle(100 + letters, "bad", second).await);
    assert_eq!(gauge(&values(snapshotter.snapshot()), stopped), 0.0);
}

#[tokio::test(start_paused = true)]
async fn shard_label_is_opt_in() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _installed = metrics::set_default_local_recorder(&recorder);
    let record = |stream: &str, shard: &str, number: u64| {
        Record::builder(stream, shard.into(), number.into())
            .arrival(SystemTime::now())
            .payload("ok")
            .build()
    };
    let records = [
        record("orders", "shardId-0", 1),
        record("orders", "shardId-1", 2),
        record("payments", "shardId-0", 3),
    ];
    for shard_label in [false, true] {
        let metrics = Metrics::new().shard_label(shard_label);
        let resilient = builder(Arc::new(metrics)).build().expect("valid");
        for record in &records {
            assert_eq!(
                resilient.settle(record).await.expect("settled"),
                Settled::Processed
            );
        }
    }
    let values = values(snapshotter.snapshot());
    let processed = |labels: &str| {
        count(
            &values,
            &format!("redrive_records_processed_total{{application=billing,{labels}}}"),
        )
    };
    assert_eq!((processed("stream=orders"), processed("stream=payments")), (2, 1));
    assert_eq!(processed("stream=orders,shard=shardId-0"), 1);
    assert_eq!(processed("stream=orders,shard=shardId-1"), 1);
    assert_eq!(processed("stream=payments,shard=shardId-0"), 1);
}

/// Limits the codes. A classifier may produce arbitrary codes, and each one is a series that costs storage
/// and money.
#[tokio::test(start_paused = true)]
async fn codes_beyond_a_hundred_share_a_label() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _installed = metrics::set_default_local_recorder(&recorder);
    let codes = (0..150).map(|number| format!("code-{number}"));
    let codes: Vec<String> = std::iter::once("c".repeat(65)).chain(codes).collect();
    let fails = async |record: Record| -> Result<(), Failure> {
        let code = String::from_utf8(record.payload().to_vec()).expect("a code");
        Err(Failure::permanent("no").with_code(code))
    };
    let resilient = Resilient::builder("billing", processor_fn(fails))
        .without_guard()
        .dead_letters(dead_letter::Memory::new())
        .observer(Arc::new(Metrics::new()))
        .build()
        .expect("valid");
    for (number, code) in (1_u64..).zip(codes) {
        let record = Record::builder("orders", "shardId-0".into(), number.into());
        let settled = resilient.settle(&record.payload(code).build()).await;
        assert!(settled.is_ok());
    }
    let values = values(snapshotter.snapshot());
    let failed = values
        .keys()
        .filter(|key| key.starts_with("redrive_attempts_failed_total"));
    assert_eq!(failed.count(), 101);
    let other = values.iter().find(|(key, _)| key.ends_with("code=other}"));
    assert!(matches!(other, Some((_, DebugValue::Counter(51)))), "{other:?}");
}

/// Checks the names of the metrics that a pipeline without a consumer records.
#[tokio::test(start_paused = true)]
async fn metric_names_follow_the_conventions() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _installed = metrics::set_default_local_recorder(&recorder);
    let resilient = builder(Arc::new(Metrics::new())).build().expect("valid");
    let batch = Batch::from(vec![record(1, "k", "ok")]);
    let batches = futures_util::stream::iter([batch]);
    let finished = Pipeline::default().run(&resilient, batches).await;
    finished.expect("nothing halted");
    let names: Vec<String> = values(snapshotter.snapshot()).into_keys().collect();
    // Six metrics are missing here: four gauges and two with their own labels, which appear with their first
    // event.
    assert_eq!(names.len(), Metric::ALL.len() - 6, "{names:#?}");
    for name in names {
        let (name, _) = name.split_once('{').expect("labels");
        assert!(name.starts_with("redrive_"), "{name}");
        assert!(name.chars().all(|c| c == '_' || c.is_ascii_lowercase()), "{name}");
    }
}
