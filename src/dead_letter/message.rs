//! Dead letters as messages: SQS and SNS take only text, and keep order only within a message group.

use std::sync::atomic::{AtomicU64, Ordering};

use rand::RngExt as _;

use super::DeadLetter;
use super::schedule::Entry;
use crate::digest::Digest;

/// Makes the deduplication ids of a sink.
///
/// SQS confirms and drops a message whose deduplication id it accepted within the last 5 minutes. It does so
/// even if the first message was received and deleted since. A dead letter that returns to a queue would be
/// dropped this way. So each write of a dead letter has an id of its own. The retries of one write share it:
/// they send one message.
#[derive(Debug)]
pub(super) struct Deduplication {
    /// A random number that differs between sinks. It does not come from the seed: a process that restarts
    /// with the same seed would repeat its ids.
    sink: u64,
    next: AtomicU64,
}

impl Deduplication {
    pub(super) fn new() -> Self {
        Deduplication {
            sink: rand::rng().random(),
            next: AtomicU64::new(0),
        }
    }

    /// Makes the entry of one write of a dead letter.
    pub(super) fn entry(&self, letter: &DeadLetter) -> Entry {
        let data = letter.to_json_line();
        let (id, sink, write) = (letter.id, self.sink, self.next.fetch_add(1, Ordering::Relaxed));
        Entry {
            key: group(letter),
            bytes: data.len() as u64,
            data: data.into(),
            // At most 98 characters; SQS and SNS take up to 128.
            deduplication_id: format!("{id}-{sink:016x}-{write:x}"),
            place: String::new(),
        }
    }
}

/// Returns the message group: the record's own partition key if the service takes it as a group, else the
/// key's digest. A record without a key uses the dead letter's id. A group has 1 to 128 letters, digits and
/// punctuation characters (SendMessage, SQS API reference; Publish, SNS API reference).
fn group(letter: &DeadLetter) -> String {
    match letter.partition_key.as_deref() {
        None => letter.id.to_string(),
        Some(key) if (1..=128).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic()) => {
            key.to_owned()
        }
        // All dead letters of the key share the digest, so that they stay in order.
        Some(key) => Digest::of(key).to_string(),
    }
}

impl Entry {
    /// Returns the data of a message, which is always text.
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.data).into_owned()
    }
}
