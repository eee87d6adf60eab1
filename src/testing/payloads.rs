//! The conformance suite of payload stores.
//!
//! A check that fails panics with the reason.
//! [`payload_store_conformance!`](crate::payload_store_conformance) generates a test for each check.

use std::future::Future;

use super::sinks::letter;
use crate::dead_letter::{ClaimError, DeadLetter, PayloadStore};

/// Access to an empty payload store.
pub trait Harness {
    /// Returns the store.
    fn store(&self) -> &dyn PayloadStore;

    /// Writes other bytes to a place that the store has returned.
    fn overwrite(&self, place: &str, bytes: Vec<u8>) -> impl Future<Output = ()>;

    /// Deletes the payload at a place that the store has returned.
    fn delete(&self, place: &str) -> impl Future<Output = ()>;
}

/// Generates a module of this name with a test for each check of the suite. Each test awaits the future to
/// get a harness of its own. With `optional` before the future, the future returns an `Option`, and `None`
/// skips the test.
///
/// The caller's crate needs tokio with the feature `macros`.
#[macro_export]
macro_rules! payload_store_conformance {
    ($name:ident, $($fresh:tt)+) => {
        $crate::conformance_tests!(payloads, $name, [
            any_payload_reads_back_as_it_was,
            payloads_of_dead_letters_do_not_mix,
            a_payload_stored_twice_reads_back,
            only_places_of_the_store_are_covered,
            a_deleted_payload_is_gone,
            a_longer_payload_is_refused,
        ], $($fresh)+);
    };
}

async fn stored(harness: &impl Harness, letter: &DeadLetter) -> String {
    let place = harness.store().put_payload(letter).await;
    place.expect("the payload is stored")
}

async fn assert_reads_back(harness: &impl Harness, letter: &DeadLetter, place: &str) {
    let payload = harness.store().get_payload(letter, place).await;
    let payload = payload.expect("the payload is read");
    assert!(payload == letter.payload, "another payload is at {place}");
}

/// Checks that any payload of up to 10 MiB reads back unchanged.
pub async fn any_payload_reads_back_as_it_was(harness: &impl Harness) {
    let bytes: Vec<u8> = (0..=255).collect();
    let largest = bytes.iter().copied().cycle().take(10 * 1024 * 1024).collect();
    for (number, payload) in (0..).zip([vec![], vec![0], b"\n".to_vec(), bytes, largest]) {
        let letter = letter(number, Some("a"), payload);
        let place = stored(harness, &letter).await;
        assert_reads_back(harness, &letter, &place).await;
    }
}

/// Checks that dead letters of one partition key have places of their own.
pub async fn payloads_of_dead_letters_do_not_mix(harness: &impl Harness) {
    let letters: Vec<DeadLetter> = (0..20)
        .map(|number| letter(number, Some("a"), format!("payload {number}")))
        .collect();
    let mut places = Vec::new();
    for letter in &letters {
        places.push(stored(harness, letter).await);
    }
    for (letter, place) in letters.iter().zip(&places) {
        assert_reads_back(harness, letter, place).await;
    }
}

/// Checks that a second write of a payload does no harm.
pub async fn a_payload_stored_twice_reads_back(harness: &impl Harness) {
    let letter = letter(1, Some("a"), "payload");
    for place in [stored(harness, &letter).await, stored(harness, &letter).await] {
        assert_reads_back(harness, &letter, &place).await;
    }
}

/// Checks that the store covers the places that it returns, and no others.
pub async fn only_places_of_the_store_are_covered(harness: &impl Harness) {
    let place = stored(harness, &letter(1, None, "payload")).await;
    let store = harness.store();
    assert!(store.covers(&place), "{place} is not covered");
    for other in ["", "/etc/passwd", "s3://another-bucket/key.payload"] {
        assert!(!store.covers(other), "{other:?} is covered");
    }
}

/// Checks that a payload that was deleted is [`ClaimError::Gone`], which no retry can change.
pub async fn a_deleted_payload_is_gone(harness: &impl Harness) {
    let letter = letter(1, Some("a"), "payload");
    let place = stored(harness, &letter).await;
    harness.delete(&place).await;
    let error = harness.store().get_payload(&letter, &place).await;
    assert!(matches!(error, Err(ClaimError::Gone { .. })), "{error:?}");
}

/// Checks that a payload that is longer than its dead letter states is not read.
pub async fn a_longer_payload_is_refused(harness: &impl Harness) {
    let letter = letter(1, Some("a"), "payload");
    let place = stored(harness, &letter).await;
    harness.overwrite(&place, vec![b'x'; 1_000_000]).await;
    let error = harness.store().get_payload(&letter, &place).await;
    assert!(matches!(error, Err(ClaimError::Length { .. })), "{error:?}");
}
