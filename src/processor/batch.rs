//! Handlers that work on many records at once.

use std::any::type_name;
use std::fmt;
use std::future::Future;
use std::num::NonZeroUsize;
use std::time::Duration;

use super::{Attempt, RecordProcessor};
use crate::failure::BoxError;
use crate::record::Record;

/// Processes records many at a time, as a database or a service does that takes many at once.
///
/// ```
/// use redrive::{Attempt, BatchFailure, BatchProcessor, Record, Resilient, dead_letter};
///
/// struct Inserts { /* a pool, a client, … */ }
///
/// impl BatchProcessor for Inserts {
///     type Error = std::io::Error;
///
///     async fn process_batch(
///         &self,
///         records: &[Record],
///         _: &Attempt<'_>,
///     ) -> Result<(), BatchFailure<Self::Error>> {
///         insert(records).await?; // failed, and nobody knows for which of them
///         Ok(())
///     }
/// }
/// # async fn insert(_: &[Record]) -> Result<(), std::io::Error> { Ok(()) }
///
/// # fn example() -> Result<(), redrive::ConfigError> {
/// let orders = Resilient::builder("billing", Inserts { /* … */ }.batched().size(500))
///     .dead_letters(dead_letter::Memory::new())
///     .build()?;
/// # Ok(())
/// # }
/// ```
///
/// # What a batch is
///
/// Records of one shard, in its order, with as many of a partition key as there are. A call of the handler is one
/// attempt: it has one [timeout](crate::RetryPolicy::attempt_timeout), takes one of the places to
/// [run](crate::pipeline::Capacity), and counts once for the breaker and the retry budget, however many records it has.
/// Settled by hand ([`Resilient::settle`](crate::Resilient::settle)) a record is a batch of its own.
///
/// # When it fails
///
/// Either the handler names the records that failed ([`BatchFailure::of`]): the others are processed, but for those
/// behind a named one in its partition key, which are given to it again once that one is settled.
///
/// Or it says only that it failed ([`BatchFailure::All`], as any error of its own becomes with `?`, a timeout and a panic
/// do). Then the batch is tried again as a whole, as one record would be, for as long as it may be a dependency's fault.
/// Where the record itself would be to blame ([`Scope::Record`](crate::Scope::Record)), or the retries are used up, it
/// is **bisected**: halves are tried until what fails is alone, which for one record among n takes about log₂ n calls.
/// That one goes on by itself, to be tried again or to become a dead letter, and the rest is processed.
///
/// So a good record may be given to the handler **several times**, in whole or in half a batch that failed: doing it
/// twice must be harmless, also where the handler had done a part of the batch before it failed.
pub trait BatchProcessor: Send + Sync {
    /// What a failed attempt returns: any error, also `anyhow::Error` or a boxed one.
    type Error: Into<BoxError> + Send + 'static;

    /// Processes these records once: one or more, of one shard and in its order. It must be cancel-safe, as
    /// [`RecordProcessor::process`] must.
    fn process_batch(
        &self,
        records: &[Record],
        attempt: &Attempt<'_>,
    ) -> impl Future<Output = Result<(), BatchFailure<Self::Error>>> + Send;

    /// As a processor: batches of up to 100 records and 1 MiB, made of what there is.
    fn batched(self) -> Batched<Self>
    where
        Self: Sized,
    {
        Batched {
            processor: self,
            bounds: Bounds::default(),
        }
    }
}

/// What failed in a batch.
#[derive(Debug)]
pub enum BatchFailure<E> {
    /// It did, and nobody knows which of its records.
    All(E),
    /// These did, each for a reason of its own: their indices in the batch. The others are processed. If it names one
    /// that the batch does not have, all have failed.
    Of(Vec<(usize, E)>),
}

impl<E> BatchFailure<E> {
    /// These records failed, the others are processed.
    pub fn of(failed: impl IntoIterator<Item = (usize, E)>) -> Self {
        BatchFailure::Of(failed.into_iter().collect())
    }
}

impl<E> From<E> for BatchFailure<E> {
    fn from(error: E) -> Self {
        BatchFailure::All(error)
    }
}

/// A processor made by [`BatchProcessor::batched`].
#[derive(Clone, Copy)]
#[must_use]
pub struct Batched<B> {
    processor: B,
    bounds: Bounds,
}

/// How large a batch is, and how long it waits to become so.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    pub(crate) size: NonZeroUsize,
    pub(crate) bytes: usize,
    pub(crate) linger: Duration,
}

impl Bounds {
    pub(crate) fn at_most(mut self, records: NonZeroUsize) -> Self {
        self.size = self.size.min(records);
        self
    }
}

impl Default for Bounds {
    fn default() -> Self {
        Bounds {
            size: const { NonZeroUsize::new(100).expect("more than none") },
            bytes: 1024 * 1024,
            linger: Duration::ZERO,
        }
    }
}

impl<B: BatchProcessor> Batched<B> {
    /// The most records of a batch, at least 1; with an [`Idempotency`](crate::Idempotency) store 256. Default: 100.
    pub fn size(mut self, records: usize) -> Self {
        self.bounds.size = NonZeroUsize::new(records).unwrap_or(NonZeroUsize::MIN);
        self
    }

    /// The most payload bytes of a batch; a larger record is one by itself. Default: 1 MiB.
    pub fn bytes(mut self, bytes: usize) -> Self {
        self.bounds.bytes = bytes;
        self
    }

    /// How long the first record of a batch waits for others, while there are none to be read. Default: not at all.
    pub fn linger(mut self, time: Duration) -> Self {
        self.bounds.linger = time;
        self
    }
}

impl<B: BatchProcessor> RecordProcessor for Batched<B> {
    type Error = B::Error;

    /// As a batch of one.
    async fn process(&self, record: &Record, attempt: &Attempt<'_>) -> Result<(), B::Error> {
        let batch = std::slice::from_ref(record);
        match self.processor.process_batch(batch, attempt).await {
            Ok(()) => Ok(()),
            Err(BatchFailure::All(error)) => Err(error),
            // Whichever it names: there is but one.
            Err(BatchFailure::Of(failed)) => {
                failed.into_iter().next().map_or(Ok(()), |(_, error)| Err(error))
            }
        }
    }

    fn batches(&self) -> Option<Bounds> {
        Some(self.bounds)
    }

    fn process_batch(
        &self,
        records: &[Record],
        attempt: &Attempt<'_>,
    ) -> impl Future<Output = Result<(), BatchFailure<B::Error>>> + Send {
        self.processor.process_batch(records, attempt)
    }
}

impl<B> fmt::Debug for Batched<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batched")
            .field("processor", &type_name::<B>())
            .field("bounds", &self.bounds)
            .finish()
    }
}
