//! The queue of records that run as soon as permits, breakers and the dead-letter guard allow.

use std::collections::VecDeque;

use super::window::Ordinal;
use crate::engine::Group;
use crate::record::Record;

pub(super) enum Next {
    First(Ordinal),
    Again(Box<Group>),
}

/// Untried records and records to be retried, each kind in its order of arrival. The two kinds take turns, so
/// that neither starves the other, even under load or while a breaker lets only a few through.
#[derive(Default)]
pub(super) struct RunQueue {
    first: VecDeque<Ordinal>,
    again: VecDeque<Box<Group>>,
    again_is_next: bool,
}

impl RunQueue {
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.first.is_empty() && self.again.is_empty()
    }

    /// Returns the number of untried records.
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

    /// Takes the next untried record.
    pub(super) fn pop_first(&mut self) -> Option<Ordinal> {
        self.first.pop_front()
    }

    /// Takes the next group to be retried.
    pub(super) fn pop_again(&mut self) -> Option<Box<Group>> {
        self.again.pop_front()
    }

    pub(super) fn push_again(&mut self, group: Box<Group>) {
        self.again.push_back(group);
    }

    #[inline]
    pub(super) fn pop(&mut self) -> Option<Next> {
        self.pop_if(|_| true)
    }

    /// Takes the next entry. Among the groups to be retried, takes the first that `may` allows.
    #[inline]
    pub(super) fn pop_if(&mut self, may: impl Fn(&Group) -> bool) -> Option<Next> {
        if self.again_is_next || self.first.is_empty() {
            self.again_is_next = false;
            let index = self.again.iter().position(|group| may(group));
            if let Some(group) = index.and_then(|index| self.again.remove(index)) {
                return Some(Next::Again(group));
            }
        }
        self.again_is_next = true;
        self.first.pop_front().map(Next::First)
    }

    /// Takes out, in their order, all entries that `is` selects by ordinal. For a group that was tried, `is`
    /// also gets its first record.
    pub(super) fn take_if(&mut self, mut is: impl FnMut(Ordinal, Option<&Record>) -> bool) -> Vec<Next> {
        let mut taken = Vec::new();
        self.again = std::mem::take(&mut self.again)
            .into_iter()
            .filter_map(|group| {
                let takes = group
                    .first()
                    .is_some_and(|one| is(one.ordinal, Some(&one.record)));
                match takes {
                    true => {
                        taken.push(Next::Again(group));
                        None
                    }
                    false => Some(group),
                }
            })
            .collect();
        self.first.retain(|&ordinal| {
            let takes = is(ordinal, None);
            taken.extend(takes.then_some(Next::First(ordinal)));
            !takes
        });
        taken
    }

    /// Takes out the groups of several records whose first record `is` selects.
    pub(super) fn take_groups_if(&mut self, is: impl Fn(&Record) -> bool) -> VecDeque<Box<Group>> {
        let is_first = |group: &Group| group.first().is_some_and(|first| is(&first.record));
        let again = std::mem::take(&mut self.again).into_iter();
        let (groups, others): (VecDeque<_>, VecDeque<_>) =
            again.partition(|group| group.has_several() && is_first(group));
        self.again = others;
        groups
    }

    /// Empties the queue. Returns the groups that were tried before.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Box<Group>> + '_ {
        self.first.clear();
        self.again.drain(..)
    }
}
