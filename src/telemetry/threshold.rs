//! When a rate is too high.

use std::time::Duration;

use crate::config::ConfigError;
use crate::failure::Class;

/// What is watched: a share of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Rate {
    /// Attempts that failed, of all that ended: with one class of failures, or with any. A call with many records is an
    /// attempt of each.
    FailedAttempts(Option<Class>),
    /// Records that became dead letters, of all that were settled.
    DeadLetters,
    /// Records that were settled later than this after they had arrived, of all that were settled.
    SlowerThan(Duration),
}

/// A rate, and from where on somebody is told.
///
/// | setting | default |
/// |---|---|
/// | [`above`](Threshold::above) | 5 % |
/// | [`below`](Threshold::below) | half of it |
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
    /// On this rate.
    pub fn on(rate: Rate) -> Self {
        Threshold {
            rate,
            above: 0.05,
            below: None,
            at_least: 50,
            within: Duration::from_secs(60),
        }
    }

    /// An alert is raised at this share, from 0 to 1, and above.
    pub fn above(mut self, share: f64) -> Self {
        self.above = share;
        self
    }

    /// It is over below this one: apart from the other, so that a rate in between does not make it come and go.
    pub fn below(mut self, share: f64) -> Self {
        self.below = Some(share);
        self
    }

    /// Fewer within the window say nothing.
    pub fn at_least(mut self, count: u64) -> Self {
        self.at_least = count;
        self
    }

    /// The window that slides.
    pub fn within(mut self, window: Duration) -> Self {
        self.within = window;
        self
    }

    pub(super) fn clears_below(&self) -> f64 {
        self.below.unwrap_or(self.above / 2.0)
    }

    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        if !(self.above > 0.0 && self.above <= 1.0) {
            return Err(ConfigError::new("above", "a share is above 0 and at most 1"));
        }
        if !(self.clears_below() > 0.0 && self.clears_below() <= self.above) {
            return Err(ConfigError::new(
                "below",
                "an alert ends at a share above 0 that is not above the one that raises it",
            ));
        }
        if self.within < Duration::from_secs(1) {
            return Err(ConfigError::new("within", "a window has a second at least"));
        }
        if self.at_least == 0 {
            return Err(ConfigError::new(
                "at_least",
                "a share of nothing says nothing: 1 at least",
            ));
        }
        Ok(())
    }
}
