//! Tests of user code that panics, and of errors that cannot be read. Each record is settled nevertheless.
//! Time is paused throughout.

use std::error::Error;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::stream;
use redrive::idempotency::{self, Idempotency};
use redrive::observer::{Event, Interest, Observer, ProtectionEvent};
use redrive::pipeline::{Batch, Pipeline};
use redrive::{
    BoxError, Record, RecordProcessor, Resilient, ResilientBuilder, Settled, classify::Verdict, dead_letter,
    processor_fn,
};
use support::script::record;
use tokio::time::timeout;

/// An observer that panics at every event.
struct Panics;

impl Observer for Panics {
    fn on(&self, event: &Event<'_>) {
        panic!("an observer has no use for {event:?}");
    }
}

/// Counts the panics that are reported, by their code.
#[derive(Default)]
struct Reports(Mutex<Vec<(String, u64)>>);

impl Observer for Reports {
    fn interest(&self) -> Interest {
        Interest::FAILURES
    }

    fn on(&self, event: &Event<'_>) {
        if let Event::Protection(ProtectionEvent::UserCodePanicked { code, count, .. }) = event {
            self.0.lock().expect("no panic").push((code.to_string(), *count));
        }
    }
}

impl Reports {
    /// The last count of each code.
    fn counts(&self) -> Vec<(String, u64)> {
        let mut counts: Vec<(String, u64)> = Vec::new();
        for (code, count) in self.0.lock().expect("no panic").iter() {
            counts.retain(|(known, _)| known != code);
            counts.push((code.clone(), *count));
        }
        counts.sort();
        counts
    }
}

async fn obey(record: Record) -> Result<(), BoxError> {
    match &record.payload()[..] {
        b"bad" => Err(redrive::Failure::permanent("bad data").into()),
        _ => Ok(()),
    }
}

/// Settles one record, which is dead-lettered within the hour.
async fn is_dead_lettered<P: RecordProcessor>(builder: ResilientBuilder<P>) -> dead_letter::DeadLetter {
    let sink = dead_letter::Memory::new();
    let resilient = builder.dead_letters(sink.clone()).build().expect("valid");
    let record = record(1, "a", "");
    let settled = timeout(Duration::from_secs(3_600), resilient.settle(&record)).await;
    assert!(matches!(settled, Ok(Ok(Settled::DeadLettered(_)))), "{settled:?}");
    sink.letters().remove(0)
}

#[tokio::test(start_paused = true)]
async fn panicking_observer_loses_only_its_own_events() {
    let (sink, reports) = (dead_letter::Memory::new(), Arc::new(Reports::default()));
    let resilient = Resilient::builder("billing", processor_fn(obey))
        .dead_letters(sink.clone())
        .observer(Panics)
        .observer(reports.clone())
        .build()
        .expect("valid");
    let records = (0..50).map(|number| record(number, "a", if number == 20 { "bad" } else { "ok" }));
    let batches = stream::iter([Batch::from(records.collect::<Vec<_>>())]);
    let finished = Pipeline::default().run(&resilient, batches).await;
    assert!(finished.expect("nothing halts").complete);
    assert_eq!(sink.letters().len(), 1);
    let counts = reports.counts();
    let [(code, count)] = &counts[..] else {
        panic!("{counts:?}");
    };
    assert!(
        code.starts_with("observer ") && code.ends_with("Panics"),
        "{code}"
    );
    assert!(
        *count >= 101,
        "{count} panics: one for each attempt and each settlement"
    );
}

#[tokio::test(start_paused = true)]
async fn panicking_classifier_is_skipped() {
    async fn fails(_: Record) -> Result<(), std::io::Error> {
        Err(std::io::Error::other("of unknown cause"))
    }
    let reports = Arc::new(Reports::default());
    let typed = |_: &std::io::Error| -> Option<Verdict> { panic!("no idea") };
    let erased = |_: &(dyn Error + 'static)| -> Option<Verdict> { panic!("no idea either") };
    let builder = Resilient::builder("billing", processor_fn(fails));
    let builder = builder
        .classify(typed)
        .classifier(erased)
        .observer(reports.clone());
    let letter = is_dead_lettered(builder).await;
    assert_eq!(letter.error.chain, ["of unknown cause"]);
    let counts = reports.counts();
    assert!(
        matches!(&counts[..], [(code, count)] if code == "classifier" && *count >= 10),
        "{counts:?}"
    );

    // The other classifiers are called.
    let builder = Resilient::builder("billing", processor_fn(fails));
    let knows = |_: &(dyn Error + 'static)| Some(Verdict::permanent().with_code("known"));
    let letter = is_dead_lettered(builder.classify(typed).classifier(erased).classifier(knows)).await;
    assert_eq!(
        (letter.code.as_deref(), letter.attempts.count),
        (Some("known"), 1)
    );
}

/// An error whose code does something odd.
#[derive(Clone, Copy)]
enum Odd {
    DisplayFails,
    DisplayPanics,
    DisplayHasNoEnd,
    DebugPanics,
    SourcePanics,
    SourceIsACircle,
}

impl fmt::Display for Odd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("odd")?;
        match self {
            Odd::DisplayFails => Err(fmt::Error),
            Odd::DisplayPanics => panic!("no text"),
            Odd::DisplayHasNoEnd => loop {
                f.write_str(" and odder")?;
            },
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for Odd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Odd::DebugPanics => panic!("no text"),
            _ => f.write_str("Odd"),
        }
    }
}

/// One of two errors, each the source of the other.
struct InCircle(usize);

static CIRCLE: [InCircle; 2] = [InCircle(1), InCircle(0)];

impl Error for Odd {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Odd::SourcePanics => panic!("no source"),
            Odd::SourceIsACircle => Some(&CIRCLE[0]),
            _ => None,
        }
    }
}

impl fmt::Display for InCircle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "because of {}", self.0)
    }
}

impl fmt::Debug for InCircle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InCircle({})", self.0)
    }
}

impl Error for InCircle {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&CIRCLE[self.0])
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_that_cannot_be_read_ends_in_a_dead_letter() {
    for (odd, text) in [
        (Odd::DisplayFails, "odd(the text of this error cannot be written)"),
        (
            Odd::DisplayPanics,
            "odd(the text of this error cannot be written)",
        ),
        (Odd::DisplayHasNoEnd, "odd and odder and odder"),
        (Odd::DebugPanics, "odd"),
        (Odd::SourcePanics, "odd"),
        (Odd::SourceIsACircle, "odd"),
    ] {
        // Alone, and as the source of an error that the standard classifier inspects. The log shows it too.
        for wrapped in [false, true] {
            let handler = move |_: Record| async move {
                match wrapped {
                    false => Err::<(), BoxError>(odd.into()),
                    true => Err(std::io::Error::new(std::io::ErrorKind::InvalidData, odd).into()),
                }
            };
            let builder = Resilient::builder("billing", processor_fn(handler)).log_error_text(true);
            let letter = is_dead_lettered(builder).await;
            assert!(
                letter.error.chain[0].starts_with(text),
                "{:?}",
                letter.error.chain
            );
            assert!(letter.error.chain.len() <= 66 && letter.encode().len() < 32 * 1024);
        }
    }
}

/// A handler's error that cannot be converted into a boxed error.
struct Unboxable;

impl From<Unboxable> for BoxError {
    fn from(_: Unboxable) -> Self {
        panic!("not into a box");
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_that_panics_when_it_is_boxed_ends_in_a_dead_letter() {
    async fn fails(_: Record) -> Result<(), Unboxable> {
        Err(Unboxable)
    }
    let letter = is_dead_lettered(Resilient::builder("billing", processor_fn(fails))).await;
    assert!(
        letter.error.chain[0].contains("cannot be read"),
        "{:?}",
        letter.error.chain
    );
}

#[tokio::test(start_paused = true)]
async fn panicking_key_function_falls_back_to_the_position() {
    let calls = Arc::new(AtomicU64::new(0));
    let counted = calls.clone();
    let handler = move |_: Record| {
        counted.fetch_add(1, SeqCst);
        async { Ok::<(), BoxError>(()) }
    };
    let reports = Arc::new(Reports::default());
    let keys = Idempotency::new(idempotency::Memory::new());
    let resilient = Resilient::builder("billing", processor_fn(handler))
        .without_dead_letters()
        .idempotency(keys.key(|_: &Record| -> Option<Vec<u8>> { panic!("no key") }))
        .observer(reports.clone())
        .build()
        .expect("valid");
    for settled in [Settled::Processed, Settled::Duplicate] {
        assert_eq!(resilient.settle(&record(1, "a", "")).await.ok(), Some(settled));
    }
    assert_eq!(
        resilient.settle(&record(2, "a", "")).await.ok(),
        Some(Settled::Processed)
    );
    assert_eq!(calls.load(SeqCst), 2);
    assert_eq!(reports.counts(), [("idempotency key".to_owned(), 3)]);
}
