//! Alerts in the log.

use async_trait::async_trait;

use super::{Alert, AlertSink, AlertState};
use crate::failure::BoxError;

/// Writes alerts as `tracing` events, at WARN while the rate is too high and at INFO once it has recovered.
#[derive(Debug, Clone, Copy, Default)]
pub struct Log;

#[async_trait]
impl AlertSink for Log {
    async fn send(&self, alert: &Alert) -> Result<(), BoxError> {
        match alert.state {
            AlertState::Recovered => tracing::info!(share = alert.share, of = alert.of, "{alert}"),
            _ => tracing::warn!(share = alert.share, of = alert.of, "{alert}"),
        }
        Ok(())
    }
}
