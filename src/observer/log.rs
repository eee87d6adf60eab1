//! The observer that every processor has: it writes `tracing` events.

use std::sync::atomic::{AtomicBool, Ordering};

use tracing::{debug, error, info, trace, warn};

use super::{Event, Interest, Observer};
use crate::failure::{Failure, texts as full};
use crate::record::Record;
use crate::rfc3339;

/// Writes events as `tracing` events: events that an operator must see at WARN and ERROR, failed attempts and
/// the life of shards at INFO, the rest at DEBUG and TRACE.
///
/// Payloads never appear, and partition keys appear as a hash. For a processor's error, only the type, class,
/// scope and code appear by default, because the text may quote the payload.
#[derive(Debug, Clone, Copy, Default)]
pub struct Log {
    error_text: bool,
}

impl Log {
    /// Creates the log, with or without the text of the processor's errors. Default: without.
    pub const fn new(error_text: bool) -> Self {
        Log { error_text }
    }

    fn text(self, failure: &Failure) -> Option<String> {
        self.error_text
            .then(|| failure.chain().collect::<Vec<_>>().join(": "))
    }
}

/// Set once this process has logged how to see the texts of errors.
static HINTED: AtomicBool = AtomicBool::new(false);

macro_rules! of_record {
    ($level:ident, $record:expr, $($rest:tt)*) => {{
        let record: &Record = $record;
        $level!(
            stream = record.stream(),
            shard = %record.shard(),
            sequence_number = %record.sequence_number(),
            sub_sequence_number = record.sub_sequence_number(),
            key_hash = record.key_hash().map(tracing::field::display),
            $($rest)*
        )
    }};
}

impl Observer for Log {
    fn interest(&self) -> Interest {
        Interest::FAILURES | Interest::SHARDS
    }

    fn on(&self, event: &Event<'_>) {
        match event {
            Event::UserCodePanicked { code, count: 1 } => error!(
                code,
                "user code panicked and was skipped; logged once, counted by the metric UserCodePanics"
            ),
            Event::UserCodePanicked { .. } => {}
            Event::AttemptFailed {
                record,
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
                    error = self.text(failure.reveal()),
                    "attempt failed"
                );
                if !self.error_text && !HINTED.swap(true, Ordering::Relaxed) {
                    info!(
                        "error texts are not logged, as they may quote payloads; to see why attempts fail, give the errors codes in a classifier, or call .log_error_text(true) on the builder of Resilient"
                    );
                }
            }
            Event::RetryScheduled {
                record,
                attempt,
                delay,
            } => {
                of_record!(debug, record, attempt, ?delay, "retry scheduled");
            }
            Event::HandlerStuck { record, attempt } => {
                of_record!(
                    warn,
                    record,
                    attempt,
                    "handler stuck: an earlier attempt still blocks its thread, and the record waits for it"
                );
            }
            Event::RetryDelayed { record, delay } => {
                of_record!(
                    debug,
                    record,
                    ?delay,
                    "retry delayed: the retry budget is exhausted"
                );
            }
            Event::RecordHeld {
                record,
                failure,
                at_most,
            } => {
                let verdict = failure.reveal().verdict();
                of_record!(
                    warn,
                    record,
                    class = %verdict.class(),
                    scope = %verdict.scope(),
                    code = verdict.code(),
                    error = self.text(failure.reveal()),
                    ?at_most,
                    "record held: its attempts are exhausted and an outage is suspected, so it is retried and not dead-lettered; if the record itself is at fault, classify its error with Scope::Record"
                );
            }
            Event::BreakerOpened {
                dependency,
                failures,
                attempts,
                pause,
            } => warn!(
                dependency,
                failures,
                attempts,
                ?pause,
                "circuit breaker opened: no attempts and no dead letters until a few probes succeed"
            ),
            Event::BreakerHalfOpened { dependency } => {
                info!(
                    dependency,
                    "circuit breaker half-open: probing with a few records"
                )
            }
            Event::BreakerClosed { dependency, after } => {
                info!(dependency, ?after, "circuit breaker closed: processing resumed");
            }
            Event::DeadLetterGuardStopped {
                record,
                letters,
                settled,
            } => {
                of_record!(
                    error,
                    record,
                    letters,
                    settled,
                    "shard stopped by the dead-letter guard: too many dead letters; call DeadLetterGuard::resume to continue"
                );
            }
            Event::DeadLetterGuardResumed { record } => {
                of_record!(
                    info,
                    record,
                    "shard resumed: the dead-letter guard had stopped it"
                );
            }
            Event::ClaimedElsewhere { record, delay } => {
                of_record!(
                    debug,
                    record,
                    ?delay,
                    "record waits: another delivery of it is in progress"
                );
            }
            Event::IdempotencyDelayed {
                store,
                failures,
                error,
                delay,
            } => {
                warn!(
                    store,
                    failures,
                    error = full(*error),
                    ?delay,
                    "idempotency store unavailable; records wait, and none is processed without it"
                );
            }
            Event::CompletionLost { record, error } => {
                of_record!(
                    warn,
                    record,
                    error = error.map(|error| full(error)),
                    "completion not stored: the record was processed, and will be processed again if it is redelivered"
                );
            }
            Event::DeadLetterDelayed {
                sink,
                letters,
                failures,
                error,
                delay,
            } => {
                warn!(
                    sink,
                    letters,
                    failures,
                    error = full(*error),
                    ?delay,
                    "dead-letter sink unavailable; the shards wait, and nothing is lost"
                );
            }
            Event::DeadLettered {
                record,
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
                    error = self.text(failure.reveal()),
                    location,
                    trace_id,
                    "record dead-lettered"
                );
            }
            Event::DeadLetterTargetWarning {
                sink,
                message,
                remedy,
            } => {
                warn!(sink, remedy, "{message}");
            }
            Event::Settled {
                record,
                settled,
                attempts,
            } => {
                of_record!(trace, record, ?settled, attempts, "record settled");
            }
            Event::Unsettled { record, reason } => {
                of_record!(info, record, %reason, "record released; it will be redelivered");
            }
            Event::ConsumerStarted {
                stream,
                application,
                place,
                shards,
                checkpoints,
                dead_letters,
                starting_position,
            } => info!(
                version = env!("CARGO_PKG_VERSION"),
                application,
                stream,
                place,
                shards,
                checkpoints,
                dead_letters = dead_letters.unwrap_or("none"),
                starting_position,
                "consumer started"
            ),
            Event::ConsumerStopped {
                stream,
                processed,
                duplicates,
                dead_lettered,
                duration,
            } => info!(
                stream,
                processed,
                duplicates,
                dead_lettered,
                ?duration,
                "consumer stopped"
            ),
            Event::DiscoveryFailed {
                stream,
                failures,
                error,
                delay,
            } => warn!(
                stream,
                failures,
                error = full(*error),
                ?delay,
                "stream discovery failed; retrying"
            ),
            Event::HashKeysUncovered { stream, first, last } => error!(
                stream,
                first = %first,
                last = %last,
                "hash keys not covered by any shard; records written to them are not read"
            ),
            Event::ShardStarted {
                stream,
                shard,
                position,
            } => info!(stream, %shard, %position, "shard started"),
            Event::ShardEnded { stream, shard } => info!(stream, %shard, "shard ended"),
            Event::ShardFailed {
                stream,
                shard,
                failures,
                error,
                delay,
            } => error!(
                stream,
                %shard,
                failures,
                error = full(*error),
                ?delay,
                "shard task failed; restarting from its checkpoint"
            ),
            Event::CheckpointUnreadable { stream, shard, error } => error!(
                stream, %shard, error = full(*error),
                "checkpoint unreadable; the shard waits until it is fixed or deleted"
            ),
            Event::ShardLeasedElsewhere { stream, shard, owner } => {
                info!(stream, %shard, owner, "shard leased by another worker; standing by");
            }
            Event::LeaseNotRenewed {
                stream,
                shard,
                failures,
                error,
                delay,
            } => warn!(
                stream,
                %shard,
                failures,
                error = full(*error),
                ?delay,
                "lease renewal failed; retrying until the lease is lost"
            ),
            Event::DataLoss {
                stream,
                shard,
                from,
                to,
                certain,
            } => {
                let from = from.map(rfc3339::format_seconds);
                let from = from.as_ref().map(tracing::field::display);
                let to = rfc3339::format_seconds(*to);
                error!(
                    stream, %shard, from, %to, certain,
                    "records lost: the stream dropped them before they were settled"
                );
            }
            Event::LeaseLost { stream, shard } => warn!(
                stream,
                %shard,
                "lease lost; unsettled records are left to the next owner"
            ),
            Event::ShardHandedOver { stream, shard } => {
                info!(stream, %shard, "shard handed over to the worker that requested it");
            }
            Event::ShardHalted { stream, shard, error } => error!(
                stream, %shard, error = full(*error),
                "shard halted: it cannot continue without losing a record"
            ),
            Event::Fetched {
                stream,
                shard,
                records,
                bytes,
                behind,
            } => trace!(stream, %shard, records, bytes, ?behind, "fetched"),
            Event::FetchFailed {
                stream,
                shard,
                failures,
                error,
                delay,
            } => warn!(
                stream, %shard, failures, error = full(*error), ?delay,
                "fetch failed; retrying"
            ),
            Event::FetchThrottled { stream, shard, delay } => {
                debug!(stream, %shard, ?delay, "fetch throttled")
            }
            Event::IteratorExpired { stream, shard } => {
                debug!(stream, %shard, "iterator expired; requesting a new one")
            }
            Event::PositionRefused {
                stream,
                shard,
                sequence_number,
            } => error!(
                stream, %shard, %sequence_number,
                "checkpoint rejected by Kinesis: it belongs to another shard, or to a deleted stream of this name"
            ),
            Event::StreamRecreated {
                stream,
                shard,
                created,
            } => error!(
                stream, %shard, created = created.map(rfc3339::format_seconds).map(tracing::field::display),
                "checkpoint belongs to a deleted stream of this name; reading from the oldest record"
            ),
            Event::StreamNotDescribed { stream, error } => warn!(
                stream,
                error = full(*error),
                "stream not described; its retention is unknown or outdated; grant kinesis:DescribeStreamSummary"
            ),
            Event::FanOutUnavailable {
                stream,
                shard,
                error,
                delay,
            } => warn!(
                stream,
                %shard,
                error = full(*error),
                ?delay,
                "subscription failed; polling the shard meanwhile"
            ),
            Event::AggregateDamaged { record, error } => {
                of_record!(
                    warn,
                    record,
                    error = full(*error),
                    "KPL aggregate damaged; delivered as a plain record"
                );
            }
            Event::AggregateOutOfRange {
                record,
                records,
                dropped,
            } => {
                of_record!(
                    warn,
                    record,
                    records,
                    dropped,
                    "KPL aggregate holds records of another shard"
                );
            }
            // The log does not ask for these kinds: they are measurements.
            Event::AttemptEnded { .. } | Event::ShardStatus { .. } => {}
            Event::RecordExpiring { record, age, left } => of_record!(
                error,
                record,
                ?age,
                ?left,
                "record expires soon: the shard waits for a record that the stream is about to drop"
            ),
            Event::CrashLoopSuspected {
                stream,
                shard,
                starts,
            } => error!(
                stream,
                %shard,
                starts,
                "crash loop suspected: processing one record at a time"
            ),
            Event::CrashLoopOver { stream, shard } => {
                info!(stream, %shard, "crash loop over: processing records concurrently again");
            }
            Event::WindowFull {
                bound,
                oldest,
                in_flight,
            } => {
                of_record!(
                    warn,
                    oldest,
                    bound = bound.as_str(),
                    in_flight,
                    "window full: the shard waits for its oldest unsettled record"
                );
            }
            Event::Checkpointed {
                stream,
                shard,
                position,
            } => trace!(stream, %shard, %position, "checkpoint stored"),
            Event::CheckpointFailed {
                stream,
                shard,
                failures,
                error,
                delay,
            } => warn!(
                stream, %shard, failures, error = full(*error), ?delay,
                "checkpoint not stored; retrying; a crash now would repeat more records"
            ),
        }
    }
}
