//! Checks of claims: which owner gets a key, and for how long.

use std::time::{Duration, SystemTime};

use futures_util::future::join_all;

use super::{
    COMPLETED, DAY, GRANTED, Harness, MINUTE, claim, claimed, completed, is_in_progress, key, only, release,
};
use crate::idempotency::{CLOCK_SKEW, Claimed, Completion, IdempotencyStore, Owner, Status};

/// A key that no owner has claimed is granted.
pub async fn unknown_key_is_granted(harness: &impl Harness) {
    let store = &harness.open().await;
    let now = SystemTime::now();
    assert_eq!(claimed(store, &claim(key(1), 1, now)).await, GRANTED);
    assert_eq!(claimed(store, &claim(key(2), 2, now)).await, GRANTED);
}

/// A claimed key is in progress for other owners until the claim has expired by more than the clock skew.
pub async fn claimed_key_is_in_progress_until_it_expires(harness: &impl Harness) {
    let store = &harness.open().await;
    let now = SystemTime::now();
    assert_eq!(claimed(store, &claim(key(1), 1, now)).await, GRANTED);
    let expires = now + MINUTE;
    for later in [now, expires, expires + CLOCK_SKEW - Duration::from_millis(5)] {
        let other = claimed(store, &claim(key(1), 2, later)).await;
        assert!(is_in_progress(&other, expires), "{other:?}");
    }
    let later = expires + CLOCK_SKEW + Duration::from_millis(5);
    let granted = claimed(store, &claim(key(1), 2, later)).await;
    assert!(matches!(granted, Claimed::Granted { .. }), "{granted:?}");
    let first = claimed(store, &claim(key(1), 1, later)).await;
    assert!(is_in_progress(&first, later + MINUTE), "{first:?}");
}

/// An owner extends its claim by another claim, and does not shorten it: a request may arrive twice, the
/// second time much later.
pub async fn owner_may_extend_but_not_shorten_its_claim(harness: &impl Harness) {
    let store = &harness.open().await;
    let now = SystemTime::now();
    let first = claim(key(1), 1, now);
    assert_eq!(claimed(store, &first).await, GRANTED);
    assert_eq!(claimed(store, &first).await, GRANTED);
    let second = claim(key(1), 1, now + MINUTE / 2);
    assert_eq!(claimed(store, &second).await, GRANTED);
    let late = claimed(store, &first).await;
    assert!(is_in_progress(&late, second.expires), "{late:?}");
}

/// A claim is granted if it names the owner that has the key, and not if it names another one.
pub async fn claim_replaces_the_owner_that_it_names(harness: &impl Harness) {
    let store = &harness.open().await;
    let now = SystemTime::now();
    let first = claim(key(1), 1, now);
    assert_eq!(claimed(store, &first).await, GRANTED);
    let mut second = claim(key(1), 2, now);
    second.replaces = Some(Owner::new(7));
    assert!(matches!(
        claimed(store, &second).await,
        Claimed::InProgress { .. }
    ));
    second.replaces = Some(first.owner);
    assert_eq!(claimed(store, &second).await, GRANTED);
    assert_eq!(completed(store, &first).await, Completion::Lost);
    assert_eq!(completed(store, &second).await, Completion::Stored);
}

/// A claim or a release that arrives after the completion changes nothing.
pub async fn late_claim_does_not_reopen_a_completed_key(harness: &impl Harness) {
    let store = &harness.open().await;
    let now = SystemTime::now();
    let first = claim(key(1), 1, now);
    assert_eq!(claimed(store, &first).await, GRANTED);
    assert_eq!(completed(store, &first).await, Completion::Stored);
    assert_eq!(claimed(store, &first).await, COMPLETED);
    let mut next = claim(key(1), 2, now);
    next.replaces = Some(first.owner);
    assert_eq!(claimed(store, &next).await, COMPLETED);
    release(store, &first).await;
    assert_eq!(claimed(store, &claim(key(1), 3, now)).await, COMPLETED);
}

/// An owner whose expired claim was taken over neither completes nor releases the key.
pub async fn owner_of_a_lost_claim_changes_nothing(harness: &impl Harness) {
    let store = &harness.open().await;
    let now = SystemTime::now();
    let slow = claim(key(1), 1, now);
    assert_eq!(claimed(store, &slow).await, GRANTED);
    let later = now + MINUTE + CLOCK_SKEW + Duration::from_secs(1);
    let next = claim(key(1), 2, later);
    let granted = claimed(store, &next).await;
    assert!(matches!(granted, Claimed::Granted { .. }), "{granted:?}");

    assert_eq!(completed(store, &slow).await, Completion::Lost);
    release(store, &slow).await;
    let other = claimed(store, &claim(key(1), 3, later)).await;
    assert!(is_in_progress(&other, next.expires), "{other:?}");
    assert_eq!(completed(store, &next).await, Completion::Stored);
    assert_eq!(completed(store, &slow).await, Completion::Lost);
}

/// A released key is granted again, and a release may be repeated.
pub async fn released_key_is_granted_again(harness: &impl Harness) {
    let store = &harness.open().await;
    let now = SystemTime::now();
    assert_eq!(claimed(store, &claim(key(1), 1, now)).await, GRANTED);
    release(store, &claim(key(1), 1, now)).await;
    release(store, &claim(key(1), 1, now)).await;
    assert_eq!(claimed(store, &claim(key(1), 2, now)).await, GRANTED);
}

/// A release by another owner, or of an unknown key, changes nothing.
pub async fn only_the_owner_releases_a_claim(harness: &impl Harness) {
    let store = &harness.open().await;
    let now = SystemTime::now();
    assert_eq!(claimed(store, &claim(key(1), 1, now)).await, GRANTED);
    release(store, &claim(key(1), 2, now)).await;
    release(store, &claim(key(2), 2, now)).await;
    let other = claimed(store, &claim(key(1), 2, now)).await;
    assert!(is_in_progress(&other, now + MINUTE), "{other:?}");
}

/// Consecutive abandoned claims of a key are counted. A release or a completion resets the count.
pub async fn abandoned_claims_are_counted(harness: &impl Harness) {
    let store = &harness.open().await;
    let mut now = SystemTime::now();
    let counted = |count: u32| match harness.counts_abandoned_claims() {
        true => count,
        false => 0,
    };
    let in_progress = async |now, expected: u32| {
        let looked = only(store.status(&[key(1)], now).await);
        let abandoned = match looked {
            Some(Status::InProgress { abandoned, .. }) => Some(abandoned),
            _ => None,
        };
        assert_eq!(abandoned, Some(expected));
    };
    for owner in 0..3 {
        let abandoned = counted(owner);
        let owner = u128::from(owner);
        let granted = claimed(store, &claim(key(1), owner, now)).await;
        assert_eq!(granted, Claimed::Granted { abandoned });
        in_progress(now, abandoned).await;
        // The owner claims again because an answer was lost or an attempt is repeated.
        let again = claimed(store, &claim(key(1), owner, now)).await;
        assert_eq!(again, Claimed::Granted { abandoned });
        now += MINUTE + CLOCK_SKEW + Duration::from_secs(1);
    }
    // A release shows that the owner was alive.
    release(store, &claim(key(1), 2, now)).await;
    assert_eq!(claimed(store, &claim(key(1), 7, now)).await, GRANTED);
    now += MINUTE + CLOCK_SKEW + Duration::from_secs(1);
    let granted = claimed(store, &claim(key(1), 8, now)).await;
    assert_eq!(
        granted,
        Claimed::Granted {
            abandoned: counted(1)
        }
    );
    assert_eq!(completed(store, &claim(key(1), 8, now)).await, Completion::Stored);
    now += DAY + MINUTE;
    assert_eq!(claimed(store, &claim(key(1), 9, now)).await, GRANTED);
}

/// One of many concurrent owners is granted the key, and only that owner completes the key.
pub async fn one_of_many_owners_is_granted(harness: &impl Harness) {
    let store = &harness.open().await;
    let now = SystemTime::now();
    for number in 0..10 {
        let claims = (0..20).map(|owner| async move {
            let claim = claim(key(number), owner, now);
            claimed(store, &claim).await == GRANTED
        });
        let granted = join_all(claims).await;
        assert_eq!(granted.iter().filter(|granted| **granted).count(), 1);
        let completions = (0..20).map(|owner| async move {
            let claim = claim(key(number), owner, now);
            completed(store, &claim).await == Completion::Stored
        });
        assert_eq!(
            join_all(completions).await,
            granted,
            "only the owner with the claim completes"
        );
    }
}

/// One of two owners that claim a key in the same request is granted the key.
pub async fn one_of_two_claims_in_a_request_is_granted(harness: &impl Harness) {
    let store = harness.open().await;
    let now = SystemTime::now();
    let answers = store.claim(&[claim(key(1), 1, now), claim(key(1), 2, now)]).await;
    let answers: Vec<Claimed> = answers
        .into_iter()
        .map(|answer| answer.expect("the store answers"))
        .collect();
    let granted = answers.iter().filter(|answer| **answer == GRANTED).count();
    assert_eq!(granted, 1, "owners of a key: {answers:?}");
    let other = answers.iter().any(|answer| is_in_progress(answer, now + MINUTE));
    assert!(other, "the other claim waits: {answers:?}");
}

/// Claims and retentions end by the time that the caller supplies. The store reads no clock.
pub async fn time_comes_from_the_caller(harness: &impl Harness) {
    let store = &harness.open().await;
    let now = SystemTime::now();
    for (number, caller) in [(1, now - Duration::from_secs(60 * 60)), (2, now + 10_000 * DAY)] {
        assert_eq!(claimed(store, &claim(key(number), 1, caller)).await, GRANTED);
        let other = claimed(store, &claim(key(number), 2, caller)).await;
        assert!(
            is_in_progress(&other, caller + MINUTE),
            "by the caller's time: {other:?}"
        );
        let later = caller + MINUTE + CLOCK_SKEW + Duration::from_secs(1);
        let other = claimed(store, &claim(key(number), 2, later)).await;
        assert!(
            matches!(other, Claimed::Granted { .. }),
            "by the caller's time: {other:?}"
        );
        let stored = completed(store, &claim(key(number), 2, later)).await;
        assert_eq!(stored, Completion::Stored);
        let later = later + DAY + Duration::from_secs(2);
        assert_eq!(
            claimed(store, &claim(key(number), 3, later)).await,
            GRANTED,
            "by the caller's time"
        );
    }
}
