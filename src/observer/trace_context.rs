//! The trace that a record belongs to, as its producer wrote it.

use tracing::Span;

use crate::record::Record;

/// Finds the trace that a record belongs to, and has the record's span go on with it. Kinesis carries no headers: where a
/// producer puts the context is between it and you.
///
/// A function from a record to its context is enough for dead letters to have it
/// ([`DeadLetter::trace_context`](crate::dead_letter::DeadLetter::trace_context)), and for the span `record` to have its
/// `trace_id`:
///
/// ```
/// # use redrive::{Record, Resilient, dead_letter, processor_fn};
/// # async fn bill(_: Record) -> Result<(), std::io::Error> { Ok(()) }
/// #[derive(serde::Deserialize)]
/// struct Traced {
///     traceparent: String, // as W3C Trace Context has it
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
/// [`add_link`](TraceContext::add_link) with `tracing-opentelemetry`. The section "Continue a trace in OpenTelemetry" of
/// `docs/operations.md` has the code.
///
/// Spans are at DEBUG: `batch` for what was read or delivered together, `record` for the life of a record from its first
/// attempt until it is settled, `attempt` for each call of the handler. Without anybody who wants them none is made, and
/// nothing is extracted but for letters.
///
/// A panic in here is caught, and the record goes on without a trace.
pub trait TraceContext: Send + Sync {
    /// What the producer wrote. It is kept in the letter if the record becomes one, up to 1 KiB of it: it should say
    /// nothing of the payload.
    fn extract(&self, record: &Record) -> Option<String>;

    /// The record's span begins: it goes on with this trace. Default: nothing.
    fn set_parent(&self, _span: &Span, _context: &str) {}

    /// A span begins that is of many records (a [`BatchProcessor`](crate::BatchProcessor)'s attempt), of which one has this
    /// context. Default: nothing.
    fn add_link(&self, _span: &Span, _context: &str) {}
}

const _: Option<&dyn TraceContext> = None;

impl<F: Fn(&Record) -> Option<String> + Send + Sync> TraceContext for F {
    fn extract(&self, record: &Record) -> Option<String> {
        self(record)
    }
}
