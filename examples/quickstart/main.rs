//! `cargo run --example quickstart`: settles every order of a stream, although some orders fail.
//!
//! Everything runs in this process: a Kinesis API server on a local port, a producer, and a consumer
//! with retries, a dead-letter file and checkpoints. At the end, the example reads the stream again without
//! redrive and verifies that no record was lost.
//!
//! With `-- --cbor` the consumer asks for its records in CBOR, which costs less CPU time than JSON.

mod orders;
mod screen;
mod verify;

use std::process::ExitCode;
use std::sync::Arc;

use redrive::consumer::Wire;
use redrive::{Consumer, Jitter, Resilient, RetryPolicy, checkpoint, dead_letter};

use orders::Billing;
use redrive::testing::kinesis::{self, KinesisServer};
use screen::Screen;

const STREAM: &str = "orders";
const SHARDS: i32 = 4;
const ORDERS: u64 = 10_000;

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    // redrive catches panics, but Rust's panic hook prints the message first, which may contain a payload.
    std::panic::set_hook(Box::new(|_| {}));
    let wire = match std::env::args().nth(1).as_deref() {
        None => Wire::Json,
        Some("--cbor") => Wire::Cbor,
        Some(other) => anyhow::bail!("unknown argument {other:?}; the only argument is --cbor"),
    };
    let folder = tempfile::tempdir()?;
    let letters = folder.path().join("dead-letters.jsonl");

    let server = KinesisServer::start().await?;
    kinesis::create_stream(&server.client(), STREAM, SHARDS).await?;
    orders::put(&server.client(), STREAM, ORDERS).await?;
    println!(
        "{ORDERS} orders are in a stream of {SHARDS} shards at {}",
        server.endpoint()
    );

    let billing = Arc::new(Billing::default());
    let screen = Arc::new(Screen::new(ORDERS));
    let orders = Resilient::builder("billing", billing.clone())
        .retry(RetryPolicy::exponential().max_attempts(5).jitter(Jitter::Full))
        .dead_letters(dead_letter::File::open(&letters)?)
        .observer(screen.clone())
        .build()?;
    Consumer::builder(server.client(), STREAM)
        .wire(wire)
        .checkpoints(checkpoint::Redb::open(folder.path().join("checkpoints.redb"))?)
        .build()?
        .run_until(orders, screen.all_settled())
        .await?;
    screen.finish();

    let found = verify::settled(&server.client(), STREAM, &billing, &letters).await?;
    screen.print_table();
    found.print();
    Ok(if found.is_clean() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
