//! Letters as messages: what SQS and SNS take is text, and has a group where order is kept.

use std::sync::atomic::{AtomicU64, Ordering};

use rand::RngExt as _;

use super::DeadLetter;
use super::schedule::Entry;
use crate::digest::Digest;

/// Makes the deduplication ids of a sink.
///
/// SQS confirms a message whose deduplication id it has accepted within 5 minutes, and drops the message, also when the
/// first one was received and deleted since. A dead letter that returns to a queue is such a message. So each write of a
/// dead letter has an id of its own. The tries of one write share it: they are of one message.
#[derive(Debug)]
pub(super) struct Deduplication {
    /// Differs between sinks. Not from a seed: a process that restarts with the same seed would repeat its ids.
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
            // 98 characters at most; SQS and SNS take 128.
            deduplication_id: format!("{id}-{sink:016x}-{write:x}"),
            place: String::new(),
        }
    }
}

/// The record's own key where the service takes it for a group: 1 to 128 letters, digits and punctuation (SendMessage,
/// SQS API reference; Publish, SNS API reference).
fn group(letter: &DeadLetter) -> String {
    match letter.partition_key.as_deref() {
        None => letter.id.to_string(),
        Some(key) if (1..=128).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic()) => {
            key.to_owned()
        }
        // The same for every letter of the key, so that their order stays.
        Some(key) => Digest::of(key).to_string(),
    }
}

impl Entry {
    /// Nothing but text is ever in it.
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.data).into_owned()
    }
}
