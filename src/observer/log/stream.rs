//! The log of the events of a stream and its consumer.

use tracing::{error, info, warn};

use super::TARGET;
use crate::failure::texts as full;
use crate::observer::StreamEvent;

pub(super) fn write(stream: &str, event: &StreamEvent<'_>) {
    match event {
        StreamEvent::ConsumerStarted {
            application,
            place,
            shards,
            checkpoints,
            dead_letters,
            starting_position,
        } => info!(
            target: TARGET,
            version = env!("CARGO_PKG_VERSION"),
            application,
            stream,
            place,
            shards,
            checkpoints,
            dead_letters = dead_letters.unwrap_or("none"),
            starting_position,
            "consumer started"
        ),
        StreamEvent::ConsumerStopped {
            processed,
            duplicates,
            dead_lettered,
            duration,
        } => info!(
            target: TARGET,
            stream,
            processed,
            duplicates,
            dead_lettered,
            ?duration,
            "consumer stopped"
        ),
        StreamEvent::DiscoveryFailed {
            failures,
            error,
            delay,
        } => warn!(
            target: TARGET,
            stream,
            failures,
            error = full(*error),
            ?delay,
            "stream discovery failed; retrying"
        ),
        StreamEvent::HashKeysUncovered { first, last } => error!(
            target: TARGET,
            stream,
            first = %first,
            last = %last,
            "hash keys not covered by any shard; records written to them are not read"
        ),
        StreamEvent::CborRefused { error } => warn!(
            target: TARGET,
            stream,
            error = full(*error),
            "records cannot be read in CBOR; reading in JSON until the next start"
        ),
        StreamEvent::NotDescribed { error } => warn!(
            target: TARGET,
            stream,
            error = full(*error),
            "stream not described; its retention is unknown or outdated; grant kinesis:DescribeStreamSummary"
        ),
    }
}
