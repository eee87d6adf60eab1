//! What every dead-letter sink must do, whatever it writes to.
//!
//! Each check panics with what is wrong. [`sink_conformance!`](crate::sink_conformance) makes a test of each.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::time::{Duration, UNIX_EPOCH};

use futures_util::future::join_all;

use crate::dead_letter::{DeadLetter, DeadLetterSink, Reason, Receipt, SinkError};
use crate::failure::Failure;
use crate::record::{Record, Redriven, SequenceNumber};
use crate::replay::{self, DeadLetterSource};

/// A sink with an empty target.
pub trait Harness {
    /// The sink.
    type Sink: DeadLetterSink;

    /// It.
    fn sink(&self) -> &Self::Sink;

    /// Every letter that the target holds. Those of one partition key in the order in which they can be read.
    ///
    /// A target that shows letters some time after it has confirmed them is read until `is_complete` holds for what was
    /// read, and once more to find letters that must not be there. Give up after a timeout of your choice. All other
    /// targets ignore `is_complete`.
    fn read_back(&self, is_complete: impl Fn(&[DeadLetter]) -> bool)
    -> impl Future<Output = Vec<DeadLetter>>;

    /// What reads the target for driving its letters again, if there is something. Default: nothing.
    fn source(&self) -> Option<Box<dyn DeadLetterSource>> {
        None
    }

    /// The longest partition key that the target takes. Default: 256 characters of 4 bytes, the longest that Kinesis has.
    fn longest_key(&self) -> String {
        "🦀".repeat(256)
    }

    /// The bytes of the largest payload that the target takes, or of one that is large enough. Default: 1,000,000.
    fn largest_payload(&self) -> usize {
        1_000_000
    }
}

/// Runs the suite: a test for each check, in a module of this name, each with a harness of its own that this future makes.
/// With `optional` before the future it makes an `Option`, and a test without a harness is skipped.
///
/// It needs tokio with its macros.
#[macro_export]
macro_rules! sink_conformance {
    ($name:ident, optional $fresh:expr) => {
        $crate::sink_conformance!(@all $name, {
            let Some(harness) = $fresh.await else { return };
            harness
        });
    };
    ($name:ident, $fresh:expr) => {
        $crate::sink_conformance!(@all $name, { $fresh.await });
    };
    (@all $name:ident, $make:block) => {
        $crate::sink_conformance!(@each $name, $make, [
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
        ]);
    };
    (@each $name:ident, $make:block, [$($check:ident),* $(,)?]) => {
        mod $name {
            use super::*;
            $(
                #[tokio::test]
                async fn $check() {
                    let harness = $make;
                    $crate::testing::sinks::$check(&harness).await;
                }
            )*
        }
    };
}

/// A letter of the record with this number.
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

/// What is confirmed of them, which must be all.
pub fn confirmed(results: Vec<Result<Receipt, SinkError>>) -> Vec<Receipt> {
    results
        .into_iter()
        .map(|result| result.expect("the letter is confirmed"))
        .collect()
}

/// The letters, by partition key and in their order.
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

/// What the target holds once it shows at least this many letters.
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

/// A result for each letter, in their order, with a place.
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

/// None for none.
pub async fn an_empty_put_has_no_results(harness: &impl Harness) {
    assert!(harness.sink().put(&[]).await.is_empty());
    assert!(read_at_least(harness, 0).await.is_empty());
}

/// Whatever bytes it has.
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

/// Up to the target's limit.
pub async fn the_largest_payload_reads_back(harness: &impl Harness) {
    let payload: Vec<u8> = (0..harness.largest_payload()).map(|i| (i % 251) as u8).collect();
    let letters: Vec<_> = (0..3)
        .map(|i| letter(i, Some(&format!("k{i}")), payload.clone()))
        .collect();
    write_and_read_back(harness, &letters).await;
}

/// Whatever characters it has.
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

/// On a stream that distributes records by itself there are none.
pub async fn letters_without_a_key_are_kept(harness: &impl Harness) {
    let letters: Vec<_> = (0..20).map(|i| letter(i, None, format!("{i}"))).collect();
    confirmed(harness.sink().put(&letters).await);
    let mut read = read_at_least(harness, letters.len()).await;
    // Without a key there is no order.
    read.sort_by_key(|letter| letter.sequence_number.clone());
    assert_eq!(read, letters);
}

/// However many of a key come at once.
pub async fn order_per_key_is_kept_inside_a_put(harness: &impl Harness) {
    let letters: Vec<_> = (0..60)
        .map(|i| letter(i, Some(&format!("k{}", i % 7)), format!("{i}")))
        .collect();
    write_and_read_back(harness, &letters).await;
}

/// And in one put after the other.
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

/// A reader drops the copy by it.
pub async fn a_letter_written_twice_has_the_same_id(harness: &impl Harness) {
    let one = letter(1, Some("k"), "x");
    confirmed(harness.sink().put(&[one.clone(), one.clone()]).await);
    confirmed(harness.sink().put(std::slice::from_ref(&one)).await);
    let read = read_at_least(harness, 1).await;
    assert!(!read.is_empty());
    assert!(read.iter().all(|letter| letter.id == one.id && *letter == one));
}

/// It is another one than the first, which goes: neither is taken for the other.
pub async fn a_letter_whose_replay_fails_at_once_is_one_letter_again(harness: &impl Harness) {
    let first = letter(1, Some("k"), "x");
    confirmed(harness.sink().put(std::slice::from_ref(&first)).await);
    let redriven = Redriven::new(first.origin, 1, first.arrived_at);
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
            let page = source.read().await.expect("it is read");
            assert!(!page.is_empty(), "the first letter is not read");
            for message in page {
                let read = DeadLetter::decode(&message.body).expect("a letter");
                if read.id == first.id {
                    let gone = source.remove(&[message.handle]).await.remove(0);
                    gone.expect("it is removed");
                    removed = true;
                }
            }
        }
        source.close().await.expect("it is closed");
        left.remove(0);
    }
    assert_eq!(by_key(&read_at_least(harness, left.len()).await), by_key(&left));
}

/// More than any service takes in a request.
pub async fn twelve_hundred_letters_fit_in_one_put(harness: &impl Harness) {
    let letters: Vec<_> = (0..1_200)
        .map(|i| letter(i, Some(&format!("k{}", i % 700)), format!("{i}")))
        .collect();
    write_and_read_back(harness, &letters).await;
}

/// Each put's letters are whole and in order.
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

/// Its letters may be there or not; the next ones are.
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
    // The harness fails on what it cannot read.
    let is_next = |letter: &&DeadLetter| letter.partition_key.as_deref() == Some("k");
    let is_complete = |read: &[DeadLetter]| read.iter().filter(is_next).count() >= letters.len();
    let mut read = harness.read_back(is_complete).await;
    read.retain(|letter| is_next(&letter));
    assert_eq!(read, letters);
}

/// A line, without anything secret.
pub async fn its_name_is_fit_for_a_log(harness: &impl Harness) {
    let name = harness.sink().name();
    assert!(!name.is_empty() && !name.contains('\n'), "{name:?}");
    assert!(!format!("{:?}", harness.sink()).contains("Credentials"));
}
