//! Tests of one shard: order, bounds, watermark and shutdown. Time is paused throughout.

use std::collections::{BTreeSet, HashMap};
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering as Atomic};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use proptest::prelude::*;
use redrive::checkpoint::{Checkpoint, SettledAhead};
use redrive::dead_letter;
use redrive::observer::{Bound, Event, Observer, RecordEvent, ShardEvent};
use redrive::pipeline::{Batch, Capacity, Finished, Pipeline, RecordOrder, ShardHalted};
use redrive::processor::Attempt;
use redrive::testing::Script;
use redrive::{
    Backoff, BoxError, Halt, Jitter, Position, Record, RecordProcessor, Resilient, RetryPolicy,
    dead_letter::DeadLetterPolicy,
};
use support::script::{first_calls, record};
use support::sink::{Answer, ScriptedSink, unavailable};
use tokio::time::Instant;

fn policy() -> RetryPolicy {
    RetryPolicy::exponential().jitter(Jitter::None)
}

/// Creates an engine without a breaker and a guard, because the failures in these tests are no outage.
fn resilient(script: &Script) -> Resilient<Script> {
    let builder = Resilient::builder("billing", script.clone()).retry(policy());
    builder
        .without_breaker()
        .without_guard()
        .dead_letters(dead_letter::Memory::new())
        .build()
        .expect("valid")
}

fn batches(records: Vec<Record>, size: usize) -> impl stream::Stream<Item = Batch> + Unpin {
    let batches: Vec<Batch> = records
        .chunks(size)
        .map(|records| records.to_vec().into())
        .collect();
    stream::iter(batches)
}

fn position(number: u64) -> Position {
    record(number, "", "").position()
}

async fn run(
    ordering: RecordOrder,
    records: Vec<Record>,
) -> (Script, Result<Finished, Box<ShardHalted>>, Duration) {
    let script = Script::default();
    let start = Instant::now();
    let pipeline = Pipeline::builder().ordering(ordering).build().expect("valid");
    let result = pipeline.run(&resilient(&script), batches(records, 100)).await;
    (script, result, start.elapsed())
}

#[tokio::test(start_paused = true)]
async fn failing_record_delays_only_its_own_key() {
    let mut records = vec![record(0, "bad", "fail,fail,ok"), record(1, "bad", "ok")];
    records.extend((2..100).map(|number| record(number, &format!("key-{number}"), "sleep:1")));
    let (script, result, _) = run(RecordOrder::PartitionKey, records).await;
    assert!(result.expect("no halt").complete);
    let calls = script.calls();
    let at = |number: u64, attempt| {
        let wanted =
            |call: &&redrive::testing::Call| call.sequence_number == number.into() && call.attempt == attempt;
        calls.iter().find(wanted).expect("called").at
    };
    let start = at(0, 1);
    assert_eq!(
        at(1, 1) - start,
        Duration::from_millis(300),
        "after the two backoffs of its key"
    );
    for number in 2..100 {
        assert!(
            at(number, 1) - start <= Duration::from_millis(4),
            "record {number} was delayed"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn failing_record_delays_all_in_shard_order() {
    let records = (0..5).map(|number| {
        record(
            number,
            &number.to_string(),
            if number == 1 { "fail,ok" } else { "ok" },
        )
    });
    let (script, _, took) = run(RecordOrder::Shard, records.collect()).await;
    assert_eq!(first_calls(&script), [0, 1, 2, 3, 4]);
    assert_eq!(took, Duration::from_millis(100));
    let calls: Vec<u32> = script.calls().iter().map(|call| call.attempt).collect();
    assert_eq!(calls, [1, 1, 2, 1, 1, 1]);
}

#[tokio::test(start_paused = true)]
async fn unordered_records_of_a_key_run_concurrently() {
    let records = (0..60).map(|number| record(number, "one", "sleep:10")).collect();
    let (_, _, took) = run(RecordOrder::Unordered, records).await;
    assert!(took < Duration::from_millis(20), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn records_without_a_key_keep_their_order() {
    let records = (0..10)
        .map(|number: u64| {
            Record::builder("s", "shardId-0".into(), number.into())
                .payload("sleep:1")
                .build()
        })
        .collect();
    let (script, _, _) = run(RecordOrder::PartitionKey, records).await;
    assert_eq!(first_calls(&script), (0..10).collect::<Vec<_>>());
}

/// Counts the running calls, and keeps the maximum.
#[derive(Default)]
struct Gauge {
    now: AtomicUsize,
    most: AtomicUsize,
}

impl RecordProcessor for Gauge {
    type Error = BoxError;

    async fn process(&self, record: &Record, attempt: &Attempt<'_>) -> Result<(), BoxError> {
        let now = self.now.fetch_add(1, Atomic::SeqCst) + 1;
        self.most.fetch_max(now, Atomic::SeqCst);
        tokio::time::sleep(Duration::from_millis(1)).await;
        self.now.fetch_sub(1, Atomic::SeqCst);
        match (&record.payload()[..], attempt.number()) {
            (b"fail", 1) => Err("once".into()),
            _ => Ok(()),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn capacity_bounds_the_handler_calls_of_all_shards() {
    let gauge = Arc::new(Gauge::default());
    let builder = Resilient::builder("billing", gauge.clone()).without_dead_letters();
    let resilient = builder.build().expect("valid");
    let capacity = Capacity::builder()
        .running(10)
        .bytes(1 << 20)
        .build()
        .expect("valid");
    let pipeline = Pipeline::builder()
        .capacity(capacity.clone())
        .build()
        .expect("valid");
    let shard = |first: u64| {
        let records = (first..first + 300)
            .map(|number| record(number, &number.to_string(), ""))
            .collect();
        pipeline.run(&resilient, batches(records, 50))
    };
    let (a, b, c) = tokio::join!(shard(0), shard(1_000), shard(2_000));
    assert!(a.is_ok_and(|a| a.complete) && b.is_ok_and(|b| b.complete) && c.is_ok_and(|c| c.complete));
    assert_eq!(gauge.most.load(Atomic::SeqCst), 10);
    assert_eq!(capacity.running(), 0);
}

/// Many records in backoff must not keep others from running.
#[tokio::test(start_paused = true)]
async fn record_in_backoff_releases_its_permit() {
    let gauge = Arc::new(Gauge::default());
    let builder = Resilient::builder("billing", gauge.clone())
        .without_dead_letters()
        .without_breaker()
        .without_retry_budget()
        .retry(RetryPolicy::constant(Duration::from_secs(5)).jitter(Jitter::None));
    let resilient = builder.build().expect("valid");
    let pipeline = Pipeline::builder()
        .capacity(
            Capacity::builder()
                .running(2)
                .bytes(1 << 20)
                .build()
                .expect("valid"),
        )
        .build()
        .expect("valid");
    let records = (0..500)
        .map(|number| {
            record(
                number,
                &number.to_string(),
                if number < 400 { "fail" } else { "" },
            )
        })
        .collect();
    let start = Instant::now();
    assert!(
        pipeline
            .run(&resilient, batches(records, 500))
            .await
            .is_ok_and(|end| end.complete)
    );
    // 900 calls of 1 ms, two at a time, most of them within one backoff. The 400 backoffs overlap.
    assert!(start.elapsed() < Duration::from_secs(7), "{:?}", start.elapsed());
    assert_eq!(gauge.most.load(Atomic::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn full_window_stops_reading_and_reports_the_oldest_record() {
    #[derive(Default)]
    struct Full(Mutex<Vec<(Bound, String, usize)>>);
    impl Observer for Full {
        fn on(&self, event: &Event<'_>) {
            if let Event::Shard {
                event:
                    ShardEvent::WindowFull {
                        bound,
                        oldest,
                        in_flight,
                        ..
                    },
                ..
            } = event
            {
                let oldest = oldest.sequence_number().to_string();
                self.0
                    .lock()
                    .expect("no panic")
                    .push((*bound, oldest, *in_flight));
            }
        }
    }
    for (pipeline, bound, held) in [
        (
            Pipeline::builder().in_flight(4).build().expect("valid"),
            Bound::InFlight,
            4,
        ),
        (
            Pipeline::builder().in_flight(4).span(10).build().expect("valid"),
            Bound::Span,
            1,
        ),
    ] {
        let full = Arc::new(Full::default());
        let script = Script::default();
        let resilient = Resilient::builder("billing", script.clone())
            .without_dead_letters()
            .observer(full.clone())
            .build()
            .expect("valid");
        let records = (0..30).map(|number| {
            let stuck = number == 0 || (bound == Bound::InFlight && number < 4);
            record(
                number,
                &number.to_string(),
                if stuck { "sleep:20000" } else { "ok" },
            )
        });
        let result = pipeline.run(&resilient, batches(records.collect(), 7)).await;
        assert!(result.is_ok_and(|end| end.complete));
        let told = full.0.lock().expect("no panic").clone();
        assert_eq!(told, [(bound, "0".to_owned(), held)]);
        let first = script.calls()[0].at;
        let early = script
            .calls()
            .iter()
            .filter(|call| call.at < first + Duration::from_secs(20))
            .count();
        assert_eq!(early, if bound == Bound::InFlight { 4 } else { 10 });
    }
}

/// The window of a busy shard is always full, but its oldest record changes every few seconds.
#[tokio::test(start_paused = true)]
async fn full_window_that_moves_is_not_reported() {
    struct Never;
    impl Observer for Never {
        fn on(&self, event: &Event<'_>) {
            assert!(
                !matches!(
                    event,
                    Event::Shard {
                        event: ShardEvent::WindowFull { .. },
                        ..
                    }
                ),
                "{event:?}"
            );
        }
    }
    let script = Script::default();
    let resilient = Resilient::builder("billing", script.clone())
        .without_dead_letters()
        .observer(Arc::new(Never))
        .build()
        .expect("valid");
    let records = (0..10).map(|number| record(number, "k", "sleep:3000"));
    let batches = batches(records.collect(), 10);
    let result = Pipeline::builder()
        .in_flight(2)
        .build()
        .expect("valid")
        .run(&resilient, batches)
        .await;
    assert!(result.is_ok_and(|end| end.complete));
    let calls = script.calls();
    assert_eq!(calls[9].at - calls[0].at, Duration::from_secs(27));
}

/// An operator has to act before Kinesis drops the record that the shard waits for.
#[tokio::test(start_paused = true)]
async fn record_about_to_expire_is_reported_repeatedly() {
    const HOUR: Duration = Duration::from_secs(60 * 60);
    #[derive(Default)]
    struct Expiring(Mutex<Vec<(String, Duration)>>);
    impl Observer for Expiring {
        fn on(&self, event: &Event<'_>) {
            if let Event::Record {
                record,
                event: RecordEvent::Expiring { age, left, .. },
            } = event
            {
                assert_eq!((*age + *left).as_secs(), 24 * 60 * 60);
                let number = record.sequence_number().to_string();
                self.0.lock().expect("no panic").push((number, *left));
            }
        }
    }
    for (hours, times) in [(18, 0), (20, 4), (30, 0)] {
        let expiring = Arc::new(Expiring::default());
        let resilient = Resilient::builder("billing", Script::default())
            .without_dead_letters()
            .retry(RetryPolicy::exponential().attempt_timeout(HOUR).max_elapsed(HOUR))
            .observer(expiring.clone())
            .build()
            .expect("valid");
        let arrival = std::time::SystemTime::now() - HOUR * hours;
        let records = (0..5).map(|number| {
            let steps = if number == 2 { "sleep:1200000" } else { "ok" };
            Record::builder("orders", "shardId-0".into(), number.into())
                .partition_key(number.to_string())
                .payload(steps)
                .arrival(arrival)
                .build()
        });
        let pipeline = Pipeline::builder().retention(24 * HOUR).build().expect("valid");
        let pipeline = if hours == 30 {
            Pipeline::default()
        } else {
            pipeline
        };
        let settled = pipeline.run(&resilient, batches(records.collect(), 5)).await;
        assert!(settled.is_ok_and(|end| end.complete));
        let told = expiring.0.lock().expect("no panic").clone();
        assert_eq!(told.len(), times, "{hours}: {told:?}");
        assert!(
            told.iter()
                .all(|(number, left)| number == "2" && *left <= 4 * HOUR)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn sink_outage_stops_the_position_but_not_other_keys() {
    let (script, sink) = (Script::default(), ScriptedSink::default());
    sink.set_down(true);
    let resilient = Resilient::builder("billing", script.clone())
        .dead_letters(sink.clone())
        .build()
        .expect("valid");
    // More bad records than may run at once: a dead letter that is being written needs no permit.
    let mut records: Vec<Record> = (0..100)
        .map(|number| record(number, &format!("bad-{number}"), "bad"))
        .collect();
    records.extend((100..200).map(|number| record(number, &format!("good-{number}"), "ok")));
    let pipeline = Pipeline::default();
    let published = Mutex::new(None);
    let start = Checkpoint::at(Position::TrimHorizon);
    let on_checkpoint = |checkpoint| {
        *published.lock().expect("no panic") = Some(checkpoint);
        async {}
    };
    let (input, never) = (batches(records, 50), std::future::pending());
    let mut running = pin!(pipeline.run_until(&resilient, input, start, on_checkpoint, never));
    assert!(
        tokio::time::timeout(Duration::from_secs(60), &mut running)
            .await
            .is_err(),
        "the run waits for the sink"
    );
    assert_eq!(script.calls().len(), 200, "every handler was called once");
    let checkpoint = published.lock().expect("no panic").clone();
    let checkpoint = checkpoint.expect("records are settled ahead");
    assert_eq!(checkpoint.position(), &Position::TrimHorizon);
    assert!(
        !checkpoint
            .ahead()
            .expect("records are settled ahead")
            .covers(&record(99, "", ""))
    );
    assert!(
        checkpoint
            .ahead()
            .expect("records are settled ahead")
            .covers(&record(100, "", ""))
    );

    sink.set_down(false);
    let finished = running.await.expect("no halt");
    assert_eq!(finished.checkpoint.position(), &position(199));
    assert_eq!((script.calls().len(), sink.letters().len()), (200, 100));
}

/// The dead letter is settled. The records behind it wait for an operator.
#[tokio::test(start_paused = true)]
async fn stop_policy_halts_the_shard_behind_a_dead_letter() {
    let (script, letters) = (Script::default(), dead_letter::Memory::new());
    let build = |after| {
        let builder = Resilient::builder("billing", script.clone()).retry(policy());
        let builder = builder.without_guard().dead_letters(letters.clone());
        builder.dead_letter_policy(after).build().expect("valid")
    };
    let records = || (0..100).map(|number| record(number, "one", if number == 10 { "bad" } else { "ok" }));
    let halted = Pipeline::default()
        .run(&build(DeadLetterPolicy::Stop), batches(records().collect(), 100))
        .await
        .expect_err("halted");
    assert_eq!(halted.record.sequence_number(), &10.into());
    let id = letters.letters()[0].id;
    assert!(
        matches!(halted.halt, Halt::DeadLetterPolicy(lettered) if lettered == id),
        "{halted:?}"
    );
    assert_eq!(halted.checkpoint.position(), &position(10));
    assert_eq!((halted.unsettled, &halted.first_unsettled), (89, &11.into()));
    assert_eq!(first_calls(&script).len(), 11);

    // A new run continues from there.
    let stopping = build(DeadLetterPolicy::Stop);
    let finished = Pipeline::default()
        .run_until(
            &stopping,
            batches(records().collect(), 100),
            halted.checkpoint.clone(),
            |_| async {},
            std::future::pending(),
        )
        .await;
    assert!(finished.expect("no other is bad").complete);
    assert_eq!((first_calls(&script).len(), letters.letters().len()), (100, 1));

    let finished = Pipeline::default()
        .run(
            &build(DeadLetterPolicy::Continue),
            batches(records().collect(), 100),
        )
        .await;
    assert!(finished.expect("no halt").complete);
}

#[tokio::test(start_paused = true)]
async fn halt_stops_before_the_record_and_keeps_settled_ones() {
    let script = Script::default();
    let resilient = Resilient::builder("billing", script.clone())
        .without_dead_letters()
        .build()
        .expect("valid");
    let records = (0..1_000).map(|number| {
        record(
            number,
            &number.to_string(),
            if number == 10 { "slowbad:2" } else { "sleep:5" },
        )
    });
    let halted = Pipeline::default()
        .run(&resilient, batches(records.collect(), 100))
        .await
        .expect_err("halted");
    assert_eq!(halted.record.sequence_number(), &10.into());
    assert!(matches!(halted.halt, Halt::WithoutDeadLetters(_)));
    assert_eq!(halted.to_string(), "shard shardId-0 halted at record 10");
    let source = std::error::Error::source(&*halted).expect("why");
    assert!(source.downcast_ref::<Halt>().is_some(), "{source:?}");
    assert_eq!(halted.checkpoint.position(), &position(9));
    assert!(
        script.calls().len() < 200,
        "no new record was begun: {}",
        script.calls().len()
    );
    assert!(
        halted
            .checkpoint
            .ahead()
            .expect("records are settled ahead")
            .covers(&record(11, "", ""))
    );
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_lets_handlers_end_and_cancels_backoffs() {
    let script = Script::default();
    let resilient = resilient(&script);
    let records = vec![
        record(0, "a", "sleep:3000"),
        record(1, "b", "slowfail:1000"),
        record(2, "c", "slowfail:2500"),
        record(3, "d", "sleep:1,bad"),
        record(4, "a", "ok"),
    ];
    let never_ends = batches(records, 5).chain(stream::pending());
    let start = Instant::now();
    let shutdown = tokio::time::sleep(Duration::from_secs(2));
    let pipeline = Pipeline::default();
    let from = Checkpoint::at(Position::TrimHorizon);
    let running = pipeline.run_until(&resilient, never_ends, from, |_| async {}, shutdown);
    let finished = running.await.expect("no halt");
    assert_eq!(
        start.elapsed(),
        Duration::from_secs(3),
        "the run waits for the longest handler"
    );
    assert_eq!(finished.checkpoint.position(), &position(0));
    assert_eq!(finished.unsettled, 3, "two in backoff and one that was not begun");
    assert!(
        finished
            .checkpoint
            .ahead()
            .expect("a record is settled ahead")
            .covers(&record(3, "", ""))
    );
    assert!(!finished.complete);
}

#[tokio::test(start_paused = true)]
async fn hanging_handler_delays_a_shutdown_by_drain_at_most() {
    let resilient = resilient(&Script::default());
    let pipeline = Pipeline::builder()
        .drain(Duration::from_secs(4))
        .build()
        .expect("valid");
    let from = Checkpoint::at(Position::TrimHorizon);
    let start = Instant::now();
    let shutdown = tokio::time::sleep(Duration::from_secs(1));
    let batches = batches(vec![record(0, "a", "hang")], 1);
    let running = pipeline.run_until(&resilient, batches, from, |_| async {}, shutdown);
    let result = running.await;
    assert_eq!(start.elapsed(), Duration::from_secs(5));
    assert_eq!(
        result.expect("no halt").checkpoint.position(),
        &Position::TrimHorizon
    );
}

// Property test: random streams, failures and orders. Each run is cut off at a random moment, and the next
// run starts from the last checkpoint.

#[derive(Debug, Clone)]
struct Plan {
    ordering: RecordOrder,
    /// The key and script of each record.
    records: Vec<(u8, &'static str)>,
    batch: usize,
    /// Milliseconds before each batch.
    gap: u64,
    held: usize,
    span: usize,
    running: usize,
    /// The milliseconds after which each run except the last is cut off.
    cuts: Vec<u64>,
}

fn plan() -> impl Strategy<Value = Plan> {
    let script = prop_oneof![
        8 => Just("ok"),
        4 => Just("sleep:3"),
        2 => Just("fail,ok"),
        1 => Just("fail,fail,sleep:2"),
        1 => Just("bad"),
        1 => Just("fail"),
        1 => Just("slowfail:5,bad"),
    ];
    let ordering = prop_oneof![
        Just(RecordOrder::Shard),
        Just(RecordOrder::PartitionKey),
        Just(RecordOrder::Unordered)
    ];
    (
        ordering,
        prop::collection::vec((0u8..6, script), 1..80),
        1usize..30,
        prop_oneof![Just(0u64), 1u64..30],
        1usize..40,
        1usize..60,
        1usize..8,
        prop::collection::vec(0u64..400, 0..4),
    )
        .prop_map(
            |(ordering, records, batch, gap, held, span, running, cuts)| Plan {
                ordering,
                records,
                batch,
                gap,
                held,
                span,
                running,
                cuts,
            },
        )
}

/// Creates a sink that fails, confirms late, loses its answer, and confirms, in turn.
fn unreliable_sink() -> ScriptedSink {
    let sink = ScriptedSink::default();
    sink.on_put(|put, _| match put.number % 5 {
        1 => Answer::Fail(unavailable),
        2 => Answer::take_late(Duration::from_millis(70)),
        3 => Answer::Lose,
        _ => Answer::Take,
    });
    sink
}

async fn check(plan: Plan) -> Result<(), TestCaseError> {
    let script = Script::default();
    let sink = unreliable_sink();
    let resilient = Resilient::builder("billing", script.clone())
        .retry(policy().backoff(Backoff::constant(Duration::from_millis(20))))
        .without_breaker()
        .without_guard()
        .without_retry_budget()
        .dead_letters(sink.clone())
        .build()
        .expect("valid");
    // The ground truth: the records that the handler has processed or the sink has stored.
    let ended = || {
        let mut ended = script.done();
        ended.extend(sink.letters().into_iter().map(|letter| letter.sequence_number));
        ended
    };
    let records: Vec<Record> = plan
        .records
        .iter()
        .zip(0u64..)
        .map(|((key, script), number)| record(number, &format!("key-{key}"), script))
        .collect();
    let capacity = Capacity::builder()
        .running(plan.running)
        .bytes(usize::MAX >> 1)
        .build()
        .expect("valid");
    let pipeline = Pipeline::builder()
        .ordering(plan.ordering)
        .in_flight(plan.held)
        .span(plan.span)
        .checkpoint_interval(Duration::ZERO)
        .capacity(capacity.clone())
        .build()
        .expect("valid");
    let mut from = Checkpoint::at(Position::TrimHorizon);
    let mut covered: BTreeSet<u64> = BTreeSet::new();
    let cuts = plan.cuts.iter().map(|&millis| Some(millis)).chain([None]);
    for cut in cuts {
        let calls_before = script.calls().len();
        // A later checkpoint must cover every record that an earlier checkpoint covered.
        covered.extend(
            (0u64..)
                .zip(&records)
                .filter(|(_, record)| covers(&from, record))
                .map(|(number, _)| number),
        );
        let handed_over = Mutex::new(Vec::new());
        let on_checkpoint = |checkpoint: Checkpoint| {
            let ended = ended();
            let early = records
                .iter()
                .find(|record| covers(&checkpoint, record) && !ended.contains(record.sequence_number()));
            let early = early.map(|record| format!("{checkpoint:?} covers {record:?}, which has not ended"));
            handed_over.lock().expect("no panic").push((checkpoint, early));
            async {}
        };
        let input = Box::pin(batches(records.clone(), plan.batch).then(|batch| async {
            tokio::time::sleep(Duration::from_millis(plan.gap)).await;
            batch
        }));
        let never = std::future::pending();
        let running = pipeline.run_until(&resilient, input, from.clone(), on_checkpoint, never);
        let finished = match cut {
            Some(millis) => tokio::time::timeout(Duration::from_millis(millis), running)
                .await
                .ok(),
            None => Some(running.await),
        };
        for (checkpoint, early) in handed_over.into_inner().expect("no panic") {
            prop_assert_eq!(early, None);
            from = checkpoint;
        }
        prop_assert_eq!(capacity.running(), 0, "every permit is released");
        for call in &script.calls()[calls_before..] {
            let number: u64 = call.sequence_number.as_str().parse().expect("small");
            prop_assert!(
                !covered.contains(&number),
                "record {} was settled and is processed again",
                number
            );
        }
        if let Some(finished) = finished {
            let finished = finished.expect("no halt");
            prop_assert!(finished.complete);
            let last = records.last().expect("at least one").position();
            prop_assert_eq!(finished.checkpoint.position(), &last);
            prop_assert_eq!(&finished.checkpoint, &from, "the last checkpoint is handed over");
        }
    }
    prop_assert_eq!(ended().len(), records.len(), "every record has ended");

    let letters: BTreeSet<u64> = sink
        .letters()
        .iter()
        .map(|letter| letter.sequence_number.as_str().parse().expect("small"))
        .collect();
    let expected: BTreeSet<u64> = (0u64..)
        .zip(&plan.records)
        .filter(|(_, (_, script))| ["bad", "fail", "slowfail:5,bad"].contains(script))
        .map(|(number, _)| number)
        .collect();
    prop_assert_eq!(letters, expected, "dead letters");
    if plan.cuts.is_empty() {
        check_order(plan.ordering, &script)?;
    }
    Ok(())
}

/// Checks that a record is first called after the last call of every earlier record of its lane.
fn check_order(ordering: RecordOrder, script: &Script) -> Result<(), TestCaseError> {
    let mut last: HashMap<String, u64> = HashMap::new();
    for call in script.calls() {
        let lane = match ordering {
            RecordOrder::Shard => String::new(),
            RecordOrder::PartitionKey => call.key.clone().unwrap_or_default(),
            _ => return Ok(()),
        };
        let number: u64 = call.sequence_number.as_str().parse().expect("small");
        let before = last.insert(lane, number);
        prop_assert!(
            before.is_none_or(|before| before <= number),
            "{:?} after {:?}",
            number,
            before
        );
    }
    Ok(())
}

fn covers(checkpoint: &Checkpoint, record: &Record) -> bool {
    checkpoint.position().covers(record)
        || checkpoint
            .ahead()
            .is_some_and(|ahead: &SettledAhead| ahead.covers(record))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn nothing_is_lost_reordered_or_checkpointed_too_early(plan in plan()) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime");
        runtime.block_on(check(plan))?;
    }
}
