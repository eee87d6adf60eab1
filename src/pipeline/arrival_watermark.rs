//! Until when everything that arrived is settled: what the reader says of its batches, once their records are.

use std::collections::VecDeque;
use std::time::SystemTime;

use super::window::Ordinal;

#[derive(Debug)]
pub(super) struct ReadUntil {
    /// Of the batch that is being admitted.
    batch: Option<SystemTime>,
    /// Of batches in the window: when all records before the ordinal are settled. One for each of them at most.
    marks: VecDeque<(Ordinal, SystemTime)>,
    settled: Option<SystemTime>,
}

impl ReadUntil {
    /// An earlier run had come so far.
    pub(super) fn new(settled: Option<SystemTime>) -> Self {
        ReadUntil {
            batch: None,
            marks: VecDeque::new(),
            settled,
        }
    }

    /// The next batch has come, and all records of the one before are in the window, whose next ordinal is this.
    pub(super) fn batch(&mut self, read_until: Option<SystemTime>, next: Ordinal) {
        if let Some(before) = std::mem::replace(&mut self.batch, read_until) {
            self.mark(next, before);
        }
    }

    /// All records of the batch are in the window.
    pub(super) fn admitted(&mut self, next: Ordinal) {
        self.batch(None, next);
    }

    fn mark(&mut self, next: Ordinal, time: SystemTime) {
        match self.marks.back_mut() {
            Some((ordinal, last)) if *ordinal == next => *last = time,
            _ => self.marks.push_back((next, time)),
        }
    }

    /// All before this ordinal are settled.
    pub(super) fn settled(&mut self, base: Ordinal) -> Option<SystemTime> {
        while let Some((_, time)) = self.marks.pop_front_if(|(ordinal, _)| *ordinal <= base) {
            self.settled = self.settled.max(Some(time));
        }
        self.settled
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(secs: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(secs)
    }

    #[test]
    fn a_batch_counts_when_all_its_records_are_settled() {
        let mut read = ReadUntil::new(None);
        read.batch(Some(at(10)), 0);
        assert_eq!(read.settled(0), None, "nothing of it is in the window yet");
        read.batch(Some(at(20)), 3);
        assert_eq!(read.settled(2), None);
        assert_eq!(read.settled(3), Some(at(10)));
        read.admitted(5);
        assert_eq!(read.settled(4), Some(at(10)));
        assert_eq!(read.settled(5), Some(at(20)));
    }

    /// A shard that is read at its tip for a year.
    #[test]
    fn empty_batches_take_no_room() {
        let mut read = ReadUntil::new(Some(at(5)));
        for secs in 10..1_000 {
            read.batch(Some(at(secs)), 7);
        }
        read.admitted(7);
        assert_eq!(read.marks.len(), 1);
        assert_eq!(read.settled(6), Some(at(5)));
        assert_eq!(read.settled(7), Some(at(999)));
    }

    #[test]
    fn it_never_goes_back() {
        let mut read = ReadUntil::new(Some(at(50)));
        read.batch(Some(at(10)), 0);
        read.admitted(1);
        assert_eq!(read.settled(1), Some(at(50)));
    }
}
