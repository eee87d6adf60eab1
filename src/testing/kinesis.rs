//! A Kinesis API server inside the test's own process, reached over real HTTP.
//!
//! A test of a consumer needs neither Docker nor the network:
//!
//! ```
//! # #[cfg(feature = "kinesis")]
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::sync::{Arc, Mutex};
//!
//! use redrive::testing::kinesis::{KinesisServer, create_stream};
//! use redrive::{Consumer, Record, Resilient, checkpoint, dead_letter, processor_with};
//! use tokio::sync::Notify;
//!
//! let server = KinesisServer::start().await?;
//! let client = server.client();
//! create_stream(&client, "orders", 1).await?;
//! let put = client.put_record().stream_name("orders").partition_key("customer-1");
//! put.data(aws_sdk_kinesis::primitives::Blob::new("an order")).send().await?;
//!
//! // The processor under test. This one signals that it was called.
//! let called = Arc::new(Notify::new());
//! let handler = processor_with(called.clone(), async |called: Arc<Notify>, _: Record| -> Result<(), std::io::Error> {
//!     called.notify_one();
//!     Ok(())
//! });
//! let orders = Resilient::builder("billing", handler)
//!     .dead_letters(dead_letter::Memory::new())
//!     .build()?;
//! Consumer::builder(client, "orders")
//!     .checkpoints(checkpoint::Memory::new())
//!     .build()?
//!     .run_until(orders, async move { called.notified().await })
//!     .await?;
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "kinesis"))]
//! # fn main() {}
//! ```
//!
//! [`client`] and [`create_stream`] work with every other server that speaks plain HTTP and accepts any
//! credentials, such as LocalStack.
//!
//! The server is the crate `ferrokinesis`. It differs from Kinesis in these points, as of version 0.7:
//! a request may have 2 MB at most, a stream cannot be addressed by its ARN in calls that read, shards that
//! `UpdateShardCount` makes name no parents, and `AT_TIMESTAMP` is exact to the second.

use std::io;
use std::time::Duration;

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::config::{BehaviorVersion, Config, Credentials, Region};
use aws_sdk_kinesis::types::StreamStatus;
use ferrokinesis::store::StoreOptions;
use tokio::task::JoinHandle;

use crate::config::ConfigError;

/// A running Kinesis API server on a free port of 127.0.0.1.
///
/// The server needs a tokio runtime, keeps its streams in memory, and stops when dropped.
#[derive(Debug)]
pub struct KinesisServer {
    endpoint: String,
    server: JoinHandle<()>,
}

/// Settings of a [`KinesisServer`].
///
/// By default an iterator expires after 5 minutes, and a subscription ends after 5 minutes, as with Kinesis.
/// Calls that create, change or delete a stream take effect at once, and up to 10,000 shards are allowed.
#[derive(Debug)]
#[must_use = "a builder does nothing until start() is called"]
pub struct KinesisServerBuilder {
    options: StoreOptions,
}

impl KinesisServer {
    /// Starts a server with default settings.
    ///
    /// # Errors
    ///
    /// Returns the error of the operating system if no port of 127.0.0.1 can be bound.
    pub async fn start() -> io::Result<Self> {
        Self::builder().start().await
    }

    /// Returns a builder, to change settings.
    pub fn builder() -> KinesisServerBuilder {
        KinesisServerBuilder {
            options: StoreOptions {
                create_stream_ms: 0,
                delete_stream_ms: 0,
                update_stream_ms: 0,
                shard_limit: 10_000,
                ..StoreOptions::default()
            },
        }
    }

    /// Returns the address of the server, such as `http://127.0.0.1:41234`, in the form of
    /// `AWS_ENDPOINT_URL`.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Creates a client of the server.
    pub fn client(&self) -> Client {
        client(&self.endpoint)
    }
}

impl KinesisServerBuilder {
    /// Sets the time after which a shard iterator expires: at least 1 s, rounded down to whole seconds. Default:
    /// 5 minutes.
    pub fn iterator_lifetime(mut self, lifetime: Duration) -> Self {
        self.options.iterator_ttl_seconds = lifetime.as_secs();
        self
    }

    /// Sets the time after which a subscription (`SubscribeToShard`) ends.
    pub fn subscription_lifetime(mut self, lifetime: Duration) -> Self {
        self.options.subscribe_to_shard_session_ms = u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX);
        self
    }

    /// Sets the maximum number of records in one event of a subscription.
    pub fn records_per_event(mut self, records: usize) -> Self {
        self.options.subscribe_to_shard_event_record_limit = records;
        self
    }

    /// Starts the server.
    ///
    /// # Errors
    ///
    /// Returns the error of the operating system if no port of 127.0.0.1 can be bound. Returns an error of the
    /// kind `InvalidInput`, which contains a [`ConfigError`], if a setting cannot be used.
    pub async fn start(self) -> io::Result<KinesisServer> {
        self.validate()
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        let (app, _store) = ferrokinesis::create_app(self.options);
        let server = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, app).await {
                tracing::error!(%error, "embedded Kinesis server stopped");
            }
        });
        Ok(KinesisServer { endpoint, server })
    }
}

impl KinesisServerBuilder {
    fn validate(&self) -> Result<(), ConfigError> {
        if self.options.iterator_ttl_seconds == 0 {
            return Err(ConfigError::new("iterator_lifetime", "must be at least 1 s"));
        }
        if self.options.subscribe_to_shard_event_record_limit == 0 {
            return Err(ConfigError::new("records_per_event", "must be at least 1"));
        }
        Ok(())
    }
}

impl Drop for KinesisServer {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// Creates a client of any Kinesis API server that speaks plain HTTP and accepts any credentials.
pub fn client(endpoint: &str) -> Client {
    Client::from_conf(
        Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("us-east-1"))
            .credentials_provider(Credentials::new("test", "test", None, None, "static"))
            .endpoint_url(endpoint)
            .http_client(aws_smithy_http_client::Builder::new().build_http())
            .build(),
    )
}

/// Creates a stream with this number of shards, and waits until it is `ACTIVE`.
///
/// # Errors
///
/// Returns the first error of `CreateStream` or `DescribeStreamSummary`.
pub async fn create_stream(client: &Client, name: &str, shards: i32) -> Result<(), aws_sdk_kinesis::Error> {
    let create = client.create_stream().stream_name(name).shard_count(shards);
    create.send().await?;
    loop {
        let summary = client.describe_stream_summary().stream_name(name).send().await?;
        let status = summary
            .stream_description_summary
            .map(|summary| summary.stream_status);
        if status == Some(StreamStatus::Active) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
