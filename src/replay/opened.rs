//! Messages that were read, with their dead letters and the outcomes.

use std::collections::HashSet;

use super::report::Outcome;
use super::source::Message;
use crate::dead_letter::DeadLetter;
use crate::record::DeadLetterId;

/// A message and its content.
pub(super) struct Opened {
    pub(super) message: Message,
    pub(super) letters: Vec<Opening>,
}

pub(super) struct Opening {
    pub(super) letter: Option<Box<DeadLetter>>,
    /// The outcome; `None` until the dead letter is settled, or if it is beyond the limit.
    pub(super) outcome: Option<Outcome>,
}

/// Marks a copy of a dead letter as done if the copy that was sent is done.
pub(super) fn settle_copies(opened: &mut [Opened]) {
    let openings = || opened.iter().flat_map(|opened| &opened.letters);
    let is_copy = |opening: &&Opening| matches!(opening.outcome, Some(Outcome::DuplicateCopy));
    if openings().filter(is_copy).count() == 0 {
        return;
    }
    let done: HashSet<DeadLetterId> = openings()
        .filter(|opening| {
            let outcome = opening.outcome.as_ref();
            outcome.is_some_and(|outcome| outcome.is_done() || matches!(outcome, Outcome::DryRun))
        })
        .filter_map(|opening| Some(opening.letter.as_ref()?.id))
        .collect();
    for opening in opened.iter_mut().flat_map(|opened| &mut opened.letters) {
        if let (Some(letter), Some(Outcome::DuplicateCopy)) = (&opening.letter, &opening.outcome) {
            opening.outcome = Some(match done.contains(&letter.id) {
                true => Outcome::AlreadyReplayed,
                false => Outcome::DuplicateCopy,
            });
        }
    }
}
