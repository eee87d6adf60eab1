//! Tests specific to the Kinesis sink: the order and confirmation of entries, and the check of the target.
//! The server runs in this process, and time is paused.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::config::retry::RetryConfig;
use aws_sdk_kinesis::config::timeout::TimeoutConfig;
use redrive::dead_letter::{
    DeadLetter, DeadLetterSink, Kinesis, Payload, Receipt, SinkError, SourceStream, TargetError, Warning,
};
use redrive::testing::sinks::{confirmed, letter};
use serde_json::json;
use support::faulty::{Call, Fault, Faulty};
use support::stream::read;
use tokio::time::{Instant, advance};

const LETTERS: &str = "orders-dead-letters";
const MIB: usize = 1024 * 1024;

/// Starts a server with a dead-letter stream, and creates a sink that writes to it.
async fn sink() -> (Faulty, Kinesis) {
    let server = Faulty::new();
    let client = server.direct();
    let created = client
        .create_stream()
        .stream_name(LETTERS)
        .shard_count(2)
        .send()
        .await;
    created.expect("the stream is created");
    // A task of the server creates the stream, even without a delay.
    while !is_active(&client).await {
        tokio::task::yield_now().await;
    }
    let sink = Kinesis::new(server.client(), LETTERS);
    (server, sink)
}

async fn is_active(client: &Client) -> bool {
    let summary = client.describe_stream_summary().stream_name(LETTERS).send().await;
    let summary = summary.expect("the stream exists").stream_description_summary;
    summary.is_some_and(|summary| summary.stream_status.as_str() == "ACTIVE")
}

async fn letters_in(server: &Faulty) -> Vec<DeadLetter> {
    read(&server.direct(), LETTERS)
        .await
        .into_iter()
        .map(|record| DeadLetter::decode(&record.data.into()).expect("the dead letter reads back"))
        .collect()
}

/// Returns the numbers of the dead letters by key, without repeated ids.
fn numbers(letters: &[DeadLetter]) -> BTreeMap<String, Vec<u64>> {
    let mut seen = BTreeSet::new();
    let mut lanes: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for letter in letters.iter().filter(|letter| seen.insert(letter.id)) {
        let number = letter.sequence_number.as_str().parse().expect("a number");
        lanes
            .entry(letter.partition_key.clone().unwrap_or_default())
            .or_default()
            .push(number);
    }
    lanes
}

/// Returns one character per result: `c` confirmed, `u` unavailable, `r` refused, `b` behind another entry.
fn signs(results: &[Result<Receipt, SinkError>]) -> String {
    let sign = |result: &Result<Receipt, SinkError>| match result {
        Ok(_) => 'c',
        Err(SinkError::Unavailable(_)) => 'u',
        Err(SinkError::Refused { .. }) => 'r',
        Err(SinkError::Behind) => 'b',
        Err(other) => panic!("{other:?}"),
    };
    results.iter().map(sign).collect()
}

fn entries_of(call: &Call, key: &str) -> BTreeSet<usize> {
    let keys = call.keys();
    (0..keys.len()).filter(|&at| keys[at] == key).collect()
}

/// Creates a dead letter whose record in the stream has exactly `bytes` bytes, including its key.
fn of_size(number: u64, key: &str, bytes: usize) -> DeadLetter {
    let empty = letter(number, Some(key), "").encode().len() + key.len();
    let mut payload = bytes - empty;
    loop {
        let letter = letter(number, Some(key), vec![b'x'; payload]);
        match letter.encode().len() + key.len() {
            size if size == bytes => return letter,
            size => payload = payload + bytes - size,
        }
    }
}

/// Makes the stream report this maximum record size.
fn with_limit(call: &Call, kib: u64) -> Fault {
    match call.operation.as_str() {
        "DescribeStreamSummary" => Fault::Changed(Box::new(move |body| {
            body["StreamDescriptionSummary"]["MaxRecordSizeInKiB"] = json!(kib);
        })),
        _ => Fault::None,
    }
}

mod what_is_written {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn entry_has_the_partition_key_of_the_record() {
        let (server, sink) = sink().await;
        let keys = ["a", "grün", &"k".repeat(256)];
        let letters: Vec<_> = (0..)
            .zip(keys)
            .map(|(i, key)| letter(i, Some(key), "x"))
            .collect();
        confirmed(sink.put(&letters).await);
        for record in read(&server.direct(), LETTERS).await {
            let letter = DeadLetter::decode(&record.data.into()).expect("the dead letter reads back");
            assert_eq!(Some(record.key), letter.partition_key);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn record_without_a_key_uses_the_dead_letter_id() {
        let (server, sink) = sink().await;
        let letter = letter(1, None, "x");
        confirmed(sink.put(std::slice::from_ref(&letter)).await);
        let records = read(&server.direct(), LETTERS).await;
        assert_eq!(records[0].key, letter.id.to_string());
    }

    #[tokio::test(start_paused = true)]
    async fn invalid_key_is_hashed_and_keeps_its_order() {
        let (server, sink) = sink().await;
        let long = "k".repeat(257);
        let letters: Vec<_> = [&long, "", &long, "", "a"]
            .iter()
            .zip(0..)
            .map(|(key, i)| letter(i, Some(key), "x"))
            .collect();
        confirmed(sink.put(&letters).await);
        assert_eq!(numbers(&letters_in(&server).await), numbers(&letters));
        let records = read(&server.direct(), LETTERS).await;
        let keys: BTreeSet<_> = records.iter().map(|record| record.key.clone()).collect();
        // SHA-256 of 257 times "k" and of the empty key, computed with Python's hashlib.
        let expected = [
            "a5de0e3c93b4322bf1d2e6cc13119219d665142374de7f2b06bae237759c73e2",
            "a",
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        ];
        assert_eq!(keys, expected.map(str::to_owned).into());
    }

    #[tokio::test(start_paused = true)]
    async fn receipt_names_the_position_in_the_stream() {
        let (server, sink) = sink().await;
        let letters: Vec<_> = (0..6).map(|i| letter(i, Some(&format!("k{i}")), "x")).collect();
        let receipts = confirmed(sink.put(&letters).await);
        let client = server.direct();
        for (receipt, letter) in receipts.iter().zip(&letters) {
            let parts: Vec<&str> = receipt.location.split('/').collect();
            let [stream, shard, number] = parts[..] else {
                panic!("{receipt:?}")
            };
            let iterator = client
                .get_shard_iterator()
                .stream_name(stream)
                .shard_id(shard)
                .shard_iterator_type("AT_SEQUENCE_NUMBER".into())
                .starting_sequence_number(number)
                .send()
                .await
                .expect("the receipt names a position in the stream");
            let page = client
                .get_records()
                .set_shard_iterator(iterator.shard_iterator)
                .send()
                .await;
            let record = page.expect("the iterator is fresh").records.swap_remove(0);
            let read =
                DeadLetter::decode(&record.data.into_inner().into()).expect("the dead letter reads back");
            assert_eq!(&read, letter);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn raw_payload_keeps_the_bytes_and_the_key() {
        let (server, sink) = sink().await;
        let sink = sink.payload(Payload::Raw);
        let payloads: [&[u8]; 4] = [b"", b"\n", b"{\"total\":1}\n\0\xff", &[0xf3, 0x89, 0x9a, 0xc2]];
        let letters: Vec<_> = (0..)
            .zip(payloads)
            .map(|(i, payload)| letter(i, Some("a"), payload))
            .collect();
        confirmed(sink.put(&letters).await);
        let records = read(&server.direct(), LETTERS).await;
        let written: Vec<_> = records.iter().map(|record| &record.data[..]).collect();
        assert_eq!(written, payloads);
        assert!(records.iter().all(|record| record.key == "a"));
    }

    #[tokio::test(start_paused = true)]
    async fn request_has_at_most_500_entries_and_one_per_key() {
        let (server, sink) = sink().await;
        let letters: Vec<_> = (0..1_300)
            .map(|i| letter(i, Some(&format!("k{}", i % 650)), "x"))
            .collect();
        confirmed(sink.put(&letters).await);
        let calls = server.calls("PutRecords");
        assert_eq!(
            calls.iter().map(|call| call.keys().len()).collect::<Vec<_>>(),
            [500, 500, 300]
        );
        for call in &calls {
            let keys = call.keys();
            assert_eq!(keys.iter().collect::<BTreeSet<_>>().len(), keys.len());
        }
        assert_eq!(numbers(&letters_in(&server).await), numbers(&letters));
    }

    #[tokio::test(start_paused = true)]
    async fn request_has_at_most_10_mib() {
        let (server, sink) = sink().await;
        let letters: Vec<_> = (0..14).map(|i| of_size(i, &format!("key{i:02}"), MIB)).collect();
        // The embedded server accepts half the request size of Kinesis. This answer accepts every entry.
        server.on_call(|call| match call.operation.as_str() {
            "PutRecords" => {
                let entries: Vec<_> = (0..call.keys().len())
                    .map(|at| json!({"ShardId": "shardId-0", "SequenceNumber": at.to_string()}))
                    .collect();
                Fault::Answered(json!({"Records": entries}))
            }
            _ => Fault::None,
        });
        confirmed(sink.put(&letters).await);
        let sizes: Vec<usize> = server
            .calls("PutRecords")
            .iter()
            .map(|call| {
                let keys: usize = call.keys().iter().map(|key| key.len()).sum();
                keys + call.data().iter().map(Vec::len).sum::<usize>()
            })
            .collect();
        assert_eq!(sizes, [10 * MIB, 4 * MIB]);
    }
}

mod what_fails {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn failed_entry_is_retried_alone() {
        let (server, sink) = sink().await;
        let mut left = 2;
        server.on_call(move |call| {
            left -= 1;
            match left >= 0 {
                true => Fault::Entries(entries_of(call, "b"), "ProvisionedThroughputExceededException"),
                false => Fault::None,
            }
        });
        let letters = [
            letter(0, Some("a"), ""),
            letter(1, Some("b"), ""),
            letter(2, Some("c"), ""),
        ];
        confirmed(sink.put(&letters).await);
        let calls = server.calls("PutRecords");
        let keys: Vec<_> = calls.iter().map(Call::keys).collect();
        assert_eq!(keys, [vec!["a", "b", "c"], vec!["b"], vec!["b"]]);
        assert_eq!(
            letters_in(&server).await.len(),
            3,
            "each dead letter is written once"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn entry_that_keeps_failing_blocks_the_rest_of_its_key() {
        let (server, sink) = sink().await;
        // An undocumented error code is a failure like any other.
        server.on_call(|call| Fault::Entries(entries_of(call, "b"), "KMSThrottlingException"));
        let letters: Vec<_> = ["a", "b", "a", "b", "b"]
            .iter()
            .zip(0..)
            .map(|(key, i)| letter(i, Some(key), ""))
            .collect();
        let begin = Instant::now();
        let results = sink.put(&letters).await;
        assert_eq!(signs(&results), "cucbb");
        let Err(SinkError::Unavailable(error)) = &results[1] else {
            panic!("{results:?}")
        };
        assert!(error.to_string().contains("KMSThrottlingException"), "{error}");

        let tries: Vec<_> = server
            .calls("PutRecords")
            .into_iter()
            .filter(|call| call.keys().contains(&"b"))
            .collect();
        assert_eq!(tries.len(), 5);
        let first = letters[1].encode();
        assert!(
            tries.iter().all(|call| call.data().contains(&first.to_vec())),
            "only the first dead letter of b is sent"
        );
        for (pause, longest) in tries.windows(2).zip([100, 200, 400, 800]) {
            assert!(pause[1].at - pause[0].at <= Duration::from_millis(longest + 1));
        }
        assert!(begin.elapsed() > Duration::ZERO, "retries pause");
    }

    /// Like the engine, the test writes unconfirmed dead letters again, in order.
    #[tokio::test(start_paused = true)]
    async fn faults_keep_the_order_and_confirm_nothing_falsely() {
        for seed in 0..16u64 {
            let (server, sink) = sink().await;
            let mut state = seed;
            let mut dice = move |sides: u64| {
                // Knuth's linear congruential generator: the same faults in every run.
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                (state >> 33) % sides
            };
            server.on_call(move |call| {
                if call.operation != "PutRecords" {
                    return Fault::None;
                }
                let failed = |dice: &mut dyn FnMut(u64) -> u64| -> BTreeSet<usize> {
                    (0..call.keys().len()).filter(|_| dice(3) == 0).collect()
                };
                match dice(10) {
                    0 => Fault::Refused(500, "InternalFailure", "on cue".into()),
                    1 => Fault::Refused(400, "ProvisionedThroughputExceededException", "on cue".into()),
                    2 => Fault::ResponseLost,
                    3 => Fault::Refused(400, "ValidationException", "on cue".into()),
                    4 => Fault::Changed(Box::new(|body| {
                        body["Records"].as_array_mut().expect("entries").pop();
                    })),
                    5 => Fault::Changed(Box::new(|body| body["Records"][0] = json!({}))),
                    _ => Fault::Entries(failed(&mut dice), "InternalFailure"),
                }
            });
            let letters: Vec<_> = (0..30)
                .map(|i| letter(i, Some(&format!("k{}", i % 4)), format!("{i}")))
                .collect();
            let mut left = letters.clone();
            for round in 0.. {
                assert!(round < 100, "seed {seed} does not end");
                let mut results = sink.put(&left).await.into_iter();
                left.retain(|_| match results.next().expect("one result per dead letter") {
                    Ok(_) => false,
                    Err(SinkError::Refused { .. }) => panic!("seed {seed}: none is too large"),
                    Err(_) => true,
                });
                if left.is_empty() {
                    break;
                }
            }
            // A confirmed dead letter was not written again, so each dead letter must be in the stream.
            assert_eq!(
                numbers(&letters_in(&server).await),
                numbers(&letters),
                "seed {seed}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_response_is_no_confirmation() {
        let (server, sink) = sink().await;
        let mut first = true;
        server.on_call(move |_| match std::mem::take(&mut first) {
            true => Fault::ResponseLost,
            false => Fault::None,
        });
        let letters = [letter(0, Some("a"), ""), letter(1, Some("a"), "")];
        confirmed(sink.put(&letters).await);
        let written = letters_in(&server).await;
        assert_eq!(written.len(), 3, "the first dead letter is in the stream twice");
        assert_eq!(numbers(&written), numbers(&letters));
    }

    #[tokio::test(start_paused = true)]
    async fn unavailable_service_gets_five_calls() {
        let (server, sink) = sink().await;
        server.on_call(|_| Fault::Refused(503, "ServiceUnavailable", "down".into()));
        let letters: Vec<_> = (0..1_200)
            .map(|i| letter(i, Some(&format!("k{}", i % 700)), ""))
            .collect();
        let results = sink.put(&letters).await;
        assert_eq!(server.calls("PutRecords").len(), 5);
        assert_eq!(signs(&results), "u".repeat(700) + &"b".repeat(500));
    }

    #[tokio::test(start_paused = true)]
    async fn success_resets_the_count_of_failed_calls() {
        let (server, sink) = sink().await;
        let mut calls = 0;
        server.on_call(move |_| {
            calls += 1;
            match calls % 5 {
                0 => Fault::None,
                _ => Fault::Refused(503, "ServiceUnavailable", "down".into()),
            }
        });
        let letters: Vec<_> = (0..4).map(|i| letter(i, Some("a"), "")).collect();
        confirmed(sink.put(&letters).await);
        assert_eq!(server.calls("PutRecords").len(), 20);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_with_too_few_or_too_many_entries_confirms_nothing() {
        for extra in [false, true] {
            let (server, sink) = sink().await;
            server.on_call(move |_| {
                Fault::Changed(Box::new(move |body| {
                    let entries = body["Records"].as_array_mut().expect("entries");
                    match extra {
                        true => entries.push(entries[0].clone()),
                        false => drop(entries.pop()),
                    }
                }))
            });
            let letters = [letter(0, Some("a"), ""), letter(1, Some("b"), "")];
            assert_eq!(signs(&sink.put(&letters).await), "uu");
            assert_eq!(server.calls("PutRecords").len(), 5);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_entry_without_number_or_with_an_error_is_not_confirmed() {
        let entries = [
            json!({}),
            json!({"ShardId": "shardId-0"}),
            json!({"SequenceNumber": "1", "ShardId": "shardId-0", "ErrorCode": "InternalFailure"}),
        ];
        for entry in entries {
            let (server, sink) = sink().await;
            let changed = entry.clone();
            server.on_call(move |call| {
                let entry = changed.clone();
                let at = entries_of(call, "b").first().copied();
                Fault::Changed(Box::new(move |body| {
                    if let Some(at) = at {
                        body["Records"][at] = entry;
                    }
                }))
            });
            let letters = [
                letter(0, Some("a"), ""),
                letter(1, Some("b"), ""),
                letter(2, Some("b"), ""),
            ];
            assert_eq!(signs(&sink.put(&letters).await), "cub", "{entry}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn refused_dead_letter_blocks_no_other_key() {
        let (server, sink) = sink().await;
        server.on_call(|call| match entries_of(call, "k7").is_empty() {
            true => Fault::None,
            false => Fault::Refused(400, "ValidationException", "the key offends".into()),
        });
        let letters: Vec<_> = (0..100).map(|i| letter(i, Some(&format!("k{i}")), "")).collect();
        let results = sink.put(&letters).await;
        let expected: String = (0..100).map(|i| if i == 7 { 'u' } else { 'c' }).collect();
        assert_eq!(signs(&results), expected);
        assert!(server.calls("PutRecords").len() < 20);
    }
}

mod the_client {
    use super::*;

    async fn silent() -> Faulty {
        let (server, _) = sink().await;
        server.on_call(|_| Fault::Silence);
        server
    }

    fn longest(calls: &[Call]) -> Duration {
        let pauses = calls.windows(2).map(|pair| pair[1].at - pair[0].at);
        pauses.max().expect("several calls")
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_ends_after_30_s() {
        let server = silent().await;
        let sink = Kinesis::new(server.client(), LETTERS);
        assert_eq!(signs(&sink.put(&[letter(0, Some("a"), "")]).await), "u");
        let calls = server.calls("PutRecords");
        assert_eq!(calls.len(), 5);
        let longest = longest(&calls);
        assert!((30.0..30.9).contains(&longest.as_secs_f64()), "{longest:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_timeout_that_the_user_set_is_kept() {
        let server = silent().await;
        let timeouts = TimeoutConfig::builder()
            .operation_attempt_timeout(Duration::from_secs(2))
            .build();
        let client = Client::from_conf(server.config().timeout_config(timeouts).build());
        let sink = Kinesis::new(client, LETTERS);
        assert_eq!(signs(&sink.put(&[letter(0, Some("a"), "")]).await), "u");
        let longest = longest(&server.calls("PutRecords"));
        assert!((2.0..2.9).contains(&longest.as_secs_f64()), "{longest:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn client_retries_apply_only_to_the_description() {
        let (server, _) = sink().await;
        server.on_call(|_| Fault::Refused(503, "ServiceUnavailable", "down".into()));
        let retries = RetryConfig::standard().with_max_attempts(7);
        let client = Client::from_conf(server.config().retry_config(retries).build());
        let sink = Kinesis::new(client, LETTERS);
        assert_eq!(signs(&sink.put(&[letter(0, Some("a"), "")]).await), "u");
        assert_eq!(server.calls("PutRecords").len(), 5);
        assert!(sink.check(&SourceStream::new("orders")).await.is_err());
        assert_eq!(server.calls("DescribeStreamSummary").len(), 7);
    }

    #[tokio::test(start_paused = true)]
    async fn client_credentials_are_used() {
        let (server, sink) = sink().await;
        confirmed(sink.put(&[letter(0, Some("a"), "")]).await);
        sink.check(&SourceStream::new("orders"))
            .await
            .expect("the stream exists");
        for operation in ["PutRecords", "DescribeStreamSummary"] {
            let call = server.calls(operation).swap_remove(0);
            let signed = call.headers.iter().any(|(name, value)| {
                name == "authorization"
                    && value.contains("Credential=test/")
                    && value.contains("/us-east-1/kinesis/")
            });
            assert!(signed, "{:?}", call.headers);
        }
    }
}

mod the_record_limit {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn oversized_dead_letter_is_refused_without_a_call() {
        let (server, sink) = sink().await;
        server.on_call(|call| with_limit(call, 1024));
        sink.check(&SourceStream::new("orders"))
            .await
            .expect("the stream exists");
        let letters = [
            letter(0, Some("a"), "x"),
            of_size(1, "a", MIB + 1),
            letter(2, Some("a"), "x"),
            of_size(3, "b", MIB),
        ];
        let results = sink.put(&letters).await;
        assert_eq!(signs(&results), "crbc");
        let Err(SinkError::Refused { size, limit, source }) = &results[1] else {
            panic!("{results:?}")
        };
        assert_eq!((*size, *limit), (MIB as u64 + 1, MIB as u64), "{source}");
        let sent: usize = server
            .calls("PutRecords")
            .iter()
            .map(|call| call.keys().len())
            .sum();
        assert_eq!(sent, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn record_limit_is_requested_only_when_needed() {
        let (server, sink) = sink().await;
        server.on_call(|call| with_limit(call, 1024));
        confirmed(sink.put(&[of_size(0, "a", MIB)]).await);
        assert_eq!(
            server.calls("DescribeStreamSummary").len(),
            0,
            "every stream accepts 1 MiB"
        );
        assert_eq!(signs(&sink.put(&[of_size(1, "a", MIB + 1)]).await), "r");
        assert_eq!(server.calls("DescribeStreamSummary").len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn limit_raised_after_the_check_is_noticed() {
        let (server, sink) = sink().await;
        server.on_call(|call| with_limit(call, 1024));
        sink.check(&SourceStream::new("orders"))
            .await
            .expect("the stream exists");
        let large = [of_size(1, "a", MIB + MIB / 2)];
        assert_eq!(signs(&sink.put(&large).await), "r");

        server.on_call(|call| match call.operation.as_str() {
            "PutRecords" => {
                Fault::Answered(json!({"Records": [{"ShardId": "shardId-0", "SequenceNumber": "1"}]}))
            }
            _ => with_limit(call, 2048),
        });
        assert_eq!(signs(&sink.put(&large).await), "c");
        assert_eq!(signs(&sink.put(&large).await), "c");
        assert_eq!(
            server.calls("DescribeStreamSummary").len(),
            3,
            "the new limit is known"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn unknown_limit_leaves_the_decision_to_the_service() {
        // The first server does not report its limit. The second server denies the call.
        for denied in [false, true] {
            let (server, sink) = sink().await;
            server.on_call(move |call| match (denied, call.operation.as_str()) {
                (true, "DescribeStreamSummary") => {
                    Fault::Refused(400, "AccessDeniedException", "not allowed".into())
                }
                _ => Fault::None,
            });
            let letters = [
                letter(0, Some("a"), "x"),
                of_size(1, "b", MIB + 100),
                letter(2, Some("b"), "x"),
                letter(3, Some("c"), "x"),
            ];
            let results = sink.put(&letters).await;
            // The error of the embedded server names the limit: "… less than or equal to 1048576".
            assert_eq!(signs(&results), "crbc");
            let Err(SinkError::Refused { size, limit, .. }) = &results[1] else {
                panic!("{results:?}")
            };
            assert_eq!((*size, *limit), (MIB as u64 + 100, MIB as u64));
            // The sink asks for an unknown limit again only after five minutes.
            assert_eq!(signs(&sink.put(&letters).await), "crbc");
            assert_eq!(server.calls("DescribeStreamSummary").len(), 1);
            advance(Duration::from_secs(301)).await;
            assert_eq!(signs(&sink.put(&letters).await), "crbc");
            assert_eq!(server.calls("DescribeStreamSummary").len(), 2);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn refusal_without_a_size_is_not_permanent() {
        let (server, sink) = sink().await;
        server.on_call(|call| match call.operation.as_str() {
            "PutRecords" => Fault::Refused(400, "ValidationException", "something is wrong".into()),
            _ => with_limit(call, 2048),
        });
        let letters = [of_size(0, "a", MIB + MIB / 2), letter(1, Some("b"), "x")];
        assert_eq!(signs(&sink.put(&letters).await), "uu");
    }

    #[tokio::test(start_paused = true)]
    async fn unknown_limit_refuses_no_dead_letter_on_a_guess() {
        // The service accepts one dead letter, and refuses the other without naming its size.
        let (server, sink) = sink().await;
        server.on_call(|call| match call.operation.as_str() {
            "PutRecords" if entries_of(call, "a").is_empty() => {
                Fault::Refused(400, "ValidationException", "something is wrong".into())
            }
            "PutRecords" if call.keys().len() > 1 => {
                Fault::Refused(400, "ValidationException", "something is wrong".into())
            }
            "PutRecords" => {
                Fault::Answered(json!({"Records": [{"ShardId": "shardId-0", "SequenceNumber": "1"}]}))
            }
            _ => Fault::None,
        });
        let letters = [of_size(0, "a", 2 * MIB), of_size(1, "b", 2 * MIB)];
        assert_eq!(signs(&sink.put(&letters).await), "cu");
    }

    #[tokio::test(start_paused = true)]
    async fn dead_letter_above_10_mib_is_always_refused() {
        let (server, sink) = sink().await;
        let letters = [of_size(0, "a", 10 * MIB + 1), letter(1, Some("b"), "x")];
        let results = sink.put(&letters).await;
        assert_eq!(signs(&results), "rc");
        assert_eq!(server.calls("PutRecords").len(), 1);
    }

    /// The embedded server accepts 5 MiB per request, as Kinesis once did. The sink halves a refused request
    /// until it fits.
    #[tokio::test(start_paused = true)]
    async fn a_request_that_is_too_large_for_the_service_is_halved() {
        let (server, sink) = sink().await;
        let letters: Vec<_> = (0..8).map(|i| of_size(i, &format!("k{i}"), MIB)).collect();
        confirmed(sink.put(&letters).await);
        assert_eq!(numbers(&letters_in(&server).await), numbers(&letters));
        let calls = server.calls("PutRecords");
        assert_eq!(
            calls.iter().map(|call| call.keys().len()).collect::<Vec<_>>(),
            [8, 4, 4]
        );
    }
}

mod the_check {
    use super::*;

    const ARN: &str = "arn:aws:kinesis:us-east-1:000000000000:stream/orders-dead-letters";

    /// Creates a stream with a retention of a week, because the default retention causes a warning.
    async fn sink_with_a_week() -> (Faulty, Kinesis) {
        let (server, sink) = sink().await;
        let raised = server
            .direct()
            .increase_stream_retention_period()
            .stream_name(LETTERS)
            .retention_period_hours(168)
            .send()
            .await;
        raised.expect("the retention is raised");
        (server, sink)
    }

    fn source(max_record_bytes: u64) -> SourceStream {
        let mut source = SourceStream::new("orders");
        source.max_record_bytes = Some(max_record_bytes);
        source
    }

    fn only(warnings: Vec<Warning>) -> Warning {
        let [warning] = <[Warning; 1]>::try_from(warnings).expect("one warning");
        warning
    }

    #[tokio::test(start_paused = true)]
    async fn suitable_stream_gets_no_warning() {
        let (server, sink) = sink_with_a_week().await;
        server.on_call(|call| with_limit(call, 1056));
        let warnings = sink.check(&source(MIB as u64)).await.expect("the stream exists");
        assert_eq!(warnings, []);
    }

    #[tokio::test(start_paused = true)]
    async fn source_stream_as_target_is_an_error() {
        let (_server, sink) = sink().await;
        let mut source = SourceStream::new(LETTERS);
        let error = sink
            .check(&source)
            .await
            .expect_err("the target has the name of the source");
        assert!(
            matches!(&error, TargetError::SourceItself { name } if name == LETTERS),
            "{error:?}"
        );
        source.arn = Some(ARN.to_owned());
        let error = sink
            .check(&source)
            .await
            .expect_err("the target has the ARN of the source");
        assert!(matches!(error, TargetError::SourceItself { .. }), "{error:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn same_name_in_another_region_is_another_stream() {
        let (_server, sink) = sink().await;
        let mut source = SourceStream::new(LETTERS);
        source.arn = Some(ARN.replace("us-east-1", "eu-central-1"));
        sink.check(&source).await.expect("another region");
    }

    #[tokio::test(start_paused = true)]
    async fn a_short_retention_is_a_warning_with_its_remedy() {
        let (_server, sink) = sink().await;
        let warning = only(
            sink.check(&SourceStream::new("orders"))
                .await
                .expect("the stream exists"),
        );
        assert!(warning.message.contains("24 hours"), "{warning:?}");
        assert_eq!(
            warning.remedy,
            "aws kinesis increase-stream-retention-period --stream-name orders-dead-letters --retention-period-hours 168"
        );
        let (_server, sink) = sink_with_a_week().await;
        assert_eq!(
            sink.check(&SourceStream::new("orders"))
                .await
                .expect("the stream exists"),
            []
        );
    }

    #[tokio::test(start_paused = true)]
    async fn low_record_limit_is_a_warning_with_its_remedy() {
        let remedy = |kib: u64| {
            format!("aws kinesis update-max-record-size --stream-arn {ARN} --max-record-size-in-ki-b {kib}")
        };
        // The limit of the target in KiB, the limit of the source in bytes, and the expected remedy.
        let cases = [
            (1024, MIB as u64, Some(remedy(1056))),
            (1055, MIB as u64, Some(remedy(1056))),
            (1056, MIB as u64, None),
            (2048, 3 * MIB as u64 + 1, Some(remedy(3105))),
            (1024, 10 * MIB as u64, Some(remedy(10240))),
            (10240, 10 * MIB as u64 - 32 * 1024, None),
        ];
        for (target, largest, expected) in cases {
            let (server, sink) = sink_with_a_week().await;
            server.on_call(move |call| with_limit(call, target));
            let warnings = sink.check(&source(largest)).await.expect("the stream exists");
            let remedies: Vec<_> = warnings.into_iter().map(|warning| warning.remedy).collect();
            assert_eq!(
                remedies,
                Vec::from_iter(expected),
                "{target} KiB for {largest} bytes"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn maximum_record_limit_is_a_warning_with_a_fallback() {
        let (server, sink) = sink_with_a_week().await;
        server.on_call(|call| with_limit(call, 10240));
        let warning = only(
            sink.check(&source(10 * MIB as u64))
                .await
                .expect("the stream exists"),
        );
        assert!(warning.remedy.contains("fallback"), "{warning:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn raw_payloads_need_no_room_for_an_envelope() {
        let (server, sink) = sink_with_a_week().await;
        server.on_call(|call| with_limit(call, 1024));
        let sink = sink.payload(Payload::Raw);
        assert_eq!(
            sink.check(&source(MIB as u64)).await.expect("the stream exists"),
            []
        );
        let warning = only(
            sink.check(&source(MIB as u64 + 1))
                .await
                .expect("the stream exists"),
        );
        assert!(
            warning.remedy.ends_with("--max-record-size-in-ki-b 1025"),
            "{warning:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn unknown_source_limit_counts_as_the_smallest() {
        let (server, sink) = sink_with_a_week().await;
        server.on_call(|call| with_limit(call, 1024));
        let warning = only(
            sink.check(&SourceStream::new("orders"))
                .await
                .expect("the stream exists"),
        );
        assert!(
            warning.remedy.ends_with("--max-record-size-in-ki-b 1056"),
            "{warning:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn automatic_distribution_is_a_warning() {
        let (server, sink) = sink_with_a_week().await;
        server.on_call(|_| {
            Fault::Changed(Box::new(|body| {
                body["StreamDescriptionSummary"]["RecordDistributionStrategy"] = json!("AUTO");
            }))
        });
        let warning = only(
            sink.check(&SourceStream::new("orders"))
                .await
                .expect("the stream exists"),
        );
        assert!(warning.message.contains("no order"), "{warning:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn missing_stream_is_unreachable() {
        let (server, _) = sink().await;
        let sink = Kinesis::new(server.client(), "nowhere");
        let error = sink
            .check(&SourceStream::new("orders"))
            .await
            .expect_err("the stream does not exist");
        assert!(
            matches!(&error, TargetError::Unreachable { name, .. } if name == "nowhere"),
            "{error:?}"
        );
        let results = sink.put(&[letter(0, Some("a"), "")]).await;
        assert_eq!(signs(&results), "u", "an operator can create the stream");
    }
}
