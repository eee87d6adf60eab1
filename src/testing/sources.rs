//! The conformance suite of sources of dead letters.
//!
//! A check that fails panics with the reason. [`source_conformance!`](crate::source_conformance) generates a
//! test for each check.
//!
//! The suite does not check what it cannot cause: a process that dies, another reader that has messages in
//! flight, and a message that is overwritten.

use std::collections::BTreeMap;
use std::future::Future;

use super::sinks::letter;
use crate::dead_letter::DeadLetter;
use crate::replay::DeadLetterSource;
use crate::replay::source::{Handle, Message};

/// Access to a storage of dead letters that exists and is empty.
pub trait Harness {
    /// The type of the source.
    type Source: DeadLetterSource;

    /// Writes these dead letters into the storage, in their order.
    fn write(&self, letters: &[DeadLetter]) -> impl Future<Output = ()>;

    /// Opens the source over the storage. A check closes the source before it opens the next.
    fn open(&self) -> impl Future<Output = Self::Source>;

    /// Returns true if the source ends although dead letters are written as fast as it is read. Default: true.
    /// A queue that cannot tell later messages from earlier ones returns false.
    fn ends_while_written(&self) -> bool {
        true
    }
}

/// Generates a module of this name with a test for each check of the suite. Each test awaits the future to
/// get a [`Harness`](crate::testing::sources::Harness) of its own. With `optional` before the future, the
/// future returns an `Option`, and `None` skips the test.
///
/// The caller's crate needs tokio with the feature `macros`.
#[macro_export]
macro_rules! source_conformance {
    ($name:ident, $($fresh:tt)+) => {
        $crate::conformance_tests!(sources, $name, [
            empty_source_ends,
            every_dead_letter_is_read,
            order_per_key_is_kept,
            source_ends_while_letters_are_written,
            messages_that_stay_are_read_again,
            partly_read_source_is_read_again,
            removed_messages_are_gone,
            results_of_a_removal_follow_the_request,
            name_identifies_the_storage,
        ], $($fresh)+);
    };
}

/// The maximum number of pages that a source may return for the dead letters of this suite.
const MOST_PAGES: usize = 400;

/// Reads the source to its end, and removes nothing.
async fn read_all(source: &mut impl DeadLetterSource) -> Vec<Message> {
    read_with(source, false).await
}

/// Reads the source to its end, and removes the messages of each page before the next. A queue may return the
/// rest of a group only then.
async fn drain(source: &mut impl DeadLetterSource) -> Vec<Message> {
    read_with(source, true).await
}

async fn read_with(source: &mut impl DeadLetterSource, removes: bool) -> Vec<Message> {
    let mut messages = Vec::new();
    for _ in 0..MOST_PAGES {
        let page = source.read().await.expect("the source is readable");
        if page.is_empty() {
            return messages;
        }
        source.keep().await.expect("the messages are kept");
        if removes {
            remove(source, &page).await;
        }
        messages.extend(page);
    }
    panic!("the source does not end: {} messages", messages.len());
}

/// Removes messages of the last page.
async fn remove(source: &mut impl DeadLetterSource, page: &[Message]) {
    let handles: Vec<Handle> = page.iter().map(|message| message.handle.clone()).collect();
    let removed = source.remove(&handles).await;
    assert_eq!(removed.len(), handles.len(), "one result for each message");
    for removed in removed {
        removed.expect("the message is removed");
    }
}

async fn close(source: &mut impl DeadLetterSource) {
    source.close().await.expect("the source is closed");
}

fn decoded(message: &Message) -> DeadLetter {
    DeadLetter::decode(&message.body).expect("the message is a dead letter")
}

/// Returns the dead letters by their ids. A source may return a message twice.
fn by_id(messages: &[Message]) -> BTreeMap<String, DeadLetter> {
    let letters = messages.iter().map(decoded);
    letters.map(|letter| (letter.id.to_string(), letter)).collect()
}

fn letters(count: u64) -> Vec<DeadLetter> {
    let one = |number| letter(number, Some(&format!("k{}", number % 3)), format!("{number}"));
    (0..count).map(one).collect()
}

fn expected(letters: &[DeadLetter]) -> BTreeMap<String, DeadLetter> {
    let letters = letters.iter();
    letters
        .map(|letter| (letter.id.to_string(), letter.clone()))
        .collect()
}

/// An empty source ends at once, and stays at its end.
pub async fn empty_source_ends(harness: &impl Harness) {
    let mut source = harness.open().await;
    for _ in 0..2 {
        let page = source.read().await.expect("the source is readable");
        assert!(page.is_empty(), "messages of an empty source: {page:?}");
    }
    close(&mut source).await;
}

/// Every dead letter is read unchanged, with a place for people.
pub async fn every_dead_letter_is_read(harness: &impl Harness) {
    let letters = letters(60);
    harness.write(&letters).await;
    let mut source = harness.open().await;
    // Both are approximate, and must not disturb the reading.
    let _ = source.estimate().await;
    let messages = drain(&mut source).await;
    let _ = source.rest().await;
    close(&mut source).await;
    assert!(by_id(&messages) == expected(&letters), "dead letters are missing");
    let has_a_place = |message: &Message| !message.place.is_empty() && !message.place.contains('\n');
    assert!(
        messages.iter().all(has_a_place),
        "a place on a single line: {messages:?}"
    );
}

/// The dead letters of a partition key are read in the order in which they were written, if the source
/// [keeps the order](DeadLetterSource::keeps_order).
pub async fn order_per_key_is_kept(harness: &impl Harness) {
    let letters = letters(40);
    for letters in letters.chunks(8) {
        harness.write(letters).await;
    }
    let mut source = harness.open().await;
    let read: Vec<DeadLetter> = drain(&mut source).await.iter().map(decoded).collect();
    close(&mut source).await;
    assert!(read.len() >= 40, "{} of 40 dead letters are read", read.len());
    if !source.keeps_order() {
        return;
    }
    for key in ["k0", "k1", "k2"] {
        let of_key = |letters: &[DeadLetter]| -> Vec<String> {
            let letters = letters.iter();
            let letters = letters.filter(|letter| letter.partition_key.as_deref() == Some(key));
            letters.map(|letter| letter.sequence_number.to_string()).collect()
        };
        assert_eq!(of_key(&read), of_key(&letters), "the order of {key}");
    }
}

/// A source ends although dead letters are written while it is read. Those may be left for the next run.
pub async fn source_ends_while_letters_are_written(harness: &impl Harness) {
    if !harness.ends_while_written() {
        return;
    }
    let letters = letters(22);
    let (first, later) = letters.split_at(10);
    harness.write(first).await;
    let mut source = harness.open().await;
    let mut read = Vec::new();
    let mut is_ended = false;
    for letter in later {
        let page = source.read().await.expect("the source is readable");
        if page.is_empty() {
            is_ended = true;
            break;
        }
        read.extend(page);
        harness.write(std::slice::from_ref(letter)).await;
    }
    assert!(is_ended, "the source does not end: {} messages", read.len());
    let read = by_id(&read);
    let has_all = expected(first).keys().all(|id| read.contains_key(id));
    assert!(has_all, "a dead letter that was written before is missing");
    close(&mut source).await;
}

/// Messages that were read and not removed are read again after the source was closed.
pub async fn messages_that_stay_are_read_again(harness: &impl Harness) {
    let letters = letters(20);
    harness.write(&letters).await;
    let mut source = harness.open().await;
    assert!(!read_all(&mut source).await.is_empty(), "the source has messages");
    close(&mut source).await;
    let mut source = harness.open().await;
    let messages = drain(&mut source).await;
    close(&mut source).await;
    let is_complete = by_id(&messages) == expected(&letters);
    assert!(is_complete, "messages are missing that were not removed");
}

/// A source that was closed before its end is read again from the beginning.
pub async fn partly_read_source_is_read_again(harness: &impl Harness) {
    let letters = letters(20);
    harness.write(&letters).await;
    let mut source = harness.open().await;
    let page = source.read().await.expect("the source is readable");
    assert!(!page.is_empty(), "the source has messages");
    close(&mut source).await;
    let mut source = harness.open().await;
    let messages = drain(&mut source).await;
    close(&mut source).await;
    let is_complete = by_id(&messages) == expected(&letters);
    assert!(is_complete, "messages are missing that were not removed");
}

/// A removed message is gone, and no other message is. The messages of a source that does not
/// [remove](DeadLetterSource::removes) messages stay.
pub async fn removed_messages_are_gone(harness: &impl Harness) {
    let letters = letters(20);
    harness.write(&letters).await;
    let mut source = harness.open().await;
    let mut page = source.read().await.expect("the source is readable");
    page.truncate(page.len().div_ceil(2));
    remove(&mut source, &page).await;
    let removes = source.removes();
    close(&mut source).await;
    let mut source = harness.open().await;
    let left = by_id(&drain(&mut source).await);
    close(&mut source).await;
    let mut kept = expected(&letters);
    if removes {
        let removed = by_id(&page);
        kept.retain(|id, _| !removed.contains_key(id));
    }
    assert!(left == kept, "{} of {} messages are left", left.len(), kept.len());
}

/// A removal returns one result for each message. A source that does not remove messages returns `Ok`.
pub async fn results_of_a_removal_follow_the_request(harness: &impl Harness) {
    harness.write(&letters(15)).await;
    let mut source = harness.open().await;
    let page = source.read().await.expect("the source is readable");
    assert!(source.remove(&[]).await.is_empty(), "no message, no result");
    remove(&mut source, &page).await;
    close(&mut source).await;
}

/// All sources over the same storage have the same name, on a single line, and the same storage.
pub async fn name_identifies_the_storage(harness: &impl Harness) {
    let mut first = harness.open().await;
    let (name, storage) = (first.name(), first.storage());
    assert!(
        !name.is_empty() && !name.contains('\n'),
        "a single line: {name:?}"
    );
    assert!(!format!("{first:?}").contains("Credentials"));
    close(&mut first).await;
    let second = harness.open().await;
    assert_eq!(second.name(), name, "the name of the same storage");
    assert!(second.storage().overlaps(&storage), "the same storage");
}
