//! A Kinesis API server inside this process, over real HTTP.

use std::time::Duration;

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::config::{BehaviorVersion, Config, Credentials, Region};
use aws_sdk_kinesis::types::StreamStatus;
use ferrokinesis::store::StoreOptions;
use tokio::task::JoinHandle;

/// The running server; it stops when dropped.
#[derive(Debug)]
pub struct Embedded {
    endpoint: String,
    server: JoinHandle<()>,
}

impl Embedded {
    /// Starts it on a free port, with room for many shards and no artificial delays.
    pub async fn start() -> std::io::Result<Self> {
        Self::start_with(StoreOptions {
            create_stream_ms: 0,
            delete_stream_ms: 0,
            update_stream_ms: 0,
            shard_limit: 10_000,
            ..StoreOptions::default()
        })
        .await
    }

    /// Starts it with options of its own.
    pub async fn start_with(options: StoreOptions) -> std::io::Result<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        let (app, _store) = ferrokinesis::create_app(options);
        let server = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, app).await {
                eprintln!("the embedded Kinesis server stopped: {error}");
            }
        });
        Ok(Embedded { endpoint, server })
    }

    /// Its address, as `AWS_ENDPOINT_URL` takes it.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// A client of it.
    pub fn client(&self) -> Client {
        client(&self.endpoint)
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// A client of any server that takes plain HTTP and does not look at credentials.
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

/// Creates a stream and waits until it can be used.
pub async fn create_stream(client: &Client, name: &str, shards: i32) -> Result<(), aws_sdk_kinesis::Error> {
    client
        .create_stream()
        .stream_name(name)
        .shard_count(shards)
        .send()
        .await?;
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
