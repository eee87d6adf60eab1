//! What may run as soon as it is allowed to.

use std::collections::VecDeque;

use super::window::Ordinal;
use crate::record::Record;
use crate::resilient::{Group, RetryState};

/// A record that was tried and will be tried again, or a group of them.
pub(super) struct Waiting {
    pub(super) ordinal: Ordinal,
    pub(super) record: Record,
    pub(super) state: Box<RetryState>,
    /// The records that go on together; of one by itself none. Then the record is the first one's place.
    pub(super) group: Group,
}

pub(super) enum Next {
    First(Ordinal),
    Again(Waiting),
}

/// Records not tried yet and records to be tried again, each in the order in which they came. They have
/// turns, so that neither keeps the other out: not when there is much to do, and not when a breaker lets
/// only a few of them through.
#[derive(Default)]
pub(super) struct Ready {
    first: VecDeque<Ordinal>,
    again: VecDeque<Waiting>,
    again_is_next: bool,
}

impl Ready {
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.first.is_empty() && self.again.is_empty()
    }

    /// How many have not been tried yet.
    pub(super) fn untried(&self) -> usize {
        self.first.len()
    }

    #[inline]
    pub(super) fn push_first(&mut self, ordinal: Ordinal) {
        self.first.push_back(ordinal);
    }

    pub(super) fn push_front(&mut self, ordinal: Ordinal) {
        self.first.push_front(ordinal);
    }

    /// The next that has not been tried yet.
    pub(super) fn pop_first(&mut self) -> Option<Ordinal> {
        self.first.pop_front()
    }

    /// The next that has been.
    pub(super) fn pop_again(&mut self) -> Option<Waiting> {
        self.again.pop_front()
    }

    pub(super) fn push_again(&mut self, waiting: Waiting) {
        self.again.push_back(waiting);
    }

    #[inline]
    pub(super) fn pop(&mut self) -> Option<Next> {
        self.pop_if(|_| true)
    }

    /// The next one; of those to be tried again, the first that may.
    #[inline]
    pub(super) fn pop_if(&mut self, may: impl Fn(&RetryState) -> bool) -> Option<Next> {
        if self.again_is_next || self.first.is_empty() {
            self.again_is_next = false;
            let index = self.again.iter().position(|waiting| may(&waiting.state));
            if let Some(waiting) = index.and_then(|index| self.again.remove(index)) {
                return Some(Next::Again(waiting));
            }
        }
        self.again_is_next = true;
        self.first.pop_front().map(Next::First)
    }

    /// Takes out, in their order, all that this says of: their ordinals, and the records of those that were tried.
    pub(super) fn take_if(&mut self, mut is: impl FnMut(Ordinal, Option<&Record>) -> bool) -> Vec<Next> {
        let mut taken = Vec::new();
        self.again = std::mem::take(&mut self.again)
            .into_iter()
            .filter_map(|waiting| match is(waiting.ordinal, Some(&waiting.record)) {
                true => {
                    taken.push(Next::Again(waiting));
                    None
                }
                false => Some(waiting),
            })
            .collect();
        self.first.retain(|&ordinal| {
            let takes = is(ordinal, None);
            taken.extend(takes.then_some(Next::First(ordinal)));
            !takes
        });
        taken
    }

    /// Takes out the groups of whose first record this says so.
    pub(super) fn take_groups_if(&mut self, is: impl Fn(&Record) -> bool) -> Vec<Waiting> {
        let is_one = |waiting: &Waiting| !waiting.group.is_empty() && is(&waiting.record);
        let again = std::mem::take(&mut self.again).into_iter();
        let (groups, others): (Vec<_>, Vec<_>) = again.partition(is_one);
        self.again = others.into();
        groups
    }

    /// Empties it. Returns what was tried before.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Waiting> + '_ {
        self.first.clear();
        self.again.drain(..)
    }
}
