//! The processor: the user's code that works on a record.

use std::any::type_name;
use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::failure::BoxError;
use crate::record::Record;

mod batch;
mod blocking;
mod boxed;
mod handler;
mod json;

pub use crate::external::Panicked;
pub(crate) use batch::Bounds;
pub use batch::{BatchFailure, BatchProcessor, Batched};
pub use blocking::{ProcessorBlocking, processor_blocking};
pub use boxed::BoxProcessor;
pub use handler::Handler;
pub use json::{JsonError, ProcessorFnJson, processor_fn_json};

/// Processes one record, with the code that a service already has.
///
/// `Ok(())` means that the work for the record is done permanently. The engine classifies an `Err` (see
/// [`Classify`](crate::Classify)): it retries a transient failure and sends a record with a permanent failure
/// to the dead-letter sink. A panic is caught, the record is retried once, and a second panic counts as
/// permanent.
///
/// A processor must meet two requirements:
/// - **Processing a record twice must be harmless**: delivery is at least once.
/// - **The future must be cancel-safe**: when an attempt times out, or the service's time to shut down is
///   over, the engine drops the future at its current `.await`.
///
/// ```
/// use redrive::processor::Attempt;
/// use redrive::{Record, RecordProcessor};
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
/// A function needs no implementation of this trait:
///
/// | the function | use |
/// |---|---|
/// | is a plain `async fn` | [`processor_fn`] |
/// | has state | [`processor_with`] |
/// | takes the parsed JSON payload | [`processor_fn_json`] |
/// | blocks its thread | [`processor_blocking`] |
///
/// Code that works on many records at once implements [`BatchProcessor`].
#[diagnostic::on_unimplemented(
    note = "a decorator of a `BatchProcessor` implements `BatchProcessor`; `.batched()` comes last"
)]
pub trait RecordProcessor: Send + Sync {
    /// The error of a failed attempt: any error type, also `anyhow::Error` or a boxed error.
    type Error: Into<BoxError> + Send + 'static;

    /// Processes the record once. The engine does not call this for a record that the idempotency store knows
    /// as processed, nor after the verdict on the record is reached.
    fn process(
        &self,
        record: &Record,
        attempt: &Attempt<'_>,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Erases the processor's type, for a struct field that must name it. Costs one allocation per record.
    fn boxed(self) -> BoxProcessor
    where
        Self: Sized + 'static,
    {
        BoxProcessor::new(self)
    }
}

/// The processor did not finish within the attempt timeout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the attempt timed out after {after:?}")]
pub struct AttemptTimedOut {
    /// The retry policy's `attempt_timeout`.
    pub after: Duration,
}

const A_LONG_TIME: Duration = Duration::from_secs(60 * 60 * 24 * 365);

/// The values that all attempts of a processor share.
#[derive(Debug)]
pub(crate) struct AttemptContext {
    timeout: Duration,
    runs_elsewhere: AtomicBool,
}

impl AttemptContext {
    pub(crate) fn new(timeout: Duration) -> Self {
        AttemptContext {
            timeout,
            runs_elsewhere: AtomicBool::new(false),
        }
    }

    /// Returns the maximum duration of an attempt.
    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Returns whether an attempt has run on another thread than the one that polls it.
    pub(crate) fn runs_elsewhere(&self) -> bool {
        self.runs_elsewhere.load(Ordering::Relaxed)
    }
}

/// One call of the processor, as the processor sees it.
#[derive(Debug)]
#[non_exhaustive]
pub struct Attempt<'a> {
    number: u32,
    context: &'a AttemptContext,
    until: Option<Instant>,
    cancelled: Option<&'a CancellationToken>,
    // Set at the first call of `deadline`. A processor that is ready at once never needs it, and a read of
    // the clock costs more than the rest of the engine.
    began: OnceLock<Instant>,
    /// True while the attempt waits for a call of an earlier attempt that has not ended.
    waits: AtomicBool,
}

impl<'a> Attempt<'a> {
    pub(crate) fn new(
        number: u32,
        context: &'a AttemptContext,
        until: Option<Instant>,
        cancelled: Option<&'a CancellationToken>,
    ) -> Self {
        Attempt {
            number,
            context,
            until,
            cancelled,
            began: OnceLock::new(),
            waits: AtomicBool::new(false),
        }
    }

    /// Returns the number of the attempt, starting at 1.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Returns the time at which the attempt times out and its future is dropped, on tokio's clock.
    pub fn deadline(&self) -> Instant {
        let began = *self.began.get_or_init(Instant::now);
        // A timeout beyond the range of the clock never comes.
        let own = began
            .checked_add(self.context.timeout)
            .unwrap_or(began + A_LONG_TIME);
        self.until.map_or(own, |until| own.min(until))
    }

    /// Returns whether the deadline of the run ends the attempt, not its own timeout.
    pub(crate) fn is_cut_short(&self) -> bool {
        self.until.is_some_and(|until| until <= self.deadline())
    }

    /// Records that the processor works on another thread than the one that polls it. The engine then knows
    /// that nothing may wake a call that works, also if a decorator surrounds the processor.
    fn moves_to_another_thread(&self) {
        if !self.context.runs_elsewhere() {
            self.context.runs_elsewhere.store(true, Ordering::Relaxed);
        }
    }

    /// Records whether the attempt only waits for a call of an earlier attempt, which cannot be stopped.
    fn waits_for_an_earlier_one(&self, waits: bool) {
        self.waits.store(waits, Ordering::Relaxed);
    }

    pub(crate) fn is_stuck(&self) -> bool {
        self.waits.load(Ordering::Relaxed)
    }

    /// Returns how long the attempt has taken, from the first time that its processor waited for something.
    pub(crate) fn took(&self) -> Duration {
        self.began.get().map_or(Duration::ZERO, Instant::elapsed)
    }

    /// Returns true if the result is no longer wanted: the shard now belongs to another worker.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.is_some_and(CancellationToken::is_cancelled)
    }

    /// Waits until the result is no longer wanted, for a processor that does long work of its own.
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
}

impl<P: RecordProcessor + ?Sized> RecordProcessor for Arc<P> {
    type Error = P::Error;

    async fn process(&self, record: &Record, attempt: &Attempt<'_>) -> Result<(), P::Error> {
        (**self).process(record, attempt).await
    }
}

/// Creates a processor from an `async fn` or a closure without state.
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

/// Creates a processor from a function and the state that it works with. The state is cloned for every
/// record.
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
