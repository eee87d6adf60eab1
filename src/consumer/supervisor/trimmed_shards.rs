//! Shards that Kinesis does not have any more: all their records are trimmed.

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use super::context::RunContext;
use super::known_shards::KnownShards;
use crate::checkpoint::{Checkpoint, LeaseOutcome};
use crate::consumer::shards::lineage::Lineage;
use crate::failure::BoxError;
use crate::record::{Position, ShardId};
use crate::wall_clock;

/// The trimmed shards. Any loss in them was reported.
#[derive(Debug, Default)]
pub(super) struct TrimmedShards {
    reported: HashSet<ShardId>,
}

/// The result for a shard that is trimmed.
#[derive(Debug)]
pub(super) enum Trimmed {
    /// The loss is reported, and the end of the shard is stored.
    Ended,
    /// Another process owns the lease and reports the loss, or owned it and the lease has not been seen to
    /// expire.
    LeasedElsewhere,
}

/// Interval between checks of a lease in a store that does not state its failover time.
const LEASE_CHECK: Duration = Duration::from_secs(30);

impl TrimmedShards {
    /// Reports parents that the stream does not have any more and that have no row, if their children are
    /// about to start. Such parents were created and trimmed while the application was down. `has_begun`:
    /// the application has read the stream before.
    pub(super) fn report_absent_parents(
        &mut self,
        context: &mut RunContext,
        ready: &[ShardId],
        found: &mut Lineage,
        has_begun: bool,
    ) {
        for parent in found.unknown_parents() {
            let is_known = !context.facts.is_absent(&parent) || self.reported.contains(&parent);
            let children = found.children(&parent);
            let mut children = children.iter().map(|child| ShardId::from(child.shard_id()));
            if is_known || !children.any(|child| ready.contains(&child) && !found.has_row(&child)) {
                continue;
            }
            if has_begun {
                context.report_loss(&parent, None, wall_clock::now());
                found.checkpoints.insert(parent.clone(), lost_end(None));
            }
            self.reported.insert(parent);
        }
    }

    /// Stores the end of a trimmed shard, so that its loss is reported once and its children may start.
    pub(super) async fn end(
        &mut self,
        context: &mut RunContext,
        shard: &ShardId,
        found: &mut Lineage,
        known: &mut KnownShards,
    ) -> Result<Trimmed, BoxError> {
        let row = found.checkpoints.get(shard).cloned();
        let taken = match row {
            Some(_) => context.discovery().take_unread(shard).await?,
            None => LeaseOutcome::Missing,
        };
        if let LeaseOutcome::Elsewhere { .. } = taken {
            return Ok(Trimmed::LeasedElsewhere);
        }
        // The loss is reported before the end of the shard is stored: afterwards no process checks the shard
        // again. A process that has stored the end has reported the loss.
        if taken != LeaseOutcome::Ended && self.reported.insert(shard.clone()) {
            let from = row.as_ref().and_then(Checkpoint::read_until);
            context.report_loss(shard, from, wall_clock::now());
        }
        // The children may have lost records as well.
        let end = lost_end(row.as_ref());
        if let LeaseOutcome::Leased(_) = taken {
            context.discovery().store_end(shard, end.clone()).await?;
        }
        known.note_end(shard.clone());
        found.checkpoints.insert(shard.clone(), end);
        Ok(Trimmed::Ended)
    }
}

impl Trimmed {
    /// Returns the delay before the next check, if the shard has not ended.
    pub(super) fn next_check(&self, context: &RunContext) -> Option<Duration> {
        match self {
            Trimmed::Ended => None,
            Trimmed::LeasedElsewhere => {
                let leases = context.settings.checkpoints.leases();
                Some(leases.map_or(LEASE_CHECK, |leases| leases.failover_time() / 2))
            }
        }
    }
}

/// Returns the checkpoint at the end of a trimmed shard. An unknown `read_until` becomes 1970: the children
/// of the shard then report that they may have lost records.
fn lost_end(row: Option<&Checkpoint>) -> Checkpoint {
    let read_until = row.and_then(Checkpoint::read_until);
    Checkpoint::at(Position::ShardEnd).with_read_until(read_until.unwrap_or(SystemTime::UNIX_EPOCH))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_of_a_shard_without_a_time_may_have_lost_records() {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(7);
        let row = Checkpoint::at(Position::TrimHorizon);
        assert_eq!(lost_end(None).read_until(), Some(SystemTime::UNIX_EPOCH));
        assert_eq!(lost_end(Some(&row)).read_until(), Some(SystemTime::UNIX_EPOCH));
        assert_eq!(
            lost_end(Some(&row.with_read_until(time))).read_until(),
            Some(time)
        );
    }
}
