//! The CloudWatch alarms that an application should have, as data and as a CloudFormation template.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::metric::Metric;

/// The recommended alarms over what [`CloudWatch`](super) or its log format measure of one application and stream.
///
/// ```
/// use std::time::Duration;
/// use redrive::telemetry::Alarms;
///
/// let template = Alarms::new("billing", "orders")
///     .retention(Duration::from_secs(7 * 24 * 60 * 60))
///     .notify("arn:aws:sns:eu-west-1:111122223333:on-call")
///     .cloudformation();
/// println!("{template:#}");
/// ```
///
/// The command prints the same: `redrive alarms --application billing --stream orders`.
#[derive(Debug, Clone)]
#[must_use]
pub struct Alarms {
    application: String,
    stream: String,
    namespace: String,
    retention: Duration,
    dead_letter_queue: Option<String>,
    topics: Vec<String>,
}

/// An alarm.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Alarm {
    /// Short, and unique among those of an application: `ErrorRate`.
    pub name: &'static str,
    /// What it means and what to do.
    pub description: String,
    /// What is looked at.
    pub looks_at: LooksAt,
    /// It is raised above this.
    pub above: f64,
    /// Of one look at it.
    pub period: Duration,
    /// So many of the last looks.
    pub of_periods: u32,
    /// Of these so many must be above.
    pub must_be_above: u32,
    /// Whether it is raised when nothing is measured.
    pub missing_is_bad: bool,
}

/// What an alarm looks at.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum LooksAt {
    /// A metric of redrive's, of the stream or (where it is of no stream) of the application.
    Metric {
        /// Which.
        metric: Metric,
        /// `Sum`, `Maximum`.
        statistic: &'static str,
        /// Whether it is of the stream.
        of_stream: bool,
    },
    /// A metric math expression over metrics of the stream, `m0`, `m1` and so on.
    Expression {
        /// In CloudWatch's language.
        expression: &'static str,
        /// `m0`, `m1`, …, with their statistics.
        metrics: Vec<(Metric, &'static str)>,
    },
    /// The age of a queue's oldest message, in seconds.
    OldestMessage {
        /// The queue.
        queue: String,
    },
}

const MINUTE: Duration = Duration::from_secs(60);

impl Alarms {
    /// Of this application and stream, with the namespace `redrive` and a retention of a day.
    pub fn new(application: impl Into<String>, stream: impl Into<String>) -> Self {
        Alarms {
            application: application.into(),
            stream: stream.into(),
            namespace: "redrive".to_owned(),
            retention: Duration::from_secs(24 * 60 * 60),
            dead_letter_queue: None,
            topics: Vec::new(),
        }
    }

    /// Under which CloudWatch lists the metrics.
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = namespace.into();
        self
    }

    /// The stream's retention, by which ages are judged. Default: 24 hours, which is a stream's at first.
    pub fn retention(mut self, retention: Duration) -> Self {
        self.retention = retention;
        self
    }

    /// An SQS queue that dead letters go to: one more alarm looks at the age of its oldest letter.
    pub fn dead_letter_queue(mut self, name: impl Into<String>) -> Self {
        self.dead_letter_queue = Some(name.into());
        self
    }

    /// An SNS topic that is told of each alarm, and of its end.
    pub fn notify(mut self, topic_arn: impl Into<String>) -> Self {
        self.topics.push(topic_arn.into());
        self
    }

    /// The alarms.
    pub fn all(&self) -> Vec<Alarm> {
        let of_stream = |metric, statistic| LooksAt::Metric {
            metric,
            statistic,
            of_stream: true,
        };
        let of_application = |metric, statistic| LooksAt::Metric {
            metric,
            statistic,
            of_stream: false,
        };
        let share_of_retention = |share: f64| self.retention.mul_f64(share).as_secs_f64() * 1_000.0;
        let mut alarms = vec![
            Alarm {
                looks_at: LooksAt::Expression {
                    expression: "IF(m0 + m1 >= 50, 100 * m0 / (m0 + m1), 0)",
                    metrics: vec![(Metric::AttemptsFailed, "Sum"), (Metric::RecordsProcessed, "Sum")],
                },
                above: 20.0,
                of_periods: 5,
                must_be_above: 3,
                ..Alarm::new(
                    "ErrorRate",
                    "More than a fifth of all attempts fail. Look at the codes of the failures in the log: a dependency, or a deploy.",
                )
            },
            Alarm {
                looks_at: of_stream(Metric::RecordsDeadLettered, "Sum"),
                period: 5 * MINUTE,
                ..Alarm::new(
                    "DeadLetters",
                    "Records were given up. `redrive stats` says why; mend the cause, then `redrive replay`.",
                )
            },
            Alarm {
                looks_at: of_stream(Metric::OldestUnsettledAge, "Maximum"),
                above: share_of_retention(0.25),
                of_periods: 5,
                must_be_above: 5,
                missing_is_bad: true,
                ..Alarm::new(
                    "OldestUnsettled",
                    "A record has waited for a quarter of the stream's retention, or no consumer runs. Kinesis drops what is older than the retention: raise it if this takes long to mend.",
                )
            },
            Alarm {
                looks_at: of_stream(Metric::BehindLatest, "Maximum"),
                above: share_of_retention(0.5),
                of_periods: 5,
                must_be_above: 5,
                missing_is_bad: true,
                ..Alarm::new(
                    "IteratorAge",
                    "The reading is behind by half of the stream's retention, or nothing is read. Raise the retention, then the concurrency or the shards.",
                )
            },
            Alarm {
                looks_at: LooksAt::Expression {
                    expression: "IF(m0 > 0 AND m1 + m2 + m3 == 0, 1, 0)",
                    metrics: vec![
                        (Metric::RecordsInFlight, "Maximum"),
                        (Metric::RecordsProcessed, "Sum"),
                        (Metric::RecordsDuplicate, "Sum"),
                        (Metric::RecordsDeadLettered, "Sum"),
                    ],
                },
                of_periods: 10,
                must_be_above: 10,
                missing_is_bad: true,
                ..Alarm::new(
                    "NoProgress",
                    "Records are there and none was settled for ten minutes, or no consumer runs. Its health report says what it waits for.",
                )
            },
            Alarm {
                looks_at: of_application(Metric::BreakersOpen, "Maximum"),
                of_periods: 5,
                must_be_above: 5,
                ..Alarm::new(
                    "BreakerOpen",
                    "For five minutes a dependency has failed so often that nothing is tried but a few probes. Nothing is lost: it goes on by itself once they succeed.",
                )
            },
            Alarm {
                looks_at: of_application(Metric::LetterFailures, "Sum"),
                of_periods: 3,
                must_be_above: 3,
                ..Alarm::new(
                    "SinkDown",
                    "The dead-letter sink takes no letters. Shards whose next record is to be one wait.",
                )
            },
            Alarm {
                looks_at: of_stream(Metric::ShardsStopped, "Maximum"),
                ..Alarm::new(
                    "GuardStopped",
                    "Most records would become dead letters: a shard has stopped before the next one. Mend the cause and start again, or resume the guard.",
                )
            },
            Alarm {
                looks_at: of_stream(Metric::ShardsHalted, "Sum"),
                period: 5 * MINUTE,
                ..Alarm::new(
                    "ShardHalted",
                    "A shard cannot go on without losing a record; the log says why. Mend it and start again, or `redrive shards skip`.",
                )
            },
            Alarm {
                looks_at: of_stream(Metric::DataLosses, "Sum"),
                period: 5 * MINUTE,
                ..Alarm::new(
                    "DataLoss",
                    "The stream has dropped records before they were settled, or may have. The log says from when to when.",
                )
            },
        ];
        if let Some(queue) = &self.dead_letter_queue {
            alarms.push(Alarm {
                looks_at: LooksAt::OldestMessage { queue: queue.clone() },
                above: Duration::from_secs(2 * 24 * 60 * 60).as_secs_f64(),
                period: 5 * MINUTE,
                ..Alarm::new("OldestLetter", "A dead letter has lain for two days; the queue drops it once it is as old as its retention. `redrive stats`, then `redrive replay`.")
            });
        }
        alarms
    }

    /// A CloudFormation template that makes them.
    pub fn cloudformation(&self) -> Value {
        let resources: Map<String, Value> = self
            .all()
            .iter()
            .map(|alarm| (alarm.name.to_owned(), self.resource(alarm)))
            .collect();
        json!({
            "AWSTemplateFormatVersion": "2010-09-09",
            "Description": format!("Alarms of {} on {}", self.application, self.stream),
            "Resources": resources,
        })
    }

    fn resource(&self, alarm: &Alarm) -> Value {
        let mut properties = json!({
            "AlarmName": format!("{}-{}-{}", self.application, self.stream, alarm.name),
            "AlarmDescription": alarm.description,
            "ComparisonOperator": "GreaterThanThreshold",
            "Threshold": alarm.above,
            "EvaluationPeriods": alarm.of_periods,
            "DatapointsToAlarm": alarm.must_be_above,
            "TreatMissingData": if alarm.missing_is_bad { "breaching" } else { "notBreaching" },
        });
        let period = alarm.period.as_secs();
        match &alarm.looks_at {
            LooksAt::Metric {
                metric,
                statistic,
                of_stream,
            } => {
                properties["Namespace"] = json!(self.namespace);
                properties["MetricName"] = json!(metric.name());
                properties["Dimensions"] = self.dimensions(*of_stream);
                properties["Statistic"] = json!(statistic);
                properties["Period"] = json!(period);
            }
            LooksAt::Expression { expression, metrics } => {
                let mut queries = vec![json!({ "Id": "e", "Expression": expression, "ReturnData": true })];
                queries.extend(metrics.iter().enumerate().map(|(place, (metric, statistic))| {
                    json!({
                        "Id": format!("m{place}"),
                        "ReturnData": false,
                        "MetricStat": {
                            "Metric": {
                                "Namespace": self.namespace,
                                "MetricName": metric.name(),
                                "Dimensions": self.dimensions(true),
                            },
                            "Period": period,
                            "Stat": statistic,
                        },
                    })
                }));
                properties["Metrics"] = json!(queries);
            }
            LooksAt::OldestMessage { queue } => {
                properties["Namespace"] = json!("AWS/SQS");
                properties["MetricName"] = json!("ApproximateAgeOfOldestMessage");
                properties["Dimensions"] = json!([{ "Name": "QueueName", "Value": queue }]);
                properties["Statistic"] = json!("Maximum");
                properties["Period"] = json!(period);
            }
        }
        if !self.topics.is_empty() {
            properties["AlarmActions"] = json!(self.topics);
            properties["OKActions"] = json!(self.topics);
        }
        json!({ "Type": "AWS::CloudWatch::Alarm", "Properties": properties })
    }

    fn dimensions(&self, of_stream: bool) -> Value {
        let mut dimensions = vec![json!({ "Name": "Application", "Value": self.application })];
        if of_stream {
            dimensions.push(json!({ "Name": "Stream", "Value": self.stream }));
        }
        json!(dimensions)
    }
}

impl Alarm {
    /// Raised by the first that there is within a minute.
    fn new(name: &'static str, description: &str) -> Self {
        Alarm {
            name,
            description: description.to_owned(),
            looks_at: LooksAt::OldestMessage { queue: String::new() },
            above: 0.0,
            period: MINUTE,
            of_periods: 1,
            must_be_above: 1,
            missing_is_bad: false,
        }
    }
}
