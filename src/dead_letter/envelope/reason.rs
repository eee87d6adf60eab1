//! Why there is a letter.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a record was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reason {
    /// Its error was classified as permanent.
    Permanent,
    /// It failed as often as the retry policy allows.
    AttemptsExhausted,
    /// It failed for as long as the retry policy allows.
    TimeExhausted,
    /// The handler panicked, twice.
    Panicked,
    /// It was held, and the stream would have dropped it soon
    /// ([`ExpiryPolicy::DeadLetter`](crate::pipeline::ExpiryPolicy::DeadLetter)).
    Expiring,
    /// The process died three times while it was the only record in hand.
    CrashLoop,
    /// An operator had its shard go on behind it (`redrive shards skip`).
    Operator,
}

/// A text that is no [`Reason`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a reason of dead letters: one of {}", Reason::ALL.map(Reason::as_str).join(", "))]
pub struct InvalidReason;

impl FromStr for Reason {
    type Err = InvalidReason;

    fn from_str(text: &str) -> Result<Self, InvalidReason> {
        let mut all = Reason::ALL.into_iter();
        all.find(|reason| reason.as_str() == text).ok_or(InvalidReason)
    }
}

impl Reason {
    /// All there are.
    pub const ALL: [Reason; 7] = [
        Reason::Permanent,
        Reason::AttemptsExhausted,
        Reason::TimeExhausted,
        Reason::Panicked,
        Reason::Expiring,
        Reason::CrashLoop,
        Reason::Operator,
    ];

    /// The name used in letters, logs and metrics.
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
