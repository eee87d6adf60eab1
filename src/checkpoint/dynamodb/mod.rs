//! Checkpoints in DynamoDB, in the lease table of the Kinesis Client Library.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_dynamodb::Client;
use rand::RngExt;

use super::{
    Checkpoint, CheckpointError, CheckpointStore, Holder, LeaseOutcome, Leases, NewShard, Renewal, ShardKey,
};
use crate::external::failed_alike;
use crate::record::ShardId;

mod calls;
mod holding;
mod row;

use calls::Table;
use holding::Holding;

/// Keeps checkpoints in a DynamoDB table with the rows of KCL's own lease table, so that a service can move from
/// KCL to redrive, and back, and goes on where the other has stopped.
///
/// ```no_run
/// # fn example(dynamo: aws_sdk_dynamodb::Client) {
/// use redrive::checkpoint;
///
/// // "billing": the table. KCL calls it as the application, unless it was told otherwise.
/// let checkpoints = checkpoint::DynamoDb::new(dynamo, "billing");
/// # }
/// ```
///
/// Of the client region, endpoint, credentials and HTTP stack are used; retries are redrive's own, and a call may
/// take a third of the failover time unless the client says otherwise. The table is made if there is none
/// (`PAY_PER_REQUEST`). It serves one stream: a row is refused that was written for another.
///
/// # Several processes
///
/// Each shard is held by one of them, which renews it every third of the
/// [failover time](DynamoDb::failover_time). The others stand by, and take a shard that nobody holds at once, one of
/// a holder that has died when its row has not changed for the failover time. Nothing is stolen and nothing
/// balanced: beyond one machine there are KCL and Lambda. KCL 3 leaves alone what redrive renews, as it balances only
/// among workers that publish its metrics. If it asks for a shard (`checkpointOwner`), redrive ends what it has begun,
/// stores how far it is and hands the shard over; what is taken without asking ends as a lost lease.
///
/// Clones share what they hold; make one store for each consumer.
///
/// # What it costs
///
/// One write for each shard every third of the failover time, and one for each checkpoint; while standing by, two
/// strongly consistent reads for each shard and half a failover time.
///
/// # What it needs
///
/// `dynamodb:DescribeTable`, `GetItem`, `BatchGetItem`, `Scan` (once at a start), `PutItem`, `UpdateItem`; and `CreateTable`, if it is to make
/// the table.
#[derive(Clone)]
pub struct DynamoDb {
    client: Client,
    table: Arc<str>,
    worker: Arc<str>,
    failover_time: Duration,
    write_interval: Duration,
    holding: Arc<Holding>,
}

impl DynamoDb {
    /// In this table, with KCL's failover time of 10 s, written every 5 s at most while a shard makes progress.
    pub fn new(client: Client, table: impl Into<Arc<str>>) -> Self {
        DynamoDb {
            client,
            table: table.into(),
            worker: unique(&gethostname::gethostname().to_string_lossy()),
            failover_time: Duration::from_secs(10),
            write_interval: Duration::from_secs(5),
            holding: Arc::default(),
        }
    }

    /// Sets the name of this process, seen as `leaseOwner`. Random digits are added to it, so that two processes never
    /// have the same one. Default: the host's name.
    #[must_use]
    pub fn worker(mut self, name: &str) -> Self {
        self.worker = unique(name);
        self
    }

    /// After which time without a sign of its holder a shard is taken over. Give all processes of an application
    /// the same, KCL's `failoverTimeMillis` included; at least a second, which
    /// [`ConsumerBuilder::build`](crate::ConsumerBuilder::build) checks. Default: 10 s.
    #[must_use]
    pub fn failover_time(mut self, time: Duration) -> Self {
        self.failover_time = time;
        self
    }

    /// How often a shard that makes progress is written at most, besides what must be at once. Default: 5 s.
    #[must_use]
    pub fn write_interval(mut self, interval: Duration) -> Self {
        self.write_interval = interval;
        self
    }

    /// The table, looked at (and made) at the first use.
    async fn table(&self) -> Result<&Table, CheckpointError> {
        let table = || Table::open(&self.client, &self.table, &self.worker, self.failover_time);
        self.holding.table.get_or_try_init(table).await
    }
}

/// The name and 64 random bits.
fn unique(name: &str) -> Arc<str> {
    format!("{name}-{:016x}", rand::rng().random::<u64>()).into()
}

impl fmt::Debug for DynamoDb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DynamoDb")
            .field("table", &self.table)
            .field("worker", &self.worker)
            .field("failover_time", &self.failover_time)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl CheckpointStore for DynamoDb {
    async fn load(&self, shards: &[ShardKey]) -> Vec<Result<Option<Checkpoint>, CheckpointError>> {
        match self.table().await {
            Ok(table) => {
                let rows = table.read(shards).await.into_iter();
                rows.map(|row| row.map(|row| row.map(|row| row.checkpoint)))
                    .collect()
            }
            Err(error) => for_each(shards, error),
        }
    }

    async fn list(
        &self,
        application: &str,
        stream: &str,
    ) -> Result<Option<Vec<(ShardId, Checkpoint)>>, CheckpointError> {
        // The table is the application's; the shard is none.
        let stream = ShardKey::new(application, stream, ShardId::from(""));
        let rows = self.table().await?.scan(&stream).await?.into_iter();
        Ok(Some(rows.map(|(shard, row)| (shard, row.checkpoint)).collect()))
    }

    /// Stores what this store holds, and nothing else.
    async fn save(&self, checkpoints: &[(ShardKey, Checkpoint)]) -> Vec<Result<(), CheckpointError>> {
        match self.table().await {
            Ok(table) => self.holding.save(table, checkpoints).await,
            Err(error) => for_each(checkpoints, error),
        }
    }

    fn write_interval(&self) -> Duration {
        self.write_interval
    }

    fn name(&self) -> Cow<'_, str> {
        format!("dynamodb:{}", self.table).into()
    }

    fn leases(&self) -> Option<&dyn Leases> {
        Some(self)
    }
}

#[async_trait]
impl Leases for DynamoDb {
    fn failover_time(&self) -> Duration {
        self.failover_time
    }

    async fn create(&self, shards: &[NewShard]) -> Vec<Result<(), CheckpointError>> {
        match self.table().await {
            Ok(table) => table.create(shards).await,
            Err(error) => for_each(shards, error),
        }
    }

    async fn take(&self, shards: &[ShardKey]) -> Vec<Result<LeaseOutcome, CheckpointError>> {
        match self.table().await {
            Ok(table) => self.holding.take(table, shards, self.failover_time).await,
            Err(error) => for_each(shards, error),
        }
    }

    async fn holders(&self, shards: &[ShardKey]) -> Vec<Result<Option<Holder>, CheckpointError>> {
        match self.table().await {
            Ok(table) => self.holding.holders(table, shards, self.failover_time).await,
            Err(error) => for_each(shards, error),
        }
    }

    async fn seize(&self, shard: &ShardKey) -> Result<LeaseOutcome, CheckpointError> {
        self.holding.seize(self.table().await?, shard).await
    }

    async fn renew(&self, shard: &ShardKey) -> Result<Renewal, CheckpointError> {
        self.holding.renew(self.table().await?, shard).await
    }

    async fn name_children(&self, shard: &ShardKey, children: &[ShardId]) -> Result<(), CheckpointError> {
        self.holding
            .name_children(self.table().await?, shard, children)
            .await
    }

    async fn give_up(&self, shard: &ShardKey) -> Result<(), CheckpointError> {
        self.holding.give_up(self.table().await?, shard).await
    }
}

/// Returns the same error for each of them.
fn for_each<T, R>(asked: &[T], error: CheckpointError) -> Vec<Result<R, CheckpointError>> {
    match error {
        CheckpointError::Unavailable(source) => {
            failed_alike(asked.len(), source, CheckpointError::Unavailable)
        }
        CheckpointError::Unusable(source) => failed_alike(asked.len(), source, CheckpointError::Unusable),
        error => failed_alike(asked.len(), error, CheckpointError::Unavailable),
    }
}
