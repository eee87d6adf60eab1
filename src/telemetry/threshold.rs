//! Thresholds of rates: the settings of a [`Monitor`](super::Monitor).

use std::time::Duration;

use crate::config::ConfigError;
use crate::failure::Class;

/// A rate that a [`Monitor`](super::Monitor) watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Rate {
    /// Attempts that failed, of all attempts that ended: with failures of one class, or with any failure. A
    /// call with several records counts as one attempt of each record.
    FailedAttempts(Option<Class>),
    /// Records that became dead letters, of all settled records.
    DeadLetters,
    /// Records settled later than this after their arrival, of all settled records.
    SlowerThan(Duration),
}

/// A rate, and the share at which an alert is raised. [`MonitorBuilder::build`](super::MonitorBuilder::build)
/// checks the settings.
///
/// | setting | default |
/// |---|---|
/// | [`above`](Threshold::above) | 5 % |
/// | [`below`](Threshold::below) | half of `above` |
/// | [`at_least`](Threshold::at_least) | 50 |
/// | [`within`](Threshold::within) | a minute |
#[derive(Debug, Clone, PartialEq)]
#[must_use]
pub struct Threshold {
    pub(super) rate: Rate,
    pub(super) above: f64,
    pub(super) below: Option<f64>,
    pub(super) at_least: u64,
    pub(super) within: Duration,
}

impl Threshold {
    /// Creates a threshold on this rate, with the defaults above.
    pub fn on(rate: Rate) -> Self {
        Threshold {
            rate,
            above: 0.05,
            below: None,
            at_least: 50,
            within: Duration::from_secs(60),
        }
    }

    /// Sets the share, more than 0 and at most 1, that raises an alert when it is reached or exceeded.
    pub fn above(mut self, share: f64) -> Self {
        self.above = share;
        self
    }

    /// Sets the share below which the alert ends: more than 0, and at most the share that raises it. The gap to [`above`](Threshold::above) keeps a rate in
    /// between from raising and ending alerts in turn.
    pub fn below(mut self, share: f64) -> Self {
        self.below = Some(share);
        self
    }

    /// Sets the minimum number of attempts or records in the window: at least 1. With fewer, no alert is raised.
    pub fn at_least(mut self, count: u64) -> Self {
        self.at_least = count;
        self
    }

    /// Sets the length of the sliding window: at least 1 s.
    pub fn within(mut self, window: Duration) -> Self {
        self.within = window;
        self
    }

    pub(super) fn clears_below(&self) -> f64 {
        self.below.unwrap_or(self.above / 2.0)
    }

    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        if !(self.above > 0.0 && self.above <= 1.0) {
            let problem = format!("must be more than 0 and at most 1, not {}", self.above);
            return Err(ConfigError::new("above", problem));
        }
        if !(self.clears_below() > 0.0 && self.clears_below() <= self.above) {
            let problem = format!(
                "must be more than 0 and at most {}, the share that raises the alert, not {}",
                self.above,
                self.clears_below()
            );
            return Err(ConfigError::new("below", problem));
        }
        if self.within < Duration::from_secs(1) {
            let problem = format!("must be at least 1 s, not {:?}", self.within);
            return Err(ConfigError::new("within", problem));
        }
        if self.at_least == 0 {
            return Err(ConfigError::new("at_least", "must be at least 1"));
        }
        Ok(())
    }
}
