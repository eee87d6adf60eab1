//! Checks of completed keys: what is remembered, and for how long.

use std::time::{Duration, SystemTime};

use super::{COMPLETED, DAY, GRANTED, Harness, MINUTE, claim, claimed, completed, key, only};
use crate::idempotency::{Claimed, Completion, IdempotencyStore, PayloadHash};

/// A completed key is completed for every owner, also after its claim would have expired.
pub async fn completed_key_is_completed_for_every_owner(harness: &impl Harness) {
    let store = &harness.open().await;
    let now = SystemTime::now();
    assert_eq!(claimed(store, &claim(key(1), 1, now)).await, GRANTED);
    assert_eq!(completed(store, &claim(key(1), 1, now)).await, Completion::Stored);
    for later in [now, now + 2 * MINUTE, now + DAY - MINUTE] {
        assert_eq!(claimed(store, &claim(key(1), 2, later)).await, COMPLETED);
    }
    assert_eq!(claimed(store, &claim(key(2), 2, now)).await, GRANTED);
}

/// The payload hash of the completion is returned to later claims.
pub async fn payload_hash_reads_back(harness: &impl Harness) {
    let store = &harness.open().await;
    let now = SystemTime::now();
    let payload = Some(PayloadHash::of(b"one order"));
    let mut first = claim(key(1), 1, now);
    first.payload = payload;
    assert_eq!(claimed(store, &first).await, GRANTED);
    assert_eq!(completed(store, &first).await, Completion::Stored);
    let mut second = claim(key(1), 2, now);
    second.payload = Some(PayloadHash::of(b"another"));
    assert_eq!(claimed(store, &second).await, Claimed::Completed { payload });
}

/// A completion may be repeated, and a key that no owner has claimed is completed.
pub async fn completion_may_be_repeated(harness: &impl Harness) {
    let store = &harness.open().await;
    let now = SystemTime::now();
    assert_eq!(claimed(store, &claim(key(1), 1, now)).await, GRANTED);
    for _ in 0..2 {
        assert_eq!(completed(store, &claim(key(1), 1, now)).await, Completion::Stored);
    }
    // No owner has claimed this key, so the completion is stored: the record was processed.
    assert_eq!(completed(store, &claim(key(2), 1, now)).await, Completion::Stored);
    assert_eq!(claimed(store, &claim(key(2), 2, now)).await, COMPLETED);
}

/// An owner completes its key after its claim has expired, if no owner took the key over.
pub async fn expired_claim_completes_if_no_owner_took_it_over(harness: &impl Harness) {
    let store = &harness.open().await;
    let now = SystemTime::now();
    assert_eq!(claimed(store, &claim(key(1), 1, now)).await, GRANTED);
    let later = now + 5 * MINUTE;
    assert_eq!(
        completed(store, &claim(key(1), 1, later)).await,
        Completion::Stored
    );
    assert_eq!(claimed(store, &claim(key(1), 2, later)).await, COMPLETED);
}

/// A completed key is unknown after its retention.
pub async fn key_past_its_retention_is_granted_again(harness: &impl Harness) {
    let store = &harness.open().await;
    let now = SystemTime::now();
    assert_eq!(claimed(store, &claim(key(1), 1, now)).await, GRANTED);
    assert_eq!(completed(store, &claim(key(1), 1, now)).await, Completion::Stored);
    let later = now + DAY + Duration::from_secs(2);
    let looked = only(store.status(&[key(1)], later).await);
    assert_eq!(looked, None);
    assert_eq!(claimed(store, &claim(key(1), 2, later)).await, GRANTED);
    assert_eq!(
        completed(store, &claim(key(1), 2, later)).await,
        Completion::Stored
    );
    assert_eq!(claimed(store, &claim(key(1), 3, later)).await, COMPLETED);
}

/// A completed key is known up to and including the end of its retention.
pub async fn key_is_kept_until_its_retention_ends(harness: &impl Harness) {
    let store = &harness.open().await;
    let now = SystemTime::now();
    let done = claim(key(1), 1, now);
    assert_eq!(completed(store, &done).await, Completion::Stored);
    let looked = only(store.status(&[key(1)], done.keep_until).await);
    assert_eq!(
        looked.map(Claimed::from),
        Some(COMPLETED),
        "at the end of the retention"
    );
    let other = claimed(store, &claim(key(1), 2, done.keep_until)).await;
    assert_eq!(other, COMPLETED, "at the end of the retention");
}

/// A completed key is still completed after a restart, with its payload hash.
pub async fn completed_keys_survive_a_restart(harness: &impl Harness) {
    if !harness.survives_restart() {
        return;
    }
    let now = SystemTime::now();
    let payload = Some(PayloadHash::of(b"one order"));
    let mut done = claim(key(1), 1, now);
    done.payload = payload;
    {
        let store = &harness.open().await;
        assert_eq!(claimed(store, &done).await, GRANTED);
        assert_eq!(completed(store, &done).await, Completion::Stored);
    }
    let store = &harness.open().await;
    let other = claimed(store, &claim(key(1), 2, now)).await;
    assert_eq!(other, Claimed::Completed { payload }, "after a restart");
    assert_eq!(claimed(store, &claim(key(2), 2, now)).await, GRANTED);
}
