//! A scene whose consumers share a lease table on DynamoDB Local.

use std::collections::HashMap;
use std::time::Duration;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::AttributeValue;
use redrive::checkpoint::DynamoDb;

use crate::scene::{Running, Scene, records};
use support::dynamodb::DynamoDbLocal;
use support::emulator::unique;
use support::ledger::Store;

/// The failover time. It is long enough for a busy machine to renew its leases in time.
pub const FAILOVER: Duration = Duration::from_secs(4);

pub type Item = HashMap<String, AttributeValue>;

/// A scene with a lease table on DynamoDB Local.
pub struct Shared {
    pub scene: Scene,
    pub dynamo: Client,
    pub table: String,
}

impl Shared {
    /// Creates a scene. Returns `None` without DynamoDB Local.
    pub async fn new(shards: i32) -> Option<Self> {
        let server = DynamoDbLocal::shared()?;
        Some(Shared {
            scene: Scene::new(shards).await,
            dynamo: server.client(),
            table: unique("billing"),
        })
    }

    /// Creates a store with this worker name, which shares shards evenly.
    pub fn store(&self, name: &str, dynamo: &Client) -> DynamoDb {
        let store = DynamoDb::new(dynamo.clone(), self.table.as_str());
        store.worker(name).failover_time(FAILOVER)
    }

    /// Starts a consumer that stands by while another one lives.
    pub fn start(&self, name: &str) -> Running {
        self.start_on(name, &self.dynamo)
    }

    pub fn start_on(&self, name: &str, dynamo: &Client) -> Running {
        self.run(self.store(name, dynamo).standby())
    }

    /// Starts a consumer that shares the shards with others.
    pub fn join(&self, name: &str) -> Running {
        self.run(self.store(name, &self.dynamo))
    }

    pub fn run(&self, store: DynamoDb) -> Running {
        let store = Store::over(&self.scene.ledger, store);
        self.scene
            .run(self.scene.consumer().checkpoints(store), self.scene.resilient())
    }

    pub async fn rows(&self) -> HashMap<String, Item> {
        let call = self.dynamo.scan().table_name(&self.table).consistent_read(true);
        let Ok(reply) = call.send().await else {
            return HashMap::new();
        };
        let items = reply.items.unwrap_or_default().into_iter();
        items
            .map(|item| (text(&item, "leaseKey").to_owned(), item))
            .collect()
    }

    /// Waits until the rows satisfy the condition.
    pub async fn rows_become(&self, what: &str, holds: impl Fn(&HashMap<String, Item>) -> bool) {
        let start = tokio::time::Instant::now();
        while !holds(&self.rows().await) {
            assert!(
                start.elapsed() < Duration::from_secs(90),
                "{what}: {:?}",
                self.rows().await
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Splits one of two shards and merges two of the three, while records arrive and the consumers run that this
    /// function starts. Returns when the ends of three shards are stored: one was split, and two were merged.
    pub async fn resharded(&self, start: impl FnOnce() -> Vec<Running>) -> Vec<Running> {
        let scene = &self.scene;
        let put = || {
            scene.put(records(300, 30, |number| {
                if number % 50 == 5 { "sleep:150" } else { "ok" }
            }))
        };
        put().await;
        let running = start();
        let open = scene.open_shards().await;
        scene.split(&open[0]).await;
        put().await;
        let open = scene.open_shards().await;
        scene.merge(&open[1], &open[2]).await;
        put().await;
        scene.ledger.settled(900).await;
        self.rows_become("all ends are stored", |rows| {
            let ended = rows.values().filter(|row| text(row, "checkpoint") == "SHARD_END");
            rows.len() == 5 && ended.count() == 3
        })
        .await;
        running
    }

    /// Waits until this worker has leased all shards.
    pub async fn held_by(&self, name: &str, shards: usize) {
        self.rows_become(name, |rows| {
            rows.len() == shards && rows.values().all(|row| text(row, "leaseOwner").starts_with(name))
        })
        .await;
    }

    /// Writes to a row as another worker would, whatever the row's counter is.
    pub async fn write(&self, row: &str, update: &str, values: &[(&str, &str)]) {
        let call = self.dynamo.update_item().table_name(&self.table);
        let mut call = call.key("leaseKey", AttributeValue::S(row.to_owned()));
        for (name, value) in values {
            call = call.expression_attribute_values(*name, AttributeValue::S((*value).to_owned()));
        }
        let one = AttributeValue::N("1".to_owned());
        let call = call.expression_attribute_values(":one", one);
        let call = call.update_expression(format!("{update} ADD leaseCounter :one"));
        call.send().await.expect("written");
    }
}

pub fn text<'a>(row: &'a Item, name: &str) -> &'a str {
    row.get(name)
        .and_then(|value| value.as_s().ok())
        .map_or("", String::as_str)
}

pub fn counter(row: &Item) -> u64 {
    let counter = row["leaseCounter"].as_n().expect("a number");
    counter.parse().expect("a number")
}

pub fn set<'a>(row: &'a Item, name: &str) -> &'a [String] {
    row.get(name)
        .and_then(|value| value.as_ss().ok())
        .map_or(&[], Vec::as_slice)
}
