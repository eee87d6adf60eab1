//! Sinks that write to others: the suite that all sinks pass, and what each is there for. Time is paused where it matters.

use std::time::Duration;

use redrive::dead_letter::{
    DeadLetter, DeadLetterSink, Fallback, FanOut, Memory, Receipt, Redact, Route, SinkError, SourceStream,
    TargetError,
};
use redrive::sink_conformance;
use redrive::testing::sinks::{Harness, confirmed, letter};
use redrive::{Class, Failure, Record, Resilient, Settled, processor_fn};
use support::sink::{Answer, ScriptedSink, unavailable};
use tokio::time::{Instant, sleep};

sink_conformance!(fallback, async {
    let letters = Memory::new();
    Over(letters.clone(), Fallback::new(letters, Memory::new()))
});
sink_conformance!(fallback_of_one_that_is_down, async {
    let letters = Memory::new();
    let down = ScriptedSink::default();
    down.set_down(true);
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

    async fn read_back(&self, _is_complete: impl Fn(&[DeadLetter]) -> bool) -> Vec<DeadLetter> {
        let mut letters = self.0.letters();
        // Nothing was taken out, and they are marked all the same.
        letters.iter_mut().for_each(|letter| letter.redacted = false);
        letters
    }
}

fn numbers(sink: &ScriptedSink) -> Vec<u64> {
    let number = |letter: &DeadLetter| letter.sequence_number.as_str().parse().expect("a small number");
    sink.letters().iter().map(number).collect()
}

/// Makes the sink refuse every dead letter whose payload is larger than the limit, in bytes.
fn refuse_over(sink: &ScriptedSink, limit: usize) {
    let outcome = move |letter: &DeadLetter| match letter.payload.len() {
        size if size > limit => Err(SinkError::Refused {
            size: size as u64,
            limit: limit as u64,
            source: "too large".into(),
        }),
        _ => Ok(()),
    };
    sink.on_put(move |_, letters| Answer::Each(letters.iter().map(outcome).collect()));
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
    let (first, other) = (ScriptedSink::default(), ScriptedSink::default());
    refuse_over(&first, 10);
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
    assert_eq!((numbers(&first), numbers(&other)), (vec![1, 3, 6], vec![2, 4, 5]));

    // What neither takes is refused, and what is behind it waits.
    refuse_over(&other, 11);
    let results = sink.put(&letters).await;
    assert_eq!(signs(&results), "CCCCRB");
    assert!(matches!(results[4], Err(SinkError::Refused { limit: 11, .. })));
    // As it does if the other is down.
    other.set_down(true);
    assert_eq!(signs(&sink.put(&letters[1..]).await), "UBUBB");
}

#[tokio::test(start_paused = true)]
async fn a_first_that_stays_down_is_left_and_looked_after() {
    let outages: [fn() -> Answer; 2] = [|| Answer::Fail(unavailable), || Answer::Hang];
    for outage in outages {
        let (first, other) = (ScriptedSink::default(), ScriptedSink::default());
        first.on_put(move |_, _| outage());
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
        assert!(numbers(&other).is_empty());
        sleep(Duration::from_secs(60)).await;
        assert_eq!(signs(&sink.put(&letters).await), "CCC");
        assert_eq!(numbers(&other), [1, 2, 3], "in their order");
        // From then on it is not asked each time.
        let before = first.puts().len();
        for _ in 0..20 {
            confirmed(sink.put(&letters[..1]).await);
        }
        assert_eq!(first.puts().len(), before);
        // It is back, and noticed.
        first.set_down(false);
        sleep(Duration::from_secs(31)).await;
        confirmed(sink.put(&letters).await);
        assert_eq!(numbers(&first), [1, 2, 3]);
        // A new outage is waited for again.
        first.set_down(true);
        assert!(sink.put(&letters).await.iter().all(Result::is_err));
    }
}

/// A record whose letter is too large for its sink halts the shard; with another sink it is settled.
#[tokio::test(start_paused = true)]
async fn a_processor_with_a_fallback_does_not_halt() {
    let (first, other) = (ScriptedSink::default(), ScriptedSink::default());
    refuse_over(&first, 10);
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
    assert_eq!(numbers(&other), [1]);
}

#[tokio::test]
async fn of_several_all_must_confirm() {
    let (one, two) = (ScriptedSink::default(), ScriptedSink::default());
    let sink = FanOut::new().and(one.clone()).and(two.clone());
    let letters = [
        letter(1, Some("a"), "x"),
        letter(2, Some("a"), vec![b'x'; 11]),
        letter(3, Some("b"), "x"),
    ];
    let receipts = confirmed(sink.put(&letters).await);
    assert!(receipts[0].location.contains(" and "), "{receipts:?}");
    refuse_over(&two, 10);
    assert_eq!(signs(&sink.put(&letters).await), "CRC");
    two.set_down(true);
    assert_eq!(signs(&sink.put(&letters).await), "UBU");
    refuse_over(&one, 10);
    assert_eq!(
        signs(&sink.put(&letters).await),
        "URU",
        "what can never be is said"
    );
    let orders = SourceStream::new("orders");
    assert!(sink.check(&orders).await.is_ok());
    two.on_check(|source| {
        Err(TargetError::SourceItself {
            name: source.name.clone(),
        })
    });
    assert!(
        sink.check(&orders).await.is_err(),
        "one target that must not be used is enough"
    );

    let none = FanOut::new().put(&letters).await;
    assert_eq!(signs(&none), "UUU", "nothing is confirmed by nobody");
}

#[tokio::test]
async fn a_letter_takes_the_first_route_that_is_its() {
    let (bad, late, rest) = (
        ScriptedSink::default(),
        ScriptedSink::default(),
        ScriptedSink::default(),
    );
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
    late.set_down(true);
    assert_eq!(signs(&sink.put(&letters).await), "CCUCCB");
    assert_eq!((numbers(&rest), numbers(&bad)), (vec![0, 3], vec![1, 4]));
    late.set_down(false);
    confirmed(sink.put(&letters).await);
    assert_eq!(numbers(&late), [2, 5]);
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
