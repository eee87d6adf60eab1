//! Alarms and dashboards: what they name exists, what is printed is accepted, and a burst of errors raises an alarm.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::process::Command;
use std::time::{Duration, Instant};

use aws_sdk_cloudwatch::Client;
use aws_sdk_cloudwatch::types::{ComparisonOperator, Dimension, StateValue, Statistic};
use redrive::lambda::{Event, Function};
use redrive::telemetry::{Alarms, CloudWatch, Emf, Kind, LooksAt, Metric, Metrics};
use redrive::{Resilient, RetryPolicy, dead_letter};
use serde_json::Value;
use support::cloudwatch;
use support::emulator::{home, repository};
use support::localstack::{LocalStack, endpoint_of_user};
use support::script::{Script, record};

fn read(name: &str) -> String {
    let path = repository().join("dashboards").join(name);
    std::fs::read_to_string(path).expect("it is there")
}

fn alarms() -> Alarms {
    Alarms::new("billing", "orders")
        .dead_letter_queue("orders-dlq")
        .notify("arn:aws:sns:us-east-1:000000000000:on-call")
}

/// Of the same in AWS Lambda.
fn alarms_of_function() -> Alarms {
    alarms().lambda("billing-function")
}

#[test]
fn every_query_of_the_cloudwatch_dashboard_names_a_metric_that_exists() {
    let names: BTreeSet<&str> = Metric::ALL.iter().map(|metric| metric.name()).collect();
    let dashboard: Value = serde_json::from_str(&read("cloudwatch.json")).expect("JSON");
    let mut shown = BTreeSet::new();
    for widget in dashboard["widgets"].as_array().expect("widgets") {
        for query in widget["properties"]["metrics"].as_array().expect("metrics") {
            let query = query.as_array().expect("a list");
            // An expression is over those beside it.
            if query[0].is_object() {
                continue;
            }
            assert_eq!(query[0], "redrive", "{query:?}");
            let name = query[1].as_str().expect("a name");
            assert!(names.contains(name), "{name}");
            shown.insert(name.to_owned());
        }
    }
    // And none is forgotten.
    assert_eq!(
        shown.len(),
        names.len(),
        "{:?}",
        names.difference(&shown.iter().map(String::as_str).collect())
    );
}

#[test]
fn every_query_of_the_grafana_dashboard_names_a_metric_that_exists() {
    let names: BTreeSet<String> = Metric::ALL.iter().map(|metric| Metrics::name(*metric)).collect();
    let text = read("grafana.json");
    let dashboard: Value = serde_json::from_str(&text).expect("JSON");
    assert!(
        dashboard["panels"]
            .as_array()
            .is_some_and(|panels| panels.len() > 10)
    );
    let is_of_name = |c: char| c == '_' || c.is_ascii_lowercase();
    let mut found = 0;
    for (at, _) in text.match_indices("redrive_") {
        let name: String = text[at..].chars().take_while(|&c| is_of_name(c)).collect();
        assert!(names.contains(&name), "{name}");
        found += 1;
    }
    assert!(found > 25, "{found}");
}

#[test]
fn every_metric_is_explained() {
    let path = repository().join("docs/operations.md");
    let text = std::fs::read_to_string(path).expect("it is there");
    for metric in Metric::ALL {
        assert!(text.contains(&format!("`{}`", metric.name())), "{metric:?}");
    }
    for alarm in alarms().all().into_iter().chain(alarms_of_function().all()) {
        assert!(text.contains(&format!("**{}**", alarm.name)), "{}", alarm.name);
    }
}

#[test]
fn each_alarm_looks_at_what_is_measured_and_ages_are_bad_when_they_are_missing() {
    let alarms = alarms().retention(Duration::from_secs(100 * 3_600)).all();
    let names: BTreeSet<&str> = alarms.iter().map(|alarm| alarm.name).collect();
    assert_eq!(names.len(), alarms.len());
    let mut thresholds = BTreeMap::new();
    for alarm in &alarms {
        assert!(
            alarm.must_be_above >= 1 && alarm.must_be_above <= alarm.of_periods,
            "{alarm:?}"
        );
        assert!(alarm.description.len() > 40, "{alarm:?}");
        if let LooksAt::Metric { metric, .. } = alarm.looks_at {
            let is_an_age = [Metric::OldestUnsettledAge, Metric::BehindLatest].contains(&metric);
            assert_eq!(alarm.missing_is_bad, is_an_age, "{alarm:?}");
        }
        thresholds.insert(alarm.name, alarm.above);
    }
    // A quarter and a half of the retention, in milliseconds.
    assert_eq!(thresholds["OldestUnsettled"], 25.0 * 3_600_000.0);
    assert_eq!(thresholds["IteratorAge"], 50.0 * 3_600_000.0);
}

/// A function does not read, and so measures neither an age nor what is in flight: an alarm that misses them is raised for
/// ever.
#[test]
fn an_alarm_of_a_function_looks_at_what_there_is_in_lambda() {
    let alarms = alarms_of_function().all();
    let is_measured = |metric: &Metric| {
        let of_reading = [
            Metric::OldestUnsettledAge,
            Metric::BehindLatest,
            Metric::RecordsInFlight,
            Metric::DataLosses,
            Metric::ShardsHalted,
        ];
        !of_reading.contains(metric)
    };
    let mut missing_is_bad = Vec::new();
    for alarm in &alarms {
        match &alarm.looks_at {
            LooksAt::Metric { metric, .. } => assert!(is_measured(metric), "{alarm:?}"),
            LooksAt::Expression { metrics, .. } => {
                assert!(metrics.iter().all(|(metric, _)| is_measured(metric)), "{alarm:?}");
            }
            _ => {}
        }
        missing_is_bad.extend(alarm.missing_is_bad.then_some(alarm.name));
    }
    // Only whoever polls does so without a record.
    assert_eq!(missing_is_bad, ["StreamNotRead"]);
}

/// To CloudWatch one plus nothing is nothing, and an alarm that nothing is bad for would be raised: what is summed up is told
/// also where there is none.
#[tokio::test]
async fn what_is_reckoned_with_is_always_told() {
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    let emf = Emf::new("billing").writer(writer);
    let resilient = Resilient::builder("billing", Script::default())
        .dead_letters(dead_letter::Memory::new())
        .observer(emf)
        .build()
        .expect("valid");
    let _ = resilient.settle(&record(1, "k", "ok")).await.expect("settled");
    Function::new(resilient)
        .settle(
            Event::from_slice(b"{\"Records\": []}").expect("an event"),
            far_away(),
        )
        .await
        .expect("an answer");
    let mut line = String::new();
    reader.read_to_string(&mut line).expect("text");
    let line: Value = serde_json::from_str(&line).expect("JSON");
    let mut reckoned = 0;
    for alarm in alarms().all().iter().chain(&alarms_of_function().all()) {
        let LooksAt::Expression { metrics, .. } = &alarm.looks_at else {
            continue;
        };
        for (metric, _) in metrics.iter().filter(|(metric, _)| metric.kind() == Kind::Sum) {
            assert!(
                line[metric.name()].is_number(),
                "{metric:?} for {}: {line}",
                alarm.name
            );
            reckoned += 1;
        }
    }
    assert!(reckoned > 4);
}

fn far_away() -> tokio::time::Instant {
    tokio::time::Instant::now() + Duration::from_secs(600)
}

#[test]
fn what_is_printed_is_accepted() {
    let Some(localstack) = LocalStack::shared() else {
        return;
    };
    if endpoint_of_user().is_some() {
        return;
    }
    is_accepted(localstack, &alarms(), "service.json");
    is_accepted(localstack, &alarms_of_function(), "function.json");
}

fn is_accepted(localstack: &LocalStack, alarms: &Alarms, file: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let template = folder.path().join(file);
    std::fs::write(&template, alarms.cloudformation().to_string()).expect("written");
    let made = Command::new(home("localstack").join("venv/bin/python"))
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/localstack/stack.py"))
        .arg(localstack.endpoint())
        .arg(&template)
        .output()
        .expect("python runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let statuses: BTreeMap<String, String> = serde_json::from_slice(&made.stdout).expect("JSON");
    let expected: BTreeSet<String> = alarms.all().iter().map(|alarm| alarm.name.to_owned()).collect();
    assert_eq!(statuses.keys().cloned().collect::<BTreeSet<_>>(), expected);
    assert!(
        statuses.values().all(|status| status == "CREATE_COMPLETE"),
        "{statuses:?}"
    );
}

async fn state(client: &Client) -> StateValue {
    let answer = client.describe_alarms().alarm_names("dead-letters").send().await;
    let alarms = answer.expect("DescribeAlarms").metric_alarms.unwrap_or_default();
    alarms[0].state_value.clone().expect("a state")
}

async fn until(client: &Client, wanted: StateValue) {
    let began = Instant::now();
    while state(client).await != wanted {
        assert!(began.elapsed() < Duration::from_secs(180), "{wanted:?}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

#[tokio::test]
async fn a_burst_of_errors_raises_an_alarm_and_its_end_lowers_it() {
    let Some(localstack) = LocalStack::shared() else {
        return;
    };
    let client = support::local_client!(aws_sdk_cloudwatch, cloudwatch::endpoint(localstack));
    let dimension = |name: &str, value: &str| Dimension::builder().name(name).value(value).build();
    client
        .put_metric_alarm()
        .alarm_name("dead-letters")
        .namespace("redrive")
        .metric_name("RecordsDeadLettered")
        .dimensions(dimension("Application", "billing"))
        .dimensions(dimension("Stream", "orders"))
        .statistic(Statistic::Sum)
        .comparison_operator(ComparisonOperator::GreaterThanThreshold)
        .threshold(0.0)
        // The shortest there is, so that the test is short.
        .period(10)
        .evaluation_periods(1)
        .treat_missing_data("notBreaching")
        .send()
        .await
        .expect("PutMetricAlarm");
    let cloudwatch = CloudWatch::new(client.clone(), "billing");
    let resilient = Resilient::builder("billing", Script::default())
        .retry(RetryPolicy::constant(Duration::ZERO).max_attempts(1))
        .without_guard()
        .dead_letters(dead_letter::Memory::new())
        .observer(cloudwatch.clone())
        .build()
        .expect("valid");
    let _ = resilient.settle(&record(1, "k", "ok")).await.expect("settled");
    cloudwatch.close().await;
    until(&client, StateValue::Ok).await;
    for number in 2..12 {
        let _ = resilient
            .settle(&record(number, "k", "bad"))
            .await
            .expect("settled");
    }
    cloudwatch.close().await;
    until(&client, StateValue::Alarm).await;
    let _ = resilient.settle(&record(20, "k", "ok")).await.expect("settled");
    cloudwatch.close().await;
    until(&client, StateValue::Ok).await;
}
