//! A child of KCL's MultiLangDaemon: the daemon distributes the shards among machines, and this program
//! processes their records.
//!
//! KCL's jars come with a Python package; the daemon needs Java:
//!
//! ```text
//! cargo build --release -p kcl
//! pip install kclpy-ext==3.1.3.post4
//! jars=$(python -c 'import amazon_kclpy, os; print(os.path.dirname(amazon_kclpy.__file__))')/jars
//! java -cp "$jars/*" software.amazon.kinesis.multilang.MultiLangDaemon --properties-file examples/kcl/kcl.properties
//! ```
//!
//! Standard output carries the protocol with the daemon, so the program must not print to it. Logs go to
//! standard error.

use std::env;

use anyhow::Context as _;
use redrive::{Resilient, RetryPolicy, StreamId, dead_letter, multilang, processor_fn_json};
use serde::Deserialize;
use tracing_subscriber::EnvFilter;

#[derive(Debug, Deserialize)]
struct Order {
    id: u64,
    cents: i64,
}

#[derive(Debug, thiserror::Error)]
#[error("an order without an amount")]
struct NoAmount;

async fn bill(order: Order) -> Result<(), NoAmount> {
    if order.cents == 0 {
        return Err(NoAmount);
    }
    tracing::info!(order.id, order.cents, "billed");
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    let stream: StreamId = env::args().nth(1).context("usage: kcl STREAM")?.parse()?;
    // The daemon runs one process per shard, so each process needs its own file.
    let letters = format!("{}-letters-{}.jsonl", stream.name(), std::process::id());
    let orders = Resilient::builder("billing", processor_fn_json(bill))
        .retry(RetryPolicy::exponential().max_attempts(5))
        .dead_letters(dead_letter::File::open(letters)?)
        .build()?;
    multilang::run(orders, stream).await?;
    Ok(())
}
