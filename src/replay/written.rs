//! Dead letters that a run has moved, so that the run removes none of its own copies.

use std::collections::HashSet;

use crate::record::DeadLetterId;

/// Remembers the dead letters that a run has written to a sink.
///
/// A message that is read after its dead letter was written may be the copy that this run wrote, whatever the
/// names of source and sink are. Such a message is left for the next run. A message of the same page was read
/// before the write; it is an older copy, and may be removed.
#[derive(Debug, Default)]
pub(super) struct Written {
    /// The first 8 bytes of each id: a run of a million dead letters takes 16 MB. If two ids begin alike, one
    /// dead letter waits for the next run; nothing else happens.
    before: HashSet<[u8; 8]>,
    of_this_page: Vec<[u8; 8]>,
}

impl Written {
    /// Starts a page. Everything written so far was written before the messages of this page were read, or
    /// during that read.
    pub(super) fn next_page(&mut self) {
        self.before.extend(self.of_this_page.drain(..));
    }

    pub(super) fn add(&mut self, id: DeadLetterId) {
        self.of_this_page.push(beginning(id));
    }

    /// Returns true if a message of this page may be the copy of this dead letter that the run wrote.
    pub(super) fn may_hold(&self, id: DeadLetterId) -> bool {
        self.before.contains(&beginning(id))
    }
}

fn beginning(id: DeadLetterId) -> [u8; 8] {
    let bytes = id.as_bytes();
    std::array::from_fn(|place| bytes[place])
}
