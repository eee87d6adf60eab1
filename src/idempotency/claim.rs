//! A key that somebody is at.

use std::fmt;
use std::time::SystemTime;

use super::{Key, PayloadHash};

/// Whose a claim is: a number drawn for that claim alone.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Owner(u128);

impl Owner {
    /// Of this number.
    pub const fn new(number: u128) -> Self {
        Owner(number)
    }

    /// The number.
    pub const fn number(self) -> u128 {
        self.0
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A key, claimed by an owner for a while.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Claim {
    /// What is claimed.
    pub key: Key,
    /// By whom.
    pub owner: Owner,
    /// The same claimant's claim before this one, which may still be stored.
    pub replaces: Option<Owner>,
    /// What the record says, where that is checked.
    pub payload: Option<PayloadHash>,
    /// The caller's time.
    pub now: SystemTime,
    /// When the claim expires.
    pub expires: SystemTime,
    /// Until when the key is to be remembered once it is completed.
    pub keep_until: SystemTime,
}

impl Claim {
    /// A claim of this key. It has expired, and is to be forgotten, at once.
    pub fn new(key: Key, owner: Owner, now: SystemTime) -> Self {
        Claim {
            key,
            owner,
            replaces: None,
            payload: None,
            now,
            expires: now,
            keep_until: now,
        }
    }
}

/// What became of a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Claimed {
    /// The key is this owner's.
    Granted {
        /// How many claims of the key in a row ended without being completed or released: their holders died. 0 if
        /// the store does not count.
        abandoned: u32,
    },
    /// The key was processed.
    Completed {
        /// What its record said, if that was stored.
        payload: Option<PayloadHash>,
    },
    /// Another is at it.
    InProgress {
        /// When that claim expires, by the other's clock.
        expires: SystemTime,
        /// How many claims of the key in a row were abandoned before that one.
        abandoned: u32,
    },
}

/// What became of a completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Completion {
    /// The key is remembered as processed.
    Stored,
    /// The claim had expired, and the key is another's now: it may have been processed twice.
    Lost,
}
