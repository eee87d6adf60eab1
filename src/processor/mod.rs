//! The handler: what the user's service does with a record.

use std::any::type_name;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::failure::BoxError;
use crate::record::Record;

mod batch;
mod blocking;
mod json;

pub(crate) use batch::Bounds;
pub use batch::{BatchFailure, BatchProcessor, Batched};
pub use blocking::{ProcessorBlocking, processor_blocking};
pub use json::{JsonError, ProcessorFnJson, processor_fn_json};

/// Processes one record: the handler that a service already has.
///
/// `Ok(())` means that the record's work is done for good. An `Err` is classified (see
/// [`Classify`](crate::Classify)): a transient failure is tried again, a permanent one goes to the
/// dead-letter sink. A panic is caught, tried once more, and then counts as permanent.
///
/// Two things are asked of a handler:
/// - **Doing a record twice must be harmless**: delivery is at least once.
/// - **It must be cancel-safe**: when an attempt times out, or the service's time to shut down is over,
///   its future is dropped at the `.await` where it stands.
///
/// ```
/// use redrive::{Attempt, Record, RecordProcessor};
///
/// struct Orders { /* a pool, a client, … */ }
///
/// impl RecordProcessor for Orders {
///     type Error = std::io::Error;
///
///     async fn process(&self, record: &Record, attempt: &Attempt<'_>) -> Result<(), Self::Error> {
///         println!("attempt {} of {} bytes", attempt.number(), record.payload().len());
///         Ok(())
///     }
/// }
/// ```
///
/// For a plain `async fn` there is [`processor_fn`], for one with state [`processor_with`], for one that wants what the
/// payload says [`processor_fn_json`], for one that blocks its thread [`processor_blocking`], for one that works on many
/// records at once [`BatchProcessor`].
pub trait RecordProcessor: Send + Sync {
    /// What a failed attempt returns: any error, also `anyhow::Error` or a boxed one.
    type Error: Into<BoxError> + Send + 'static;

    /// Processes the record once. Not called for a record that the idempotency store knows as
    /// processed, nor again once the verdict on a record is reached.
    fn process(
        &self,
        record: &Record,
        attempt: &Attempt<'_>,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// How many records it takes at once, if it does.
    #[doc(hidden)]
    fn batches(&self) -> Option<Bounds> {
        None
    }

    /// Whether it works on another thread than the one that polls it.
    #[doc(hidden)]
    fn runs_elsewhere(&self) -> bool {
        false
    }

    /// Only called where [`batches`](RecordProcessor::batches) says so.
    #[doc(hidden)]
    fn process_batch(
        &self,
        records: &[Record],
        attempt: &Attempt<'_>,
    ) -> impl Future<Output = Result<(), BatchFailure<Self::Error>>> + Send {
        async move {
            for record in records {
                self.process(record, attempt).await?;
            }
            Ok(())
        }
    }

    /// Erases the type, for a struct field that must name it. Costs one allocation a record.
    fn boxed(self) -> BoxProcessor
    where
        Self: Sized + 'static,
    {
        BoxProcessor {
            inner: Arc::new(self),
            name: type_name::<Self>(),
        }
    }
}

const A_LONG_TIME: Duration = Duration::from_secs(60 * 60 * 24 * 365);

/// One call of the handler, as the handler sees it.
#[derive(Debug)]
#[non_exhaustive]
pub struct Attempt<'a> {
    number: u32,
    timeout: Duration,
    until: Option<Instant>,
    cancelled: Option<&'a CancellationToken>,
    // Filled by whoever asks first: for a handler that is ready at once nobody does, and a clock read
    // costs more than the rest of the engine.
    began: OnceLock<Instant>,
    /// For a call of an earlier one that has not ended.
    waits: AtomicBool,
}

impl<'a> Attempt<'a> {
    pub(crate) fn new(
        number: u32,
        timeout: Duration,
        until: Option<Instant>,
        cancelled: Option<&'a CancellationToken>,
    ) -> Self {
        Attempt {
            number,
            timeout,
            until,
            cancelled,
            began: OnceLock::new(),
            waits: AtomicBool::new(false),
        }
    }

    /// Counts from 1.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// When the attempt times out and its future is dropped, on tokio's clock.
    pub fn deadline(&self) -> Instant {
        let began = *self.began.get_or_init(Instant::now);
        // A timeout that no clock can hold is one that never comes.
        let own = began.checked_add(self.timeout).unwrap_or(began + A_LONG_TIME);
        self.until.map_or(own, |until| own.min(until))
    }

    /// Whether it is not its own timeout that ends it, but its term.
    pub(crate) fn is_cut_short(&self) -> bool {
        self.until.is_some_and(|until| until <= self.deadline())
    }

    /// Whether it does nothing but wait for a call of an earlier attempt, which cannot be stopped.
    fn waits_for_an_earlier_one(&self, waits: bool) {
        self.waits.store(waits, Ordering::Relaxed);
    }

    pub(crate) fn is_stuck(&self) -> bool {
        self.waits.load(Ordering::Relaxed)
    }

    /// How long it has taken, from the first time that its handler waited for something.
    pub(crate) fn took(&self) -> Duration {
        self.began.get().map_or(Duration::ZERO, Instant::elapsed)
    }

    /// Whether the result is no longer wanted: the shard now belongs to another worker.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.is_some_and(CancellationToken::is_cancelled)
    }

    /// Waits until the result is no longer wanted; for a handler that does long work of its own.
    pub async fn cancelled(&self) {
        match self.cancelled {
            Some(token) => token.cancelled().await,
            None => std::future::pending().await,
        }
    }
}

impl<P: RecordProcessor + ?Sized> RecordProcessor for &P {
    type Error = P::Error;

    async fn process(&self, record: &Record, attempt: &Attempt<'_>) -> Result<(), P::Error> {
        (**self).process(record, attempt).await
    }

    fn batches(&self) -> Option<Bounds> {
        (**self).batches()
    }

    fn runs_elsewhere(&self) -> bool {
        (**self).runs_elsewhere()
    }

    fn process_batch(
        &self,
        records: &[Record],
        attempt: &Attempt<'_>,
    ) -> impl Future<Output = Result<(), BatchFailure<P::Error>>> + Send {
        (**self).process_batch(records, attempt)
    }
}

impl<P: RecordProcessor + ?Sized> RecordProcessor for Arc<P> {
    type Error = P::Error;

    async fn process(&self, record: &Record, attempt: &Attempt<'_>) -> Result<(), P::Error> {
        (**self).process(record, attempt).await
    }

    fn batches(&self) -> Option<Bounds> {
        (**self).batches()
    }

    fn runs_elsewhere(&self) -> bool {
        (**self).runs_elsewhere()
    }

    fn process_batch(
        &self,
        records: &[Record],
        attempt: &Attempt<'_>,
    ) -> impl Future<Output = Result<(), BatchFailure<P::Error>>> + Send {
        (**self).process_batch(records, attempt)
    }
}

/// Makes a processor of an `async fn` or a closure without state.
///
/// ```
/// use redrive::{Record, processor_fn};
///
/// async fn store(record: Record) -> Result<(), std::io::Error> {
///     Ok(())
/// }
/// let orders = processor_fn(store);
/// let inline = processor_fn(async |record: Record| -> Result<(), std::io::Error> { Ok(()) });
/// ```
pub fn processor_fn<F, Fut, E>(handler: F) -> ProcessorFn<F>
where
    F: Fn(Record) -> Fut + Send + Sync,
    Fut: Future<Output = Result<(), E>> + Send,
    E: Into<BoxError> + Send + 'static,
{
    ProcessorFn(handler)
}

/// A processor made by [`processor_fn`].
#[derive(Clone, Copy)]
pub struct ProcessorFn<F>(F);

impl<F, Fut, E> RecordProcessor for ProcessorFn<F>
where
    F: Fn(Record) -> Fut + Send + Sync,
    Fut: Future<Output = Result<(), E>> + Send,
    E: Into<BoxError> + Send + 'static,
{
    type Error = E;

    fn process(&self, record: &Record, _attempt: &Attempt<'_>) -> impl Future<Output = Result<(), E>> + Send {
        (self.0)(record.clone())
    }
}

impl<F> fmt::Debug for ProcessorFn<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ProcessorFn").field(&type_name::<F>()).finish()
    }
}

/// Makes a processor of a function and the state it works with, which is cloned for every record.
///
/// ```
/// use std::sync::Arc;
/// use redrive::{Record, processor_with};
///
/// struct Db;
/// let db = Arc::new(Db);
/// let orders = processor_with(db, async |db: Arc<Db>, record: Record| -> Result<(), std::io::Error> {
///     Ok(())
/// });
/// ```
pub fn processor_with<S, F, Fut, E>(state: S, handler: F) -> ProcessorWith<S, F>
where
    S: Clone + Send + Sync,
    F: Fn(S, Record) -> Fut + Send + Sync,
    Fut: Future<Output = Result<(), E>> + Send,
    E: Into<BoxError> + Send + 'static,
{
    ProcessorWith { state, handler }
}

/// A processor made by [`processor_with`].
#[derive(Clone, Copy)]
pub struct ProcessorWith<S, F> {
    state: S,
    handler: F,
}

impl<S, F, Fut, E> RecordProcessor for ProcessorWith<S, F>
where
    S: Clone + Send + Sync,
    F: Fn(S, Record) -> Fut + Send + Sync,
    Fut: Future<Output = Result<(), E>> + Send,
    E: Into<BoxError> + Send + 'static,
{
    type Error = E;

    fn process(&self, record: &Record, _attempt: &Attempt<'_>) -> impl Future<Output = Result<(), E>> + Send {
        (self.handler)(self.state.clone(), record.clone())
    }
}

impl<S, F> fmt::Debug for ProcessorWith<S, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ProcessorWith").field(&type_name::<F>()).finish()
    }
}

/// A processor without its type; see [`RecordProcessor::boxed`]. A clone shares it.
#[derive(Clone)]
pub struct BoxProcessor {
    inner: Arc<dyn ErasedProcessor>,
    name: &'static str,
}

trait ErasedProcessor: Send + Sync {
    fn process_boxed<'a>(
        &'a self,
        record: &'a Record,
        attempt: &'a Attempt<'a>,
    ) -> Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send + 'a>>;

    fn bounds(&self) -> Option<Bounds>;

    fn is_elsewhere(&self) -> bool;

    fn process_batch_boxed<'a>(&'a self, records: &'a [Record], attempt: &'a Attempt<'a>) -> BoxedBatch<'a>;
}

type BoxedBatch<'a> = Pin<Box<dyn Future<Output = Result<(), BatchFailure<BoxError>>> + Send + 'a>>;

impl<P: RecordProcessor> ErasedProcessor for P {
    fn process_boxed<'a>(
        &'a self,
        record: &'a Record,
        attempt: &'a Attempt<'a>,
    ) -> Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send + 'a>> {
        Box::pin(async move { self.process(record, attempt).await.map_err(Into::into) })
    }

    fn bounds(&self) -> Option<Bounds> {
        self.batches()
    }

    fn is_elsewhere(&self) -> bool {
        self.runs_elsewhere()
    }

    fn process_batch_boxed<'a>(&'a self, records: &'a [Record], attempt: &'a Attempt<'a>) -> BoxedBatch<'a> {
        Box::pin(async move {
            let processed = self.process_batch(records, attempt).await;
            processed.map_err(|failure| match failure {
                BatchFailure::All(error) => BatchFailure::All(error.into()),
                BatchFailure::Of(failed) => {
                    BatchFailure::of(failed.into_iter().map(|(index, error)| (index, error.into())))
                }
            })
        })
    }
}

impl RecordProcessor for BoxProcessor {
    type Error = BoxError;

    async fn process(&self, record: &Record, attempt: &Attempt<'_>) -> Result<(), BoxError> {
        self.inner.process_boxed(record, attempt).await
    }

    fn batches(&self) -> Option<Bounds> {
        self.inner.bounds()
    }

    fn runs_elsewhere(&self) -> bool {
        self.inner.is_elsewhere()
    }

    async fn process_batch(
        &self,
        records: &[Record],
        attempt: &Attempt<'_>,
    ) -> Result<(), BatchFailure<BoxError>> {
        self.inner.process_batch_boxed(records, attempt).await
    }
}

impl fmt::Debug for BoxProcessor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("BoxProcessor").field(&self.name).finish()
    }
}
