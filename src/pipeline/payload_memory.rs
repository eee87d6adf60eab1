//! The memory that payloads count for. Records of one aggregate share its buffer: the whole buffer is freed
//! when the last of them settles, not a part of it with each record.

use std::collections::VecDeque;

use super::window::Ordinal;
use crate::record::Record;

/// The weight that marks a record which shares a buffer.
const SHARED: u32 = u32::MAX;
/// The bytes that a record counts in addition to its payload: its place, number and key, and its entry in the
/// window. A page may have a million records without a payload (a KPL aggregate), and each of them still
/// takes this memory.
pub(crate) const OVERHEAD: usize = 256;

/// Returns the bytes that a record counts for.
#[cfg(any(feature = "kinesis", test))]
pub(super) fn weight(record: &Record) -> usize {
    record.payload().len() + OVERHEAD
}

#[derive(Debug, Default)]
pub(super) struct PayloadMemory {
    shared: VecDeque<Buffer>,
    /// The number of records that are still to be weighed for the newest buffer.
    sharing: usize,
}

#[derive(Debug)]
struct Buffer {
    /// The ordinal of the buffer's first record that entered the window.
    first: Ordinal,
    open: usize,
    bytes: usize,
}

impl PayloadMemory {
    /// Returns the bytes that the next record counts for, or `SHARED`. `behind`: the later records of its
    /// batch; `ordinal`: the ordinal that the record would get.
    #[inline]
    pub(super) fn weigh(&mut self, record: &Record, behind: &[Record], ordinal: Ordinal) -> u32 {
        let is_part = |next: &&Record| next.sub_sequence_number() > 0;
        if self.sharing == 0 {
            let own = record.payload().len();
            if behind.first().is_none_or(|next| !is_part(&next)) {
                // No payload comes near 4 GiB, the value of `SHARED`.
                return u32::try_from(own + OVERHEAD).unwrap_or(SHARED - 1);
            }
            let others = behind.iter().take_while(is_part);
            let (records, bytes) = others.fold((1, own), |(records, bytes), other| {
                (records + 1, bytes + other.payload().len())
            });
            self.share(ordinal, records, bytes);
            self.sharing = records;
        }
        self.sharing -= 1;
        SHARED
    }

    /// Opens the buffer of a packed aggregate, from which the next `records` records are made. The aggregate
    /// counts for its payload of `bytes` bytes and its own overhead.
    pub(super) fn open(&mut self, first: Ordinal, records: usize, bytes: usize) {
        self.share(first, records, bytes + OVERHEAD);
        self.sharing = records;
    }

    /// Adds a buffer of `bytes` bytes that the next `records` records share.
    fn share(&mut self, first: Ordinal, records: usize, bytes: usize) {
        while self.shared.front().is_some_and(|buffer| buffer.open == 0) {
            self.shared.pop_front();
        }
        self.shared.push_back(Buffer {
            first,
            open: records,
            bytes,
        });
    }

    /// Frees the record weighed last, which needs no place in the window. Returns the bytes freed.
    pub(super) fn passed(&mut self, weight: u32) -> usize {
        match weight {
            SHARED => OVERHEAD + self.shared.back_mut().map_or(0, Buffer::leave),
            own => own as usize,
        }
    }

    /// Frees a settled record. Returns the bytes freed.
    #[inline]
    pub(super) fn settled(&mut self, ordinal: Ordinal, weight: u32) -> usize {
        if weight != SHARED {
            return weight as usize;
        }
        let behind = self.shared.partition_point(|buffer| buffer.first <= ordinal);
        let buffer = behind.checked_sub(1).and_then(|at| self.shared.get_mut(at));
        OVERHEAD + buffer.map_or(0, Buffer::leave)
    }
}

impl Buffer {
    fn leave(&mut self) -> usize {
        self.open = self.open.saturating_sub(1);
        if self.open > 0 {
            0
        } else {
            std::mem::take(&mut self.bytes)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_freed_with_the_last_of_its_records() {
        let mut buffers = PayloadMemory::default();
        buffers.share(10, 3, 700);
        buffers.share(13, 2, 50);
        assert_eq!(buffers.settled(11, SHARED), OVERHEAD);
        assert_eq!(buffers.settled(14, SHARED), OVERHEAD);
        assert_eq!(buffers.settled(13, SHARED), OVERHEAD + 50);
        assert_eq!(buffers.settled(10, SHARED), OVERHEAD);
        assert_eq!(buffers.settled(12, SHARED), OVERHEAD + 700);
    }

    /// The sum of all weights is freed again, also for records without a payload.
    #[test]
    fn each_record_counts_its_own_overhead() {
        let record = |number: u64, sub, bytes| {
            Record::builder("orders", "shardId-0".into(), number.into())
                .sub_sequence_number(sub)
                .payload(vec![0; bytes])
                .build()
        };
        let records = [record(1, 0, 0), record(2, 0, 0), record(2, 1, 0), record(2, 2, 7)];
        let mut buffers = PayloadMemory::default();
        let mut weights = Vec::new();
        for (at, record) in records.iter().enumerate() {
            weights.push(buffers.weigh(record, &records[at + 1..], at as Ordinal));
        }
        let ordinals = 0..records.len() as Ordinal;
        let freed: usize = ordinals
            .zip(weights)
            .map(|(at, weight)| buffers.settled(at, weight))
            .sum();
        assert_eq!(freed, 4 * OVERHEAD + 7);
        assert_eq!(freed, records.iter().map(weight).sum::<usize>());
    }

    /// A restart rereads settled records, which get no ordinal.
    #[test]
    fn records_that_are_passed_free_it_as_well() {
        let mut buffers = PayloadMemory::default();
        buffers.share(0, 3, 700);
        assert_eq!(buffers.passed(SHARED), OVERHEAD);
        assert_eq!(buffers.passed(SHARED), OVERHEAD);
        assert_eq!(buffers.settled(0, SHARED), OVERHEAD + 700);
        buffers.share(1, 2, 50);
        assert_eq!(buffers.passed(SHARED), OVERHEAD);
        assert_eq!(buffers.passed(SHARED), OVERHEAD + 50);
        buffers.share(1, 1, 8);
        assert_eq!(buffers.settled(1, SHARED), OVERHEAD + 8);
        assert_eq!(buffers.shared.len(), 1);
    }
}
