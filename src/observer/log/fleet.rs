//! The log of the events of a fleet.

use tracing::{info, warn};

use super::TARGET;
use crate::failure::texts as full;
use crate::observer::FleetEvent;

pub(super) fn write(stream: &str, event: &FleetEvent<'_>) {
    match event {
        FleetEvent::LeaderGained { worker } => {
            info!(target: TARGET, stream, worker, "leadership gained: this worker assigns the shards")
        }
        FleetEvent::LeaderLost { worker } => info!(target: TARGET, stream, worker, "leadership lost"),
        FleetEvent::WorkerJoined { worker, workers } => {
            info!(target: TARGET, stream, worker, workers, "worker joined")
        }
        FleetEvent::WorkerLeft { worker, workers } => {
            info!(target: TARGET, stream, worker, workers, "worker left")
        }
        FleetEvent::LeaseAssigned { shard, to } => {
            info!(target: TARGET, stream, shard = %shard, to, "shard assigned")
        }
        FleetEvent::HandOverRequested { shard, from, to } => {
            info!(target: TARGET, stream, shard = %shard, from, to, "hand-over requested")
        }
        FleetEvent::HandOverForced { shard, from } => warn!(
            target: TARGET, stream, shard = %shard, from,
            "shard not handed over in time; the leader assigns it"
        ),
        FleetEvent::LeaseExpired { shard, owner } => warn!(
            target: TARGET, stream, shard = %shard, owner,
            "lease expired: its owner has stopped to renew it"
        ),
        FleetEvent::IndexMissing => warn!(
            target: TARGET, stream,
            "the lease table has no index LeaseOwnerToLeaseKeyIndex; each worker reads all rows, which costs \
             more; create the index with the partition key leaseOwner and the sort key leaseKey"
        ),
        FleetEvent::Failed {
            task,
            failures,
            error,
            delay,
        } => warn!(
            target: TARGET, stream, task, failures, error = full(*error), ?delay,
            "fleet call failed; retrying"
        ),
    }
}
