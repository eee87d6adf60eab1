//! The batch that is being collected for a batch processor.

use std::collections::{HashMap, HashSet};
use std::pin::Pin;
use std::task::Context;

use tokio::time::{Sleep, sleep};

use super::window::Ordinal;
use crate::dead_letter::Attempts;
use crate::processor::Bounds;

/// A batch that is being collected.
pub(super) struct Gather {
    bounds: Bounds,
    /// The records of the batch that are first in their lane.
    heads: Vec<Ordinal>,
    /// All records of the batch.
    members: HashSet<Ordinal>,
    bytes: usize,
    full: bool,
    /// The timer until which the batch waits for more records.
    linger: Option<Pin<Box<Sleep>>>,
    /// The attempts of records that were tried in a batch and put back. They are tried again alone or in
    /// another batch.
    pub(super) tried: HashMap<Ordinal, Attempts>,
    /// True if the batch could begin, but has no permit.
    pub(super) waits_for_permit: bool,
}

impl Gather {
    pub(super) fn new(bounds: Bounds) -> Self {
        Gather {
            bounds,
            heads: Vec::new(),
            members: HashSet::new(),
            bytes: 0,
            full: false,
            linger: None,
            tried: HashMap::new(),
            waits_for_permit: false,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Returns true if no more records fit.
    pub(super) fn is_full(&self) -> bool {
        self.full
    }

    pub(super) fn contains(&self, ordinal: Ordinal) -> bool {
        self.members.contains(&ordinal)
    }

    /// Adds a record that is first in its lane. Returns whether the record fits.
    pub(super) fn join(&mut self, ordinal: Ordinal, bytes: usize) -> bool {
        let fits = self.join_behind(ordinal, bytes);
        self.heads.extend(fits.then_some(ordinal));
        fits
    }

    /// Adds a record behind one of the batch in its lane. Returns whether the record fits.
    pub(super) fn join_behind(&mut self, ordinal: Ordinal, bytes: usize) -> bool {
        let fits = self.is_empty() || self.bytes.saturating_add(bytes) <= self.bounds.bytes;
        if self.full || !fits {
            self.full = true;
            return false;
        }
        if self.is_empty() && !self.bounds.linger.is_zero() {
            self.linger = Some(Box::pin(sleep(self.bounds.linger)));
        }
        self.members.insert(ordinal);
        self.bytes += bytes;
        self.full = self.members.len() >= self.bounds.size;
        true
    }

    /// Returns whether the batch waits for more records. If so, the task is woken when the wait is over.
    pub(super) fn lingers(&mut self, cx: &mut Context<'_>) -> bool {
        let timer = self.linger.as_mut();
        !self.full && timer.is_some_and(|timer| timer.as_mut().poll(cx).is_pending())
    }

    /// Empties the batch. Returns its records in the shard's order.
    pub(super) fn take(&mut self) -> Vec<Ordinal> {
        let mut members: Vec<Ordinal> = self.members.drain().collect();
        members.sort_unstable();
        self.empty();
        members
    }

    /// Empties the batch. Returns the records that are first in their lane.
    pub(super) fn dissolve(&mut self) -> Vec<Ordinal> {
        let heads = std::mem::take(&mut self.heads);
        self.members.clear();
        self.empty();
        heads
    }

    fn empty(&mut self) {
        self.heads.clear();
        (self.bytes, self.full, self.linger, self.waits_for_permit) = (0, false, None, false);
    }
}
