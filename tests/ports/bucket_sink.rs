//! Tests of dead letters in S3 on LocalStack: the sink conformance suite, and tests specific to a bucket.

use std::sync::{Arc, Mutex};

use aws_sdk_s3::Client;
use axum::Router;
use axum::http::{HeaderMap, Method};
use redrive::dead_letter::{
    ClaimCheck, ClaimError, DeadLetter, DeadLetterSink, Memory, PayloadStore, S3, SinkError, SourceStream,
    TargetError,
};
use redrive::replay::{DeadLetterSource, source};
use redrive::testing::payloads;
use redrive::testing::sinks::{Harness, confirmed, letter};
use redrive::{payload_store_conformance, sink_conformance};
use support::emulator::unique;
use support::localstack::LocalStack;

fn client(endpoint: &str) -> Client {
    // The emulator does not resolve bucket names as host names.
    support::local_client!(aws_sdk_s3, endpoint, force_path_style)
}

/// A bucket, and the sink that writes to it.
struct Bucket {
    client: Client,
    name: String,
    sink: S3,
}

impl Bucket {
    async fn new() -> Option<Self> {
        let client = client(LocalStack::shared()?.endpoint());
        let name = unique("letters");
        let created = client.create_bucket().bucket(&name).send().await;
        created.expect("CreateBucket");
        Some(Bucket {
            sink: S3::new(client.clone(), &name).prefix("dead-letters/").seed(7),
            client,
            name,
        })
    }

    /// Returns the key of a payload's object.
    fn key<'a>(&self, place: &'a str) -> &'a str {
        let key = place.strip_prefix(&format!("s3://{}/", self.name));
        key.expect("in the bucket")
    }

    /// Returns all keys in the order of the listing.
    async fn keys(&self) -> Vec<String> {
        let mut pages = self
            .client
            .list_objects_v2()
            .bucket(&self.name)
            .into_paginator()
            .send();
        let mut keys = Vec::new();
        while let Some(page) = pages.next().await {
            let objects = page.expect("ListObjectsV2").contents.unwrap_or_default();
            keys.extend(objects.into_iter().map(|object| object.key.expect("a key")));
        }
        keys
    }

    async fn letters(&self) -> Vec<DeadLetter> {
        let mut letters = Vec::new();
        for key in self.keys().await {
            let object = self.client.get_object().bucket(&self.name).key(key).send().await;
            // LocalStack may keep a part of an object whose upload was aborted. S3 does not.
            if let Ok(body) = object.expect("GetObject").body.collect().await {
                letters.push(DeadLetter::decode(&body.into_bytes()).expect("a letter"));
            }
        }
        letters
    }
}

impl Harness for Bucket {
    type Sink = S3;

    fn sink(&self) -> &S3 {
        &self.sink
    }

    fn source(&self) -> Option<Box<dyn DeadLetterSource>> {
        let source = source::S3::new(self.client.clone(), &self.name);
        Some(Box::new(source.prefix("dead-letters/")))
    }

    async fn read_back(&self, _is_complete: impl Fn(&[DeadLetter]) -> bool) -> Vec<DeadLetter> {
        self.letters().await
    }
}

impl payloads::Harness for Bucket {
    fn store(&self) -> &dyn PayloadStore {
        &self.sink
    }

    async fn overwrite(&self, place: &str, bytes: Vec<u8>) {
        let call = self.client.put_object().bucket(&self.name).key(self.key(place));
        call.body(bytes.into()).send().await.expect("PutObject");
    }

    async fn delete(&self, place: &str) {
        let call = self.client.delete_object().bucket(&self.name);
        call.key(self.key(place)).send().await.expect("DeleteObject");
    }
}

sink_conformance!(bucket, optional Bucket::new());
payload_store_conformance!(payloads_in_a_bucket, optional Bucket::new());

#[tokio::test]
async fn dead_letter_overwrites_its_earlier_copy() {
    let Some(bucket) = Bucket::new().await else { return };
    let letters: Vec<DeadLetter> = (0..5).map(|number| letter(number, Some("a"), "x")).collect();
    let first = confirmed(bucket.sink.put(&letters).await);
    let again = confirmed(bucket.sink.put(&letters).await);
    assert_eq!(first, again);
    let keys = bucket.keys().await;
    assert_eq!(keys.len(), 5);
    assert!(
        keys.iter()
            .all(|key| key.starts_with("dead-letters/orders/shardId-000000000001/2026/09/21/")),
        "{keys:?}"
    );
    assert!(
        first
            .iter()
            .zip(&keys)
            .all(|(receipt, key)| receipt.location == format!("{}/{key}", bucket.name))
    );
}

/// Tests the largest record that a stream can have.
#[tokio::test]
async fn record_of_10_mib_is_stored() {
    let Some(bucket) = Bucket::new().await else { return };
    let large = letter(1, Some("a"), vec![b'x'; 10 * 1024 * 1024]);
    confirmed(bucket.sink.put(std::slice::from_ref(&large)).await);
    assert_eq!(bucket.letters().await, [large]);
}

#[tokio::test]
async fn missing_bucket_confirms_nothing_and_fails_the_check() {
    let Some(bucket) = Bucket::new().await else { return };
    let source = SourceStream::new("orders");
    assert_eq!(bucket.sink.check(&source).await.expect("the bucket exists"), []);
    let none = S3::new(bucket.client.clone(), "no-such-bucket-of-mine").seed(7);
    let error = none.check(&source).await.expect_err("the bucket does not exist");
    assert!(matches!(error, TargetError::Unreachable { .. }), "{error:?}");
    let results = none
        .put(&[letter(1, Some("a"), "x"), letter(2, Some("a"), "x")])
        .await;
    assert!(
        matches!(
            results[..],
            [Err(SinkError::Unavailable(_)), Err(SinkError::Behind)]
        ),
        "{results:?}"
    );
}

/// Each request must name the expected bucket owner. S3 checks the owner, LocalStack does not.
#[tokio::test]
async fn every_request_names_the_expected_owner() {
    type Asked = (Method, Option<String>);
    let seen: Arc<Mutex<Vec<Asked>>> = Arc::default();
    let notes = seen.clone();
    let app = Router::new().fallback(move |method: Method, headers: HeaderMap| {
        let owner = headers.get("x-amz-expected-bucket-owner");
        let owner = owner.map(|owner| owner.to_str().expect("text").to_owned());
        notes.lock().expect("no panic while locked").push((method, owner));
        std::future::ready(())
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a free port");
    let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
    tokio::spawn(async move { axum::serve(listener, app).await });
    let sink = S3::new(client(&endpoint), "letters").expected_bucket_owner("111111111111");
    sink.check(&SourceStream::new("orders")).await.expect("an answer");
    confirmed(
        sink.put(&[letter(1, Some("a"), "x"), letter(2, Some("b"), "x")])
            .await,
    );
    let owner = Some("111111111111".to_owned());
    let expected = [Method::HEAD, Method::PUT, Method::PUT].map(|method| (method, owner.clone()));
    assert_eq!(*seen.lock().expect("no panic while locked"), expected);
}

#[tokio::test]
async fn large_payload_is_stored_in_the_bucket_and_restored() {
    let Some(bucket) = Bucket::new().await else { return };
    let inside = Memory::new();
    let store = || {
        S3::new(bucket.client.clone(), &bucket.name)
            .prefix("payloads/")
            .seed(7)
    };
    let sink = ClaimCheck::new(inside.clone(), store()).over(1_000);
    let letters = [
        letter(1, Some("a"), vec![b'x'; 1_000]),
        letter(2, Some("a"), vec![b'x'; 1_001]),
        letter(3, Some("b"), vec![b'x'; 3_000_000]),
    ];
    confirmed(sink.put(&letters).await);
    let written = inside.letters();
    assert_eq!(written[0], letters[0]);
    assert!(
        written[1..]
            .iter()
            .all(|letter| letter.payload.is_empty() && letter.payload_at.is_some())
    );
    for (written, whole) in written.iter().zip(&letters) {
        // Both encodings read back.
        let read = DeadLetter::decode(&written.encode()).expect("a letter");
        let line = DeadLetter::from_json_line(&written.to_json_line()).expect("a letter");
        assert_eq!((&read, &line), (written, written));
        assert_eq!(sink.redeem(read).await.expect("the payload exists"), *whole);
    }

    // A payload that is changed, deleted or in another bucket is an error.
    let place = written[1].payload_at.clone().expect("a place");
    let key = place
        .split_once(&format!("{}/", bucket.name))
        .expect("in the bucket")
        .1;
    let put = || bucket.client.put_object().bucket(&bucket.name).key(key);
    let other = put().body(vec![b'y'; 1_001].into()).send().await;
    other.expect("PutObject");
    let changed = sink.redeem(written[1].clone()).await;
    assert!(matches!(changed, Err(ClaimError::Digest { .. })), "{changed:?}");
    let cut = put().body(vec![b'x'; 5].into()).send().await;
    cut.expect("PutObject");
    let changed = sink.redeem(written[1].clone()).await;
    assert!(
        matches!(
            changed,
            Err(ClaimError::Length {
                expected: 1_001,
                found: 5,
                ..
            })
        ),
        "{changed:?}"
    );
    let deleted = bucket
        .client
        .delete_object()
        .bucket(&bucket.name)
        .key(key)
        .send()
        .await;
    deleted.expect("DeleteObject");
    let gone = sink.redeem(written[1].clone()).await.expect_err("gone");
    assert!(matches!(gone, ClaimError::Gone { .. }), "{gone:?}");
    assert!(gone.to_string().contains(&place), "{gone}");
    let mut other = written[2].clone();
    other.payload_at = Some("s3://another/key".into());
    let elsewhere = sink.redeem(other).await;
    assert!(
        matches!(elsewhere, Err(ClaimError::Elsewhere { .. })),
        "{elsewhere:?}"
    );

    // A dead letter whose payload cannot be stored is not written, and those behind it are not either.
    let none = S3::new(bucket.client.clone(), "no-such-bucket-of-mine");
    let inside = Memory::new();
    let sink = ClaimCheck::new(inside.clone(), none).over(1_000);
    let some = [letters[1].clone(), letters[0].clone(), letter(9, Some("c"), "x")];
    let results = sink.put(&some).await;
    assert!(
        matches!(
            results[..],
            [Err(SinkError::Unavailable(_)), Err(SinkError::Behind), Ok(_)]
        ),
        "{results:?}"
    );
    assert_eq!(inside.letters().len(), 1);
}

/// Moves dead letters there, back, and there again. The ledger does not skip a dead letter that came back.
#[tokio::test]
async fn dead_letter_that_was_moved_back_is_moved_again() {
    let (Some(here), Some(there)) = (Bucket::new().await, Bucket::new().await) else {
        return;
    };
    let letters: Vec<DeadLetter> = (0..5).map(|number| letter(number, Some("a"), "x")).collect();
    confirmed(here.sink.put(&letters).await);
    let ledger = redrive::replay::ledger::Memory::new();
    for (from, to) in [(&here, &there), (&there, &here), (&here, &there)] {
        let source = from.source().expect("a bucket is read");
        let sink = S3::new(to.client.clone(), &to.name).prefix("dead-letters/");
        let replay = redrive::replay::Replay::new(source).ledger(ledger.clone());
        let report = replay
            .to_sink(sink, std::future::pending())
            .await
            .expect("the replay ends");
        assert_eq!((report.replayed, report.removed), (5, 5), "{report:?}");
        assert!(from.letters().await.is_empty());
        assert_eq!(to.letters().await, letters);
    }
}

/// Replays the dead letters of `from` into a sink.
async fn moved(
    from: &Bucket,
    sink: impl DeadLetterSink + 'static,
) -> Result<redrive::replay::Report, redrive::replay::ReplayError> {
    let replay = redrive::replay::Replay::new(from.source().expect("a bucket is read"));
    let replay = replay.ledger(redrive::replay::ledger::Memory::new());
    replay.to_sink(sink, std::future::pending()).await
}

#[tokio::test]
async fn a_move_within_overlapping_prefixes_is_refused() {
    let Some(bucket) = Bucket::new().await else { return };
    let letters: Vec<DeadLetter> = (0..5).map(|number| letter(number, Some("a"), "x")).collect();
    confirmed(bucket.sink.put(&letters).await);
    let sink = |prefix: &str| S3::new(bucket.client.clone(), &bucket.name).prefix(prefix);
    for prefix in ["dead-letters/", "dead-letters/more/", "dead", ""] {
        let error = moved(&bucket, sink(prefix)).await.expect_err(prefix);
        assert!(
            matches!(error, redrive::replay::ReplayError::IntoItself { .. }),
            "{error:?}"
        );
    }
    assert_eq!(bucket.letters().await, letters);
    let report = moved(&bucket, sink("other/")).await.expect("the replay ends");
    assert_eq!((report.replayed, report.removed), (5, 5), "{report:?}");
    assert_eq!(bucket.letters().await, letters);
}

/// A sink that writes to the bucket under another name, like the alias of an access point.
#[derive(Debug)]
struct Alias(S3);

#[async_trait::async_trait]
impl DeadLetterSink for Alias {
    async fn put(&self, letters: &[DeadLetter]) -> Vec<Result<redrive::dead_letter::Receipt, SinkError>> {
        self.0.put(letters).await
    }
}

#[tokio::test]
async fn objects_overwritten_by_a_move_are_not_removed() {
    let Some(bucket) = Bucket::new().await else { return };
    let letters: Vec<DeadLetter> = (0..5).map(|number| letter(number, Some("a"), "x")).collect();
    confirmed(bucket.sink.put(&letters).await);
    let alias = Alias(S3::new(bucket.client.clone(), &bucket.name).prefix("dead-letters/"));
    let report = moved(&bucket, alias).await.expect("the replay ends");
    assert_eq!((report.removed, report.not_removed), (0, 5), "{report:?}");
    assert!(!report.is_clean());
    assert_eq!(bucket.letters().await, letters);
}

#[tokio::test]
async fn dead_letter_replaced_since_it_was_read_is_kept() {
    let Some(bucket) = Bucket::new().await else { return };
    let one = letter(1, Some("a"), "x");
    confirmed(bucket.sink.put(std::slice::from_ref(&one)).await);
    let mut source = bucket.source().expect("a bucket is read");
    let page = source.read().await.expect("the page is read");
    let handles: Vec<_> = page.into_iter().map(|message| message.handle).collect();
    confirmed(bucket.sink.put(std::slice::from_ref(&one)).await);
    let removed = source.remove(&handles).await;
    assert!(
        matches!(removed[..], [Err(redrive::replay::SourceError::Changed { .. })]),
        "{removed:?}"
    );
    assert_eq!(bucket.letters().await, [one]);
}

/// The server answers like S3, but its listing never ends or ends too early.
#[tokio::test]
async fn listing_that_repeats_or_stops_early_is_an_error() {
    for page in [
        "<IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>",
        "<IsTruncated>true</IsTruncated>",
    ] {
        let page = format!("<?xml version=\"1.0\"?><ListBucketResult>{page}</ListBucketResult>");
        let app = Router::new().fallback(move || std::future::ready(page.clone()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a free port");
        let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
        tokio::spawn(async move { axum::serve(listener, app).await });
        let mut source = source::S3::new(client(&endpoint), "letters");
        let error = source.read().await.expect_err("the listing has no end");
        assert!(
            matches!(error, redrive::replay::SourceError::Unavailable { .. }),
            "{error:?}"
        );
    }
}

#[tokio::test]
async fn payload_is_read_only_from_allowed_places() {
    use redrive::replay::{Replay, ledger};

    let Some(bucket) = Bucket::new().await else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("letters.jsonl");
    let store = |prefix: &str| S3::new(bucket.client.clone(), &bucket.name).prefix(prefix);
    let file = redrive::dead_letter::File::open(&path).expect("the file opens");
    let sink = ClaimCheck::new(file, store("payloads/")).over(10);
    let large = letter(1, Some("a"), vec![b'x'; 1_000]);
    confirmed(sink.put(std::slice::from_ref(&large)).await);
    let seen: Arc<Mutex<Vec<usize>>> = Arc::default();
    let handler = redrive::processor_with(
        seen.clone(),
        async |seen: Arc<Mutex<Vec<usize>>>, record: redrive::Record| -> Result<(), std::io::Error> {
            seen.lock().expect("not poisoned").push(record.payload().len());
            Ok(())
        },
    );
    let orders = redrive::Resilient::builder("billing", handler)
        .dead_letters(Memory::new())
        .build()
        .expect("complete");
    let replay = |stores: &[&str]| {
        let replay = Replay::new(source::File::new(&path)).ledger(ledger::Memory::new());
        let replay = stores
            .iter()
            .fold(replay, |replay, prefix| replay.payloads(store(prefix)));
        replay.through(&orders, std::future::pending())
    };
    for refused in [&[][..], &["other/"]] {
        let report = replay(refused).await.expect("the replay ends");
        assert_eq!((report.no_payload, report.replayed), (1, 0), "{report:?}");
    }
    let report = replay(&["other/", "payloads/"]).await.expect("the replay ends");
    assert_eq!(report.replayed, 1, "{report:?}");
    assert_eq!(*seen.lock().expect("not poisoned"), [1_000]);

    // An object of another dead letter, or one larger than a record, is not read as the payload.
    let inside = Memory::new();
    let checked = ClaimCheck::new(inside.clone(), store("payloads/")).over(10);
    confirmed(checked.put(std::slice::from_ref(&large)).await);
    let mut stated = inside.letters().remove(0);
    stated.payload_bytes = u64::MAX;
    let error = sink.redeem(stated.clone()).await;
    assert!(matches!(error, Err(ClaimError::TooLarge { .. })), "{error:?}");
    let secret = bucket
        .client
        .put_object()
        .bucket(&bucket.name)
        .key("payloads/secret");
    secret.body(vec![b'x'; 5].into()).send().await.expect("PutObject");
    stated.payload_at = Some(format!("s3://{}/payloads/secret", bucket.name));
    stated.payload_bytes = 5;
    let error = sink.redeem(stated).await;
    assert!(matches!(error, Err(ClaimError::Elsewhere { .. })), "{error:?}");
}
