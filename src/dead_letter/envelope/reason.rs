//! The reason for a dead letter.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The reason why a record became a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reason {
    /// The error was classified as permanent.
    Permanent,
    /// The record failed as often as the retry policy allows.
    AttemptsExhausted,
    /// The record failed for as long as the retry policy allows.
    TimeExhausted,
    /// The processor panicked twice.
    Panicked,
    /// The record was held and about to expire in the stream
    /// ([`ExpiryPolicy::DeadLetter`](crate::pipeline::ExpiryPolicy::DeadLetter)).
    Expiring,
    /// The process died three times while the record was the only one in flight.
    CrashLoop,
    /// An operator skipped the record (`redrive shards skip`).
    Operator,
}

/// A text that is not a [`Reason`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a reason of dead letters; use one of {}", names().join(", "))]
pub struct ParseReasonError;

impl FromStr for Reason {
    type Err = ParseReasonError;

    fn from_str(text: &str) -> Result<Self, ParseReasonError> {
        let mut all = Reason::ALL.iter().copied();
        all.find(|reason| reason.as_str() == text).ok_or(ParseReasonError)
    }
}

fn names() -> Vec<&'static str> {
    Reason::ALL.iter().map(|reason| reason.as_str()).collect()
}

impl Reason {
    /// All reasons.
    pub const ALL: &'static [Reason] = &[
        Reason::Permanent,
        Reason::AttemptsExhausted,
        Reason::TimeExhausted,
        Reason::Panicked,
        Reason::Expiring,
        Reason::CrashLoop,
        Reason::Operator,
    ];

    /// Returns the name used in dead letters, logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Reason::Permanent => "permanent",
            Reason::AttemptsExhausted => "attempts_exhausted",
            Reason::TimeExhausted => "time_exhausted",
            Reason::Panicked => "panicked",
            Reason::Expiring => "expiring",
            Reason::CrashLoop => "crash_loop",
            Reason::Operator => "operator",
        }
    }
}
