//! An idempotency store in DynamoDB, with the items of Powertools for AWS Lambda.

use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_dynamodb::operation::update_item::UpdateItemError;
use aws_sdk_dynamodb::operation::update_item::builders::UpdateItemFluentBuilder;
use aws_sdk_dynamodb::types::{
    AttributeValue, ReturnValue, ReturnValuesOnConditionCheckFailure, TimeToLiveSpecification,
};
use futures_util::stream::{self, StreamExt};
use tokio::time::timeout;

use super::{CLOCK_SKEW, Claim, Claimed, Completion, IdempotencyStore, Key, PayloadHash, StoreError};
use crate::aws::table::Item;
use crate::aws::{self, Located, table};
use crate::external::failed_alike;

/// Remembers processed records in a DynamoDB table, for all processes and functions that use the table.
///
/// ```no_run
/// # async fn example(dynamo: aws_sdk_dynamodb::Client) -> Result<(), Box<dyn std::error::Error>> {
/// use redrive::idempotency;
///
/// let seen = idempotency::DynamoDb::new(dynamo, "orders-seen");
/// seen.create_table().await?; // does nothing if the table exists
/// # Ok(())
/// # }
/// ```
///
/// The items are those of
/// [Powertools for AWS Lambda](https://docs.powertools.aws.dev/lambda/python/latest/utilities/idempotency/)
/// (`id`, `status`, `expiration`, `in_progress_expiration`, `validation`), with two more attributes,
/// `redriveOwner` and `redriveAbandoned`. redrive and Powertools can read each other's items. `expiration` is
/// for the table's time to live.
///
/// redrive uses the client's region, endpoint, credentials and HTTP stack. Retries are redrive's own, and a
/// call may take 5 s unless the client sets a timeout.
///
/// A record costs two writes, a duplicate costs one, and each failed attempt costs one more. The store needs
/// the permissions `dynamodb:UpdateItem`, `DeleteItem`, `GetItem` and `BatchGetItem`. To create the table it
/// also needs `CreateTable`, `DescribeTable` and `UpdateTimeToLive`.
#[derive(Clone)]
pub struct DynamoDb {
    client: Located<Client>,
    table: Arc<str>,
}

const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// The maximum number of concurrent calls for one batch of keys.
const CALLS: usize = 64;
/// The maximum time in which a table is created. DynamoDB needs seconds.
const CREATED_WITHIN: Duration = Duration::from_secs(120);

const ID: &str = "id";
const STATUS: &str = "status";
const EXPIRATION: &str = "expiration";
const IN_PROGRESS: &str = "in_progress_expiration";
const VALIDATION: &str = "validation";
/// The attribute in which Powertools keeps the result of the function.
const DATA: &str = "data";
const OWNER: &str = "redriveOwner";
const ABANDONED: &str = "redriveAbandoned";

impl DynamoDb {
    /// Creates a store in the table of this name, which must exist.
    pub fn new(client: Client, table: impl Into<String>) -> Self {
        DynamoDb {
            client: aws::dynamodb::without_retries(&client, CALL_TIMEOUT),
            table: table.into().into(),
        }
    }

    /// Creates the table if it is missing (`PAY_PER_REQUEST`, with time to live), and waits until it is
    /// usable.
    ///
    /// # Errors
    ///
    /// Returns an error if a table of that name has another key, if a call fails, or if the table is not
    /// usable within 120 s.
    pub async fn create_table(&self) -> Result<(), StoreError> {
        let made = timeout(
            CREATED_WITHIN,
            table::wait_for(&self.client, &self.table, ("table of idempotency keys", ID)),
        )
        .await;
        if !made
            .map_err(StoreError::unavailable)?
            .map_err(StoreError::unavailable)?
        {
            return Ok(());
        }
        let forget = TimeToLiveSpecification::builder()
            .attribute_name(EXPIRATION)
            .enabled(true)
            .build();
        let call = self.client.update_time_to_live().table_name(&*self.table);
        let call = call.time_to_live_specification(forget.map_err(StoreError::unavailable)?);
        let updated = call.send().await;
        updated.map_err(|error| self.failed("change", "dynamodb:UpdateTimeToLive", error))?;
        Ok(())
    }

    fn failed<E, R>(&self, verb: &str, action: &'static str, error: SdkError<E, R>) -> StoreError
    where
        E: Error + ProvideErrorMetadata + Send + Sync + 'static,
        R: fmt::Debug + Send + Sync + 'static,
    {
        let task = format!("{verb} the table {:?}", self.table);
        StoreError::unavailable(self.client.failed(task, action, error))
    }

    async fn claim_one(&self, claim: &Claim) -> Result<Claimed, StoreError> {
        let mut own = "#owner = :owner AND #in_progress <= :expires".to_owned();
        if claim.replaces.is_some() {
            own.push_str(" OR #owner = :replaces");
        }
        let condition = format!(
            "attribute_not_exists(#id) OR #expiration < :now OR (#status = :in_progress AND ({own}))"
        );
        let call = self.claiming(claim, "");
        let call = call
            .condition_expression(condition)
            .expression_attribute_names("#id", ID)
            .expression_attribute_values(":now", number(seconds(claim.now)));
        let call = match claim.replaces {
            Some(replaces) => call.expression_attribute_values(":replaces", text(&replaces.to_string())),
            None => call,
        };
        let there = match self.granted(claim, call).await? {
            Ok(granted) => return Ok(granted),
            Err(there) => there,
        };
        let expired_before = claim.now.checked_sub(CLOCK_SKEW);
        let expired_before = expired_before.unwrap_or(SystemTime::UNIX_EPOCH);
        let abandoned = match there {
            Claimed::InProgress { expires, .. } => expires < expired_before,
            _ => false,
        };
        if !abandoned {
            return Ok(there);
        }
        let call = self.claiming(claim, " ADD #abandoned :one");
        let call = call
            .condition_expression("#status = :in_progress AND #in_progress < :expired_before")
            .expression_attribute_names("#abandoned", ABANDONED)
            .expression_attribute_values(":one", number(1))
            .expression_attribute_values(":expired_before", number(millis(expired_before)));
        let granted = self.granted(claim, call).await?;
        Ok(granted.unwrap_or_else(|there| there))
    }

    /// Builds the write that claims the key, without its condition. `and` is appended to the update
    /// expression.
    fn claiming(&self, claim: &Claim, and: &str) -> UpdateItemFluentBuilder {
        let payload = match claim.payload {
            Some(_) => ", #validation = :validation REMOVE #data",
            None => " REMOVE #data, #validation",
        };
        let call = self
            .client
            .update_item()
            .table_name(&*self.table)
            .key(ID, text(claim.key.as_str()))
            .update_expression(format!(
                "SET #status = :in_progress, #expiration = :keep_until, #in_progress = :expires, #owner = :owner{payload}{and}"
            ))
            .expression_attribute_names("#status", STATUS)
            .expression_attribute_names("#expiration", EXPIRATION)
            .expression_attribute_names("#in_progress", IN_PROGRESS)
            .expression_attribute_names("#owner", OWNER)
            .expression_attribute_names("#validation", VALIDATION)
            .expression_attribute_names("#data", DATA)
            .expression_attribute_values(":in_progress", text("INPROGRESS"))
            .expression_attribute_values(":keep_until", number(seconds(claim.keep_until)))
            .expression_attribute_values(":expires", number(millis(claim.expires)))
            .expression_attribute_values(":owner", text(&claim.owner.to_string()))
            .return_values(ReturnValue::AllNew)
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
        match claim.payload {
            Some(payload) => call.expression_attribute_values(":validation", text(&payload.to_string())),
            None => call,
        }
    }

    /// Sends the write that `claiming` has built. The inner error is the status of a key for which the
    /// condition does not hold.
    async fn granted(
        &self,
        claim: &Claim,
        call: UpdateItemFluentBuilder,
    ) -> Result<Result<Claimed, Claimed>, StoreError> {
        let refused = match call.send().await {
            Ok(reply) => {
                let abandoned = abandoned(&reply.attributes.unwrap_or_default());
                return Ok(Ok(Claimed::Granted { abandoned }));
            }
            Err(error) if is_refused(&error) => error.into_service_error(),
            Err(error) => return Err(self.failed("write to", "dynamodb:UpdateItem", error)),
        };
        let there = match refused {
            UpdateItemError::ConditionalCheckFailedException(error) => error.item,
            _ => None,
        };
        let there = match there {
            Some(item) => Some(item),
            None => self.read(&claim.key).await?,
        };
        Ok(Err(match there {
            Some(item) => state(&claim.key, &item)?,
            // The item was deleted meanwhile: the caller claims the key again.
            None => Claimed::InProgress {
                expires: claim.now,
                abandoned: 0,
            },
        }))
    }

    async fn read(&self, key: &Key) -> Result<Option<Item>, StoreError> {
        let call = self.client.get_item().table_name(&*self.table);
        let call = call.key(ID, text(key.as_str())).consistent_read(true);
        let reply = call.send().await;
        let reply = reply.map_err(|error| self.failed("read", "dynamodb:GetItem", error))?;
        Ok(reply.item)
    }

    async fn complete_one(&self, claim: &Claim) -> Result<Completion, StoreError> {
        let set = match claim.payload {
            Some(_) => ", #validation = :validation",
            None => "",
        };
        let mut call = self
            .client
            .update_item()
            .table_name(&*self.table)
            .key(ID, text(claim.key.as_str()))
            .update_expression(format!(
                "SET #status = :completed, #expiration = :keep_until, #owner = :owner{set} REMOVE #abandoned"
            ))
            .condition_expression("attribute_not_exists(#id) OR #owner = :owner")
            .expression_attribute_names("#id", ID)
            .expression_attribute_names("#status", STATUS)
            .expression_attribute_names("#expiration", EXPIRATION)
            .expression_attribute_names("#owner", OWNER)
            .expression_attribute_names("#abandoned", ABANDONED)
            .expression_attribute_values(":completed", text("COMPLETED"))
            .expression_attribute_values(":keep_until", number(seconds(claim.keep_until)))
            .expression_attribute_values(":owner", text(&claim.owner.to_string()));
        if let Some(payload) = claim.payload {
            call = call
                .expression_attribute_names("#validation", VALIDATION)
                .expression_attribute_values(":validation", text(&payload.to_string()));
        }
        match call.send().await {
            Ok(_) => Ok(Completion::Stored),
            Err(error) if is_refused(&error) => Ok(Completion::Lost),
            Err(error) => Err(self.failed("write to", "dynamodb:UpdateItem", error)),
        }
    }

    async fn release_one(&self, claim: &Claim) -> Result<(), StoreError> {
        let call = self
            .client
            .delete_item()
            .table_name(&*self.table)
            .key(ID, text(claim.key.as_str()))
            .condition_expression("#status = :in_progress AND #owner = :owner")
            .expression_attribute_names("#status", STATUS)
            .expression_attribute_names("#owner", OWNER)
            .expression_attribute_values(":in_progress", text("INPROGRESS"))
            .expression_attribute_values(":owner", text(&claim.owner.to_string()));
        match call.send().await {
            Err(error) if !is_refused(&error) => Err(self.failed("write to", "dynamodb:DeleteItem", error)),
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl IdempotencyStore for DynamoDb {
    async fn claim(&self, claims: &[Claim]) -> Vec<Result<Claimed, StoreError>> {
        let calls: Vec<_> = claims.iter().map(|claim| self.claim_one(claim)).collect();
        stream::iter(calls).buffered(CALLS).collect().await
    }

    async fn complete(&self, claims: &[Claim]) -> Vec<Result<Completion, StoreError>> {
        let calls: Vec<_> = claims.iter().map(|claim| self.complete_one(claim)).collect();
        stream::iter(calls).buffered(CALLS).collect().await
    }

    async fn release(&self, claims: &[Claim]) -> Vec<Result<(), StoreError>> {
        let calls: Vec<_> = claims.iter().map(|claim| self.release_one(claim)).collect();
        stream::iter(calls).buffered(CALLS).collect().await
    }

    async fn status(&self, keys: &[Key], now: SystemTime) -> Vec<Result<Option<Claimed>, StoreError>> {
        let chunks = keys.chunks(table::MOST_KEYS);
        let read = chunks.map(|keys| {
            let keys = keys.iter().map(Key::as_str);
            table::get_items(&self.client, &self.table, ID, keys)
        });
        let calls: Vec<_> = read.collect();
        let read: Vec<_> = stream::iter(calls).buffered(CALLS).collect().await;
        let mut results = Vec::with_capacity(keys.len());
        for (keys, items) in keys.chunks(table::MOST_KEYS).zip(read) {
            match items {
                Ok(items) => results.extend(keys.iter().map(|key| match items.get(key.as_str()) {
                    Some(item) if number_of(item, EXPIRATION).is_none_or(|until| until >= seconds(now)) => {
                        state(key, item).map(Some)
                    }
                    _ => Ok(None),
                })),
                Err(error) => results.extend(failed_alike(keys.len(), error, StoreError::unavailable)),
            }
        }
        results
    }

    fn name(&self) -> Cow<'_, str> {
        format!("dynamodb:{}", self.table).into()
    }
}

impl fmt::Debug for DynamoDb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DynamoDb")
            .field("table", &self.table)
            .finish_non_exhaustive()
    }
}

fn is_refused(error: &impl ProvideErrorMetadata) -> bool {
    error.code() == Some("ConditionalCheckFailedException")
}

/// Returns the status that an item of redrive or Powertools states.
fn state(key: &Key, item: &Item) -> Result<Claimed, StoreError> {
    let corrupt = |what: &str| StoreError::Corrupt {
        key: key.clone(),
        source: what.into(),
    };
    let status = item.get(STATUS).and_then(|status| status.as_s().ok());
    match status.map(String::as_str) {
        Some("COMPLETED") => {
            let validation = item.get(VALIDATION).and_then(|hash| hash.as_s().ok());
            Ok(Claimed::Completed {
                // Powertools uses another hash, and may hash only a part of the payload: its value is
                // ignored.
                payload: validation.and_then(|hash| PayloadHash::from_hex(hash)),
            })
        }
        Some("INPROGRESS") => {
            let expires = number_of(item, IN_PROGRESS).map(Duration::from_millis);
            let expires = expires.or_else(|| number_of(item, EXPIRATION).map(Duration::from_secs));
            let expires = expires.and_then(|since| SystemTime::UNIX_EPOCH.checked_add(since));
            let expires = expires.ok_or_else(|| corrupt("the item is in progress and has no expiry"))?;
            Ok(Claimed::InProgress {
                expires,
                abandoned: abandoned(item),
            })
        }
        _ => Err(corrupt("the item's status is neither INPROGRESS nor COMPLETED")),
    }
}

fn abandoned(item: &Item) -> u32 {
    let count = number_of(item, ABANDONED).unwrap_or_default();
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn number_of(item: &Item, attribute: &str) -> Option<u64> {
    item.get(attribute)?.as_n().ok()?.parse().ok()
}

fn text(text: &str) -> AttributeValue {
    AttributeValue::S(text.to_owned())
}

fn number(number: impl ToString) -> AttributeValue {
    AttributeValue::N(number.to_string())
}

fn seconds(time: SystemTime) -> u64 {
    since_1970(time).as_secs()
}

fn millis(time: SystemTime) -> u128 {
    since_1970(time).as_millis()
}

fn since_1970(time: SystemTime) -> Duration {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}
