//! The error rate monitor: it sends an alert once, repeats it from time to time, and reports the recovery
//! once.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use aws_sdk_sqs::types::QueueAttributeName;
use redrive::telemetry::alert::{self, Alert, AlertSink, AlertState, Webhook};
use redrive::telemetry::{Monitor, MonitorBuilder, Rate, Threshold};
use redrive::testing::Script;
use redrive::{BoxError, Class, Record, Resilient, RetryPolicy, dead_letter};
use support::localstack::LocalStack;
use support::script::record;
use tokio::time::sleep;

const MINUTE: Duration = Duration::from_secs(60);

fn resilient(monitor: Monitor) -> Resilient<Script> {
    Resilient::builder("billing", Script::default())
        .retry(RetryPolicy::constant(Duration::ZERO).max_attempts(1))
        .without_breaker()
        .without_guard()
        .dead_letters(dead_letter::Memory::new())
        .observer(monitor)
        .build()
        .expect("valid")
}

fn monitor(threshold: Threshold) -> (MonitorBuilder, alert::Memory) {
    let alerts = alert::Memory::new();
    (
        Monitor::builder().watch(threshold).alert_sink(alerts.clone()),
        alerts,
    )
}

async fn settle(resilient: &Resilient<Script>, script: &str, times: u64) {
    for number in 0..times {
        let _ = resilient
            .settle(&record(number, "k", script))
            .await
            .expect("settled");
    }
}

/// Waits long enough for the sinks to receive an alert, and for nothing else.
async fn a_moment() {
    sleep(Duration::from_millis(1)).await;
}

fn states(alerts: &alert::Memory) -> Vec<AlertState> {
    alerts.alerts().iter().map(|alert| alert.state).collect()
}

#[tokio::test(start_paused = true)]
async fn burst_raises_one_alert_and_one_recovery() {
    let threshold = Threshold::on(Rate::FailedAttempts(None)).above(0.2).at_least(50);
    let (builder, alerts) = monitor(threshold);
    let resilient = resilient(builder.build().expect("valid"));
    settle(&resilient, "ok", 100).await;
    settle(&resilient, "bad", 24).await;
    a_moment().await;
    assert_eq!(states(&alerts), []);
    settle(&resilient, "bad", 50).await;
    a_moment().await;
    assert_eq!(states(&alerts), [AlertState::Raised]);
    let alert = alerts.alerts().remove(0);
    // 25 of 125 attempts are the first to reach the threshold.
    assert_eq!((alert.share, alert.of), (0.2, 125));
    assert_eq!(alert.application, "billing");
    let text = alert.to_string();
    assert!(
        text.contains("too many failed attempts: 20.0 % of 125 within 60s"),
        "{text}"
    );
    // No more records follow, so the window empties.
    sleep(2 * MINUTE).await;
    assert_eq!(states(&alerts), [AlertState::Raised, AlertState::Recovered]);
    let over = alerts.alerts().remove(1);
    assert_eq!((over.share, over.since), (0.0, alert.since));
    // A new burst raises a new alert.
    settle(&resilient, "bad", 60).await;
    a_moment().await;
    assert_eq!(states(&alerts).last(), Some(&AlertState::Raised));
}

#[tokio::test(start_paused = true)]
async fn lasting_alert_is_repeated() {
    let (builder, alerts) = monitor(Threshold::on(Rate::DeadLetters).above(0.1).at_least(10));
    let resilient = resilient(builder.repeat_after(5 * MINUTE).build().expect("valid"));
    for _ in 0..16 * 60 {
        settle(&resilient, "bad", 1).await;
        sleep(Duration::from_secs(1)).await;
    }
    use AlertState::{Raised, Repeated};
    assert_eq!(states(&alerts), [Raised, Repeated, Repeated, Repeated]);
}

#[tokio::test(start_paused = true)]
async fn rate_between_the_thresholds_does_not_flap() {
    let threshold = Threshold::on(Rate::DeadLetters)
        .above(0.5)
        .below(0.1)
        .at_least(10);
    let (builder, alerts) = monitor(threshold);
    let resilient = resilient(builder.build().expect("valid"));
    settle(&resilient, "bad", 20).await;
    // One third of the records fails, for several windows.
    for _ in 0..300 {
        settle(&resilient, "ok", 2).await;
        settle(&resilient, "bad", 1).await;
        sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(states(&alerts), [AlertState::Raised]);
    for _ in 0..120 {
        settle(&resilient, "ok", 1).await;
        sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(states(&alerts), [AlertState::Raised, AlertState::Recovered]);
}

#[tokio::test(start_paused = true)]
async fn too_few_attempts_raise_nothing_and_classes_are_separate() {
    let (builder, alerts) = monitor(Threshold::on(Rate::FailedAttempts(Some(Class::Permanent))).above(0.5));
    let resilient = resilient(builder.build().expect("valid"));
    settle(&resilient, "bad", 49).await;
    a_moment().await;
    assert_eq!(states(&alerts), []);
    sleep(2 * MINUTE).await;
    settle(&resilient, "fail", 200).await;
    a_moment().await;
    assert_eq!(states(&alerts), []);
    sleep(2 * MINUTE).await;
    settle(&resilient, "bad", 50).await;
    a_moment().await;
    assert_eq!(states(&alerts), [AlertState::Raised]);
}

#[tokio::test(start_paused = true)]
async fn slow_records_are_a_rate() {
    let (builder, alerts) = monitor(Threshold::on(Rate::SlowerThan(MINUTE)).above(0.5).at_least(10));
    let resilient = resilient(builder.build().expect("valid"));
    let arrived = |ago: Duration, number: u64| {
        Record::builder("orders", "shardId-0".into(), number.into())
            .arrival(SystemTime::now() - ago)
            .payload("ok")
            .build()
    };
    for number in 0..20 {
        let _ = resilient
            .settle(&arrived(Duration::from_secs(5), number))
            .await
            .expect("settled");
    }
    for number in 20..45 {
        let _ = resilient
            .settle(&arrived(2 * MINUTE, number))
            .await
            .expect("settled");
    }
    a_moment().await;
    assert_eq!(states(&alerts), [AlertState::Raised]);
}

/// A sink that accepts an alert at the third attempt.
#[derive(Debug, Default)]
struct Stubborn {
    tries: AtomicU32,
    told: Mutex<Vec<String>>,
}

#[async_trait]
impl AlertSink for Stubborn {
    async fn send(&self, alert: &Alert) -> Result<(), BoxError> {
        match self.tries.fetch_add(1, Ordering::Relaxed) {
            0 => Err("no".into()),
            // This is longer than the monitor waits.
            1 => {
                sleep(60 * MINUTE).await;
                Ok(())
            }
            _ => {
                self.told.lock().expect("no panic").push(alert.to_string());
                Ok(())
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn failing_alert_sink_blocks_nothing_and_is_retried() {
    let stubborn = Arc::new(Stubborn::default());
    let hook = Arc::new(AtomicU32::new(0));
    let calls = hook.clone();
    let webhook = Webhook::new(move |_: Alert| {
        let calls = calls.clone();
        async move {
            calls.fetch_add(1, Ordering::Relaxed);
            Ok::<(), std::io::Error>(())
        }
    });
    let (builder, _) = monitor(Threshold::on(Rate::DeadLetters).above(0.5).at_least(10));
    let monitor = builder
        .alert_sink(stubborn.clone())
        .alert_sink(webhook)
        .build()
        .expect("valid");
    let resilient = resilient(monitor);
    let began = tokio::time::Instant::now();
    settle(&resilient, "bad", 5_000).await;
    assert_eq!(began.elapsed(), Duration::ZERO);
    sleep(MINUTE).await;
    assert_eq!(stubborn.told.lock().expect("no panic").len(), 1);
    assert_eq!(hook.load(Ordering::Relaxed), 1);
}

#[test]
fn invalid_thresholds_are_refused_by_name() {
    let refused = |builder: MonitorBuilder| builder.build().expect_err("refused").to_string();
    let on = || Threshold::on(Rate::DeadLetters);
    assert!(refused(Monitor::builder()).contains("alert_sink"));
    let with = |threshold| refused(monitor(threshold).0);
    assert!(with(on().above(0.0)).contains("above"));
    assert!(with(on().above(f64::NAN)).contains("above"));
    assert!(with(on().above(1.1)).contains("above"));
    assert!(with(on().above(0.1).below(0.2)).contains("below"));
    assert!(with(on().at_least(0)).contains("at_least"));
    assert!(with(on().within(Duration::ZERO)).contains("within"));
    assert!(refused(monitor(on()).0.repeat_after(Duration::ZERO)).contains("repeat_after"));
}

#[tokio::test]
async fn topic_receives_one_alert_and_one_recovery() {
    let Some(localstack) = LocalStack::shared() else {
        return;
    };
    let sqs = support::local_client!(aws_sdk_sqs, localstack.endpoint());
    let sns = support::local_client!(aws_sdk_sns, localstack.endpoint());
    let topic = sns
        .create_topic()
        .name("alerts")
        .send()
        .await
        .expect("CreateTopic");
    let topic = topic.topic_arn.expect("an ARN");
    let queue = sqs
        .create_queue()
        .queue_name("alerts")
        .send()
        .await
        .expect("CreateQueue");
    let queue = queue.queue_url.expect("a URL");
    let attributes = sqs.get_queue_attributes().queue_url(&queue);
    let attributes = attributes
        .attribute_names(QueueAttributeName::QueueArn)
        .send()
        .await;
    let attributes = attributes
        .expect("GetQueueAttributes")
        .attributes
        .expect("attributes");
    let arn = &attributes[&QueueAttributeName::QueueArn];
    let subscribed = sns
        .subscribe()
        .topic_arn(&topic)
        .protocol("sqs")
        .endpoint(arn)
        .send()
        .await;
    subscribed.expect("Subscribe");

    let threshold = Threshold::on(Rate::DeadLetters)
        .above(0.5)
        .at_least(10)
        .within(Duration::from_secs(1));
    let monitor = Monitor::builder()
        .watch(threshold)
        .alert_sink(alert::Sns::new(sns, topic));
    let resilient = resilient(monitor.build().expect("valid"));
    settle(&resilient, "bad", 500).await;
    let mut messages = Vec::new();
    while messages.len() < 2 {
        let call = sqs.receive_message().queue_url(&queue).wait_time_seconds(20);
        let page = call
            .send()
            .await
            .expect("ReceiveMessage")
            .messages
            .unwrap_or_default();
        assert!(!page.is_empty(), "within 20 s: {messages:?}");
        for message in page {
            messages.push(message.body.expect("a body"));
            let delete = sqs.delete_message().queue_url(&queue);
            let delete = delete.set_receipt_handle(message.receipt_handle).send().await;
            delete.expect("DeleteMessage");
        }
    }
    assert!(
        messages[0].contains("billing (raised): dead letters"),
        "{messages:?}"
    );
    assert!(
        messages[1].contains("billing (recovered): dead letters"),
        "{messages:?}"
    );
    // No further message follows.
    let call = sqs.receive_message().queue_url(&queue).wait_time_seconds(3);
    let more = call
        .send()
        .await
        .expect("ReceiveMessage")
        .messages
        .unwrap_or_default();
    assert!(more.is_empty(), "{more:?}");
}

/// A sink that panics at every alert, and also in its `Debug` output.
struct Panics;

impl std::fmt::Debug for Panics {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        panic!("not even a name");
    }
}

#[async_trait]
impl AlertSink for Panics {
    async fn send(&self, _: &Alert) -> Result<(), BoxError> {
        panic!("no");
    }
}

#[tokio::test(start_paused = true)]
async fn panicking_alert_sink_does_not_affect_others() {
    let alerts = alert::Memory::new();
    let threshold = Threshold::on(Rate::FailedAttempts(None)).above(0.2).at_least(50);
    let builder = Monitor::builder().watch(threshold);
    let resilient = resilient(
        builder
            .alert_sink(Panics)
            .alert_sink(alerts.clone())
            .build()
            .expect("valid"),
    );
    settle(&resilient, "bad", 100).await;
    sleep(5 * MINUTE).await;
    assert_eq!(states(&alerts), [AlertState::Raised, AlertState::Recovered]);
}
