//! Checkpoints in DynamoDB, in the lease table of the Kinesis Client Library.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_dynamodb::Client;
use rand::RngExt;

use super::{
    Checkpoint, CheckpointError, CheckpointStore, Holder, LastRenewal, LeaseOutcome, Leases, NewShard,
    Renewal, ShardKey, Sharing,
};
use crate::external::failed_alike;
use crate::record::ShardId;

mod calls;
mod cpu;
mod holding;
mod layout;
mod leader;
mod row;
mod sharing;
mod throughput;
mod workers;

use calls::LeaseTable;
use holding::{FleetTables, Holding};
use layout::Layout;
use leader::LeaderLock;
use workers::Workers;

/// Keeps checkpoints in a DynamoDB table with the rows of KCL's own lease table. A service can move from KCL
/// to redrive and back; each continues where the other has stopped.
///
/// ```no_run
/// # fn example(dynamo: aws_sdk_dynamodb::Client) {
/// use redrive::checkpoint;
///
/// // "billing" is the table. By default, KCL names its table after the application.
/// let checkpoints = checkpoint::DynamoDb::new(dynamo, "billing");
/// # }
/// ```
///
/// redrive uses the client's region, endpoint, credentials and HTTP stack. Retries are redrive's own, and a
/// call may take a third of the failover time unless the client sets a timeout.
///
/// The first call checks the table, and creates a missing one (`PAY_PER_REQUEST`, key `leaseKey`). A table
/// serves one stream: redrive refuses a row that was written for another stream.
///
/// # Several processes
///
/// The processes that use a table share the shards of the stream evenly, also with workers of KCL 3. Each
/// process is a worker. A worker renews its leases every third of the [failover time](DynamoDb::failover_time),
/// and announces itself every 30 s. One worker leads: it assigns shards without a living owner, and requests
/// shards from workers that have more than their share. An owner that is asked for a shard finishes the records
/// in flight, stores the checkpoint and hands the shard over. No record is processed twice.
///
/// A shard of a worker that stops is read elsewhere within seconds. A shard of a worker that fails is read
/// elsewhere after the failover time and a few seconds. After the failure of the leader this takes up to five
/// failover times.
///
/// With [`standby`](DynamoDb::standby) the worker that starts first takes all shards instead.
///
/// Clones share their leases. Create one store for each consumer. `docs/fleet.md` in the repository describes
/// deployments, mixed fleets and migrations.
///
/// # Tables
///
/// The leases are in the table itself. A fleet also uses the table `TABLE-WorkerMetricStats` for announcements
/// and `TABLE-CoordinatorState` for the leader, as KCL 3 does. A new lease table gets the index
/// `LeaseOwnerToLeaseKeyIndex`. Without the index each worker reads all rows to find its own, which costs more
/// and is [reported](crate::observer::FleetEvent::IndexMissing).
///
/// # Cost
///
/// For a failover time of `F` seconds:
/// - Each lease costs 3/F writes per second, and one write for each checkpoint. A lease is renewed F/3 after the
///   last write, so a checkpoint saves a renewal if the [write interval](DynamoDb::write_interval) is shorter: 3 s
///   cost fewer writes than 5 s.
/// - Each worker costs one write and one eventually consistent read every 30 s, and about 3 eventually consistent
///   reads of the index and one consistent read every F seconds.
/// - The leader writes once every F seconds, and reads all rows of the three tables about every F/4 seconds.
///
/// With `standby` each owned shard costs the same writes. Standing by costs two strongly consistent reads per
/// shard every half failover time.
///
/// # Permissions
///
/// - On the table: `dynamodb:GetItem`, `BatchGetItem`, `Scan`, `PutItem`, `UpdateItem`, `DeleteItem`; on its
///   index: `Query`.
/// - On `TABLE-WorkerMetricStats`: `GetItem`, `UpdateItem`, `Scan`, `DeleteItem`.
/// - On `TABLE-CoordinatorState`: `GetItem`, `PutItem`, `UpdateItem`.
/// - On each: `DescribeTable` if redrive is to check the table, and `CreateTable` if redrive is to create it.
///
/// With `standby` the permissions on the table suffice.
#[derive(Clone)]
pub struct DynamoDb {
    client: Client,
    table: Arc<str>,
    worker: Arc<str>,
    failover_time: Duration,
    write_interval: Duration,
    max_leases: usize,
    shares: bool,
    holding: Arc<Holding>,
}

impl DynamoDb {
    /// Creates a store in this table, with KCL's failover time of 10 s and a write interval of 5 s.
    pub fn new(client: Client, table: impl Into<Arc<str>>) -> Self {
        DynamoDb {
            client,
            table: table.into(),
            worker: unique(&gethostname::gethostname().to_string_lossy()),
            failover_time: Duration::from_secs(10),
            write_interval: Duration::from_secs(5),
            max_leases: usize::MAX,
            shares: true,
            holding: Arc::default(),
        }
    }

    /// Sets the name of this process, which others see as `leaseOwner`. redrive appends random digits, so
    /// that two processes never have the same name. Default: the host's name.
    #[must_use]
    pub fn worker(mut self, name: &str) -> Self {
        self.worker = unique(name);
        self
    }

    /// Sets the time without a sign of life from its owner after which a shard is taken over. Use the same
    /// value for all processes of an application, including KCL's `failoverTimeMillis`.
    /// The time must be 1 s to 24 h. [`ConsumerBuilder::build`](crate::consumer::ConsumerBuilder::build) and the
    /// actions of an [operator](crate::operator::Shards) check it. Default: 10 s.
    #[must_use]
    pub fn failover_time(mut self, time: Duration) -> Self {
        self.failover_time = time;
        self
    }

    /// Sets the minimum time between two writes of a shard that makes progress. Urgent checkpoints, such as
    /// after a dead letter, are written at once. At most 24 h, which
    /// [`ConsumerBuilder::build`](crate::consumer::ConsumerBuilder::build) checks. Default: 5 s.
    #[must_use]
    pub fn write_interval(mut self, interval: Duration) -> Self {
        self.write_interval = interval;
        self
    }

    /// Sets the maximum number of open shards that this process takes. If all processes have as many, the other
    /// shards are not read until another process joins. At least 1, which
    /// [`ConsumerBuilder::build`](crate::consumer::ConsumerBuilder::build) checks. Default: no limit.
    #[must_use]
    pub fn max_leases(mut self, most: usize) -> Self {
        self.max_leases = most;
        self
    }

    /// Stops this process from sharing shards evenly: the process that starts first takes all shards, and the
    /// others stand by until it stops or fails. Use the same setting for all processes of an application.
    #[must_use]
    pub fn standby(mut self) -> Self {
        self.shares = false;
        self
    }

    /// Returns the tables of the fleet. The first call finds out which tables the application uses.
    async fn fleet(&self) -> Result<&FleetTables, CheckpointError> {
        let tables = || async {
            let layout = Layout::find(&self.client, &self.table, self.failover_time).await?;
            let (client, leases, worker) = (&self.client, &self.table, &self.worker);
            let failover_time = self.failover_time;
            Ok(FleetTables {
                workers: Workers::new(client, leases, layout, worker, self.max_leases, failover_time),
                leader: LeaderLock::new(client, leases, layout, worker, failover_time),
            })
        };
        self.holding.fleet.get_or_try_init(tables).await
    }

    /// Returns the table. The first call checks the table, and creates a missing one.
    async fn table(&self) -> Result<&LeaseTable, CheckpointError> {
        let table = || LeaseTable::new(&self.client, &self.table, &self.worker, self.failover_time);
        let table = self.holding.table.get_or_init(table);
        table.ready().await?;
        Ok(table)
    }
}

/// Returns the name with 64 random bits appended.
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
        // The scan reads the whole table, so its key names no shard.
        let stream = ShardKey::new(application, stream, ShardId::from(""));
        let rows = self.table().await?.scan(&stream, true).await?.into_iter();
        Ok(Some(rows.map(|(shard, row)| (shard, row.checkpoint)).collect()))
    }

    /// Stores the checkpoints of shards that this store owns, and no others.
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

    fn last_renewal(&self, shard: &ShardKey) -> Option<LastRenewal> {
        self.holding.last_renewal(shard)
    }

    async fn name_children(&self, shard: &ShardKey, children: &[ShardId]) -> Result<(), CheckpointError> {
        self.holding
            .name_children(self.table().await?, shard, children)
            .await
    }

    async fn give_up(&self, shard: &ShardKey) -> Result<(), CheckpointError> {
        self.holding.give_up(self.table().await?, shard).await
    }

    fn sharing(&self) -> Option<&dyn Sharing> {
        self.shares.then_some(self as &dyn Sharing)
    }
}

/// Returns the same error for each element of `asked`.
fn for_each<T, R>(asked: &[T], error: CheckpointError) -> Vec<Result<R, CheckpointError>> {
    match error {
        CheckpointError::Unavailable(source) => {
            failed_alike(asked.len(), source, CheckpointError::Unavailable)
        }
        CheckpointError::Unusable(source) => failed_alike(asked.len(), source, CheckpointError::Unusable),
        error => failed_alike(asked.len(), error, CheckpointError::Unavailable),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> DynamoDb {
        let version = aws_sdk_dynamodb::config::BehaviorVersion::latest();
        let config = aws_sdk_dynamodb::Config::builder().behavior_version(version);
        DynamoDb::new(Client::from_conf(config.build()), "billing")
    }

    #[test]
    fn the_documented_defaults() {
        let store = store();
        assert_eq!(store.failover_time, Duration::from_secs(10));
        assert_eq!(store.write_interval, Duration::from_secs(5));
    }

    #[cfg(feature = "kinesis")]
    #[test]
    fn times_that_no_fleet_can_use_are_refused() {
        let refused = |store: DynamoDb| {
            crate::checkpoint::validate(&store)
                .expect_err("refused")
                .setting()
        };
        for time in [Duration::ZERO, Duration::from_millis(999), Duration::MAX] {
            assert_eq!(refused(store().failover_time(time)), "failover_time");
        }
        assert_eq!(refused(store().write_interval(Duration::MAX)), "write_interval");
        let shortest = store()
            .failover_time(Duration::from_secs(1))
            .write_interval(Duration::ZERO);
        assert_eq!(crate::checkpoint::validate(&shortest), Ok(()));
    }
}
