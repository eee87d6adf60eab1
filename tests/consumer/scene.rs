//! The setup of a consumer test: a server behind a proxy, a stream, and a ledger of everything that happens.

use std::time::Duration;

use aws_sdk_kinesis::Client;
use redrive::consumer::ConsumerBuilder;
use redrive::{
    Consumer, ConsumerError, RecordProcessor, Resilient, ResilientBuilder, RetryPolicy, dead_letter,
};
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use redrive::testing::Script;
use redrive::testing::kinesis::{self, KinesisServer, KinesisServerBuilder};
use support::ledger::{Handler, Ledger, Note, Sink, Store};
use support::proxy::Proxy;
use support::stream::{self, Sent};
use support::waiting::finished;
use support::wire::wire;

pub const STREAM: &str = "orders";

pub struct Scene {
    pub server: KinesisServer,
    pub proxy: Proxy,
    pub ledger: Ledger,
    pub letters: dead_letter::Memory,
    pub sink: Sink,
    pub store: Store,
}

impl Scene {
    /// Creates an empty stream with this many shards.
    pub async fn new(shards: i32) -> Self {
        Scene::on(shards, KinesisServer::builder()).await
    }

    /// Creates an empty stream on a server with other settings.
    pub async fn on(shards: i32, server: KinesisServerBuilder) -> Self {
        let server = server.start().await.expect("a free port");
        let created = kinesis::create_stream(&server.client(), STREAM, shards).await;
        created.expect("a stream");
        let proxy = Proxy::start(server.endpoint()).await.expect("a free port");
        let ledger = Ledger::default();
        let letters = dead_letter::Memory::new();
        Scene {
            sink: Sink::new(&ledger, letters.clone()),
            store: Store::new(&ledger),
            server,
            proxy,
            ledger,
            letters,
        }
    }

    /// Creates a client that bypasses the proxy.
    pub fn client(&self) -> Client {
        self.server.client()
    }

    /// Puts records, each with a key and the steps for the [`Script`].
    pub async fn put(&self, records: impl IntoIterator<Item = (String, String)>) {
        stream::put(&self.client(), STREAM, records).await;
    }

    /// Reads the whole stream, bypassing the proxy.
    pub async fn read(&self) -> Vec<Sent> {
        stream::read(&self.client(), STREAM).await
    }

    /// Creates a processor that follows the payloads and retries after a short delay.
    pub fn resilient(&self) -> ResilientBuilder<Handler<Script>> {
        self.resilient_with(Script::default())
    }

    pub fn resilient_with<P: RecordProcessor>(&self, handler: P) -> ResilientBuilder<Handler<P>> {
        Resilient::builder("billing", self.ledger.handler(handler))
            .retry(RetryPolicy::constant(Duration::from_millis(20)).max_attempts(4))
            .dead_letters(self.sink.clone())
            .observer(self.ledger.clone())
    }

    /// Creates a consumer behind the proxy that reads more often than the default, so that tests are short.
    pub fn consumer(&self) -> ConsumerBuilder {
        self.consumer_of(self.proxy.client())
    }

    pub fn consumer_of(&self, client: Client) -> ConsumerBuilder {
        Consumer::builder(client, STREAM)
            .wire(wire())
            .checkpoints(self.store.clone())
            .calls_per_second(200.0)
            .idle_interval(Duration::from_millis(20))
    }

    /// Starts a consumer with the default settings of the scene.
    pub fn start(&self) -> Running {
        self.run(self.consumer(), self.resilient())
    }

    pub fn run<P: RecordProcessor + 'static>(
        &self,
        consumer: ConsumerBuilder,
        resilient: ResilientBuilder<P>,
    ) -> Running {
        self.ledger.note(Note::Run);
        let consumer = consumer.build().expect("a valid consumer");
        let resilient = resilient.build().expect("a valid processor");
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        Running {
            stop,
            task: tokio::spawn(consumer.run_until(resilient, stopped)),
        }
    }

    /// Waits until the consumer stops reading. An active reader makes a call every 20 ms.
    pub async fn reading_stops(&self) {
        let stops = async {
            loop {
                let before = self.proxy.calls("GetRecords").len();
                sleep(Duration::from_millis(300)).await;
                if self.proxy.under_way() == 0 && self.proxy.calls("GetRecords").len() == before {
                    return;
                }
            }
        };
        finished("reading stops", stops).await;
    }

    /// Waits until all records in the stream are settled, stops the consumer, and asserts that each record
    /// was settled once and in order.
    pub async fn settle_all(&self, running: Running) -> Vec<Sent> {
        let sent = self.read().await;
        self.ledger.settled(sent.len()).await;
        running.stop().await.expect("nothing halted");
        self.ledger.check_settled_once(&sent);
        assert!(
            self.ledger.is_stored(&sent),
            "the shutdown did not store the last checkpoints"
        );
        sent
    }
}

/// A running consumer. If this value is dropped, the consumer runs until the test ends.
pub struct Running {
    pub stop: CancellationToken,
    task: JoinHandle<Result<(), ConsumerError>>,
}

impl Running {
    /// Shuts the consumer down and waits until it ends.
    pub async fn stop(self) -> Result<(), ConsumerError> {
        self.stop.cancel();
        self.end().await
    }

    /// Waits until the consumer ends by itself.
    pub async fn end(self) -> Result<(), ConsumerError> {
        let ended = finished("the consumer ends", self.task).await;
        ended.expect("the consumer does not panic")
    }

    /// Drops the consumer in the middle of its work.
    pub async fn abort(self) {
        self.task.abort();
        assert!(self.task.await.is_err_and(|error| error.is_cancelled()));
    }

    pub fn is_finished(&self) -> bool {
        self.task.is_finished()
    }
}

/// Returns `count` records over `keys` keys; the record with a given number has the steps `steps(number)`.
pub fn records(count: usize, keys: usize, steps: impl Fn(usize) -> &'static str) -> Vec<(String, String)> {
    (0..count)
        .map(|number| (format!("key-{}", number % keys), steps(number).to_owned()))
        .collect()
}
