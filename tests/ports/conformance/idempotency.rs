//! The conformance suite of idempotency stores.

use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use redrive::idempotency::{
    CLOCK_SKEW, Claim, Claimed, Completion, IdempotencyStore, Key, Owner, PayloadHash, Status, StoreError,
};

/// Runs the suite: one test for each check, each with a new store.
///
/// `$fresh` creates an empty store and a value that must live as long as the store.
#[macro_export]
macro_rules! idempotency_conformance {
    ($adapter:ident, $fresh:expr) => {
        $crate::idempotency_conformance!(
            $adapter,
            $fresh,
            [
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
            ]
        );
    };
    ($adapter:ident, $fresh:expr, [$($check:ident),* $(,)?]) => {
        mod $adapter {
            use super::*;
            $(
                #[tokio::test]
                async fn $check() {
                    if let Some((store, _lives_as_long)) = $fresh.await {
                        $crate::conformance::idempotency::$check(&store).await;
                    }
                }
            )*
        }
    };
}

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

pub fn key(number: u64) -> Key {
    format!("billing#order-{number}").as_str().into()
}

/// Creates a claim of the given owner that expires after a minute. A completed key is kept for a day.
pub fn claim(number: u64, owner: u128, now: SystemTime) -> Claim {
    let mut claim = Claim::new(key(number), Owner::new(owner), now);
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

/// Stores have a resolution of one millisecond.
fn is_near(time: SystemTime, other: SystemTime) -> bool {
    let off = time
        .duration_since(other)
        .unwrap_or_else(|error| error.duration());
    off < Duration::from_millis(1)
}

fn is_in_progress(claimed: &Claimed, until: SystemTime) -> bool {
    matches!(claimed, Claimed::InProgress { expires, .. } if is_near(*expires, until))
}

pub async fn unknown_key_is_granted(store: &impl IdempotencyStore) {
    let now = SystemTime::now();
    assert_eq!(claimed(store, &claim(1, 1, now)).await, GRANTED);
    assert_eq!(claimed(store, &claim(2, 2, now)).await, GRANTED);
}

pub async fn claimed_key_is_in_progress_until_it_expires(store: &impl IdempotencyStore) {
    let now = SystemTime::now();
    assert_eq!(claimed(store, &claim(1, 1, now)).await, GRANTED);
    let expires = now + MINUTE;
    for later in [now, expires, expires + CLOCK_SKEW - Duration::from_millis(5)] {
        let other = claimed(store, &claim(1, 2, later)).await;
        assert!(is_in_progress(&other, expires), "{other:?}");
    }
    let later = expires + CLOCK_SKEW + Duration::from_millis(5);
    let granted = claimed(store, &claim(1, 2, later)).await;
    assert!(matches!(granted, Claimed::Granted { .. }), "{granted:?}");
    let first = claimed(store, &claim(1, 1, later)).await;
    assert!(is_in_progress(&first, later + MINUTE), "{first:?}");
}

/// Repeats a claim, because a request may arrive twice, the second time much later.
pub async fn owner_may_extend_but_not_shorten_its_claim(store: &impl IdempotencyStore) {
    let now = SystemTime::now();
    let first = claim(1, 1, now);
    assert_eq!(claimed(store, &first).await, GRANTED);
    assert_eq!(claimed(store, &first).await, GRANTED);
    let second = claim(1, 1, now + MINUTE / 2);
    assert_eq!(claimed(store, &second).await, GRANTED);
    let late = claimed(store, &first).await;
    assert!(is_in_progress(&late, second.expires), "{late:?}");
}

pub async fn claim_replaces_the_owner_that_it_names(store: &impl IdempotencyStore) {
    let now = SystemTime::now();
    let first = claim(1, 1, now);
    assert_eq!(claimed(store, &first).await, GRANTED);
    let mut second = claim(1, 2, now);
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

pub async fn completed_key_is_completed_for_every_owner(store: &impl IdempotencyStore) {
    let now = SystemTime::now();
    assert_eq!(claimed(store, &claim(1, 1, now)).await, GRANTED);
    assert_eq!(completed(store, &claim(1, 1, now)).await, Completion::Stored);
    for later in [now, now + 2 * MINUTE, now + DAY - MINUTE] {
        assert_eq!(claimed(store, &claim(1, 2, later)).await, COMPLETED);
    }
    assert_eq!(claimed(store, &claim(2, 2, now)).await, GRANTED);
}

pub async fn late_claim_does_not_reopen_a_completed_key(store: &impl IdempotencyStore) {
    let now = SystemTime::now();
    let first = claim(1, 1, now);
    assert_eq!(claimed(store, &first).await, GRANTED);
    assert_eq!(completed(store, &first).await, Completion::Stored);
    assert_eq!(claimed(store, &first).await, COMPLETED);
    let mut next = claim(1, 2, now);
    next.replaces = Some(first.owner);
    assert_eq!(claimed(store, &next).await, COMPLETED);
    release(store, &first).await;
    assert_eq!(claimed(store, &claim(1, 3, now)).await, COMPLETED);
}

pub async fn payload_hash_reads_back(store: &impl IdempotencyStore) {
    let now = SystemTime::now();
    let payload = Some(PayloadHash::of(b"one order"));
    let mut first = claim(1, 1, now);
    first.payload = payload;
    assert_eq!(claimed(store, &first).await, GRANTED);
    assert_eq!(completed(store, &first).await, Completion::Stored);
    let mut second = claim(1, 2, now);
    second.payload = Some(PayloadHash::of(b"another"));
    assert_eq!(claimed(store, &second).await, Claimed::Completed { payload });
}

pub async fn owner_of_a_lost_claim_changes_nothing(store: &impl IdempotencyStore) {
    let now = SystemTime::now();
    let slow = claim(1, 1, now);
    assert_eq!(claimed(store, &slow).await, GRANTED);
    let later = now + MINUTE + CLOCK_SKEW + Duration::from_secs(1);
    let next = claim(1, 2, later);
    let granted = claimed(store, &next).await;
    assert!(matches!(granted, Claimed::Granted { .. }), "{granted:?}");

    assert_eq!(completed(store, &slow).await, Completion::Lost);
    release(store, &slow).await;
    let other = claimed(store, &claim(1, 3, later)).await;
    assert!(is_in_progress(&other, next.expires), "{other:?}");
    assert_eq!(completed(store, &next).await, Completion::Stored);
    assert_eq!(completed(store, &slow).await, Completion::Lost);
}

pub async fn completion_may_be_repeated(store: &impl IdempotencyStore) {
    let now = SystemTime::now();
    assert_eq!(claimed(store, &claim(1, 1, now)).await, GRANTED);
    for _ in 0..2 {
        assert_eq!(completed(store, &claim(1, 1, now)).await, Completion::Stored);
    }
    // No owner has claimed this key, so the completion is stored: the record was processed.
    assert_eq!(completed(store, &claim(2, 1, now)).await, Completion::Stored);
    assert_eq!(claimed(store, &claim(2, 2, now)).await, COMPLETED);
}

pub async fn expired_claim_completes_if_no_owner_took_it_over(store: &impl IdempotencyStore) {
    let now = SystemTime::now();
    assert_eq!(claimed(store, &claim(1, 1, now)).await, GRANTED);
    let later = now + 5 * MINUTE;
    assert_eq!(completed(store, &claim(1, 1, later)).await, Completion::Stored);
    assert_eq!(claimed(store, &claim(1, 2, later)).await, COMPLETED);
}

pub async fn released_key_is_granted_again(store: &impl IdempotencyStore) {
    let now = SystemTime::now();
    assert_eq!(claimed(store, &claim(1, 1, now)).await, GRANTED);
    release(store, &claim(1, 1, now)).await;
    release(store, &claim(1, 1, now)).await;
    assert_eq!(claimed(store, &claim(1, 2, now)).await, GRANTED);
}

pub async fn only_the_owner_releases_a_claim(store: &impl IdempotencyStore) {
    let now = SystemTime::now();
    assert_eq!(claimed(store, &claim(1, 1, now)).await, GRANTED);
    release(store, &claim(1, 2, now)).await;
    release(store, &claim(2, 2, now)).await;
    let other = claimed(store, &claim(1, 2, now)).await;
    assert!(is_in_progress(&other, now + MINUTE), "{other:?}");
}

pub async fn key_past_its_retention_is_granted_again(store: &impl IdempotencyStore) {
    let now = SystemTime::now();
    assert_eq!(claimed(store, &claim(1, 1, now)).await, GRANTED);
    assert_eq!(completed(store, &claim(1, 1, now)).await, Completion::Stored);
    let later = now + DAY + Duration::from_secs(2);
    let looked = only(store.status(&[key(1)], later).await);
    assert_eq!(looked, None);
    assert_eq!(claimed(store, &claim(1, 2, later)).await, GRANTED);
    assert_eq!(completed(store, &claim(1, 2, later)).await, Completion::Stored);
    assert_eq!(claimed(store, &claim(1, 3, later)).await, COMPLETED);
}

pub async fn many_keys_are_looked_up_at_once(store: &impl IdempotencyStore) {
    let now = SystemTime::now();
    // Every third key is completed, and every third is in progress.
    let of = |rest: u64| (0..250).filter(move |number| number % 3 == rest);
    let done: Vec<Claim> = of(0).map(|number| claim(number, 1, now)).collect();
    for answer in store.complete(&done).await {
        assert_eq!(answer.expect("the store answers"), Completion::Stored);
    }
    let begun: Vec<Claim> = of(1).map(|number| claim(number, 1, now)).collect();
    for answer in store.claim(&begun).await {
        assert_eq!(answer.expect("the store answers"), GRANTED);
    }
    // One key is requested twice.
    let keys: Vec<Key> = (0..250).chain([0]).map(key).collect();
    let looked = store.status(&keys, now).await;
    assert_eq!(looked.len(), keys.len());
    for (number, looked) in (0..250).chain([0]).zip(looked) {
        let looked = looked.expect("the store answers");
        let is_expected = match number % 3 {
            0 => looked == Some(Status::Completed { payload: None }),
            1 => {
                matches!(looked, Some(Status::InProgress { expires, .. }) if is_near(expires, now + MINUTE))
            }
            _ => looked.is_none(),
        };
        assert!(is_expected, "{number}: {looked:?}");
    }
}

pub async fn answers_follow_the_order_of_the_request(store: &impl IdempotencyStore) {
    let now = SystemTime::now();
    let odd: Vec<Claim> = (0..100)
        .filter(|number| number % 2 == 1)
        .map(|number| claim(number, 1, now))
        .collect();
    assert_eq!(store.complete(&odd).await.len(), 50);
    let all: Vec<Claim> = (0..100).map(|number| claim(number, 2, now)).collect();
    let answers = store.claim(&all).await;
    assert_eq!(answers.len(), 100);
    for (number, answer) in answers.into_iter().enumerate() {
        let expected = if number % 2 == 1 { COMPLETED } else { GRANTED };
        assert_eq!(answer.expect("the store answers"), expected, "{number}");
    }
    let completed: Vec<Completion> = store.complete(&all).await.into_iter().flatten().collect();
    for (number, completion) in completed.into_iter().enumerate() {
        let expected = match number % 2 {
            1 => Completion::Lost,
            _ => Completion::Stored,
        };
        assert_eq!(completion, expected, "{number}");
    }
}

pub async fn abandoned_claims_are_counted(store: &impl IdempotencyStore) {
    let mut now = SystemTime::now();
    let in_progress = async |now, expected: u32| {
        let looked = only(store.status(&[key(1)], now).await);
        let abandoned = match looked {
            Some(Status::InProgress { abandoned, .. }) => Some(abandoned),
            _ => None,
        };
        assert_eq!(abandoned, Some(expected));
    };
    for abandoned in 0..3 {
        let owner = u128::from(abandoned);
        let granted = claimed(store, &claim(1, owner, now)).await;
        assert_eq!(granted, Claimed::Granted { abandoned });
        in_progress(now, abandoned).await;
        // The owner claims again because an answer was lost or an attempt is repeated.
        let again = claimed(store, &claim(1, owner, now)).await;
        assert_eq!(again, Claimed::Granted { abandoned });
        now += MINUTE + CLOCK_SKEW + Duration::from_secs(1);
    }
    // A release shows that the owner was alive.
    release(store, &claim(1, 2, now)).await;
    assert_eq!(claimed(store, &claim(1, 7, now)).await, GRANTED);
    now += MINUTE + CLOCK_SKEW + Duration::from_secs(1);
    let granted = claimed(store, &claim(1, 8, now)).await;
    assert_eq!(granted, Claimed::Granted { abandoned: 1 });
    assert_eq!(completed(store, &claim(1, 8, now)).await, Completion::Stored);
    now += DAY + MINUTE;
    assert_eq!(claimed(store, &claim(1, 9, now)).await, GRANTED);
}

pub async fn empty_request_has_no_answers(store: &impl IdempotencyStore) {
    assert!(store.claim(&[]).await.is_empty());
    assert!(store.complete(&[]).await.is_empty());
    assert!(store.release(&[]).await.is_empty());
    assert!(store.status(&[], SystemTime::now()).await.is_empty());
}

pub async fn one_of_many_owners_is_granted(store: &impl IdempotencyStore) {
    let now = SystemTime::now();
    for number in 0..10 {
        let claims = (0..20).map(|owner| async move {
            let claim = claim(number, owner, now);
            claimed(store, &claim).await == GRANTED
        });
        let granted = join_all(claims).await;
        assert_eq!(granted.iter().filter(|granted| **granted).count(), 1);
        let completions = (0..20).map(|owner| async move {
            let claim = claim(number, owner, now);
            completed(store, &claim).await == Completion::Stored
        });
        assert_eq!(
            join_all(completions).await,
            granted,
            "only the owner with the claim completes"
        );
    }
}
