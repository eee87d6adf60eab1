//! Tests of the retries of dead letters that a sink did not take. Time is paused throughout.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use redrive::observer::{DeadLetterEvent, Event, Observer};
use redrive::{BoxError, Failure, Record, Resilient, processor_fn};
use support::script::record;
use support::sink::{Answer, ScriptedSink, unavailable};
use tokio::time::{Instant, sleep_until};

/// One put: its time and its keys.
type Put = (Duration, String);

/// The reported delays of dead letters: failures in a row, and the delay.
#[derive(Debug, Default)]
struct Told(Mutex<Vec<(u32, Duration)>>);

impl Observer for Told {
    fn on(&self, event: &Event<'_>) {
        if let Event::DeadLetter(DeadLetterEvent::WriteDelayed { failures, delay, .. }) = event {
            self.0.lock().expect("no panic").push((*failures, *delay));
        }
    }
}

/// Dead-letters records of the given keys at the given times in milliseconds. Each entry of `refuses` names
/// the keys that one of the first puts refuses. Returns all puts, and the delays that were reported.
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
async fn retries_of_a_failing_sink_back_off() {
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

/// The sink took other dead letters of the same put, so only the refused dead letter waits. Its wait doubles
/// with each refusal.
#[tokio::test(start_paused = true)]
async fn dead_letter_refused_alone_waits_alone() {
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
            // Timers have a resolution of one millisecond.
            assert!(
                *at >= due && *at <= due + millis(1),
                "{key} at {at:?}, due {due:?}"
            );
        }
    }
}

/// The sink refuses the second put as a whole, so all dead letters wait for one later put.
#[tokio::test(start_paused = true)]
async fn dead_letters_wait_together_while_the_sink_takes_none() {
    for seed in 0..20 {
        let letters = [(0, "a"), (0, "b"), (10, "c")];
        let (puts, told) = write(seed, &letters, &["a", "c"]).await;
        // A dead letter that the sink takes restarts the count.
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

/// Dead-letters the records with these numbers, each with its own key, and returns when all are settled.
async fn dead_letter_all(
    resilient: &Resilient<impl redrive::RecordProcessor + 'static>,
    numbers: std::ops::Range<u64>,
) {
    let mut settling = tokio::task::JoinSet::new();
    for number in numbers {
        let resilient = resilient.clone();
        settling.spawn(async move { resilient.settle(&record(number, &number.to_string(), "")).await });
    }
    let settled = settling.join_all().await;
    assert!(settled.iter().all(Result::is_ok));
}

fn all_bad(sink: &ScriptedSink) -> Resilient<impl redrive::RecordProcessor + 'static> {
    async fn bad(_: Record) -> Result<(), BoxError> {
        Err(Failure::permanent("bad data").into())
    }
    Resilient::builder("billing", processor_fn(bad))
        .dead_letters(sink.clone())
        .without_guard()
        .seed(1)
        .build()
        .expect("valid")
}

/// A put of all dead letters would take longer than a put may.
#[tokio::test(start_paused = true)]
async fn slow_sink_gets_smaller_puts() {
    let sink = ScriptedSink::default();
    sink.on_put(|put, _| Answer::take_late(millis(200) * put.keys.len() as u32));
    let resilient = all_bad(&sink);
    let start = Instant::now();
    dead_letter_all(&resilient, 0..400).await;
    assert!(
        start.elapsed() < Duration::from_secs(120),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(
        sink.letters().len(),
        400,
        "confirmed dead letters are not put again"
    );
    let start = Instant::now();
    dead_letter_all(&resilient, 1_000..1_400).await;
    assert!(
        start.elapsed() < Duration::from_secs(60),
        "the smaller puts are kept: {:?}",
        start.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_that_hangs_waits_alone() {
    let sink = ScriptedSink::default();
    sink.on_put(|put, _| match put.keys.iter().flatten().any(|key| key == "7") {
        true => Answer::Hang,
        false => Answer::take_late(millis(20)),
    });
    let resilient = all_bad(&sink);
    let hangs = tokio::spawn({
        let resilient = resilient.clone();
        async move { dead_letter_all(&resilient, 7..8).await }
    });
    let start = Instant::now();
    dead_letter_all(&resilient, 100..600).await;
    assert!(
        start.elapsed() < Duration::from_secs(240),
        "{:?}",
        start.elapsed()
    );
    for first in [1_000, 2_000, 3_000] {
        let start = Instant::now();
        dead_letter_all(&resilient, first..first + 500).await;
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    }
    assert!(!hangs.is_finished());
    sink.set_down(false);
    hangs.await.expect("the sink takes the dead letter");
    assert_eq!(sink.letters().len(), 1 + 500 + 1_500);
}

/// Models, for example, a routing function of a combined sink that panics for one dead letter.
#[tokio::test(start_paused = true)]
async fn a_dead_letter_that_makes_the_sink_panic_waits_alone() {
    let sink = ScriptedSink::default();
    sink.on_put(|put, _| match put.keys.iter().flatten().any(|key| key == "7") {
        true => Answer::Panic,
        false => Answer::Take,
    });
    let resilient = all_bad(&sink);
    let alone = tokio::spawn({
        let resilient = resilient.clone();
        async move { dead_letter_all(&resilient, 7..8).await }
    });
    for first in [100, 1_000, 2_000] {
        let start = Instant::now();
        dead_letter_all(&resilient, first..first + 500).await;
        assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
    }
    assert!(!alone.is_finished());
    alone.abort();
}

/// Dead letters of one partition key are written in order, also when puts hang.
#[tokio::test(start_paused = true)]
async fn smaller_puts_keep_the_order_of_a_partition_key() {
    let sink = ScriptedSink::default();
    // The first puts hang, so that the dead letters are put in smaller parts.
    sink.on_put(|put, _| match put.number {
        1..=3 => Answer::Hang,
        _ => Answer::take_late(millis(2_000)),
    });
    let resilient = all_bad(&sink);
    let mut settling = tokio::task::JoinSet::new();
    for number in 0..200u64 {
        let resilient = resilient.clone();
        settling.spawn(async move {
            sleep_until(Instant::now() + millis(number)).await;
            resilient
                .settle(&record(number, &(number % 3).to_string(), ""))
                .await
        });
    }
    assert!(settling.join_all().await.iter().all(Result::is_ok));
    let letters = sink.letters();
    assert_eq!(letters.len(), 200);
    for key in ["0", "1", "2"] {
        let of_key = letters
            .iter()
            .filter(|letter| letter.partition_key.as_deref() == Some(key));
        assert!(of_key.is_sorted_by_key(|letter| &letter.sequence_number), "{key}");
    }
}
