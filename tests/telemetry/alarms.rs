//! Alarms and dashboards: the metrics that they name exist, CloudFormation accepts the template, and a burst
//! of errors raises an alarm.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::process::Command;
use std::time::{Duration, Instant};

use aws_sdk_cloudwatch::Client;
use aws_sdk_cloudwatch::types::{ComparisonOperator, Dimension, StateValue, Statistic};
use redrive::lambda::{Event, Function};
use redrive::telemetry::{CloudWatch, Emf, Kind, Metric, Metrics};
use redrive::testing::Script;
use redrive::{Resilient, RetryPolicy, dead_letter};
use serde_json::Value;
use support::cloudwatch;
use support::emulator::{home, repository};
use support::localstack::{LocalStack, endpoint_of_user};
use support::script::record;

fn read(name: &str) -> String {
    let path = repository().join("deploy").join(name);
    std::fs::read_to_string(path).expect("a file of the repository")
}

/// One alarm of the template, with its lines.
struct Alarm {
    name: String,
    text: String,
}

impl Alarm {
    /// Returns the values of this property, at every level of the alarm.
    fn all<'a>(&'a self, property: &str) -> impl Iterator<Item = &'a str> {
        let key = format!("{property}: ");
        let lines = self.text.lines();
        lines.filter_map(move |line| Some(line.split_once(&key)?.1.trim()))
    }

    /// Returns the metrics of redrive that the alarm evaluates.
    fn metrics(&self) -> Vec<Metric> {
        if !self.all("Namespace").any(|it| it == "!Ref Namespace") {
            return Vec::new();
        }
        let names = self.all("MetricName");
        names
            .map(|name| metric(name).unwrap_or_else(|| panic!("{name}")))
            .collect()
    }

    fn is_raised_without_data(&self) -> bool {
        self.all("TreatMissingData").any(|it| it == "breaching")
    }

    fn is_of_function(&self) -> bool {
        self.all("Condition").any(|it| it == "IsFunction")
    }

    fn number(&self, property: &str) -> u32 {
        let value = self.all(property).next().expect("the property is set");
        value.parse().expect("a number")
    }
}

fn metric(name: &str) -> Option<Metric> {
    Metric::ALL.iter().copied().find(|metric| metric.name() == name)
}

fn alarms() -> Vec<Alarm> {
    let template = read("alarms.yaml");
    let (_, resources) = template.split_once("\nResources:\n").expect("resources");
    let mut alarms: Vec<Alarm> = Vec::new();
    for line in resources.lines() {
        let is_name = line.starts_with("  ") && !line.starts_with("   ");
        if let Some(name) = line.trim().strip_suffix(':').filter(|_| is_name) {
            alarms.push(Alarm {
                name: name.to_owned(),
                text: String::new(),
            });
        } else if let Some(alarm) = alarms.last_mut() {
            alarm.text.push_str(line);
            alarm.text.push('\n');
        }
    }
    assert!(alarms.len() >= 15, "{} alarms", alarms.len());
    alarms
}

#[test]
fn cloudwatch_dashboard_queries_name_existing_metrics() {
    let names: BTreeSet<&str> = Metric::ALL.iter().map(|metric| metric.name()).collect();
    let dashboard: Value = serde_json::from_str(&read("dashboards/cloudwatch.json")).expect("JSON");
    let mut shown = BTreeSet::new();
    for widget in dashboard["widgets"].as_array().expect("widgets") {
        for query in widget["properties"]["metrics"].as_array().expect("metrics") {
            let query = query.as_array().expect("a list");
            // An expression refers to the other metrics of its widget.
            if query[0].is_object() {
                continue;
            }
            assert_eq!(query[0], "redrive", "{query:?}");
            let name = query[1].as_str().expect("a name");
            assert!(names.contains(name), "{name}");
            shown.insert(name.to_owned());
        }
    }
    // The dashboard shows every metric.
    assert_eq!(
        shown.len(),
        names.len(),
        "{:?}",
        names.difference(&shown.iter().map(String::as_str).collect())
    );
}

#[test]
fn grafana_dashboard_queries_name_existing_metrics() {
    let names: BTreeSet<String> = Metric::ALL.iter().map(|metric| Metrics::name(*metric)).collect();
    let text = read("dashboards/grafana.json");
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
fn every_metric_and_alarm_is_documented() {
    let path = repository().join("docs/operations.md");
    let text = std::fs::read_to_string(path).expect("a file of the repository");
    for metric in Metric::ALL {
        assert!(text.contains(&format!("`{}`", metric.name())), "{metric:?}");
    }
    for alarm in alarms() {
        assert!(text.contains(&format!("**{}**", alarm.name)), "{}", alarm.name);
    }
}

#[test]
fn alarm_metrics_exist_and_missing_ages_raise_alarms() {
    let mut of_redrive = 0;
    for alarm in alarms() {
        let name = &alarm.name;
        let (points, periods) = (
            alarm.number("DatapointsToAlarm"),
            alarm.number("EvaluationPeriods"),
        );
        assert!(points >= 1 && points <= periods, "{name}");
        assert_eq!(alarm.all("AlarmDescription").count(), 1, "{name}");
        let metrics = alarm.metrics();
        of_redrive += usize::from(!metrics.is_empty());
        if let [metric] = metrics[..] {
            let is_an_age = [Metric::OldestUnsettledAge, Metric::BehindLatest].contains(&metric);
            assert_eq!(alarm.is_raised_without_data(), is_an_age, "{name}");
        }
    }
    assert!(of_redrive > 10, "{of_redrive}");
}

/// Checks the alarms of a Lambda function. A function does not read from Kinesis, so it reports neither an
/// age nor records in flight. An alarm on such a metric would be raised permanently.
#[test]
fn function_alarms_use_metrics_that_lambda_reports() {
    let of_reading = [
        Metric::OldestUnsettledAge,
        Metric::BehindLatest,
        Metric::RecordsInFlight,
        Metric::DataLosses,
        Metric::ShardsHalted,
    ];
    let mut raised_without_data = Vec::new();
    for alarm in alarms() {
        let is_of_service = alarm.all("Condition").any(|it| it == "IsService");
        if is_of_service {
            continue;
        }
        let reading = alarm
            .metrics()
            .into_iter()
            .find(|metric| of_reading.contains(metric));
        assert_eq!(reading, None, "{}", alarm.name);
        raised_without_data.extend(alarm.is_raised_without_data().then_some(alarm.name));
    }
    // The event source mapping also reports metrics while there are no records.
    assert_eq!(raised_without_data, ["StreamNotRead"]);
}

/// Reports the metrics in alarm expressions even when they are zero. In CloudWatch a sum with a missing value
/// is missing, and could raise an alarm that treats missing data as breaching.
#[tokio::test]
async fn metrics_in_alarm_expressions_are_always_reported() {
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    let emf = Emf::new().writer(writer);
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
    for alarm in alarms() {
        if !alarm.text.contains("      Metrics:\n") {
            continue;
        }
        for metric in alarm
            .metrics()
            .into_iter()
            .filter(|metric| metric.kind() == Kind::Sum)
        {
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
fn cloudformation_accepts_the_template() {
    let Some(localstack) = LocalStack::shared() else {
        return;
    };
    if endpoint_of_user().is_some() {
        return;
    }
    let topic = "Topic=arn:aws:sns:us-east-1:000000000000:on-call";
    let all = alarms();
    let names = |is_left_out: &dyn Fn(&Alarm) -> bool| -> BTreeSet<String> {
        let left = all.iter().filter(|alarm| !is_left_out(alarm));
        left.map(|alarm| alarm.name.clone()).collect()
    };
    let is_of = |alarm: &Alarm, condition: &str| alarm.all("Condition").any(|it| it == condition);
    let service = names(&|alarm| alarm.is_of_function() || is_of(alarm, "HasQueue"));
    assert_eq!(created(localstack, "service", &[]), service);
    let function = names(&|alarm| is_of(alarm, "IsService"));
    let parameters = ["Function=billing-function", "DeadLetterQueue=orders-dlq", topic];
    assert_eq!(created(localstack, "function", &parameters), function);
}

/// Creates a stack of the template, and returns the names of its alarms.
fn created(localstack: &LocalStack, stack: &str, parameters: &[&str]) -> BTreeSet<String> {
    let made = Command::new(home("localstack").join("venv/bin/python"))
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/localstack/stack.py"))
        .args([localstack.endpoint(), stack])
        .arg(repository().join("deploy/alarms.yaml"))
        .args([&format!("Application={stack}"), "Stream=orders"])
        .args(parameters)
        .output()
        .expect("python runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let names: Vec<String> = serde_json::from_slice(&made.stdout).expect("JSON");
    let prefix = format!("{stack}-orders-");
    let names = names
        .iter()
        .map(|name| name.strip_prefix(&prefix).expect("the alarm's name"));
    names.map(str::to_owned).collect()
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
        // CloudWatch's shortest period, so that the test is short.
        .period(10)
        .evaluation_periods(1)
        .treat_missing_data("notBreaching")
        .send()
        .await
        .expect("PutMetricAlarm");
    let cloudwatch = CloudWatch::new(client.clone());
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
