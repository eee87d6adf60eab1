//! The conformance suite of replay ledgers.
//!
//! A check that fails panics with the reason. [`ledger_conformance!`](crate::ledger_conformance) generates a
//! test for each check.

use std::future::Future;
use std::time::{Duration, UNIX_EPOCH};

use futures_util::future::join_all;

use super::sinks::letter;
use crate::replay::Ledger;
use crate::replay::ledger::{Entry, Key, LedgerError, State};

/// Access to the empty storage of a test, such as a folder or a table.
pub trait Harness {
    /// The type of the ledger.
    type Ledger: Ledger;

    /// Opens the ledger over the storage of this test. A check drops the ledger before it opens the same
    /// storage again.
    fn open(&self) -> impl Future<Output = Self::Ledger>;

    /// Returns true if entries outlive the process. Default: true. If false, no check restarts the ledger.
    fn survives_restart(&self) -> bool {
        true
    }

    /// Lets this time pass for the locks of the ledger. Default: sleeps.
    ///
    /// Override this method for a long [lock time](Ledger::lock_time), for example by moving the expiry times
    /// of the stored locks into the past.
    fn pass(&self, time: Duration) -> impl Future<Output = ()> {
        tokio::time::sleep(time)
    }
}

/// Generates a module of this name with a test for each check of the suite. Each test awaits the future to
/// get a [`Harness`](crate::testing::ledgers::Harness) of its own. With `optional` before the future, the
/// future returns an `Option`, and `None` skips the test.
///
/// The caller's crate needs tokio with the feature `macros`.
#[macro_export]
macro_rules! ledger_conformance {
    ($name:ident, $($fresh:tt)+) => {
        $crate::conformance_tests!(ledgers, $name, [
            unknown_key_has_no_entry,
            last_written_entry_is_returned,
            last_entry_of_a_key_in_a_request_is_kept,
            empty_request_has_no_entries,
            entries_survive_a_restart,
            source_has_one_owner,
            one_of_many_owners_locks_a_source,
            lock_ends_without_a_renewal,
            renewed_lock_lasts,
            lock_ends_with_its_process,
        ], $($fresh)+);
    };
}

/// Creates the key of the dead letter with this sequence number.
pub fn key(number: u64) -> Key {
    Key::letter("kinesis:orders", letter(number, None, "").id)
}

/// Creates an entry of the dead letter with this sequence number.
pub fn entry(number: u64, state: State) -> Entry {
    let origin = letter(number, None, "").origin;
    let at = UNIX_EPOCH + Duration::from_millis(1_790_000_000_123 + number);
    let letter_at = at - Duration::from_secs(5);
    let count = u32::try_from(number).unwrap_or(u32::MAX);
    Entry {
        state,
        origin,
        count,
        letter_at,
        run: format!("run-{number}"),
        at,
    }
}

async fn look_up(ledger: &impl Ledger, keys: &[Key]) -> Vec<Option<Entry>> {
    let known = ledger.look_up(keys).await.expect("the ledger answers");
    assert_eq!(known.len(), keys.len(), "one result for each key");
    known
}

fn assert_locked(result: &Result<(), LedgerError>, by: &str) {
    let is_locked = matches!(result, Err(LedgerError::Locked { owner, .. }) if owner == by);
    assert!(is_locked, "{by} has locked the source: {result:?}");
}

/// A key that was never written has no entry.
pub async fn unknown_key_has_no_entry(harness: &impl Harness) {
    let ledger = harness.open().await;
    assert_eq!(look_up(&ledger, &[key(1), key(2)]).await, [None, None]);
}

/// A lookup returns one result for each key, in the order of the keys: the entry that was written last. A
/// request may have more keys than a service accepts in one call.
pub async fn last_written_entry_is_returned(harness: &impl Harness) {
    let ledger = harness.open().await;
    let entries: Vec<_> = (0..250)
        .map(|number| (key(number), entry(number, State::Begun)))
        .collect();
    ledger.write(&entries).await.expect("written");
    let done = entry(8, State::Done);
    ledger.write(&[(key(7), done.clone())]).await.expect("written");
    // One key is requested twice.
    let keys: Vec<Key> = (0..260).rev().map(key).chain([key(7)]).collect();
    let known = look_up(&ledger, &keys).await;
    for (number, known) in (0..260).rev().chain([7]).zip(known) {
        let expected = match number {
            7 => Some(done.clone()),
            250.. => None,
            _ => Some(entry(number, State::Begun)),
        };
        assert_eq!(known, expected, "{number}");
    }
}

/// The last of several entries under one key in the same request is kept.
pub async fn last_entry_of_a_key_in_a_request_is_kept(harness: &impl Harness) {
    let ledger = harness.open().await;
    let entries: Vec<_> = (0..20)
        .map(|number| (key(1), entry(number, State::Begun)))
        .collect();
    ledger.write(&entries).await.expect("written");
    let known = look_up(&ledger, &[key(1)]).await;
    assert_eq!(known, [Some(entry(19, State::Begun))], "the last entry");
}

/// A request without keys or entries does nothing.
pub async fn empty_request_has_no_entries(harness: &impl Harness) {
    let ledger = harness.open().await;
    ledger.write(&[]).await.expect("nothing to write");
    assert_eq!(look_up(&ledger, &[]).await, []);
}

/// A confirmed entry is still there after a restart, with all its parts.
pub async fn entries_survive_a_restart(harness: &impl Harness) {
    if !harness.survives_restart() {
        return;
    }
    let entries = [(key(1), entry(1, State::Begun)), (key(2), entry(2, State::Done))];
    let ledger = harness.open().await;
    ledger.write(&entries).await.expect("written");
    drop(ledger);
    let ledger = harness.open().await;
    let known = look_up(&ledger, &[key(1), key(2), key(3)]).await;
    let [(_, one), (_, two)] = entries;
    assert_eq!(known, [Some(one), Some(two), None], "after a restart");
}

/// A source has one owner until that owner unlocks the source. The owner may lock the source again.
pub async fn source_has_one_owner(harness: &impl Harness) {
    let ledger = harness.open().await;
    ledger.lock("file:a", "one").await.expect("the source is free");
    let again = ledger.lock("file:a", "one").await;
    again.expect("the owner may lock the source again");
    assert_locked(&ledger.lock("file:a", "two").await, "one");
    ledger.lock("file:b", "two").await.expect("another source");
    // Only the owner unlocks the source.
    ledger.unlock("file:a", "two").await.expect("nothing happens");
    assert_locked(&ledger.lock("file:a", "two").await, "one");
    ledger.unlock("file:a", "one").await.expect("unlocked");
    ledger.unlock("file:a", "one").await.expect("nothing happens");
    ledger.lock("file:a", "two").await.expect("the source is free");
    assert_locked(&ledger.lock("file:a", "one").await, "two");
}

/// One of many owners that lock a source at the same time succeeds.
pub async fn one_of_many_owners_locks_a_source(harness: &impl Harness) {
    let ledger = harness.open().await;
    for source in 0..10 {
        let source = format!("file:{source}");
        let owners: Vec<String> = (0..10).map(|owner| format!("run-{owner}")).collect();
        let locked = join_all(owners.iter().map(|owner| ledger.lock(&source, owner))).await;
        let of: Vec<&String> = owners
            .iter()
            .zip(&locked)
            .filter(|(_, locked)| locked.is_ok())
            .map(|(owner, _)| owner)
            .collect();
        assert_eq!(of.len(), 1, "owners of a source: {of:?}");
        for (owner, locked) in owners.iter().zip(&locked) {
            if owner != of[0] {
                assert_locked(locked, of[0]);
            }
        }
    }
}

/// A lock with a [lock time](Ledger::lock_time) ends if its owner does not renew the lock. The former owner
/// does not get the source back.
pub async fn lock_ends_without_a_renewal(harness: &impl Harness) {
    let ledger = harness.open().await;
    let Some(time) = ledger.lock_time() else { return };
    ledger.lock("file:a", "one").await.expect("the source is free");
    harness.pass(time * 2).await;
    let locked = ledger.lock("file:a", "two").await;
    locked.expect("the lock has ended");
    assert_locked(&ledger.lock("file:a", "one").await, "two");
    ledger.unlock("file:a", "one").await.expect("nothing happens");
    assert_locked(&ledger.lock("file:a", "one").await, "two");
}

/// A lock that its owner renews outlasts the [lock time](Ledger::lock_time).
pub async fn renewed_lock_lasts(harness: &impl Harness) {
    let ledger = harness.open().await;
    let Some(time) = ledger.lock_time() else { return };
    ledger.lock("file:a", "one").await.expect("the source is free");
    for _ in 0..3 {
        harness.pass(time / 2).await;
        let renewed = ledger.lock("file:a", "one").await;
        renewed.expect("the owner renews the lock");
    }
    harness.pass(time / 2).await;
    assert_locked(&ledger.lock("file:a", "two").await, "one");
}

/// A lock without a [lock time](Ledger::lock_time) ends when the owner's process is gone.
pub async fn lock_ends_with_its_process(harness: &impl Harness) {
    let ledger = harness.open().await;
    if !harness.survives_restart() || ledger.lock_time().is_some() {
        return;
    }
    ledger.lock("file:a", "one").await.expect("the source is free");
    drop(ledger);
    let ledger = harness.open().await;
    let locked = ledger.lock("file:a", "two").await;
    locked.expect("the owner is gone");
}
