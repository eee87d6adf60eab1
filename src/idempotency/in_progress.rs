//! The claims of one process.

use std::collections::HashMap;
use std::time::SystemTime;

use super::{CLOCK_SKEW, Claim, Claimed, Key, Owner, Status};

/// The claimed keys.
#[derive(Debug, Default)]
pub(super) struct InProgress(HashMap<Key, Held>);

#[derive(Debug)]
struct Held {
    owner: Owner,
    expires: SystemTime,
    abandoned: u32,
}

impl Held {
    fn status(&self) -> Status {
        Status::InProgress {
            expires: self.expires,
            abandoned: self.abandoned,
        }
    }
}

/// The minimum number of claims at which a full table is swept for expired claims that were never released.
const LOOK_FROM: usize = 16_384;

impl InProgress {
    pub(super) fn claim(&mut self, claim: &Claim) -> Claimed {
        let mut abandoned = 0;
        if let Some(held) = self.0.get(&claim.key) {
            let is_own = Some(held.owner) == claim.replaces
                || held.owner == claim.owner && held.expires <= claim.expires;
            if !is_own && claim.now < held.expires + CLOCK_SKEW {
                return held.status().into();
            }
            abandoned = match is_own {
                true => held.abandoned,
                false => held.abandoned.saturating_add(1),
            };
        }
        if self.0.len() >= LOOK_FROM && self.0.len() == self.0.capacity() {
            self.0.retain(|_, held| claim.now < held.expires + CLOCK_SKEW);
        }
        let held = Held {
            owner: claim.owner,
            expires: claim.expires,
            abandoned,
        };
        self.0.insert(claim.key.clone(), held);
        Claimed::Granted { abandoned }
    }

    pub(super) fn status(&self, key: &Key) -> Option<Status> {
        self.0.get(key).map(Held::status)
    }

    /// Returns true if another owner has claimed the key.
    pub(super) fn is_anothers(&self, claim: &Claim) -> bool {
        self.0
            .get(&claim.key)
            .is_some_and(|held| held.owner != claim.owner)
    }

    pub(super) fn release(&mut self, claim: &Claim) {
        if !self.is_anothers(claim) {
            self.0.remove(&claim.key);
        }
    }
}
