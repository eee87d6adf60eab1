//! Alert sinks: the trait and its implementations.
//!
//! | sink | for |
//! |---|---|
//! | [`Log`] | `tracing` events at WARN |
//! | [`Memory`] | tests |
//! | [`Webhook`] | a function of yours, which posts to a chat or a pager |
#![cfg_attr(feature = "sns", doc = "| [`Sns`] | an SNS topic: mail, a pager |")]

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;

use super::threshold::Rate;
use crate::failure::BoxError;

mod log;
mod memory;
#[cfg(feature = "sns")]
mod sns;
mod webhook;

pub use log::Log;
pub use memory::Memory;
#[cfg(feature = "sns")]
pub use sns::Sns;
pub use webhook::Webhook;

/// Sends alerts.
#[async_trait]
pub trait AlertSink: Send + Sync + fmt::Debug {
    /// Sends an alert. The monitor drops a call after 30 s. It retries a failed call twice, then logs the
    /// alert at WARN and drops it.
    async fn send(&self, alert: &Alert) -> Result<(), BoxError>;
}

const _: Option<&dyn AlertSink> = None;

#[async_trait]
impl<S: AlertSink + ?Sized> AlertSink for Arc<S> {
    async fn send(&self, alert: &Alert) -> Result<(), BoxError> {
        (**self).send(alert).await
    }
}

/// A report that a rate is too high, or has recovered. It contains no data of a record.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Alert {
    /// The application's name.
    pub application: String,
    /// The rate that is too high.
    pub rate: Rate,
    /// The state of the alert.
    pub state: AlertState,
    /// The share within the window, from 0 to 1.
    pub share: f64,
    /// The share that raises an alert.
    pub above: f64,
    /// The number of attempts or records within the window, good and bad.
    pub of: u64,
    /// The length of the window.
    pub within: Duration,
    /// The time at which the rate became too high.
    pub since: SystemTime,
}

/// The state of an alert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AlertState {
    /// The rate has become too high.
    Raised,
    /// The rate is still too high.
    Repeated,
    /// The rate is no longer too high.
    Recovered,
}

impl AlertState {
    /// Returns the state in one word.
    pub const fn as_str(self) -> &'static str {
        match self {
            AlertState::Raised => "raised",
            AlertState::Repeated => "repeated",
            AlertState::Recovered => "recovered",
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Rate::FailedAttempts(None) => f.write_str("failed attempts"),
            Rate::FailedAttempts(Some(class)) => write!(f, "attempts with {class} failures"),
            Rate::DeadLetters => f.write_str("dead letters"),
            Rate::SlowerThan(limit) => write!(f, "records settled later than {limit:?}"),
        }
    }
}

impl fmt::Display for Alert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Alert {
            application,
            rate,
            of,
            within,
            ..
        } = self;
        let (share, above) = (self.share * 100.0, self.above * 100.0);
        let how = match self.state {
            AlertState::Raised => "too many",
            AlertState::Repeated => "still too many",
            AlertState::Recovered => "no longer too many",
        };
        write!(
            f,
            "{application}: {how} {rate}: {share:.1} % of {of} within {within:?}, the limit is {above} %"
        )
    }
}
