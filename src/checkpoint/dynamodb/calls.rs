//! DynamoDB calls that read and write rows.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::{AttributeValue, ReturnValue};
use futures_util::future::join_all;
use tokio::sync::Semaphore;

use super::row::{self, Item, KEY, Row};
use crate::aws;
use crate::aws::table::{Index, Kind, MOST_KEYS, Query, Table, TableError, is_condition_failure};
use crate::checkpoint::{CheckpointError, NewShard, ShardKey, SharedLease};
use crate::record::ShardId;

/// The maximum number of concurrent calls. A process may own a thousand shards, and must not open as many
/// connections.
const CALLS: usize = 128;

const KIND: Kind = Kind {
    what: "lease table",
    key: KEY,
    expiration: None,
    // KCL 3 reads it under this name.
    index: Some(Index {
        name: OWNER_INDEX,
        key: row::OWNER,
    }),
};

const OWNER_INDEX: &str = "LeaseOwnerToLeaseKeyIndex";

/// The lease table, as this worker uses it.
#[derive(Debug)]
pub(super) struct LeaseTable {
    table: Table,
    pub(super) worker: Arc<str>,
    calls: Semaphore,
}

/// The outcome of a conditional write.
#[derive(Debug)]
pub(super) enum Written {
    /// The write took effect, and this is the row now.
    Done(Item),
    /// The row did not meet the condition.
    Refused,
}

impl From<TableError> for CheckpointError {
    fn from(error: TableError) -> Self {
        match error {
            TableError::Unavailable(error) => CheckpointError::Unavailable(error),
            TableError::OfAnotherKind { .. } => CheckpointError::Unusable(error.into()),
        }
    }
}

impl LeaseTable {
    pub(super) fn new(client: &Client, name: &Arc<str>, worker: &Arc<str>, failover_time: Duration) -> Self {
        // Three calls fit into the time that a row may go without a renewal.
        let client = aws::dynamodb::without_retries(client, failover_time / 3);
        LeaseTable {
            table: Table::new(client, name.clone(), KIND),
            worker: worker.clone(),
            calls: Semaphore::new(CALLS),
        }
    }

    pub(super) async fn ready(&self) -> Result<(), CheckpointError> {
        Ok(self.table.ready().await?)
    }

    /// Reads these rows with strong consistency.
    pub(super) async fn read(&self, shards: &[ShardKey]) -> Vec<Result<Option<Row>, CheckpointError>> {
        let mut rows = Vec::with_capacity(shards.len());
        for batch in shards.chunks(MOST_KEYS) {
            let keys = batch.iter().map(|key| key.shard.as_str());
            match self.table.get_items(keys).await {
                Ok(items) => rows.extend(batch.iter().map(|key| {
                    let item = items.get(key.shard.as_str());
                    item.map(|item| Row::read(key, item)).transpose()
                })),
                Err(error) => rows.extend(super::for_each(batch, error.into())),
            }
        }
        rows
    }

    /// Returns the keys of the rows that are assigned to this worker, from the index. Returns `None` if the
    /// table has no such index.
    pub(super) async fn assigned(&self) -> Result<Option<Vec<ShardId>>, CheckpointError> {
        let query = Query {
            index: OWNER_INDEX,
            key: row::OWNER,
            value: &self.worker,
        };
        let mut found = Vec::new();
        let has_index = self
            .table
            .query(query, |item| found.extend(shard_of(&item)))
            .await?;
        Ok(has_index.then_some(found))
    }

    /// Reads all rows of a stream's shards, in one pass over the table. `consistent`: the rows contain every
    /// write that was confirmed before.
    pub(super) async fn scan(
        &self,
        stream: &ShardKey,
        consistent: bool,
    ) -> Result<Vec<(ShardId, Row)>, CheckpointError> {
        let mut found = Vec::new();
        let row = |item: Item| {
            let shard = shard_of(&item)?;
            let key = ShardKey::new(stream.application.clone(), stream.stream.clone(), shard.clone());
            Some((shard, Row::read(&key, &item).ok()?))
        };
        self.table
            .scan(consistent, |item| found.extend(row(item)))
            .await?;
        Ok(found)
    }

    /// Reads one row with strong consistency.
    pub(super) async fn read_one(&self, shard: &ShardKey) -> Result<Option<Row>, CheckpointError> {
        let call = self.table.client().get_item().table_name(self.table.name());
        let call = call.set_key(Some(key(shard))).consistent_read(true);
        let reply = call.send().await;
        let reply = reply.map_err(|error| self.table.failed("read", "dynamodb:GetItem", error))?;
        reply.item.map(|item| Row::read(shard, &item)).transpose()
    }

    /// Creates the missing rows, parents before children.
    pub(super) async fn create(&self, shards: &[NewShard]) -> Vec<Result<(), CheckpointError>> {
        let mut results: Vec<Result<(), CheckpointError>> = Vec::with_capacity(shards.len());
        for generation in shards.chunk_by(|_, next| !shards_hold_parent_of(shards, next)) {
            if results.iter().any(Result::is_err) {
                // A later shard may be a child of the one that failed.
                let error = CheckpointError::unavailable("the rows of its parent shards were not created");
                results.extend(super::for_each(generation, error));
            } else {
                results.extend(join_all(generation.iter().map(|shard| self.create_one(shard))).await);
            }
        }
        results
    }

    async fn create_one(&self, shard: &NewShard) -> Result<(), CheckpointError> {
        let _turn = self.calls.acquire().await;
        let call = self.table.client().put_item().table_name(self.table.name());
        let call = call
            .set_item(Some(row::new(shard)))
            .condition_expression("attribute_not_exists(#key)")
            .expression_attribute_names("#key", KEY);
        match call.send().await {
            Ok(_) => Ok(()),
            Err(error) if is_condition_failure(&error) => Ok(()),
            Err(error) => Err(self.table.failed("write to", "dynamodb:PutItem", error).into()),
        }
    }

    /// Deletes the row of a shard that has ended, if the row is still as it was read.
    pub(super) async fn delete(&self, lease: &SharedLease) -> Result<bool, CheckpointError> {
        let _turn = self.calls.acquire().await;
        let mut change = Change::if_counter_is(lease.counter);
        change.only_if_owners_are(lease);
        change.only_if_still(row::CHECKPOINT, Some(row::string(row::SHARD_END)));
        let call = self.table.client().delete_item().table_name(self.table.name());
        let call = call
            .set_key(Some(key(&lease.key)))
            .condition_expression(change.condition)
            .set_expression_attribute_names(Some(change.names))
            .set_expression_attribute_values(Some(change.values));
        match call.send().await {
            Ok(_) => Ok(true),
            Err(error) if is_condition_failure(&error) => Ok(false),
            Err(error) => Err(self
                .table
                .failed("delete from", "dynamodb:DeleteItem", error)
                .into()),
        }
    }

    /// Changes a row if the condition of the change holds.
    pub(super) async fn write(&self, shard: &ShardKey, change: Change) -> Result<Written, CheckpointError> {
        let _turn = self.calls.acquire().await;
        let call = self.table.client().update_item().table_name(self.table.name());
        let call = call
            .set_key(Some(key(shard)))
            .update_expression(change.update())
            .condition_expression(change.condition)
            .set_expression_attribute_names(Some(change.names))
            .set_expression_attribute_values(Some(change.values))
            .return_values(ReturnValue::AllNew);
        match call.send().await {
            Ok(reply) => Ok(Written::Done(reply.attributes.unwrap_or_default())),
            Err(error) if is_condition_failure(&error) => Ok(Written::Refused),
            Err(error) => Err(self.table.failed("write to", "dynamodb:UpdateItem", error).into()),
        }
    }
}

/// Returns the shard of a row. KCL keeps rows of other kinds in the table, and rows of other streams under names
/// with a colon.
fn shard_of(item: &Item) -> Option<ShardId> {
    let name = row::text(item, KEY).filter(|name| !name.contains(':'));
    name.map(ShardId::from)
}

/// Returns true if `shards` contains a parent of `child`.
fn shards_hold_parent_of(shards: &[NewShard], child: &NewShard) -> bool {
    let is_parent = |shard: &NewShard| child.parents.contains(&shard.key.shard);
    shards.iter().any(is_parent)
}

fn key(shard: &ShardKey) -> Item {
    Item::from([(KEY.into(), row::string(shard.shard.as_str()))])
}

/// A change of a row, and its condition. Expressions name columns by `#` and values by `:`.
#[derive(Debug, Default)]
pub(super) struct Change {
    set: Vec<String>,
    add: Vec<String>,
    remove: Vec<String>,
    condition: String,
    names: HashMap<String, String>,
    values: Item,
}

impl Change {
    /// Creates a change of a row whose counter is `counter`. The change raises the counter, as every write
    /// does.
    pub(super) fn of(counter: u64) -> Self {
        let mut change = Change::if_counter_is(counter);
        change.set(row::COUNTER, row::numeral(counter.saturating_add(1)));
        change
    }

    fn if_counter_is(counter: u64) -> Self {
        let mut change = Change::default();
        let (column, before) = (change.name(row::COUNTER), change.value(row::numeral(counter)));
        change.condition = format!("{column} = {before}");
        change
    }

    /// Creates a change that makes `worker` the owner of a row, if the row is still as it was read.
    pub(super) fn assignment(lease: &SharedLease, worker: &str) -> Self {
        let mut change = Change::of(lease.counter);
        change.only_if_owners_are(lease);
        change.set(row::OWNER, row::string(worker));
        change.remove(row::CHECKPOINT_OWNER);
        // As KCL counts: a hand-off that ends normally is no switch.
        if lease.owner.as_deref() != Some(worker) || lease.handed_over_by.as_deref() == Some(worker) {
            change.add(row::SWITCHES, 1);
        }
        change
    }

    /// Creates a change that asks the owner of a row to hand it over to `worker`, if the row still has this
    /// owner. The counter stays: the change is no sign of life of the owner.
    pub(super) fn request(lease: &SharedLease, worker: &str) -> Self {
        let mut change = Change::default();
        let key = change.name(KEY);
        change.condition = format!("attribute_exists({key})");
        change.only_if_owners_are(lease);
        change.set(row::OWNER, row::string(worker));
        if let Some(owner) = &lease.owner {
            change.set(row::CHECKPOINT_OWNER, row::string(owner));
        }
        change
    }

    fn only_if_owners_are(&mut self, lease: &SharedLease) {
        self.only_if_still(row::OWNER, lease.owner.as_deref().map(row::string));
        self.only_if_still(
            row::CHECKPOINT_OWNER,
            lease.handed_over_by.as_deref().map(row::string),
        );
    }

    pub(super) fn set(&mut self, column: &str, value: AttributeValue) {
        let (column, value) = (self.name(column), self.value(value));
        self.set.push(format!("{column} = {value}"));
    }

    /// Adds to the number in a column; a missing column counts as 0.
    pub(super) fn add(&mut self, column: &str, more: u64) {
        let (column, more) = (self.name(column), self.value(row::numeral(more)));
        self.add.push(format!("{column} {more}"));
    }

    pub(super) fn remove(&mut self, column: &str) {
        let column = self.name(column);
        self.remove.push(column);
    }

    /// Adds the condition that one of these columns has this value.
    pub(super) fn only_if_any(&mut self, columns: &[&str], value: AttributeValue) {
        let value = self.value(value);
        let one = |column: &&str| format!("{} = {value}", self.name(column));
        let any: Vec<String> = columns.iter().map(one).collect();
        self.condition = format!("{} AND ({})", self.condition, any.join(" OR "));
    }

    /// Adds the condition that this column still has the value that was read.
    pub(super) fn only_if_still(&mut self, column: &str, value: Option<AttributeValue>) {
        let column = self.name(column);
        let still = match value {
            Some(value) => format!("{column} = {}", self.value(value)),
            None => format!("attribute_not_exists({column})"),
        };
        self.condition = format!("{} AND {still}", self.condition);
    }

    fn name(&mut self, column: &str) -> String {
        let name = format!("#{column}");
        self.names.insert(name.clone(), column.to_owned());
        name
    }

    fn value(&mut self, value: AttributeValue) -> String {
        let name = format!(":v{}", self.values.len());
        self.values.insert(name.clone(), value);
        name
    }

    fn update(&self) -> String {
        let clauses = [("SET", &self.set), ("ADD", &self.add), ("REMOVE", &self.remove)];
        let used = clauses.iter().filter(|(_, parts)| !parts.is_empty());
        let clause = |(name, parts): &(&str, &Vec<String>)| format!("{name} {}", parts.join(", "));
        used.map(clause).collect::<Vec<_>>().join(" ")
    }
}
