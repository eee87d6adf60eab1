//! The letters that a run has moved, so that the run removes none of its own copies.

use std::collections::HashSet;

use crate::record::DeadLetterId;

/// Remembers the letters that a run has written to a sink.
///
/// A message that is read after the write of its letter may be what this run has written, whatever the names of source and
/// sink are. Such a message is left for the next run. A message of the same page was read before the write, and is a copy
/// that may be removed.
#[derive(Debug, Default)]
pub(super) struct Written {
    /// The first 8 bytes of each id: a run of a million letters takes 16 MB. Two ids that begin alike cost a letter
    /// nothing but the wait for the next run.
    before: HashSet<[u8; 8]>,
    of_this_page: Vec<[u8; 8]>,
}

impl Written {
    /// CrashCount a page: everything that was written so far was written before its messages were read, or while they were.
    pub(super) fn next_page(&mut self) {
        self.before.extend(self.of_this_page.drain(..));
    }

    pub(super) fn add(&mut self, id: DeadLetterId) {
        self.of_this_page.push(beginning(id));
    }

    /// Returns whether a message of this page may be what this run has written of this letter.
    pub(super) fn may_hold(&self, id: DeadLetterId) -> bool {
        self.before.contains(&beginning(id))
    }
}

fn beginning(id: DeadLetterId) -> [u8; 8] {
    let bytes = id.as_bytes();
    std::array::from_fn(|place| bytes[place])
}
