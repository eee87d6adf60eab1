//! The conformance suite of idempotency stores.
//!
//! A check that fails panics with the reason. [`idempotency_conformance!`](crate::idempotency_conformance)
//! generates a test for each check. No check waits: a store takes the time from its caller.
//!
//! The suite does not check what it cannot cause: unreadable entries, and a store that does not answer.

use std::future::Future;
use std::time::{Duration, SystemTime};

use crate::idempotency::{Claim, Claimed, Completion, IdempotencyStore, Key, Owner, StoreError};

mod claims;
mod completions;
mod requests;

pub use claims::*;
pub use completions::*;
pub use requests::*;

/// Access to the empty storage of a test, such as a folder or a table.
pub trait Harness {
    /// The type of the store.
    type Store: IdempotencyStore;

    /// Opens the store over the storage of this test. A check drops the store before it opens the same
    /// storage again.
    fn open(&self) -> impl Future<Output = Self::Store>;

    /// Returns true if completed keys outlive the process. Default: true. If false, no check restarts the
    /// store.
    fn survives_restart(&self) -> bool {
        true
    }

    /// Returns true if the store counts abandoned claims, as a store must whose claims outlive the process.
    /// Default: true. If false, the store must always report 0.
    fn counts_abandoned_claims(&self) -> bool {
        true
    }
}

/// Generates a module of this name with a test for each check of the suite. Each test awaits the future to
/// get a [`Harness`](crate::testing::idempotency::Harness) of its own. With `optional` before the future, the
/// future returns an `Option`, and `None` skips the test.
///
/// The caller's crate needs tokio with the feature `macros`.
#[macro_export]
macro_rules! idempotency_conformance {
    ($name:ident, $($fresh:tt)+) => {
        $crate::conformance_tests!(idempotency, $name, [
            unknown_key_is_granted,
            claimed_key_is_in_progress_until_it_expires,
            owner_may_extend_but_not_shorten_its_claim,
            claim_replaces_the_owner_that_it_names,
            completed_key_is_completed_for_every_owner,
            late_claim_does_not_reopen_a_completed_key,
            payload_hash_reads_back,
            owner_of_a_lost_claim_changes_nothing,
            completion_may_be_repeated,
            expired_claim_completes_if_no_owner_took_it_over,
            released_key_is_granted_again,
            only_the_owner_releases_a_claim,
            key_past_its_retention_is_granted_again,
            many_keys_are_looked_up_at_once,
            answers_follow_the_order_of_the_request,
            abandoned_claims_are_counted,
            empty_request_has_no_answers,
            one_of_many_owners_is_granted,
            one_of_two_claims_in_a_request_is_granted,
            time_comes_from_the_caller,
            key_is_kept_until_its_retention_ends,
            status_claims_nothing,
            dropped_request_may_be_repeated,
            completed_keys_survive_a_restart,
            name_is_fit_for_a_log,
        ], $($fresh)+);
    };
}

const MINUTE: Duration = Duration::from_secs(60);

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Creates the key of this order.
pub fn key(number: u64) -> Key {
    format!("billing#order-{number}").as_str().into()
}

/// Creates a claim of the owner with this number that expires after a minute. A completed key is kept for a
/// day.
pub fn claim(key: Key, owner: u128, now: SystemTime) -> Claim {
    let mut claim = Claim::new(key, Owner::new(owner), now);
    claim.expires = now + MINUTE;
    claim.keep_until = now + DAY;
    claim
}

fn only<T>(mut answers: Vec<Result<T, StoreError>>) -> T {
    assert_eq!(answers.len(), 1);
    answers.remove(0).expect("the store answers")
}

async fn claimed(store: &impl IdempotencyStore, claim: &Claim) -> Claimed {
    only(store.claim(std::slice::from_ref(claim)).await)
}

async fn completed(store: &impl IdempotencyStore, claim: &Claim) -> Completion {
    only(store.complete(std::slice::from_ref(claim)).await)
}

async fn release(store: &impl IdempotencyStore, claim: &Claim) {
    only(store.release(std::slice::from_ref(claim)).await);
}

const GRANTED: Claimed = Claimed::Granted { abandoned: 0 };

const COMPLETED: Claimed = Claimed::Completed { payload: None };

fn is_in_progress(claimed: &Claimed, until: SystemTime) -> bool {
    // Stores have a resolution of one millisecond.
    let near = |expires: SystemTime| {
        let off = expires
            .duration_since(until)
            .unwrap_or_else(|error| error.duration());
        off < Duration::from_millis(1)
    };
    matches!(claimed, Claimed::InProgress { expires, .. } if near(*expires))
}
