//! Replay ledgers with a fault.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio::task::yield_now;

use super::caught;
use crate::ledger_conformance;
use crate::replay::Ledger;
use crate::replay::ledger::{Entry, Key, LedgerError, Memory};
use crate::testing::ledgers::Harness;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// Confirms an entry before it is durable.
    Volatile,
    KeepsTheFirstEntry,
    /// Reads the lock and writes it in two steps.
    LocksInTwoSteps,
    NeverEndsALock,
    IgnoresARenewal,
    /// Keeps the locks of a process that is gone.
    KeepsLocks,
}

/// A ledger whose locks expire, except with [`Fault::KeepsLocks`].
#[derive(Debug, Clone)]
struct Store {
    inner: Memory,
    /// The owner of each locked source, and the time of the last renewal.
    locks: Arc<Mutex<HashMap<String, (String, Duration)>>>,
    now: Arc<Mutex<Duration>>,
    fault: Fault,
}

const LOCK_TIME: Duration = Duration::from_secs(60);

fn harness(fault: Fault) -> Store {
    Store {
        inner: Memory::new(),
        locks: Arc::default(),
        now: Arc::default(),
        fault,
    }
}

impl Harness for Store {
    type Ledger = Store;

    async fn open(&self) -> Store {
        match self.fault {
            Fault::Volatile => harness(self.fault),
            _ => self.clone(),
        }
    }

    async fn pass(&self, time: Duration) {
        *self.now.lock().expect("no panic while locked") += time;
    }
}

impl Store {
    fn now(&self) -> Duration {
        *self.now.lock().expect("no panic while locked")
    }

    fn owner(&self, source: &str) -> Option<String> {
        let locks = self.locks.lock().expect("no panic while locked");
        let (owner, since) = locks.get(source)?;
        let has_ended = self.lock_time().is_some_and(|time| self.now() >= *since + time);
        (!has_ended || self.fault == Fault::NeverEndsALock).then(|| owner.clone())
    }
}

#[async_trait]
impl Ledger for Store {
    async fn look_up(&self, keys: &[Key]) -> Result<Vec<Option<Entry>>, LedgerError> {
        self.inner.look_up(keys).await
    }

    async fn write(&self, entries: &[(Key, Entry)]) -> Result<(), LedgerError> {
        let mut entries = entries.to_vec();
        if self.fault == Fault::KeepsTheFirstEntry {
            entries.reverse();
        }
        self.inner.write(&entries).await
    }

    async fn lock(&self, source: &str, owner: &str) -> Result<(), LedgerError> {
        let holder = self.owner(source);
        if self.fault == Fault::LocksInTwoSteps {
            yield_now().await;
        }
        if let Some(holder) = holder.filter(|holder| holder != owner) {
            return Err(LedgerError::Locked {
                source_name: source.to_owned(),
                owner: holder,
            });
        }
        let mut locks = self.locks.lock().expect("no panic while locked");
        let new = (owner.to_owned(), self.now());
        match self.fault {
            Fault::IgnoresARenewal => {
                locks.entry(source.to_owned()).or_insert(new);
            }
            _ => {
                locks.insert(source.to_owned(), new);
            }
        }
        Ok(())
    }

    async fn unlock(&self, source: &str, owner: &str) -> Result<(), LedgerError> {
        let mut locks = self.locks.lock().expect("no panic while locked");
        if locks.get(source).is_some_and(|(holder, _)| holder == owner) {
            locks.remove(source);
        }
        Ok(())
    }

    fn lock_time(&self) -> Option<Duration> {
        (self.fault != Fault::KeepsLocks).then_some(LOCK_TIME)
    }
}

ledger_conformance!(without_a_fault, async { harness(Fault::None) });

caught! { ledgers, harness,
    volatile_entry_is_caught: Fault::Volatile => entries_survive_a_restart, "after a restart";
    earlier_entry_is_caught: Fault::KeepsTheFirstEntry => last_entry_of_a_key_in_a_request_is_kept, "the last entry";
    two_owners_of_a_source_are_caught: Fault::LocksInTwoSteps => one_of_many_owners_locks_a_source, "owners of a source";
    endless_lock_is_caught: Fault::NeverEndsALock => lock_ends_without_a_renewal, "the lock has ended";
    ignored_renewal_is_caught: Fault::IgnoresARenewal => renewed_lock_lasts, "has locked the source";
    lock_of_a_gone_process_is_caught: Fault::KeepsLocks => lock_ends_with_its_process, "the owner is gone";
}
