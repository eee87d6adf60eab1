//! A Lambda function on a Kinesis stream, with retries, a dead-letter stream, idempotency and metrics.
//!
//! A transient failure is retried up to three times, with exponential backoff and jitter. A record that fails
//! permanently, or four times, goes to the dead-letter stream. No record is processed twice. The function
//! writes its metrics to the log, in the format that CloudWatch reads (EMF).
//!
//! To deploy the function with `template.yaml`:
//!
//! ```text
//! cargo lambda build --release --arm64 -p lambda
//! sam deploy --guided --template-file examples/lambda/template.yaml
//! ```
//!
//! To run the function on this machine, with LocalStack instead of AWS:
//!
//! ```text
//! AWS_ENDPOINT_URL=http://localhost:4566 AWS_REGION=us-east-1 AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test \
//!     DEAD_LETTER_STREAM=orders-dlq SEEN_TABLE=orders-seen cargo lambda watch -p lambda
//! cargo lambda invoke --data-file examples/lambda/event.json
//! ```

use std::env;

use anyhow::Context as _;
use aws_config::BehaviorVersion;
use redrive::telemetry::Emf;
use redrive::{
    Idempotency, Jitter, Record, Resilient, RetryPolicy, dead_letter, idempotency, lambda, processor_fn,
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
    // CloudWatch adds its own timestamps.
    tracing_subscriber::fmt()
        .json()
        .without_time()
        .with_env_filter(filter)
        .init();
    let variable =
        |name: &str| env::var(name).with_context(|| format!("the environment variable {name} is not set"));
    let config = aws_config::load_defaults(BehaviorVersion::latest()).await;
    let kinesis = aws_sdk_kinesis::Client::new(&config);
    let seen = idempotency::DynamoDb::new(aws_sdk_dynamodb::Client::new(&config), variable("SEEN_TABLE")?);

    let retries = RetryPolicy::exponential().max_attempts(4).jitter(Jitter::Full);
    let orders = Resilient::builder("billing", processor_fn(bill))
        .retry(retries)
        .dead_letters(dead_letter::Kinesis::new(
            kinesis,
            variable("DEAD_LETTER_STREAM")?,
        ))
        .idempotency(Idempotency::new(seen).json_field("/id"))
        .observer(Emf::new())
        .build()?;
    lambda::run(orders).await.map_err(anyhow::Error::from_boxed)
}
