//! Sinks that write to others: the suite that all sinks pass, and what each is there for. Time is paused where it matters.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use redrive::dead_letter::{
    DeadLetter, DeadLetterSink, Fallback, FanOut, Memory, Receipt, Redact, Route, SinkError, SourceStream,
    TargetError, Warning,
};
use redrive::sink_conformance;
use redrive::testing::sinks::{Harness, confirmed, letter};
use redrive::{Class, Failure, Record, Resilient, Settled, processor_fn};
use tokio::time::{Instant, sleep};

sink_conformance!(fallback, async {
    let letters = Memory::new();
    Over(letters.clone(), Fallback::new(letters, Memory::new()))
});
sink_conformance!(fallback_of_one_that_is_down, async {
    let letters = Memory::new();
    let down = Scripted::default();
    down.set(Mood::Down);
    Over(
        letters.clone(),
        Fallback::new(down, letters).after(Duration::ZERO),
    )
});
sink_conformance!(fan_out, async {
    let letters = Memory::new();
    Over(letters.clone(), FanOut::new().and(Memory::new()).and(letters))
});
sink_conformance!(route, async {
    let letters = Memory::new();
    let other = Memory::new();
    let route = Route::by_default(letters.clone()).when(|letter| letter.redacted, other);
    Over(letters, route)
});
sink_conformance!(redact, async {
    let letters = Memory::new();
    Over(letters.clone(), Redact::new(letters, |_: &mut DeadLetter| {}))
});

/// A sink whose letters end here.
struct Over<S>(Memory, S);

impl<S: DeadLetterSink> Harness for Over<S> {
    type Sink = S;

    fn sink(&self) -> &S {
        &self.1
    }

    async fn read_back(&self) -> Vec<DeadLetter> {
        let mut letters = self.0.letters();
        // Nothing was taken out, and they are marked all the same.
        letters.iter_mut().for_each(|letter| letter.redacted = false);
        letters
    }
}

/// What a sink does with letters.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
enum Mood {
    #[default]
    Takes,
    Down,
    Hangs,
    /// Of these the payload is too large.
    RefusesOver(usize),
}

#[derive(Debug, Clone, Default)]
struct Scripted {
    mood: Arc<Mutex<Mood>>,
    puts: Arc<AtomicUsize>,
    letters: Memory,
}

impl Scripted {
    fn set(&self, mood: Mood) {
        *self.mood.lock().expect("no panic while locked") = mood;
    }

    fn puts(&self) -> usize {
        self.puts.load(SeqCst)
    }

    fn numbers(&self) -> Vec<u64> {
        numbers(&self.letters.letters())
    }
}

fn numbers(letters: &[DeadLetter]) -> Vec<u64> {
    let number = |letter: &DeadLetter| letter.sequence_number.as_str().parse().expect("a small number");
    letters.iter().map(number).collect()
}

#[async_trait]
impl DeadLetterSink for Scripted {
    async fn put(&self, letters: &[DeadLetter]) -> Vec<Result<Receipt, SinkError>> {
        self.puts.fetch_add(1, SeqCst);
        let mood = *self.mood.lock().expect("no panic while locked");
        let mut stopped = HashSet::new();
        let mut results = Vec::new();
        for letter in letters {
            let result = match mood {
                _ if stopped.contains(&letter.partition_key) => Err(SinkError::Behind),
                Mood::Hangs => std::future::pending().await,
                Mood::Down => Err(SinkError::unavailable("down")),
                Mood::RefusesOver(limit) if letter.payload.len() > limit => Err(SinkError::Refused {
                    size: letter.payload.len() as u64,
                    limit: limit as u64,
                    source: "too large".into(),
                }),
                _ => self.letters.put(std::slice::from_ref(letter)).await.remove(0),
            };
            if result.is_err() {
                stopped.insert(letter.partition_key.clone());
            }
            results.push(result);
        }
        results
    }

    async fn check(&self, _: &SourceStream) -> Result<Vec<Warning>, TargetError> {
        match *self.mood.lock().expect("no panic while locked") {
            Mood::Down => Err(TargetError::SourceItself {
                name: "orders".into(),
            }),
            _ => Ok(Vec::new()),
        }
    }

    fn name(&self) -> String {
        "scripted".into()
    }
}

/// C: confirmed, U: unavailable, R: refused, B: behind.
fn signs(results: &[Result<Receipt, SinkError>]) -> String {
    let sign = |result: &Result<Receipt, SinkError>| match result {
        Ok(_) => 'C',
        Err(SinkError::Unavailable(_)) => 'U',
        Err(SinkError::Refused { .. }) => 'R',
        Err(_) => 'B',
    };
    results.iter().map(sign).collect()
}

#[tokio::test(start_paused = true)]
async fn what_the_first_refuses_goes_to_the_other_and_the_rest_of_its_key_goes_on() {
    let (first, other) = (Scripted::default(), Scripted::default());
    first.set(Mood::RefusesOver(10));
    let sink = Fallback::new(first.clone(), other.clone());
    let letters = [
        letter(1, Some("a"), "x"),
        letter(2, Some("a"), vec![b'x'; 11]),
        letter(3, Some("a"), "x"),
        letter(4, Some("b"), vec![b'x'; 11]),
        letter(5, Some("a"), vec![b'x'; 12]),
        letter(6, Some("a"), "x"),
    ];
    assert_eq!(signs(&sink.put(&letters).await), "CCCCCC");
    assert_eq!((first.numbers(), other.numbers()), (vec![1, 3, 6], vec![2, 4, 5]));

    // What neither takes is refused, and what is behind it waits.
    other.set(Mood::RefusesOver(11));
    let results = sink.put(&letters).await;
    assert_eq!(signs(&results), "CCCCRB");
    assert!(matches!(results[4], Err(SinkError::Refused { limit: 11, .. })));
    // As it does if the other is down.
    other.set(Mood::Down);
    assert_eq!(signs(&sink.put(&letters[1..]).await), "UBUBB");
}

#[tokio::test(start_paused = true)]
async fn a_first_that_stays_down_is_left_and_looked_after() {
    for mood in [Mood::Down, Mood::Hangs] {
        let (first, other) = (Scripted::default(), Scripted::default());
        first.set(mood);
        let sink = Fallback::new(first.clone(), other.clone()).after(Duration::from_secs(120));
        let letters = [
            letter(1, Some("a"), "x"),
            letter(2, Some("a"), "x"),
            letter(3, Some("b"), "x"),
        ];
        let start = Instant::now();
        // An outage of a minute is waited for.
        while start.elapsed() < Duration::from_secs(60) {
            let results = sink.put(&letters).await;
            assert!(results.iter().all(Result::is_err));
            sleep(Duration::from_secs(10)).await;
        }
        assert!(other.numbers().is_empty());
        sleep(Duration::from_secs(60)).await;
        assert_eq!(signs(&sink.put(&letters).await), "CCC");
        assert_eq!(other.numbers(), [1, 2, 3], "in their order");
        // From then on it is not asked each time.
        let before = first.puts();
        for _ in 0..20 {
            confirmed(sink.put(&letters[..1]).await);
        }
        assert_eq!(first.puts(), before);
        // It is back, and noticed.
        first.set(Mood::Takes);
        sleep(Duration::from_secs(31)).await;
        confirmed(sink.put(&letters).await);
        assert_eq!(first.numbers(), [1, 2, 3]);
        // A new outage is waited for again.
        first.set(Mood::Down);
        assert!(sink.put(&letters).await.iter().all(Result::is_err));
    }
}

/// A record whose letter is too large for its sink halts the shard; with another sink it is settled.
#[tokio::test(start_paused = true)]
async fn a_processor_with_a_fallback_does_not_halt() {
    let (first, other) = (Scripted::default(), Scripted::default());
    first.set(Mood::RefusesOver(10));
    let bad = processor_fn(async |_: Record| Err::<(), _>(Failure::permanent("bad")));
    let resilient = Resilient::builder("billing", bad)
        .dead_letters(Fallback::new(first, other.clone()))
        .build()
        .expect("valid");
    let record = Record::builder("orders", "shardId-0".into(), 1.into())
        .payload(vec![b'x'; 20])
        .build();
    let settled = resilient.settle(&record).await.expect("settled");
    assert!(matches!(settled, Settled::DeadLettered(_)));
    assert_eq!(other.numbers(), [1]);
}

#[tokio::test]
async fn of_several_all_must_confirm() {
    let (one, two) = (Scripted::default(), Scripted::default());
    let sink = FanOut::new().and(one.clone()).and(two.clone());
    let letters = [
        letter(1, Some("a"), "x"),
        letter(2, Some("a"), vec![b'x'; 11]),
        letter(3, Some("b"), "x"),
    ];
    let receipts = confirmed(sink.put(&letters).await);
    assert!(receipts[0].location.contains(" and "), "{receipts:?}");
    two.set(Mood::RefusesOver(10));
    assert_eq!(signs(&sink.put(&letters).await), "CRC");
    two.set(Mood::Down);
    assert_eq!(signs(&sink.put(&letters).await), "UBU");
    one.set(Mood::RefusesOver(10));
    assert_eq!(
        signs(&sink.put(&letters).await),
        "URU",
        "what can never be is said"
    );
    assert!(
        sink.check(&SourceStream::new("orders")).await.is_err(),
        "one target that must not be used is enough"
    );

    let none = FanOut::new().put(&letters).await;
    assert_eq!(signs(&none), "UUU", "nothing is confirmed by nobody");
}

#[tokio::test]
async fn a_letter_takes_the_first_route_that_is_its() {
    let (bad, late, rest) = (Scripted::default(), Scripted::default(), Scripted::default());
    let sink = Route::by_default(rest.clone())
        .when(
            |letter| letter.class == Class::Permanent && letter.payload.len() > 5,
            bad.clone(),
        )
        .when(|letter| letter.payload.len() > 3, late.clone());
    let letters: Vec<DeadLetter> = [1, 6, 4, 2, 9, 5]
        .iter()
        .zip(0..)
        .map(|(bytes, number)| letter(number, Some("a"), vec![b'x'; *bytes]))
        .collect();
    late.set(Mood::Down);
    assert_eq!(signs(&sink.put(&letters).await), "CCUCCB");
    assert_eq!((rest.numbers(), bad.numbers()), (vec![0, 3], vec![1, 4]));
    late.set(Mood::Takes);
    confirmed(sink.put(&letters).await);
    assert_eq!(late.numbers(), [2, 5]);
}

#[tokio::test]
async fn what_must_not_leave_is_taken_out_and_the_letter_says_so() {
    let letters = Memory::new();
    let sink = Redact::new(letters.clone(), |letter: &mut DeadLetter| {
        letter.payload.clear();
        letter.error.chain.clear();
        letter.partition_key = Some("hidden".into());
        // Its place it keeps whatever the function does.
        letter.sequence_number = 999.into();
        letter.stream = "elsewhere".into();
    });
    let secret = letter(5, Some("card 4711"), "card 4711");
    confirmed(sink.put(std::slice::from_ref(&secret)).await);
    let written = letters.letters().remove(0);
    assert!(written.redacted);
    assert_eq!((written.id, written.origin), (secret.id, secret.origin));
    assert_eq!(
        (&written.stream, &written.sequence_number),
        (&secret.stream, &secret.sequence_number)
    );
    for bytes in [written.encode().to_vec(), written.to_json_line()] {
        assert!(!String::from_utf8_lossy(&bytes).contains("4711"));
    }
    let read = DeadLetter::decode(&written.encode()).expect("whole");
    assert_eq!(read, written);
    assert!(!DeadLetter::decode(&secret.encode()).expect("whole").redacted);
}
