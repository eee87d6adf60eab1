//! The metrics: their names, their units, and the events that they come of.

use crate::observer::Event;
use crate::settled::Settled;

/// Something that is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Metric {
    /// Records that the handler succeeded with.
    RecordsProcessed,
    /// Records that the idempotency store knew as processed.
    RecordsDuplicate,
    /// Records that became dead letters.
    RecordsDeadLettered,
    /// Records that were given back, and will be delivered again.
    RecordsUnsettled,
    /// Calls of the handler that failed, timed out or panicked.
    AttemptsFailed,
    /// Those of them that another try would not help.
    AttemptsFailedForGood,
    /// Retries that a backoff was drawn for.
    Retries,
    /// Retries that the budget did not pay for.
    RetriesDelayed,
    /// Records that are held, as they may not be to blame.
    RecordsHeld,
    /// Breakers that have opened.
    BreakersOpened,
    /// Shards that the dead-letter guard has stopped.
    GuardStops,
    /// Writes of letters that the sink did not take.
    LetterFailures,
    /// Calls that the idempotency store did not answer.
    StoreFailures,
    /// Processed records that could not be remembered.
    CompletionsLost,
    /// Records read.
    RecordsFetched,
    /// Bytes of payload read.
    BytesFetched,
    /// Reads that failed.
    FetchFailures,
    /// Reads that Kinesis throttled.
    Throttles,
    /// Checkpoints that could not be stored.
    CheckpointFailures,
    /// Times that a shard's window was full, and nothing more was read.
    WindowsFull,
    /// Times that the stream has dropped records before they were settled, or may have.
    DataLosses,
    /// How far the reading is behind the stream's tip.
    BehindLatest,
    /// From a record's arrival in the stream until it was settled.
    EndToEndLatency,
}

/// What a metric counts in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Unit {
    /// Things: added up.
    Count,
    /// Bytes: added up.
    Bytes,
    /// Milliseconds: each by itself.
    Milliseconds,
}

impl Unit {
    /// As CloudWatch has it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Unit::Count => "Count",
            Unit::Bytes => "Bytes",
            Unit::Milliseconds => "Milliseconds",
        }
    }
}

impl Metric {
    /// All of them.
    pub const ALL: [Metric; 23] = [
        Metric::RecordsProcessed,
        Metric::RecordsDuplicate,
        Metric::RecordsDeadLettered,
        Metric::RecordsUnsettled,
        Metric::AttemptsFailed,
        Metric::AttemptsFailedForGood,
        Metric::Retries,
        Metric::RetriesDelayed,
        Metric::RecordsHeld,
        Metric::BreakersOpened,
        Metric::GuardStops,
        Metric::LetterFailures,
        Metric::StoreFailures,
        Metric::CompletionsLost,
        Metric::RecordsFetched,
        Metric::BytesFetched,
        Metric::FetchFailures,
        Metric::Throttles,
        Metric::CheckpointFailures,
        Metric::WindowsFull,
        Metric::DataLosses,
        Metric::BehindLatest,
        Metric::EndToEndLatency,
    ];

    /// As CloudWatch has it: `RecordsProcessed`.
    pub const fn name(self) -> &'static str {
        match self {
            Metric::RecordsProcessed => "RecordsProcessed",
            Metric::RecordsDuplicate => "RecordsDuplicate",
            Metric::RecordsDeadLettered => "RecordsDeadLettered",
            Metric::RecordsUnsettled => "RecordsUnsettled",
            Metric::AttemptsFailed => "AttemptsFailed",
            Metric::AttemptsFailedForGood => "AttemptsFailedForGood",
            Metric::Retries => "Retries",
            Metric::RetriesDelayed => "RetriesDelayed",
            Metric::RecordsHeld => "RecordsHeld",
            Metric::BreakersOpened => "BreakersOpened",
            Metric::GuardStops => "GuardStops",
            Metric::LetterFailures => "LetterFailures",
            Metric::StoreFailures => "StoreFailures",
            Metric::CompletionsLost => "CompletionsLost",
            Metric::RecordsFetched => "RecordsFetched",
            Metric::BytesFetched => "BytesFetched",
            Metric::FetchFailures => "FetchFailures",
            Metric::Throttles => "Throttles",
            Metric::CheckpointFailures => "CheckpointFailures",
            Metric::WindowsFull => "WindowsFull",
            Metric::DataLosses => "DataLosses",
            Metric::BehindLatest => "BehindLatest",
            Metric::EndToEndLatency => "EndToEndLatency",
        }
    }

    /// What it counts in.
    pub const fn unit(self) -> Unit {
        match self {
            Metric::BytesFetched => Unit::Bytes,
            Metric::BehindLatest | Metric::EndToEndLatency => Unit::Milliseconds,
            _ => Unit::Count,
        }
    }
}

/// What an event says, and of which stream, if of one.
pub(super) fn measure<'a>(event: &Event<'a>, mut each: impl FnMut(Option<&'a str>, Metric, f64)) {
    let mut once = |stream: Option<&'a str>, metric| each(stream, metric, 1.0);
    match event {
        Event::Settled { record, settled, .. } => {
            let stream = Some(record.stream());
            let metric = match settled {
                Settled::Processed => Metric::RecordsProcessed,
                Settled::Duplicate => Metric::RecordsDuplicate,
                Settled::DeadLettered(_) => Metric::RecordsDeadLettered,
            };
            once(stream, metric);
            if let Some(age) = record.age() {
                each(stream, Metric::EndToEndLatency, age.as_secs_f64() * 1_000.0);
            }
        }
        Event::Unsettled { record, .. } => once(Some(record.stream()), Metric::RecordsUnsettled),
        Event::AttemptFailed { record, failure, .. } => {
            let stream = Some(record.stream());
            once(stream, Metric::AttemptsFailed);
            if failure.reveal().verdict().class() == crate::failure::Class::Permanent {
                once(stream, Metric::AttemptsFailedForGood);
            }
        }
        Event::RetryScheduled { record, .. } => once(Some(record.stream()), Metric::Retries),
        Event::RetryDelayed { record, .. } => once(Some(record.stream()), Metric::RetriesDelayed),
        Event::RecordHeld { record, .. } => once(Some(record.stream()), Metric::RecordsHeld),
        Event::BreakerOpened { .. } => once(None, Metric::BreakersOpened),
        Event::DeadLetterGuardStopped { record, .. } => once(Some(record.stream()), Metric::GuardStops),
        Event::DeadLetterDelayed { .. } => once(None, Metric::LetterFailures),
        Event::IdempotencyDelayed { .. } => once(None, Metric::StoreFailures),
        Event::CompletionLost { record, .. } => once(Some(record.stream()), Metric::CompletionsLost),
        Event::Fetched {
            stream,
            records,
            bytes,
            behind,
            ..
        } => {
            each(Some(stream), Metric::RecordsFetched, *records as f64);
            each(Some(stream), Metric::BytesFetched, *bytes as f64);
            if let Some(behind) = behind {
                each(Some(stream), Metric::BehindLatest, behind.as_secs_f64() * 1_000.0);
            }
        }
        Event::FetchFailed { stream, .. } => once(Some(stream), Metric::FetchFailures),
        Event::FetchThrottled { stream, .. } => once(Some(stream), Metric::Throttles),
        Event::CheckpointFailed { stream, .. } => once(Some(stream), Metric::CheckpointFailures),
        Event::WindowFull { oldest, .. } => once(Some(oldest.stream()), Metric::WindowsFull),
        Event::DataLoss { stream, .. } => once(Some(stream), Metric::DataLosses),
        _ => {}
    }
}
