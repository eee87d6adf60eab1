//! A service with /metrics for Prometheus, and /livez and /readyz for an orchestrator.
//!
//! The service starts its own Kinesis server.
//!
//! ```text
//! cargo run -p prometheus              # then open http://localhost:9000/metrics
//! cargo run -p prometheus -- --once    # fetches its own endpoints, prints the result, and ends
//! ```

use std::error::Error;
use std::time::Duration;

use aws_sdk_kinesis::primitives::Blob;
use aws_sdk_kinesis::types::PutRecordsRequestEntry;
use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use clap::Parser;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use redrive::consumer::Health;
use redrive::telemetry::Metrics;
use redrive::testing::kinesis::{self, KinesisServer};
use redrive::{
    Consumer, MarkFailure, Record, Resilient, checkpoint, dead_letter, processor_fn, shutdown_signal,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

#[derive(Debug, Parser)]
struct Arguments {
    /// Port to listen on
    #[arg(long, default_value_t = 9000)]
    port: u16,
    /// Fetch the endpoints once, print the result, and end
    #[arg(long)]
    once: bool,
}

/// Bills an order. One order in fifty fails permanently.
async fn bill(record: Record) -> Result<(), Box<dyn Error + Send + Sync>> {
    tokio::time::sleep(Duration::from_millis(2)).await;
    let order: u64 = std::str::from_utf8(record.payload())?.parse()?;
    match order % 50 {
        0 => Err("a broken order").permanent().map_err(Into::into),
        _ => Ok(()),
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let Arguments { port, once } = Arguments::parse();
    let recorded = PrometheusBuilder::new().install_recorder()?;
    Metrics::describe();

    let server = KinesisServer::start().await?;
    let kinesis = server.client();
    kinesis::create_stream(&kinesis, "orders", 2).await?;
    let producing = tokio::spawn(produce(kinesis.clone()));

    let orders = Resilient::builder("billing", processor_fn(bill))
        .dead_letters(dead_letter::Memory::new())
        .observer(Metrics::new())
        .build()?;
    let consumer = Consumer::builder(kinesis, "orders")
        .checkpoints(checkpoint::Memory::new())
        .build()?;
    let listener = TcpListener::bind(("127.0.0.1", if once { 0 } else { port })).await?;
    let at = listener.local_addr()?;
    let serving = tokio::spawn(serve(listener, recorded, consumer.health()));
    println!("http://{at}/metrics, /livez, /readyz");

    let stop = async {
        match once {
            true => {
                if let Err(error) = look(at.port()).await {
                    println!("{error}");
                }
            }
            false => shutdown_signal().await,
        }
    };
    consumer.run_until(orders, stop).await?;
    producing.abort();
    serving.abort();
    Ok(())
}

async fn serve(listener: TcpListener, recorded: PrometheusHandle, health: Health) {
    let (live, ready) = (health.clone(), health);
    let answer = |is: bool| {
        if is {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        }
    };
    let app = Router::new()
        .route("/metrics", get(async move || recorded.render()))
        .route("/livez", get(async move || answer(live.report().live)))
        .route("/readyz", get(async move || answer(ready.report().ready)));
    if let Err(error) = axum::serve(listener, app).await {
        eprintln!("metrics server failed: {error}");
    }
}

/// Puts up to 500 orders per second into the stream.
async fn produce(kinesis: aws_sdk_kinesis::Client) -> Result<(), aws_sdk_kinesis::Error> {
    for first in (0_u64..).step_by(50) {
        let entries = (first..first + 50).map(|order| {
            PutRecordsRequestEntry::builder()
                .partition_key(format!("customer-{}", order % 20))
                .data(Blob::new(order.to_string()))
                .build()
        });
        let entries = entries.collect::<Result<Vec<_>, _>>()?;
        let call = kinesis.put_records().stream_name("orders");
        call.set_records(Some(entries)).send().await?;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// Polls the endpoints until the service is live and ready and has counted a dead letter.
async fn look(port: u16) -> Result<(), Box<dyn Error + Send + Sync>> {
    for _ in 0..300 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let metrics = fetch(port, "/metrics").await?;
        let letters = metrics
            .lines()
            .find(|line| line.starts_with("redrive_records_dead_lettered_total{"));
        let (live, ready) = (fetch(port, "/livez").await?, fetch(port, "/readyz").await?);
        let are_fine = [live, ready]
            .iter()
            .all(|answer| answer.starts_with("HTTP/1.1 200"));
        if let (Some(letters), true) = (letters, are_fine) {
            println!("live, ready, and measured: {letters}");
            return Ok(());
        }
    }
    Err("the service was not ready, or had no dead letter, within 30 s".into())
}

async fn fetch(port: u16, path: &str) -> Result<String, Box<dyn Error + Send + Sync>> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}
