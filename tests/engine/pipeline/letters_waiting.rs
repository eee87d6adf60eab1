//! When letters that a sink did not take are written again. Time is paused throughout.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use redrive::observer::{Event, Observer};
use redrive::{BoxError, Failure, Record, Resilient, processor_fn};
use support::script::record;
use support::sink::{Answer, ScriptedSink, unavailable};
use tokio::time::{Instant, sleep_until};

/// One put: when, of which keys.
type Put = (Duration, String);

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

/// Dead-letters records of these keys at these times, in milliseconds. The first puts fail the keys that
/// `refuses` names for each of them. Returns all puts, and the delays that were reported.
async fn write(
    seed: u64,
    letters: &[(u64, &'static str)],
    refuses: &'static [&'static str],
) -> (Vec<Put>, Vec<(u32, Duration)>) {
    async fn bad(_: Record) -> Result<(), BoxError> {
        Err(Failure::permanent("bad data").into())
    }
    let start = Instant::now();
    let sink = ScriptedSink::default();
    sink.on_put(move |put, _| {
        let refused = refuses.get(put.number - 1).copied().unwrap_or_default();
        let outcome = |key: &Option<String>| match key {
            Some(key) if refused.contains(&**key) => Err(unavailable()),
            _ => Ok(()),
        };
        Answer::Each(put.keys.iter().map(outcome).collect())
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
            assert!(resilient.settle(&record(number as u64, key, "")).await.is_ok());
        }
    });
    futures_util::future::join_all(settled).await;
    let puts = sink.puts().into_iter();
    let puts = puts.map(|put| (put.at - start, put.keys.into_iter().flatten().collect()));
    let told = std::mem::take(&mut *told.0.lock().expect("no panic"));
    (puts.collect(), told)
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
