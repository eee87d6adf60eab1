//! The metrics: their names, their units, and the events that they come of.

use std::time::Duration;

use crate::failure::Class;
use crate::observer::Event;
use crate::settled::Settled;

#[cfg(all(test, any(feature = "cloudwatch", feature = "emf", feature = "metrics")))]
mod tests;

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
    /// Attempts that failed, timed out or panicked. A call with many records is an attempt of each.
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
    /// Attempts to find out the stream's shards, or what is stored of them, that failed.
    DiscoveryFailures,
    /// Shards whose task broke down, and began again.
    ShardFailures,
    /// Shards that another process has taken, or may have.
    LeasesLost,
    /// Looks at a stored position that cannot be understood: its shard waits.
    CheckpointsUnreadable,
    /// Times that no shard of the stream was found for some hash keys.
    HashKeysUncovered,
    /// Times that a record waited which the stream will drop soon.
    RecordsExpiring,
    /// Shards where the process has died again and again at the same place.
    CrashLoops,
    /// Attempts that did nothing but wait for a call that an earlier one had made.
    HandlersStuck,
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
    /// How many breakers let nothing through, or only probes. Told while there is one, and once when there is none any more.
    BreakersOpen,
    /// How many shards the dead-letter guard has stopped. Told while there is one, and once when there is none any more.
    ShardsStopped,
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
    pub const ALL: [Metric; 40] = [
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
        Metric::DiscoveryFailures,
        Metric::ShardFailures,
        Metric::LeasesLost,
        Metric::CheckpointsUnreadable,
        Metric::HashKeysUncovered,
        Metric::RecordsExpiring,
        Metric::CrashLoops,
        Metric::HandlersStuck,
        Metric::BehindLatest,
        Metric::EndToEndLatency,
        Metric::AttemptLatency,
        Metric::BackoffTime,
        Metric::OldestUnsettledAge,
        Metric::RecordsInFlight,
        Metric::RecordsPerRead,
        Metric::BreakersOpen,
        Metric::ShardsStopped,
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
            Metric::DiscoveryFailures => "DiscoveryFailures",
            Metric::ShardFailures => "ShardFailures",
            Metric::LeasesLost => "LeasesLost",
            Metric::CheckpointsUnreadable => "CheckpointsUnreadable",
            Metric::HashKeysUncovered => "HashKeysUncovered",
            Metric::RecordsExpiring => "RecordsExpiring",
            Metric::CrashLoops => "CrashLoops",
            Metric::HandlersStuck => "HandlersStuck",
            Metric::BehindLatest => "BehindLatest",
            Metric::EndToEndLatency => "EndToEndLatency",
            Metric::AttemptLatency => "AttemptLatency",
            Metric::BackoffTime => "BackoffTime",
            Metric::OldestUnsettledAge => "OldestUnsettledAge",
            Metric::RecordsInFlight => "RecordsInFlight",
            Metric::RecordsPerRead => "RecordsPerRead",
            Metric::BreakersOpen => "BreakersOpen",
            Metric::ShardsStopped => "ShardsStopped",
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

    /// Whether it is told that there were none, so that rates can be computed.
    #[cfg(any(feature = "emf", feature = "cloudwatch"))]
    pub(super) const fn is_always_told(self) -> bool {
        matches!(
            self,
            Metric::RecordsProcessed | Metric::RecordsDeadLettered | Metric::AttemptsFailed
        )
    }

    /// How its values are put together.
    pub const fn kind(self) -> Kind {
        match self {
            Metric::RecordsInFlight
            | Metric::RecordsPerRead
            | Metric::BreakersOpen
            | Metric::ShardsStopped => Kind::Distribution,
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
            Metric::AttemptsFailed => {
                "Attempts that failed, timed out or panicked: a call with many records is one of each."
            }
            Metric::AttemptsFailedForGood => "Failed attempts that another try would not help.",
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
            Metric::DiscoveryFailures => {
                "Attempts to find out the stream's shards, or what is stored of them, that failed."
            }
            Metric::ShardFailures => "Shards whose task broke down, and began again.",
            Metric::LeasesLost => "Shards that another process has taken, or may have.",
            Metric::CheckpointsUnreadable => {
                "Looks at a stored position that cannot be understood: its shard waits."
            }
            Metric::HashKeysUncovered => "Times that no shard of the stream was found for some hash keys.",
            Metric::RecordsExpiring => "Times that a record waited which the stream will drop soon.",
            Metric::CrashLoops => "Shards where the process has died again and again at the same place.",
            Metric::HandlersStuck => {
                "Attempts that did nothing but wait for a call that an earlier one had made."
            }
            Metric::BehindLatest => "How far the reading is behind the stream's tip.",
            Metric::EndToEndLatency => "From a record's arrival in the stream until it was settled.",
            Metric::AttemptLatency => "How long a call of the handler took.",
            Metric::BackoffTime => "How long a record waited before a retry.",
            Metric::OldestUnsettledAge => {
                "How long ago the oldest record arrived that is read and not settled."
            }
            Metric::RecordsInFlight => "How many records a shard has read and not settled.",
            Metric::RecordsPerRead => "How many records a read brought.",
            Metric::BreakersOpen => "How many breakers let nothing through, or only probes.",
            Metric::ShardsStopped => "How many shards the dead-letter guard has stopped.",
        }
    }
}

/// What an event says in numbers. In line, so that of an event that is known little of it is left.
#[inline(always)]
pub(super) fn measure(event: &Event<'_>, mut each: impl FnMut(Metric, f64)) {
    let once = match event {
        Event::Settled { record, settled, .. } => {
            if let Some(age) = record.age() {
                each(Metric::EndToEndLatency, millis(age));
            }
            match settled {
                Settled::Processed => Metric::RecordsProcessed,
                Settled::Duplicate => Metric::RecordsDuplicate,
                Settled::DeadLettered(_) => Metric::RecordsDeadLettered,
            }
        }
        Event::AttemptEnded { took, .. } => return each(Metric::AttemptLatency, millis(*took)),
        Event::Unsettled { .. } => Metric::RecordsUnsettled,
        Event::AttemptFailed { records, failure, .. } => {
            if failure.reveal().verdict().class() == Class::Permanent {
                each(Metric::AttemptsFailedForGood, *records as f64);
            }
            return each(Metric::AttemptsFailed, *records as f64);
        }
        Event::RetryScheduled { delay, .. } => {
            each(Metric::BackoffTime, millis(*delay));
            Metric::Retries
        }
        Event::RetryDelayed { .. } => Metric::RetriesDelayed,
        Event::RecordHeld { .. } => Metric::RecordsHeld,
        Event::BreakerOpened { .. } => Metric::BreakersOpened,
        Event::DeadLetterGuardStopped { .. } => Metric::GuardStops,
        Event::DeadLetterDelayed { .. } => Metric::LetterFailures,
        Event::IdempotencyDelayed { .. } => Metric::StoreFailures,
        Event::CompletionLost { .. } => Metric::CompletionsLost,
        Event::Fetched {
            records,
            bytes,
            behind,
            ..
        } => {
            each(Metric::BytesFetched, *bytes as f64);
            each(Metric::RecordsPerRead, *records as f64);
            if let Some(behind) = behind {
                each(Metric::BehindLatest, millis(*behind));
            }
            return each(Metric::RecordsFetched, *records as f64);
        }
        Event::ShardStands { held, oldest, .. } => {
            each(Metric::RecordsInFlight, *held as f64);
            return each(Metric::OldestUnsettledAge, millis(oldest.unwrap_or_default()));
        }
        Event::FetchFailed { .. } => Metric::FetchFailures,
        Event::FetchThrottled { .. } => Metric::Throttles,
        Event::CheckpointFailed { .. } => Metric::CheckpointFailures,
        Event::WindowFull { .. } => Metric::WindowsFull,
        Event::DataLoss { .. } => Metric::DataLosses,
        Event::ShardHalted { .. } => Metric::ShardsHalted,
        Event::DiscoveryFailed { .. } => Metric::DiscoveryFailures,
        Event::ShardFailed { .. } => Metric::ShardFailures,
        Event::LeaseLost { .. } => Metric::LeasesLost,
        Event::CheckpointUnreadable { .. } => Metric::CheckpointsUnreadable,
        Event::HashKeysUncovered { .. } => Metric::HashKeysUncovered,
        Event::RecordExpiring { .. } => Metric::RecordsExpiring,
        Event::CrashLoopSuspected { .. } => Metric::CrashLoops,
        Event::HandlerStuck { .. } => Metric::HandlersStuck,
        Event::AggregateOutOfRange {
            records,
            dropped: true,
            ..
        } => return each(Metric::RecordsDropped, *records as f64),
        _ => return,
    };
    each(once, 1.0);
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1_000.0
}
