//! Doing a record twice made harmless: what was processed is remembered, and not processed again.
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
//! Before an attempt the record's key is **claimed** in an [`IdempotencyStore`]; when the handler has succeeded
//! the key is **completed**. Of two deliveries of a key one runs, and the other waits: until the first is
//! completed, which makes it a [`Duplicate`](crate::Settled::Duplicate), or until its claim has expired. A claim
//! is given back during a backoff and once a dead letter is confirmed, so that only what was processed is
//! remembered.
//!
//! Every claim has an owner of its own that all writes are conditional on: whoever was too slow, and lost its
//! claim to another, changes nothing any more.
//!
//! A store that cannot be reached makes the records wait; none is processed unguarded.
//!
//! | store | feature | shared by |
//! |---|---|---|
//! | [`Memory`] | | one process, until it ends |
//! | [`Redb`] | `redb` | one process, and the next one on the machine |
//! | [`DynamoDb`] | `dynamodb` | all, also with Powertools for AWS Lambda |
//!
//! # What it cannot do
//!
//! The handler's effect and the completion are two steps: if the process dies between them the record is
//! processed again, once its claim has expired. Where even that must not be, hand the key on to what the handler
//! calls ([`Record::idempotency_key`](crate::Record::idempotency_key)), or keep both in one transaction.

use std::borrow::Cow;
use std::fmt::Debug;
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
pub use claim::{Claim, Claimed, Completion, Owner};
#[cfg(feature = "dynamodb")]
pub use dynamodb::DynamoDb;
pub use key::{Key, PayloadHash};
pub use memory::Memory;
#[cfg(feature = "redb")]
pub use redb::Redb;
pub use settings::{Idempotency, PayloadMismatch};

use crate::failure::BoxError;

/// By how much the clocks of two processes may differ: for so long a claim is left alone after it has expired.
pub const CLOCK_SKEW: Duration = Duration::from_secs(10);

/// Remembers what was processed, and who is at it.
///
/// A key is claimed, completed, or nothing. Each write names its claim's [owner](Claim::owner) and takes effect
/// only if the key is that owner's, atomically. Time is the caller's: a store asks no clock.
///
/// Answers come in the order of what they answer, as many as were asked. An error says that the write may or may
/// not have taken effect; it is made again.
#[async_trait]
pub trait IdempotencyStore: Send + Sync + Debug {
    /// Claims these keys. A claim is granted if its key is
    /// - unknown, or forgotten: completed, and to be kept until [before now](Claim::now);
    /// - claimed by this owner, or by the one that it [replaces](Claim::replaces), and expires no later;
    /// - claimed by another whose claim expired [`CLOCK_SKEW`] ago: it was abandoned. A store that outlives the process
    ///   counts the abandoned claims of a key in a row. Completing or releasing the key resets the count.
    async fn claim(&self, claims: &[Claim]) -> Vec<Result<Claimed, StoreError>>;

    /// Remembers these keys as processed, each if it is claimed by this owner, completed by it before, or
    /// unknown.
    async fn complete(&self, claims: &[Claim]) -> Vec<Result<Completion, StoreError>>;

    /// Gives these claims back, each if it is this owner's and not completed.
    async fn release(&self, claims: &[Claim]) -> Vec<Result<(), StoreError>>;

    /// Returns the status of these keys without claiming them: completed, in progress, or `None` if unknown or forgotten.
    async fn status(&self, keys: &[Key], now: SystemTime) -> Vec<Result<Option<Claimed>, StoreError>>;

    /// What it is called in events.
    fn name(&self) -> Cow<'_, str> {
        Cow::Borrowed(std::any::type_name::<Self>())
    }
}

// It is used behind a pointer.
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

    async fn status(&self, keys: &[Key], now: SystemTime) -> Vec<Result<Option<Claimed>, StoreError>> {
        (**self).status(keys, now).await
    }

    fn name(&self) -> Cow<'_, str> {
        (**self).name()
    }
}

/// A store did not do what it was asked to, as far as one can tell.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// It cannot be reached, or refuses.
    #[error("the idempotency store is unavailable")]
    Unavailable(#[source] BoxError),
    /// What it holds under this key cannot be read: delete it, and the record is processed again.
    #[error(
        "what the idempotency store holds under key {key} cannot be read; delete it to process the record again"
    )]
    Corrupt {
        /// The key.
        key: Key,
        /// What is wrong with it.
        #[source]
        source: BoxError,
    },
}

impl StoreError {
    /// It cannot be reached, or refuses.
    pub fn unavailable(error: impl Into<BoxError>) -> Self {
        StoreError::Unavailable(error.into())
    }
}
