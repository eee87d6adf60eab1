//! The stream and shard of an event.

use super::Event;
use crate::record::{Record, ShardId};

impl<'a> Event<'a> {
    /// Returns the name of the stream that the event belongs to, if any.
    pub fn stream(&self) -> Option<&'a str> {
        self.place().map(|(stream, _)| stream)
    }

    /// Returns the shard that the event belongs to, if any.
    pub fn shard(&self) -> Option<&'a ShardId> {
        self.place().and_then(|(_, shard)| shard)
    }

    /// Returns the stream and, where there is one, the shard.
    #[inline]
    pub(crate) fn place(&self) -> Option<(&'a str, Option<&'a ShardId>)> {
        let of = |record: &'a Record| Some((record.stream(), Some(record.shard())));
        match *self {
            Event::AttemptEnded { record, .. }
            | Event::AttemptFailed { record, .. }
            | Event::HandlerStuck { record, .. }
            | Event::RetryScheduled { record, .. }
            | Event::RetryDelayed { record, .. }
            | Event::RecordHeld { record, .. }
            | Event::DeadLetterGuardStopped { record, .. }
            | Event::DeadLetterGuardResumed { record, .. }
            | Event::ClaimedElsewhere { record, .. }
            | Event::CompletionLost { record, .. }
            | Event::DeadLettered { record, .. }
            | Event::Settled { record, .. }
            | Event::Unsettled { record, .. }
            | Event::AggregateDamaged { record, .. }
            | Event::AggregateOutOfRange { record, .. }
            | Event::WindowFull { oldest: record, .. }
            | Event::RecordExpiring { record, .. } => of(record),
            Event::ConsumerStarted { stream, .. }
            | Event::ConsumerStopped { stream, .. }
            | Event::DiscoveryFailed { stream, .. }
            | Event::HashKeysUncovered { stream, .. }
            | Event::StreamNotDescribed { stream, .. } => Some((stream, None)),
            Event::ShardStarted { stream, shard, .. }
            | Event::ShardEnded { stream, shard }
            | Event::ShardHalted { stream, shard, .. }
            | Event::ShardFailed { stream, shard, .. }
            | Event::CheckpointUnreadable { stream, shard, .. }
            | Event::ShardLeasedElsewhere { stream, shard, .. }
            | Event::LeaseNotRenewed { stream, shard, .. }
            | Event::LeaseLost { stream, shard }
            | Event::ShardHandedOver { stream, shard }
            | Event::DataLoss { stream, shard, .. }
            | Event::Fetched { stream, shard, .. }
            | Event::FetchFailed { stream, shard, .. }
            | Event::FetchThrottled { stream, shard, .. }
            | Event::IteratorExpired { stream, shard }
            | Event::PositionRefused { stream, shard, .. }
            | Event::StreamRecreated { stream, shard, .. }
            | Event::FanOutUnavailable { stream, shard, .. }
            | Event::ShardStatus { stream, shard, .. }
            | Event::CrashLoopSuspected { stream, shard, .. }
            | Event::CrashLoopOver { stream, shard }
            | Event::Checkpointed { stream, shard, .. }
            | Event::CheckpointFailed { stream, shard, .. } => Some((stream, Some(shard))),
            Event::UserCodePanicked { .. }
            | Event::BreakerOpened { .. }
            | Event::BreakerHalfOpened { .. }
            | Event::BreakerClosed { .. }
            | Event::IdempotencyDelayed { .. }
            | Event::DeadLetterDelayed { .. }
            | Event::DeadLetterTargetWarning { .. } => None,
        }
    }
}
