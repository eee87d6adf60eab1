//! Somebody is told: the port, and who is.
//!
//! | sink | for |
//! |---|---|
//! | [`Log`] | `tracing` events at WARN |
//! | [`Memory`] | tests |
//! | [`Webhook`] | a function of yours: a chat, a pager |
#![cfg_attr(feature = "sns", doc = "| [`Sns`] | a topic: mail, a pager, a function |")]

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

/// Tells somebody.
#[async_trait]
pub trait AlertSink: Send + Sync + fmt::Debug {
    /// Tells of this alert. What fails is tried twice more, then it is logged and given up.
    async fn send(&self, alert: &Alert) -> Result<(), BoxError>;
}

const _: Option<&dyn AlertSink> = None;

#[async_trait]
impl<S: AlertSink + ?Sized> AlertSink for Arc<S> {
    async fn send(&self, alert: &Alert) -> Result<(), BoxError> {
        (**self).send(alert).await
    }
}

/// A rate is too high, or is no longer. Its text has nothing of a record in it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Alert {
    /// The application.
    pub application: String,
    /// What is too high.
    pub rate: Rate,
    /// What became of it.
    pub state: AlertState,
    /// The share, from 0 to 1.
    pub share: f64,
    /// The share that raises an alert.
    pub above: f64,
    /// How many there were within the window.
    pub of: u64,
    /// The window.
    pub within: Duration,
    /// Since when it is too high.
    pub since: SystemTime,
}

/// What became of an alert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AlertState {
    /// It is too high from now on.
    Raised,
    /// It is still too high.
    Repeated,
    /// It is no longer.
    Recovered,
}

impl AlertState {
    /// In one word.
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
