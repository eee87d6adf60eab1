//! Spans as OpenTelemetry receives them: the spans of a record continue the trace of its producer.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::{SpanId, Status, TraceContextExt as _, TraceId, TracerProvider as _};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData};
use redrive::lambda::{Event, Function};
use redrive::processor::{Attempt, BatchFailure};
use redrive::testing::kinesis::{self, KinesisServer};
use redrive::{
    BatchProcessor, Consumer, MarkFailure, Record, RecordProcessor, Resilient, RetryPolicy, Settled,
    checkpoint, dead_letter, observer::TraceContext,
};
use support::stream;
use support::waiting::{eventually, finished};
use tokio::sync::MutexGuard;
use tracing::Span;
use tracing::subscriber::DefaultGuard;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;

/// Returns the trace context of an order's producer, which the payload starts with.
fn traceparent(order: u8) -> String {
    format!("00-{}-00000000000000{order:02x}-01", trace(order))
}

fn trace(order: u8) -> TraceId {
    TraceId::from_hex(&format!("0af7651916cd43dd8448eb211c8031{order:02x}")).expect("hex")
}

/// Returns the trace context at the beginning of the payload.
fn in_payload(record: &Record) -> Option<String> {
    let payload = std::str::from_utf8(record.payload()).ok()?;
    payload.split_once(' ').map(|(context, _)| context.to_owned())
}

/// The implementation of [`TraceContext`] from the documentation.
struct W3c;

fn read(traceparent: &str) -> opentelemetry::Context {
    let headers = HashMap::from([("traceparent".to_owned(), traceparent.to_owned())]);
    TraceContextPropagator::new().extract(&headers)
}

impl TraceContext for W3c {
    fn extract(&self, record: &Record) -> Option<String> {
        in_payload(record)
    }

    fn set_parent(&self, span: &Span, context: &str) {
        span.set_parent(read(context)).expect("a span that has not begun");
    }

    fn add_link(&self, span: &Span, context: &str) {
        span.add_link(read(context).span().span_context().clone());
    }
}

/// A handler that follows the last word of the payload. Each call opens a span of its own.
struct Bill;

impl RecordProcessor for Bill {
    type Error = redrive::BoxError;

    async fn process(&self, record: &Record, attempt: &Attempt<'_>) -> Result<(), Self::Error> {
        let _query = tracing::debug_span!("query").entered();
        let payload = std::str::from_utf8(record.payload())?;
        match payload.rsplit_once(' ').map(|(_, does)| does) {
            Some("once") if attempt.number() == 1 => Err("not now".into()),
            Some("bad") => Err("bad").permanent()?,
            _ => Ok(()),
        }
    }
}

/// The spans that OpenTelemetry receives while this value lives.
struct Exported {
    spans: InMemorySpanExporter,
    provider: SdkTracerProvider,
    _guard: DefaultGuard,
    _turn: MutexGuard<'static, ()>,
}

async fn exported(filter: &str) -> Exported {
    let turn = crate::turn_to_subscribe().await;
    let spans = InMemorySpanExporter::default();
    let provider = SdkTracerProvider::builder()
        .with_simple_exporter(spans.clone())
        .build();
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
    let subscriber = tracing_subscriber::registry()
        .with(EnvFilter::new(filter))
        .with(layer);
    let guard = tracing::subscriber::set_default(subscriber);
    Exported {
        spans,
        provider,
        _guard: guard,
        _turn: turn,
    }
}

impl Exported {
    fn named(&self, name: &str) -> Vec<SpanData> {
        self.provider.force_flush().expect("nothing to wait for");
        let all = self.spans.get_finished_spans().expect("no panic");
        all.into_iter().filter(|span| span.name == name).collect()
    }

    fn children(&self, name: &str, of: &SpanData) -> Vec<SpanData> {
        let mut children = self.named(name);
        children.retain(|span| span.parent_span_id == of.span_context.span_id());
        children.sort_by_key(|span| span.start_time);
        children
    }
}

fn field(span: &SpanData, key: &str) -> Option<String> {
    let attributes = span.attributes.iter();
    let mut found = attributes.filter(|attribute| attribute.key.as_str() == key);
    found.next().map(|attribute| attribute.value.to_string())
}

fn records(payloads: &[(u8, &str)]) -> Vec<Record> {
    let record = |(at, (order, does)): (usize, &(u8, &str))| {
        Record::builder("orders", "shardId-000000000000".into(), (at as u64 + 1).into())
            .partition_key(format!("customer-{order}"))
            .payload(format!("{} {does}", traceparent(*order)))
            .build()
    };
    payloads.iter().enumerate().map(record).collect()
}

fn policy() -> RetryPolicy {
    RetryPolicy::constant(Duration::from_millis(20)).max_attempts(3)
}

#[tokio::test]
async fn record_spans_continue_the_producers_trace() {
    let exported = exported("redrive=debug,telemetry=debug").await;
    let server = KinesisServer::start().await.expect("a free port");
    let client = server.client();
    kinesis::create_stream(&client, "orders", 1)
        .await
        .expect("a stream");
    let payloads = [(1, "well"), (2, "once"), (3, "bad")];
    let puts = payloads.map(|(order, does)| {
        (
            format!("customer-{order}"),
            format!("{} {does}", traceparent(order)),
        )
    });
    stream::put(&client, "orders", puts).await;
    let letters = dead_letter::Memory::new();
    let orders = Resilient::builder("billing", Bill)
        .retry(policy())
        .trace_context(W3c)
        .dead_letters(letters.clone())
        .build()
        .expect("valid");
    let consumer = Consumer::builder(client, "orders")
        .checkpoints(checkpoint::Memory::new())
        .build()
        .expect("valid");
    let all = eventually("all records are settled", || exported.named("record").len() == 3);
    finished("the consumer ends", consumer.run_until(orders, all))
        .await
        .expect("nothing halted");

    let spans = exported.named("record");
    for (order, settled, status) in [
        (1, "processed", Status::Unset),
        (2, "processed", Status::Unset),
        (3, "dead_lettered", Status::error("")),
    ] {
        let of_order = |span: &&SpanData| span.span_context.trace_id() == trace(order);
        let record = spans
            .iter()
            .find(of_order)
            .expect("a span in its producer's trace");
        assert_eq!(record.parent_span_id, SpanId::from(u64::from(order)));
        assert_eq!(field(record, "settled").as_deref(), Some(settled));
        assert_eq!(field(record, "stream").as_deref(), Some("orders"));
        assert_eq!(field(record, "shard").as_deref(), Some("shardId-000000000000"));
        assert_eq!(field(record, "trace_id"), Some(trace(order).to_string()));
        assert!(field(record, "sequence_number").is_some());
        assert_eq!(record.status, status, "order {order}");

        let attempts = exported.children("attempt", record);
        let failed = |span: &SpanData| span.status == Status::error("");
        let failures: Vec<bool> = attempts.iter().map(failed).collect();
        let expected: &[bool] = match order {
            1 => &[false],
            2 => &[true, false],
            _ => &[true],
        };
        assert_eq!(failures, expected, "order {order}");
        // The spans of the handler belong to the attempt.
        assert!(
            attempts
                .iter()
                .all(|attempt| exported.children("query", attempt).len() == 1)
        );
        let told = record
            .events
            .iter()
            .filter(|event| event.name == "attempt failed");
        assert_eq!(told.count(), failures.iter().filter(|failed| **failed).count());
    }
    let batches = exported.named("batch");
    let read = |span: &SpanData| field(span, "records").and_then(|records| records.parse::<usize>().ok());
    assert_eq!(batches.iter().filter_map(read).sum::<usize>(), 3);
    let kept = letters.letters();
    assert_eq!(kept[0].trace_context, Some(traceparent(3)));
    // The log message carries the trace id, also where spans are disabled.
    let given_up = spans.iter().flat_map(|span| span.events.iter());
    let given_up: Vec<_> = given_up
        .filter(|event| event.name == "record dead-lettered")
        .collect();
    let trace_ids = given_up[0]
        .attributes
        .iter()
        .filter(|it| it.key.as_str() == "trace_id");
    let trace_ids: Vec<String> = trace_ids.map(|it| it.value.to_string()).collect();
    assert_eq!((given_up.len(), trace_ids), (1, vec![trace(3).to_string()]));
}

#[tokio::test(start_paused = true)]
async fn lambda_batch_span_is_the_parent_of_its_records() {
    let exported = exported("redrive=debug").await;
    let item = |number: u8| {
        serde_json::json!({
            "kinesis": {
                "partitionKey": "customer",
                "sequenceNumber": format!("4959033827149025660855969253836157109592{number}"),
                "data": "b3JkZXI=",
            },
            "eventID": format!("shardId-000000000006:4959033827149025660855969253836157109592{number}"),
            "eventSourceARN": "arn:aws:kinesis:us-east-2:123456789012:stream/orders",
        })
    };
    let event = serde_json::json!({ "Records": [item(1), item(2)] }).to_string();
    let event = Event::from_slice(event.as_bytes()).expect("an event");
    let orders = Resilient::builder("billing", Bill)
        .dead_letters(dead_letter::Memory::new())
        .build()
        .expect("valid");
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    let settled = Function::new(orders).settle(event, deadline).await;
    assert!(settled.is_ok());
    let batches = exported.named("batch");
    let [batch] = &batches[..] else {
        panic!("{batches:?}");
    };
    assert_eq!(field(batch, "records").as_deref(), Some("2"));
    assert_eq!(exported.children("record", batch).len(), 2);
}

struct Inserts;

impl BatchProcessor for Inserts {
    type Error = std::io::Error;

    async fn process_batch(&self, _: &[Record], _: &Attempt<'_>) -> Result<(), BatchFailure<Self::Error>> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn batch_attempt_links_the_traces_of_all_records() {
    use redrive::pipeline::{Batch, Pipeline};
    let exported = exported("redrive=debug").await;
    let orders = Resilient::builder("billing", Inserts.batched())
        .trace_context(W3c)
        .dead_letters(dead_letter::Memory::new())
        .build()
        .expect("valid");
    let batch = Batch::from(records(&[(1, "well"), (2, "well")]));
    let batches = futures_util::stream::iter([batch]);
    Pipeline::default()
        .run(&orders, batches)
        .await
        .expect("nothing halts");
    let attempts = exported.named("attempt");
    let [attempt] = &attempts[..] else {
        panic!("{attempts:?}");
    };
    let links = attempt.links.iter();
    let mut linked: Vec<TraceId> = links.map(|link| link.span_context.trace_id()).collect();
    linked.sort_by_key(|id| id.to_bytes());
    assert_eq!(linked, [trace(1), trace(2)]);
    assert_eq!(field(attempt, "records").as_deref(), Some("2"));
}

#[tokio::test(start_paused = true)]
async fn trace_context_is_extracted_only_on_demand_and_may_panic() {
    // Failures are logged at INFO; spans are at a lower level.
    let quiet = exported("redrive=info").await;
    let asked = Arc::new(AtomicUsize::new(0));
    let letters = dead_letter::Memory::new();
    let orders = || {
        Resilient::builder("billing", Bill)
            .retry(policy())
            .dead_letters(letters.clone())
    };
    let counted = {
        let asked = asked.clone();
        let context = move |record: &Record| {
            asked.fetch_add(1, SeqCst);
            in_payload(record)
        };
        orders().trace_context(context).build().expect("valid")
    };
    let all = records(&[(1, "well"), (2, "once"), (3, "bad")]);
    for record in &all[..2] {
        assert_eq!(counted.settle(record).await.expect("settled"), Settled::Processed);
    }
    assert_eq!(asked.load(SeqCst), 0);
    let _ = counted.settle(&all[2]).await.expect("settled");
    assert_eq!(asked.load(SeqCst), 1, "the dead letter needs the context");
    assert_eq!(quiet.named("record").len() + quiet.named("attempt").len(), 0);
    drop(quiet);

    let exported = exported("redrive=debug").await;
    let context = |_: &Record| -> Option<String> { panic!("a bug in a trace context") };
    let panics = orders().trace_context(context).build().expect("valid");
    for record in &all {
        let _ = panics.settle(record).await.expect("settled");
    }
    assert_eq!(exported.named("record").len(), 3);
    let contexts: Vec<_> = letters
        .letters()
        .into_iter()
        .map(|letter| letter.trace_context)
        .collect();
    assert_eq!(contexts, [Some(traceparent(3)), None]);
}
