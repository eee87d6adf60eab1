//! What the command asks before it writes, and how it shows what is not its own.

use redrive::dead_letter::{self, DeadLetter, DeadLetterSink};
use redrive::testing::kinesis::{self, KinesisServer};
use redrive::testing::sinks::{confirmed, letter};
use support::stream;

use crate::run::Redrive;

async fn write(redrive: &Redrive, letters: &[DeadLetter]) -> String {
    let path = redrive.folder.path().join("letters.jsonl");
    let sink = dead_letter::File::open(path).expect("it opens");
    confirmed(sink.put(letters).await);
    redrive.file("letters.jsonl")
}

#[tokio::test(flavor = "multi_thread")]
async fn records_go_into_a_stream_only_after_a_confirmation() {
    let server = KinesisServer::start().await.expect("a free port");
    let client = server.client();
    kinesis::create_stream(&client, "orders", 1)
        .await
        .expect("a stream");
    let redrive = Redrive::at(server.endpoint());
    let letters: Vec<_> = (0..5)
        .map(|i| letter(i, Some("a"), format!("order {i}")))
        .collect();
    let file = write(&redrive, &letters).await;
    for target in [["--to-stream", "orders"], ["--to-dead-letters", "kinesis:orders"]] {
        let ended = redrive.run(&[&["replay", &file][..], &target].concat());
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(
            ended.err.contains("stream orders") && ended.err.contains("--yes"),
            "{ended:?}"
        );
    }
    let dry = redrive.run(&["replay", &file, "--to-stream", "orders", "--dry-run"]);
    assert!(dry.out.contains("5 would be replayed"), "{dry:?}");
    assert!(stream::read(&client, "orders").await.is_empty());

    // Only this machine knows what was replayed.
    let ended = redrive.run(&["replay", &file, "--to-stream", "orders", "--yes", "--limit", "2"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(
        ended.out.contains("2 replayed") && ended.out.contains("limit"),
        "{ended:?}"
    );
    for part in ["warning", "replay.redb", "--ledger dynamodb:TABLE"] {
        assert!(ended.err.contains(part), "{ended:?}");
    }
    assert_eq!(stream::read(&client, "orders").await.len(), 2);
    let ended = redrive.run(&["replay", &file, "--to-stream", "orders", "--yes"]);
    assert!(ended.out.contains("3 replayed"), "{ended:?}");
    let again = ["--ignore-ledger", "--limit", "1", "--yes"];
    let ended = redrive.run(&[&["replay", &file, "--to-stream", "orders"][..], &again].concat());
    assert!(ended.out.contains("1 replayed"), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_fails_for_a_stream_that_is_not_there() {
    let server = KinesisServer::start().await.expect("a free port");
    let redrive = Redrive::at(server.endpoint());
    let file = write(&redrive, &[letter(1, Some("a"), "x")]).await;
    let ended = redrive.run(&["replay", &file, "--to-stream", "no-such-stream", "--dry-run"]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.err.contains("no-such-stream"), "{ended:?}");
    let queue = "arn:aws:sqs:us-east-1:000000000000:orders";
    for options in [
        &["--to-stream", queue][..],
        &["--to-stream", "orders", "--stream", queue],
    ] {
        let ended = redrive.run(&[&["replay", &file][..], options].concat());
        assert_eq!(ended.code, Some(2), "{ended:?}");
        assert!(ended.err.contains("write a name such as orders"), "{ended:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_begins_several_is_ambiguous() {
    let redrive = Redrive::at("http://127.0.0.1:9");
    let letters: Vec<_> = (0..40).map(|i| letter(i, Some("a"), "a secret")).collect();
    // A copy of a letter is no other letter.
    let file = write(&redrive, &[&letters[..], &letters[..]].concat()).await;
    let first = letters[0].id.to_string();
    let shared = letters
        .iter()
        .filter(|letter| letter.id.to_string()[..1] == first[..1]);
    let shared: Vec<_> = shared.map(|letter| letter.id.to_string()).collect();
    assert!(shared.len() > 1, "another one of 40 begins alike");
    let ended = redrive.run(&["show", &file, &first[..1]]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(
        ended.err.contains("is ambiguous") && ended.out.is_empty(),
        "{ended:?}"
    );
    for id in shared {
        assert!(ended.err.contains(&id[..12]), "{ended:?}");
    }
    for id in [&first[..12], &first] {
        let ended = redrive.run(&["show", &file, id]);
        assert_eq!(ended.code, Some(0), "{ended:?}");
    }
}

/// Characters that a terminal acts on.
const ESCAPES: &str = "\u{1b}]0;owned\u{7}\u{9b}31m\r\u{202e}";

#[tokio::test(flavor = "multi_thread")]
async fn no_field_reaches_the_terminal_raw() {
    let redrive = Redrive::at("http://127.0.0.1:9");
    let mut bad = letter(1, Some(&format!("key{ESCAPES}")), format!("payload{ESCAPES}"));
    let text = |what: &str| format!("{what}{ESCAPES}");
    bad.application = text("application");
    bad.stream = text("stream");
    bad.shard = text("shard").as_str().into();
    bad.code = Some(text("code"));
    bad.error.type_name = text("type");
    bad.error.chain = vec![text("error")];
    bad.processor = text("processor");
    bad.processor_version = Some(text("version"));
    bad.trace_context = Some(text("trace"));
    let mut elsewhere = bad.clone();
    elsewhere.payload_at = Some(text("s3://place"));
    elsewhere.payload.clear();
    elsewhere.id = letter(2, None, "").id;
    let file = write(&redrive, &[bad.clone(), elsewhere.clone()]).await;
    let path = redrive.folder.path().join("letters.jsonl");
    let mut lines = std::fs::read_to_string(&path).expect("it reads");
    // The error of the JSON parser quotes it.
    let good = String::from_utf8(letter(3, None, "").to_json_line()).expect("text");
    let torn = good.replace(
        "\"sub_sequence_number\":0",
        "\"sub_sequence_number\":\"a secret\"",
    );
    assert_ne!(torn, good);
    lines.push_str(&format!("{torn}\n"));
    std::fs::write(&path, lines).expect("written");

    let (one, two) = (bad.id.to_string(), elsewhere.id.to_string());
    for arguments in [
        &["list", &file][..],
        &["list", &file, "--json"],
        &["stats", &file],
        &["stats", &file, "--json"],
        &["show", &file, &one],
        &["show", &file, &one, "--json"],
        &["show", &file, &one, "--payload"],
        &["show", &file, &one, "--payload", "--json"],
        &["show", &file, &two, "--payload"],
        &[
            "replay",
            &file,
            "--to-dead-letters",
            &redrive.file("other.jsonl"),
            "--json",
        ],
    ] {
        let ended = redrive.run(arguments);
        let all = format!("{}{}", ended.out, ended.err);
        assert!(!ended.out.is_empty(), "{arguments:?}: {ended:?}");
        let raw = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
        assert!(!all.contains(raw), "{arguments:?}: {ended:?}");
        assert!(!all.contains("a secret"), "{arguments:?}: {ended:?}");
        if !arguments.contains(&"--payload") {
            for hidden in ["code\\u", "key\\u", "payload\\u", "error\\u"] {
                assert!(!all.contains(hidden), "{arguments:?}: {ended:?}");
            }
        }
    }
    let whole = redrive.run(&["show", &file, &one, "--payload"]);
    for shown in ["code\\u{1b}", "payload\\u{1b}", "error\\u{1b}"] {
        assert!(whole.out.contains(shown), "{whole:?}");
    }
}
