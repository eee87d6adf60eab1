//! Tests of the life of one record: attempts, retries, verdicts and dead letters. Time is paused throughout.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use redrive::dead_letter::{self, DeadLetter, Reason, SinkError};
use redrive::observer::{Event, Interest, Observer, ProtectionEvent, RecordEvent, Success};
use redrive::processor::Attempt;
use redrive::testing::Script;
use redrive::{
    BoxError, Class, Halt, Jitter, Record, RecordProcessor, Resilient, ResilientBuilder, RetryPolicy, Scope,
    Settled, Unsettled, classify::Verdict, processor_with,
};
use support::events::name;
use support::script::record;
use support::sink::{Answer, ScriptedSink, unavailable};
use tokio::time::Instant;

fn policy() -> RetryPolicy {
    RetryPolicy::exponential().jitter(Jitter::None)
}

/// Creates a builder without a breaker, because a breaker would hold a lone record: only the success of other
/// records shows whether a dependency is at fault.
fn builder(script: &Script, sink: &dead_letter::Memory) -> ResilientBuilder<Script> {
    Resilient::builder("billing", script.clone())
        .without_breaker()
        .retry(policy())
        .dead_letters(sink.clone())
}

async fn settle(text: &str) -> (Result<Settled, Unsettled>, Script, Vec<DeadLetter>, Duration) {
    let (script, sink) = (Script::default(), dead_letter::Memory::new());
    let resilient = builder(&script, &sink).build().expect("valid");
    let start = Instant::now();
    let result = resilient.settle(&record(7, "k", text)).await;
    (result, script, sink.letters(), start.elapsed())
}

#[tokio::test(start_paused = true)]
async fn success_is_settled_at_once() {
    let (result, script, letters, took) = settle("ok").await;
    assert!(matches!(result, Ok(Settled::Processed)));
    assert_eq!(
        (script.calls().len(), letters.len(), took),
        (1, 0, Duration::ZERO)
    );
}

#[tokio::test(start_paused = true)]
async fn a_transient_failure_is_tried_again_with_backoff() {
    let (result, script, letters, took) = settle("fail,fail,fail,ok").await;
    assert!(matches!(result, Ok(Settled::Processed)));
    assert_eq!(
        script.calls().iter().map(|call| call.attempt).collect::<Vec<_>>(),
        [1, 2, 3, 4]
    );
    assert_eq!(took, Duration::from_millis(100 + 200 + 400));
    assert!(letters.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_permanent_failure_is_dead_lettered_at_once() {
    let (result, script, letters, took) = settle("bad").await;
    let [letter] = &letters[..] else {
        panic!("one dead letter: {letters:?}")
    };
    assert!(matches!(result, Ok(Settled::DeadLettered(id)) if id == letter.id));
    assert_eq!((script.calls().len(), took), (1, Duration::ZERO));
    assert_eq!(letter.reason, Reason::Permanent);
    assert_eq!((letter.class, letter.scope), (Class::Permanent, Scope::Record));
    assert_eq!(letter.error.chain, ["bad data"]);
    assert_eq!(letter.partition_key.as_deref(), Some("k"));
    assert_eq!(&letter.payload[..], b"bad");
}

#[tokio::test(start_paused = true)]
async fn exhausted_attempts_end_in_a_dead_letter() {
    let (_, script, letters, _) = settle("fail").await;
    assert_eq!(script.calls().len(), 5);
    assert_eq!(letters[0].reason, Reason::AttemptsExhausted);
    assert_eq!(letters[0].class, Class::Transient);
    assert_eq!(letters[0].attempts.count, 5);
    assert_eq!(
        letters[0].attempts.first.len() + letters[0].attempts.last.len(),
        5
    );
}

#[tokio::test(start_paused = true)]
async fn exhausted_time_ends_in_a_dead_letter_without_a_backoff() {
    let (_, script, letters, took) = settle("slowfail:14000").await;
    assert_eq!(letters[0].reason, Reason::TimeExhausted);
    // 14 s + 100 ms + 14 s + 200 ms is below the limit of 30 s. The third attempt passes it.
    assert_eq!(script.calls().len(), 3);
    assert_eq!(took, Duration::from_millis(42_300));
    assert_eq!(letters[0].attempts.first[0].duration_ms, 14_000);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_hangs_times_out_and_is_tried_again() {
    let (result, script, letters, took) = settle("hang,ok").await;
    assert!(matches!(result, Ok(Settled::Processed)));
    assert_eq!((script.calls().len(), letters.len()), (2, 0));
    assert_eq!(
        took,
        Duration::from_millis(30_100).max(took),
        "30 s of attempt, 100 ms of backoff"
    );
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_tried_once_more_and_then_permanent() {
    let (result, script, letters, _) = settle("panic,ok").await;
    assert!(matches!(result, Ok(Settled::Processed)));
    assert_eq!((script.calls().len(), letters.len()), (2, 0));

    let (_, script, letters, _) = settle("panic").await;
    assert_eq!(script.calls().len(), 2);
    assert_eq!(letters[0].reason, Reason::Panicked);
    assert_eq!(letters[0].class, Class::Permanent);
    assert_eq!(letters[0].code.as_deref(), Some("panicked"));
    assert_eq!(letters[0].error.chain, ["the processor panicked: scripted"]);
}

#[tokio::test(start_paused = true)]
async fn a_panic_before_the_first_await_is_caught() {
    struct Hasty;
    impl RecordProcessor for Hasty {
        type Error = BoxError;
        fn process(&self, _: &Record, _: &Attempt<'_>) -> impl Future<Output = Result<(), BoxError>> + Send {
            if true {
                panic!("before there is a future");
            }
            async { Ok(()) }
        }
    }
    let sink = dead_letter::Memory::new();
    let hasty = Resilient::builder("a", Hasty)
        .dead_letters(sink.clone())
        .build()
        .expect("valid");
    assert!(matches!(
        hasty.settle(&record(1, "k", "")).await,
        Ok(Settled::DeadLettered(_))
    ));
    assert_eq!(sink.letters()[0].reason, Reason::Panicked);
}

#[tokio::test(start_paused = true)]
async fn retry_after_delays_the_next_attempt() {
    let (result, _, _, took) = settle("after:3000,ok").await;
    assert!(matches!(result, Ok(Settled::Processed)));
    assert_eq!(took, Duration::from_secs(3));
}

#[tokio::test(start_paused = true)]
async fn deadline_returns_the_record_unsettled() {
    let (script, sink) = (Script::default(), dead_letter::Memory::new());
    let resilient = builder(&script, &sink).build().expect("valid");
    for text in ["hang", "fail,fail,fail,fail,ok", "slowfail:900"] {
        let start = Instant::now();
        let result = resilient
            .settle_by(&record(1, "k", text), start + Duration::from_millis(1_000))
            .await;
        assert!(matches!(result, Err(Unsettled::Deadline)), "{text}: {result:?}");
        assert!(start.elapsed() <= Duration::from_millis(1_000), "{text}");
    }
    assert!(sink.letters().is_empty());
}

#[tokio::test(start_paused = true)]
async fn without_a_sink_a_permanent_failure_halts() {
    let script = Script::default();
    let resilient = Resilient::builder("billing", script)
        .without_dead_letters()
        .build()
        .expect("valid");
    let result = resilient.settle(&record(1, "k", "bad")).await;
    assert!(
        matches!(result, Err(Unsettled::Halted(Halt::WithoutDeadLetters(_)))),
        "{result:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn sink_outage_does_not_repeat_the_handler() {
    let script = Script::default();
    let sink = ScriptedSink::default();
    sink.on_put(|put, _| match put.number {
        1..=50 => Answer::Fail(unavailable),
        _ => Answer::Take,
    });
    let resilient = Resilient::builder("billing", script.clone())
        .dead_letters(sink.clone())
        .build()
        .expect("valid");
    let start = Instant::now();
    let result = resilient.settle(&record(1, "k", "bad")).await;
    assert!(matches!(result, Ok(Settled::DeadLettered(_))), "{result:?}");
    assert_eq!(script.calls().len(), 1);
    assert_eq!(sink.letters().len(), 1);
    // The wait for a sink counts neither as attempts nor as time, and it has no limit.
    assert!(
        start.elapsed() > Duration::from_secs(120),
        "{:?}",
        start.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn refused_dead_letter_halts() {
    let refused = || SinkError::Refused {
        size: 2_000,
        limit: 1_000,
        source: "too large".into(),
    };
    let sink = ScriptedSink::default();
    sink.on_put(move |put, _| match put.number {
        1 => Answer::Fail(refused),
        _ => Answer::Take,
    });
    let resilient = Resilient::builder("billing", Script::default())
        .dead_letters(sink)
        .build()
        .expect("valid");
    match resilient.settle(&record(1, "k", "bad")).await {
        Err(Unsettled::Halted(Halt::DeadLetterRefused {
            size: 2_000,
            limit: 1_000,
            ..
        })) => {}
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn faulty_sink_has_not_confirmed() {
    let sink = ScriptedSink::default();
    sink.on_put(|put, _| match put.number {
        1 => Answer::Hang,
        2 => Answer::Panic,
        3 => Answer::Nothing,
        _ => Answer::Take,
    });
    let resilient = Resilient::builder("billing", Script::default())
        .dead_letters(sink.clone())
        .build()
        .expect("valid");
    assert!(matches!(
        resilient.settle(&record(1, "k", "bad")).await,
        Ok(Settled::DeadLettered(_))
    ));
    assert_eq!(sink.puts().len(), 4);
    assert_eq!(sink.letters().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn dead_letters_of_many_records_are_written_together() {
    let sink = ScriptedSink::default();
    sink.on_put(|_, _| Answer::take_late(Duration::from_millis(10)));
    let resilient = Resilient::builder("billing", Script::default())
        .dead_letters(sink.clone())
        .without_guard()
        .build()
        .expect("valid");
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..1_200 {
        let resilient = resilient.clone();
        tasks.spawn(async move {
            resilient
                .settle(&record(number, &number.to_string(), "bad"))
                .await
                .is_ok()
        });
    }
    while let Some(settled) = tasks.join_next().await {
        assert!(settled.expect("no panic"));
    }
    let sizes: Vec<usize> = sink.puts().iter().map(|put| put.keys.len()).collect();
    assert_eq!(sizes.iter().sum::<usize>(), 1_200);
    assert!(
        sizes.len() <= 4 && sizes.iter().all(|&size| size <= 500),
        "{sizes:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn typed_classifier_decides_first() {
    #[derive(Debug, thiserror::Error)]
    #[error("declined")]
    struct Declined;
    let sink = dead_letter::Memory::new();
    let calls = Arc::new(AtomicU32::new(0));
    let counted = calls.clone();
    let declines = redrive::processor_fn(move |_: Record| {
        counted.fetch_add(1, Ordering::SeqCst);
        async { Err(Declined) }
    });
    let resilient = Resilient::builder("billing", declines)
        .classify(|_: &Declined| Some(Verdict::permanent().with_code("card_declined")))
        .dead_letters(sink.clone())
        .build()
        .expect("valid");
    assert!(matches!(
        resilient.settle(&record(1, "k", "")).await,
        Ok(Settled::DeadLettered(_))
    ));
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    assert_eq!(sink.letters()[0].code.as_deref(), Some("card_declined"));
    assert!(sink.letters()[0].error.type_name.ends_with("Declined"));
}

/// `anyhow::Error` exposes the source of its inner error, but not the inner error itself.
#[tokio::test(start_paused = true)]
async fn error_inside_anyhow_is_classified() {
    let parse = |_: Record| async {
        serde_json::from_str::<u32>("no JSON")?;
        anyhow::Ok(())
    };
    for context in [false, true] {
        let sink = dead_letter::Memory::new();
        let handler = redrive::processor_fn(move |record| async move {
            let result = parse(record).await;
            if context {
                anyhow::Context::context(result, "while billing")
            } else {
                result
            }
        });
        let resilient = Resilient::builder("billing", handler)
            .dead_letters(sink.clone())
            .build()
            .expect("valid");
        assert!(resilient.settle(&record(1, "k", "")).await.is_ok());
        let letter = &sink.letters()[0];
        assert_eq!(
            (letter.reason, letter.attempts.count),
            (Reason::Permanent, 1),
            "context: {context}"
        );
        assert!(
            letter
                .error
                .chain
                .iter()
                .any(|text| text.contains("expected ident")),
            "{:?}",
            letter.error
        );
    }
}

#[tokio::test(start_paused = true)]
async fn observers_get_all_events_and_debug_hides_the_error_text() {
    #[derive(Default)]
    struct Ears(Mutex<Vec<(String, String)>>);
    impl Observer for Ears {
        fn on(&self, event: &Event<'_>) {
            let heard = (name(event), format!("{event:?}"));
            self.0.lock().expect("no panic").push(heard);
        }
    }
    let ears = Arc::new(Ears::default());
    let resilient = builder(&Script::default(), &dead_letter::Memory::new())
        .observer(ears.clone())
        .build()
        .expect("valid");
    assert!(
        resilient
            .settle(&record(1, "secret-key", "fail,bad"))
            .await
            .is_ok()
    );
    let heard = ears.0.lock().expect("no panic").clone();
    let names: Vec<&str> = heard.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        [
            "RecordEvent::AttemptEnded",
            "RecordEvent::AttemptFailed",
            "RecordEvent::RetryScheduled",
            "RecordEvent::AttemptEnded",
            "RecordEvent::AttemptFailed",
            "RecordEvent::DeadLettered",
            "RecordEvent::Settled"
        ]
    );
    for (_, text) in &heard {
        for secret in ["secret-key", "bad data", "unknown cause"] {
            assert!(!text.contains(secret), "{text}");
        }
    }
}

#[test]
fn invalid_settings_are_refused_by_name() {
    let refused = |builder: ResilientBuilder<Script>| builder.build().expect_err("refused").to_string();
    let text = refused(Resilient::builder("billing", Script::default()));
    assert!(
        text.contains(".dead_letters(") && text.contains(".without_dead_letters()"),
        "{text}"
    );
    let text = refused(Resilient::builder(" ", Script::default()).without_dead_letters());
    assert!(text.contains("application"), "{text}");
    let named = |length| Resilient::builder("x".repeat(length), Script::default()).without_dead_letters();
    assert!(named(128).build().is_ok());
    let text = refused(named(129));
    assert!(text.contains("128"), "{text}");
    let policy = RetryPolicy::exponential().max_attempts(0);
    let text = refused(
        Resilient::builder("a", Script::default())
            .without_dead_letters()
            .retry(policy),
    );
    assert!(text.contains("max_attempts"), "{text}");
}

/// An observer that is interested in attempts gets the duration of each attempt.
#[tokio::test(start_paused = true)]
async fn observer_of_attempts_gets_their_durations() {
    struct Attempts(Mutex<Vec<(u32, Duration, bool)>>);
    impl Observer for Attempts {
        fn interest(&self) -> Interest {
            Interest::ATTEMPTS
        }

        fn on(&self, event: &Event<'_>) {
            if let Event::Record {
                event:
                    RecordEvent::AttemptEnded {
                        attempt,
                        took,
                        succeeded,
                        records: 1,
                        ..
                    },
                ..
            } = event
            {
                self.0
                    .lock()
                    .expect("no panic")
                    .push((*attempt, *took, *succeeded));
            }
        }
    }
    let told = Arc::new(Attempts(Mutex::default()));
    let slow = processor_with(
        Arc::new(AtomicU32::new(0)),
        async |calls: Arc<AtomicU32>, _: Record| {
            let call = calls.fetch_add(1, Ordering::Relaxed) + 1;
            tokio::time::sleep(Duration::from_secs(10 * u64::from(call))).await;
            match call {
                1 => Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset)),
                _ => Ok(()),
            }
        },
    );
    let resilient = Resilient::builder("billing", slow)
        .dead_letters(dead_letter::Memory::new())
        .observer(told.clone())
        .build()
        .expect("valid");
    let record = Record::builder("orders", "shardId-0".into(), 1.into()).build();
    assert_eq!(
        resilient.settle(&record).await.expect("settled"),
        Settled::Processed
    );
    let told = told.0.lock().expect("no panic").clone();
    // The work before the sleep adds some microseconds, as the system's clock measures it.
    let in_seconds = told
        .into_iter()
        .map(|(attempt, took, ok)| (attempt, took.as_secs(), ok));
    assert_eq!(in_seconds.collect::<Vec<_>>(), [(1, 10, false), (2, 20, true)]);
}

/// The names of events that an observer of these kinds got.
struct Names {
    interest: Interest,
    /// `None`: the observer does not take successes in one call. `Some(true)`: it panics when it does.
    takes_successes: Option<bool>,
    got: Mutex<Vec<&'static str>>,
}

impl Names {
    fn new(interest: Interest, takes_successes: Option<bool>) -> Arc<Self> {
        let got = Mutex::default();
        Arc::new(Names {
            interest,
            takes_successes,
            got,
        })
    }

    fn add(&self, name: &'static str) {
        self.got.lock().expect("no panic").push(name);
    }

    fn take(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.got.lock().expect("no panic"))
    }
}

impl Observer for Names {
    fn interest(&self) -> Interest {
        self.interest
    }

    fn on(&self, event: &Event<'_>) {
        self.add(match event {
            Event::Record { event, .. } => match event {
                RecordEvent::AttemptEnded {
                    attempt: 1,
                    records: 1,
                    ..
                } => "ended",
                RecordEvent::Settled {
                    settled: Settled::Processed,
                    attempts: 1,
                    ..
                } => "settled",
                _ => "another event of a record",
            },
            Event::Protection(ProtectionEvent::UserCodePanicked { .. }) => "panicked",
            _ => "another event",
        });
    }

    fn on_success(&self, _: &Success<'_>) -> bool {
        self.takes_successes.is_some_and(|panics| {
            self.add("success");
            assert!(!panics, "the observer is broken");
            true
        })
    }
}

/// A record that succeeds at once causes two events. An observer of both kinds may take them in one call. If it
/// panics there, the other observers still get their events.
#[tokio::test]
async fn observers_get_the_events_of_a_success_that_they_want() {
    let both = Interest::ATTEMPTS | Interest::SETTLEMENTS;
    let quick = Names::new(both, Some(false));
    let broken = Names::new(both, Some(true));
    let whole = Names::new(Interest::ALL, None);
    let ended = Names::new(Interest::ATTEMPTS, Some(false));
    let settled = Names::new(Interest::SETTLEMENTS | Interest::SHARDS, Some(false));
    let nothing = Names::new(Interest::FAILURES, Some(false));
    let resilient = Resilient::builder("billing", Script::default())
        .dead_letters(dead_letter::Memory::new())
        .observer(quick.clone())
        .observer(broken.clone())
        .observer(whole.clone())
        .observer(ended.clone())
        .observer(settled.clone())
        .observer(nothing.clone())
        .build()
        .expect("valid");
    whole.take();
    settled.take();
    let record = record(1, "key", "ok");
    assert_eq!(
        resilient.settle(&record).await.expect("settled"),
        Settled::Processed
    );
    assert_eq!(quick.take(), ["success"]);
    assert_eq!(broken.take(), ["success"]);
    assert_eq!(whole.take(), ["panicked", "ended", "settled"]);
    assert_eq!(ended.take(), ["ended"]);
    assert_eq!(settled.take(), ["settled"]);
    assert_eq!(nothing.take(), ["panicked"]);
}
