//! Moves a service from the Kinesis Client Library (KCL) to redrive, or back. Both use the same lease table.
//!
//! 1. Stop the KCL application. (Or leave it running. This program takes its share of the shards, and the rest
//!    when the KCL application stops.)
//! 2. Start this program with the name of KCL's lease table, by default the name of the KCL application. Every
//!    shard resumes after the last record that KCL has checkpointed.
//! 3. To return to KCL, stop this program with Ctrl-C and start KCL.
//!
//! Against servers that answer over plain HTTP, such as LocalStack and DynamoDB Local:
//!
//! ```text
//! AWS_ENDPOINT_URL_KINESIS=http://localhost:4566 AWS_ENDPOINT_URL_DYNAMODB=http://localhost:8001 \
//! AWS_REGION=us-east-1 AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test \
//!     cargo run -p kcl_migration -- orders billing
//! ```
//!
//! Against AWS, with the normal environment or profile, add `--features default-https-client`.

use aws_config::BehaviorVersion;
use redrive::observer::{Event, Observer, ShardEvent};
use redrive::{Consumer, Record, Resilient, checkpoint, dead_letter, processor_fn, shutdown_signal};
use tracing_subscriber::EnvFilter;

/// Processes one record, as the record processor of the KCL application did.
async fn process(record: Record) -> Result<(), std::io::Error> {
    println!(
        "{} {}: {} bytes",
        record.shard(),
        record.position(),
        record.payload().len()
    );
    Ok(())
}

/// Prints where each shard resumes, and each change of its owner.
struct Progress;

impl Observer for Progress {
    fn on(&self, event: &Event<'_>) {
        let Event::Shard { shard, event, .. } = event else {
            return;
        };
        match event {
            ShardEvent::Started { position, .. } => println!("{shard} resumes after {position}"),
            ShardEvent::LeasedElsewhere { owner, .. } => {
                println!("{shard} is leased by {owner}")
            }
            ShardEvent::LeaseLost { .. } => println!("{shard}: lease lost"),
            ShardEvent::HandedOver { .. } => println!("{shard} was handed over to another worker"),
            _ => {}
        }
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    let mut args = std::env::args().skip(1);
    let (Some(stream), Some(table)) = (args.next(), args.next()) else {
        anyhow::bail!("usage: kcl_migration STREAM LEASE_TABLE");
    };
    let config = aws_config::load_defaults(BehaviorVersion::latest()).await;

    let resilient = Resilient::builder("billing", processor_fn(process))
        // A file needs no set-up. A service uses a stream or a queue for its dead letters.
        .dead_letters(dead_letter::File::open("kcl_migration-letters.jsonl")?)
        .observer(std::sync::Arc::new(Progress))
        .build()?;
    Consumer::builder(aws_sdk_kinesis::Client::new(&config), stream)
        .checkpoints(checkpoint::DynamoDb::new(
            aws_sdk_dynamodb::Client::new(&config),
            table,
        ))
        .build()?
        .run_until(resilient, shutdown_signal())
        .await?;
    println!("stopped; all shards are released");
    Ok(())
}
