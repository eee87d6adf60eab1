//! The kind of an event, by which observers select events.

use super::{Event, Interest};

impl Event<'_> {
    /// Returns the kind of the event: one of the constants of [`Interest`].
    pub fn kind(&self) -> Interest {
        match self {
            Event::UserCodePanicked { .. }
            | Event::AttemptFailed { .. }
            | Event::HandlerStuck { .. }
            | Event::RetryScheduled { .. }
            | Event::RetryDelayed { .. }
            | Event::RecordHeld { .. }
            | Event::BreakerOpened { .. }
            | Event::BreakerHalfOpened { .. }
            | Event::BreakerClosed { .. }
            | Event::DeadLetterGuardStopped { .. }
            | Event::DeadLetterGuardResumed { .. }
            | Event::ClaimedElsewhere { .. }
            | Event::IdempotencyDelayed { .. }
            | Event::CompletionLost { .. }
            | Event::DeadLetterDelayed { .. }
            | Event::DeadLettered { .. }
            | Event::Unsettled { .. } => Interest::FAILURES,
            Event::Settled { .. } => Interest::SETTLEMENTS,
            Event::AttemptEnded { .. } => Interest::ATTEMPTS,
            Event::ShardStatus { .. } => Interest::STANDING,
            Event::DeadLetterTargetWarning { .. }
            | Event::ConsumerStarted { .. }
            | Event::ConsumerStopped { .. }
            | Event::DiscoveryFailed { .. }
            | Event::HashKeysUncovered { .. }
            | Event::ShardStarted { .. }
            | Event::ShardEnded { .. }
            | Event::ShardFailed { .. }
            | Event::ShardHalted { .. }
            | Event::CheckpointUnreadable { .. }
            | Event::ShardLeasedElsewhere { .. }
            | Event::LeaseNotRenewed { .. }
            | Event::LeaseLost { .. }
            | Event::ShardHandedOver { .. }
            | Event::DataLoss { .. }
            | Event::Fetched { .. }
            | Event::FetchFailed { .. }
            | Event::FetchThrottled { .. }
            | Event::IteratorExpired { .. }
            | Event::PositionRefused { .. }
            | Event::StreamRecreated { .. }
            | Event::StreamNotDescribed { .. }
            | Event::FanOutUnavailable { .. }
            | Event::AggregateDamaged { .. }
            | Event::AggregateOutOfRange { .. }
            | Event::WindowFull { .. }
            | Event::RecordExpiring { .. }
            | Event::CrashLoopSuspected { .. }
            | Event::CrashLoopOver { .. }
            | Event::Checkpointed { .. }
            | Event::CheckpointFailed { .. } => Interest::SHARDS,
        }
    }
}
