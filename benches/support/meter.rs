//! Counts the calls to DynamoDB, and the capacity units that its answers report.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::interceptors::{
    AfterDeserializationInterceptorContextRef, BeforeSerializationInterceptorContextMut,
};
use aws_sdk_dynamodb::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_dynamodb::error::BoxError;
use aws_sdk_dynamodb::operation::batch_get_item::{BatchGetItemInput, BatchGetItemOutput};
use aws_sdk_dynamodb::operation::get_item::{GetItemInput, GetItemOutput};
use aws_sdk_dynamodb::operation::put_item::{PutItemInput, PutItemOutput};
use aws_sdk_dynamodb::operation::query::{QueryInput, QueryOutput};
use aws_sdk_dynamodb::operation::scan::{ScanInput, ScanOutput};
use aws_sdk_dynamodb::operation::update_item::{UpdateItemInput, UpdateItemOutput};
use aws_sdk_dynamodb::types::ReturnConsumedCapacity;
use aws_smithy_types::config_bag::{Storable, StoreReplace};

/// The purpose of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Call {
    /// A write that only renews a lease.
    Renewal,
    /// A write of a checkpoint.
    Checkpoint,
    /// Any other write to the lease table.
    Change,
    /// A read of single rows of the lease table.
    Rows,
    /// A query for the shards of a worker.
    Query,
    /// A scan of the lease table.
    LeaseScan,
    /// A write of a worker's own row.
    Announcement,
    /// A read of the leader's announcement.
    LeaderAnnouncement,
    /// A scan of the workers' rows.
    WorkerScan,
    /// A write of the leader's item.
    Heartbeat,
    /// A read of the leader's item.
    LeaderRead,
}

impl Storable for Call {
    type Storer = StoreReplace<Self>;
}

/// The number of calls, and the capacity units that they used.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Used {
    pub calls: u64,
    pub units: f64,
}

/// A meter, which its client's calls pass.
#[derive(Debug, Clone, Default)]
pub struct Meter(Arc<Mutex<BTreeMap<Call, Used>>>);

impl Meter {
    /// Returns this client with the meter.
    pub fn client(&self, client: &Client) -> Client {
        let config = client.config().to_builder().interceptor(self.clone());
        Client::from_conf(config.build())
    }

    /// Returns what was used since the last call of this method.
    pub fn take(&self) -> BTreeMap<Call, Used> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Intercept for Meter {
    fn name(&self) -> &'static str {
        "Meter"
    }

    fn modify_before_serialization(
        &self,
        context: &mut BeforeSerializationInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let input = context.input_mut();
        let total = Some(ReturnConsumedCapacity::Total);
        let is_of =
            |table: &Option<String>, kind: &str| table.as_ref().is_some_and(|name| name.ends_with(kind));
        let (workers, states) = ("-WorkerMetricStats", "-CoordinatorState");
        let call = if let Some(input) = input.downcast_mut::<UpdateItemInput>() {
            input.return_consumed_capacity = total;
            match &input.table_name {
                table if is_of(table, workers) => Call::Announcement,
                table if is_of(table, states) => Call::Heartbeat,
                _ => written(input.update_expression.as_deref().unwrap_or_default()),
            }
        } else if let Some(input) = input.downcast_mut::<PutItemInput>() {
            input.return_consumed_capacity = total;
            match is_of(&input.table_name, states) {
                true => Call::Heartbeat,
                false => Call::Change,
            }
        } else if let Some(input) = input.downcast_mut::<GetItemInput>() {
            input.return_consumed_capacity = total;
            match &input.table_name {
                table if is_of(table, workers) => Call::LeaderAnnouncement,
                table if is_of(table, states) => Call::LeaderRead,
                _ => Call::Rows,
            }
        } else if let Some(input) = input.downcast_mut::<BatchGetItemInput>() {
            input.return_consumed_capacity = total;
            Call::Rows
        } else if let Some(input) = input.downcast_mut::<QueryInput>() {
            input.return_consumed_capacity = total;
            Call::Query
        } else if let Some(input) = input.downcast_mut::<ScanInput>() {
            input.return_consumed_capacity = total;
            match is_of(&input.table_name, workers) {
                true => Call::WorkerScan,
                false => Call::LeaseScan,
            }
        } else {
            // DescribeTable and the like cost no capacity.
            return Ok(());
        };
        config.interceptor_state().store_put(call);
        Ok(())
    }

    fn read_after_deserialization(
        &self,
        context: &AfterDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let (Some(&call), Ok(output)) = (config.load::<Call>(), context.output_or_error()) else {
            return Ok(());
        };
        let one = if let Some(output) = output.downcast_ref::<UpdateItemOutput>() {
            output.consumed_capacity()
        } else if let Some(output) = output.downcast_ref::<PutItemOutput>() {
            output.consumed_capacity()
        } else if let Some(output) = output.downcast_ref::<GetItemOutput>() {
            output.consumed_capacity()
        } else if let Some(output) = output.downcast_ref::<QueryOutput>() {
            output.consumed_capacity()
        } else if let Some(output) = output.downcast_ref::<ScanOutput>() {
            output.consumed_capacity()
        } else {
            None
        };
        let several = output.downcast_ref::<BatchGetItemOutput>();
        let several = several
            .map(BatchGetItemOutput::consumed_capacity)
            .unwrap_or_default();
        let units = one
            .into_iter()
            .chain(several)
            .filter_map(|used| used.capacity_units());
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let used = all.entry(call).or_default();
        used.calls += 1;
        used.units += units.sum::<f64>();
        Ok(())
    }
}

/// Returns the kind of a write to the lease table.
fn written(update: &str) -> Call {
    let assignments = update.strip_prefix("SET ").unwrap_or_default().split(", ");
    let mut columns = assignments.map(|assignment| assignment.split_whitespace().next());
    // A renewal carries the shard's throughput, once that is known.
    let renews = columns.all(|column| matches!(column, Some("#leaseCounter" | "#throughputKBps")));
    if update.contains("#checkpoint =") {
        Call::Checkpoint
    } else if renews && !update.contains("REMOVE") {
        Call::Renewal
    } else {
        Call::Change
    }
}
