//! DynamoDB tables: checks and creates a table, and reads its items by key.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::error::ProvideErrorMetadata;
use aws_sdk_dynamodb::types::{
    AttributeDefinition, AttributeValue, BillingMode, KeySchemaElement, KeyType, KeysAndAttributes,
    ScalarAttributeType, TableDescription, TableStatus,
};
use tokio::time::sleep;

use super::Located;
use crate::failure::BoxError;
use crate::protection::Backoff;

/// The delay between checks of a table that is being created, and between reads of unprocessed keys.
const LOOKS: Backoff = Backoff::exponential()
    .base(Duration::from_millis(20))
    .cap(Duration::from_secs(1));

/// The maximum number of keys that BatchGetItem takes (DynamoDB API reference).
pub(crate) const MOST_KEYS: usize = 100;
/// The number of calls in a row without a processed key after which a read fails.
const THROTTLED: u32 = 5;

pub(crate) type Item = HashMap<String, AttributeValue>;

/// Returns the items of these keys, by key; at most [`MOST_KEYS`] keys. Keys that DynamoDB does not process
/// are requested again.
///
/// # Errors
///
/// Returns an error if a call fails, or if DynamoDB processes none of the keys several times in a row.
pub(crate) async fn get_items(
    client: &Located<Client>,
    table: &str,
    key: &str,
    keys: impl IntoIterator<Item = &str>,
) -> Result<HashMap<String, Item>, BoxError> {
    let name = |item: &Item| Some(item.get(key)?.as_s().ok()?.clone());
    // DynamoDB rejects a request that names a key twice.
    let keys: BTreeSet<&str> = keys.into_iter().collect();
    let keys = keys.into_iter();
    let mut left: Vec<Item> = keys
        .map(|value| Item::from([(key.to_owned(), AttributeValue::S(value.to_owned()))]))
        .collect();
    let mut found = HashMap::with_capacity(left.len());
    let mut refusals = 0;
    while !left.is_empty() {
        let asked = left.len();
        let wanted = KeysAndAttributes::builder()
            .set_keys(Some(left))
            .consistent_read(true);
        let call = client.batch_get_item().request_items(table, wanted.build()?);
        let reply = call.send().await;
        let read = |error| {
            client.failed(
                format!("read the table {table:?}"),
                "dynamodb:BatchGetItem",
                error,
            )
        };
        let reply = reply.map_err(read)?;
        for item in reply.responses.unwrap_or_default().into_values().flatten() {
            if let Some(name) = name(&item) {
                found.insert(name, item);
            }
        }
        let unprocessed = reply.unprocessed_keys.unwrap_or_default().into_values();
        left = unprocessed.flat_map(|table| table.keys).collect();
        if left.len() < asked {
            refusals = 0;
        } else {
            refusals += 1;
            if refusals >= THROTTLED {
                return Err(
                    format!("reads of the table {table:?} are throttled; raise its read capacity").into(),
                );
            }
        }
        if !left.is_empty() {
            sleep(LOOKS.delay(refusals)).await;
        }
    }
    Ok(found)
}

/// The reason why a table cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TableError {
    /// A call failed, or the table is not ready.
    #[error(transparent)]
    Unavailable(#[from] BoxError),
    /// The table belongs to another program.
    #[error("the table {name:?} is not a {what}: its key is {keys:?}, not {key:?}; choose another name")]
    OfAnotherKind {
        name: String,
        what: &'static str,
        keys: Vec<String>,
        key: &'static str,
    },
}

/// Waits until the table is usable, and creates a missing table with this key. Returns true if this call
/// created the table. `what` names the kind of table in errors.
pub(crate) async fn wait_for(
    client: &Located<Client>,
    name: &str,
    (what, key): (&'static str, &'static str),
) -> Result<bool, TableError> {
    let mut made = false;
    for look in 0.. {
        match client.describe_table().table_name(name).send().await {
            Ok(reply) => {
                let table = reply
                    .table
                    .ok_or_else(|| BoxError::from("DescribeTable returned no table"))?;
                check(name, (what, key), &table)?;
                match table.table_status {
                    Some(TableStatus::Active | TableStatus::Updating) => return Ok(made),
                    Some(TableStatus::Creating) => {}
                    status => {
                        let status = format!("the table {name:?} cannot be used: its status is {status:?}");
                        return Err(TableError::Unavailable(status.into()));
                    }
                }
            }
            Err(error) if error.code() == Some("ResourceNotFoundException") => {
                made |= create(client, name, key).await?;
            }
            Err(error) => {
                let failed = client.failed(
                    format!("describe the table {name:?}"),
                    "dynamodb:DescribeTable",
                    error,
                );
                return Err(TableError::Unavailable(failed.into()));
            }
        }
        sleep(LOOKS.delay(look)).await;
    }
    Ok(made)
}

/// Refuses the table of another program, which must not get rows of redrive.
fn check(
    name: &str,
    (what, key): (&'static str, &'static str),
    table: &TableDescription,
) -> Result<(), TableError> {
    let keys = table.key_schema();
    match keys {
        [found] if found.attribute_name() == key && *found.key_type() == KeyType::Hash => Ok(()),
        _ => Err(TableError::OfAnotherKind {
            name: name.to_owned(),
            what,
            keys: keys.iter().map(|key| key.attribute_name().to_owned()).collect(),
            key,
        }),
    }
}

/// Creates the table. Returns false if another process is creating it.
async fn create(client: &Located<Client>, name: &str, key: &str) -> Result<bool, BoxError> {
    let schema = KeySchemaElement::builder()
        .attribute_name(key)
        .key_type(KeyType::Hash);
    let column = AttributeDefinition::builder()
        .attribute_name(key)
        .attribute_type(ScalarAttributeType::S);
    let created = client
        .create_table()
        .table_name(name)
        .billing_mode(BillingMode::PayPerRequest)
        .key_schema(schema.build()?)
        .attribute_definitions(column.build()?)
        .send()
        .await;
    match created {
        Ok(_) => Ok(true),
        Err(error) if error.code() == Some("ResourceInUseException") => Ok(false),
        Err(error) => {
            let failed = client.failed(
                format!("create the table {name:?}"),
                "dynamodb:CreateTable",
                error,
            );
            Err(failed.into())
        }
    }
}
