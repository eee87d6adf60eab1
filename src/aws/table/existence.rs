//! The existence of a table: checks the table, and creates a missing one.

use std::sync::atomic::Ordering;
use std::time::Duration;

use aws_sdk_dynamodb::error::ProvideErrorMetadata;
use aws_sdk_dynamodb::types::{
    AttributeDefinition, BillingMode, GlobalSecondaryIndex, KeySchemaElement, KeyType, Projection,
    ProjectionType, ScalarAttributeType, TableDescription, TableStatus,
};
use tokio::time::{sleep, timeout};

use super::{LOOKS, Table, TableError};
use crate::failure::BoxError;
use crate::protection::RetryTimer;
use crate::protection::retry::seeded_rng;

/// The maximum time in which a table is created. DynamoDB needs seconds.
const CREATED_WITHIN: Duration = Duration::from_secs(120);

impl Table {
    /// Waits until the table is usable. Only the first call that succeeds asks DynamoDB: it checks that the
    /// table is of this kind, and creates a missing table (`PAY_PER_REQUEST`), with time to live.
    ///
    /// If the role may not describe the table, the table counts as usable. The calls for its items then show
    /// whether it exists.
    ///
    /// # Errors
    ///
    /// Returns an error if the table is of another kind, if a call fails, or if the table is not usable
    /// within 120 s. The next call asks again.
    pub(crate) async fn ready(&self) -> Result<(), TableError> {
        let made = || async {
            let made = timeout(CREATED_WITHIN, self.wait_for()).await;
            made.unwrap_or_else(|_| {
                let late = format!("the table {:?} is not usable after {CREATED_WITHIN:?}", self.name);
                Err(TableError::Unavailable(late.into()))
            })
        };
        self.ready.get_or_try_init(made).await.copied()
    }

    /// Returns false if there is no such table. Creates none, unlike [`ready`](Table::ready).
    pub(crate) async fn exists(&self) -> Result<bool, TableError> {
        if self.ready.initialized() {
            return Ok(true);
        }
        let described = self.client.describe_table().table_name(&*self.name).send().await;
        match described {
            Ok(reply) => {
                if let Some(table) = &reply.table {
                    self.check(table)?;
                }
                Ok(true)
            }
            Err(error) if error.code() == Some("ResourceNotFoundException") => Ok(false),
            Err(error) => {
                let failed = self.failed_call("describe", "dynamodb:DescribeTable", error);
                match failed.is_denied() {
                    true => Ok(true),
                    false => Err(TableError::Unavailable(failed.into())),
                }
            }
        }
    }

    async fn wait_for(&self) -> Result<(), TableError> {
        let mut looks = RetryTimer::new(LOOKS, seeded_rng(None));
        loop {
            let described = self.client.describe_table().table_name(&*self.name).send().await;
            match described {
                Ok(reply) => {
                    let table = reply
                        .table
                        .ok_or_else(|| BoxError::from("DescribeTable returned no table"))?;
                    self.check(&table)?;
                    match table.table_status {
                        Some(TableStatus::Active | TableStatus::Updating) => {
                            return self.enable_time_to_live().await;
                        }
                        Some(TableStatus::Creating) => self.is_new.store(true, Ordering::Relaxed),
                        status => {
                            let status = format!(
                                "the table {:?} cannot be used: its status is {status:?}",
                                self.name
                            );
                            return Err(TableError::Unavailable(status.into()));
                        }
                    }
                }
                Err(error) if error.code() == Some("ResourceNotFoundException") => {
                    // Noted before the call: the answer may be lost although the table was created.
                    self.is_new.store(true, Ordering::Relaxed);
                    self.create().await?;
                }
                Err(error) => {
                    let failed = self.failed_call("describe", "dynamodb:DescribeTable", error);
                    if !failed.is_denied() {
                        return Err(TableError::Unavailable(failed.into()));
                    }
                    tracing::debug!(table = &*self.name, error = %failed, "table not checked");
                    return Ok(());
                }
            }
            sleep(looks.next_delay()).await;
        }
    }

    /// Refuses the table of another program, which must not get items of redrive.
    fn check(&self, table: &TableDescription) -> Result<(), TableError> {
        let keys = table.key_schema();
        match keys {
            [found] if found.attribute_name() == self.kind.key && *found.key_type() == KeyType::Hash => {
                Ok(())
            }
            _ => Err(TableError::OfAnotherKind {
                name: self.name.to_string(),
                what: self.kind.what,
                keys: keys.iter().map(|key| key.attribute_name().to_owned()).collect(),
                key: self.kind.key,
            }),
        }
    }

    /// Creates the table, unless another process is creating it.
    async fn create(&self) -> Result<(), BoxError> {
        let mut call = self
            .client
            .create_table()
            .table_name(&*self.name)
            .billing_mode(BillingMode::PayPerRequest)
            .key_schema(key(self.kind.key, KeyType::Hash)?)
            .attribute_definitions(column(self.kind.key)?);
        if let Some(index) = self.kind.index {
            let keys_only = Projection::builder().projection_type(ProjectionType::KeysOnly);
            let described = GlobalSecondaryIndex::builder()
                .index_name(index.name)
                .key_schema(key(index.key, KeyType::Hash)?)
                .key_schema(key(self.kind.key, KeyType::Range)?)
                .projection(keys_only.build());
            call = call
                .attribute_definitions(column(index.key)?)
                .global_secondary_indexes(described.build()?);
        }
        let created = call.send().await;
        match created {
            Ok(_) => Ok(()),
            Err(error) if error.code() == Some("ResourceInUseException") => Ok(()),
            Err(error) => Err(self.failed_call("create", "dynamodb:CreateTable", error).into()),
        }
    }
}

fn key(name: &str, kind: KeyType) -> Result<KeySchemaElement, BoxError> {
    Ok(KeySchemaElement::builder()
        .attribute_name(name)
        .key_type(kind)
        .build()?)
}

fn column(name: &str) -> Result<AttributeDefinition, BoxError> {
    let column = AttributeDefinition::builder().attribute_name(name);
    Ok(column.attribute_type(ScalarAttributeType::S).build()?)
}
