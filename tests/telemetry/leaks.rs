//! Leak checks: the content of a record appears only in its dead letter. The test searches all other output
//! for it.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use metrics_util::debugging::DebuggingRecorder;
use redrive::observer::{Event, Observer};
use redrive::telemetry::{Emf, Metrics, Monitor, Rate, Threshold, alert};
use redrive::testing::kinesis::{self, KinesisServer};
use redrive::{Consumer, Resilient, RetryPolicy, checkpoint, dead_letter, processor_fn_json};
use serde::Deserialize;
use support::stream;
use support::waiting::{eventually, finished};
use tracing_subscriber::EnvFilter;

/// The text to search for. It is in payloads, partition keys, error texts and panic messages.
const MARKER: &str = "confidential-7f3a";

#[derive(Debug, Deserialize)]
struct Order {
    id: u64,
    note: Option<String>,
}

#[derive(Debug, thiserror::Error)]
enum BillingError {
    #[error("cannot bill {0}")]
    Cannot(String),
}

async fn bill(order: Order) -> Result<(), BillingError> {
    match order.note.as_deref() {
        None => Ok(()),
        Some("panic") => panic!("the order of {MARKER} is odd"),
        Some(_) => Err(BillingError::Cannot(format!("{MARKER}, order {}", order.id))),
    }
}

/// A text in memory to which the test collects output.
#[derive(Clone, Default)]
struct Text(Arc<Mutex<Vec<u8>>>);

impl Text {
    fn add(&self, text: impl std::fmt::Debug) {
        let mut all = self.0.lock().expect("no panic while locked");
        all.extend(format!("{text:?}\n").bytes());
    }

    fn get(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().expect("no panic while locked")).into_owned()
    }
}

impl Write for Text {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no panic while locked").extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An observer that collects the `Debug` output of every event.
struct Events(Text);

impl Observer for Events {
    fn on(&self, event: &Event<'_>) {
        self.0.add(event);
    }
}

#[tokio::test]
async fn telemetry_never_contains_record_content() {
    let log = Text::default();
    let writer = log.clone();
    let _turn = crate::turn_to_subscribe().await;
    let _logs = tracing::subscriber::set_default(
        tracing_subscriber::fmt()
            // The SDK's own log contains request bodies.
            .with_env_filter(EnvFilter::new("redrive=trace"))
            .with_span_events(tracing_subscriber::fmt::format::FmtSpan::FULL)
            .with_writer(move || writer.clone())
            .finish(),
    );
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _metrics = metrics::set_default_local_recorder(&recorder);

    let server = KinesisServer::start().await.expect("a free port");
    let client = server.client();
    kinesis::create_stream(&client, "orders", 1)
        .await
        .expect("a stream");
    let order = |id: u64, note: &str| format!("{{\"id\": {id}, \"note\": \"{note}\"}}");
    let records = [
        // For a field of the wrong type, serde_json quotes the value in its error.
        format!("{{\"id\": \"{MARKER}\"}}"),
        format!("no JSON: {MARKER}"),
        order(3, MARKER),
        order(4, "panic"),
        "{\"id\": 5}".to_owned(),
    ];
    let count = records.len();
    let records = records
        .into_iter()
        .map(|payload| (format!("{MARKER}-key"), payload));
    stream::put(&client, "orders", records).await;

    let (events, emf, alerts) = (Text::default(), Text::default(), alert::Memory::new());
    let monitor = Monitor::builder()
        .watch(Threshold::on(Rate::DeadLetters).above(0.1).at_least(1))
        .alert_sink(alerts.clone())
        .alert_sink(alert::Log)
        .build()
        .expect("valid");
    let letters = dead_letter::Memory::new();
    let orders = Resilient::builder("billing", processor_fn_json(bill))
        .retry(RetryPolicy::constant(Duration::from_millis(5)).max_attempts(3))
        // Few other records could succeed meanwhile, so the breaker would open.
        .without_breaker()
        // A value that is not a trace id is not reported.
        .trace_context(|_: &redrive::Record| Some(MARKER.to_owned()))
        .dead_letters(letters.clone())
        .observer(Events(events.clone()))
        .observer(Emf::new().writer(emf.clone()))
        .observer(Metrics::new().shard_label(true))
        .observer(monitor.clone())
        .build()
        .expect("valid");
    let consumer = Consumer::builder(client, "orders")
        .checkpoints(checkpoint::Memory::new())
        .build()
        .expect("valid");
    let (health, reports) = (consumer.health(), Text::default());
    let looks = {
        let (letters, alerts, reports) = (letters.clone(), alerts.clone(), reports.clone());
        async move {
            eventually("all records are settled and an alert is sent", || {
                reports.add(health.report());
                letters.letters().len() == count - 1 && !alerts.alerts().is_empty()
            })
            .await;
        }
    };
    let text = format!("{orders:?} {consumer:?} {monitor:?}");
    reports.add(&text);
    finished("the consumer ends", consumer.run_until(orders, looks))
        .await
        .expect("nothing halted");
    let told = Text::default();
    for alert in alerts.alerts() {
        told.add((&alert, alert.to_string()));
    }
    let measured = Text::default();
    measured.add(snapshotter.snapshot().into_vec());
    // The dead letters contain everything; their `Debug` output does not.
    let kept = letters.letters();
    assert!(
        kept.iter()
            .all(|letter| letter.partition_key.as_deref() == Some(&*format!("{MARKER}-key")))
    );
    let chains: Vec<String> = kept.iter().map(|letter| letter.error.chain.join(": ")).collect();
    assert!(
        chains.iter().filter(|chain| chain.contains(MARKER)).count() >= 3,
        "{chains:?}"
    );
    reports.add(&kept);

    for (what, text) in [
        ("the log", log),
        ("events", events),
        ("metrics in the log", emf),
        ("metrics", measured),
        ("alerts", told),
        ("reports", reports),
    ] {
        let text = text.get();
        assert!(text.len() > 100, "{what}: {text}");
        for secret in [MARKER.to_owned(), BASE64.encode(MARKER), "cannot bill".to_owned()] {
            assert!(
                !text.contains(&secret),
                "{what} contains {secret:?}: {}",
                around(&text, &secret)
            );
        }
    }
}

fn around<'a>(text: &'a str, secret: &str) -> &'a str {
    let at = text.find(secret).unwrap_or_default();
    let start = text[..at].rfind('\n').map_or(0, |line| line + 1);
    &text[start..text.len().min(at + 300)]
}
