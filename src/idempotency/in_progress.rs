//! Claims within one process.

use std::collections::HashMap;
use std::time::SystemTime;

use super::{CLOCK_SKEW, Claim, Claimed, Key, Owner};

/// The keys that somebody is at.
#[derive(Debug, Default)]
pub(super) struct InProgress(HashMap<Key, (Owner, SystemTime)>);

/// From so many claims on it is looked for those that nobody has given back.
const LOOK_FROM: usize = 16_384;

impl InProgress {
    pub(super) fn claim(&mut self, claim: &Claim) -> Claimed {
        if let Some(&(owner, expires)) = self.0.get(&claim.key) {
            let own = Some(owner) == claim.replaces || owner == claim.owner && expires <= claim.expires;
            if !own && claim.now < expires + CLOCK_SKEW {
                return Claimed::InProgress { expires };
            }
        }
        if self.0.len() >= LOOK_FROM && self.0.len() == self.0.capacity() {
            self.0.retain(|_, (_, expires)| claim.now < *expires + CLOCK_SKEW);
        }
        self.0.insert(claim.key.clone(), (claim.owner, claim.expires));
        Claimed::Granted
    }

    /// Whether somebody else is at it.
    pub(super) fn is_anothers(&self, claim: &Claim) -> bool {
        self.0
            .get(&claim.key)
            .is_some_and(|(owner, _)| *owner != claim.owner)
    }

    pub(super) fn release(&mut self, claim: &Claim) {
        if !self.is_anothers(claim) {
            self.0.remove(&claim.key);
        }
    }
}
