//! A long-running service: reads a stream until Ctrl-C or SIGTERM, then settles the records in flight.
//!
//! Against LocalStack:
//!
//! ```text
//! AWS_ENDPOINT_URL=http://localhost:4566 AWS_REGION=us-east-1 AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test \
//!     cargo run -p consumer -- orders orders-dlq
//! ```
//!
//! Against AWS, with the normal environment or profile:
//!
//! ```text
//! cargo run -p consumer -- orders orders-dlq
//! ```
//!
//! | environment variable | default |
//! |---|---|
//! | `CHECKPOINT_TABLE` | none: checkpoints are in a file. A DynamoDB table, for several processes; created if missing |
//! | `CHECKPOINT_FILE` | `STREAM.redb` |
//! | `IDEMPOTENCY_TABLE` | none. A DynamoDB table of idempotency keys; created if missing |
//! | `RUST_LOG` | `info` |

use std::env;

use aws_config::BehaviorVersion;
use redrive::{
    Consumer, Record, Resilient, RetryPolicy, checkpoint, dead_letter, idempotency, processor_fn,
    shutdown_signal,
};
use serde::Deserialize;
use tracing_subscriber::EnvFilter;

#[derive(Debug, Deserialize)]
struct Order {
    id: u64,
    cents: i64,
}

#[derive(Debug, thiserror::Error)]
enum BillingError {
    // redrive classifies serde_json's errors: invalid JSON is permanent and is dead-lettered at once.
    #[error("not an order")]
    NotAnOrder(#[from] serde_json::Error),
    // The classifier does not know this error, so redrive retries it.
    #[error("an order without an amount")]
    NoAmount,
}

async fn bill(record: Record) -> Result<(), BillingError> {
    let order: Order = serde_json::from_slice(record.payload())?;
    if order.cents == 0 {
        return Err(BillingError::NoAmount);
    }
    println!("billed order {}: {} cents", order.id, order.cents);
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();

    let mut args = std::env::args().skip(1);
    let (Some(stream), Some(dead_letters)) = (args.next(), args.next()) else {
        anyhow::bail!("usage: consumer STREAM DEAD_LETTER_STREAM");
    };
    let config = aws_config::load_defaults(BehaviorVersion::latest()).await;
    let kinesis = aws_sdk_kinesis::Client::new(&config);
    let dynamo = aws_sdk_dynamodb::Client::new(&config);

    let mut orders = Resilient::builder("billing", processor_fn(bill))
        .retry(RetryPolicy::exponential().max_attempts(5))
        .dead_letters(dead_letter::Kinesis::new(kinesis.clone(), dead_letters));
    if let Ok(table) = env::var("IDEMPOTENCY_TABLE") {
        orders = orders.idempotency(idempotency::DynamoDb::new(dynamo.clone(), table));
    }
    let consumer = Consumer::builder(kinesis, stream.as_str());
    let consumer = match env::var("CHECKPOINT_TABLE") {
        // Several processes share the table.
        Ok(table) => consumer.checkpoints(checkpoint::DynamoDb::new(dynamo, table)),
        // Only one process uses the file. The disk must outlive the process.
        Err(_) => {
            let file = env::var("CHECKPOINT_FILE").unwrap_or_else(|_| format!("{stream}.redb"));
            consumer.checkpoints(checkpoint::Redb::open(file)?)
        }
    };
    consumer
        .build()?
        .run_until(orders.build()?, shutdown_signal())
        .await?;
    Ok(())
}
