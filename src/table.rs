//! That there is a DynamoDB table, and that it is not another program's.

use std::time::Duration;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::error::ProvideErrorMetadata;
use aws_sdk_dynamodb::types::{
    AttributeDefinition, BillingMode, KeySchemaElement, KeyType, ScalarAttributeType, TableDescription,
    TableStatus,
};
use tokio::time::sleep;

use crate::failure::BoxError;
use crate::retry::Backoff;

/// Between looks at a table that is being made.
const LOOKS: Backoff = Backoff::exponential()
    .base(Duration::from_millis(20))
    .cap(Duration::from_secs(1));

/// Returns when the table can be used. It is made if there is none, with rows of this key: whether it was. `what`: it
/// must be, for an error.
pub(crate) async fn wait_for(
    client: &Client,
    name: &str,
    (what, key): (&str, &str),
) -> Result<bool, BoxError> {
    let mut made = false;
    for look in 0.. {
        match client.describe_table().table_name(name).send().await {
            Ok(reply) => {
                let table = reply.table.ok_or("DescribeTable told nothing")?;
                check(name, (what, key), &table)?;
                match table.table_status {
                    Some(TableStatus::Active | TableStatus::Updating) => return Ok(made),
                    Some(TableStatus::Creating) => {}
                    status => return Err(format!("the table {name:?} cannot be used: {status:?}").into()),
                }
            }
            Err(error) if error.code() == Some("ResourceNotFoundException") => {
                made |= create(client, name, key).await?;
            }
            Err(error) => return Err(error.into()),
        }
        sleep(LOOKS.delay(look)).await;
    }
    Ok(made)
}

/// A table of another program must not get rows of ours.
fn check(name: &str, (what, key): (&str, &str), table: &TableDescription) -> Result<(), BoxError> {
    let keys = table.key_schema();
    match keys {
        [found] if found.attribute_name() == key && *found.key_type() == KeyType::Hash => Ok(()),
        _ => Err(format!(
            "the table {name:?} is no {what}: its key is {:?}, not {key:?}; choose another name",
            keys.iter()
                .map(KeySchemaElement::attribute_name)
                .collect::<Vec<_>>()
        )
        .into()),
    }
}

/// Whether it was not there.
async fn create(client: &Client, name: &str, key: &str) -> Result<bool, BoxError> {
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
        // Another process is making it.
        Err(error) if error.code() == Some("ResourceInUseException") => Ok(false),
        Err(error) => Err(error.into()),
    }
}
