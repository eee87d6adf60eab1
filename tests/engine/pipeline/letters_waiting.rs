//! When letters that a sink did not take are written again. Time is paused throughout.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use redrive::dead_letter::{DeadLetter, DeadLetterSink, Receipt, SinkError};
use redrive::observer::{Event, Observer};
use redrive::{BoxError, Failure, Record, Resilient, processor_fn};
use tokio::time::{Instant, sleep_until};

/// One put: when, of which keys.
type Put = (Duration, String);

/// Takes the letters whose key is not among those that the script names for this put; then all.
#[derive(Debug)]
struct Picky {
    start: Instant,
    refuses: &'static [&'static str],
    puts: Mutex<Vec<Put>>,
}

#[async_trait]
impl DeadLetterSink for Picky {
    async fn put(&self, letters: &[DeadLetter]) -> Vec<Result<Receipt, SinkError>> {
        let keys: String = letters
            .iter()
            .filter_map(|letter| letter.partition_key.as_deref())
            .collect();
        let mut puts = self.puts.lock().expect("no panic");
        let refused = self.refuses.get(puts.len()).copied().unwrap_or_default();
        puts.push((self.start.elapsed(), keys));
        let answer = |letter: &DeadLetter| match letter.partition_key.as_deref() {
            Some(key) if refused.contains(key) => Err(SinkError::unavailable("down")),
            _ => Ok(Receipt::new("somewhere")),
        };
        letters.iter().map(answer).collect()
    }
}

/// What is said of letters that wait: failures in a row, the longest wait.
#[derive(Debug, Default)]
struct Told(Mutex<Vec<(u32, Duration)>>);

impl Observer for Told {
    fn on(&self, event: &Event<'_>) {
        if let Event::DeadLetterDelayed { failures, delay, .. } = event {
            self.0.lock().expect("no panic").push((*failures, *delay));
        }
    }
}

/// Dead-letters records of these keys at these times, in milliseconds. What was put, and what was said.
async fn write(
    seed: u64,
    letters: &[(u64, &'static str)],
    refuses: &'static [&'static str],
) -> (Vec<Put>, Vec<(u32, Duration)>) {
    async fn bad(_: Record) -> Result<(), BoxError> {
        Err(Failure::permanent("bad data").into())
    }
    let start = Instant::now();
    let sink = Arc::new(Picky {
        start,
        refuses,
        puts: Mutex::default(),
    });
    let told = Arc::new(Told::default());
    let resilient = Resilient::builder("billing", processor_fn(bad))
        .dead_letters(sink.clone())
        .observer(told.clone())
        .seed(seed)
        .build()
        .expect("valid");
    let settled = letters.iter().enumerate().map(|(number, &(millis, key))| {
        let resilient = resilient.clone();
        async move {
            sleep_until(start + Duration::from_millis(millis)).await;
            let record =
                Record::builder("orders", "shardId-0".into(), (number as u64).into()).partition_key(key);
            assert!(resilient.settle(&record.build()).await.is_ok());
        }
    });
    futures_util::future::join_all(settled).await;
    let puts = std::mem::take(&mut *sink.puts.lock().expect("no panic"));
    let told = std::mem::take(&mut *told.0.lock().expect("no panic"));
    (puts, told)
}

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn put(at: Duration, keys: &str) -> Put {
    (at, keys.to_owned())
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_is_down_is_asked_less_and_less_often() {
    let (puts, told) = write(1, &[(0, "a")], &["a"; 12]).await;
    assert_eq!(puts.len(), 13);
    for (retry, gap) in puts.windows(2).map(|two| two[1].0 - two[0].0).enumerate() {
        let longest = millis(100 << retry).min(Duration::from_secs(10));
        assert!(
            gap >= longest / 2 && gap <= longest + millis(1),
            "retry {retry} after {gap:?}"
        );
    }
    let failures: Vec<u32> = told.iter().map(|told| told.0).collect();
    assert_eq!(failures, Vec::from_iter(1..=12));
}

/// Others were taken beside it: it is this letter that waits, twice as long each time, and no other.
#[tokio::test(start_paused = true)]
async fn a_letter_that_alone_is_not_taken_waits_alone() {
    for seed in 0..20 {
        // `a` waits when `c` is refused.
        let letters = [(0, "a"), (0, "b"), (10, "c"), (10, "d")];
        let (puts, told) = write(seed, &letters, &["a", "c"]).await;
        let (a, c) = (told[0].1, millis(10) + told[1].1);
        assert_eq!(puts[..2], [put(millis(0), "ab"), put(millis(10), "cd")]);
        let mut rest = [(a, "a"), (c, "c")];
        rest.sort();
        for ((at, keys), (due, key)) in puts[2..].iter().zip(rest) {
            assert_eq!(keys, key);
            // Timers are as fine as a millisecond.
            assert!(
                *at >= due && *at <= due + millis(1),
                "{key} at {at:?}, due {due:?}"
            );
        }
    }
}

/// Nothing was taken: one call after a while asks for all that wait.
#[tokio::test(start_paused = true)]
async fn while_a_sink_takes_nothing_all_letters_wait_for_the_next_try() {
    for seed in 0..20 {
        let letters = [(0, "a"), (0, "b"), (10, "c")];
        let (puts, told) = write(seed, &letters, &["a", "c"]).await;
        // What was taken in between begins the count again.
        assert_eq!(told.iter().map(|told| told.0).collect::<Vec<_>>(), [1, 1]);
        let (a, c) = (told[0].1, millis(10) + told[1].1);
        assert!(told[1].1 >= millis(50) && told[1].1 <= millis(100), "{told:?}");
        assert!(puts[2].0 >= c, "{puts:?} {a:?} {c:?}");
        assert!(
            puts[2..].iter().all(|put| put.0 <= a.max(c) + millis(1)),
            "{puts:?}"
        );
    }
}
