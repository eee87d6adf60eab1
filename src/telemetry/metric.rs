//! The metrics: their names, their units, and the events that they come of.

use std::time::Duration;

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
    /// Records inside an aggregated one that were dropped, as they belong to another shard.
    RecordsDropped,
    /// Shards that cannot go on without losing a record.
    ShardsHalted,
    /// How far the reading is behind the stream's tip.
    BehindLatest,
    /// From a record's arrival in the stream until it was settled.
    EndToEndLatency,
    /// How long a call of the handler took.
    AttemptLatency,
    /// How long a record waited before a retry.
    BackoffTime,
    /// How long ago the oldest record arrived that a shard has read and not settled. It grows by the clock, also while
    /// nothing is read.
    OldestUnsettledAge,
    /// How many records a shard has read and not settled.
    RecordsInFlight,
    /// How many records a read brought.
    RecordsPerRead,
}

/// How the values of a metric are put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// They are added up.
    Sum,
    /// Each says something by itself: of many their distribution counts.
    Distribution,
}

/// What a metric counts in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Unit {
    /// Things.
    Count,
    /// Bytes.
    Bytes,
    /// Milliseconds.
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
    pub const ALL: [Metric; 30] = [
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
        Metric::RecordsDropped,
        Metric::ShardsHalted,
        Metric::BehindLatest,
        Metric::EndToEndLatency,
        Metric::AttemptLatency,
        Metric::BackoffTime,
        Metric::OldestUnsettledAge,
        Metric::RecordsInFlight,
        Metric::RecordsPerRead,
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
            Metric::RecordsDropped => "RecordsDropped",
            Metric::ShardsHalted => "ShardsHalted",
            Metric::BehindLatest => "BehindLatest",
            Metric::EndToEndLatency => "EndToEndLatency",
            Metric::AttemptLatency => "AttemptLatency",
            Metric::BackoffTime => "BackoffTime",
            Metric::OldestUnsettledAge => "OldestUnsettledAge",
            Metric::RecordsInFlight => "RecordsInFlight",
            Metric::RecordsPerRead => "RecordsPerRead",
        }
    }

    /// What it counts in.
    pub const fn unit(self) -> Unit {
        match self {
            Metric::BytesFetched => Unit::Bytes,
            Metric::BehindLatest
            | Metric::EndToEndLatency
            | Metric::AttemptLatency
            | Metric::BackoffTime
            | Metric::OldestUnsettledAge => Unit::Milliseconds,
            _ => Unit::Count,
        }
    }

    /// How its values are put together.
    pub const fn kind(self) -> Kind {
        match self {
            Metric::RecordsInFlight | Metric::RecordsPerRead => Kind::Distribution,
            _ => match self.unit() {
                Unit::Milliseconds => Kind::Distribution,
                Unit::Count | Unit::Bytes => Kind::Sum,
            },
        }
    }

    /// What it says, in a sentence.
    pub const fn description(self) -> &'static str {
        match self {
            Metric::RecordsProcessed => "Records that the handler succeeded with.",
            Metric::RecordsDuplicate => "Records that the idempotency store knew as processed.",
            Metric::RecordsDeadLettered => "Records that became dead letters.",
            Metric::RecordsUnsettled => "Records that were given back, and will be delivered again.",
            Metric::AttemptsFailed => "Calls of the handler that failed, timed out or panicked.",
            Metric::AttemptsFailedForGood => "Failed calls that another try would not help.",
            Metric::Retries => "Retries that a backoff was drawn for.",
            Metric::RetriesDelayed => "Retries that the budget did not pay for.",
            Metric::RecordsHeld => "Records that are held, as they may not be to blame.",
            Metric::BreakersOpened => "Breakers that have opened.",
            Metric::GuardStops => "Shards that the dead-letter guard has stopped.",
            Metric::LetterFailures => "Writes of dead letters that the sink did not take.",
            Metric::StoreFailures => "Calls that the idempotency store did not answer.",
            Metric::CompletionsLost => "Processed records that could not be remembered.",
            Metric::RecordsFetched => "Records read.",
            Metric::BytesFetched => "Bytes of payload read.",
            Metric::FetchFailures => "Reads that failed.",
            Metric::Throttles => "Reads that Kinesis throttled.",
            Metric::CheckpointFailures => "Checkpoints that could not be stored.",
            Metric::WindowsFull => "Times that a shard's window was full, and nothing more was read.",
            Metric::DataLosses => {
                "Times that the stream has dropped records before they were settled, or may have."
            }
            Metric::RecordsDropped => {
                "Records inside an aggregated one that were dropped, as they belong to another shard."
            }
            Metric::ShardsHalted => "Shards that cannot go on without losing a record.",
            Metric::BehindLatest => "How far the reading is behind the stream's tip.",
            Metric::EndToEndLatency => "From a record's arrival in the stream until it was settled.",
            Metric::AttemptLatency => "How long a call of the handler took.",
            Metric::BackoffTime => "How long a record waited before a retry.",
            Metric::OldestUnsettledAge => {
                "How long ago the oldest record arrived that is read and not settled."
            }
            Metric::RecordsInFlight => "How many records a shard has read and not settled.",
            Metric::RecordsPerRead => "How many records a read brought.",
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
                each(stream, Metric::EndToEndLatency, millis(age));
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
        Event::RetryScheduled { record, delay, .. } => {
            once(Some(record.stream()), Metric::Retries);
            each(Some(record.stream()), Metric::BackoffTime, millis(*delay));
        }
        Event::AttemptEnded { record, took, .. } => {
            each(Some(record.stream()), Metric::AttemptLatency, millis(*took));
        }
        Event::ShardStands {
            stream, held, oldest, ..
        } => {
            each(Some(stream), Metric::RecordsInFlight, *held as f64);
            each(
                Some(stream),
                Metric::OldestUnsettledAge,
                millis(oldest.unwrap_or_default()),
            );
        }
        Event::ShardHalted { stream, .. } => once(Some(stream), Metric::ShardsHalted),
        Event::AggregateOutOfRange {
            record,
            records,
            dropped: true,
        } => each(Some(record.stream()), Metric::RecordsDropped, *records as f64),
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
            each(Some(stream), Metric::RecordsPerRead, *records as f64);
            each(Some(stream), Metric::BytesFetched, *bytes as f64);
            if let Some(behind) = behind {
                each(Some(stream), Metric::BehindLatest, millis(*behind));
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

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1_000.0
}
