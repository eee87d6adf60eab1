//! The workers. Each is a consumer of its own, as it would run in a process of its own.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aws_sdk_kinesis::Client;
use redrive::checkpoint::{CheckpointError, SharedLease, Sharing};
use redrive::{
    BoxError, Consumer, ConsumerError, MarkFailure, Record, Resilient, StartingPosition, checkpoint,
    dead_letter, processor_with,
};
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::ledger::Ledger;
use crate::news::{News, Reporter, short};

pub(crate) const STREAM: &str = "orders";
const APPLICATION: &str = "billing";
/// The time after which the shards of a killed worker are taken over: short, for those who watch. The default is 10 s.
const FAILOVER: Duration = Duration::from_secs(4);

pub(crate) struct Fleet {
    kinesis: Client,
    dynamo: aws_sdk_dynamodb::Client,
    /// A store that owns no shard, and shows the table.
    table: checkpoint::DynamoDb,
    ledger: Arc<Ledger>,
    news: Arc<News>,
    pub(crate) workers: Vec<Worker>,
}

pub(crate) struct Worker {
    pub(crate) name: String,
    /// The number of records that this worker has processed.
    pub(crate) processed: Arc<AtomicU64>,
    stop: CancellationToken,
    running: JoinHandle<Result<(), ConsumerError>>,
    is_killed: bool,
}

/// The part of a worker's state that its processor uses.
struct Desk {
    ledger: Arc<Ledger>,
    processed: Arc<AtomicU64>,
}

async fn bill(desk: Arc<Desk>, record: Record) -> Result<(), BoxError> {
    let order = std::str::from_utf8(record.payload()).permanent()?;
    let order = order.parse().permanent()?;
    sleep(Duration::from_millis(5)).await;
    desk.ledger.note(order);
    desk.processed.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

impl Fleet {
    pub(crate) fn new(kinesis: Client, dynamo: aws_sdk_dynamodb::Client, ledger: Arc<Ledger>) -> Self {
        Fleet {
            table: checkpoint::DynamoDb::new(dynamo.clone(), table_name()),
            kinesis,
            dynamo,
            ledger,
            news: News::new(),
            workers: Vec::new(),
        }
    }

    /// Starts a worker.
    pub(crate) fn join(&mut self) -> Result<(), redrive::ConfigError> {
        let name = format!("w{}", self.workers.len() + 1);
        let processed = Arc::new(AtomicU64::new(0));
        let desk = Arc::new(Desk {
            ledger: self.ledger.clone(),
            processed: processed.clone(),
        });
        let orders = Resilient::builder(APPLICATION, processor_with(desk, bill))
            .dead_letters(dead_letter::Memory::new())
            .observer(Reporter {
                worker: name.clone(),
                news: self.news.clone(),
            })
            .build()?;
        let leases = checkpoint::DynamoDb::new(self.dynamo.clone(), table_name())
            .worker(&name)
            .failover_time(FAILOVER)
            .write_interval(Duration::from_secs(1));
        let consumer = Consumer::builder(self.kinesis.clone(), STREAM)
            .starting_position(StartingPosition::TrimHorizon)
            .checkpoints(leases)
            .build()?;
        let stop = CancellationToken::new();
        let running = tokio::spawn(consumer.run_until(orders, stop.clone().cancelled_owned()));
        self.news.add(&format!("{name} starts"));
        self.workers.push(Worker {
            name,
            processed,
            stop,
            running,
            is_killed: false,
        });
        Ok(())
    }

    /// Drops the newest worker in the middle of its work.
    pub(crate) fn kill(&mut self) {
        if let Some(worker) = self.workers.iter_mut().rfind(|worker| worker.is_running()) {
            worker.running.abort();
            worker.is_killed = true;
            self.news.add(&format!("{} is killed", worker.name));
        }
    }

    /// Stops the oldest worker in order.
    pub(crate) fn stop(&mut self) {
        if let Some(worker) = self.workers.iter().find(|worker| worker.is_running()) {
            worker.stop.cancel();
            self.news.add(&format!("{} stops", worker.name));
        }
    }

    /// Returns true if each running worker has processed a hundred records.
    pub(crate) fn all_work(&self) -> bool {
        let mut running = self.workers.iter().filter(|worker| worker.is_running());
        running.all(|worker| worker.processed.load(Ordering::Relaxed) >= 100)
    }

    pub(crate) fn news(&self) -> &News {
        &self.news
    }

    pub(crate) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Returns the rows of the lease table, by shard.
    pub(crate) async fn shards(&self) -> Result<Vec<SharedLease>, CheckpointError> {
        let mut shards = Sharing::leases(&self.table, APPLICATION, STREAM).await?;
        shards.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(shards)
    }

    /// Returns the leader's name; a leader that was killed stays the leader for three failover times.
    pub(crate) async fn leader(&self) -> Result<Option<String>, CheckpointError> {
        let leader = Sharing::leader(&self.table).await?;
        Ok(leader.map(|name| short(&name).to_owned()))
    }

    /// Returns the shares in words if each running worker has its share, and no other worker has a shard.
    pub(crate) fn even_shares(&self, shards: &[SharedLease]) -> Option<String> {
        let running = self.workers.iter().filter(|worker| worker.is_running());
        let mut shares: BTreeMap<&str, usize> = running.map(|worker| (&*worker.name, 0)).collect();
        for shard in shards {
            let owner = shard
                .owner
                .as_deref()
                .filter(|_| shard.handed_over_by.is_none())?;
            *shares.get_mut(short(owner))? += 1;
        }
        let (most, fewest) = (shares.values().max()?, shares.values().min()?);
        let is_even = *fewest > 0 && most - fewest <= 1;
        let words = shares.iter().map(|(worker, share)| format!("{worker} {share}"));
        is_even.then(|| words.collect::<Vec<_>>().join(", "))
    }

    /// Stops all workers, and deletes the tables.
    pub(crate) async fn end(&mut self) -> anyhow::Result<()> {
        for worker in &self.workers {
            worker.stop.cancel();
        }
        for worker in &mut self.workers {
            match (&mut worker.running).await {
                Ok(ended) => ended?,
                Err(error) if error.is_cancelled() => {}
                Err(error) => return Err(error.into()),
            }
        }
        for kind in ["", "-CoordinatorState", "-WorkerMetricStats"] {
            let table = format!("{}{kind}", table_name());
            self.dynamo.delete_table().table_name(table).send().await?;
        }
        Ok(())
    }
}

impl Worker {
    pub(crate) fn is_running(&self) -> bool {
        self.state() == "running"
    }

    pub(crate) fn state(&self) -> &'static str {
        match (
            self.is_killed,
            self.stop.is_cancelled(),
            self.running.is_finished(),
        ) {
            (true, _, _) => "killed",
            (_, true, true) => "stopped",
            (_, true, false) => "stopping",
            (_, false, true) => "failed",
            (_, false, false) => "running",
        }
    }
}

/// Each run has tables of its own, because each run has a stream of its own.
fn table_name() -> String {
    format!("redrive-fleet-{}", std::process::id())
}
