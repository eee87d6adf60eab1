//! Records of one aggregate share its buffer: it is free when the last of them is done, not a part of it
//! with each.

use std::collections::VecDeque;

use super::window::Ordinal;

/// What a record counts for that shares a buffer.
pub(super) const SHARED: u32 = u32::MAX;

#[derive(Debug, Default)]
pub(super) struct Buffers {
    shared: VecDeque<Buffer>,
}

#[derive(Debug)]
struct Buffer {
    /// The ordinal of the first record in it that entered the window.
    first: Ordinal,
    open: usize,
    bytes: usize,
}

impl Buffers {
    /// The next so many records share a buffer of so many bytes.
    pub(super) fn share(&mut self, first: Ordinal, records: usize, bytes: usize) {
        while self.shared.front().is_some_and(|buffer| buffer.open == 0) {
            self.shared.pop_front();
        }
        self.shared.push_back(Buffer {
            first,
            open: records,
            bytes,
        });
    }

    /// A record of the newest buffer needs no place in the window. What that frees.
    pub(super) fn passed(&mut self) -> usize {
        self.shared.back_mut().map_or(0, Buffer::leave)
    }

    /// A record is settled that shares a buffer. What that frees.
    pub(super) fn settled(&mut self, ordinal: Ordinal) -> usize {
        let behind = self.shared.partition_point(|buffer| buffer.first <= ordinal);
        let buffer = behind.checked_sub(1).and_then(|at| self.shared.get_mut(at));
        buffer.map_or(0, Buffer::leave)
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
        let mut buffers = Buffers::default();
        buffers.share(10, 3, 700);
        buffers.share(13, 2, 50);
        assert_eq!(buffers.settled(11), 0);
        assert_eq!(buffers.settled(14), 0);
        assert_eq!(buffers.settled(13), 50);
        assert_eq!(buffers.settled(10), 0);
        assert_eq!(buffers.settled(12), 700);
    }

    /// A restart reads again what is settled already: such records have no ordinal.
    #[test]
    fn records_that_are_passed_free_it_as_well() {
        let mut buffers = Buffers::default();
        buffers.share(0, 3, 700);
        assert_eq!(buffers.passed(), 0);
        assert_eq!(buffers.passed(), 0);
        assert_eq!(buffers.settled(0), 700);
        buffers.share(1, 2, 50);
        assert_eq!(buffers.passed(), 0);
        assert_eq!(buffers.passed(), 50);
        buffers.share(1, 1, 8);
        assert_eq!(buffers.settled(1), 8);
        assert_eq!(buffers.shared.len(), 1);
    }
}
