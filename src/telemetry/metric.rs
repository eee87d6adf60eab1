//! The metrics: their names, their units, and the events that they are derived from.

use std::time::Duration;

use crate::failure::Class;
use crate::observer::{
    DeadLetterEvent, Event, FleetEvent, ProtectionEvent, RecordEvent, ShardEvent, StreamEvent,
};
use crate::settlement::Settled;

#[cfg(all(test, any(feature = "cloudwatch", feature = "emf", feature = "metrics")))]
mod tests;

/// Declares the metrics. Each row has a name, a kind, a unit and a description.
macro_rules! metrics {
    ($($(#[$more:meta])* $name:ident: $kind:ident, $unit:ident, $says:literal;)*) => {
        /// A metric of redrive.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Metric {
            $(#[doc = $says] $(#[$more])* $name,)*
        }

        impl Metric {
            /// All metrics.
            pub const ALL: &'static [Metric] = &[$(Metric::$name),*];
            pub(crate) const COUNT: usize = Metric::ALL.len();

            /// Returns the name of the metric in CloudWatch, such as `RecordsProcessed`.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Metric::$name => stringify!($name),)*
                }
            }

            /// Returns the unit of the values.
            pub const fn unit(self) -> Unit {
                match self {
                    $(Metric::$name => Unit::$unit,)*
                }
            }

            /// Returns how the values of the metric are combined.
            pub const fn kind(self) -> Kind {
                match self {
                    $(Metric::$name => Kind::$kind,)*
                }
            }

            /// Returns a description of the metric in one or two sentences.
            pub const fn description(self) -> &'static str {
                match self {
                    $(Metric::$name => $says,)*
                }
            }
        }
    };
}

metrics! {
    RecordsProcessed: Sum, Count, "Records that the processor processed successfully.";
    RecordsDuplicate: Sum, Count, "Records that the idempotency store already knew as processed.";
    RecordsDeadLettered: Sum, Count, "Records that became dead letters.";
    RecordsUnsettled: Sum, Count, "Records released unsettled; they will be redelivered.";
    AttemptsFailed: Sum, Count, "Attempts that failed, timed out or panicked. A call with several records counts as one attempt of each record.";
    AttemptsFailedPermanently: Sum, Count, "Attempts that failed permanently: a retry would not help.";
    Retries: Sum, Count, "Retries scheduled with a backoff.";
    RetriesDelayed: Sum, Count, "Retries delayed because the retry budget was exhausted.";
    RecordsHeld: Sum, Count, "Records held, not dead-lettered, because an outage is suspected.";
    BreakersOpened: Sum, Count, "Times that a circuit breaker opened.";
    GuardStops: Sum, Count, "Times that the dead-letter guard stopped a shard.";
    LetterFailures: Sum, Count, "Writes of dead letters that the sink did not accept.";
    StoreFailures: Sum, Count, "Calls of the idempotency store that failed.";
    CompletionsLost: Sum, Count, "Processed records whose completion was not stored in the idempotency store.";
    RecordsFetched: Sum, Count, "Records read from the stream.";
    BytesFetched: Sum, Bytes, "Payload bytes read from the stream.";
    FetchFailures: Sum, Count, "Reads that failed.";
    Throttles: Sum, Count, "Reads that Kinesis throttled.";
    CheckpointFailures: Sum, Count, "Writes of a checkpoint that failed.";
    WindowsFull: Sum, Count, "Times that a full window kept a shard from reading.";
    DataLosses: Sum, Count, "Times that the stream dropped records before they were settled, or may have.";
    RecordsDropped: Sum, Count, "Records dropped with a KPL aggregate that contains records of another shard.";
    ShardsHalted: Sum, Count, "Shards that cannot continue without losing a record.";
    DiscoveryFailures: Sum, Count, "Failed attempts to list the stream's shards, to load their checkpoints, or to check a store or sink.";
    ShardFailures: Sum, Count, "Shard tasks that failed and were restarted.";
    LeasesLost: Sum, Count, "Leases that another worker took, or may have taken.";
    LeasesExpired: Sum, Count, "Leases that their owners have not renewed for the failover time. The leader counts them.";
    HandOversForced: Sum, Count, "Shards that their owners have not handed over in time. The leader counts them.";
    LeadershipChanges: Sum, Count, "Times that a worker became the leader.";
    FleetFailures: Sum, Count, "Calls of the checkpoint store for sharing the shards that failed and were retried.";
    CheckpointsUnreadable: Sum, Count, "Checks that found an unreadable checkpoint; its shard waits.";
    HashKeysUncovered: Sum, Count, "Checks that found hash keys which no shard of the stream covers.";
    RecordsExpiring: Sum, Count, "Reports of an unsettled record that the stream will drop soon.";
    CrashLoops: Sum, Count, "Times that repeated crashes at the same place of a shard were detected.";
    HandlersStuck: Sum, Count, "Attempts that timed out while they waited for the blocking call of an earlier attempt.";
    UserCodePanics: Sum, Count, "Panics in user code other than the processor: an observer, a classifier, a function that makes keys.";
    BehindLatest: Distribution, Milliseconds, "The time by which the reader is behind the tip of the stream.";
    EndToEndLatency: Distribution, Milliseconds, "The time from a record's arrival in the stream to its settlement.";
    AttemptLatency: Distribution, Milliseconds, "The duration of a call of the processor.";
    BackoffTime: Distribution, Milliseconds, "The backoff before a retry.";
    /// The age grows with time, even while nothing is read. Without such a record it is 0.
    OldestUnsettledAge: Distribution, Milliseconds, "The time since the arrival of a shard's oldest record that is read and not settled.";
    RecordsInFlight: Distribution, Count, "The number of records of a shard that are read and not settled.";
    RecordsPerRead: Distribution, Count, "The number of records that a read returned.";
    /// CloudWatch and EMF get a value while at least one is not closed, and one 0 afterwards.
    BreakersOpen: Distribution, Count, "The number of circuit breakers that are open or half-open.";
    /// CloudWatch and EMF get a value while at least one is stopped, and one 0 afterwards.
    ShardsStopped: Distribution, Count, "The number of shards that the dead-letter guard has stopped.";
}

/// The way in which the values of a metric are combined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The values are added up.
    Sum,
    /// Each value is a sample of a distribution.
    Distribution,
}

/// The unit of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Unit {
    /// A number of things.
    Count,
    /// Bytes.
    Bytes,
    /// Milliseconds.
    Milliseconds,
}

impl Unit {
    /// Returns the name of the unit in CloudWatch.
    pub const fn as_str(self) -> &'static str {
        match self {
            Unit::Count => "Count",
            Unit::Bytes => "Bytes",
            Unit::Milliseconds => "Milliseconds",
        }
    }
}

impl Metric {
    /// Returns true if a zero is sent as well. CloudWatch's metric math needs it for rates: there, a missing
    /// value plus one is a missing value.
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

/// Derives the metrics of an event. Inlined, so that only one branch remains where the event's type is known.
#[inline(always)]
pub(super) fn measure(event: &Event<'_>, mut each: impl FnMut(Metric, f64)) {
    let once = match event {
        Event::Record { record, event } => match event {
            RecordEvent::Settled { settled, .. } => {
                if let Some(age) = record.age() {
                    each(Metric::EndToEndLatency, millis(age));
                }
                match settled {
                    Settled::Processed => Metric::RecordsProcessed,
                    Settled::Duplicate => Metric::RecordsDuplicate,
                    Settled::DeadLettered(_) => Metric::RecordsDeadLettered,
                }
            }
            RecordEvent::AttemptEnded { took, .. } => return each(Metric::AttemptLatency, millis(*took)),
            RecordEvent::Unsettled { .. } => Metric::RecordsUnsettled,
            RecordEvent::AttemptFailed { records, failure, .. } => {
                if failure.reveal().verdict().class() == Class::Permanent {
                    each(Metric::AttemptsFailedPermanently, *records as f64);
                }
                return each(Metric::AttemptsFailed, *records as f64);
            }
            RecordEvent::RetryScheduled { delay, .. } => {
                each(Metric::BackoffTime, millis(*delay));
                Metric::Retries
            }
            RecordEvent::RetryDelayed { .. } => Metric::RetriesDelayed,
            RecordEvent::Held { .. } => Metric::RecordsHeld,
            RecordEvent::DeadLetterGuardStopped { .. } => Metric::GuardStops,
            RecordEvent::CompletionLost { .. } => Metric::CompletionsLost,
            RecordEvent::Expiring { .. } => Metric::RecordsExpiring,
            RecordEvent::HandlerStuck { .. } => Metric::HandlersStuck,
            RecordEvent::AggregateOutOfRange {
                records,
                dropped: true,
            } => return each(Metric::RecordsDropped, *records as f64),
            _ => return,
        },
        Event::Shard { event, .. } => match event {
            ShardEvent::Fetched {
                records,
                bytes,
                behind,
            } => {
                each(Metric::BytesFetched, *bytes as f64);
                each(Metric::RecordsPerRead, *records as f64);
                if let Some(behind) = behind {
                    each(Metric::BehindLatest, millis(*behind));
                }
                return each(Metric::RecordsFetched, *records as f64);
            }
            ShardEvent::Status {
                in_flight, oldest, ..
            } => {
                each(Metric::RecordsInFlight, *in_flight as f64);
                return each(Metric::OldestUnsettledAge, millis(oldest.unwrap_or_default()));
            }
            ShardEvent::FetchFailed { .. } => Metric::FetchFailures,
            ShardEvent::FetchThrottled { .. } => Metric::Throttles,
            ShardEvent::CheckpointFailed { .. } => Metric::CheckpointFailures,
            ShardEvent::WindowFull { .. } => Metric::WindowsFull,
            ShardEvent::DataLoss { .. } => Metric::DataLosses,
            ShardEvent::Halted { .. } => Metric::ShardsHalted,
            ShardEvent::Failed { .. } => Metric::ShardFailures,
            ShardEvent::LeaseLost => Metric::LeasesLost,
            ShardEvent::CheckpointUnreadable { .. } => Metric::CheckpointsUnreadable,
            ShardEvent::CrashLoopSuspected { .. } => Metric::CrashLoops,
            _ => return,
        },
        Event::Stream { event, .. } => match event {
            StreamEvent::DiscoveryFailed { .. } => Metric::DiscoveryFailures,
            StreamEvent::HashKeysUncovered { .. } => Metric::HashKeysUncovered,
            _ => return,
        },
        Event::Fleet { event, .. } => match event {
            FleetEvent::LeaseExpired { .. } => Metric::LeasesExpired,
            FleetEvent::HandOverForced { .. } => Metric::HandOversForced,
            FleetEvent::LeaderGained { .. } => Metric::LeadershipChanges,
            FleetEvent::Failed { .. } => Metric::FleetFailures,
            _ => return,
        },
        Event::DeadLetter(DeadLetterEvent::WriteDelayed { .. }) => Metric::LetterFailures,
        Event::DeadLetter(DeadLetterEvent::TargetWarning { .. }) => return,
        Event::Protection(event) => match event {
            ProtectionEvent::BreakerOpened { .. } => Metric::BreakersOpened,
            ProtectionEvent::IdempotencyDelayed { .. } => Metric::StoreFailures,
            ProtectionEvent::UserCodePanicked { .. } => Metric::UserCodePanics,
            _ => return,
        },
    };
    each(once, 1.0);
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1_000.0
}
