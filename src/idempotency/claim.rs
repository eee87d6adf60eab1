//! Claims of keys, and their outcomes.

use std::fmt;
use std::time::SystemTime;

use super::{Key, PayloadHash};

/// The owner of a claim: a number drawn for that claim alone.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Owner(u128);

impl Owner {
    /// Creates the owner with this number.
    pub const fn new(number: u128) -> Self {
        Owner(number)
    }

    /// Returns the number.
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

/// A claim of a key by an owner, for a limited time.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Claim {
    /// The claimed key.
    pub key: Key,
    /// The owner of the claim.
    pub owner: Owner,
    /// The owner of the same claimant's previous claim, which may still be stored.
    pub replaces: Option<Owner>,
    /// The hash of the record's payload, if payloads are checked.
    pub payload: Option<PayloadHash>,
    /// The current time of the caller.
    pub now: SystemTime,
    /// The time at which the claim expires.
    pub expires: SystemTime,
    /// The time until which the store remembers the key once it is completed.
    pub keep_until: SystemTime,
}

impl Claim {
    /// Creates a claim of this key that expires, and is forgotten, at `now`.
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

/// The outcome of a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Claimed {
    /// This owner has the key.
    Granted {
        /// The number of consecutive claims of the key that were neither completed nor released, because
        /// their processes died. 0 if the store does not count.
        abandoned: u32,
    },
    /// The record with the key was processed.
    Completed {
        /// The hash of that record's payload, if the store has one.
        payload: Option<PayloadHash>,
    },
    /// Another owner has claimed the key.
    InProgress {
        /// The time at which that claim expires, by the other process's clock.
        expires: SystemTime,
        /// The number of consecutive claims of the key that were abandoned before that claim.
        abandoned: u32,
    },
}

/// The status of a key that a store knows.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Status {
    /// The record with the key was processed.
    Completed {
        /// The hash of that record's payload, if the store has one.
        payload: Option<PayloadHash>,
    },
    /// An owner has claimed the key.
    InProgress {
        /// The time at which the claim expires, by its process's clock.
        expires: SystemTime,
        /// The number of consecutive claims of the key that were abandoned before that claim.
        abandoned: u32,
    },
}

impl From<Status> for Claimed {
    /// Refuses a claim because of the status of its key.
    fn from(status: Status) -> Self {
        match status {
            Status::Completed { payload } => Claimed::Completed { payload },
            Status::InProgress { expires, abandoned } => Claimed::InProgress { expires, abandoned },
        }
    }
}

/// The outcome of a completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Completion {
    /// The store remembers the key as processed.
    Stored,
    /// The claim had expired and another owner has the key: the record may have been processed twice.
    Lost,
}
