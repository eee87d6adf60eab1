//! A ledger in DynamoDB.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::operation::put_item::PutItemError;
use aws_sdk_dynamodb::types::{AttributeValue, ReturnValuesOnConditionCheckFailure};
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};

use super::{Entry, Key, Ledger, LedgerError};
use crate::aws;
use crate::aws::table::attribute::{numeral, seconds, string, text};
use crate::aws::table::{Kind, MOST_KEYS, Table, TableError, is_condition_failure};
use crate::failure::BoxError;

/// Remembers entries in a DynamoDB table, for replays on several machines. The first call checks the table,
/// and creates a missing one (`PAY_PER_REQUEST`, key `id`, with time to live).
///
/// Items have an attribute `expiration` in seconds since 1970, 400 days after the write: longer than any
/// stream keeps a dead letter. If the table was not created by redrive, enable its time to live (TTL) on this
/// attribute to remove old items.
///
/// A dead letter costs up to two reads, and up to three writes.
///
/// # Permissions
///
/// `dynamodb:BatchGetItem`, `PutItem`, `DeleteItem`; also `DescribeTable` if redrive is to check the table,
/// and `CreateTable` and `UpdateTimeToLive` if redrive is to create it.
#[derive(Clone)]
pub struct DynamoDb {
    table: Arc<Table>,
}

const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// The maximum number of concurrent calls.
const CALLS: usize = 32;
const LOCK_TIME: Duration = Duration::from_secs(60);
/// The maximum difference between the clocks of two machines.
const CLOCK_SKEW: Duration = Duration::from_secs(10);
const KEPT: Duration = Duration::from_secs(400 * 24 * 60 * 60);

const KIND: Kind = Kind {
    what: "replay ledger",
    key: ID,
    expiration: Some(EXPIRATION),
    index: None,
};
const ID: &str = "id";
const ENTRY: &str = "entry";
const OWNER: &str = "owner";
const EXPIRATION: &str = "expiration";

impl DynamoDb {
    /// Creates a ledger in the table of this name.
    pub fn new(client: Client, table: impl Into<Arc<str>>) -> Self {
        let client = aws::dynamodb::with_timeout(&client, CALL_TIMEOUT);
        DynamoDb {
            table: Arc::new(Table::new(client, table.into(), KIND)),
        }
    }

    /// Returns the entries of at most [`MOST_KEYS`] keys.
    async fn get(&self, keys: &[Key]) -> Result<HashMap<String, Entry>, LedgerError> {
        let items = self.table.get_items(keys.iter().map(Key::as_str)).await?;
        let entries = items.into_iter().map(|(id, item)| {
            let entry = text(&item, ENTRY).ok_or("an item of the replay ledger has no attribute `entry`")?;
            Ok((id, serde_json::from_str(entry)?))
        });
        let entries: Result<_, BoxError> = entries.collect();
        entries.map_err(LedgerError::Unavailable)
    }

    async fn put(&self, key: &Key, entry: &Entry) -> Result<(), LedgerError> {
        let json = serde_json::to_string(entry).map_err(LedgerError::unavailable)?;
        let call = self.table.client().put_item().table_name(self.table.name());
        let call = call
            .item(ID, string(key.as_str()))
            .item(ENTRY, string(&json))
            .item(EXPIRATION, numeral(seconds(entry.at + KEPT)));
        let written = call.send().await;
        written.map_err(|error| self.table.failed("write to", "dynamodb:PutItem", error))?;
        Ok(())
    }
}

impl From<TableError> for LedgerError {
    fn from(error: TableError) -> Self {
        match error {
            TableError::Unavailable(error) => LedgerError::Unavailable(error),
            TableError::OfAnotherKind { .. } => LedgerError::Unusable(error.into()),
        }
    }
}

fn lock_id(source: &str) -> AttributeValue {
    string(&format!("lock/{source}"))
}

#[async_trait]
impl Ledger for DynamoDb {
    async fn look_up(&self, keys: &[Key]) -> Result<Vec<Option<Entry>>, LedgerError> {
        self.table.ready().await?;
        let calls: Vec<_> = keys.chunks(MOST_KEYS).map(|keys| self.get(keys)).collect();
        let found = stream::iter(calls).buffer_unordered(CALLS);
        let found: Vec<HashMap<String, Entry>> = found.try_collect().await?;
        let found: HashMap<String, Entry> = found.into_iter().flatten().collect();
        Ok(keys.iter().map(|key| found.get(key.as_str()).cloned()).collect())
    }

    async fn write(&self, entries: &[(Key, Entry)]) -> Result<(), LedgerError> {
        self.table.ready().await?;
        // The calls run concurrently, so that only the last entry of a key is written.
        let last: HashMap<&Key, &Entry> = entries.iter().map(|(key, entry)| (key, entry)).collect();
        let calls: Vec<_> = last
            .into_iter()
            .map(|(key, entry)| self.put(key, entry))
            .collect();
        let written = stream::iter(calls).buffer_unordered(CALLS);
        written.try_collect().await
    }

    async fn lock(&self, source: &str, owner: &str) -> Result<(), LedgerError> {
        self.table.ready().await?;
        let now = SystemTime::now();
        let call = self
            .table
            .client()
            .put_item()
            .table_name(self.table.name())
            .item(ID, lock_id(source))
            .item(OWNER, string(owner))
            .item(EXPIRATION, numeral(seconds(now + LOCK_TIME)))
            .condition_expression("attribute_not_exists(#id) OR #owner = :owner OR #expiration < :past")
            .expression_attribute_names("#id", ID)
            .expression_attribute_names("#owner", OWNER)
            .expression_attribute_names("#expiration", EXPIRATION)
            .expression_attribute_values(":owner", string(owner))
            .expression_attribute_values(":past", numeral(seconds(now - CLOCK_SKEW)))
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
        let Err(error) = call.send().await else {
            return Ok(());
        };
        match error.as_service_error() {
            Some(PutItemError::ConditionalCheckFailedException(held)) => {
                let holder = held.item().and_then(|item| text(item, OWNER));
                Err(LedgerError::Locked {
                    source_name: source.to_owned(),
                    owner: holder.unwrap_or_default().to_owned(),
                })
            }
            _ => Err(self.table.failed("write to", "dynamodb:PutItem", error).into()),
        }
    }

    async fn unlock(&self, source: &str, owner: &str) -> Result<(), LedgerError> {
        self.table.ready().await?;
        let call = self
            .table
            .client()
            .delete_item()
            .table_name(self.table.name())
            .key(ID, lock_id(source))
            .condition_expression("#owner = :owner")
            .expression_attribute_names("#owner", OWNER)
            .expression_attribute_values(":owner", string(owner));
        match call.send().await {
            Ok(_) => Ok(()),
            // Another owner has the lock by now.
            Err(error) if is_condition_failure(&error) => Ok(()),
            Err(error) => Err(self.table.failed("write to", "dynamodb:DeleteItem", error).into()),
        }
    }

    fn lock_time(&self) -> Option<Duration> {
        Some(LOCK_TIME)
    }
}

impl fmt::Debug for DynamoDb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DynamoDb")
            .field("table", &self.table.name())
            .finish_non_exhaustive()
    }
}
