//! Enhanced fan-out, where Kinesis pushes the records: `cargo run -p enhanced_fan_out`.
//!
//! Without an argument, the example starts a server in this process and puts orders into its own stream. With
//! the name of a stream, it reads that stream from LocalStack or AWS until Ctrl-C. Region, credentials and
//! `AWS_ENDPOINT_URL` are those of the AWS tools.
//!
//! The consumer stays registered under the application's name, and AWS charges for it by the hour. To
//! deregister it: `aws kinesis deregister-stream-consumer --stream-arn ARN --consumer-name billing`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use aws_config::BehaviorVersion;
use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::primitives::Blob;
use aws_sdk_kinesis::types::PutRecordsRequestEntry;
use redrive::testing::kinesis::{self, KinesisServer};
use redrive::{
    Consumer, Record, Resilient, StartingPosition, checkpoint, consumer::Retrieval, dead_letter,
    processor_with, shutdown_signal,
};
use tracing_subscriber::EnvFilter;

const ORDERS: usize = 500;

async fn bill(billed: Arc<AtomicUsize>, order: Record) -> Result<(), std::io::Error> {
    let number = billed.fetch_add(1, Ordering::Relaxed) + 1;
    if number.is_multiple_of(100) {
        println!(
            "{number} billed; the last order has {} bytes, from {}",
            order.payload().len(),
            order.shard()
        );
    }
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();

    let billed = Arc::new(AtomicUsize::new(0));
    let orders = Resilient::builder("billing", processor_with(billed.clone(), bill))
        .dead_letters(dead_letter::Memory::new())
        .build()?;
    let Some(stream) = std::env::args().nth(1) else {
        let server = KinesisServer::start().await?;
        let client = server.client();
        kinesis::create_stream(&client, "orders", 2).await?;
        put(&client).await?;
        let all_billed = async {
            while billed.load(Ordering::Relaxed) < ORDERS {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        return Ok(consumer(client, "orders")?.run_until(orders, all_billed).await?);
    };
    let config = aws_config::load_defaults(BehaviorVersion::latest()).await;
    let client = Client::new(&config);
    consumer(client, &stream)?
        .run_until(orders, shutdown_signal())
        .await?;
    Ok(())
}

fn consumer(client: Client, stream: &str) -> Result<Consumer, redrive::ConfigError> {
    Consumer::builder(client, stream)
        .retrieval(Retrieval::fan_out())
        .starting_position(StartingPosition::TrimHorizon)
        // In memory, like the dead letters: each run starts from the beginning. A service stores both.
        .checkpoints(checkpoint::Memory::new())
        .build()
}

async fn put(client: &Client) -> anyhow::Result<()> {
    let orders = (0..ORDERS).map(|number| {
        PutRecordsRequestEntry::builder()
            .partition_key(format!("customer-{}", number % 50))
            .data(Blob::new(format!("order {number}")))
            .build()
    });
    let orders = orders.collect::<Result<Vec<_>, _>>()?;
    client
        .put_records()
        .stream_name("orders")
        .set_records(Some(orders))
        .send()
        .await?;
    Ok(())
}
