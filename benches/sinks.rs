//! The cost of a dead letter in each sink compared with a plain batch call of the SDK:
//! `cargo bench -p redrive-benches --bench sinks`.
//!
//! Both write the same dead letters, of records of 1,000 bytes that failed twice, with the same client: no
//! retries, an attempt timeout of 30 s. The plain call is what a user would write by hand: it sends the dead
//! letters' bytes, as many per call as the service accepts, and checks for failed entries. The sink adds
//! order by partition key, the limits of a request, a retry of only the failed entries, and a receipt for
//! each dead letter. Both encode the bytes again each time; the table shows the cost of the encoding
//! separately. A put has 500 dead letters, the maximum that redrive gives to a sink at once.
//!
//! The bench measures **this process's CPU time** per dead letter. The server that answers the calls runs in
//! its own process and confirms every request. There is no TLS, which would cost both the same. Sink and
//! plain call alternate, and the result is the median of the pairs' ratios.

use std::error::Error;
use std::hint::black_box;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, anyhow};
use aws_sdk_kinesis::primitives::Blob;
use aws_sdk_kinesis::types::PutRecordsRequestEntry;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_sns::types::PublishBatchRequestEntry;
use aws_sdk_sqs::types::SendMessageBatchRequestEntry;
use bench::median;
use futures_util::future::try_join_all;
use redrive::dead_letter::{DeadLetter, DeadLetterSink, Kinesis, Memory, S3, Sns, SourceStream, Sqs};
use redrive::processor::Attempt;
use redrive::{Record, RecordProcessor, Resilient, RetryPolicy, Settled};
use rustix::time::{ClockId, clock_gettime};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const LETTERS: u64 = 500;
const PAYLOAD_BYTES: usize = 1_000;
/// The maximum factor of a sink's CPU time to the plain call's.
const TARGET: f64 = 1.5;

const QUEUE: &str = "https://sqs.us-east-1.amazonaws.com/123456789012/letters";
const TOPIC: &str = "arn:aws:sns:us-east-1:123456789012:letters";

/// Creates a client with the settings of the sinks' own clients, so that both sides are alike.
macro_rules! client {
    ($sdk:ident, $endpoint:expr) => {
        $sdk::Client::from_conf(
            $sdk::Config::builder()
                .behavior_version($sdk::config::BehaviorVersion::latest())
                .region($sdk::config::Region::new("us-east-1"))
                .credentials_provider($sdk::config::Credentials::new(
                    "test", "test", None, None, "static",
                ))
                .endpoint_url($endpoint)
                .retry_config($sdk::config::retry::RetryConfig::disabled())
                .timeout_config(
                    $sdk::config::timeout::TimeoutConfig::builder()
                        .operation_attempt_timeout(Duration::from_secs(30))
                        .build(),
                )
                .http_client(aws_smithy_http_client::Builder::new().build_http())
                .build(),
        )
    };
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<ExitCode> {
    let (puts, rounds) = if bench::is_bench() { (4, 41) } else { (1, 1) };
    let letters = letters().await?;
    let mut beside = Beside {
        letters: &letters,
        puts,
        rounds,
        ratios: Vec::new(),
    };
    let server = bench::start_server!("answers")?;
    let kinesis = client!(aws_sdk_kinesis, &server.endpoint);
    let sqs = client!(aws_sdk_sqs, &server.endpoint);
    let sns = client!(aws_sdk_sns, &server.endpoint);
    let s3 = client!(aws_sdk_s3, &server.endpoint);

    println!(
        "{LETTERS} dead letters per put, payloads of {PAYLOAD_BYTES} bytes, {rounds} pairs of runs; µs are client CPU per dead letter"
    );
    println!(
        "{:<28} {:>10} {:>10} {:>10} {:>7} {:>15}",
        "", "plain", "sink", "encoding", "ratio", "all ratios"
    );
    let encoded: fn(&DeadLetter) -> usize = |letter| letter.encode().len();
    let as_line: fn(&DeadLetter) -> usize = |letter| letter.to_json_line().len();

    let sink = Kinesis::new(kinesis.clone(), "letters");
    let plain = async |letters: &[DeadLetter]| put_records(&kinesis, letters).await;
    beside
        .measure("Kinesis, PutRecords of 500", sink, plain, encoded)
        .await?;

    let sink = Sqs::new(sqs.clone(), QUEUE);
    let plain = async |letters: &[DeadLetter]| send_message_batch(&sqs, letters).await;
    beside
        .measure("SQS, SendMessageBatch of 10", sink, plain, as_line)
        .await?;

    let sink = Sns::new(sns.clone(), TOPIC);
    let plain = async |letters: &[DeadLetter]| publish_batch(&sns, letters).await;
    beside
        .measure("SNS, PublishBatch of 10", sink, plain, as_line)
        .await?;

    let sink = S3::new(s3.clone(), "letters");
    let plain = async |letters: &[DeadLetter]| put_objects(&s3, letters).await;
    beside
        .measure("S3, PutObject 16 at a time", sink, plain, encoded)
        .await?;

    if bench::is_bench() && beside.ratios.iter().any(|&ratio| ratio > TARGET) {
        println!("a sink takes more than {TARGET} times the plain call's CPU");
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// Makes dead letters with redrive: each has its own partition key, two attempts and an error with causes.
async fn letters() -> Result<Vec<DeadLetter>> {
    struct Fails;

    impl RecordProcessor for Fails {
        type Error = anyhow::Error;

        async fn process(&self, record: &Record, _: &Attempt<'_>) -> anyhow::Result<()> {
            let key = record.partition_key().unwrap_or_default();
            Err(anyhow!("connection closed before message completed"))
                .context("error sending request for url (https://billing.example.com/invoices)")
                .with_context(|| format!("cannot bill {key}"))
        }
    }

    let memory = Memory::new();
    let resilient = Resilient::builder("billing", Fails)
        .retry(RetryPolicy::constant(Duration::from_millis(1)).max_attempts(2))
        .without_breaker()
        .without_guard()
        .without_retry_budget()
        .dead_letters(memory.clone())
        .build()?;
    for number in 0..LETTERS {
        // A sequence number of 56 digits, as in Kinesis.
        let sequence_number = format!("4959033827149025660855969253836157109592157{number:013}").parse()?;
        let record = Record::builder("orders", "shardId-000000000000".into(), sequence_number)
            .partition_key(format!("customer-{number:06}"))
            .arrival(SystemTime::now())
            .payload(vec![b'x'; PAYLOAD_BYTES])
            .build();
        let settled = resilient.settle(&record).await?;
        assert!(matches!(settled, Settled::DeadLettered(_)));
    }
    Ok(memory.letters())
}

/// The comparison of a sink with a plain call.
struct Beside<'a> {
    letters: &'a [DeadLetter],
    puts: usize,
    rounds: usize,
    /// The median ratio of each service.
    ratios: Vec<f64>,
}

impl Beside<'_> {
    /// Measures the sink and the plain call of one service.
    async fn measure(
        &mut self,
        name: &str,
        sink: impl DeadLetterSink,
        plain: impl AsyncFn(&[DeadLetter]) -> Result<()>,
        encode: fn(&DeadLetter) -> usize,
    ) -> Result<()> {
        let put = async || {
            for result in sink.put(self.letters).await {
                result?;
            }
            Ok(())
        };
        let plain = async || plain(self.letters).await;
        let encode = async || {
            black_box(self.letters.iter().map(encode).sum::<usize>());
            Ok(())
        };
        let (mut sinks, mut plains, mut encodings) = (Vec::new(), Vec::new(), Vec::new());
        // redrive also checks the sink before it reads the first record. The sink then knows the target's
        // limit.
        sink.check(&SourceStream::new("orders")).await?;
        // The first calls open connections, so they are not measured.
        put().await?;
        plain().await?;
        for round in 0..self.rounds {
            if round % 2 == 0 {
                sinks.push(self.cpu(&put).await?);
                plains.push(self.cpu(&plain).await?);
            } else {
                plains.push(self.cpu(&plain).await?);
                sinks.push(self.cpu(&put).await?);
            }
            encodings.push(self.cpu(&encode).await?);
        }
        let pairs = sinks.iter().zip(&plains);
        let mut ratios: Vec<f64> = pairs.map(|(sink, plain)| sink / plain).collect();
        let ratio = median(&mut ratios);
        println!(
            "{name:<28} {:>7.1} µs {:>7.1} µs {:>7.1} µs {ratio:>7.2} {:>7.2} to {:<4.2}",
            median(&mut plains),
            median(&mut sinks),
            median(&mut encodings),
            ratios[0],
            ratios[ratios.len() - 1],
        );
        self.ratios.push(ratio);
        Ok(())
    }

    /// Returns the microseconds of this process's CPU time per dead letter.
    async fn cpu(&self, work: impl AsyncFn() -> Result<()>) -> Result<f64> {
        let start = cpu_time();
        for _ in 0..self.puts {
            work().await?;
        }
        Ok((cpu_time() - start).as_secs_f64() * 1e6 / (self.puts * self.letters.len()) as f64)
    }
}

fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

async fn put_records(client: &aws_sdk_kinesis::Client, letters: &[DeadLetter]) -> Result<()> {
    for letters in letters.chunks(500) {
        let entries = letters.iter().map(|letter| {
            PutRecordsRequestEntry::builder()
                .partition_key(letter.partition_key.as_deref().unwrap_or_default())
                .data(Blob::new(letter.encode()))
                .build()
        });
        let entries = entries.collect::<std::result::Result<_, _>>()?;
        let call = client.put_records().stream_name("letters");
        let output = call.set_records(Some(entries)).send().await?;
        assert_eq!(output.failed_record_count, Some(0));
    }
    Ok(())
}

async fn send_message_batch(client: &aws_sdk_sqs::Client, letters: &[DeadLetter]) -> Result<()> {
    for letters in letters.chunks(10) {
        let mut call = client.send_message_batch().queue_url(QUEUE);
        for (place, letter) in letters.iter().enumerate() {
            let entry = SendMessageBatchRequestEntry::builder().id(place.to_string());
            let body = String::from_utf8(letter.to_json_line())?;
            call = call.entries(entry.message_body(body).build()?);
        }
        let output = call.send().await?;
        assert!(output.failed.is_empty());
    }
    Ok(())
}

async fn publish_batch(client: &aws_sdk_sns::Client, letters: &[DeadLetter]) -> Result<()> {
    for letters in letters.chunks(10) {
        let mut call = client.publish_batch().topic_arn(TOPIC);
        for (place, letter) in letters.iter().enumerate() {
            let entry = PublishBatchRequestEntry::builder().id(place.to_string());
            let message = String::from_utf8(letter.to_json_line())?;
            call = call.publish_batch_request_entries(entry.message(message).build()?);
        }
        let output = call.send().await?;
        assert!(output.failed().is_empty());
    }
    Ok(())
}

async fn put_objects(client: &aws_sdk_s3::Client, letters: &[DeadLetter]) -> Result<()> {
    for letters in letters.chunks(16) {
        let calls = letters.iter().map(|letter| {
            let key = format!("{}/{}/{}", letter.stream, letter.shard, letter.id);
            let call = client.put_object().bucket("letters").key(key);
            call.body(ByteStream::from(letter.encode())).send()
        });
        try_join_all(calls).await?;
    }
    Ok(())
}
