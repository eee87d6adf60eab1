//! The setup of an operator test: a stream, a consumer, and a handler that notes its calls.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_sdk_kinesis::Client;
use redrive::checkpoint::{Checkpoint, CheckpointStore, ShardKey};
use redrive::dead_letter;
use redrive::observer::{Event, Observer};
use redrive::operator::Shards;
use redrive::processor::Attempt;
use redrive::{BoxError, Consumer, ConsumerError, Position, Record, RecordProcessor, Resilient, ShardId};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use redrive::testing::kinesis::{self, KinesisServer};
use support::events::{known, name};
use support::stream::{self, Sent};
use support::waiting::{eventually, finished};
use support::wire::wire;

pub const STREAM: &str = "orders";
pub const ONE: NonZeroUsize = NonZeroUsize::MIN;

pub fn shard() -> ShardId {
    "shardId-000000000000".into()
}

pub fn key() -> ShardKey {
    ShardKey::new("billing", STREAM, shard())
}

pub fn up_to(count: usize) -> NonZeroUsize {
    NonZeroUsize::new(count).expect("at least one")
}

pub struct Scene {
    pub server: KinesisServer,
    pub client: Client,
}

impl Scene {
    pub async fn new() -> Self {
        Scene::of(1).await
    }

    pub async fn of(shards: i32) -> Self {
        let server = KinesisServer::start().await.expect("a free port");
        let client = server.client();
        let created = kinesis::create_stream(&client, STREAM, shards).await;
        created.expect("a stream");
        Scene { server, client }
    }

    /// Puts records with these payloads, each under its own key. The handler never processes `hang`.
    pub async fn put(&self, payloads: &[&str]) {
        let records = payloads.iter().enumerate();
        let records = records.map(|(number, payload)| (format!("alice-{number}"), *payload));
        stream::put(&self.client, STREAM, records).await;
    }

    /// Creates a scene with these records, and returns its stream's contents.
    pub async fn with(payloads: &[&str]) -> (Self, Vec<Sent>) {
        let scene = Scene::new().await;
        scene.put(payloads).await;
        let sent = scene.read().await;
        (scene, sent)
    }

    pub async fn read(&self) -> Vec<Sent> {
        stream::read(&self.client, STREAM).await
    }

    pub fn shards(&self, store: &(impl CheckpointStore + Clone + 'static)) -> Shards {
        Shards::new(self.client.clone(), store.clone(), "billing", STREAM)
    }

    /// Starts a consumer.
    pub fn run(&self, store: &(impl CheckpointStore + Clone + 'static), handler: &Handler) -> Running {
        let resilient = Resilient::builder("billing", handler.clone())
            .dead_letters(dead_letter::Memory::new())
            .observer(handler.clone());
        let consumer = Consumer::builder(self.client.clone(), STREAM)
            .wire(wire())
            .checkpoints(store.clone())
            .calls_per_second(200.0)
            .idle_interval(Duration::from_millis(20))
            .shutdown_timeout(Duration::from_millis(300));
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        let consumer = consumer.build().expect("a valid consumer");
        let resilient = resilient.build().expect("a valid processor");
        Running {
            stop,
            task: tokio::spawn(consumer.run_until(resilient, stopped)),
        }
    }

    /// Runs a consumer until it has processed `count` records, and returns their sorted payloads.
    pub async fn consume(
        &self,
        store: &(impl CheckpointStore + Clone + 'static),
        count: usize,
    ) -> Vec<String> {
        let handler = Handler::default();
        let running = self.run(store, &handler);
        handler.has_done(count).await;
        running.stop().await;
        let mut done = handler.done();
        done.sort_unstable();
        done
    }
}

/// A running consumer. If this value is dropped, the consumer runs until the test ends.
pub struct Running {
    stop: CancellationToken,
    task: JoinHandle<Result<(), ConsumerError>>,
}

impl Running {
    pub async fn stop(self) {
        self.stop.cancel();
        let ended = finished("the consumer ends", self.task).await;
        let ended = ended.expect("the consumer does not panic");
        ended.expect("nothing halted");
    }
}

/// A handler that notes the processed payloads and the events.
#[derive(Clone, Default)]
pub struct Handler {
    done: Arc<Mutex<Vec<String>>>,
    begun: Arc<Mutex<Vec<String>>>,
    events: Arc<Mutex<Vec<String>>>,
}

impl Handler {
    pub fn done(&self) -> Vec<String> {
        self.done.lock().expect("no panic while locked").clone()
    }

    pub async fn has_done(&self, count: usize) {
        eventually("records are processed", || self.done().len() >= count).await;
    }

    pub async fn hangs(&self) {
        let begun = || self.begun.lock().expect("no panic while locked").clone();
        eventually("the handler hangs", || {
            begun().iter().any(|payload| payload == "hang")
        })
        .await;
    }

    pub async fn hears(&self, event: &str) {
        let events = || self.events.lock().expect("no panic while locked").clone();
        let event = known(event);
        eventually(event, || events().iter().any(|name| name == event)).await;
    }
}

impl RecordProcessor for Handler {
    type Error = BoxError;

    async fn process(&self, record: &Record, _: &Attempt<'_>) -> Result<(), BoxError> {
        let payload = String::from_utf8_lossy(record.payload()).into_owned();
        let begun = payload.clone();
        self.begun.lock().expect("no panic while locked").push(begun);
        if payload == "hang" {
            std::future::pending::<()>().await;
        }
        self.done.lock().expect("no panic while locked").push(payload);
        Ok(())
    }
}

impl Observer for Handler {
    fn on(&self, event: &Event<'_>) {
        let events = &mut self.events.lock().expect("no panic while locked");
        events.push(name(event));
    }
}

pub async fn save(store: &impl CheckpointStore, checkpoint: Checkpoint) {
    let saved = store.save(&[(key(), checkpoint)]).await.remove(0);
    saved.expect("saved");
}

/// Saves a checkpoint at this record.
pub async fn settle(store: &impl CheckpointStore, sent: &Sent) {
    save(store, Checkpoint::at(sent.record().position())).await;
}

pub async fn load(store: &impl CheckpointStore) -> Checkpoint {
    let loaded = store.load(&[key()]).await.remove(0);
    loaded.expect("the store answers").expect("a row")
}

pub async fn position(store: &impl CheckpointStore) -> Position {
    load(store).await.position().clone()
}
