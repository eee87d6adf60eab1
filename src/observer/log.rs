//! The observer that every processor has: `tracing` events.

use std::sync::atomic::{AtomicBool, Ordering};

use tracing::{debug, error, info, trace, warn};

use super::{Event, Interest, Observer};
use crate::failure::{Failure, texts as full};
use crate::record::Record;
use crate::rfc3339;

/// Writes what happens as `tracing` events: what an operator must see at WARN and ERROR, failures of
/// records at INFO, the rest at DEBUG and TRACE.
///
/// Payloads never appear, partition keys appear as a hash, and of a handler's error only type, class,
/// scope and code do: its text may quote the payload.
#[derive(Debug, Clone, Copy, Default)]
pub struct Log {
    error_text: bool,
}

impl Log {
    /// With or without the text of the handler's errors. Default: without.
    pub const fn new(error_text: bool) -> Self {
        Log { error_text }
    }

    fn text(self, failure: &Failure) -> Option<String> {
        self.error_text
            .then(|| failure.chain().collect::<Vec<_>>().join(": "))
    }
}

/// Whether this process has logged where the texts of errors are.
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
                "user code panicked and was left out; this is logged once, the metric UserCodePanics counts it"
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
                        "error texts are not logged, as they may quote payloads; to see why attempts fail, give the                          errors codes in a classifier, or call .log_error_text(true) on the builder of Resilient"
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
                    "the handler still blocks its thread, since an earlier attempt; the record waits for it"
                );
            }
            Event::RetryDelayed { record, delay } => {
                of_record!(
                    debug,
                    record,
                    ?delay,
                    "the retry budget is empty, the record waits longer"
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
                    "attempts exhausted; the record is held and tried again, as an outage is suspected: other records fail as well, or its error is a dependency's. If the record itself is at fault, classify its error with scope Record"
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
                "breaker opened: nothing is attempted and nothing dead-lettered until a few records succeed"
            ),
            Event::BreakerHalfOpened { dependency } => {
                info!(dependency, "breaker half-open: a few records are tried")
            }
            Event::BreakerClosed { dependency, after } => {
                info!(dependency, ?after, "breaker closed: all goes on");
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
                    "too many dead letters: the shard has stopped before the next one and waits for Guard::resume"
                );
            }
            Event::DeadLetterGuardResumed { record } => {
                of_record!(info, record, "the shard goes on after too many dead letters");
            }
            Event::ClaimedElsewhere { record, delay } => {
                of_record!(
                    debug,
                    record,
                    ?delay,
                    "another delivery of the record is in progress, it waits"
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
                    "the idempotency store does not answer; records wait and nothing is processed unguarded"
                );
            }
            Event::CompletionLost { record, error } => {
                of_record!(
                    warn,
                    record,
                    error = error.map(|error| full(error)),
                    "the record was processed and that is not remembered: delivered again, it is processed again"
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
                    "the dead-letter sink does not take letters; their shards wait and nothing is lost"
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
                of_record!(info, record, %reason, "record given back, it will be delivered again");
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
                "no shard of the stream holds these hash keys: what is written to them is read by nobody"
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
                "the shard's task has broken down; it begins again at its checkpoint"
            ),
            Event::CheckpointUnreadable { stream, shard, error } => error!(
                stream, %shard, error = full(*error),
                "the checkpoint is not understood: the shard waits until it is mended"
            ),
            Event::ShardHeldElsewhere { stream, shard, owner } => {
                info!(stream, %shard, owner, "another process holds the shard: standing by");
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
                "the lease was not renewed; tried again until it counts as lost"
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
                    "the stream has dropped records that were not settled"
                );
            }
            Event::LeaseLost { stream, shard } => warn!(
                stream,
                %shard,
                "the lease is lost: what is not settled is left to another process"
            ),
            Event::ShardHandedOver { stream, shard } => {
                info!(stream, %shard, "shard handed over to the process that asked for it");
            }
            Event::ShardHalted { stream, shard, error } => error!(
                stream, %shard, error = full(*error),
                "shard halted: it cannot go on without losing a record"
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
                "reading failed and is tried again"
            ),
            Event::FetchThrottled { stream, shard, delay } => {
                debug!(stream, %shard, ?delay, "reading throttled")
            }
            Event::IteratorExpired { stream, shard } => {
                debug!(stream, %shard, "iterator expired, another is made")
            }
            Event::PositionRefused {
                stream,
                shard,
                sequence_number,
            } => error!(
                stream, %shard, %sequence_number,
                "checkpoint refused by Kinesis: it belongs to another shard, or to a deleted stream of this name"
            ),
            Event::StreamRecreated {
                stream,
                shard,
                created,
            } => error!(
                stream, %shard, created = created.map(rfc3339::format_seconds).map(tracing::field::display),
                "checkpoint belongs to a deleted stream of this name; the shard is read from its oldest record"
            ),
            Event::StreamNotDescribed { stream, error } => warn!(
                stream,
                error = full(*error),
                "stream not described: its retention is unknown or out of date; grant kinesis:DescribeStreamSummary"
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
                "the shard cannot be subscribed to; it is polled meanwhile"
            ),
            Event::AggregateDamaged { record, error } => {
                of_record!(
                    warn,
                    record,
                    error = full(*error),
                    "a record that begins as an aggregated one cannot be opened: it is delivered as it is"
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
                    "records inside an aggregated one belong to another shard"
                );
            }
            // Not asked for: they are numbers.
            Event::AttemptEnded { .. } | Event::ShardStands { .. } => {}
            Event::RecordExpiring { record, age, left } => of_record!(
                error,
                record,
                ?age,
                ?left,
                "the shard waits for a record that Kinesis drops soon"
            ),
            Event::CrashLoopSuspected {
                stream,
                shard,
                starts,
            } => error!(
                stream,
                %shard,
                starts,
                "the process has died here again and again: records run one at a time"
            ),
            Event::CrashLoopOver { stream, shard } => {
                info!(stream, %shard, "the shard begins anew, many records at a time");
            }
            Event::WindowFull { bound, oldest, held } => {
                of_record!(
                    warn,
                    oldest,
                    bound = bound.as_str(),
                    held,
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
                "the checkpoint could not be stored and is tried again; after a crash more would be repeated"
            ),
        }
    }
}
