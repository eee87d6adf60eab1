//! The time to live of a table: DynamoDB deletes items that have expired.

use std::sync::atomic::Ordering;

use aws_sdk_dynamodb::error::ProvideErrorMetadata;
use aws_sdk_dynamodb::types::TimeToLiveSpecification;

use super::{Table, TableError};
use crate::failure::BoxError;

impl Table {
    /// Enables the time to live of a table that this process has seen in creation. The settings of an older
    /// table are its owner's.
    pub(super) async fn enable_time_to_live(&self) -> Result<(), TableError> {
        let is_new = self.is_new.load(Ordering::Relaxed);
        let Some(attribute) = self.kind.expiration.filter(|_| is_new) else {
            return Ok(());
        };
        let enabled = TimeToLiveSpecification::builder()
            .attribute_name(attribute)
            .enabled(true);
        let call = self.client.update_time_to_live().table_name(&*self.name);
        let call = call.time_to_live_specification(enabled.build().map_err(BoxError::from)?);
        match call.send().await {
            Ok(_) => {}
            // Another process has enabled it.
            Err(error) if error.code() == Some("ValidationException") => {}
            Err(error) => {
                let failed = self.failed_call("enable time to live on", "dynamodb:UpdateTimeToLive", error);
                if !failed.is_denied() {
                    return Err(TableError::Unavailable(failed.into()));
                }
                // The store works without it.
                tracing::warn!(
                    table = &*self.name, attribute, error = %failed,
                    "time to live not enabled; expired items are not deleted"
                );
            }
        }
        self.is_new.store(false, Ordering::Relaxed);
        Ok(())
    }
}
