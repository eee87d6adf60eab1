//! Processors that work on many records at once.

use std::any::type_name;
use std::fmt;
use std::future::Future;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use super::{Attempt, BoxProcessor, Handler};
use crate::config::ConfigError;
use crate::failure::BoxError;
use crate::record::Record;

/// Processes many records at a time, for a database or a service that takes many at once.
///
/// ```
/// use redrive::processor::{Attempt, BatchFailure};
/// use redrive::{BatchProcessor, Record, Resilient, dead_letter};
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
///         insert(records).await?; // an error here does not name the records that failed
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
/// A batch contains records of one shard, in the shard's order. It may contain any number of records of one
/// partition key. A call of the processor is one attempt, however many records it has. An attempt has one
/// [timeout](crate::RetryPolicy::attempt_timeout), counts as one running call of the
/// [`Capacity`](crate::pipeline::Capacity), and counts once for the breaker and the retry budget. A record
/// that is settled by hand ([`Resilient::settle`](crate::Resilient::settle)) is a batch of its own.
///
/// # When a batch fails
///
/// The processor either names the records that failed ([`BatchFailure::of`]) or reports only that the batch
/// failed ([`BatchFailure::All`]). Any error returned with `?`, a timeout and a panic count as `All`.
///
/// If the processor names records, the other records count as processed, except those behind a named record
/// in its partition key. The processor gets those again once the named record is settled.
///
/// If the whole batch failed, the engine retries it as a whole, as it would retry one record, while a
/// dependency may be at fault. If the fault lies with a record ([`Scope::Record`](crate::Scope::Record)), or
/// the retries are exhausted, the engine **bisects** the batch: it tries halves until the failing record is
/// alone. For one record among n this takes about log₂ n calls. That record continues alone, to be retried or
/// to become a dead letter, and the rest is processed.
///
/// A good record may therefore reach the processor **several times**, in a batch or half a batch that failed.
/// Processing it twice must be harmless, also if the processor had done a part of the batch before it failed.
///
/// # Decorators
///
/// A decorator of a batch processor implements `BatchProcessor` itself. [`batched`](BatchProcessor::batched)
/// comes last:
///
/// ```
/// # use redrive::processor::{Attempt, BatchFailure};
/// # use redrive::{BatchProcessor, Record, Resilient};
/// # struct Inserts;
/// # impl BatchProcessor for Inserts {
/// #     type Error = std::io::Error;
/// #     async fn process_batch(&self, _: &[Record], _: &Attempt<'_>) -> Result<(), BatchFailure<Self::Error>> { Ok(()) }
/// # }
/// struct Logged<B>(B);
///
/// impl<B: BatchProcessor> BatchProcessor for Logged<B> {
///     type Error = B::Error;
///
///     async fn process_batch(
///         &self,
///         records: &[Record],
///         attempt: &Attempt<'_>,
///     ) -> Result<(), BatchFailure<Self::Error>> {
///         println!("{} records", records.len());
///         self.0.process_batch(records, attempt).await
///     }
/// }
///
/// let orders = Resilient::builder("billing", Logged(Inserts).batched());
/// ```
///
/// A decorator around [`Batched`] that passes on single records would turn every batch into single records.
/// It does not compile, because `Batched` is no [`RecordProcessor`](super::RecordProcessor):
///
/// ```compile_fail,E0599
/// # use redrive::processor::{Attempt, Batched};
/// # use redrive::{BatchProcessor, Record, RecordProcessor};
/// struct Logged<B>(Batched<B>);
///
/// impl<B: BatchProcessor> RecordProcessor for Logged<B> {
///     type Error = B::Error;
///
///     async fn process(&self, record: &Record, attempt: &Attempt<'_>) -> Result<(), Self::Error> {
///         self.0.process(record, attempt).await
///     }
/// }
/// ```
pub trait BatchProcessor: Send + Sync {
    /// The error of a failed attempt: any error type, also `anyhow::Error` or a boxed error.
    type Error: Into<BoxError> + Send + 'static;

    /// Processes one or more records of one shard, in its order, once. The future must be cancel-safe, as
    /// that of [`RecordProcessor::process`](super::RecordProcessor::process).
    fn process_batch(
        &self,
        records: &[Record],
        attempt: &Attempt<'_>,
    ) -> impl Future<Output = Result<(), BatchFailure<Self::Error>>> + Send;

    /// Returns the processor for [`Resilient::builder`](crate::Resilient::builder), with batches of up to 100
    /// records and 1 MiB. A batch does not wait to fill up, unless [`linger`](Batched::linger) is set.
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

impl<B: BatchProcessor> BatchProcessor for &B {
    type Error = B::Error;

    fn process_batch(
        &self,
        records: &[Record],
        attempt: &Attempt<'_>,
    ) -> impl Future<Output = Result<(), BatchFailure<B::Error>>> + Send {
        (**self).process_batch(records, attempt)
    }
}

impl<B: BatchProcessor> BatchProcessor for Arc<B> {
    type Error = B::Error;

    fn process_batch(
        &self,
        records: &[Record],
        attempt: &Attempt<'_>,
    ) -> impl Future<Output = Result<(), BatchFailure<B::Error>>> + Send {
        (**self).process_batch(records, attempt)
    }
}

/// The failure of a batch: as a whole, or of single records. There is no third case, so that a decorator can
/// match both.
#[derive(Debug)]
pub enum BatchFailure<E> {
    /// The batch failed, and the failing records are unknown.
    All(E),
    /// The records with these indices in the batch failed, each with an error of its own. The others are
    /// processed. An index outside the batch means that all records failed.
    Of(Vec<(usize, E)>),
}

impl<E> BatchFailure<E> {
    /// Creates the failure of the records with these indices; the others are processed.
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
/// [`ResilientBuilder::build`](crate::ResilientBuilder::build) checks its settings.
///
/// | setting | default |
/// |---|---|
/// | [`size`](Batched::size) | 100 |
/// | [`bytes`](Batched::bytes) | 1,048,576 (1 MiB) |
/// | [`linger`](Batched::linger) | no wait |
#[derive(Clone, Copy)]
#[must_use]
pub struct Batched<B> {
    processor: B,
    bounds: Bounds,
}

/// The maximum size of a batch, and how long a batch waits for more records.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    pub(crate) size: usize,
    pub(crate) bytes: usize,
    pub(crate) linger: Duration,
}

impl Bounds {
    pub(crate) fn at_most(mut self, records: NonZeroUsize) -> Self {
        self.size = self.size.min(records.get());
        self
    }

    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        if self.size == 0 {
            return Err(ConfigError::new("size", "a batch must have at least 1 record"));
        }
        if self.bytes == 0 {
            return Err(ConfigError::new("bytes", "a batch must have at least 1 byte"));
        }
        Ok(())
    }
}

impl Default for Bounds {
    fn default() -> Self {
        Bounds {
            size: 100,
            bytes: 1024 * 1024,
            linger: Duration::ZERO,
        }
    }
}

impl<B: BatchProcessor> Batched<B> {
    /// Sets the maximum number of records in a batch: at least 1. With an [`Idempotency`](crate::Idempotency)
    /// store a batch has at most 256. Default: 100.
    pub fn size(mut self, records: usize) -> Self {
        self.bounds.size = records;
        self
    }

    /// Sets the maximum number of payload bytes in a batch: at least 1. A larger record is a batch of its own. Default: 1
    /// MiB.
    pub fn bytes(mut self, bytes: usize) -> Self {
        self.bounds.bytes = bytes;
        self
    }

    /// Sets how long the first record of a batch waits for others while no records are available to read.
    /// Any time is valid. Default: no wait.
    pub fn linger(mut self, time: Duration) -> Self {
        self.bounds.linger = time;
        self
    }

    /// Erases the processor's type, for a struct field that must name it. Costs one allocation per batch. The
    /// processor still gets batches.
    pub fn boxed(self) -> BoxProcessor
    where
        B: 'static,
    {
        BoxProcessor::new(self)
    }
}

impl<B: BatchProcessor> Handler for Batched<B> {
    type Error = B::Error;

    /// Processes the record as a batch of one.
    async fn handle(&self, record: &Record, attempt: &Attempt<'_>) -> Result<(), B::Error> {
        let batch = std::slice::from_ref(record);
        match self.processor.process_batch(batch, attempt).await {
            Ok(()) => Ok(()),
            Err(BatchFailure::All(error)) => Err(error),
            // Every index means the only record.
            Err(BatchFailure::Of(failed)) => {
                failed.into_iter().next().map_or(Ok(()), |(_, error)| Err(error))
            }
        }
    }

    fn batches(&self) -> Option<Bounds> {
        Some(self.bounds)
    }

    fn handle_batch(
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

#[cfg(test)]
mod tests {
    use super::*;

    struct Nothing;

    impl BatchProcessor for Nothing {
        type Error = std::io::Error;

        async fn process_batch(
            &self,
            _: &[Record],
            _: &Attempt<'_>,
        ) -> Result<(), BatchFailure<Self::Error>> {
            Ok(())
        }
    }

    #[test]
    fn the_documented_defaults() {
        let defaults = Bounds {
            size: 100,
            bytes: 1_048_576,
            linger: Duration::ZERO,
        };
        assert_eq!(Nothing.batched().bounds, defaults);
    }
}
