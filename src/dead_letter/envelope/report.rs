//! The error's texts and the attempts of a dead letter, bounded in size.

use std::fmt;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::bounded::{cut, json_bytes, json_prefix};
use super::{MAX_CODE_BYTES, MAX_NAME_BYTES};
use crate::failure::{Class, Failure};
use crate::rfc3339::{self, to_millis};
use crate::wall_clock;

/// An error with its sources, bounded in size.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ErrorReport {
    /// The Rust type of the error that the processor returned.
    #[serde(rename = "type")]
    pub type_name: String,
    /// The texts of the error and its sources, outermost first; at most 8 KiB as JSON.
    pub chain: Vec<String>,
    /// True if texts were cut to fit.
    pub truncated: bool,
}

/// The attempts on a record: their number, and the first 2 and last 8 calls.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Attempts {
    /// The number of attempts, without probes.
    pub count: u32,
    /// The number of probes: calls of the processor that did not count, because an outage was suspected.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub probes: u32,
    /// The first of the calls.
    pub first: Vec<AttemptReport>,
    /// The last of the calls that are not among the first.
    pub last: Vec<AttemptReport>,
}

/// One call of the processor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct AttemptReport {
    /// The number of the call, counted from 1.
    pub number: u32,
    /// The time at which the call ended.
    #[serde(with = "rfc3339")]
    pub ended_at: SystemTime,
    /// The duration of the call until it failed, in milliseconds; 0 if the processor never waited for
    /// anything.
    pub duration_ms: u64,
    /// The class of the failure: whether another attempt would help.
    pub class: Class,
    /// The error's short code.
    pub code: Option<String>,
}

fn is_zero(count: &u32) -> bool {
    *count == 0
}

impl fmt::Display for Attempts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ending = |count: u32| if count == 1 { "" } else { "s" };
        write!(f, "{} attempt{}", self.count, ending(self.count))?;
        match self.probes {
            0 => Ok(()),
            probes => write!(f, ", {probes} probe{}", ending(probes)),
        }
    }
}

impl Attempts {
    const FIRST: usize = 2;
    const LAST: usize = 8;

    /// Returns the number of all calls of the processor: attempts and probes.
    pub fn calls(&self) -> u32 {
        self.count.saturating_add(self.probes)
    }

    fn add_one(&mut self, counts: bool) {
        let count = if counts { &mut self.count } else { &mut self.probes };
        *count = count.saturating_add(1);
    }

    /// Adds a call that has just ended.
    pub(crate) fn push(&mut self, took: Duration, failure: &Failure, counts: bool) {
        self.add_one(counts);
        let report = AttemptReport {
            number: self.calls(),
            ended_at: to_millis(wall_clock::now()),
            duration_ms: took.as_millis().try_into().unwrap_or(u64::MAX),
            class: failure.verdict().class(),
            code: failure.verdict().code().map(|code| cut(code, MAX_CODE_BYTES)),
        };
        self.add(report);
    }

    /// Adds the last call of `others`, which was also a call for this record.
    pub(crate) fn push_last_of(&mut self, others: &Attempts, counts: bool) {
        if let Some(last) = others.last.last().or(others.first.last()) {
            self.add_one(counts);
            self.add(AttemptReport {
                number: self.calls(),
                ..last.clone()
            });
        }
    }

    fn add(&mut self, report: AttemptReport) {
        if self.first.len() < Self::FIRST {
            self.first.push(report);
        } else {
            if self.last.len() == Self::LAST {
                self.last.remove(0);
            }
            self.last.push(report);
        }
    }
}

impl ErrorReport {
    /// The maximum number of bytes that the chain takes as JSON.
    pub const MAX_CHAIN_BYTES: usize = 8 * 1024;

    pub(super) fn new(type_name: &str, failure: &Failure) -> Self {
        let mut report = ErrorReport {
            type_name: cut(type_name, MAX_NAME_BYTES),
            ..ErrorReport::default()
        };
        let mut left = Self::MAX_CHAIN_BYTES - "[]".len();
        for text in failure.chain() {
            let Some(room) = left.checked_sub("\"\",".len()) else {
                report.truncated = true;
                break;
            };
            let kept = json_prefix(&text, room);
            left = room - json_bytes(kept);
            report.truncated |= kept.len() < text.len();
            report.chain.push(kept.to_owned());
            if report.truncated {
                break;
            }
        }
        report
    }
}
