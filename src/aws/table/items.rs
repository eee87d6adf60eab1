//! Reads of items by key.

use std::collections::{BTreeSet, HashMap};

use aws_sdk_dynamodb::types::KeysAndAttributes;
use tokio::time::sleep;

use super::attribute::{string, text};
use super::{Item, LOOKS, Table, TableError};
use crate::failure::BoxError;
use crate::protection::RetryTimer;
use crate::protection::retry::seeded_rng;

/// The maximum number of keys that BatchGetItem takes (DynamoDB API reference).
pub(crate) const MOST_KEYS: usize = 100;
/// The number of delays in a row after which a call without a processed key ends the read.
const THROTTLED: u32 = 5;

impl Table {
    /// Returns the items of these keys, by key; at most [`MOST_KEYS`] keys. Keys that DynamoDB does not
    /// process are requested again.
    ///
    /// # Errors
    ///
    /// Returns an error if a call fails, or if DynamoDB processes none of the keys several times in a row.
    pub(crate) async fn get_items(
        &self,
        keys: impl IntoIterator<Item = &str>,
    ) -> Result<HashMap<String, Item>, TableError> {
        let key = self.kind.key;
        // DynamoDB rejects a request that names a key twice.
        let keys: BTreeSet<&str> = keys.into_iter().collect();
        let keys = keys.into_iter();
        let mut left: Vec<Item> = keys
            .map(|value| Item::from([(key.to_owned(), string(value))]))
            .collect();
        let mut found = HashMap::with_capacity(left.len());
        let mut retries = RetryTimer::new(LOOKS, seeded_rng(None));
        while !left.is_empty() {
            let asked = left.len();
            let wanted = KeysAndAttributes::builder()
                .set_keys(Some(left))
                .consistent_read(true);
            let wanted = wanted.build().map_err(BoxError::from)?;
            let call = self.client.batch_get_item().request_items(&*self.name, wanted);
            let reply = call.send().await;
            let reply = reply.map_err(|error| self.failed("read", "dynamodb:BatchGetItem", error))?;
            for item in reply.responses.unwrap_or_default().into_values().flatten() {
                if let Some(name) = text(&item, key).map(str::to_owned) {
                    found.insert(name, item);
                }
            }
            let unprocessed = reply.unprocessed_keys.unwrap_or_default().into_values();
            left = unprocessed.flat_map(|table| table.keys).collect();
            if left.len() < asked {
                retries.reset();
            } else if retries.failures() >= THROTTLED {
                let error = format!(
                    "reads of the table {:?} are throttled; raise its read capacity",
                    self.name
                );
                return Err(TableError::Unavailable(error.into()));
            }
            if !left.is_empty() {
                sleep(retries.next_delay()).await;
            }
        }
        Ok(found)
    }
}
