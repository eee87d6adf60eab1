//! Checks of requests: many keys, answers in order, and requests that are dropped.

use std::future::Future;
use std::pin::pin;
use std::time::SystemTime;

use tokio::task::yield_now;

use super::{COMPLETED, GRANTED, Harness, MINUTE, claim, claimed, completed, is_in_progress, key, only};
use crate::idempotency::{Claim, Claimed, Completion, IdempotencyStore, Key, PayloadHash, Status};

/// A request may have more keys than a service accepts in one call.
pub async fn many_keys_are_looked_up_at_once(harness: &impl Harness) {
    let store = &harness.open().await;
    let now = SystemTime::now();
    // Every third key is completed, and every third is in progress.
    let of = |rest: u64| (0..250).filter(move |number| number % 3 == rest);
    let done: Vec<Claim> = of(0).map(|number| claim(key(number), 1, now)).collect();
    let answers = store.complete(&done).await;
    assert_eq!(answers.len(), done.len(), "one answer for each claim");
    for answer in answers {
        assert_eq!(answer.expect("the store answers"), Completion::Stored);
    }
    let begun: Vec<Claim> = of(1).map(|number| claim(key(number), 1, now)).collect();
    let answers = store.claim(&begun).await;
    assert_eq!(answers.len(), begun.len(), "one answer for each claim");
    for answer in answers {
        assert_eq!(answer.expect("the store answers"), GRANTED);
    }
    // One key is requested twice.
    let keys: Vec<Key> = (0..250).chain([0]).map(key).collect();
    let looked = store.status(&keys, now).await;
    assert_eq!(looked.len(), keys.len());
    for (number, looked) in (0..250).chain([0]).zip(looked) {
        let looked = looked.expect("the store answers").map(Claimed::from);
        let is_expected = match number % 3 {
            0 => looked == Some(COMPLETED),
            1 => looked.as_ref().is_some_and(|it| is_in_progress(it, now + MINUTE)),
            _ => looked.is_none(),
        };
        assert!(is_expected, "{number}: {looked:?}");
    }
}

/// Claims, completions and releases return one answer for each claim, in the order of the claims.
pub async fn answers_follow_the_order_of_the_request(harness: &impl Harness) {
    let store = &harness.open().await;
    let now = SystemTime::now();
    let odd: Vec<Claim> = (0..100)
        .filter(|number| number % 2 == 1)
        .map(|number| claim(key(number), 1, now))
        .collect();
    assert_eq!(store.complete(&odd).await.len(), 50);
    let all: Vec<Claim> = (0..100).map(|number| claim(key(number), 2, now)).collect();
    let answers = store.claim(&all).await;
    assert_eq!(answers.len(), 100);
    for (number, answer) in answers.into_iter().enumerate() {
        let expected = if number % 2 == 1 { COMPLETED } else { GRANTED };
        assert_eq!(answer.expect("the store answers"), expected, "{number}");
    }
    let completed = store.complete(&all).await;
    assert_eq!(completed.len(), 100, "one answer for each claim");
    for (number, completion) in completed.into_iter().enumerate() {
        let expected = match number % 2 {
            1 => Completion::Lost,
            _ => Completion::Stored,
        };
        assert_eq!(completion.expect("the store answers"), expected, "{number}");
    }
    let released = store.release(&all).await;
    assert_eq!(released.len(), 100, "one answer for each claim");
    assert!(released.iter().all(Result::is_ok), "{released:?}");
}

/// A request without keys returns no answers.
pub async fn empty_request_has_no_answers(harness: &impl Harness) {
    let store = &harness.open().await;
    assert!(store.claim(&[]).await.is_empty());
    assert!(store.complete(&[]).await.is_empty());
    assert!(store.release(&[]).await.is_empty());
    assert!(store.status(&[], SystemTime::now()).await.is_empty());
}

/// The status of a key is returned without a claim of the key.
pub async fn status_claims_nothing(harness: &impl Harness) {
    let store = &harness.open().await;
    let now = SystemTime::now();
    for _ in 0..2 {
        assert_eq!(only(store.status(&[key(1)], now).await), None, "an unknown key");
    }
    assert_eq!(
        claimed(store, &claim(key(1), 1, now)).await,
        GRANTED,
        "an unknown key"
    );
    let looked = only(store.status(&[key(1)], now).await)
        .expect("the key is claimed")
        .into();
    assert!(is_in_progress(&looked, now + MINUTE), "{looked:?}");
    let payload = Some(PayloadHash::of(b"one order"));
    let mut done = claim(key(1), 1, now);
    done.payload = payload;
    assert_eq!(completed(store, &done).await, Completion::Stored);
    let looked = only(store.status(&[key(1)], now).await);
    assert_eq!(looked, Some(Status::Completed { payload }));
}

/// A request whose future is dropped may or may not take effect. The owner may repeat the request.
pub async fn dropped_request_may_be_repeated(harness: &impl Harness) {
    let store = &harness.open().await;
    let now = SystemTime::now();
    for polls in 1..4 {
        let own = claim(key(polls), 1, now);
        let request = std::slice::from_ref(&own);
        poll(polls, store.claim(request)).await;
        assert_eq!(claimed(store, &own).await, GRANTED, "a repeated claim");
        let other = claimed(store, &claim(key(polls), 2, now)).await;
        assert!(is_in_progress(&other, own.expires), "{other:?}");
        poll(polls, store.complete(request)).await;
        let stored = completed(store, &own).await;
        assert_eq!(stored, Completion::Stored, "a repeated completion");
        let other = claimed(store, &claim(key(polls), 2, now)).await;
        assert_eq!(other, COMPLETED, "a repeated completion");
    }
}

/// Polls the future up to this number of times, and drops it.
async fn poll<T>(polls: u64, future: impl Future<Output = T>) {
    let mut future = pin!(future);
    for _ in 0..polls {
        if futures_util::poll!(future.as_mut()).is_ready() {
            break;
        }
        yield_now().await;
    }
}

/// The store's name is a single line, and the store's `Debug` output has no credentials.
pub async fn name_is_fit_for_a_log(harness: &impl Harness) {
    let store = harness.open().await;
    let name = store.name();
    assert!(
        !name.is_empty() && !name.contains('\n'),
        "a single line: {name:?}"
    );
    assert!(!format!("{store:?}").contains("Credentials"));
}
