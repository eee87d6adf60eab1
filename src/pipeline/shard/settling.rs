//! The records that are read and not settled, and the position up to which the shard is settled.

use super::super::capacity::{Capacity, Reservation};
use super::super::lanes::{Lanes, RecordOrder};
use super::super::progress::Progress;
use super::super::settled_counts::Counted;
use super::super::unread::NextRecord;
use super::super::window::{Ordinal, Released, Window};
use super::intake::Arrival;
use crate::checkpoint::Checkpoint;
use crate::pipeline::arrival_watermark::ReadUntil;
use crate::pipeline::payload_memory::{OVERHEAD, PayloadMemory};
use crate::record::Record;
use crate::settlement::Settled;

pub(super) struct Settling {
    pub(super) window: Window,
    pub(super) lanes: Lanes,
    read_until: ReadUntil,
    buffers: PayloadMemory,
    memory: Reservation,
    /// Bytes to release at the end of the turn.
    freed: usize,
    counted: Counted,
    /// True if the checkpoint has changed since the last one was published.
    changed: bool,
    /// True if the next checkpoint should not wait, as after a dead letter.
    urgent: bool,
}

impl Settling {
    pub(super) fn new(from: Checkpoint, ordering: RecordOrder, capacity: &Capacity) -> Self {
        Settling {
            read_until: ReadUntil::new(from.read_until()),
            window: Window::new(from),
            lanes: Lanes::new(ordering),
            buffers: PayloadMemory::default(),
            memory: capacity.reservation(),
            freed: 0,
            counted: Counted::default(),
            changed: false,
            urgent: false,
        }
    }

    /// Takes in a batch that was just read.
    pub(super) fn arrived(&mut self, arrival: Arrival) {
        let Arrival {
            read_until,
            is_empty,
            reservation,
        } = arrival;
        self.read_until.batch(read_until, self.window.next());
        if is_empty {
            self.batch_admitted();
            // An idle shard makes a checkpoint for the stated time alone.
            self.changed |= read_until.is_some() && self.window.in_flight() == 0;
        }
        if let Some(reservation) = reservation {
            self.memory.absorb(reservation);
        }
    }

    /// Marks the batch as admitted: all its records are in the window.
    pub(super) fn batch_admitted(&mut self) {
        self.read_until.admitted(self.window.next());
    }

    /// Returns the memory that the next record counts for. `behind`: the records of its batch that come after
    /// it.
    #[inline]
    pub(super) fn weigh(&mut self, next: &NextRecord, behind: &[Record]) -> u32 {
        let ordinal = self.window.next();
        if next.is_made {
            if let Some((records, bytes)) = next.opens {
                self.buffers.open(ordinal, records, bytes);
            }
            // The reservation covers the bytes of the aggregate, not the overhead of each record made from
            // it.
            self.memory.grow(OVERHEAD);
        }
        self.buffers.weigh(&next.record, behind, ordinal)
    }

    /// Frees the record weighed last, which needs no place in the window: the checkpoint has passed it.
    pub(super) fn passed(&mut self, bytes: u32) {
        self.freed += self.buffers.passed(bytes);
    }

    /// Admits a record that an earlier run settled ahead of its checkpoint. The record gets a place in the
    /// window, so that the next checkpoint remembers it as well.
    pub(super) fn settled_before(&mut self, record: Record, bytes: u32) {
        let ordinal = self.window.admit(record, 0, 0);
        self.window.settle(ordinal, Settled::Processed);
        self.passed(bytes);
        self.changed = true;
    }

    /// Settles a record. Returns the resources that this frees; `None` if the record was settled already.
    #[inline]
    pub(super) fn settle(&mut self, ordinal: Ordinal, settled: Settled) -> Option<Released> {
        let released = self.window.settle(ordinal, settled)?;
        self.counted.count(settled);
        self.changed = true;
        self.urgent |= matches!(settled, Settled::DeadLettered(_));
        self.freed += self.buffers.settled(ordinal, released.bytes);
        Some(released)
    }

    /// Releases memory and publishes a checkpoint, if one is wanted.
    pub(super) fn end_turn(&mut self, progress: &Progress, is_stopped: bool) {
        self.memory.park(is_stopped);
        self.memory.release(std::mem::take(&mut self.freed));
        self.counted.share(progress.settled());
        if self.changed && progress.wanted(self.urgent) {
            progress.publish(self.checkpoint());
            self.changed = false;
            self.urgent = false;
        }
        let oldest = self.window.oldest().map(|(_, record)| record);
        progress.set_in_flight(self.window.in_flight(), oldest);
    }

    /// Returns the position up to which the shard is settled.
    pub(super) fn checkpoint(&mut self) -> Checkpoint {
        let checkpoint = self.window.checkpoint();
        let base = self.window.next() - self.window.span() as Ordinal;
        match self.read_until.settled(base) {
            Some(time) => checkpoint.with_read_until(time),
            None => checkpoint,
        }
    }
}
