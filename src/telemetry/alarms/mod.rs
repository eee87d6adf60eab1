//! The CloudWatch alarms that an application should have, as data and as a CloudFormation template.

use std::time::Duration;

mod recommended;
mod template;

use super::metric::Metric;
use recommended::of_queue;

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
/// For a function in AWS Lambda say so ([`lambda`](Alarms::lambda)): it is Lambda that reads the stream, and that says how far
/// it is behind.
///
/// The command prints the same: `redrive alarms --application billing --stream orders`.
#[derive(Debug, Clone)]
#[must_use]
pub struct Alarms {
    application: String,
    stream: String,
    namespace: String,
    retention: Duration,
    function: Option<String>,
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
    /// A metric of an AWS service.
    Service {
        /// `AWS/SQS`
        namespace: &'static str,
        /// `ApproximateAgeOfOldestMessage`
        metric: &'static str,
        /// `Maximum`
        statistic: &'static str,
        /// `QueueName`, and the queue's.
        dimension: (&'static str, String),
    },
}

impl Alarms {
    /// Of this application and stream, with the namespace `redrive` and a retention of a day.
    pub fn new(application: impl Into<String>, stream: impl Into<String>) -> Self {
        Alarms {
            application: application.into(),
            stream: stream.into(),
            namespace: "redrive".to_owned(),
            retention: Duration::from_secs(24 * 60 * 60),
            function: None,
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

    /// The function in AWS Lambda that the processor runs in. Without it the alarms are those of a service.
    pub fn lambda(mut self, function: impl Into<String>) -> Self {
        self.function = Some(function.into());
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
        let mut alarms = self.common();
        alarms.extend(match &self.function {
            None => self.of_service(),
            Some(function) => self.of_function(function),
        });
        alarms.extend(self.dead_letter_queue.as_deref().map(of_queue));
        alarms
    }
}
