//! The window of records that were read: a pure state machine, without async, lock or clock.
//!
//! Records enter in the shard's order and get an ordinal. They settle in any order. The watermark is the last
//! position up to which every record is settled.

use std::collections::VecDeque;

use crate::checkpoint::{Checkpoint, SettledAhead};
use crate::record::{Position, Record};
use crate::sabotage::Sabotage;
use crate::settlement::Settled;

/// A record's place in the order of admission.
pub(crate) type Ordinal = u64;

const NONE: Ordinal = Ordinal::MAX;

/// The records of one shard from the watermark to the newest record read.
#[derive(Debug)]
pub(crate) struct Window {
    /// The ordinal of the ring's front. If the ring is not empty, its front is unsettled.
    base: Ordinal,
    ring: VecDeque<Entry>,
    in_flight: usize,
    watermark: Position,
    /// The last record of the settled run at the front. The watermark is made from it on demand.
    passed: Option<Record>,
    /// The checkpoint of an earlier run; `None` once every record that it covers has been read again.
    earlier: Option<Checkpoint>,
    /// The newest record admitted while `earlier` is set.
    newest: Option<Record>,
}

/// The result of an earlier run for a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Earlier {
    /// The earlier watermark had passed the record.
    Passed,
    /// The record was settled ahead of the earlier watermark.
    Settled,
    /// The record was not settled.
    Unsettled,
}

#[derive(Debug)]
struct Entry {
    /// The record; `None` once it is settled. Only the last record of a settled run is kept, as the watermark
    /// or the ahead-set may end there.
    record: Option<Record>,
    /// The next record of the lane, or `NONE`.
    next: Ordinal,
    lane: u64,
    bytes: u32,
    settled: bool,
    taken: bool,
}

/// The resources that a settlement frees.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Released {
    pub(crate) lane: u64,
    /// The next record of the lane, which may start now.
    pub(crate) next: Option<Ordinal>,
    pub(crate) bytes: u32,
}

impl Window {
    pub(crate) fn new(from: Checkpoint) -> Self {
        Window {
            base: 0,
            ring: VecDeque::new(),
            in_flight: 0,
            watermark: from.position().clone(),
            passed: None,
            earlier: Some(from),
            newest: None,
        }
    }

    /// Returns the result of an earlier run for the next record.
    #[inline]
    pub(crate) fn earlier(&mut self, record: &Record) -> Earlier {
        let Some(earlier) = &self.earlier else {
            return Earlier::Unsettled;
        };
        if earlier.position().covers(record) {
            return Earlier::Passed;
        }
        match earlier.ahead() {
            Some(ahead) if ahead.covers(record) => Earlier::Settled,
            Some(ahead) if !ahead.ends_before(record) => Earlier::Unsettled,
            _ => {
                self.earlier = None;
                self.newest = None;
                Earlier::Unsettled
            }
        }
    }

    /// Returns the ordinal of the next record to be admitted.
    #[inline]
    pub(crate) fn next(&self) -> Ordinal {
        self.base + self.ring.len() as u64
    }

    /// Admits a record behind all others. `bytes` is the memory that the record counts for.
    #[inline]
    pub(crate) fn admit(&mut self, record: Record, lane: u64, bytes: u32) -> Ordinal {
        let ordinal = self.next();
        if self.earlier.is_some() {
            self.newest = Some(record.place());
        }
        self.ring.push_back(Entry {
            record: Some(record),
            next: NONE,
            lane,
            bytes,
            settled: false,
            taken: false,
        });
        self.in_flight += 1;
        ordinal
    }

    /// Links a record behind the one ahead of it in its lane.
    #[inline]
    pub(crate) fn follow(&mut self, ahead: Ordinal, ordinal: Ordinal) {
        if let Some(entry) = self.entry(ahead) {
            entry.next = ordinal;
        }
    }

    /// Hands the record out to be processed. The window keeps its place without the payload.
    #[inline]
    pub(crate) fn take(&mut self, ordinal: Ordinal) -> Option<Record> {
        let entry = self.entry(ordinal).filter(|entry| !entry.settled)?;
        let record = entry.record.take()?;
        entry.record = Some(record.place());
        entry.taken = true;
        Some(record)
    }

    /// Puts back a record that was handed out and not processed.
    pub(crate) fn put_back(&mut self, ordinal: Ordinal, record: Record) {
        if let Some(entry) = self.entry(ordinal).filter(|entry| !entry.settled) {
            (entry.record, entry.taken) = (Some(record), false);
        }
    }

    /// Returns whether the record is or was handed out.
    pub(crate) fn is_taken(&mut self, ordinal: Ordinal) -> bool {
        self.entry(ordinal).is_none_or(|entry| entry.taken)
    }

    /// Returns the record behind this one in its lane, unless that record is handed out.
    pub(crate) fn behind(&mut self, ordinal: Ordinal) -> Option<Ordinal> {
        let next = self.entry(ordinal)?.next;
        (next != NONE && !self.is_taken(next)).then_some(next)
    }

    /// Returns the payload length of a record that is not handed out.
    pub(crate) fn payload_len(&self, ordinal: Ordinal) -> usize {
        self.record(ordinal).map_or(0, |record| record.payload().len())
    }

    /// Settles a record. Returns `None` if no unsettled record has this ordinal.
    #[inline]
    pub(crate) fn settle(&mut self, ordinal: Ordinal, _how: Settled) -> Option<Released> {
        let index = usize::try_from(ordinal.checked_sub(self.base)?).ok()?;
        let entry = self.ring.get_mut(index).filter(|entry| !entry.settled)?;
        entry.settled = true;
        let released = Released {
            lane: entry.lane,
            next: (entry.next != NONE).then_some(entry.next),
            bytes: entry.bytes,
        };
        self.in_flight -= 1;
        if index == 0 {
            self.advance();
        } else {
            self.settle_ahead(index);
        }
        Some(released)
    }

    /// Moves the watermark over the settled run at the front.
    #[inline]
    fn advance(&mut self) {
        while self.ring.front().is_some_and(|entry| entry.settled) {
            if let Some(entry) = self.ring.pop_front() {
                self.base += 1;
                // Only the last entry of a run still has its record, and it is popped last.
                if let Some(record) = entry.record {
                    self.passed = Some(record.into_place());
                }
            }
        }
    }

    /// Drops the records of a run that is settled ahead of the watermark, except the place of the last one.
    fn settle_ahead(&mut self, index: usize) {
        let within = self.ring.get(index + 1).is_some_and(|after| after.settled);
        if let Some(entry) = self.ring.get_mut(index) {
            entry.record = match entry.record.take() {
                Some(record) if !within => Some(record.into_place()),
                _ => None,
            };
        }
        if let Some(before) = self.ring.get_mut(index - 1).filter(|before| before.settled) {
            before.record = None;
        }
    }

    #[inline]
    fn entry(&mut self, ordinal: Ordinal) -> Option<&mut Entry> {
        let index = usize::try_from(ordinal.checked_sub(self.base)?).ok()?;
        self.ring.get_mut(index)
    }

    /// Returns the number of records read and not settled.
    #[inline]
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Returns the distance from the watermark to the newest record.
    #[inline]
    pub(crate) fn span(&self) -> usize {
        self.ring.len()
    }

    /// Returns an unsettled record.
    pub(crate) fn record(&self, ordinal: Ordinal) -> Option<&Record> {
        let index = usize::try_from(ordinal.checked_sub(self.base)?).ok()?;
        self.ring.get(index)?.record.as_ref()
    }

    /// Returns the record that the watermark waits for.
    pub(crate) fn oldest(&self) -> Option<(Ordinal, &Record)> {
        let record = self.ring.front()?.record.as_ref()?;
        Some((self.base, record))
    }

    /// Returns the last position up to which every record is settled.
    pub(crate) fn watermark(&mut self) -> &Position {
        if let Some(record) = self.passed.take() {
            self.watermark = record.position();
        }
        &self.watermark
    }

    /// Returns the watermark, and what is settled ahead of it.
    pub(crate) fn checkpoint(&mut self) -> Checkpoint {
        if let Some((_, oldest)) = self.oldest().filter(|_| Sabotage::CheckpointEarly.is_committed()) {
            return Checkpoint::at(oldest.position());
        }
        let checkpoint = Checkpoint::at(self.watermark().clone());
        match self.ahead() {
            Some(ahead) => checkpoint.with_ahead(ahead),
            None => checkpoint,
        }
    }

    fn ahead(&self) -> Option<SettledAhead> {
        // This checkpoint replaces the earlier run's. It must keep what the earlier run settled and this run
        // has not read again yet.
        let before = self.earlier.as_ref().and_then(Checkpoint::ahead);
        let before = before.filter(|ahead| self.newest.as_ref().is_none_or(|newest| !ahead.ends_at(newest)));
        let end = match before {
            Some(_) => self.ring.len(),
            None => self.ring.iter().rposition(|entry| entry.settled)?,
        };
        let mut builder = SettledAhead::builder(self.watermark.clone());
        let mut hole: Option<(&Record, &Record)> = None;
        for entry in self.ring.range(..end) {
            match (&entry.record, entry.settled) {
                (Some(record), false) => hole = Some((hole.map_or(record, |(first, _)| first), record)),
                _ => {
                    if let Some((first, last)) = hole.take() {
                        builder.hole(first, last);
                    }
                }
            }
        }
        if let Some((first, last)) = hole {
            builder.hole(first, last);
        }
        match before {
            Some(before) => Some(builder.settled_as_before(self.newest.as_ref(), before)),
            None => Some(builder.settled_through(self.ring.get(end)?.record.as_ref()?)),
        }
    }
}

#[cfg(test)]
mod tests;
