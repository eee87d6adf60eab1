//! Tracing spans: one for the life of a record, and in it one for each call of the processor. They exist only
//! if a subscriber wants them.

use std::fmt;
use std::future::Future;

use tracing::field::Empty;
use tracing::{Instrument as _, Span, debug_span};

use super::{Group, MemberStep};
use crate::observer::TraceContext;
use crate::observer::{Observers, UserCode};
use crate::record::Record;
use crate::settlement::{Settled, Unsettled};

/// The trace contexts of records, if the user has set a source for them.
pub(super) struct Traces {
    context: Option<Box<dyn TraceContext>>,
    code: UserCode,
    observers: Observers,
}

impl Traces {
    pub(super) fn new(context: Option<Box<dyn TraceContext>>, observers: Observers) -> Self {
        Traces {
            context,
            code: UserCode::new("trace context"),
            observers,
        }
    }

    /// Returns the trace context as the record's producer wrote it.
    pub(super) fn context(&self, record: &Record) -> Option<String> {
        self.ask(|context| context.extract(record)).flatten()
    }

    fn ask<T>(&self, question: impl FnOnce(&dyn TraceContext) -> T) -> Option<T> {
        let context = self.context.as_deref()?;
        self.observers.caught(&self.code, || question(context))
    }

    /// Creates the span for the life of a record, if a subscriber wants it.
    pub(super) fn of_record(&self, record: &Record) -> Option<Span> {
        let span = debug_span!(
            "record",
            stream = record.stream(),
            shard = record.shard().as_str(),
            sequence_number = record.sequence_number().as_str(),
            sub_sequence_number = record.sub_sequence_number(),
            trace_id = Empty,
            settled = Empty,
            otel.kind = "consumer",
            otel.status_code = Empty,
        );
        if span.is_disabled() {
            return None;
        }
        if let Some(context) = self.context(record) {
            span.record("trace_id", trace_id(&context));
            self.ask(|trace| trace.set_parent(&span, &context));
        }
        Some(span)
    }

    /// Returns the span for a step of a record: the span that the record has, or its first. Returns `None`
    /// for a group of several records.
    pub(super) fn of_step(&self, group: &mut Group) -> Option<Span> {
        if group.has_several() {
            return None;
        }
        match group.state.as_mut().and_then(|state| state.span.take()) {
            Some(span) => Some(*span),
            None => self.of_record(&group.first()?.record),
        }
    }

    /// Creates the span for a call of the processor with several records.
    pub(super) fn of_attempt_with(&self, records: &[Record], number: u32) -> Span {
        let first = records.first();
        let span = debug_span!(
            "attempt",
            stream = first.map(Record::stream),
            shard = first.map(|first| first.shard().as_str()),
            sequence_number = first.map(|first| first.sequence_number().as_str()),
            sub_sequence_number = first.map(Record::sub_sequence_number),
            records = records.len(),
            attempt = number,
            otel.kind = "consumer",
            otel.status_code = Empty,
        );
        if !span.is_disabled() && self.context.is_some() {
            for context in records.iter().filter_map(|record| self.context(record)) {
                self.ask(|trace| trace.add_link(&span, &context));
            }
        }
        span
    }
}

impl fmt::Debug for Traces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Traces").field(&self.context.is_some()).finish()
    }
}

/// Returns whether a subscriber may want spans. Without a subscriber this check is all that spans cost.
#[inline]
pub(super) fn is_wanted() -> bool {
    tracing::enabled!(tracing::Level::DEBUG)
}

/// Creates the span for one call of the processor, inside the record's span.
pub(super) fn of_attempt(number: u32) -> Span {
    debug_span!("attempt", attempt = number, otel.status_code = Empty)
}

/// Calls the processor in its span.
pub(super) async fn attempted<T, E>(call: impl Future<Output = Result<T, E>>, span: Span) -> Result<T, E> {
    let result = call.instrument(span.clone()).await;
    if result.is_err() {
        span.record("otel.status_code", "ERROR");
    }
    result
}

/// Settles a record in its span.
pub(super) async fn settled(
    settling: impl Future<Output = Result<Settled, Unsettled>>,
    span: Span,
) -> Result<Settled, Unsettled> {
    let result = settling.instrument(span.clone()).await;
    note(&span, &result);
    result
}

/// Takes a step in the record's span. A record that is not settled keeps the span for its next step.
pub(super) async fn stepped(step: impl Future<Output = Vec<MemberStep>>, span: Span) -> Vec<MemberStep> {
    let mut steps = step.instrument(span.clone()).await;
    match &mut steps[..] {
        [MemberStep::Done(_, result)] => note(&span, result),
        [MemberStep::Later(group)] => {
            if let Some(state) = &mut group.state {
                state.span = Some(Box::new(span));
            }
        }
        _ => {}
    }
    steps
}

fn note(span: &Span, result: &Result<Settled, Unsettled>) {
    let settled = match result {
        Ok(Settled::Processed) => "processed",
        Ok(Settled::Duplicate) => "duplicate",
        Ok(Settled::DeadLettered(_)) => {
            span.record("otel.status_code", "ERROR");
            "dead_lettered"
        }
        Err(_) => "unsettled",
    };
    span.record("settled", settled);
}

/// Returns the trace id of a `traceparent` (W3C Trace Context, 3.2). Any other text is withheld, because it
/// may come from the payload.
pub(super) fn trace_id(context: &str) -> Option<&str> {
    let mut parts = context.split('-');
    let (version, id) = (parts.next()?, parts.next()?);
    let is_hex = |text: &str| text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let is_one = version.len() == 2 && id.len() == 32 && is_hex(version) && is_hex(id);
    is_one.then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_id_of_a_trace_is_told() {
        let id = "0af7651916cd43dd8448eb211c80319c";
        let context = format!("00-{id}-b7ad6b7169203331-01");
        assert_eq!(trace_id(&context), Some(id));
        for other in [
            "",
            "00",
            "00-",
            "anything",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
        ] {
            assert_eq!(trace_id(other), None, "{other}");
        }
        assert_eq!(trace_id(&context.replace('7', "x")), None);
    }
}
