//! Outcomes of dead letters, and the report of a run.

use std::fmt;

use crate::dead_letter::{DeadLetter, DecodeError, SinkError};
use crate::failure::BoxError;
use crate::record::DeadLetterId;
use crate::settlement::Unsettled;

use super::source::Remaining;

/// The outcome of one dead letter.
#[derive(Debug)]
#[non_exhaustive]
pub enum Outcome {
    /// The target confirmed it: the record was put into the stream or processed, or the dead letter was
    /// written to the sink.
    Replayed {
        /// True if a run that was interrupted may have replayed the record before.
        possibly_repeated: bool,
    },
    /// The idempotency store has the record as processed.
    Duplicate,
    /// The record failed again, and is in the dead-letter queue under this id.
    DeadLettered(DeadLetterId),
    /// The dead letter is done already: by an earlier run, or through another copy in this run.
    AlreadyReplayed,
    /// The dead letter would be replayed if this were not a [dry run](super::Replay::dry_run).
    DryRun,
    /// The filter does not match the dead letter.
    NotMatched,
    /// The message is not a dead letter of redrive.
    Foreign,
    /// The dead letter cannot be read.
    Unreadable(DecodeError),
    /// The message of a Lambda on-failure destination is invalid, or names records that this run may not
    /// read.
    Damaged(BoxError),
    /// The dead letter was redacted before it was written. Its payload is not what was put into the stream.
    Redacted,
    /// The record was replayed as often as [`max_redrives`](super::Replay::max_redrives) allows.
    RedriveLimit {
        /// The number of earlier replays.
        count: u32,
    },
    /// The dead letter came back within this run. It is left for the next run.
    Returned,
    /// The payload is stored elsewhere and cannot be fetched.
    NoPayload(BoxError),
    /// The target can never accept the dead letter.
    Refused(SinkError),
    /// The dead letter is [suspect](DeadLetter::suspect), and the idempotency store has its record as
    /// processed: by an earlier run, or in another delivery.
    Completed,
    /// A record of a batch that Lambda gave up is no longer in its stream.
    Gone(BoxError),
    /// The processor did not settle the record, for example because the run was stopped.
    Unsettled(Unsettled),
    /// Another copy of the dead letter was sent and is not done.
    DuplicateCopy,
    /// The dead letter was not sent: the run was stopped, the target failed, or an earlier one of its key is
    /// not done.
    Blocked,
}

impl Outcome {
    /// Returns true if the message can be removed once this holds for all of its dead letters.
    pub(super) fn is_done(&self) -> bool {
        matches!(
            self,
            Outcome::Replayed { .. }
                | Outcome::Duplicate
                | Outcome::DeadLettered(_)
                | Outcome::AlreadyReplayed
                | Outcome::Completed
        )
    }

    /// Returns true if an operator should check this outcome.
    pub fn is_trouble(&self) -> bool {
        matches!(
            self,
            Outcome::DeadLettered(_)
                | Outcome::Unreadable(_)
                | Outcome::Damaged(_)
                | Outcome::Redacted
                | Outcome::RedriveLimit { .. }
                | Outcome::NoPayload(_)
                | Outcome::Refused(_)
                | Outcome::Gone(_)
        )
    }

    /// Returns the outcome as one word, for output that programs read.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Outcome::Replayed { .. } => "replayed",
            Outcome::Duplicate => "duplicate",
            Outcome::DeadLettered(_) => "dead_lettered",
            Outcome::AlreadyReplayed => "already_replayed",
            Outcome::DryRun => "dry_run",
            Outcome::NotMatched => "not_matched",
            Outcome::Foreign => "foreign",
            Outcome::Unreadable(_) | Outcome::Damaged(_) => "unreadable",
            Outcome::Redacted => "redacted",
            Outcome::RedriveLimit { .. } => "redrive_limit",
            Outcome::Returned => "returned",
            Outcome::NoPayload(_) => "no_payload",
            Outcome::Refused(_) => "refused",
            Outcome::Completed => "completed",
            Outcome::Gone(_) => "gone",
            Outcome::Unsettled(_) => "unsettled",
            Outcome::DuplicateCopy => "duplicate_copy",
            Outcome::Blocked => "blocked",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Replayed {
                possibly_repeated: false,
            } => f.write_str("replayed"),
            Outcome::Replayed {
                possibly_repeated: true,
            } => f.write_str("replayed; possibly twice, because an earlier run was interrupted"),
            Outcome::Duplicate => f.write_str("already processed, according to the idempotency store"),
            Outcome::DeadLettered(id) => write!(f, "failed again; now dead letter {id}"),
            Outcome::AlreadyReplayed => f.write_str("already replayed"),
            Outcome::DryRun => f.write_str("would be replayed"),
            Outcome::NotMatched => f.write_str("does not match the filter"),
            Outcome::Foreign => f.write_str("not a dead letter of redrive; left where it is"),
            Outcome::Unreadable(error) => write!(f, "cannot be read, left where it is: {error}"),
            Outcome::Damaged(error) => write!(f, "cannot be read, left where it is: {error}"),
            Outcome::Redacted => {
                f.write_str("not replayed: redacted, so it is not what was put into the stream")
            }
            Outcome::RedriveLimit { count } => {
                write!(
                    f,
                    "replayed {count} times and failed again; fix the cause, or raise max_redrives"
                )
            }
            Outcome::Returned => f.write_str("came back within this run; left for the next run"),
            Outcome::NoPayload(error) => write!(f, "{error}"),
            Outcome::Refused(error) => write!(f, "refused: {error}"),
            Outcome::Completed => {
                f.write_str("not replayed: already processed, according to the idempotency store")
            }
            Outcome::Gone(error) => write!(f, "{error}"),
            Outcome::Unsettled(error) => write!(f, "left for the next run: {error}"),
            Outcome::DuplicateCopy => f.write_str("left for the next run, like another copy of it"),
            Outcome::Blocked => {
                f.write_str("not sent: the run ended, or an earlier dead letter of its key is not done")
            }
        }
    }
}

/// One dead letter, its place and its outcome.
#[derive(Debug)]
#[non_exhaustive]
pub struct Progress<'a> {
    /// The place of the message.
    pub place: &'a str,
    /// The dead letter, if it could be read.
    pub letter: Option<&'a DeadLetter>,
    /// The outcome of the dead letter.
    pub outcome: &'a Outcome,
}

/// The counts of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Messages that were read.
    pub read: u64,
    /// Dead letters that were replayed and confirmed.
    pub replayed: u64,
    /// The part of `replayed` that a run which was interrupted may have replayed before.
    pub possibly_repeated: u64,
    /// Dead letters whose record the idempotency store has as processed.
    pub duplicates: u64,
    /// Dead letters whose record failed again and became a dead letter again.
    pub dead_lettered: u64,
    /// Dead letters that were done already: by an earlier run, or through another copy.
    pub already: u64,
    /// Dead letters that would be replayed, in a dry run.
    pub would: u64,
    /// Dead letters that do not match the filter.
    pub not_matched: u64,
    /// Messages that are not dead letters of redrive.
    pub foreign: u64,
    /// Messages that cannot be read.
    pub unreadable: u64,
    /// Dead letters that were redacted.
    pub redacted: u64,
    /// Dead letters whose record was replayed as often as is allowed.
    pub too_often: u64,
    /// Dead letters that came back within this run.
    pub returned: u64,
    /// Dead letters whose payload cannot be fetched.
    pub no_payload: u64,
    /// Dead letters that the target can never accept.
    pub refused: u64,
    /// Records of batches that Lambda gave up which the stream has dropped.
    pub gone: u64,
    /// Dead letters that were not settled: the run was stopped, the target failed, or an earlier one of their
    /// key is not done.
    pub unsettled: u64,
    /// Messages that the source still holds and did not return.
    pub rest: Remaining,
    /// Messages that are done and could not be removed. The next run removes them.
    pub not_removed: u64,
    /// Messages that were removed.
    pub removed: u64,
    /// True if the dead letters of each key were replayed in order. False for a standard queue, where only
    /// those collected together are in order.
    pub in_order: bool,
    /// True if the run was stopped before its end.
    pub stopped: bool,
    /// True if the run ended at its [limit](super::Replay::limit). Dead letters beyond the limit stay as they
    /// are.
    pub limit_reached: bool,
}

impl Report {
    pub(super) fn count(&mut self, outcome: &Outcome) {
        let of = match outcome {
            Outcome::Replayed { possibly_repeated } => {
                self.possibly_repeated += u64::from(*possibly_repeated);
                &mut self.replayed
            }
            Outcome::Duplicate | Outcome::Completed => &mut self.duplicates,
            Outcome::DeadLettered(_) => &mut self.dead_lettered,
            Outcome::AlreadyReplayed => &mut self.already,
            Outcome::DryRun => &mut self.would,
            Outcome::NotMatched => &mut self.not_matched,
            Outcome::Foreign => &mut self.foreign,
            Outcome::Unreadable(_) | Outcome::Damaged(_) => &mut self.unreadable,
            Outcome::Redacted => &mut self.redacted,
            Outcome::RedriveLimit { .. } => &mut self.too_often,
            Outcome::Returned => &mut self.returned,
            Outcome::NoPayload(_) => &mut self.no_payload,
            Outcome::Refused(_) => &mut self.refused,
            Outcome::Gone(_) => &mut self.gone,
            Outcome::Unsettled(_) | Outcome::DuplicateCopy | Outcome::Blocked => &mut self.unsettled,
        };
        *of += 1;
    }

    /// Returns the counts with their names, for display.
    pub fn counts(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("read", self.read),
            ("replayed", self.replayed),
            ("possibly_repeated", self.possibly_repeated),
            ("duplicates", self.duplicates),
            ("dead_lettered", self.dead_lettered),
            ("already_replayed", self.already),
            ("dry_run", self.would),
            ("not_matched", self.not_matched),
            ("foreign", self.foreign),
            ("unreadable", self.unreadable),
            ("redacted", self.redacted),
            ("redrive_limit", self.too_often),
            ("returned", self.returned),
            ("no_payload", self.no_payload),
            ("refused", self.refused),
            ("gone", self.gone),
            ("unsettled", self.unsettled),
            ("blocked", self.rest.behind),
            ("hidden", self.rest.hidden),
            ("not_removed", self.not_removed),
        ]
    }

    /// Returns true if the run was not stopped and left no dead letter that failed, was not settled or was
    /// not removed.
    pub fn is_clean(&self) -> bool {
        let left = [
            self.unreadable,
            self.redacted,
            self.too_often,
            self.no_payload,
            self.refused,
            self.gone,
            self.unsettled,
            self.rest.behind,
            self.rest.hidden,
            self.not_removed,
            self.dead_lettered,
        ];
        left.iter().all(|&count| count == 0) && !self.stopped
    }
}
