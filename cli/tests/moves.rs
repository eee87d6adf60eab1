//! Where the command reads and writes: never into what it reads, and in the region that an address names.

use aws_sdk_sqs::types::QueueAttributeName;
use redrive::dead_letter::{self, DeadLetter, DeadLetterSink};
use redrive::testing::kinesis;
use redrive::testing::sinks::{confirmed, letter};
use support::dynamodb::DynamoDbLocal;
use support::emulator::unique;
use support::localstack::LocalStack;
use support::stream;

use crate::run::Redrive;

fn letters() -> Vec<DeadLetter> {
    (0..5)
        .map(|i| letter(i, Some("a"), format!("order {i}")))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_into_the_storage_that_is_read_is_refused() {
    let Some(localstack) = LocalStack::shared() else {
        return;
    };
    let redrive = Redrive::at(localstack.endpoint());
    let letters = letters();

    let s3 = support::local_client!(aws_sdk_s3, localstack.endpoint(), force_path_style);
    let bucket = unique("orders-dlq");
    s3.create_bucket()
        .bucket(&bucket)
        .send()
        .await
        .expect("CreateBucket");
    let objects = dead_letter::S3::new(s3, &bucket).prefix("p/");
    confirmed(objects.put(&letters).await);
    let objects = format!("s3:{bucket}/p/");

    let sqs = support::local_client!(aws_sdk_sqs, localstack.endpoint());
    let name = unique("orders-dlq") + ".fifo";
    let call = sqs.create_queue().queue_name(&name);
    let call = call
        .attributes(QueueAttributeName::FifoQueue, "true")
        .send()
        .await;
    let url = call.expect("CreateQueue").queue_url.expect("a URL");
    confirmed(dead_letter::Sqs::new(sqs, &url).put(&letters).await);

    let client = kinesis::client(localstack.endpoint());
    let dlq = unique("orders-dlq");
    kinesis::create_stream(&client, &dlq, 1).await.expect("a stream");
    confirmed(dead_letter::Kinesis::new(client, &dlq).put(&letters).await);

    let file = redrive.folder.path().join("letters.jsonl");
    confirmed(
        dead_letter::File::open(&file)
            .expect("it opens")
            .put(&letters)
            .await,
    );
    let file = redrive.file("letters.jsonl");

    let (by_name, by_url) = (format!("sqs:{name}"), format!("sqs:{url}"));
    let stream = format!("kinesis:{dlq}");
    for (from, to) in [
        (&objects, &objects),
        (&objects, &format!("s3://{bucket}")),
        (&by_name, &by_url),
        (&stream, &stream),
        (&file, &file),
    ] {
        let ended = redrive.run(&["replay", from, "--to-dead-letters", to, "--yes"]);
        assert_eq!(ended.code, Some(1), "{from} {to}: {ended:?}");
        assert!(ended.err.contains("which overlaps it"), "{from} {to}: {ended:?}");
        let list = redrive.run(&["list", from]);
        assert_eq!(list.out.lines().count(), 5, "{from} {to}: {list:?}");
    }
    // The stream that the records would be put into.
    let ended = redrive.run(&["replay", &stream, "--to-stream", &dlq, "--yes"]);
    assert!(ended.err.contains("which overlaps it"), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_arn_keeps_its_region() {
    let Some(localstack) = LocalStack::shared() else {
        return;
    };
    let redrive = Redrive::at(localstack.endpoint());
    let near = kinesis::client(localstack.endpoint());
    let config = near.config().to_builder();
    let region = aws_sdk_kinesis::config::Region::new("us-west-2");
    let far = aws_sdk_kinesis::Client::from_conf(config.region(region).build());
    let (dlq, orders) = (unique("orders-dlq"), unique("orders"));
    for client in [&near, &far] {
        for name in [&dlq, &orders] {
            kinesis::create_stream(client, name, 1).await.expect("a stream");
        }
    }
    let arn = |name: &str| format!("arn:aws:kinesis:us-west-2:000000000000:stream/{name}");
    let file = redrive.folder.path().join("letters.jsonl");
    let sink = dead_letter::File::open(&file).expect("it opens");
    confirmed(sink.put(&letters()).await);

    // Into it, out of it, and its records into another.
    let to = format!("kinesis:{}", arn(&dlq));
    let ended = redrive.run(&[
        "replay",
        &redrive.file("letters.jsonl"),
        "--to-dead-letters",
        &to,
        "--yes",
    ]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(stream::read(&near, &dlq).await.len(), 0);
    assert_eq!(stream::read(&far, &dlq).await.len(), 5);
    let list = redrive.run(&["list", &to]);
    assert_eq!(list.out.lines().count(), 5, "{list:?}");
    let ended = redrive.run(&["replay", &to, "--to-stream", &arn(&orders), "--yes"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(stream::read(&near, &orders).await.len(), 0);
    assert_eq!(stream::read(&far, &orders).await.len(), 5);
}

#[test]
fn missing_idempotency_store_is_not_created() {
    let refused = |redrive: &Redrive, store: &str| {
        let to = redrive.file("letters.jsonl");
        let ended = redrive.run(&[
            "rehydrate",
            "s3:failures",
            "--to-dead-letters",
            &to,
            "--idempotency",
            store,
            "--yes",
        ]);
        assert_eq!(ended.code, Some(1), "{ended:?}");
        ended.err
    };
    let redrive = Redrive::at("http://127.0.0.1:1");
    let path = redrive.folder.path().join("seen.redb");
    let said = refused(&redrive, &format!("redb:{}", path.display()));
    assert!(said.contains("seen.redb does not exist"), "{said}");
    assert!(!path.exists());

    let Some(local) = DynamoDbLocal::shared() else {
        return;
    };
    let redrive = Redrive::at(local.endpoint());
    let store = format!("dynamodb:{}", unique("seen"));
    for _ in 0..2 {
        let said = refused(&redrive, &store);
        assert!(said.contains(&format!("{store} cannot be reached")), "{said}");
    }
}
