//! The log of the events of a shard.

use tracing::{debug, error, info, trace, warn};

use crate::failure::texts as full;
use crate::observer::ShardEvent;
use crate::record::ShardId;
use crate::rfc3339;

pub(super) fn write(stream: &str, shard: &ShardId, event: &ShardEvent<'_>) {
    match event {
        ShardEvent::Started { position } => of_shard!(info, stream, shard, %position, "shard started"),
        ShardEvent::Ended => of_shard!(info, stream, shard, "shard ended"),
        ShardEvent::Failed {
            failures,
            error,
            delay,
        } => of_shard!(
            error,
            stream,
            shard,
            failures,
            error = full(*error),
            ?delay,
            "shard task failed; restarting from its checkpoint"
        ),
        ShardEvent::CheckpointUnreadable { error } => of_shard!(
            error,
            stream,
            shard,
            error = full(*error),
            "checkpoint unreadable; the shard waits until it is fixed or deleted"
        ),
        ShardEvent::LeasedElsewhere { owner } => {
            of_shard!(
                info,
                stream,
                shard,
                owner,
                "shard leased by another worker; standing by"
            );
        }
        ShardEvent::LeaseNotRenewed {
            failures,
            error,
            delay,
        } => of_shard!(
            warn,
            stream,
            shard,
            failures,
            error = full(*error),
            ?delay,
            "lease renewal failed; retrying until the lease is lost"
        ),
        ShardEvent::DataLoss { from, to, certain } => {
            let from = from.map(rfc3339::format_seconds);
            let from = from.as_ref().map(tracing::field::display);
            let to = rfc3339::format_seconds(*to);
            of_shard!(
                error,
                stream,
                shard,
                from,
                %to,
                certain,
                "records lost: the stream dropped them before they were settled"
            );
        }
        ShardEvent::LeaseLost => of_shard!(
            warn,
            stream,
            shard,
            "lease lost; unsettled records are left to the next owner"
        ),
        ShardEvent::HandedOver => {
            of_shard!(
                info,
                stream,
                shard,
                "shard handed over to the worker that requested it"
            );
        }
        ShardEvent::Halted { error } => of_shard!(
            error,
            stream,
            shard,
            error = full(*error),
            "shard halted: it cannot continue without losing a record"
        ),
        ShardEvent::Fetched {
            records,
            bytes,
            behind,
        } => of_shard!(trace, stream, shard, records, bytes, ?behind, "fetched"),
        ShardEvent::FetchFailed {
            failures,
            error,
            delay,
        } => of_shard!(
            warn,
            stream,
            shard,
            failures,
            error = full(*error),
            ?delay,
            "fetch failed; retrying"
        ),
        ShardEvent::FetchThrottled { delay } => {
            of_shard!(debug, stream, shard, ?delay, "fetch throttled")
        }
        ShardEvent::IteratorExpired => {
            of_shard!(debug, stream, shard, "iterator expired; requesting a new one")
        }
        ShardEvent::PositionRefused { sequence_number } => of_shard!(
            error,
            stream,
            shard,
            %sequence_number,
            "checkpoint rejected by Kinesis: it belongs to another shard, or to a deleted stream of this name"
        ),
        ShardEvent::StreamRecreated { created } => of_shard!(
            error,
            stream,
            shard,
            created = created.map(rfc3339::format_seconds).map(tracing::field::display),
            "checkpoint belongs to a deleted stream of this name; reading from the oldest record"
        ),
        ShardEvent::FanOutUnavailable { error, delay } => of_shard!(
            warn,
            stream,
            shard,
            error = full(*error),
            ?delay,
            "subscription failed; polling the shard meanwhile"
        ),
        ShardEvent::CrashLoopSuspected { starts } => of_shard!(
            error,
            stream,
            shard,
            starts,
            "crash loop suspected: processing one record at a time"
        ),
        ShardEvent::CrashLoopOver => {
            of_shard!(
                info,
                stream,
                shard,
                "crash loop over: processing records concurrently again"
            );
        }
        ShardEvent::WindowFull {
            bound,
            oldest,
            in_flight,
        } => {
            of_record!(
                warn,
                oldest,
                bound = bound.as_str(),
                in_flight,
                "window full: the shard waits for its oldest unsettled record"
            );
        }
        ShardEvent::Checkpointed { position } => {
            of_shard!(trace, stream, shard, %position, "checkpoint stored")
        }
        ShardEvent::CheckpointFailed {
            failures,
            error,
            delay,
        } => of_shard!(
            warn,
            stream,
            shard,
            failures,
            error = full(*error),
            ?delay,
            "checkpoint not stored; retrying; a crash now would repeat more records"
        ),
        // The log does not ask for this kind: it is a measurement.
        ShardEvent::Status { .. } => {}
    }
}
