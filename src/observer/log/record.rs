//! The log of the events of a record.

use std::sync::atomic::{AtomicBool, Ordering};

use tracing::{debug, error, info, trace, warn};

use super::{Log, TARGET};
use crate::failure::texts as full;
use crate::observer::RecordEvent;
use crate::record::Record;

/// Set once this process has logged how to see the texts of errors.
static HINTED: AtomicBool = AtomicBool::new(false);

pub(super) fn write(log: Log, record: &Record, event: &RecordEvent<'_>) {
    match event {
        RecordEvent::AttemptFailed {
            records,
            attempt,
            counts,
            failure,
            error_type,
        } => {
            let verdict = failure.reveal().verdict();
            of_record!(
                info,
                record,
                records,
                attempt,
                probe = !counts,
                error_type,
                class = %verdict.class(),
                scope = %verdict.scope(),
                code = verdict.code(),
                error = log.text(failure.reveal()),
                "attempt failed"
            );
            if !log.error_text && !HINTED.swap(true, Ordering::Relaxed) {
                info!(
                    target: TARGET,
                    "error texts are not logged, as they may quote payloads; to see why attempts fail, give the errors codes in a classifier, or call .log_error_text(true) on the builder of Resilient"
                );
            }
        }
        RecordEvent::RetryScheduled { attempt, delay } => {
            of_record!(debug, record, attempt, ?delay, "retry scheduled");
        }
        RecordEvent::HandlerStuck { attempt } => {
            of_record!(
                warn,
                record,
                attempt,
                "handler stuck: an earlier attempt still blocks its thread, and the record waits for it"
            );
        }
        RecordEvent::RetryDelayed { delay } => {
            of_record!(
                debug,
                record,
                ?delay,
                "retry delayed: the retry budget is exhausted"
            );
        }
        RecordEvent::Held { failure, at_most } => {
            let verdict = failure.reveal().verdict();
            of_record!(
                warn,
                record,
                class = %verdict.class(),
                scope = %verdict.scope(),
                code = verdict.code(),
                error = log.text(failure.reveal()),
                ?at_most,
                "record held: its attempts are exhausted and an outage is suspected, so it is retried and not dead-lettered; if the record itself is at fault, classify its error with Scope::Record"
            );
        }
        RecordEvent::DeadLetterGuardStopped { letters, settled } => {
            of_record!(
                error,
                record,
                letters,
                settled,
                "shard stopped by the dead-letter guard: too many dead letters; call DeadLetterGuard::resume to continue"
            );
        }
        RecordEvent::DeadLetterGuardResumed => {
            of_record!(
                info,
                record,
                "shard resumed: the dead-letter guard had stopped it"
            );
        }
        RecordEvent::ClaimedElsewhere { delay } => {
            of_record!(
                debug,
                record,
                ?delay,
                "record waits: another delivery of it is in progress"
            );
        }
        RecordEvent::CompletionLost { error } => {
            of_record!(
                warn,
                record,
                error = error.map(|error| full(error)),
                "completion not stored: the record was processed, and will be processed again if it is redelivered"
            );
        }
        RecordEvent::DeadLettered {
            id,
            reason,
            failure,
            location,
            trace_id,
        } => {
            let verdict = failure.reveal().verdict();
            of_record!(
                warn,
                record,
                %id,
                reason,
                class = %verdict.class(),
                scope = %verdict.scope(),
                code = verdict.code(),
                error = log.text(failure.reveal()),
                location,
                trace_id,
                "record dead-lettered"
            );
        }
        RecordEvent::Settled { settled, attempts } => {
            of_record!(trace, record, ?settled, attempts, "record settled");
        }
        RecordEvent::Unsettled { reason } => {
            of_record!(info, record, %reason, "record released; it will be redelivered");
        }
        RecordEvent::AggregateDamaged { error } => {
            of_record!(
                warn,
                record,
                error = full(*error),
                "KPL aggregate damaged; delivered as a plain record"
            );
        }
        RecordEvent::AggregateOutOfRange { records, dropped } => {
            of_record!(
                warn,
                record,
                records,
                dropped,
                "KPL aggregate holds records of another shard"
            );
        }
        RecordEvent::Expiring { age, left } => of_record!(
            error,
            record,
            ?age,
            ?left,
            "record expires soon: the shard waits for a record that the stream is about to drop"
        ),
        // The log does not ask for this kind: it is a measurement.
        RecordEvent::AttemptEnded { .. } => {}
    }
}
