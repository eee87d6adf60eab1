//! The log of the events of what all records share.

use tracing::{error, info, warn};

use super::TARGET;
use crate::failure::texts as full;
use crate::observer::ProtectionEvent;

pub(super) fn write(event: &ProtectionEvent<'_>) {
    match event {
        ProtectionEvent::UserCodePanicked { code, count: 1 } => error!(
            target: TARGET,
            code,
            "user code panicked and was skipped; logged once, counted by the metric UserCodePanics"
        ),
        ProtectionEvent::UserCodePanicked { .. } => {}
        ProtectionEvent::BreakerOpened {
            dependency,
            failures,
            attempts,
            pause,
        } => warn!(
            target: TARGET,
            dependency,
            failures,
            attempts,
            ?pause,
            "circuit breaker opened: no attempts and no dead letters until a few probes succeed"
        ),
        ProtectionEvent::BreakerHalfOpened { dependency } => {
            info!(
                target: TARGET,
                dependency,
                "circuit breaker half-open: probing with a few records"
            )
        }
        ProtectionEvent::BreakerClosed { dependency, after } => {
            info!(target: TARGET, dependency, ?after, "circuit breaker closed: processing resumed");
        }
        ProtectionEvent::IdempotencyDelayed {
            store,
            failures,
            error,
            delay,
        } => {
            warn!(
                target: TARGET,
                store,
                failures,
                error = full(*error),
                ?delay,
                "idempotency store unavailable; records wait, and none is processed without it"
            );
        }
    }
}
