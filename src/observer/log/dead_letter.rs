//! The log of the events of a dead-letter sink.

use tracing::warn;

use super::TARGET;
use crate::failure::texts as full;
use crate::observer::DeadLetterEvent;

pub(super) fn write(event: &DeadLetterEvent<'_>) {
    match event {
        DeadLetterEvent::WriteDelayed {
            sink,
            letters,
            failures,
            error,
            delay,
        } => {
            warn!(
                target: TARGET,
                sink,
                letters,
                failures,
                error = full(*error),
                ?delay,
                "dead-letter sink unavailable; the shards wait, and nothing is lost"
            );
        }
        DeadLetterEvent::TargetWarning {
            sink,
            message,
            remedy,
        } => {
            warn!(target: TARGET, sink, remedy, "{message}");
        }
    }
}
