//! Metrics in CloudWatch, on LocalStack: the sums that arrive are right.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use aws_sdk_cloudwatch::Client;
use aws_sdk_cloudwatch::types::{Dimension, Statistic};
use axum::Router;
use axum::http::StatusCode;
use redrive::telemetry::CloudWatch;
use redrive::testing::Script;
use redrive::{Record, Resilient, RetryPolicy, dead_letter};
use support::cloudwatch;
use support::localstack::LocalStack;
use support::script::record;

fn client(endpoint: &str) -> Client {
    support::local_client!(aws_sdk_cloudwatch, endpoint)
}

fn resilient(cloudwatch: &CloudWatch) -> Resilient<Script> {
    Resilient::builder("billing", Script::default())
        .retry(RetryPolicy::constant(Duration::ZERO).max_attempts(2))
        .without_breaker()
        .without_guard()
        .dead_letters(dead_letter::Memory::new())
        .observer(cloudwatch.clone())
        .build()
        .expect("valid")
}

#[tokio::test]
async fn sent_metrics_have_the_right_sums() {
    let Some(localstack) = LocalStack::shared() else {
        return;
    };
    let client = client(&cloudwatch::endpoint(localstack));
    let cloudwatch = CloudWatch::new(client.clone()).namespace("test");
    let resilient = resilient(&cloudwatch);
    for (number, script) in (0..).zip(["ok", "fail,ok", "bad", "ok", "fail"]) {
        let _ = resilient
            .settle(&record(number, "k", script))
            .await
            .expect("settled");
    }
    let arrived = SystemTime::now() - Duration::from_secs(100);
    let old = Record::builder("orders", "shardId-0".into(), 99.into()).arrival(arrived);
    let _ = resilient
        .settle(&old.payload("ok").build())
        .await
        .expect("settled");
    cloudwatch.close().await;
    cloudwatch.close().await; // A second close sends nothing again.
    assert_eq!(cloudwatch.dropped(), 0);

    let dimension = |name: &str, value: &str| Dimension::builder().name(name).value(value).build();
    let statistics = async |metric: &str| {
        let now = SystemTime::now();
        let answer = client
            .get_metric_statistics()
            .namespace("test")
            .metric_name(metric)
            .dimensions(dimension("Application", "billing"))
            .dimensions(dimension("Stream", "orders"))
            .start_time((now - Duration::from_secs(600)).into())
            .end_time((now + Duration::from_secs(600)).into())
            .period(3_600)
            .statistics(Statistic::Sum)
            .statistics(Statistic::SampleCount)
            .statistics(Statistic::Maximum)
            .send()
            .await
            .expect("GetMetricStatistics");
        let points = answer.datapoints.unwrap_or_default();
        let total = |value: fn(&aws_sdk_cloudwatch::types::Datapoint) -> Option<f64>| -> f64 {
            points.iter().filter_map(value).sum()
        };
        (
            total(|point| point.sum),
            total(|point| point.sample_count),
            total(|point| point.maximum),
        )
    };
    assert_eq!(statistics("RecordsProcessed").await.0, 4.0);
    assert_eq!(statistics("RecordsDeadLettered").await.0, 2.0);
    assert_eq!(statistics("AttemptsFailed").await.0, 4.0);
    assert_eq!(statistics("AttemptsFailedPermanently").await.0, 1.0);
    assert_eq!(statistics("Retries").await.0, 2.0);
    let (sum, _, highest) = statistics("EndToEndLatency").await;
    assert!((90_000.0..110_000.0).contains(&highest), "{sum}, {highest}");
}

/// Sends metrics while the service is down and after it is back.
#[tokio::test]
async fn failed_send_is_retried_with_the_next_one() {
    let calls = Arc::new(AtomicU32::new(0));
    let (counted, down) = (calls.clone(), Arc::new(AtomicU32::new(1)));
    let is_down = down.clone();
    let app = Router::new().fallback(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        let status = match is_down.load(Ordering::Relaxed) {
            0 => StatusCode::OK,
            _ => StatusCode::FORBIDDEN,
        };
        async move { (status, "") }
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a free port");
    let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
    let server = tokio::spawn(async move { axum::serve(listener, app).await });
    let cloudwatch = CloudWatch::new(client(&endpoint)).interval(Duration::from_secs(3_600));
    let resilient = resilient(&cloudwatch);
    let _ = resilient.settle(&record(1, "k", "ok")).await.expect("settled");
    cloudwatch.close().await;
    let refused = calls.load(Ordering::Relaxed);
    assert!(refused >= 1);
    down.store(0, Ordering::Relaxed);
    cloudwatch.close().await;
    assert_eq!(calls.load(Ordering::Relaxed), refused + 1, "one call for all");
    assert_eq!(cloudwatch.dropped(), 0);
    cloudwatch.close().await;
    // The metrics that are always reported are sent.
    assert_eq!(calls.load(Ordering::Relaxed), refused + 2);
    server.abort();
}
