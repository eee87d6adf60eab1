//! `redrive alarms`: the recommended alarms, as a CloudFormation template.

use std::time::Duration;

use clap::Args;
use redrive::BoxError;
use redrive::telemetry;

use crate::Ended;
use crate::output;

/// Print the recommended CloudWatch alarms as a CloudFormation template
///
/// They look at what the CloudWatch and EMF observers measure. To make them:
/// redrive alarms --application billing --stream orders > alarms.json
/// aws cloudformation deploy --stack-name billing-alarms --template-file alarms.json
#[derive(Debug, Args)]
pub(crate) struct Alarms {
    /// The application, as its processor is called
    #[arg(long, value_name = "NAME")]
    application: String,
    /// The stream
    #[arg(long)]
    stream: String,
    /// The stream's retention
    #[arg(long, default_value = "24h", value_name = "TIME", value_parser = humantime::parse_duration)]
    retention: Duration,
    /// The function in AWS Lambda that the processor runs in; without it the alarms are a service's
    #[arg(long, value_name = "FUNCTION")]
    lambda: Option<String>,
    /// The SQS queue that dead letters go to
    #[arg(long, value_name = "QUEUE")]
    dead_letter_queue: Option<String>,
    /// An SNS topic to be told
    #[arg(long, value_name = "ARN")]
    topic: Vec<String>,
    /// Under which CloudWatch lists the metrics
    #[arg(long, default_value = "redrive")]
    namespace: String,
}

impl Alarms {
    pub(crate) fn run(self) -> Result<Ended, BoxError> {
        let mut alarms = telemetry::Alarms::new(self.application, self.stream)
            .namespace(self.namespace)
            .retention(self.retention);
        if let Some(function) = self.lambda {
            alarms = alarms.lambda(function);
        }
        if let Some(queue) = self.dead_letter_queue {
            alarms = alarms.dead_letter_queue(queue);
        }
        let alarms = self.topic.into_iter().fold(alarms, telemetry::Alarms::notify);
        output::line(format_args!("{:#}", alarms.cloudformation()));
        Ok(Ended::Done)
    }
}
