use redrive::{Consumer, Record, Resilient, checkpoint, dead_letter, processor_fn, shutdown_signal};

/// The processor: the code that you have. An error is retried, unless it is known to be permanent.
async fn store_order(record: Record) -> anyhow::Result<()> {
    println!("{}: {} bytes", record.position(), record.payload().len());
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt::init();
    let config = aws_config::load_defaults(aws_config::BehaviorVersion::latest()).await;
    let kinesis = aws_sdk_kinesis::Client::new(&config);

    // "billing" is the application's name: part of checkpoints, idempotency keys and dead-letter ids.
    let orders = Resilient::builder("billing", processor_fn(store_order))
        .dead_letters(dead_letter::Kinesis::new(kinesis.clone(), "orders-dlq"))
        .build()?;
    // Reads the stream "orders" until SIGTERM or Ctrl-C, then settles what is in flight.
    Consumer::builder(kinesis, "orders")
        .checkpoints(checkpoint::Redb::open("billing.redb")?)
        .build()?
        .run_until(orders, shutdown_signal())
        .await?;
    Ok(())
}
