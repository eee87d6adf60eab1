//! Tests of replays of dead letters: into a stream, through a processor, and to another sink.

use std::collections::BTreeMap;
use std::future::pending;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_kinesis::Client;
use bytes::Bytes;
use redrive::dead_letter::{self, DeadLetter, DeadLetterSink, Reason, Redact};
use redrive::kpl::{Deaggregator, Expanded};
use redrive::record::Redriven;
use redrive::replay::ledger::{self, LedgerError};
use redrive::replay::{DeadLetterSource, Filter, Replay, ReplayError, Report, SourceError, Stream, source};
use redrive::testing::kinesis::{self, KinesisServer};
use redrive::testing::sinks::{confirmed, letter};
use redrive::{Idempotency, Record, Resilient, idempotency, processor_with};
use support::sink::{Answer, ScriptedSink};
use support::stream::{self, Sent};
use support::waiting::finished;
use tempfile::TempDir;

/// A file of dead letters in a folder that also has the ledger.
struct Letters {
    folder: TempDir,
}

impl Letters {
    async fn of(letters: &[DeadLetter]) -> Self {
        let these = Letters {
            folder: tempfile::tempdir().expect("a folder"),
        };
        let sink = dead_letter::File::open(these.path()).expect("the file opens");
        confirmed(sink.put(letters).await);
        these
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("letters.jsonl")
    }

    fn ledger(&self) -> ledger::Redb {
        ledger::Redb::open(self.folder.path().join("replay.redb")).expect("the file opens")
    }

    fn replay(&self) -> Replay {
        Replay::new(source::File::new(self.path())).rate(100_000.0)
    }

    fn append(&self, line: &[u8]) {
        let mut file = std::fs::OpenOptions::new()
            .append(true)
            .open(self.path())
            .expect("the file opens");
        file.write_all(line).expect("written");
    }
}

fn numbered(numbers: std::ops::Range<u64>, keys: u64) -> Vec<DeadLetter> {
    numbers
        .map(|i| letter(i, Some(&format!("k{}", i % keys)), format!("payload {i}")))
        .collect()
}

/// Starts a server with a stream for replayed records.
async fn orders() -> (KinesisServer, Client) {
    let server = KinesisServer::start().await.expect("a free port");
    let client = server.client();
    kinesis::create_stream(&client, "orders", 2)
        .await
        .expect("a stream");
    (server, client)
}

fn by_key(records: &[Sent]) -> BTreeMap<&str, Vec<&[u8]>> {
    let mut keys: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for record in records {
        keys.entry(&*record.key).or_default().push(&*record.data);
    }
    keys
}

fn payloads_by_key(letters: &[DeadLetter]) -> BTreeMap<&str, Vec<&[u8]>> {
    let mut keys: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for letter in letters {
        let key = letter.partition_key.as_deref().unwrap_or_default();
        keys.entry(key).or_default().push(&*letter.payload);
    }
    keys
}

/// The records that a handler has received.
type Seen = Arc<Mutex<Vec<Record>>>;

fn processor(seen: &Seen, fails: fn(&Record) -> bool) -> impl redrive::RecordProcessor + use<> {
    processor_with(
        (seen.clone(), fails),
        async |(seen, fails): (Seen, fn(&Record) -> bool), record: Record| {
            seen.lock().expect("not poisoned").push(record.clone());
            match fails(&record) {
                true => Err(std::io::Error::from(std::io::ErrorKind::InvalidData)),
                false => Ok(()),
            }
        },
    )
}

/// Creates an engine whose handler succeeds.
fn billing(seen: &Seen) -> Resilient<impl redrive::RecordProcessor + use<>> {
    Resilient::builder("billing", processor(seen, |_| false))
        .dead_letters(dead_letter::Memory::new())
        .build()
        .expect("complete")
}

#[tokio::test]
async fn processor_gets_the_original_records() {
    let letters = numbered(0..40, 7);
    let file = Letters::of(&letters).await;
    let seen = Seen::default();
    let orders = billing(&seen);
    let report = file
        .replay()
        .ledger(file.ledger())
        .through(&orders, pending())
        .await;
    let report = report.expect("the replay ends");
    assert_eq!((report.read, report.replayed), (40, 40), "{report:?}");
    assert!(report.is_clean() && report.in_order, "{report:?}");
    let seen = seen.lock().expect("not poisoned");
    for letter in &letters {
        let record = seen
            .iter()
            .find(|record| record.payload() == &letter.payload)
            .expect("the record was processed");
        assert_eq!(record.stream(), letter.stream);
        assert_eq!(*record.shard(), letter.shard);
        assert_eq!(*record.sequence_number(), letter.sequence_number);
        assert_eq!(record.sub_sequence_number(), letter.sub_sequence_number);
        assert_eq!(record.partition_key(), letter.partition_key.as_deref());
        assert_eq!(record.arrival(), letter.arrival);
        let redriven = Redriven::new(letter.origin, 1, letter.arrival);
        assert_eq!(record.redriven(), Some(&redriven));
    }
    for key in 0..7 {
        let key = format!("k{key}");
        let of_key = seen.iter().filter(|record| record.partition_key() == Some(&*key));
        let numbers: Vec<_> = of_key.map(|record| record.sequence_number().clone()).collect();
        assert!(numbers.is_sorted(), "{numbers:?}");
    }
}

#[tokio::test]
async fn replays_end_after_max_redrives() {
    let file = Letters::of(&numbered(0..5, 5)).await;
    let ledger = file.ledger();
    let (mut path, mut generation) = (file.path(), 0);
    let report = loop {
        generation += 1;
        let next = file.folder.path().join(format!("generation-{generation}.jsonl"));
        let again = dead_letter::File::open(&next).expect("the file opens");
        let orders = Resilient::builder("billing", processor(&Seen::default(), |_| true))
            .dead_letters(again)
            .build()
            .expect("complete");
        let replay = Replay::new(source::File::new(&path)).rate(1e6).max_redrives(2);
        let report = replay.ledger(ledger.clone()).through(&orders, pending()).await;
        let report = report.expect("the replay ends");
        let written: Vec<DeadLetter> = dead_letter::File::read(&next)
            .map(|letter| letter.expect("a letter"))
            .collect();
        if written.is_empty() {
            break report;
        }
        assert_eq!(report.dead_lettered, 5, "{report:?}");
        for (letter, first) in written.iter().zip(numbered(0..5, 5)) {
            assert_eq!(letter.redrive_count, generation);
            assert_eq!(letter.origin, first.origin);
            assert_ne!(letter.id, first.id);
            assert_eq!(letter.sequence_number, first.sequence_number);
        }
        path = next;
    };
    assert_eq!(generation, 3);
    assert_eq!(report.too_often, 5, "{report:?}");
    assert!(!report.is_clean());
}

#[tokio::test]
async fn records_return_to_a_stream_in_key_order() {
    let (_server, client) = orders().await;
    let letters = numbered(0..1_300, 300);
    let file = Letters::of(&letters).await;
    let into = || Stream::new(client.clone(), "orders");
    let report = file
        .replay()
        .ledger(file.ledger())
        .into_stream(into(), pending())
        .await;
    let report = report.expect("the replay ends");
    assert_eq!(
        (report.read, report.replayed, report.possibly_repeated),
        (1_300, 1_300, 0),
        "{report:?}"
    );
    let records = stream::read(&client, "orders").await;
    assert_eq!(by_key(&records), payloads_by_key(&letters));
    // A file keeps its dead letters. The ledger knows which of them are replayed.
    let report = file
        .replay()
        .ledger(file.ledger())
        .into_stream(into(), pending())
        .await;
    assert_eq!(report.expect("the replay ends").already, 1_300);
    assert_eq!(stream::read(&client, "orders").await.len(), 1_300);
    // `ignore_ledger` replays a selected dead letter again.
    let only = Filter::new().partition_key("k7");
    let replay = file
        .replay()
        .ledger(file.ledger())
        .filter(only)
        .ignore_ledger(true);
    let report = replay
        .into_stream(into(), pending())
        .await
        .expect("the replay ends");
    assert_eq!((report.replayed, report.not_matched), (5, 1_295), "{report:?}");
    assert_eq!(stream::read(&client, "orders").await.len(), 1_305);
}

#[tokio::test]
async fn copies_of_a_dead_letter_are_replayed_once() {
    let letters = numbered(0..10, 3);
    let file = Letters::of(&[letters.clone(), letters.clone(), letters.clone()].concat()).await;
    let into = dead_letter::Memory::new();
    let report = file
        .replay()
        .ledger(file.ledger())
        .to_sink(into.clone(), pending())
        .await;
    let report = report.expect("the replay ends");
    assert_eq!((report.replayed, report.already), (10, 20), "{report:?}");
    assert_eq!(into.letters(), letters);
    let down = down_after(4);
    let replay = file.replay().ledger(ledger::Memory::new());
    let error = replay
        .to_sink(down.clone(), pending())
        .await
        .expect_err("the sink is down");
    assert!(matches!(error, ReplayError::Target { .. }), "{error:?}");
    assert_eq!(down.letters(), letters[..4]);
}

/// A run was killed between the ledger entry and the removal of the message. The bucket has since deleted the
/// payload.
#[tokio::test]
async fn replayed_dead_letter_needs_no_payload() {
    let letters = numbered(0..2, 1);
    let file = Letters::of(&letters).await;
    let seen = Seen::default();
    let orders = billing(&seen);
    let run = async |file: &Letters| {
        let replay = file.replay().ledger(file.ledger());
        replay.through(&orders, pending()).await.expect("the replay ends")
    };
    assert_eq!(run(&file).await.replayed, 2);
    let elsewhere = |letter: &DeadLetter| {
        let mut letter = letter.clone();
        (letter.payload_at, letter.payload) = (Some("s3://gone/x".to_owned()), Bytes::new());
        [letter.to_json_line(), b"\n".to_vec()].concat()
    };
    let not_done = numbered(2..3, 1);
    for letter in letters.iter().chain(&not_done) {
        file.append(&elsewhere(letter));
    }
    let report = run(&file).await;
    assert_eq!((report.already, report.no_payload), (4, 1), "{report:?}");
}

/// After a rewind a record fails again at the same position. Its new dead letter has the id of the replayed
/// one.
#[tokio::test]
async fn later_dead_letter_with_the_same_id_is_replayed() {
    let first = letter(1, Some("a"), "x");
    let file = Letters::of(std::slice::from_ref(&first)).await;
    let ledger = ledger::Memory::new();
    let seen = Seen::default();
    let orders = billing(&seen);
    let replay = |path: PathBuf| Replay::new(source::File::new(path)).ledger(ledger.clone());
    let report = replay(file.path()).through(&orders, pending()).await;
    assert_eq!(report.expect("the replay ends").replayed, 1);
    let mut later = first.clone();
    later.dead_lettered_at += Duration::from_secs(3_600);
    assert_eq!(later.id, first.id);
    let both = Letters::of(&[first, later]).await;
    let report = replay(both.path())
        .through(&orders, pending())
        .await
        .expect("the replay ends");
    assert_eq!((report.already, report.replayed), (1, 1), "{report:?}");
    assert_eq!(seen.lock().expect("not poisoned").len(), 2);
}

/// Creates the dead letter of a replayed record that fails again, now at another position.
fn returned(of: &DeadLetter, number: u64) -> DeadLetter {
    let record = Record::builder("orders", "shardId-000000000009".into(), number.into())
        .partition_key(of.partition_key.clone().expect("a key"))
        .payload(of.payload.clone())
        .build();
    DeadLetter::new(
        "billing",
        &record,
        Reason::Permanent,
        &redrive::Failure::permanent("again"),
    )
}

#[tokio::test]
async fn unstamped_record_is_recognized_by_key_and_payload() {
    let (_server, client) = orders().await;
    let first = letter(1, Some("a"), "payload");
    let file = Letters::of(std::slice::from_ref(&first)).await;
    let ledger = file.ledger();
    let mut path = file.path();
    for generation in 1..=4 {
        let said = Arc::new(Mutex::new(Vec::new()));
        let heard = said.clone();
        let replay = Replay::new(source::File::new(&path))
            .ledger(ledger.clone())
            .max_redrives(3);
        let replay = replay
            .on_progress(move |said, _| heard.lock().expect("not poisoned").push(said.outcome.to_string()));
        let report = replay
            .into_stream(Stream::new(client.clone(), "orders"), pending())
            .await;
        let report = report.expect("the replay ends");
        if generation == 4 {
            assert_eq!(report.too_often, 1, "{report:?}");
            let said = said.lock().expect("not poisoned");
            assert!(said[0].contains("3 times"), "{said:?}");
        } else {
            assert_eq!(report.replayed, 1, "{report:?}");
        }
        let back = returned(&first, 100 + generation);
        assert_eq!(back.redrive_count, 0);
        path = file.folder.path().join(format!("generation-{generation}.jsonl"));
        let sink = dead_letter::File::open(&path).expect("the file opens");
        confirmed(sink.put(&[back]).await);
    }
    assert_eq!(stream::read(&client, "orders").await.len(), 3);
}

#[tokio::test]
async fn stamp_tells_the_consumer_the_origin_of_a_record() {
    let (_server, client) = orders().await;
    let letters = numbered(0..20, 3);
    let file = Letters::of(&letters).await;
    let into = Stream::new(client.clone(), "orders").stamped();
    let report = file
        .replay()
        .ledger(file.ledger())
        .into_stream(into, pending())
        .await;
    assert_eq!(report.expect("the replay ends").replayed, 20);
    for sent in stream::read(&client, "orders").await {
        let record = Record::builder("orders", sent.place.shard, sent.place.number)
            .partition_key(sent.key.clone())
            .payload(sent.data)
            .build();
        // Any producer can write a stamp, so stamps are ignored by default.
        let mut plain = Vec::new();
        let _ = Deaggregator::new().expand(record.clone(), &mut plain);
        assert_eq!(plain[0].redriven(), None);
        let mut opened = Vec::new();
        let expanded = Deaggregator::new().redrive_stamps().expand(record, &mut opened);
        assert!(
            matches!(expanded, Expanded::Aggregate { records: 1, .. }),
            "{expanded:?}"
        );
        let letter = letters
            .iter()
            .find(|letter| letter.payload == *opened[0].payload())
            .expect("the record of a dead letter");
        assert_eq!(opened[0].partition_key(), letter.partition_key.as_deref());
        assert_eq!(sent.key, letter.partition_key.clone().expect("a key"));
        let redriven = Redriven::new(letter.origin, 1, letter.arrival);
        assert_eq!(opened[0].redriven(), Some(&redriven));
        // The dead letter of a further failure has the count and the origin.
        let failure = redrive::Failure::permanent("again");
        let again = DeadLetter::new("billing", &opened[0], Reason::Permanent, &failure);
        assert_eq!((again.origin, again.redrive_count), (letter.origin, 1));
        assert_eq!(again.first_arrival, letter.arrival);
        assert_eq!(
            DeadLetter::decode(&again.encode()).expect("the dead letter reads back"),
            again
        );
    }
}

/// Such keys exist only inside aggregated records.
#[tokio::test]
async fn invalid_key_is_replayed_inside_an_aggregate() {
    let (_server, client) = orders().await;
    let long = "k".repeat(300);
    let letters = [
        letter(1, Some(""), "x"),
        letter(2, Some(&long), "y"),
        letter(3, None, "z"),
    ];
    let file = Letters::of(&letters).await;
    let into = Stream::new(client.clone(), "orders");
    let report = file
        .replay()
        .ledger(file.ledger())
        .into_stream(into, pending())
        .await;
    assert_eq!(report.expect("the replay ends").replayed, 3);
    let mut keys = Vec::new();
    for sent in stream::read(&client, "orders").await {
        let record = Record::builder("orders", sent.place.shard, sent.place.number)
            .partition_key(sent.key)
            .payload(sent.data)
            .build();
        let mut opened = Vec::new();
        let _ = Deaggregator::new().expand(record, &mut opened);
        let key = opened[0].partition_key().map(str::to_owned);
        keys.push((key, opened[0].payload().clone()));
    }
    keys.sort_by_key(|(_, payload)| payload.clone());
    let id = letters[2].id.to_string();
    assert_eq!(
        keys,
        [
            (Some(String::new()), Bytes::from("x")),
            (Some(long), Bytes::from("y")),
            (Some(id), Bytes::from("z")),
        ]
    );
}

/// Creates a sink that is down once it has confirmed this many dead letters.
fn down_after(count: usize) -> ScriptedSink {
    let (sink, mut left) = (ScriptedSink::default(), count);
    sink.on_put(move |_, letters| {
        let taken = left.min(letters.len());
        left -= taken;
        Answer::TakeFirst(taken)
    });
    sink
}

#[tokio::test]
async fn next_run_resumes_after_an_unavailable_target() {
    let letters = numbered(0..1_200, 1_200);
    let file = Letters::of(&letters).await;
    let sink = down_after(700);
    let error = file
        .replay()
        .ledger(file.ledger())
        .to_sink(sink.clone(), pending())
        .await;
    let error = error.expect_err("the sink is down");
    assert!(matches!(error, ReplayError::Target { .. }), "{error:?}");
    sink.set_down(false);
    let report = file
        .replay()
        .ledger(file.ledger())
        .to_sink(sink.clone(), pending())
        .await;
    let report = report.expect("the replay ends");
    // The 300 unconfirmed dead letters of the second batch were begun.
    assert_eq!(
        (report.already, report.replayed, report.possibly_repeated),
        (700, 500, 300),
        "{report:?}"
    );
    assert_eq!(sink.letters(), letters);
}

#[tokio::test]
async fn unreplayable_messages_are_reported_and_skipped() {
    let file = Letters::of(&numbered(0..2, 2)).await;
    let redacted = Redact::new(
        dead_letter::File::open(file.path()).expect("the file opens"),
        |letter| {
            letter.payload.clear();
        },
    );
    confirmed(redacted.put(&[letter(10, Some("a"), "secret")]).await);
    drop(redacted);
    let newer = String::from_utf8(letter(11, Some("a"), "x").to_json_line()).expect("text");
    let newer = newer.replace("\"schema_version\":1", "\"schema_version\":9");
    file.append(format!("{newer}\n").as_bytes());
    file.append(b"{\"an\":\"order\"}\nno json at all\n\xff\xfe\n");
    let mut elsewhere = letter(12, Some("a"), "x");
    (elsewhere.payload_at, elsewhere.payload) = (Some("s3://gone/x".to_owned()), Bytes::new());
    file.append(&[elsewhere.to_json_line(), b"\n".to_vec()].concat());
    let torn = letter(13, Some("a"), "x").to_json_line();
    file.append(&torn[..torn.len() / 2]);

    let seen = Seen::default();
    let orders = billing(&seen);
    let said = Arc::new(Mutex::new(Vec::new()));
    let heard = said.clone();
    let replay = file.replay().ledger(file.ledger()).on_progress(move |said, _| {
        let mut heard = heard.lock().expect("not poisoned");
        heard.push(format!("{}: {}", said.outcome.as_str(), said.outcome));
    });
    let report = replay.through(&orders, pending()).await.expect("the replay ends");
    let said = said.lock().expect("not poisoned").join("\n");
    assert_eq!(report.replayed, 2, "{said}");
    assert_eq!(report.redacted, 1, "{said}");
    assert_eq!(report.foreign, 3, "{said}");
    assert_eq!(report.unreadable, 2, "{said}");
    assert_eq!(report.no_payload, 1, "{said}");
    assert!(said.contains("schema version 9"), "{said}");
    assert!(said.contains("s3://gone/x"), "{said}");
    assert!(!said.contains("secret"), "{said}");
    assert_eq!(seen.lock().expect("not poisoned").len(), 2);
}

#[tokio::test]
async fn a_dry_run_does_nothing() {
    let (_server, client) = orders().await;
    let file = Letters::of(&numbered(0..9, 3)).await;
    let only = Filter::new().partition_key("k1").reason(Reason::Permanent);
    let replay = file.replay().ledger(file.ledger()).filter(only).dry_run(true);
    let report = replay
        .into_stream(Stream::new(client.clone(), "orders"), pending())
        .await;
    let report = report.expect("the replay ends");
    assert_eq!((report.would, report.not_matched), (3, 6), "{report:?}");
    assert!(stream::read(&client, "orders").await.is_empty());
    let seen = Seen::default();
    let orders = billing(&seen);
    let report = file
        .replay()
        .ledger(file.ledger())
        .through(&orders, pending())
        .await;
    assert_eq!(report.expect("the replay ends").replayed, 9);
}

#[test]
fn filter_needs_every_kind_and_one_value_of_each() {
    let one = letter(1, Some("a"), "x");
    let matches = |filter: Filter| filter.matches(&one);
    assert!(matches(Filter::new()));
    assert!(matches(
        Filter::new().reason(Reason::CrashLoop).reason(Reason::Permanent)
    ));
    assert!(!matches(Filter::new().reason(Reason::CrashLoop)));
    assert!(matches(
        Filter::new()
            .code("NoCustomer")
            .stream("orders")
            .shard("shardId-000000000001")
    ));
    assert!(!matches(Filter::new().code("NoCustomer").stream("payments")));
    assert!(!matches(Filter::new().class(redrive::Class::Transient)));
    assert!(matches(Filter::new().partition_key("a")) && !matches(Filter::new().partition_key("")));
    assert!(matches(Filter::new().id(&one.id.to_string()[..6])) && !matches(Filter::new().id("g")));
    let at = one.dead_lettered_at;
    assert!(matches(
        Filter::new().since(at).until(at + Duration::from_millis(1))
    ));
    assert!(!matches(Filter::new().until(at)));
    assert!(!matches(Filter::new().since(at + Duration::from_millis(1))));
}

/// A source with one page of messages. The replay must call `keep` every 20 s.
#[derive(Debug)]
struct Queue {
    page: Vec<DeadLetter>,
    kept: Arc<Mutex<u32>>,
}

#[async_trait]
impl DeadLetterSource for Queue {
    async fn read(&mut self) -> Result<Vec<source::Message>, SourceError> {
        let page = self.page.drain(..).enumerate();
        let message = |(place, letter): (usize, DeadLetter)| {
            let handle = source::Handle(place.to_string());
            source::Message::new(place.to_string(), letter.to_json_line(), handle)
        };
        Ok(page.map(message).collect())
    }

    fn keep_interval(&self) -> Option<Duration> {
        Some(Duration::from_secs(20))
    }

    async fn keep(&mut self) -> Result<(), SourceError> {
        *self.kept.lock().expect("not poisoned") += 1;
        Ok(())
    }

    fn name(&self) -> String {
        "queue".to_owned()
    }
}

/// Messages that wait for the rate limit are kept, even if each batch is short.
#[tokio::test(start_paused = true)]
async fn waiting_messages_are_kept_from_other_readers() {
    let kept = Arc::new(Mutex::new(0));
    let queue = Queue {
        page: numbered(0..1_000, 10),
        kept: kept.clone(),
    };
    let replay = Replay::new(queue).ledger(ledger::Memory::new()).rate(10.0);
    let report = replay.to_sink(dead_letter::Memory::new(), pending()).await;
    assert_eq!(report.expect("the replay ends").replayed, 1_000);
    // The replay takes 100 s.
    let kept = *kept.lock().expect("not poisoned");
    assert!((4..=5).contains(&kept), "{kept}");
}

/// A store that is both source and sink, under two names.
#[derive(Debug, Clone, Default)]
struct Both {
    messages: Arc<Mutex<BTreeMap<u64, DeadLetter>>>,
    given: Arc<Mutex<u64>>,
}

#[async_trait]
impl DeadLetterSource for Both {
    async fn read(&mut self) -> Result<Vec<source::Message>, SourceError> {
        let messages = self.messages.lock().expect("not poisoned");
        let mut given = self.given.lock().expect("not poisoned");
        let page = messages.iter().filter(|(number, _)| **number >= *given);
        let page: Vec<_> = page
            .map(|(number, letter)| {
                let handle = source::Handle(number.to_string());
                source::Message::new(number.to_string(), letter.to_json_line(), handle)
            })
            .collect();
        *given += page.len() as u64;
        Ok(page)
    }

    async fn remove(&mut self, handles: &[source::Handle]) -> Vec<Result<(), SourceError>> {
        let mut messages = self.messages.lock().expect("not poisoned");
        for source::Handle(number) in handles {
            messages.remove(&number.parse().expect("a number"));
        }
        handles.iter().map(|_| Ok(())).collect()
    }

    fn removes(&self) -> bool {
        true
    }

    fn name(&self) -> String {
        "source".to_owned()
    }
}

#[async_trait]
impl DeadLetterSink for Both {
    async fn put(&self, letters: &[DeadLetter]) -> Vec<Result<dead_letter::Receipt, dead_letter::SinkError>> {
        let mut messages = self.messages.lock().expect("not poisoned");
        let next = messages.last_key_value().map_or(0, |(number, _)| number + 1);
        messages.extend((next..).zip(letters.iter().cloned()));
        letters
            .iter()
            .map(|_| Ok(dead_letter::Receipt::new("there")))
            .collect()
    }
}

#[tokio::test]
async fn a_run_removes_nothing_that_it_wrote() {
    let store = Both::default();
    let letters = numbered(0..20, 5);
    confirmed(store.put(&letters).await);
    let replay = Replay::new(store.clone()).ledger(ledger::Memory::new()).rate(1e6);
    let run = replay.to_sink(store.clone(), pending());
    let report = finished("the replay", run).await.expect("the replay ends");
    assert_eq!((report.replayed, report.returned), (20, 20), "{report:?}");
    let left: Vec<_> = store
        .messages
        .lock()
        .expect("not poisoned")
        .values()
        .cloned()
        .collect();
    assert_eq!(left, letters);
}

#[tokio::test]
async fn missing_target_fails_a_dry_run() {
    let (_server, client) = orders().await;
    let file = Letters::of(&numbered(0..3, 3)).await;
    let replay = file.replay().ledger(file.ledger()).dry_run(true);
    let error = replay
        .into_stream(Stream::new(client, "no-such-stream"), pending())
        .await;
    assert!(matches!(error, Err(ReplayError::TargetCheck(_))), "{error:?}");
}

#[tokio::test]
async fn a_dry_run_counts_a_copy_once() {
    let letters = numbered(0..4, 4);
    let file = Letters::of(&[letters.clone(), letters].concat()).await;
    let replay = file.replay().ledger(file.ledger()).dry_run(true);
    let report = replay
        .to_sink(dead_letter::Memory::new(), pending())
        .await
        .expect("the replay ends");
    assert_eq!((report.would, report.already), (4, 4), "{report:?}");
    assert!(report.is_clean());
}

/// The replay uses only the clock of tokio.
#[tokio::test(start_paused = true)]
async fn replay_keeps_its_rate() {
    let file = Letters::of(&numbered(0..300, 10)).await;
    let seen = Seen::default();
    let orders = billing(&seen);
    let began = tokio::time::Instant::now();
    let replay = file.replay().ledger(ledger::Memory::new()).rate(20.0);
    assert_eq!(
        replay
            .through(&orders, pending())
            .await
            .expect("the replay ends")
            .replayed,
        300
    );
    let took = began.elapsed();
    // The dead letters of the first half second are not delayed.
    assert!(
        (Duration::from_millis(14_400)..Duration::from_millis(15_100)).contains(&took),
        "{took:?}"
    );
}

#[tokio::test]
async fn source_has_one_replay_at_a_time() {
    let file = Letters::of(&numbered(0..3, 3)).await;
    let ledger = file.ledger();
    let began = Arc::new(tokio::sync::Notify::new());
    let stuck = processor_with(
        began.clone(),
        async |began: Arc<tokio::sync::Notify>, _: Record| -> Result<(), std::io::Error> {
            began.notify_one();
            pending().await
        },
    );
    let stuck = Resilient::builder("billing", stuck)
        .dead_letters(dead_letter::Memory::new())
        .build()
        .expect("complete");
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let first = file.replay().ledger(ledger.clone());
    let first = tokio::spawn(async move { first.through(&stuck, async { drop(stopped.await) }).await });
    let second = || {
        file.replay()
            .ledger(ledger.clone())
            .to_sink(dead_letter::Memory::new(), pending())
    };
    began.notified().await;
    let refused = second().await.expect_err("the first replay has the lock");
    assert!(
        matches!(refused, ReplayError::Ledger(LedgerError::Locked { .. })),
        "{refused:?}"
    );
    let other_process =
        ledger::Redb::open(file.folder.path().join("replay.redb")).expect_err("the ledger is open");
    assert!(
        matches!(other_process, LedgerError::InUse { .. }),
        "{other_process:?}"
    );
    // A stopped run leaves the unsettled dead letters.
    stop.send(()).expect("the first replay waits");
    let report = first.await.expect("no panic").expect("the replay ends");
    assert!(report.stopped && report.unsettled == 3, "{report:?}");
    second().await.expect("the lock is free");
}

#[tokio::test]
async fn missing_or_invalid_settings_are_an_error_at_once() {
    let file = Letters::of(&numbered(0..1, 1)).await;
    let memory = dead_letter::Memory::new;
    let error = file
        .replay()
        .to_sink(memory(), pending())
        .await
        .expect_err("no ledger");
    let setting = |error: ReplayError| match error {
        ReplayError::Config(error) => error.setting(),
        other => panic!("{other:?}"),
    };
    assert_eq!(setting(error), "ledger");
    let with = |replay: Replay| replay.ledger(ledger::Memory::new());
    for rate in [0.0, -1.0, 1e-9, f64::NAN, f64::INFINITY] {
        let error = with(file.replay()).rate(rate).to_sink(memory(), pending()).await;
        assert_eq!(setting(error.expect_err("refused")), "rate", "{rate}");
    }
    let never = with(file.replay()).max_redrives(0);
    let error = never.to_sink(memory(), pending()).await;
    assert_eq!(setting(error.expect_err("refused")), "max_redrives");
    let error = with(file.replay())
        .to_sink(
            dead_letter::File::open(file.path()).expect("the file opens"),
            pending(),
        )
        .await;
    assert!(matches!(error, Err(ReplayError::IntoItself { .. })), "{error:?}");
    let none = Replay::new(source::File::new(file.folder.path().join("no.jsonl")));
    let error = with(none)
        .to_sink(memory(), pending())
        .await
        .expect_err("the file does not exist");
    assert!(
        matches!(error, ReplayError::Source(SourceError::Missing { .. })),
        "{error:?}"
    );
}

#[tokio::test]
async fn record_replayed_in_process_keeps_its_idempotency_key() {
    let letters = numbered(0..6, 6);
    let file = Letters::of(&letters).await;
    let seen = Seen::default();
    let orders = Resilient::builder("billing", processor(&seen, |_| false))
        .dead_letters(dead_letter::Memory::new())
        .idempotency(Idempotency::new(idempotency::Memory::new()))
        .build()
        .expect("complete");
    let done = &letters[2];
    let record = Record::builder("orders", done.shard.clone(), done.sequence_number.clone())
        .sub_sequence_number(done.sub_sequence_number)
        .build();
    let _ = orders.settle(&record).await.expect("settled");
    let report: Report = file
        .replay()
        .ledger(file.ledger())
        .through(&orders, pending())
        .await
        .expect("the replay ends");
    assert_eq!((report.replayed, report.duplicates), (5, 1), "{report:?}");
}

#[tokio::test]
async fn a_dead_letter_stream_is_read_to_its_end_in_order() {
    let (_server, client) = orders().await;
    kinesis::create_stream(&client, "orders-dlq", 3)
        .await
        .expect("a stream");
    let letters = numbered(0..700, 50);
    let dlq = dead_letter::Kinesis::new(client.clone(), "orders-dlq");
    confirmed(dlq.put(&letters).await);
    stream::put(&client, "orders-dlq", [("a", "a foreign record")]).await;
    let replay = || {
        let source = source::Kinesis::new(client.clone(), "orders-dlq");
        Replay::new(source).rate(1e6)
    };
    let ledger = ledger::Memory::new();
    let into = || Stream::new(client.clone(), "orders");
    let report = replay()
        .ledger(ledger.clone())
        .into_stream(into(), pending())
        .await;
    let report = report.expect("the replay ends");
    assert_eq!((report.replayed, report.foreign), (700, 1), "{report:?}");
    assert_eq!(
        by_key(&stream::read(&client, "orders").await),
        payloads_by_key(&letters)
    );
    let report = replay()
        .ledger(ledger.clone())
        .into_stream(into(), pending())
        .await;
    assert_eq!(report.expect("the replay ends").already, 700);
    let itself = Stream::new(client.clone(), "orders-dlq");
    let error = replay()
        .ledger(ledger.clone())
        .into_stream(itself, pending())
        .await;
    assert!(matches!(error, Err(ReplayError::IntoItself { .. })), "{error:?}");
    let none = Replay::new(source::Kinesis::new(client.clone(), "no-such-stream"));
    let error = none.ledger(ledger).into_stream(into(), pending()).await;
    assert!(
        matches!(error, Err(ReplayError::Source(SourceError::Missing { .. }))),
        "{error:?}"
    );
}
