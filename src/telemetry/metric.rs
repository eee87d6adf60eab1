//! The metrics: their names, their units, and the events that they come of.

use std::time::Duration;

use crate::failure::Class;
use crate::observer::Event;
use crate::settlement::Settled;

#[cfg(all(test, any(feature = "cloudwatch", feature = "emf", feature = "metrics")))]
mod tests;

/// A row for each metric: how its values are put together, what it counts in, what it says.
macro_rules! metrics {
    ($($(#[$more:meta])* $name:ident: $kind:ident, $unit:ident, $says:literal;)*) => {
        /// Something that is measured.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Metric {
            $(#[doc = $says] $(#[$more])* $name,)*
        }

        impl Metric {
            /// All of them.
            pub const ALL: [Metric; [$(stringify!($name)),*].len()] = [$(Metric::$name),*];

            /// As CloudWatch has it: `RecordsProcessed`.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Metric::$name => stringify!($name),)*
                }
            }

            /// What it counts in.
            pub const fn unit(self) -> Unit {
                match self {
                    $(Metric::$name => Unit::$unit,)*
                }
            }

            /// How its values are put together.
            pub const fn kind(self) -> Kind {
                match self {
                    $(Metric::$name => Kind::$kind,)*
                }
            }

            /// What it says, in a sentence.
            pub const fn description(self) -> &'static str {
                match self {
                    $(Metric::$name => $says,)*
                }
            }
        }
    };
}

metrics! {
    RecordsProcessed: Sum, Count, "Records that the handler succeeded with.";
    RecordsDuplicate: Sum, Count, "Records that the idempotency store knew as processed.";
    RecordsDeadLettered: Sum, Count, "Records that became dead letters.";
    RecordsUnsettled: Sum, Count, "Records that were given back, and will be delivered again.";
    AttemptsFailed: Sum, Count, "Attempts that failed, timed out or panicked: a call with many records is one of each.";
    AttemptsFailedPermanently: Sum, Count, "Failed attempts that another try would not help.";
    Retries: Sum, Count, "Retries that a backoff was drawn for.";
    RetriesDelayed: Sum, Count, "Retries that the budget did not pay for.";
    RecordsHeld: Sum, Count, "Records that are in_flight, as they may not be to blame.";
    BreakersOpened: Sum, Count, "Breakers that have opened.";
    GuardStops: Sum, Count, "Shards that the dead-letter guard has stopped.";
    LetterFailures: Sum, Count, "Writes of dead letters that the sink did not take.";
    StoreFailures: Sum, Count, "Calls that the idempotency store did not answer.";
    CompletionsLost: Sum, Count, "Processed records that could not be remembered.";
    RecordsFetched: Sum, Count, "Records read.";
    BytesFetched: Sum, Bytes, "Bytes of payload read.";
    FetchFailures: Sum, Count, "Reads that failed.";
    Throttles: Sum, Count, "Reads that Kinesis throttled.";
    CheckpointFailures: Sum, Count, "Checkpoints that could not be stored.";
    WindowsFull: Sum, Count, "Times that a shard's window was full, and nothing more was read.";
    DataLosses: Sum, Count, "Times that the stream has dropped records before they were settled, or may have.";
    RecordsDropped: Sum, Count, "Records inside an aggregated one that were dropped, as they belong to another shard.";
    ShardsHalted: Sum, Count, "Shards that cannot go on without losing a record.";
    DiscoveryFailures: Sum, Count, "Attempts to find out the stream's shards, or what is stored of them, that failed.";
    ShardFailures: Sum, Count, "Shards whose task broke down, and began again.";
    LeasesLost: Sum, Count, "Shards that another process has taken, or may have.";
    CheckpointsUnreadable: Sum, Count, "Looks at a stored position that cannot be understood: its shard waits.";
    HashKeysUncovered: Sum, Count, "Times that no shard of the stream was found for some hash keys.";
    RecordsExpiring: Sum, Count, "Times that a record waited which the stream will drop soon.";
    CrashLoops: Sum, Count, "Shards where the process has died again and again at the same place.";
    HandlersStuck: Sum, Count, "Attempts that did nothing but wait for a call that an earlier one had made.";
    UserCodePanics: Sum, Count, "Panics of the user's code other than the handler: an observer, a classifier, a function that makes keys.";
    BehindLatest: Distribution, Milliseconds, "How far the reading is behind the stream's tip.";
    EndToEndLatency: Distribution, Milliseconds, "From a record's arrival in the stream until it was settled.";
    AttemptLatency: Distribution, Milliseconds, "How long a call of the handler took.";
    BackoffTime: Distribution, Milliseconds, "How long a record waited before a retry.";
    /// It grows by the clock, also while nothing is read.
    OldestUnsettledAge: Distribution, Milliseconds, "How long ago the oldest record arrived that is read and not settled.";
    RecordsInFlight: Distribution, Count, "How many records a shard has read and not settled.";
    RecordsPerRead: Distribution, Count, "How many records a read brought.";
    /// Told while there is one, and once when there is none any more.
    BreakersOpen: Distribution, Count, "How many breakers let nothing through, or only probes.";
    /// Told while there is one, and once when there is none any more.
    ShardsStopped: Distribution, Count, "How many shards the dead-letter guard has stopped.";
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
    /// Whether it is told that there were none, so that rates can be computed: in CloudWatch's arithmetic nothing plus one
    /// is nothing.
    #[cfg(any(feature = "emf", feature = "cloudwatch"))]
    pub(super) const fn is_always_told(self) -> bool {
        matches!(
            self,
            Metric::RecordsProcessed
                | Metric::RecordsDuplicate
                | Metric::RecordsDeadLettered
                | Metric::AttemptsFailed
        )
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
                each(Metric::AttemptsFailedPermanently, *records as f64);
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
        Event::ShardStatus {
            in_flight, oldest, ..
        } => {
            each(Metric::RecordsInFlight, *in_flight as f64);
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
        Event::UserCodePanicked { .. } => Metric::UserCodePanics,
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
