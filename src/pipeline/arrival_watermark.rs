//! The arrival watermark: the time up to which every record that arrived is settled. The reader states a time
//! with a batch. The watermark reaches that time once all records of the batch are settled.

use std::collections::VecDeque;
use std::time::SystemTime;

use super::window::Ordinal;

#[derive(Debug)]
pub(super) struct ReadUntil {
    /// The time stated with the batch that is being admitted.
    batch: Option<SystemTime>,
    /// The times of batches in the window. A time counts once all records before its ordinal are settled.
    /// Each ordinal has one time at most.
    marks: VecDeque<(Ordinal, SystemTime)>,
    settled: Option<SystemTime>,
}

impl ReadUntil {
    /// Creates the watermark at the time that an earlier run had reached.
    pub(super) fn new(settled: Option<SystemTime>) -> Self {
        ReadUntil {
            batch: None,
            marks: VecDeque::new(),
            settled,
        }
    }

    /// Begins the next batch. All records of the previous batch are in the window, and `next` is the window's
    /// next ordinal.
    pub(super) fn batch(&mut self, read_until: Option<SystemTime>, next: Ordinal) {
        if let Some(before) = std::mem::replace(&mut self.batch, read_until) {
            self.mark(next, before);
        }
    }

    /// Marks the batch as admitted: all its records are in the window.
    pub(super) fn admitted(&mut self, next: Ordinal) {
        self.batch(None, next);
    }

    fn mark(&mut self, next: Ordinal, time: SystemTime) {
        match self.marks.back_mut() {
            Some((ordinal, last)) if *ordinal == next => *last = time,
            _ => self.marks.push_back((next, time)),
        }
    }

    /// Returns the watermark when all records before the ordinal `base` are settled.
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
        assert_eq!(read.settled(0), None, "no record is in the window yet");
        read.batch(Some(at(20)), 3);
        assert_eq!(read.settled(2), None);
        assert_eq!(read.settled(3), Some(at(10)));
        read.admitted(5);
        assert_eq!(read.settled(4), Some(at(10)));
        assert_eq!(read.settled(5), Some(at(20)));
    }

    /// A shard that is read at its tip for a year delivers only empty batches.
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
