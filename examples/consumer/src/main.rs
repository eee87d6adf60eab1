//! A long-running service: reads a stream until Ctrl-C or SIGTERM, and drains before it ends.
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

use std::error::Error;

use aws_config::BehaviorVersion;
use redrive::{Consumer, Record, Resilient, RetryPolicy, checkpoint, dead_letter, processor_fn};
use serde::Deserialize;
use tracing_subscriber::EnvFilter;

#[derive(Debug, Deserialize)]
struct Order {
    id: u64,
    cents: i64,
}

#[derive(Debug, thiserror::Error)]
enum BillingError {
    // serde_json's errors are known: bad JSON is permanent and goes to the dead-letter stream at once.
    #[error("not an order")]
    NotAnOrder(#[from] serde_json::Error),
    // Unknown to the classifier, so it is tried again.
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
async fn main() -> Result<(), Box<dyn Error>> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();

    let mut args = std::env::args().skip(1);
    let (Some(stream), Some(dead_letters)) = (args.next(), args.next()) else {
        return Err("usage: consumer STREAM DEAD_LETTER_STREAM [CHECKPOINT_FILE]".into());
    };
    let file = args.next().unwrap_or_else(|| format!("{stream}.redb"));

    let config = aws_config::load_defaults(BehaviorVersion::latest()).await;
    let client = aws_sdk_kinesis::Client::new(&config);

    let orders = Resilient::builder("billing", processor_fn(bill))
        .retry(RetryPolicy::exponential().max_attempts(5))
        .dead_letters(dead_letter::Kinesis::new(client.clone(), dead_letters))
        .build()?;
    Consumer::builder(client, stream)
        .checkpoints(checkpoint::Redb::open(file)?)
        .build()?
        .run_until(orders, asked_to_stop())
        .await?;
    Ok(())
}

/// Completes at Ctrl-C, or at the SIGTERM that an orchestrator sends.
async fn asked_to_stop() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminate) = signal(SignalKind::terminate()) {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminate.recv() => {}
            }
            return;
        }
    }
    // Without a handler nobody can ask: run on rather than stop at once.
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}
