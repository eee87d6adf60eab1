//! Alerts on an SNS topic.

use std::fmt;

use async_trait::async_trait;
use aws_sdk_sns::Client;

use super::{Alert, AlertSink};
use crate::aws::{self, Located};
use crate::failure::BoxError;

/// Publishes each alert to an SNS topic, as a subject and a readable text.
///
/// Permissions: `sns:Publish` on the topic.
pub struct Sns {
    client: Located<Client>,
    topic_arn: String,
}

/// The maximum number of characters in a subject (Publish, SNS API reference).
const SUBJECT: usize = 100;

impl Sns {
    /// Creates a sink that publishes to the topic with this ARN.
    pub fn new(client: Client, topic_arn: impl Into<String>) -> Self {
        Sns {
            client: aws::sns::with_timeout(&client, aws::ATTEMPT_TIMEOUT),
            topic_arn: topic_arn.into(),
        }
    }
}

#[async_trait]
impl AlertSink for Sns {
    async fn send(&self, alert: &Alert) -> Result<(), BoxError> {
        let subject = format!("{} ({}): {}", alert.application, alert.state.as_str(), alert.rate);
        // SNS accepts only ASCII without control characters.
        let is_taken = |c: &char| c.is_ascii() && !c.is_ascii_control();
        let subject: String = subject.chars().filter(is_taken).take(SUBJECT).collect();
        let call = self.client.publish().topic_arn(&self.topic_arn);
        call.subject(subject).message(alert.to_string()).send().await?;
        Ok(())
    }
}

impl fmt::Debug for Sns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sns")
            .field("topic_arn", &self.topic_arn)
            .finish_non_exhaustive()
    }
}
