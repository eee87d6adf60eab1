//! Tests of which attempts count, and of what a record waits for between two attempts. Time is paused
//! throughout.

use std::future::Future;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use redrive::observer::{Event, Observer, ProtectionEvent, RecordEvent};
use redrive::pipeline::{Batch, Pipeline};
use redrive::processor::Attempt;
use redrive::protection::CircuitBreakerState;
use redrive::{
    Backoff, BoxError, CircuitBreaker, DeadLetterGuard, Failure, Jitter, Record, RecordProcessor, Resilient,
    ResilientBuilder, RetryBudget, RetryPolicy, Scope, Settled, Unsettled, dead_letter,
};
use support::script::record;
use tokio::time::{Instant, sleep, sleep_until};

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// A processor that runs a script for each call of the record `x`. All other records fail during the outage.
struct Scripted<F> {
    outage: std::ops::Range<Instant>,
    calls: AtomicU32,
    x: F,
}

impl<F, Fut> RecordProcessor for Scripted<F>
where
    F: Fn(u32) -> Fut + Send + Sync,
    Fut: Future<Output = Result<(), BoxError>> + Send,
{
    type Error = BoxError;

    async fn process(&self, record: &Record, _: &Attempt<'_>) -> Result<(), BoxError> {
        if record.partition_key() == Some("x") {
            return (self.x)(self.calls.fetch_add(1, Relaxed) + 1).await;
        }
        match self.outage.contains(&Instant::now()) {
            true => Err("of unknown cause".into()),
            false => Ok(()),
        }
    }
}

/// Returns a policy with one second between attempts and enough time for all of them.
fn policy(attempts: u32) -> RetryPolicy {
    RetryPolicy::constant(secs(1))
        .jitter(Jitter::None)
        .max_attempts(attempts)
        .attempt_timeout(secs(300))
        .max_elapsed(secs(100_000))
}

fn resilient<P: RecordProcessor>(
    processor: P,
    attempts: u32,
    breaker: &CircuitBreaker,
) -> ResilientBuilder<P> {
    Resilient::builder("billing", processor)
        .dead_letters(dead_letter::Memory::new())
        .retry(policy(attempts))
        .breaker(breaker.clone())
        .seed(11)
}

/// Creates a breaker with long pauses. It is still open when an attempt ends one second after it has opened.
fn slow_breaker() -> CircuitBreaker {
    let pause = Backoff::constant(secs(8));
    CircuitBreaker::builder()
        .pause(pause)
        .seed(5)
        .build()
        .expect("valid")
}

/// Settles `x`, and one second later six other records whose failures open the breaker.
async fn settle_during_an_outage<P: RecordProcessor + 'static>(
    resilient: Resilient<P>,
) -> Result<Settled, Unsettled> {
    let settle = |number, key: String, after| {
        let resilient = resilient.clone();
        tokio::spawn(async move {
            sleep(after).await;
            resilient.settle(&record(number, &key, "")).await
        })
    };
    let x = settle(0, "x".to_owned(), Duration::ZERO);
    let others: Vec<_> = (1..7)
        .map(|number| settle(number, number.to_string(), secs(1)))
        .collect();
    for other in others {
        assert!(matches!(other.await.expect("no panic"), Ok(Settled::Processed)));
    }
    x.await.expect("no panic")
}

fn unknown() -> Result<(), BoxError> {
    Err("of unknown cause".into())
}

/// The record fails while the breaker is not closed, then fails once more, and then succeeds. Only the second
/// failure counts.
#[tokio::test(start_paused = true)]
async fn attempt_that_ends_at_an_open_breaker_is_not_counted() {
    let breaker = slow_breaker();
    let (seen, failed) = (breaker.clone(), AtomicU32::new(0));
    let failed = Arc::new(failed);
    let processor = Scripted {
        outage: Instant::now()..Instant::now() + secs(5),
        calls: AtomicU32::new(0),
        x: move |call| {
            let (seen, failed) = (seen.clone(), failed.clone());
            async move {
                if call == 1 {
                    sleep(secs(2)).await;
                    assert_eq!(seen.state(), CircuitBreakerState::Open);
                    return unknown();
                }
                match seen.state() == CircuitBreakerState::Closed && failed.fetch_add(1, Relaxed) > 0 {
                    true => Ok(()),
                    false => unknown(),
                }
            }
        },
    };
    let resilient = resilient(processor, 2, &breaker).build().expect("valid");
    let settled = settle_during_an_outage(resilient).await;
    assert!(matches!(settled, Ok(Settled::Processed)), "{settled:?}");
}

/// The breaker is closed again when the attempt ends, but the outage may be the cause of its failure.
#[tokio::test(start_paused = true)]
async fn attempt_that_hangs_through_an_outage_is_not_counted() {
    let breaker = slow_breaker();
    let seen = breaker.clone();
    let processor = Scripted {
        outage: Instant::now()..Instant::now() + secs(5),
        calls: AtomicU32::new(0),
        x: move |call| {
            let seen = seen.clone();
            async move {
                if call == 1 {
                    sleep(secs(2)).await;
                    assert_eq!(seen.state(), CircuitBreakerState::Open);
                    sleep(secs(200)).await;
                }
                assert_eq!(seen.state(), CircuitBreakerState::Closed);
                if call <= 2 { unknown() } else { Ok(()) }
            }
        },
    };
    let resilient = resilient(processor, 2, &breaker).build().expect("valid");
    // Another record succeeds later. If the first failure counted, the second would exhaust the two attempts.
    tokio::spawn({
        let (resilient, start) = (resilient.clone(), Instant::now());
        async move {
            sleep_until(start + Duration::from_millis(202_500)).await;
            resilient.settle(&record(9, "later", "")).await
        }
    });
    let settled = settle_during_an_outage(resilient).await;
    assert!(matches!(settled, Ok(Settled::Processed)), "{settled:?}");
}

/// Failures of record scope do not count towards a breaker, so the state of the breaker does not matter.
#[tokio::test(start_paused = true)]
async fn record_scope_failures_count_while_a_breaker_is_not_closed() {
    let breaker = slow_breaker();
    let seen = breaker.clone();
    let processor = Scripted {
        outage: Instant::now()..Instant::now() + secs(40),
        calls: AtomicU32::new(0),
        x: move |_| {
            let seen = seen.clone();
            async move {
                sleep(secs(2)).await;
                match seen.state() {
                    CircuitBreakerState::Closed => Ok(()),
                    _ => Err(Failure::transient("its own").with_scope(Scope::Record).into()),
                }
            }
        },
    };
    let resilient = resilient(processor, 2, &breaker).build().expect("valid");
    let settled = settle_during_an_outage(resilient).await;
    assert!(matches!(settled, Ok(Settled::DeadLettered(_))), "{settled:?}");
}

/// The record is alone, so no other record can close the breaker. The attempts left do not matter.
#[tokio::test(start_paused = true)]
async fn hold_at_most_ends_a_hold_with_attempts_left() {
    let breaker = CircuitBreaker::builder().keys_in_a_row(1).hold_at_most(secs(60));
    let breaker = breaker.build().expect("valid");
    let start = Instant::now();
    let processor = Scripted {
        outage: start..start,
        calls: AtomicU32::new(0),
        x: |_| async { unknown() },
    };
    let resilient = resilient(processor, 1_000, &breaker).build().expect("valid");
    let settled = resilient.settle(&record(0, "x", "")).await;
    assert!(matches!(settled, Ok(Settled::DeadLettered(_))), "{settled:?}");
    assert!(
        (secs(60)..secs(180)).contains(&start.elapsed()),
        "{:?}",
        start.elapsed()
    );
}

/// A breaker admits one probe per round of a record that is passed to `settle`.
#[tokio::test(start_paused = true)]
async fn record_passed_to_settle_probes_once_per_round() {
    #[derive(Default)]
    struct Rounds(AtomicU32);
    impl Observer for Rounds {
        fn on(&self, event: &Event<'_>) {
            if matches!(
                event,
                Event::Protection(ProtectionEvent::BreakerHalfOpened { .. })
            ) {
                self.0.fetch_add(1, Relaxed);
            }
        }
    }
    let (rounds, start) = (Arc::new(Rounds::default()), Instant::now());
    let calls = Arc::new(AtomicU32::new(0));
    let counted = calls.clone();
    let processor = Scripted {
        outage: start..start,
        calls: AtomicU32::new(0),
        x: move |_| {
            counted.fetch_add(1, Relaxed);
            async move {
                if start.elapsed() < secs(300) {
                    unknown()
                } else {
                    Ok(())
                }
            }
        },
    };
    let breaker = CircuitBreaker::builder().keys_in_a_row(1).build().expect("valid");
    let resilient = resilient(processor, 5, &breaker).observer(rounds.clone());
    let resilient = resilient.build().expect("valid");
    assert!(matches!(
        resilient.settle(&record(0, "x", "")).await,
        Ok(Settled::Processed)
    ));
    let (calls, rounds) = (calls.load(Relaxed), rounds.0.load(Relaxed));
    assert!(rounds >= 4, "{rounds}");
    assert!(calls <= rounds + 2, "{calls} calls in {rounds} rounds of probes");
}

#[tokio::test(start_paused = true)]
async fn a_retry_that_the_budget_refuses_waits() {
    #[derive(Default)]
    struct Refused(AtomicU32);
    impl Observer for Refused {
        fn on(&self, event: &Event<'_>) {
            if matches!(
                event,
                Event::Record {
                    event: RecordEvent::RetryDelayed { .. },
                    ..
                }
            ) {
                self.0.fetch_add(1, Relaxed);
            }
        }
    }
    let refused = Arc::new(Refused::default());
    let calls = Arc::new(AtomicU32::new(0));
    let counted = calls.clone();
    let start = Instant::now();
    let processor = redrive::processor_fn(move |_: Record| {
        counted.fetch_add(1, Relaxed);
        async { Err::<(), _>(Failure::transient("its own").with_scope(Scope::Record)) }
    });
    let resilient = Resilient::builder("billing", processor)
        .dead_letters(dead_letter::Memory::new())
        .without_guard()
        .retry(policy(10))
        .retry_budget(
            RetryBudget::builder()
                .share_of_successes(0.0)
                .per_second(0.5)
                .build()
                .expect("valid"),
        )
        .observer(refused.clone())
        .build()
        .expect("valid");
    let mut all = tokio::task::JoinSet::new();
    for number in 0..20 {
        let resilient = resilient.clone();
        all.spawn(async move { resilient.settle(&record(number, &number.to_string(), "")).await });
    }
    assert!(all.join_all().await.iter().all(Result::is_ok));
    assert_eq!(calls.load(Relaxed), 200, "refused retries are made later");
    assert!(refused.0.load(Relaxed) > 0);
    assert!(
        start.elapsed() > secs(200),
        "180 retries at one in 2 s: {:?}",
        start.elapsed()
    );
}

/// The returned `Unsettled` names what the dead letter waited for.
#[tokio::test(start_paused = true)]
async fn deadline_reports_what_delayed_the_dead_letter() {
    let bad = || redrive::processor_fn(|_: Record| async { Err::<(), _>(Failure::permanent("bad data")) });
    let guard = DeadLetterGuard::builder()
        .share(0.5)
        .min_records(1)
        .window(secs(60))
        .build()
        .expect("valid");
    let breaker = CircuitBreaker::builder().keys_in_a_row(1).build().expect("valid");
    let resilient = resilient(bad(), 5, &breaker).guard(guard).build().expect("valid");
    let by = || Instant::now() + secs(20);
    let mut last = None;
    for number in 0..10 {
        last = Some(resilient.settle_by(&record(number, "x", ""), by()).await);
    }
    assert!(matches!(last, Some(Err(Unsettled::GuardStopped))), "{last:?}");

    // The record fails permanently while a breaker is open. Its dead letter waits for the breaker.
    let outage = Scripted {
        outage: Instant::now()..Instant::now() + secs(1_000),
        calls: AtomicU32::new(0),
        x: |_| async {
            sleep(Duration::from_millis(1_050)).await;
            Err(Failure::permanent("bad data").into())
        },
    };
    let breaker = CircuitBreaker::builder()
        .keys_in_a_row(1)
        .pause(Backoff::constant(secs(8)));
    let breaker = breaker.build().expect("valid");
    let resilient = self::resilient(outage, 5, &breaker)
        .without_guard()
        .build()
        .expect("valid");
    let other = tokio::spawn({
        let resilient = resilient.clone();
        async move {
            sleep(secs(1)).await;
            resilient.settle_by(&record(1, "other", ""), by()).await
        }
    });
    let by = Instant::now() + Duration::from_millis(1_200);
    let given_back = resilient.settle_by(&record(0, "x", ""), by).await;
    assert!(
        matches!(given_back, Err(Unsettled::BreakerOpen)),
        "{given_back:?}"
    );
    let _ = other.await;
}

#[tokio::test(start_paused = true)]
async fn attempts_are_numbered_in_order() {
    #[derive(Default)]
    struct Numbers(Mutex<Vec<(bool, u32)>>);
    impl Observer for Numbers {
        fn on(&self, event: &Event<'_>) {
            let number = match event {
                Event::Record {
                    event: RecordEvent::AttemptFailed { attempt, .. },
                    ..
                } => (false, *attempt),
                Event::Record {
                    event: RecordEvent::RetryScheduled { attempt, .. },
                    ..
                } => (true, *attempt),
                _ => return,
            };
            self.0.lock().expect("no panic while locked").push(number);
        }
    }
    let numbers = Arc::new(Numbers::default());
    let processor = redrive::processor_fn(|_: Record| async {
        Err::<(), _>(Failure::transient("own").with_scope(Scope::Record))
    });
    let resilient = resilient(processor, 3, &slow_breaker()).observer(numbers.clone());
    let settled = resilient
        .build()
        .expect("valid")
        .settle(&record(0, "x", ""))
        .await;
    assert!(matches!(settled, Ok(Settled::DeadLettered(_))));
    let seen = numbers.0.lock().expect("no panic while locked").clone();
    assert_eq!(seen, [(false, 1), (true, 2), (false, 2), (true, 3), (false, 3)]);
}

/// Each change of a breaker is reported once, whichever record caused it.
#[tokio::test(start_paused = true)]
async fn breaker_changes_are_reported() {
    #[derive(Default)]
    struct Changes(Mutex<Vec<&'static str>>);
    impl Observer for Changes {
        fn on(&self, event: &Event<'_>) {
            let change = match event {
                Event::Protection(ProtectionEvent::BreakerOpened { .. }) => "opened",
                Event::Protection(ProtectionEvent::BreakerHalfOpened { .. }) => "half-opened",
                Event::Protection(ProtectionEvent::BreakerClosed { .. }) => "closed",
                _ => return,
            };
            self.0.lock().expect("no panic while locked").push(change);
        }
    }
    let changes = Arc::new(Changes::default());
    let processor = Scripted {
        outage: Instant::now()..Instant::now() + secs(10),
        calls: AtomicU32::new(0),
        x: |_| async { Ok(()) },
    };
    let resilient = resilient(processor, 5, &slow_breaker()).observer(changes.clone());
    let settled = settle_during_an_outage(resilient.build().expect("valid")).await;
    assert!(matches!(settled, Ok(Settled::Processed)));
    let seen = changes.0.lock().expect("no panic while locked").clone();
    assert_eq!(seen[..2], ["opened", "half-opened"]);
    assert_eq!(seen.last(), Some(&"closed"));
    for pair in seen.windows(2) {
        let follows = match pair[0] {
            "opened" => pair[1] == "half-opened",
            "half-opened" => pair[1] != "half-opened",
            _ => false,
        };
        assert!(follows, "{seen:?}");
    }
}

/// Failures of a dependency without its own breaker count at the common breaker.
#[tokio::test(start_paused = true)]
async fn failure_counts_at_the_breaker_of_its_dependency() {
    for (fails, open) in [("db", [true, false]), ("cache", [false, true])] {
        let [db, common] =
            [(); 2].map(|()| CircuitBreaker::builder().keys_in_a_row(2).build().expect("valid"));
        let processor = redrive::processor_with(fails, async |fails: &'static str, _: Record| {
            Err::<(), _>(Failure::transient("down").with_dependency(fails))
        });
        let resilient = resilient(processor, 5, &common).dependency_breaker("db", db.clone());
        let resilient = resilient.build().expect("valid");
        for number in 0..2 {
            let by = Instant::now() + Duration::from_millis(50);
            let result = resilient
                .settle_by(&record(number, &number.to_string(), ""), by)
                .await;
            assert!(result.is_err(), "{result:?}");
        }
        let states = [db, common].map(|breaker| breaker.state() != CircuitBreakerState::Closed);
        assert_eq!(states, open, "{fails}");
    }
}

/// An attempt may probe several breakers. The failure of one dependency shows nothing about another.
#[tokio::test(start_paused = true)]
async fn failed_probe_counts_only_at_the_breaker_of_its_dependency() {
    #[derive(Default)]
    struct Openings(AtomicU32, AtomicU32);
    impl Observer for Openings {
        fn on(&self, event: &Event<'_>) {
            if let Event::Protection(ProtectionEvent::BreakerOpened { dependency, .. }) = event {
                let of = if dependency.is_some() { &self.0 } else { &self.1 };
                of.fetch_add(1, Relaxed);
            }
        }
    }
    let openings = Arc::new(Openings::default());
    let [db, common] = [1, 2].map(|seed| {
        let pause = Backoff::constant(secs(2));
        let breaker = CircuitBreaker::builder().keys_in_a_row(2).pause(pause).seed(seed);
        breaker.build().expect("valid")
    });
    // All calls begin before the first failure, so both breakers open. From then on only the database fails.
    let processor = redrive::processor_with(
        Arc::new(AtomicU32::new(0)),
        async |calls: Arc<AtomicU32>, _: Record| {
            let call = calls.fetch_add(1, Relaxed);
            sleep(Duration::from_millis(10)).await;
            Err::<(), _>(match call < 2 {
                true => Failure::transient("down"),
                false => Failure::transient("down").with_dependency("db"),
            })
        },
    );
    let resilient = resilient(processor, 5, &common)
        .dependency_breaker("db", db)
        .observer(openings.clone());
    let resilient = resilient.build().expect("valid");
    let by = Instant::now() + secs(60);
    let settled = (0..8).map(|number| {
        let resilient = resilient.clone();
        async move {
            let result = resilient
                .settle_by(&record(number, &number.to_string(), ""), by)
                .await;
            assert!(result.is_err(), "{result:?}");
        }
    });
    futures_util::future::join_all(settled).await;
    let Openings(of_db, of_common) = &*openings;
    assert!(of_db.load(Relaxed) > 3, "{of_db:?}");
    assert_eq!(of_common.load(Relaxed), 1);
}

/// Many failing records are held however long the outage lasts. A few failing records may be all that is
/// left, so they are dead-lettered.
#[tokio::test(start_paused = true)]
async fn few_held_records_are_dead_lettered_and_many_are_not() {
    for (records, given_up) in [(30, false), (6, true)] {
        let start = Instant::now();
        let processor = Scripted {
            outage: start..start + secs(40 * 60),
            calls: AtomicU32::new(0),
            x: |_| async { Ok(()) },
        };
        let letters = dead_letter::Memory::new();
        let resilient = resilient(processor, 5, &slow_breaker()).dead_letters(letters.clone());
        let resilient = resilient.without_guard().build().expect("valid");
        let batch = (0..records).map(|number| record(number, &number.to_string(), ""));
        let batches = futures_util::stream::iter([Batch::from(batch.collect::<Vec<_>>())]);
        let run = Pipeline::default().run(&resilient, batches).await;
        assert!(run.expect("nothing halts").complete);
        assert_eq!(!letters.letters().is_empty(), given_up, "{records}");
    }
}

/// Attempts are counted across all deliveries of the record.
#[tokio::test(start_paused = true)]
async fn attempts_are_counted_across_deadlines() {
    let calls = Arc::new(AtomicU32::new(0));
    let counted = calls.clone();
    let processor = Scripted {
        outage: Instant::now()..Instant::now(),
        calls: AtomicU32::new(0),
        x: move |_| {
            counted.fetch_add(1, Relaxed);
            async {
                Err(Failure::transient(std::io::Error::other("its own"))
                    .with_scope(Scope::Record)
                    .into())
            }
        },
    };
    let breaker = CircuitBreaker::default();
    let resilient = resilient(processor, 5, &breaker).build().expect("valid");
    let x = record(0, "x", "");
    for (after, so_far) in [(2_500, 3), (500, 3), (900, 4)] {
        let by = Instant::now() + Duration::from_millis(after);
        let unsettled = resilient.settle_by(&x, by).await;
        assert!(matches!(unsettled, Err(Unsettled::Deadline)), "{unsettled:?}");
        sleep_until(by).await;
        assert_eq!(calls.load(Relaxed), so_far);
    }
    let settled = resilient.settle_by(&x, Instant::now() + secs(60)).await;
    assert!(matches!(settled, Ok(Settled::DeadLettered(_))), "{settled:?}");
    assert_eq!(calls.load(Relaxed), 5);
}
