//! Tests of the sources of dead letters: the conformance suite for all sources.

use aws_sdk_sqs::types::QueueAttributeName;
use redrive::dead_letter::{self, DeadLetter, DeadLetterSink};
use redrive::replay::source;
use redrive::source_conformance;
use redrive::testing::kinesis::{KinesisServer, create_stream};
use redrive::testing::sinks::confirmed;
use redrive::testing::sources::Harness;
use support::emulator::unique;
use support::localstack::LocalStack;
use tempfile::TempDir;

source_conformance!(file, async { InFile::new() });
source_conformance!(kinesis, OnStream::new());
source_conformance!(standard_queue, optional Queue::new(false));
source_conformance!(fifo_queue, optional Queue::new(true));
source_conformance!(bucket, optional Bucket::new());

struct InFile {
    sink: dead_letter::File,
    folder: TempDir,
}

impl InFile {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let sink = dead_letter::File::open(folder.path().join("letters.jsonl"));
        InFile {
            sink: sink.expect("the file opens"),
            folder,
        }
    }
}

impl Harness for InFile {
    type Source = source::File;

    async fn write(&self, letters: &[DeadLetter]) {
        confirmed(self.sink.put(letters).await);
    }

    async fn open(&self) -> source::File {
        source::File::new(self.folder.path().join("letters.jsonl"))
    }
}

struct OnStream {
    server: KinesisServer,
    sink: dead_letter::Kinesis,
}

impl OnStream {
    async fn new() -> Self {
        let server = KinesisServer::start().await.expect("the server starts");
        let created = create_stream(&server.client(), "letters", 2).await;
        created.expect("the stream is created");
        OnStream {
            sink: dead_letter::Kinesis::new(server.client(), "letters"),
            server,
        }
    }
}

impl Harness for OnStream {
    type Source = source::Kinesis;

    async fn write(&self, letters: &[DeadLetter]) {
        confirmed(self.sink.put(letters).await);
    }

    async fn open(&self) -> source::Kinesis {
        source::Kinesis::new(self.server.client(), "letters")
    }
}

struct Queue {
    client: aws_sdk_sqs::Client,
    url: String,
    sink: dead_letter::Sqs,
}

impl Queue {
    async fn new(is_fifo: bool) -> Option<Self> {
        let client = support::local_client!(aws_sdk_sqs, LocalStack::shared()?.endpoint());
        let mut call = client.create_queue();
        call = match is_fifo {
            true => call
                .queue_name(unique("source") + ".fifo")
                .attributes(QueueAttributeName::FifoQueue, "true"),
            false => call.queue_name(unique("source")),
        };
        let url = call.send().await.expect("CreateQueue").queue_url.expect("a URL");
        Some(Queue {
            sink: dead_letter::Sqs::new(client.clone(), &url),
            client,
            url,
        })
    }
}

impl Harness for Queue {
    type Source = source::Sqs;

    async fn write(&self, letters: &[DeadLetter]) {
        confirmed(self.sink.put(letters).await);
    }

    async fn open(&self) -> source::Sqs {
        source::Sqs::new(self.client.clone(), &self.url)
    }

    /// A standard queue ends only when it is empty.
    fn ends_while_written(&self) -> bool {
        self.url.ends_with(".fifo")
    }
}

struct Bucket {
    client: aws_sdk_s3::Client,
    name: String,
    sink: dead_letter::S3,
}

impl Bucket {
    async fn new() -> Option<Self> {
        let endpoint = LocalStack::shared()?.endpoint();
        let client = support::local_client!(aws_sdk_s3, endpoint, force_path_style);
        let name = unique("source");
        let created = client.create_bucket().bucket(&name).send().await;
        created.expect("CreateBucket");
        Some(Bucket {
            sink: dead_letter::S3::new(client.clone(), &name),
            client,
            name,
        })
    }
}

impl Harness for Bucket {
    type Source = source::S3;

    async fn write(&self, letters: &[DeadLetter]) {
        confirmed(self.sink.put(letters).await);
    }

    async fn open(&self) -> source::S3 {
        source::S3::new(self.client.clone(), &self.name)
    }
}
