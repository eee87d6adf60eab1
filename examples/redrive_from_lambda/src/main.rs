//! Replays the records of a batch from the message that Lambda sent to a function's on-failure destination.
//!
//! Lambda's message contains only the range of the batch. The records are read from the stream again, and a
//! processor in this process settles each record under its original position. The example first creates the
//! stream and a message as Lambda writes it.
//!
//! Against LocalStack:
//!
//! ```text
//! AWS_ENDPOINT_URL=http://localhost:4566 AWS_REGION=us-east-1 AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test \
//!     cargo run -p redrive_from_lambda
//! ```

use std::future::pending;
use std::time::Duration;

use anyhow::Context as _;
use aws_config::BehaviorVersion;
use aws_sdk_kinesis::primitives::Blob;
use redrive::replay::{Rehydrate, Replay, ledger, source};
use redrive::{Record, Resilient, dead_letter, processor_fn};
use serde_json::{Value, json};

const STREAM: &str = "redrive-from-lambda";
const QUEUE: &str = "redrive-from-lambda-failures";

/// The fixed processor.
async fn bill(record: Record) -> Result<(), std::io::Error> {
    let times = record.redriven().map_or(0, |redriven| redriven.count);
    let order = String::from_utf8_lossy(record.payload());
    println!("billed {order}, replayed {times} time(s)");
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let config = aws_config::load_defaults(BehaviorVersion::latest()).await;
    let kinesis = aws_sdk_kinesis::Client::new(&config);
    let sqs = aws_sdk_sqs::Client::new(&config);

    let message = put_orders(&kinesis).await?;
    let queue = sqs.create_queue().queue_name(QUEUE).send().await?;
    let queue = queue.queue_url.context("the queue has no URL")?;
    sqs.send_message()
        .queue_url(&queue)
        .message_body(message.to_string())
        .send()
        .await?;
    println!("message in the on-failure destination:\n{message:#}\n");

    let orders = Resilient::builder("billing", processor_fn(bill))
        .dead_letters(dead_letter::Memory::new())
        .build()?;
    let report = Replay::new(source::Sqs::new(sqs, queue))
        .rehydrated(Rehydrate::new(kinesis).stream(STREAM).application("billing"))
        // The replay removes the queue's messages, so the ledger need not outlive the process.
        .ledger(ledger::Memory::new())
        .on_progress(|said, _| println!("{}: {}", said.place, said.outcome))
        .through(&orders, pending())
        .await?;
    println!(
        "\n{} records of {} messages replayed",
        report.replayed, report.read
    );
    Ok(())
}

/// Puts five orders into the stream, and returns the message that Lambda would write after giving up on them.
async fn put_orders(kinesis: &aws_sdk_kinesis::Client) -> anyhow::Result<Value> {
    let made = kinesis
        .create_stream()
        .stream_name(STREAM)
        .shard_count(1)
        .send()
        .await;
    if let Err(error) = made
        && !error
            .as_service_error()
            .is_some_and(|error| error.is_resource_in_use_exception())
    {
        return Err(error.into());
    }
    let arn = loop {
        let stream = kinesis
            .describe_stream_summary()
            .stream_name(STREAM)
            .send()
            .await?;
        let stream = stream
            .stream_description_summary
            .context("the stream is not described")?;
        if stream.stream_status.as_str() == "ACTIVE" {
            break stream.stream_arn;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    let mut places = Vec::new();
    for number in 1..=5 {
        let put = kinesis
            .put_record()
            .stream_name(STREAM)
            .partition_key("customer-1")
            .data(Blob::new(format!("order {number}")))
            .send()
            .await?;
        places.push((put.shard_id, put.sequence_number));
    }
    let (shard, first) = &places[0];
    let (_, last) = &places[4];
    Ok(json!({
        "requestContext": {
            "requestId": "c9b8fa9f-5a7f-4a3c-af9c-0c604cde93a5",
            "functionArn": "arn:aws:lambda:us-east-1:000000000000:function:bill",
            "condition": "RetryAttemptsExhausted",
            "approximateInvokeCount": 3
        },
        "responseContext": {"statusCode": 200, "executedVersion": "$LATEST", "functionError": "Unhandled"},
        "version": "1.0",
        "timestamp": "2026-11-28T09:00:00.000Z",
        "KinesisBatchInfo": {
            "shardId": shard,
            "startSequenceNumber": first,
            "endSequenceNumber": last,
            "batchSize": 5,
            "streamArn": arn
        }
    }))
}
