//! Checks the topic at start.

use super::{MESSAGE_LIMIT, Sns};
use crate::dead_letter::{DeadLetter, SourceStream, TargetError, Warning};
use crate::failure::BoxError;

/// The record limit that every stream has at least, in bytes. It is the limit of a new stream.
const RECORD_LIMIT: u64 = 1024 * 1024;

impl Sns {
    pub(super) async fn look_at_target(&self, source: &SourceStream) -> Result<Vec<Warning>, TargetError> {
        let name = || self.topic().to_owned();
        match self.is_subscribed_to().await {
            Ok(true) => {}
            Ok(false) => return Err(TargetError::NobodyListens { name: name() }),
            Err(source) => return Err(TargetError::Unreachable { name: name(), source }),
        }
        let record = source.max_record_bytes.unwrap_or(RECORD_LIMIT);
        // Base64 makes the payload larger by a third.
        let needed = record.div_ceil(3) * 4 + DeadLetter::MAX_ENVELOPE_BYTES as u64;
        let too_small = (MESSAGE_LIMIT < needed).then(|| Warning {
            message: format!(
                "the dead-letter topic {:?} takes messages of up to {MESSAGE_LIMIT} bytes, but a dead letter may have {needed}; larger ones are refused",
                self.topic()
            ),
            remedy: format!(
                "add a fallback sink for larger dead letters: {MESSAGE_LIMIT} bytes is the most that SNS takes"
            ),
        });
        Ok(too_small.into_iter().collect())
    }

    /// Returns true if the topic has a confirmed subscription. An unconfirmed subscription has a text such as
    /// `PendingConfirmation` in place of its ARN. All pages are read, because an empty page may be followed
    /// by others. If a token repeats, the paginator returns an error.
    async fn is_subscribed_to(&self) -> Result<bool, BoxError> {
        let call = self
            .reader
            .list_subscriptions_by_topic()
            .topic_arn(&self.topic_arn);
        let mut pages = call.into_paginator().send();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|error| {
                let task = format!(
                    "list the subscriptions of the dead-letter topic {:?}",
                    self.topic()
                );
                self.reader.failed(task, "sns:ListSubscriptionsByTopic", error)
            })?;
            let subscriptions = page.subscriptions.unwrap_or_default();
            let mut arns = subscriptions
                .iter()
                .filter_map(|subscription| subscription.subscription_arn());
            if arns.any(|arn| arn.starts_with("arn:")) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
