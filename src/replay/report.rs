//! What became of the letters.

use std::fmt;

use crate::dead_letter::{DeadLetter, DecodeError, SinkError};
use crate::failure::BoxError;
use crate::record::DeadLetterId;
use crate::settlement::Unsettled;

use super::source::Remaining;

/// What became of one letter.
#[derive(Debug)]
#[non_exhaustive]
pub enum Outcome {
    /// It is confirmed: put into the stream, processed, written to the sink.
    Replayed {
        /// It may have been before, by a run that was interrupted in the middle of it.
        possibly_repeated: bool,
    },
    /// The idempotency store knew its record as processed.
    Duplicate,
    /// Its record failed again, and is in the dead-letter queue under this id.
    DeadLettered(DeadLetterId),
    /// It is done: by an earlier run, or this one has met another copy of it.
    AlreadyReplayed,
    /// It would be driven again, were this not a [dry run](super::Replay::dry_run).
    DryRun,
    /// The filter does not match it.
    NotMatched,
    /// It is no dead letter of redrive's.
    Foreign,
    /// It cannot be read.
    Unreadable(DecodeError),
    /// It begins as a message of Lambda's, and cannot be read.
    Damaged(BoxError),
    /// Something was taken out before it was written: it is not what was put into the stream.
    Redacted,
    /// It was driven again as often as is allowed.
    RedriveLimit {
        /// So many times.
        count: u32,
    },
    /// It came back within this run; it is for the next one.
    Returned,
    /// Its payload is kept elsewhere, and cannot be had from there.
    NoPayload(BoxError),
    /// The target can never take it.
    Refused(SinkError),
    /// It was processed by an earlier run, or in another delivery: it was among others that were given up.
    Completed,
    /// A record that Lambda gave up is no longer in its stream.
    Gone(BoxError),
    /// The run ended before it.
    Unsettled(Unsettled),
    /// Another copy of it was not done.
    DuplicateCopy,
    /// Not tried, as one of its partition key ahead of it was not done.
    Blocked,
}

impl Outcome {
    /// Its message may go, once all of the message's letters are so.
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

    /// Whether somebody should look at it.
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

    /// In one word, for output that programs read.
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
            } => f.write_str("driven again"),
            Outcome::Replayed {
                possibly_repeated: true,
            } => f.write_str("driven again; maybe for the second time, as an earlier run was interrupted"),
            Outcome::Duplicate => f.write_str("its record is known as processed"),
            Outcome::DeadLettered(id) => write!(f, "its record failed again: letter {id}"),
            Outcome::AlreadyReplayed => f.write_str("done already"),
            Outcome::DryRun => f.write_str("would be driven again"),
            Outcome::NotMatched => f.write_str("does not match"),
            Outcome::Foreign => f.write_str("not a dead letter of redrive; left where it is"),
            Outcome::Unreadable(error) => write!(f, "cannot be read, left where it is: {error}"),
            Outcome::Damaged(error) => write!(f, "cannot be read, left where it is: {error}"),
            Outcome::Redacted => {
                f.write_str("redacted: it is not what was put into the stream, and is not driven again")
            }
            Outcome::RedriveLimit { count } => {
                write!(
                    f,
                    "driven again {count} times before and failed again; mend the cause, or allow more"
                )
            }
            Outcome::Returned => f.write_str("came back within this run; it is for the next one"),
            Outcome::NoPayload(error) => write!(f, "{error}"),
            Outcome::Refused(error) => write!(f, "refused: {error}"),
            Outcome::Completed => {
                f.write_str("its record is known as processed; there is nothing to drive again")
            }
            Outcome::Gone(error) => write!(f, "{error}"),
            Outcome::Unsettled(error) => write!(f, "left for the next run: {error}"),
            Outcome::DuplicateCopy => f.write_str("another copy of it, which was not done either"),
            Outcome::Blocked => {
                f.write_str("left for the next run, as one of its key ahead of it was not done")
            }
        }
    }
}

/// One letter, where it was, and what became of it.
#[derive(Debug)]
#[non_exhaustive]
pub struct Progress<'a> {
    /// Where the letter's message is.
    pub place: &'a str,
    /// The letter, if it could be read.
    pub letter: Option<&'a DeadLetter>,
    /// What became of it.
    pub outcome: &'a Outcome,
}

/// What became of all of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Messages that were read.
    pub read: u64,
    /// Letters that were driven again and are confirmed.
    pub replayed: u64,
    /// Of these: so many may have been before, by a run that was interrupted.
    pub possibly_repeated: u64,
    /// Letters whose record the idempotency store knew as processed.
    pub duplicates: u64,
    /// Letters whose record failed again, and is a letter again.
    pub dead_lettered: u64,
    /// Letters that were done: by an earlier run, or in another copy.
    pub already: u64,
    /// Letters that would be driven again, in a dry run.
    pub would: u64,
    /// Letters that do not match the filter.
    pub not_matched: u64,
    /// Messages that are no letters of redrive's.
    pub foreign: u64,
    /// Letters that cannot be read.
    pub unreadable: u64,
    /// Letters of which something was taken out.
    pub redacted: u64,
    /// Letters that were driven again as often as is allowed.
    pub too_often: u64,
    /// Letters that came back within this run.
    pub returned: u64,
    /// Letters whose payload is gone.
    pub no_payload: u64,
    /// Letters that the target can never take.
    pub refused: u64,
    /// Records that Lambda gave up and the stream has dropped.
    pub gone: u64,
    /// Letters that the run has not come to: it was stopped, or one of their key ahead of them was not done.
    pub unsettled: u64,
    /// Messages that the source holds and has not given.
    pub rest: Remaining,
    /// Messages that are done and could not be removed: the next run removes them.
    pub not_removed: u64,
    /// Messages that were removed.
    pub removed: u64,
    /// Whether the letters of a key were driven again in their order: not from a standard queue, where only those were that
    /// were collected together.
    pub in_order: bool,
    /// Whether it was stopped before its end.
    pub stopped: bool,
    /// Whether it ended at its [limit](super::Replay::limit). Letters beyond the limit stay as they are.
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

    /// What was counted, each with what it is called: for showing.
    pub fn counts(&self) -> [(&'static str, u64); 20] {
        [
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

    /// Whether all that was meant was done.
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
