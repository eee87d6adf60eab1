//! Runs the same failing processor with each dead-letter sink, and reads the dead letters back from it.
//!
//! Against LocalStack; the example creates the stream, queues, topic and bucket that are missing:
//!
//! ```text
//! AWS_ENDPOINT_URL=http://localhost:4566 AWS_REGION=us-east-1 AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test \
//!     cargo run -p dead_letters
//! ```
//!
//! Then inspect the dead letters with the command `redrive`, for example:
//!
//! ```text
//! cargo run -p redrive-cli -- stats sqs:redrive-letters
//! ```

use std::error::Error;
use std::ops::ControlFlow;
use std::sync::Arc;

use anyhow::Context as _;
use aws_config::{BehaviorVersion, SdkConfig};
use aws_sdk_sqs::types::QueueAttributeName;
use redrive::dead_letter::{self, DeadLetterSink, SourceStream};
use redrive::replay::{DeadLetterSource, for_each_letter, source};
use redrive::{MarkFailure, Record, Resilient, Settled, processor_fn};

const NAME: &str = "redrive-letters";

/// Bills an order. Every third order has no amount and fails permanently.
async fn bill(record: Record) -> Result<(), Box<dyn Error + Send + Sync>> {
    let order = std::str::from_utf8(record.payload())?;
    let (_, amount) = order
        .split_once(' ')
        .ok_or("an order without an amount")
        .permanent()?;
    println!("    billed {amount}");
    Ok(())
}

fn orders() -> impl Iterator<Item = Record> {
    (0..9_u64).map(|number| {
        let payload = match number % 3 {
            0 => format!("order-{number}"),
            _ => format!("order-{number} {number}.00"),
        };
        Record::builder("orders", "shardId-000000000000".into(), number.into())
            .partition_key(format!("customer-{}", number % 2))
            .payload(payload)
            .build()
    })
}

/// A sink and the source that reads its dead letters.
type Pair = (Arc<dyn DeadLetterSink>, Box<dyn DeadLetterSource>);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let config = aws_config::load_defaults(BehaviorVersion::latest()).await;
    let folder = tempfile::tempdir()?;

    let path = folder.path().join("letters.jsonl");
    let file: Pair = (
        Arc::new(dead_letter::File::open(&path)?),
        Box::new(source::File::new(&path)),
    );
    let pairs = [
        file,
        stream(&config).await?,
        queue(&config, NAME).await?,
        queue(&config, &format!("{NAME}.fifo")).await?,
        topic(&config).await?,
        bucket(&config).await?,
    ];
    for (sink, mut source) in pairs {
        println!("{}", sink.name());
        for warning in sink.check(&SourceStream::new("orders")).await? {
            println!("    warning: {}\n    remedy: {}", warning.message, warning.remedy);
        }
        let orders = self::orders();
        let billing = Resilient::builder("billing", processor_fn(bill))
            .dead_letters(sink)
            .build()?;
        for record in orders {
            if let Settled::DeadLettered(id) = billing.settle(&record).await? {
                println!("    dead letter {id}");
            }
        }
        let mut letters = 0;
        for_each_letter(&mut *source, |_, letter| {
            letters += usize::from(letter.is_ok());
            ControlFlow::Continue(())
        })
        .await?;
        println!("    {letters} dead letters read from {}", source.name());
    }
    Ok(())
}

async fn stream(config: &SdkConfig) -> anyhow::Result<Pair> {
    let client = aws_sdk_kinesis::Client::new(config);
    let made = client
        .create_stream()
        .stream_name(NAME)
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
    loop {
        let stream = client.describe_stream_summary().stream_name(NAME).send().await?;
        let status = stream
            .stream_description_summary
            .map(|stream| stream.stream_status);
        if status.is_some_and(|status| status.as_str() == "ACTIVE") {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    let source = source::Kinesis::new(client.clone(), NAME);
    Ok((
        Arc::new(dead_letter::Kinesis::new(client, NAME)),
        Box::new(source),
    ))
}

async fn queue(config: &SdkConfig, name: &str) -> anyhow::Result<Pair> {
    let (client, url) = make_queue(config, name).await?;
    let source = source::Sqs::new(client.clone(), &url);
    Ok((Arc::new(dead_letter::Sqs::new(client, url)), Box::new(source)))
}

/// Creates a topic and a subscribed queue. The queue is the source, because a topic stores no messages.
async fn topic(config: &SdkConfig) -> anyhow::Result<Pair> {
    let (sqs, url) = make_queue(config, &format!("{NAME}-of-topic")).await?;
    let client = aws_sdk_sns::Client::new(config);
    let topic = client.create_topic().name(NAME).send().await?;
    let topic = topic.topic_arn.context("the topic has no ARN")?;
    let name = QueueAttributeName::QueueArn;
    let queue = sqs
        .get_queue_attributes()
        .queue_url(&url)
        .attribute_names(name.clone());
    let attributes = queue.send().await?.attributes.unwrap_or_default();
    let arn = attributes.get(&name).context("the queue has no ARN")?;
    client
        .subscribe()
        .topic_arn(&topic)
        .protocol("sqs")
        .endpoint(arn)
        .send()
        .await?;
    Ok((
        Arc::new(dead_letter::Sns::new(client, topic)),
        Box::new(source::Sqs::new(sqs, url)),
    ))
}

async fn bucket(config: &SdkConfig) -> anyhow::Result<Pair> {
    let elsewhere = std::env::var_os("AWS_ENDPOINT_URL").is_some();
    let s3 = aws_sdk_s3::config::Builder::from(config).force_path_style(elsewhere);
    let client = aws_sdk_s3::Client::from_conf(s3.build());
    let made = client.create_bucket().bucket(NAME).send().await;
    if let Err(error) = made
        && !error
            .as_service_error()
            .is_some_and(|error| error.is_bucket_already_owned_by_you())
    {
        return Err(error.into());
    }
    let source = source::S3::new(client.clone(), NAME);
    Ok((Arc::new(dead_letter::S3::new(client, NAME)), Box::new(source)))
}

async fn make_queue(config: &SdkConfig, name: &str) -> anyhow::Result<(aws_sdk_sqs::Client, String)> {
    let client = aws_sdk_sqs::Client::new(config);
    let mut call = client.create_queue().queue_name(name);
    if name.ends_with(".fifo") {
        call = call.attributes(QueueAttributeName::FifoQueue, "true");
    }
    let url = call.send().await?.queue_url.context("the queue has no URL")?;
    Ok((client, url))
}
