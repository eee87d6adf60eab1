//! The trace that a record belongs to, as its producer wrote it.

use tracing::Span;

use crate::record::Record;

/// Finds the trace that a record belongs to, and continues that trace in the record's span. Kinesis records
/// have no headers, so the producer and you agree on where the context is stored.
///
/// A function from a record to its context is enough to add the context to dead letters
/// ([`DeadLetter::trace_context`](crate::dead_letter::DeadLetter::trace_context)) and the field `trace_id` to
/// the span `record`:
///
/// ```
/// # use redrive::{Record, Resilient, dead_letter, processor_fn};
/// # async fn bill(_: Record) -> Result<(), std::io::Error> { Ok(()) }
/// #[derive(serde::Deserialize)]
/// struct Traced {
///     traceparent: String, // in the form of W3C Trace Context
/// }
///
/// let orders = Resilient::builder("billing", processor_fn(bill))
///     .trace_context(|record: &Record| Some(serde_json::from_slice::<Traced>(record.payload()).ok()?.traceparent))
///     .dead_letters(dead_letter::Memory::new())
///     .build()?;
/// # Ok::<(), redrive::ConfigError>(())
/// ```
///
/// To continue the trace in OpenTelemetry, implement [`set_parent`](TraceContext::set_parent) and
/// [`add_link`](TraceContext::add_link) with `tracing-opentelemetry`. The section "Continue a trace in
/// OpenTelemetry" of `docs/operations.md` has the code.
///
/// All spans have the level DEBUG: `batch` covers records that were read or delivered together, `record` the
/// life of a record from its first attempt to its settlement, and `attempt` a call of the processor. While no
/// subscriber enables them, redrive creates no spans and extracts the context only for dead letters.
///
/// redrive catches a panic of this trait's methods and processes the record without a trace.
pub trait TraceContext: Send + Sync {
    /// Returns the context that the producer wrote. If the record is dead-lettered, up to 1 KiB of the
    /// context is stored in the dead letter, so the context should not contain payload.
    fn extract(&self, record: &Record) -> Option<String>;

    /// Continues the trace with this context in the record's span, which has just been created. Default: does
    /// nothing.
    fn set_parent(&self, _span: &Span, _context: &str) {}

    /// Links the context of one record to a span of several records, the attempt of a
    /// [`BatchProcessor`](crate::BatchProcessor). Called once for each record with a context. Default: does
    /// nothing.
    fn add_link(&self, _span: &Span, _context: &str) {}
}

const _: Option<&dyn TraceContext> = None;

impl<F: Fn(&Record) -> Option<String> + Send + Sync> TraceContext for F {
    fn extract(&self, record: &Record) -> Option<String> {
        self(record)
    }
}
