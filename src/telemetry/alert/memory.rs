//! Alerts kept in memory, for tests.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;

use super::{Alert, AlertSink};
use crate::failure::BoxError;

/// Keeps alerts in memory. A clone shares them.
#[derive(Debug, Clone, Default)]
pub struct Memory(Arc<Mutex<Vec<Alert>>>);

impl Memory {
    /// Creates a sink without alerts.
    pub fn new() -> Self {
        Memory::default()
    }

    /// Returns the alerts sent so far.
    pub fn alerts(&self) -> Vec<Alert> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[async_trait]
impl AlertSink for Memory {
    async fn send(&self, alert: &Alert) -> Result<(), BoxError> {
        let mut alerts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        alerts.push(alert.clone());
        Ok(())
    }
}
