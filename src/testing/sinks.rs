//! The conformance suite of dead-letter sinks.
//!
//! A check that fails panics with the reason. [`sink_conformance!`](crate::sink_conformance) generates a test
//! for each check.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::time::{Duration, UNIX_EPOCH};

use futures_util::future::join_all;

use crate::dead_letter::{DeadLetter, DeadLetterSink, Reason, Receipt, SinkError};
use crate::failure::Failure;
use crate::record::{Record, Redriven, SequenceNumber};
use crate::replay::{self, DeadLetterSource};

/// Access to a sink with an empty target.
pub trait Harness {
    /// The type of the sink.
    type Sink: DeadLetterSink;

    /// Returns the sink.
    fn sink(&self) -> &Self::Sink;

    /// Returns all dead letters in the target. The dead letters of one partition key must be in the order in
    /// which the target returns them.
    ///
    /// Some targets show dead letters only some time after the confirmation. Read such a target until
    /// `is_complete` returns true for the dead letters read so far, and once more to find dead letters that
    /// must not be there. Stop after a timeout of your choice. For all other targets, ignore `is_complete`.
    fn read_back(&self, is_complete: impl Fn(&[DeadLetter]) -> bool)
    -> impl Future<Output = Vec<DeadLetter>>;

    /// Returns the source that reads the target for a replay, if there is one. Default: none.
    fn source(&self) -> Option<Box<dyn DeadLetterSource>> {
        None
    }

    /// Returns the longest partition key that the target accepts. Default: 256 characters of 4 bytes, the
    /// maximum of Kinesis.
    fn longest_key(&self) -> String {
        "🦀".repeat(256)
    }

    /// Returns the size in bytes of the largest payload to test, at most the limit of the target. Default:
    /// 1,000,000.
    fn largest_payload(&self) -> usize {
        1_000_000
    }
}

/// Generates a module of this name with a test for each check of the suite. Each test awaits the future to
/// get a harness of its own. With `optional` before the future, the future returns an `Option`, and `None`
/// skips the test.
///
/// The caller's crate needs tokio with the feature `macros`.
#[macro_export]
macro_rules! sink_conformance {
    ($name:ident, $($fresh:tt)+) => {
        $crate::conformance_tests!(sinks, $name, [
            every_letter_has_its_result,
            an_empty_put_has_no_results,
            any_payload_reads_back_as_it_was,
            the_largest_payload_reads_back,
            any_partition_key_reads_back_as_it_was,
            letters_without_a_key_are_kept,
            order_per_key_is_kept_inside_a_put,
            order_per_key_is_kept_over_puts,
            a_letter_written_twice_has_the_same_id,
            a_letter_whose_replay_fails_at_once_is_one_letter_again,
            twelve_hundred_letters_fit_in_one_put,
            concurrent_puts_do_not_mix_letters,
            a_dropped_put_does_no_harm,
            its_name_is_fit_for_a_log,
        ], $($fresh)+);
    };
}

/// Creates a dead letter of the record with this sequence number.
pub fn letter(number: u64, key: Option<&str>, payload: impl Into<Vec<u8>>) -> DeadLetter {
    let mut record = Record::builder(
        "orders",
        "shardId-000000000001".into(),
        SequenceNumber::from(number),
    )
    .sub_sequence_number(number % 3)
    .arrival(UNIX_EPOCH + Duration::from_millis(1_790_000_000_123 + number))
    .payload(payload.into());
    if let Some(key) = key {
        record = record.partition_key(key);
    }
    let failure = Failure::permanent(format!("no such customer: \"{number}\"\n")).with_code("NoCustomer");
    DeadLetter::new("billing", &record.build(), Reason::Permanent, &failure)
}

/// Returns the receipts. Panics unless every dead letter is confirmed.
pub fn confirmed(results: Vec<Result<Receipt, SinkError>>) -> Vec<Receipt> {
    results
        .into_iter()
        .map(|result| result.expect("the dead letter is confirmed"))
        .collect()
}

/// Groups dead letters by partition key and keeps their order.
fn by_key(letters: &[DeadLetter]) -> BTreeMap<Option<String>, Vec<DeadLetter>> {
    let mut lanes: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for letter in letters {
        lanes
            .entry(letter.partition_key.clone())
            .or_default()
            .push(letter.clone());
    }
    lanes
}

/// Reads the target until it shows at least this many dead letters.
async fn read_at_least(harness: &impl Harness, count: usize) -> Vec<DeadLetter> {
    harness.read_back(|read| read.len() >= count).await
}

async fn write_and_read_back(harness: &impl Harness, letters: &[DeadLetter]) {
    let receipts = confirmed(harness.sink().put(letters).await);
    assert_eq!(receipts.len(), letters.len());
    assert_eq!(
        by_key(&read_at_least(harness, letters.len()).await),
        by_key(letters)
    );
}

/// A put returns one receipt with a location for each dead letter.
pub async fn every_letter_has_its_result(harness: &impl Harness) {
    let letters: Vec<_> = (0..7)
        .map(|i| letter(i, Some(&format!("k{i}")), format!("payload {i}")))
        .collect();
    let receipts = confirmed(harness.sink().put(&letters).await);
    assert_eq!(receipts.len(), 7);
    assert!(receipts.iter().all(|receipt| !receipt.location.is_empty()));
    assert_eq!(
        by_key(&read_at_least(harness, letters.len()).await),
        by_key(&letters)
    );
}

/// A put without dead letters returns no results and writes nothing.
pub async fn an_empty_put_has_no_results(harness: &impl Harness) {
    assert!(harness.sink().put(&[]).await.is_empty());
    assert!(read_at_least(harness, 0).await.is_empty());
}

/// Payloads with any bytes read back unchanged.
pub async fn any_payload_reads_back_as_it_was(harness: &impl Harness) {
    let payloads: Vec<Vec<u8>> = vec![
        vec![],
        vec![b'\n'],
        vec![0],
        b"\n\n{\"kind\":\"redrive.dead_letter\"}\n".to_vec(),
        b"\0\r\n\xff\xfe\0".to_vec(),
        (0..=255).collect(),
        "grün 🦀 \u{2028}".into(),
    ];
    let letters: Vec<_> = payloads
        .into_iter()
        .zip(0..)
        .map(|(payload, i)| letter(i, Some("k"), payload))
        .collect();
    write_and_read_back(harness, &letters).await;
}

/// Payloads of [`largest_payload`](Harness::largest_payload) bytes read back unchanged.
pub async fn the_largest_payload_reads_back(harness: &impl Harness) {
    let payload: Vec<u8> = (0..harness.largest_payload()).map(|i| (i % 251) as u8).collect();
    let letters: Vec<_> = (0..3)
        .map(|i| letter(i, Some(&format!("k{i}")), payload.clone()))
        .collect();
    write_and_read_back(harness, &letters).await;
}

/// Partition keys with any characters, up to [`longest_key`](Harness::longest_key), read back unchanged.
pub async fn any_partition_key_reads_back_as_it_was(harness: &impl Harness) {
    let longest = harness.longest_key();
    let keys = [
        "a",
        " ",
        "\"\\\n",
        "grün",
        "🦀",
        "a\u{301}",
        "\u{1}",
        &"k".repeat(256),
        &longest,
    ];
    let letters: Vec<_> = (0..)
        .zip(keys)
        .map(|(i, key)| letter(i, Some(key), "x"))
        .collect();
    write_and_read_back(harness, &letters).await;
}

/// Dead letters without a partition key are kept. A stream with AUTO record distribution has no partition
/// keys.
pub async fn letters_without_a_key_are_kept(harness: &impl Harness) {
    let letters: Vec<_> = (0..20).map(|i| letter(i, None, format!("{i}"))).collect();
    confirmed(harness.sink().put(&letters).await);
    let mut read = read_at_least(harness, letters.len()).await;
    // Without a key, any order is allowed.
    read.sort_by_key(|letter| letter.sequence_number.clone());
    assert_eq!(read, letters);
}

/// The order within a partition key is kept inside one put, with several dead letters of each key.
pub async fn order_per_key_is_kept_inside_a_put(harness: &impl Harness) {
    let letters: Vec<_> = (0..60)
        .map(|i| letter(i, Some(&format!("k{}", i % 7)), format!("{i}")))
        .collect();
    write_and_read_back(harness, &letters).await;
}

/// The order within a partition key is kept across consecutive puts.
pub async fn order_per_key_is_kept_over_puts(harness: &impl Harness) {
    let letters: Vec<_> = (0..30)
        .map(|i| letter(i, Some(&format!("k{}", i % 3)), format!("{i}")))
        .collect();
    for put in letters.chunks(4) {
        confirmed(harness.sink().put(put).await);
    }
    assert_eq!(
        by_key(&read_at_least(harness, letters.len()).await),
        by_key(&letters)
    );
}

/// Copies of a dead letter have the same id, by which a reader drops duplicates.
pub async fn a_letter_written_twice_has_the_same_id(harness: &impl Harness) {
    let one = letter(1, Some("k"), "x");
    confirmed(harness.sink().put(&[one.clone(), one.clone()]).await);
    confirmed(harness.sink().put(std::slice::from_ref(&one)).await);
    let read = read_at_least(harness, 1).await;
    assert!(!read.is_empty());
    assert!(read.iter().all(|letter| letter.id == one.id && *letter == one));
}

/// A replayed record that fails again becomes a second dead letter with another id. The sink must keep it,
/// and removing the first must not remove it.
pub async fn a_letter_whose_replay_fails_at_once_is_one_letter_again(harness: &impl Harness) {
    let first = letter(1, Some("k"), "x");
    confirmed(harness.sink().put(std::slice::from_ref(&first)).await);
    let redriven = Redriven::new(first.origin, 1, first.arrival);
    let failure = Failure::permanent("no such customer");
    let again = DeadLetter::new(
        "billing",
        &replay::record(&first, &redriven),
        Reason::Permanent,
        &failure,
    );
    assert_eq!((again.origin, again.redrive_count), (first.origin, 1));
    confirmed(harness.sink().put(std::slice::from_ref(&again)).await);
    let mut left = vec![first.clone(), again.clone()];
    if let Some(mut source) = harness.source()
        && source.removes()
    {
        let mut removed = false;
        while !removed {
            let page = source.read().await.expect("the source is readable");
            assert!(!page.is_empty(), "the first dead letter is not read");
            for message in page {
                let read = DeadLetter::decode(&message.body).expect("the message is a dead letter");
                if read.id == first.id {
                    let gone = source.remove(&[message.handle]).await.remove(0);
                    gone.expect("the message is removed");
                    removed = true;
                }
            }
        }
        source.close().await.expect("the source is closed");
        left.remove(0);
    }
    assert_eq!(by_key(&read_at_least(harness, left.len()).await), by_key(&left));
}

/// A put may have more dead letters than a service accepts in one request.
pub async fn twelve_hundred_letters_fit_in_one_put(harness: &impl Harness) {
    let letters: Vec<_> = (0..1_200)
        .map(|i| letter(i, Some(&format!("k{}", i % 700)), format!("{i}")))
        .collect();
    write_and_read_back(harness, &letters).await;
}

/// Concurrent puts keep their dead letters complete and in order.
pub async fn concurrent_puts_do_not_mix_letters(harness: &impl Harness) {
    let puts: Vec<Vec<DeadLetter>> = (0..16)
        .map(|put| {
            (0..20)
                .map(|i| letter(put * 100 + i, Some(&format!("k{put}")), vec![b'x'; 5_000]))
                .collect()
        })
        .collect();
    for results in join_all(puts.iter().map(|letters| harness.sink().put(letters))).await {
        confirmed(results);
    }
    assert_eq!(by_key(&read_at_least(harness, 320).await), by_key(&puts.concat()));
}

/// A put whose future is dropped may or may not write its dead letters. Later puts still work.
pub async fn a_dropped_put_does_no_harm(harness: &impl Harness) {
    let dropped: Vec<_> = (0..50)
        .map(|i| letter(i, Some("dropped"), vec![b'x'; 10_000]))
        .collect();
    for polls in 1..4 {
        let mut put = pin!(harness.sink().put(&dropped));
        for _ in 0..polls {
            if futures_util::poll!(put.as_mut()).is_ready() {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
    let letters: Vec<_> = (100..105).map(|i| letter(i, Some("k"), "x")).collect();
    confirmed(harness.sink().put(&letters).await);
    // The harness panics on messages that it cannot decode.
    let is_next = |letter: &&DeadLetter| letter.partition_key.as_deref() == Some("k");
    let is_complete = |read: &[DeadLetter]| read.iter().filter(is_next).count() >= letters.len();
    let mut read = harness.read_back(is_complete).await;
    read.retain(|letter| is_next(&letter));
    assert_eq!(read, letters);
}

/// The sink's name is a single line, and the sink's `Debug` output has no credentials.
pub async fn its_name_is_fit_for_a_log(harness: &impl Harness) {
    let name = harness.sink().name();
    assert!(!name.is_empty() && !name.contains('\n'), "{name:?}");
    assert!(!format!("{:?}", harness.sink()).contains("Credentials"));
}
