//! Idempotency: a store remembers processed records, so that a second delivery is not processed again.
//!
//! ```
//! # fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use redrive::{Idempotency, Record, Resilient, dead_letter, idempotency, processor_fn};
//!
//! # async fn store_order(_: Record) -> Result<(), std::io::Error> { Ok(()) }
//! let orders = Resilient::builder("billing", processor_fn(store_order))
//!     .dead_letters(dead_letter::Memory::new())
//!     .idempotency(Idempotency::new(idempotency::Memory::new()).json_field("/order_id"))
//!     .build()?;
//! # Ok(())
//! # }
//! ```
//!
//! Before an attempt, the engine **claims** the record's key in an [`IdempotencyStore`]. After the processor
//! has succeeded, the engine **completes** the key. Of two concurrent deliveries of a key, one runs and the
//! other waits. The wait ends when the first is completed, which makes the other a
//! [`Duplicate`](crate::Settled::Duplicate), or when the claim of the first expires. The engine releases a
//! claim during a backoff and once a dead letter is confirmed, so that the store remembers only processed
//! records.
//!
//! Each claim has its own owner, and every write is conditional on that owner. A slow process that lost its
//! claim to another therefore changes nothing.
//!
//! While the store is unreachable, records wait. No record is processed unguarded.
//!
//! | store | feature | shared by |
//! |---|---|---|
//! | [`Memory`] | | one process, until it ends |
//! | [`Redb`] | `redb` | one process at a time, across restarts |
//! | [`DynamoDb`] | `dynamodb` | all processes, and Powertools for AWS Lambda |
//!
//! # Limits
//!
//! The processor's effect and the completion are two steps. If the process dies between them, the record is
//! processed again once its claim has expired. Where that is not acceptable, pass the key to the system that
//! the processor calls ([`Record::idempotency_key`](crate::Record::idempotency_key)), or make both steps one
//! transaction.

use std::borrow::Cow;
use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;

#[cfg(feature = "kinesis")]
mod check;
mod claim;
#[cfg(feature = "dynamodb")]
mod dynamodb;
mod in_progress;
mod key;
mod memory;
#[cfg(feature = "redb")]
mod redb;
mod settings;

#[cfg(feature = "kinesis")]
pub(crate) use check::check_store;
pub use claim::{Claim, Claimed, Completion, Owner, Status};
#[cfg(feature = "dynamodb")]
pub use dynamodb::DynamoDb;
pub use key::{Key, PayloadHash};
pub use memory::Memory;
#[cfg(feature = "redb")]
pub use redb::Redb;
pub use settings::{Idempotency, PayloadMismatch};

use crate::failure::BoxError;
#[cfg(any(feature = "kinesis", feature = "lambda"))]
use crate::start_check::is_passing;

/// The tolerated difference between the clocks of two processes: an expired claim is respected for this time.
pub const CLOCK_SKEW: Duration = Duration::from_secs(10);

/// Remembers processed records and the claims that are in progress.
///
/// A key is claimed, completed, or unknown. Each write names the [owner](Claim::owner) of its claim and takes
/// effect, atomically, only if that owner has the key. The caller supplies the time: a store reads no clock.
///
/// Each method returns one answer per argument, in the order of the arguments. After an error the write may
/// or may not have taken effect, and the engine repeats it.
#[async_trait]
pub trait IdempotencyStore: Send + Sync + Debug {
    /// Claims these keys. The store grants a claim if its key is
    /// - unknown, or forgotten: completed, with a [retention](Claim::keep_until) that ended before
    ///   [now](Claim::now);
    /// - claimed by this owner with a claim that expires no later, or by the owner that this claim
    ///   [replaces](Claim::replaces);
    /// - claimed by another owner whose claim expired [`CLOCK_SKEW`] ago: abandoned. A store that outlives
    ///   the process counts the consecutive abandoned claims of a key. Completing or releasing the key resets
    ///   the count.
    async fn claim(&self, claims: &[Claim]) -> Vec<Result<Claimed, StoreError>>;

    /// Remembers a key as processed if this owner has claimed it or completed it before, or if the key is
    /// unknown.
    async fn complete(&self, claims: &[Claim]) -> Vec<Result<Completion, StoreError>>;

    /// Releases each of these claims whose owner has the key, unless the key is completed.
    async fn release(&self, claims: &[Claim]) -> Vec<Result<(), StoreError>>;

    /// Returns the status of these keys without claiming them; `None` if unknown or forgotten.
    async fn status(&self, keys: &[Key], now: SystemTime) -> Vec<Result<Option<Status>, StoreError>>;

    /// Returns the store's name for events. Default: the type's name.
    fn name(&self) -> Cow<'_, str> {
        Cow::Borrowed(std::any::type_name::<Self>())
    }
}

// The trait must stay object-safe.
const _: fn(&dyn IdempotencyStore) = |_| ();

#[async_trait]
impl<S: IdempotencyStore + ?Sized> IdempotencyStore for Arc<S> {
    async fn claim(&self, claims: &[Claim]) -> Vec<Result<Claimed, StoreError>> {
        (**self).claim(claims).await
    }

    async fn complete(&self, claims: &[Claim]) -> Vec<Result<Completion, StoreError>> {
        (**self).complete(claims).await
    }

    async fn release(&self, claims: &[Claim]) -> Vec<Result<(), StoreError>> {
        (**self).release(claims).await
    }

    async fn status(&self, keys: &[Key], now: SystemTime) -> Vec<Result<Option<Status>, StoreError>> {
        (**self).status(keys, now).await
    }

    fn name(&self) -> Cow<'_, str> {
        (**self).name()
    }
}

/// An operation of the store failed, or its outcome is unknown.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The store cannot be reached, or refuses the call.
    #[error("the idempotency store is unavailable")]
    Unavailable(#[source] BoxError),
    /// The store belongs to another program, or cannot be opened. No retry helps.
    #[error("the idempotency store cannot be used")]
    Unusable(#[source] BoxError),
    /// The store's file is open in another process, or a second time in this one.
    #[error(
        "the idempotency file {} is open in another process; stop that process (`lsof` names it), or choose another path",
        path.display()
    )]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The entry under this key is unreadable. Once the entry is deleted, the record is processed again.
    #[error(
        "the entry of the idempotency store under key {key} is unreadable; delete it to process the record again"
    )]
    Corrupt {
        /// The key.
        key: Key,
        /// The reason.
        #[source]
        source: BoxError,
    },
}

impl StoreError {
    /// Creates [`StoreError::Unavailable`] from the store's error.
    pub fn unavailable(error: impl Into<BoxError>) -> Self {
        StoreError::Unavailable(error.into())
    }

    /// Returns true if the store as a whole fails until an operator changes something.
    #[cfg(any(feature = "kinesis", feature = "lambda"))]
    pub(crate) fn is_final(&self) -> bool {
        match self {
            StoreError::Unavailable(_) => !is_passing(self),
            StoreError::Unusable(_) | StoreError::InUse { .. } => true,
            StoreError::Corrupt { .. } => false,
        }
    }
}
