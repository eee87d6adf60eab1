//! What is read and not settled, and how far the shard is settled.

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
    /// Something settled since the last checkpoint was made.
    changed: bool,
    /// And the checkpoint should not wait.
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

    /// A batch has come.
    pub(super) fn arrived(&mut self, arrival: Arrival) {
        let Arrival {
            read_until,
            is_empty,
            reservation,
        } = arrival;
        self.read_until.batch(read_until, self.window.next());
        if is_empty {
            self.batch_admitted();
            // Of an idle shard a checkpoint is made for this alone.
            self.changed |= read_until.is_some() && self.window.in_flight() == 0;
        }
        if let Some(reservation) = reservation {
            self.memory.absorb(reservation);
        }
    }

    /// All records of the batch are in the window.
    pub(super) fn batch_admitted(&mut self) {
        self.read_until.admitted(self.window.next());
    }

    /// Returns what the next record counts for. `behind`: the records of its batch that come after it.
    #[inline]
    pub(super) fn weigh(&mut self, next: &NextRecord, behind: &[Record]) -> u32 {
        let ordinal = self.window.next();
        if next.is_made {
            if let Some((records, bytes)) = next.opens {
                self.buffers.open(ordinal, records, bytes);
            }
            // Until now it was a few bytes of its aggregate.
            self.memory.grow(OVERHEAD);
        }
        self.buffers.weigh(&next.record, behind, ordinal)
    }

    /// The record weighed last needs no place: the checkpoint has passed it.
    pub(super) fn passed(&mut self, bytes: u32) {
        self.freed += self.buffers.passed(bytes);
    }

    /// An earlier run settled the record ahead of its checkpoint. It has a place in the window, so that the next
    /// checkpoint remembers it as well.
    pub(super) fn settled_before(&mut self, record: Record, bytes: u32) {
        let ordinal = self.window.admit(record, 0, 0);
        self.window.settle(ordinal, Settled::Processed);
        self.passed(bytes);
        self.changed = true;
    }

    /// A record is settled. Returns what that lets go; `None` if it was settled already.
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

    /// How far the shard is settled.
    pub(super) fn checkpoint(&mut self) -> Checkpoint {
        let checkpoint = self.window.checkpoint();
        let base = self.window.next() - self.window.span() as Ordinal;
        match self.read_until.settled(base) {
            Some(time) => checkpoint.with_read_until(time),
            None => checkpoint,
        }
    }
}
