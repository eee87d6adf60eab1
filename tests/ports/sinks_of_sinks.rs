//! Tests of sinks that write to other sinks: the conformance suite, and the purpose of each sink. Time is
//! paused in tests that depend on it.

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

/// A sink under test, and the memory sink that gets its dead letters.
struct Over<S>(Memory, S);

impl<S: DeadLetterSink> Harness for Over<S> {
    type Sink = S;

    fn sink(&self) -> &S {
        &self.1
    }

    async fn read_back(&self, _is_complete: impl Fn(&[DeadLetter]) -> bool) -> Vec<DeadLetter> {
        let mut letters = self.0.letters();
        // `Redact` marks every dead letter, even if its function removes nothing.
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

/// Returns one character per result: `C` confirmed, `U` unavailable, `R` refused, `B` behind.
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
async fn fallback_takes_what_the_first_sink_refuses() {
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

    // A dead letter that both sinks refuse is refused, and the next one of its key waits.
    refuse_over(&other, 11);
    let results = sink.put(&letters).await;
    assert_eq!(signs(&results), "CCCCRB");
    assert!(matches!(results[4], Err(SinkError::Refused { limit: 11, .. })));
    // The rest of the key also waits if the other sink is down.
    other.set_down(true);
    assert_eq!(signs(&sink.put(&letters[1..]).await), "UBUBB");
}

#[tokio::test(start_paused = true)]
async fn fallback_replaces_a_first_sink_that_stays_down() {
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
        // The sink waits during an outage of a minute.
        while start.elapsed() < Duration::from_secs(60) {
            let results = sink.put(&letters).await;
            assert!(results.iter().all(Result::is_err));
            sleep(Duration::from_secs(10)).await;
        }
        assert!(numbers(&other).is_empty());
        sleep(Duration::from_secs(60)).await;
        assert_eq!(signs(&sink.put(&letters).await), "CCC");
        assert_eq!(numbers(&other), [1, 2, 3], "in order");
        // From then on not every put tries the first sink.
        let before = first.puts().len();
        for _ in 0..20 {
            confirmed(sink.put(&letters[..1]).await);
        }
        assert_eq!(first.puts().len(), before);
        // The sink notices that the first sink is available again.
        first.set_down(false);
        sleep(Duration::from_secs(31)).await;
        confirmed(sink.put(&letters).await);
        assert_eq!(numbers(&first), [1, 2, 3]);
        // The sink waits again at the start of a new outage.
        first.set_down(true);
        assert!(sink.put(&letters).await.iter().all(Result::is_err));
    }
}

/// A dead letter that is too large for its sink would halt the shard. With a fallback the record is settled.
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
async fn fan_out_needs_the_confirmation_of_every_sink() {
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
        "a refusal takes precedence"
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
    assert_eq!(signs(&none), "UUU", "without a sink nothing is confirmed");
}

#[tokio::test]
async fn dead_letter_takes_the_first_matching_route() {
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
async fn redacted_dead_letter_is_marked_and_keeps_its_position() {
    let letters = Memory::new();
    let sink = Redact::new(letters.clone(), |letter: &mut DeadLetter| {
        letter.payload.clear();
        letter.error.chain.clear();
        letter.partition_key = Some("hidden".into());
        // The function cannot change the position.
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
