//! A ledger in DynamoDB.

use std::collections::HashMap;
use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_dynamodb::operation::put_item::PutItemError;
use aws_sdk_dynamodb::types::{AttributeValue, ReturnValuesOnConditionCheckFailure};
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use tokio::sync::OnceCell;
use tokio::time::timeout;

use super::{Entry, Key, Ledger, LedgerError};
use crate::aws::{self, FailedCall, Located, table};
use crate::failure::BoxError;

/// Remembers entries in a DynamoDB table, for replays on several machines. If the table does not exist, the
/// first use creates it (`PAY_PER_REQUEST`, key `id`).
///
/// Items have an attribute `expiration` in seconds since 1970, 400 days after the write: longer than any
/// stream keeps a dead letter. Enable the table's time to live (TTL) on this attribute to remove old items.
///
/// A dead letter costs up to two reads, and up to three writes. Permissions: `dynamodb:BatchGetItem`,
/// `PutItem`, `DeleteItem` and `DescribeTable`; `CreateTable` to create the table.
#[derive(Clone)]
pub struct DynamoDb {
    client: Located<Client>,
    table: Arc<str>,
    ready: Arc<OnceCell<()>>,
}

const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// The maximum time to create the table, which takes seconds as a rule.
const CREATED_WITHIN: Duration = Duration::from_secs(120);
/// The maximum number of concurrent calls.
const CALLS: usize = 32;
const LOCK_TIME: Duration = Duration::from_secs(60);
/// The maximum difference between the clocks of two machines.
const CLOCK_SKEW: Duration = Duration::from_secs(10);
const KEPT: Duration = Duration::from_secs(400 * 24 * 60 * 60);

const ID: &str = "id";
const ENTRY: &str = "entry";
const OWNER: &str = "owner";
const EXPIRATION: &str = "expiration";

impl DynamoDb {
    /// Creates a ledger in the table with this name.
    pub fn new(client: Client, table: impl Into<Arc<str>>) -> Self {
        DynamoDb {
            client: aws::dynamodb::with_timeout(&client, CALL_TIMEOUT),
            table: table.into(),
            ready: Arc::default(),
        }
    }

    async fn ready(&self) -> Result<(), LedgerError> {
        let made = || async {
            let made = table::wait_for(&self.client, &self.table, ("replay ledger", ID));
            let made = timeout(CREATED_WITHIN, made).await;
            made.map_err(LedgerError::unavailable)?
                .map_err(LedgerError::unavailable)?;
            Ok(())
        };
        self.ready.get_or_try_init(made).await.copied()
    }

    /// Returns the entries of at most [`table::MOST_KEYS`] keys.
    async fn get(&self, keys: &[Key]) -> Result<HashMap<String, Entry>, BoxError> {
        let ids = keys.iter().map(Key::as_str);
        let items = table::get_items(&self.client, &self.table, ID, ids).await?;
        let entries = items.into_iter().map(|(id, item)| {
            let entry = item.get(ENTRY).and_then(|entry| entry.as_s().ok());
            let entry = entry.ok_or("an item of the replay ledger has no attribute `entry`")?;
            Ok((id, serde_json::from_str(entry)?))
        });
        entries.collect()
    }

    async fn put(&self, key: &Key, entry: &Entry) -> Result<(), BoxError> {
        let call = self
            .client
            .put_item()
            .table_name(&*self.table)
            .item(ID, text(key.as_str()))
            .item(ENTRY, text(&serde_json::to_string(entry)?))
            .item(EXPIRATION, seconds(entry.at + KEPT));
        let written = call.send().await;
        written.map_err(|error| self.failed("dynamodb:PutItem", error))?;
        Ok(())
    }

    fn failed<E, R>(&self, action: &'static str, error: SdkError<E, R>) -> FailedCall
    where
        E: Error + ProvideErrorMetadata + Send + Sync + 'static,
        R: fmt::Debug + Send + Sync + 'static,
    {
        let task = format!("write to the table {:?}", self.table);
        self.client.failed(task, action, error)
    }
}

fn text(text: &str) -> AttributeValue {
    AttributeValue::S(text.to_owned())
}

fn seconds(time: SystemTime) -> AttributeValue {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    AttributeValue::N(since.as_secs().to_string())
}

fn lock_id(source: &str) -> AttributeValue {
    text(&format!("lock/{source}"))
}

#[async_trait]
impl Ledger for DynamoDb {
    async fn look_up(&self, keys: &[Key]) -> Result<Vec<Option<Entry>>, LedgerError> {
        self.ready().await?;
        let calls: Vec<_> = keys.chunks(table::MOST_KEYS).map(|keys| self.get(keys)).collect();
        let found = stream::iter(calls).buffer_unordered(CALLS);
        let found: Vec<HashMap<String, Entry>> =
            found.try_collect().await.map_err(LedgerError::Unavailable)?;
        let found: HashMap<String, Entry> = found.into_iter().flatten().collect();
        Ok(keys.iter().map(|key| found.get(key.as_str()).cloned()).collect())
    }

    async fn write(&self, entries: &[(Key, Entry)]) -> Result<(), LedgerError> {
        self.ready().await?;
        let calls: Vec<_> = entries.iter().map(|(key, entry)| self.put(key, entry)).collect();
        let written = stream::iter(calls).buffer_unordered(CALLS);
        written.try_collect().await.map_err(LedgerError::Unavailable)
    }

    async fn lock(&self, source: &str, owner: &str) -> Result<(), LedgerError> {
        self.ready().await?;
        let now = SystemTime::now();
        let call = self
            .client
            .put_item()
            .table_name(&*self.table)
            .item(ID, lock_id(source))
            .item(OWNER, text(owner))
            .item(EXPIRATION, seconds(now + LOCK_TIME))
            .condition_expression("attribute_not_exists(#id) OR #owner = :owner OR #expiration < :past")
            .expression_attribute_names("#id", ID)
            .expression_attribute_names("#owner", OWNER)
            .expression_attribute_names("#expiration", EXPIRATION)
            .expression_attribute_values(":owner", text(owner))
            .expression_attribute_values(":past", seconds(now - CLOCK_SKEW))
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
        let Err(error) = call.send().await else {
            return Ok(());
        };
        match error.as_service_error() {
            Some(PutItemError::ConditionalCheckFailedException(held)) => {
                let holder = held.item().and_then(|item| item.get(OWNER)?.as_s().ok());
                Err(LedgerError::Locked {
                    source_name: source.to_owned(),
                    owner: holder.cloned().unwrap_or_default(),
                })
            }
            _ => Err(LedgerError::unavailable(self.failed("dynamodb:PutItem", error))),
        }
    }

    async fn unlock(&self, source: &str, owner: &str) -> Result<(), LedgerError> {
        let call = self
            .client
            .delete_item()
            .table_name(&*self.table)
            .key(ID, lock_id(source))
            .condition_expression("#owner = :owner")
            .expression_attribute_names("#owner", OWNER)
            .expression_attribute_values(":owner", text(owner));
        match call.send().await {
            Ok(_) => Ok(()),
            // Another owner has the lock by now.
            Err(error) if error.code() == Some("ConditionalCheckFailedException") => Ok(()),
            Err(error) => Err(LedgerError::unavailable(
                self.failed("dynamodb:DeleteItem", error),
            )),
        }
    }

    fn lock_time(&self) -> Option<Duration> {
        Some(LOCK_TIME)
    }
}

impl fmt::Debug for DynamoDb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DynamoDb")
            .field("table", &self.table)
            .finish_non_exhaustive()
    }
}
