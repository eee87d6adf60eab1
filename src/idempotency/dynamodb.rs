//! An idempotency store in DynamoDB, with the items of Powertools for AWS Lambda.

use std::borrow::Cow;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::operation::update_item::UpdateItemError;
use aws_sdk_dynamodb::operation::update_item::builders::UpdateItemFluentBuilder;
use aws_sdk_dynamodb::types::{ReturnValue, ReturnValuesOnConditionCheckFailure};
use futures_util::stream::{self, StreamExt};

use super::{CLOCK_SKEW, Claim, Claimed, Completion, IdempotencyStore, Key, PayloadHash, Status, StoreError};
use crate::aws;
use crate::aws::table::attribute::{Item, millis, number, numeral, seconds, string, text};
use crate::aws::table::{Kind, MOST_KEYS, Table, TableError, is_condition_failure};
use crate::external::failed_alike;

/// Remembers processed records in a DynamoDB table, for all processes and functions that use the table.
///
/// ```no_run
/// # fn example(dynamo: aws_sdk_dynamodb::Client) {
/// use redrive::idempotency;
///
/// let seen = idempotency::DynamoDb::new(dynamo, "orders-seen");
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
/// The first call checks the table, and creates a missing one (`PAY_PER_REQUEST`, key `id`, with time to
/// live).
///
/// A record costs two writes, a duplicate costs one, and each failed attempt costs one more.
///
/// # Permissions
///
/// `dynamodb:UpdateItem`, `DeleteItem`, `GetItem`, `BatchGetItem`; also `DescribeTable` if redrive is to check
/// the table, and `CreateTable` and `UpdateTimeToLive` if redrive is to create it.
#[derive(Clone)]
pub struct DynamoDb {
    table: Arc<Table>,
}

const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// The maximum number of concurrent calls for one batch of keys.
const CALLS: usize = 64;

const KIND: Kind = Kind {
    what: "table of idempotency keys",
    key: ID,
    expiration: Some(EXPIRATION),
    index: None,
};
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
    /// Creates a store in the table of this name.
    pub fn new(client: Client, table: impl Into<Arc<str>>) -> Self {
        let client = aws::dynamodb::without_retries(&client, CALL_TIMEOUT);
        DynamoDb {
            table: Arc::new(Table::new(client, table.into(), KIND)),
        }
    }

    /// Makes these calls concurrently, once the table is usable.
    async fn all<T>(
        &self,
        calls: Vec<impl Future<Output = Result<T, StoreError>>>,
    ) -> Vec<Result<T, StoreError>> {
        match self.table.ready().await {
            Ok(()) => stream::iter(calls).buffered(CALLS).collect().await,
            Err(error) => failed(calls.len(), error),
        }
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
            .expression_attribute_values(":now", numeral(seconds(claim.now)));
        let call = match claim.replaces {
            Some(replaces) => call.expression_attribute_values(":replaces", string(&replaces.to_string())),
            None => call,
        };
        let there = match self.granted(claim, call).await? {
            Ok(granted) => return Ok(granted),
            Err(there) => there,
        };
        let expired_before = claim.now.checked_sub(CLOCK_SKEW);
        let expired_before = expired_before.unwrap_or(SystemTime::UNIX_EPOCH);
        let abandoned = match there {
            Status::InProgress { expires, .. } => expires < expired_before,
            Status::Completed { .. } => false,
        };
        if !abandoned {
            return Ok(there.into());
        }
        let call = self.claiming(claim, " ADD #abandoned :one");
        let call = call
            .condition_expression("#status = :in_progress AND #in_progress < :expired_before")
            .expression_attribute_names("#abandoned", ABANDONED)
            .expression_attribute_values(":one", numeral(1))
            .expression_attribute_values(":expired_before", numeral(millis(expired_before)));
        let granted = self.granted(claim, call).await?;
        Ok(granted.unwrap_or_else(Claimed::from))
    }

    /// Builds the write that claims the key, without its condition. `and` is appended to the update
    /// expression.
    fn claiming(&self, claim: &Claim, and: &str) -> UpdateItemFluentBuilder {
        let payload = match claim.payload {
            Some(_) => ", #validation = :validation REMOVE #data",
            None => " REMOVE #data, #validation",
        };
        let call = self.table.client().update_item()
            .table_name(self.table.name())
            .key(ID, string(claim.key.as_str()))
            .update_expression(format!(
                "SET #status = :in_progress, #expiration = :keep_until, #in_progress = :expires, #owner = :owner{payload}{and}"
            ))
            .expression_attribute_names("#status", STATUS)
            .expression_attribute_names("#expiration", EXPIRATION)
            .expression_attribute_names("#in_progress", IN_PROGRESS)
            .expression_attribute_names("#owner", OWNER)
            .expression_attribute_names("#validation", VALIDATION)
            .expression_attribute_names("#data", DATA)
            .expression_attribute_values(":in_progress", string("INPROGRESS"))
            .expression_attribute_values(":keep_until", numeral(seconds(claim.keep_until)))
            .expression_attribute_values(":expires", numeral(millis(claim.expires)))
            .expression_attribute_values(":owner", string(&claim.owner.to_string()))
            .return_values(ReturnValue::AllNew)
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
        match claim.payload {
            Some(payload) => call.expression_attribute_values(":validation", string(&payload.to_string())),
            None => call,
        }
    }

    /// Sends the write that `claiming` has built. The inner error is the status of a key for which the
    /// condition does not hold.
    async fn granted(
        &self,
        claim: &Claim,
        call: UpdateItemFluentBuilder,
    ) -> Result<Result<Claimed, Status>, StoreError> {
        let refused = match call.send().await {
            Ok(reply) => {
                let abandoned = abandoned(&reply.attributes.unwrap_or_default());
                return Ok(Ok(Claimed::Granted { abandoned }));
            }
            Err(error) if is_condition_failure(&error) => error.into_service_error(),
            Err(error) => return Err(self.table.failed("write to", "dynamodb:UpdateItem", error).into()),
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
            Some(item) => status(&claim.key, &item)?,
            // The item was deleted meanwhile: the caller claims the key again.
            None => Status::InProgress {
                expires: claim.now,
                abandoned: 0,
            },
        }))
    }

    async fn read(&self, key: &Key) -> Result<Option<Item>, StoreError> {
        let call = self.table.client().get_item().table_name(self.table.name());
        let call = call.key(ID, string(key.as_str())).consistent_read(true);
        let reply = call.send().await;
        let reply = reply.map_err(|error| self.table.failed("read", "dynamodb:GetItem", error))?;
        Ok(reply.item)
    }

    async fn complete_one(&self, claim: &Claim) -> Result<Completion, StoreError> {
        let set = match claim.payload {
            Some(_) => ", #validation = :validation",
            None => "",
        };
        let mut call = self
            .table
            .client()
            .update_item()
            .table_name(self.table.name())
            .key(ID, string(claim.key.as_str()))
            .update_expression(format!(
                "SET #status = :completed, #expiration = :keep_until, #owner = :owner{set} REMOVE #abandoned"
            ))
            .condition_expression("attribute_not_exists(#id) OR #owner = :owner")
            .expression_attribute_names("#id", ID)
            .expression_attribute_names("#status", STATUS)
            .expression_attribute_names("#expiration", EXPIRATION)
            .expression_attribute_names("#owner", OWNER)
            .expression_attribute_names("#abandoned", ABANDONED)
            .expression_attribute_values(":completed", string("COMPLETED"))
            .expression_attribute_values(":keep_until", numeral(seconds(claim.keep_until)))
            .expression_attribute_values(":owner", string(&claim.owner.to_string()));
        if let Some(payload) = claim.payload {
            call = call
                .expression_attribute_names("#validation", VALIDATION)
                .expression_attribute_values(":validation", string(&payload.to_string()));
        }
        match call.send().await {
            Ok(_) => Ok(Completion::Stored),
            Err(error) if is_condition_failure(&error) => Ok(Completion::Lost),
            Err(error) => Err(self.table.failed("write to", "dynamodb:UpdateItem", error).into()),
        }
    }

    async fn release_one(&self, claim: &Claim) -> Result<(), StoreError> {
        let call = self
            .table
            .client()
            .delete_item()
            .table_name(self.table.name())
            .key(ID, string(claim.key.as_str()))
            .condition_expression("#status = :in_progress AND #owner = :owner")
            .expression_attribute_names("#status", STATUS)
            .expression_attribute_names("#owner", OWNER)
            .expression_attribute_values(":in_progress", string("INPROGRESS"))
            .expression_attribute_values(":owner", string(&claim.owner.to_string()));
        match call.send().await {
            Ok(_) => Ok(()),
            Err(error) if is_condition_failure(&error) => Ok(()),
            Err(error) => Err(self.table.failed("write to", "dynamodb:DeleteItem", error).into()),
        }
    }
}

#[async_trait]
impl IdempotencyStore for DynamoDb {
    async fn claim(&self, claims: &[Claim]) -> Vec<Result<Claimed, StoreError>> {
        self.all(claims.iter().map(|claim| self.claim_one(claim)).collect())
            .await
    }

    async fn complete(&self, claims: &[Claim]) -> Vec<Result<Completion, StoreError>> {
        self.all(claims.iter().map(|claim| self.complete_one(claim)).collect())
            .await
    }

    async fn release(&self, claims: &[Claim]) -> Vec<Result<(), StoreError>> {
        self.all(claims.iter().map(|claim| self.release_one(claim)).collect())
            .await
    }

    async fn status(&self, keys: &[Key], now: SystemTime) -> Vec<Result<Option<Status>, StoreError>> {
        if let Err(error) = self.table.ready().await {
            return failed(keys.len(), error);
        }
        let chunks = keys.chunks(MOST_KEYS);
        let read = chunks.map(|keys| self.table.get_items(keys.iter().map(Key::as_str)));
        let calls: Vec<_> = read.collect();
        let read: Vec<_> = stream::iter(calls).buffered(CALLS).collect().await;
        let mut results = Vec::with_capacity(keys.len());
        for (keys, items) in keys.chunks(MOST_KEYS).zip(read) {
            match items {
                Ok(items) => results.extend(keys.iter().map(|key| match items.get(key.as_str()) {
                    Some(item) if number_of(item, EXPIRATION).is_none_or(|until| until >= seconds(now)) => {
                        status(key, item).map(Some)
                    }
                    _ => Ok(None),
                })),
                Err(error) => results.extend(failed(keys.len(), error)),
            }
        }
        results
    }

    fn name(&self) -> Cow<'_, str> {
        format!("dynamodb:{}", self.table.name()).into()
    }
}

impl fmt::Debug for DynamoDb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DynamoDb")
            .field("table", &self.table.name())
            .finish_non_exhaustive()
    }
}

impl From<TableError> for StoreError {
    fn from(error: TableError) -> Self {
        match error {
            TableError::Unavailable(error) => StoreError::Unavailable(error),
            TableError::OfAnotherKind { .. } => StoreError::Unusable(error.into()),
        }
    }
}

/// Returns the same error for each of `count` keys.
fn failed<T>(count: usize, error: TableError) -> Vec<Result<T, StoreError>> {
    match error {
        TableError::Unavailable(error) => failed_alike(count, error, StoreError::Unavailable),
        error => failed_alike(count, error, StoreError::Unusable),
    }
}

/// Returns the status that an item of redrive or Powertools states.
fn status(key: &Key, item: &Item) -> Result<Status, StoreError> {
    let corrupt = |what: &str| StoreError::Corrupt {
        key: key.clone(),
        source: what.into(),
    };
    match text(item, STATUS) {
        Some("COMPLETED") => Ok(Status::Completed {
            // Powertools uses another hash, and may hash only a part of the payload: its value is ignored.
            payload: text(item, VALIDATION).and_then(PayloadHash::from_hex),
        }),
        Some("INPROGRESS") => {
            let expires = number_of(item, IN_PROGRESS).map(Duration::from_millis);
            let expires = expires.or_else(|| number_of(item, EXPIRATION).map(Duration::from_secs));
            let expires = expires.and_then(|since| SystemTime::UNIX_EPOCH.checked_add(since));
            let expires = expires.ok_or_else(|| corrupt("the item is in progress and has no expiry"))?;
            Ok(Status::InProgress {
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
    number(item, attribute).ok().flatten()
}
