//! The server of a bench, in a process of its own: `bench_server kinesis` or `bench_server answers`.
//!
//! The embedded Kinesis server makes several small allocations for each record of a page. With the system's
//! allocator they are more than half of its CPU time, and a bench with a fast client measures the server. Thus
//! this program has another allocator. The clients keep their own.

use std::env;
use std::error::Error;
use std::io::{self, Read};

use bench::answers;
use mimalloc::MiMalloc;
use redrive::testing::kinesis::KinesisServer;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

#[tokio::main]
async fn main() -> Result<()> {
    match env::args().nth(1).as_deref() {
        Some("kinesis") => {
            let embedded = KinesisServer::start().await?;
            serve(embedded.endpoint()).await
        }
        Some("answers") => serve(&answers::start().await?).await,
        _ => Err("usage: bench_server kinesis|answers".into()),
    }
}

/// Reports the server's endpoint on standard output, and waits until the parent closes standard input.
async fn serve(endpoint: &str) -> Result<()> {
    println!("{endpoint}");
    tokio::task::spawn_blocking(|| io::stdin().read_to_end(&mut Vec::new())).await??;
    Ok(())
}
