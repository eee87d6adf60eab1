//! That there is a table, and that it is one for leases.

use std::time::Duration;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::error::ProvideErrorMetadata;
use aws_sdk_dynamodb::types::{
    AttributeDefinition, BillingMode, KeySchemaElement, KeyType, ScalarAttributeType, TableDescription,
    TableStatus,
};
use tokio::time::sleep;

use super::row::KEY;
use crate::failure::BoxError;
use crate::retry::Backoff;

/// Between looks at a table that is being made.
const LOOKS: Backoff = Backoff::exponential()
    .base(Duration::from_millis(20))
    .cap(Duration::from_secs(1));

/// Returns when the table can be used. It is made if there is none.
pub(super) async fn wait_for(client: &Client, name: &str) -> Result<(), BoxError> {
    for look in 0.. {
        match client.describe_table().table_name(name).send().await {
            Ok(reply) => {
                let table = reply.table.ok_or("DescribeTable told nothing")?;
                check(name, &table)?;
                match table.table_status {
                    Some(TableStatus::Active | TableStatus::Updating) => return Ok(()),
                    Some(TableStatus::Creating) => {}
                    status => return Err(format!("the table {name:?} cannot be used: {status:?}").into()),
                }
            }
            Err(error) if error.code() == Some("ResourceNotFoundException") => create(client, name).await?,
            Err(error) => return Err(error.into()),
        }
        sleep(LOOKS.delay(look)).await;
    }
    Ok(())
}

/// A table of another program must not get rows of ours.
fn check(name: &str, table: &TableDescription) -> Result<(), BoxError> {
    let keys = table.key_schema();
    match keys {
        [key] if key.attribute_name() == KEY && *key.key_type() == KeyType::Hash => Ok(()),
        _ => Err(format!(
            "the table {name:?} is no lease table: its key is {:?}, not {KEY:?}; choose another name",
            keys.iter()
                .map(KeySchemaElement::attribute_name)
                .collect::<Vec<_>>()
        )
        .into()),
    }
}

async fn create(client: &Client, name: &str) -> Result<(), BoxError> {
    let key = KeySchemaElement::builder()
        .attribute_name(KEY)
        .key_type(KeyType::Hash);
    let column = AttributeDefinition::builder()
        .attribute_name(KEY)
        .attribute_type(ScalarAttributeType::S);
    let created = client
        .create_table()
        .table_name(name)
        .billing_mode(BillingMode::PayPerRequest)
        .key_schema(key.build()?)
        .attribute_definitions(column.build()?)
        .send()
        .await;
    match created {
        Ok(_) => Ok(()),
        // Another process is making it.
        Err(error) if error.code() == Some("ResourceInUseException") => Ok(()),
        Err(error) => Err(error.into()),
    }
}
