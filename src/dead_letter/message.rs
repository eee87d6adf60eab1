//! Letters as messages: what SQS and SNS take is text, and has a group where order is kept.

use super::DeadLetter;
use super::schedule::Entry;
use crate::digest::Digest;

pub(super) fn entry(letter: &DeadLetter) -> Entry {
    let data = letter.to_json_line();
    Entry {
        key: group(letter),
        bytes: data.len() as u64,
        data: data.into(),
        id: letter.id,
        place: String::new(),
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
