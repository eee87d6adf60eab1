//! Tests of a processor in Lambda: events, the deadline, and the answers that an event source mapping reads.
//! Time is paused throughout.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use aws_lambda_events::event::kinesis::KinesisEvent;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use lambda_runtime::{Context, LambdaEvent};
use redrive::dead_letter::{self, TargetError};
use redrive::idempotency::{Claim, Claimed, Completion, IdempotencyStore, Key, Status, StoreError};
use redrive::kpl::Aggregator;
use redrive::lambda::{Event, Function, InvocationError, ParseEventError, Response};
use redrive::processor::{Attempt, BatchFailure, Handler};
use redrive::testing::Script;
use redrive::{
    BatchProcessor, BoxError, DeadLetterGuard, Idempotency, Jitter, Record, Resilient, ResilientBuilder,
    RetryPolicy, SequenceNumber, dead_letter::DeadLetterPolicy, idempotency,
};
use serde_json::{Value, json};
use support::sink::ScriptedSink;
use tokio::time::{Instant, sleep};

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn sequence_number(number: usize) -> String {
    format!("4959033827149025660855969253836157109592157{number:013}")
}

/// Creates a record of an event, as Lambda writes it.
fn item(number: usize, key: &str, data: &[u8]) -> Value {
    json!({
        "kinesis": {
            "kinesisSchemaVersion": "1.0",
            "partitionKey": key,
            "sequenceNumber": sequence_number(number),
            "data": BASE64.encode(data),
            "approximateArrivalTimestamp": 1_545_084_650.987,
        },
        "eventSource": "aws:kinesis",
        "eventVersion": "1.0",
        "eventID": format!("shardId-000000000006:{}", sequence_number(number)),
        "eventName": "aws:kinesis:record",
        "invokeIdentityArn": "arn:aws:iam::123456789012:role/lambda-role",
        "awsRegion": "us-east-2",
        "eventSourceARN": "arn:aws:kinesis:us-east-2:123456789012:stream/orders",
    })
}

fn event(items: impl IntoIterator<Item = Value>) -> Event {
    let items: Vec<Value> = items.into_iter().collect();
    let json = serde_json::to_vec(&json!({ "Records": items })).expect("JSON");
    Event::from_slice(&json).expect("an event")
}

fn builder(script: &Script) -> ResilientBuilder<Script> {
    let policy = RetryPolicy::constant(secs(1))
        .jitter(Jitter::None)
        .max_attempts(3);
    Resilient::builder("billing", script.clone())
        .retry(policy)
        .without_guard()
        .seed(7)
}

fn function(script: &Script, letters: &dead_letter::Memory) -> Function<Script> {
    let resilient = builder(script).dead_letters(letters.clone()).build();
    Function::new(resilient.expect("valid"))
}

/// Reads an answer as Lambda does. Returns the index of the record at which Lambda continues, or `None` if
/// the batch is settled.
fn read_answer(answer: &str, batch: &[String]) -> Option<usize> {
    let answer: Value = serde_json::from_str(answer).expect("JSON");
    let failures = answer["batchItemFailures"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let places = failures.iter().map(|failure| {
        let identifier = failure["itemIdentifier"].as_str().unwrap_or_default();
        // An unknown identifier fails the whole batch.
        batch.iter().position(|number| number == identifier).unwrap_or(0)
    });
    places.min()
}

/// An event source mapping that sends the records of a shard in batches until all are settled.
struct Mapping {
    /// `FunctionResponseTypes: [ReportBatchItemFailures]`.
    reports_failures: bool,
    batch: usize,
    /// The timeout of the function.
    timeout: Duration,
}

impl Mapping {
    /// Sends all records. Returns the number of invocations.
    async fn run(&self, function: &Function<impl Handler>, items: &[Value]) -> usize {
        let (mut at, mut calls) = (0, 0);
        while at < items.len() {
            let batch = &items[at..items.len().min(at + self.batch)];
            let numbers: Vec<String> = (0..batch.len())
                .map(|index| sequence_number(at + index))
                .collect();
            let deadline = Instant::now() + self.timeout;
            let answer = function.settle(event(batch.to_vec()), deadline).await;
            assert!(Instant::now() <= deadline, "the function has timed out");
            calls += 1;
            assert!(calls < 1_000, "no progress");
            let settled = match answer {
                Err(_) => 0,
                Ok(answer) => {
                    let answer = serde_json::to_string(&answer).expect("JSON");
                    let failed = read_answer(&answer, &numbers).filter(|_| self.reports_failures);
                    failed.unwrap_or(batch.len())
                }
            };
            at += settled;
        }
        calls
    }
}

/// Every record that the mapping does not send again is settled, in the order of its key.
#[tokio::test(start_paused = true)]
async fn both_mappings_lose_no_record() {
    let steps = |number: usize| match number % 40 {
        3 => "fail,fail,ok",
        7 => "bad",
        12 => "fail",
        19 => "sleep:900",
        // The first call takes longer than the timeout of the function.
        25 => "hang,ok",
        _ => "ok",
    };
    let items: Vec<Value> = (0..400)
        .map(|number| item(number, &format!("key-{}", number % 17), steps(number).as_bytes()))
        .collect();
    for reports_failures in [true, false] {
        let (script, letters) = (Script::default(), dead_letter::Memory::new());
        let mapping = Mapping {
            reports_failures,
            batch: 50,
            timeout: secs(60),
        };
        let function = function(&script, &letters).partial_responses(reports_failures);
        let calls = mapping.run(&function, &items).await;
        let done = script.done();
        let letters: HashSet<SequenceNumber> = letters
            .letters()
            .into_iter()
            .map(|letter| letter.sequence_number)
            .collect();
        for number in 0..items.len() {
            let sequence: SequenceNumber = sequence_number(number).try_into().expect("digits");
            let settled = done.contains(&sequence) || letters.contains(&sequence);
            assert!(settled, "record {number} is lost, after {calls} calls");
            let failed = matches!(steps(number), "bad" | "fail");
            assert_eq!(failed, letters.contains(&sequence), "{number}");
        }
        let mut newest: BTreeMap<Option<String>, SequenceNumber> = BTreeMap::new();
        let mut seen = HashSet::new();
        for call in script.calls() {
            if seen.insert(call.sequence_number.clone()) {
                let before = newest.insert(call.key, call.sequence_number.clone());
                assert!(before.is_none_or(|before| before < call.sequence_number));
            }
        }
    }
}

/// A batch handler that takes 400 ms and stores all records or none.
#[derive(Clone, Default)]
struct AllOrNone {
    done: Arc<std::sync::Mutex<Vec<SequenceNumber>>>,
    calls: Arc<AtomicUsize>,
}

impl BatchProcessor for AllOrNone {
    type Error = BoxError;

    async fn process_batch(&self, records: &[Record], _: &Attempt<'_>) -> Result<(), BatchFailure<BoxError>> {
        self.calls.fetch_add(1, Relaxed);
        sleep(Duration::from_millis(400)).await;
        if records.iter().any(|record| record.payload() == "odd") {
            return Err(BoxError::from("something is odd"))?;
        }
        let mut done = self.done.lock().expect("no panic while locked");
        done.extend(records.iter().map(|record| record.sequence_number().clone()));
        Ok(())
    }
}

/// The retries and the search for the failing record take longer than one invocation may.
#[tokio::test(start_paused = true)]
async fn batch_search_resumes_in_the_next_invocation() {
    // Without partial responses the whole batch is redelivered, so the search has to fit into one invocation.
    for (reports_failures, timeout, least) in [(true, secs(3), 4), (false, secs(6), 2)] {
        let (handler, letters) = (AllOrNone::default(), dead_letter::Memory::new());
        let policy = RetryPolicy::constant(secs(1))
            .jitter(Jitter::None)
            .max_attempts(3);
        let resilient = Resilient::builder("billing", handler.clone().batched())
            .retry(policy)
            .dead_letters(letters.clone())
            .build()
            .expect("valid");
        let function = Function::new(resilient).partial_responses(reports_failures);
        let items: Vec<Value> = (0..100)
            .map(|number| {
                let data: &[u8] = if number == 41 { b"odd" } else { b"ok" };
                item(number, &format!("key-{}", number % 60), data)
            })
            .collect();
        let mapping = Mapping {
            reports_failures,
            batch: 100,
            timeout,
        };
        let invocations = mapping.run(&function, &items).await;
        assert!((least..40).contains(&invocations), "{invocations}");
        let lettered: Vec<SequenceNumber> = letters
            .letters()
            .into_iter()
            .map(|letter| letter.sequence_number)
            .collect();
        let odd: SequenceNumber = sequence_number(41).try_into().expect("digits");
        assert_eq!(lettered, [odd]);
        let done = handler.done.lock().expect("no panic while locked");
        assert_eq!(done.iter().collect::<HashSet<_>>().len(), 99);
        let calls = handler.calls.load(Relaxed);
        assert!(calls < 120, "{calls} calls in {invocations} invocations");
    }
}

#[tokio::test(start_paused = true)]
async fn unsettled_record_is_an_error_without_partial_responses() {
    let (script, letters) = (Script::default(), dead_letter::Memory::new());
    let items = || event([item(1, "a", b"ok"), item(2, "b", b"hang"), item(3, "c", b"ok")]);
    let deadline = || Instant::now() + secs(10);
    let unfinished = function(&script, &letters).settle(items(), deadline()).await;
    let unfinished = unfinished.expect_err("the whole batch is redelivered");
    let InvocationError::Unfinished {
        unsettled,
        sequence_number: first,
        ..
    } = &unfinished
    else {
        panic!("{unfinished:?}");
    };
    assert_eq!((*unsettled, first.as_str()), (1, &*sequence_number(2)));
    assert!(
        unfinished.to_string().contains("partial_responses"),
        "{unfinished}"
    );

    let reports = function(&script, &letters).partial_responses(true);
    let answer = reports.settle(items(), deadline()).await.expect("an answer");
    let expected = json!({"batchItemFailures": [{"itemIdentifier": sequence_number(2)}]});
    assert_eq!(serde_json::to_value(&answer).expect("JSON"), expected);
    let settled = reports.settle(event([item(4, "a", b"ok")]), deadline()).await;
    let settled = serde_json::to_value(settled.expect("an answer")).expect("JSON");
    assert_eq!(settled, json!({"batchItemFailures": []}));
    let none = reports.settle(event([]), deadline()).await.expect("an answer");
    assert_eq!(none, Response::settled());
}

/// The function cancels attempts that are too late, and no attempt runs after the answer.
#[tokio::test(start_paused = true)]
async fn nothing_runs_past_the_deadline() {
    let (script, letters) = (Script::default(), dead_letter::Memory::new());
    let function = function(&script, &letters)
        .partial_responses(true)
        .reserve(secs(2));
    let start = Instant::now();
    let steps: [&[u8]; 4] = [b"sleep:5000", b"hang", b"ok", b"fail,fail,fail"];
    let items = steps
        .iter()
        .enumerate()
        .map(|(number, steps)| item(number, "a", steps));
    let answer = function
        .settle(event(items), start + secs(20))
        .await
        .expect("an answer");
    assert_eq!(
        answer.first_unsettled().expect("one").as_str(),
        sequence_number(1)
    );
    let took = start.elapsed();
    assert!(secs(18) <= took && took < secs(19), "{took:?}");
    let calls = script.calls().len();
    sleep(secs(600)).await;
    assert_eq!(
        (calls, script.calls().len()),
        (2, 2),
        "no attempt behind the hanging record, and none after the answer"
    );
}

/// A function cannot stop its mapping, so the policy has no effect.
#[tokio::test(start_paused = true)]
async fn stop_policy_does_not_stop_a_function() {
    let (script, letters) = (Script::default(), dead_letter::Memory::new());
    let resilient = builder(&script)
        .dead_letters(letters.clone())
        .dead_letter_policy(DeadLetterPolicy::Stop)
        .build()
        .expect("valid");
    let function = Function::new(resilient);
    let items = event([item(1, "a", b"bad"), item(2, "a", b"ok")]);
    let answer = function.settle(items, Instant::now() + secs(10)).await;
    assert_eq!(answer.expect("an answer"), Response::settled());
    assert_eq!((script.calls().len(), letters.letters().len()), (2, 1));
}

/// Records that are redelivered anyway are not begun, unless an idempotency store remembers them.
#[tokio::test(start_paused = true)]
async fn no_record_begins_behind_an_unsettled_one() {
    let after_a_late_retry = |remembers: bool| async move {
        let (script, letters) = (Script::default(), dead_letter::Memory::new());
        let policy = RetryPolicy::constant(secs(30))
            .jitter(Jitter::None)
            .max_elapsed(secs(900));
        let builder = builder(&script).retry(policy).dead_letters(letters);
        let builder = match remembers {
            true => builder.idempotency(idempotency::Memory::new()),
            false => builder,
        };
        let capacity = redrive::pipeline::Capacity::builder()
            .running(1)
            .bytes(1 << 20)
            .build()
            .expect("valid");
        let pipeline = redrive::pipeline::Pipeline::builder()
            .capacity(capacity)
            .build()
            .expect("valid");
        let function = Function::new(builder.build().expect("valid"))
            .partial_responses(true)
            .pipeline(pipeline);
        let keys = ["a", "b", "c"];
        let items = keys
            .iter()
            .enumerate()
            .map(|(number, key)| item(number, key, if number == 0 { b"fail" } else { b"ok" }));
        let answer = function.settle(event(items), Instant::now() + secs(20)).await;
        assert_eq!(
            answer
                .expect("an answer")
                .first_unsettled()
                .expect("one")
                .as_str(),
            sequence_number(0)
        );
        script.done().len()
    };
    assert_eq!(after_a_late_retry(false).await, 0);
    assert_eq!(after_a_late_retry(true).await, 2, "the store remembers them");
}

#[tokio::test(start_paused = true)]
async fn batch_is_redelivered_during_an_outage() {
    let script = Script::default();
    let sink = ScriptedSink::default();
    sink.set_down(true);
    let resilient = builder(&script)
        .dead_letters(sink.clone())
        .build()
        .expect("valid");
    let function = Function::new(resilient).partial_responses(true);
    let items = || event([item(1, "a", b"bad"), item(2, "a", b"ok")]);
    let answer = function
        .settle(items(), Instant::now() + secs(10))
        .await
        .expect("an answer");
    assert_eq!(
        answer.first_unsettled().expect("one").as_str(),
        sequence_number(1)
    );
    sink.set_down(false);
    let answer = function
        .settle(items(), Instant::now() + secs(10))
        .await
        .expect("an answer");
    assert_eq!((answer, sink.letters().len()), (Response::settled(), 1));

    // An outage makes no dead letter, and the breaker stays open in the next invocations.
    let items = || event((10..60).map(|number| item(number, &number.to_string(), b"fail")));
    for _ in 0..3 {
        let deadline = Instant::now() + secs(30);
        let answer = function.settle(items(), deadline).await.expect("an answer");
        assert_eq!(
            answer.first_unsettled().expect("one").as_str(),
            sequence_number(10)
        );
        assert!(Instant::now() < deadline);
    }
    assert_eq!(sink.letters().len(), 1);
    let calls = script.calls().len();
    assert!(calls < 3 * 50, "{calls}");
}

#[tokio::test(start_paused = true)]
async fn batch_is_redelivered_after_the_guard_stops() {
    let (script, letters) = (Script::default(), dead_letter::Memory::new());
    let guard = DeadLetterGuard::builder()
        .share(0.5)
        .min_records(100)
        .window(secs(60))
        .build()
        .expect("valid");
    let builder = builder(&script)
        .guard(guard.clone())
        .dead_letters(letters.clone());
    let function = Function::new(builder.build().expect("valid")).partial_responses(true);
    let items = (0..300).map(|number| item(number, &number.to_string(), b"bad"));
    let answer = function
        .settle(event(items), Instant::now() + secs(10))
        .await
        .expect("an answer");
    assert!(answer.first_unsettled().is_some() && !guard.state().is_empty());
    assert!(letters.letters().len() <= 101, "{}", letters.letters().len());
}

#[tokio::test(start_paused = true)]
async fn unsettled_aggregate_is_reported_by_its_own_number() {
    let (script, letters) = (Script::default(), dead_letter::Memory::new());
    let mut aggregator = Aggregator::new(51_200);
    for (key, steps) in [("a", "ok"), ("b", "hang"), ("c", "ok")] {
        aggregator
            .add(key, None, steps.as_bytes())
            .expect("the aggregate has room");
    }
    let aggregate = aggregator.finish().expect("three records");
    let items = || {
        event([
            item(1, "z", b"ok"),
            item(2, "a", &aggregate.data),
            item(3, "z", b"ok"),
        ])
    };
    let function = function(&script, &letters).partial_responses(true);
    let answer = function
        .settle(items(), Instant::now() + secs(10))
        .await
        .expect("an answer");
    assert_eq!(
        answer.first_unsettled().expect("one").as_str(),
        sequence_number(2)
    );
    assert_eq!(script.calls().len(), 5, "each inner record is processed");
}

/// A store that counts its calls and takes completions only from a given time on.
#[derive(Debug, Clone)]
struct Store {
    inner: idempotency::Memory,
    looks: Arc<AtomicUsize>,
    claims: Arc<AtomicUsize>,
    completes_from: Instant,
}

impl Store {
    fn new() -> Self {
        Store {
            inner: idempotency::Memory::new(),
            looks: Arc::default(),
            claims: Arc::default(),
            completes_from: Instant::now(),
        }
    }
}

#[async_trait]
impl IdempotencyStore for Store {
    async fn claim(&self, claims: &[Claim]) -> Vec<Result<Claimed, StoreError>> {
        self.claims.fetch_add(claims.len(), Relaxed);
        self.inner.claim(claims).await
    }

    async fn complete(&self, claims: &[Claim]) -> Vec<Result<Completion, StoreError>> {
        match Instant::now() < self.completes_from {
            true => claims
                .iter()
                .map(|_| Err(StoreError::unavailable("down")))
                .collect(),
            false => self.inner.complete(claims).await,
        }
    }

    async fn release(&self, claims: &[Claim]) -> Vec<Result<(), StoreError>> {
        self.inner.release(claims).await
    }

    async fn status(&self, keys: &[Key], now: SystemTime) -> Vec<Result<Option<Status>, StoreError>> {
        self.looks.fetch_add(1, Relaxed);
        self.inner.status(keys, now).await
    }
}

/// A batch needs one look-up for all keys. Completed keys are not claimed.
#[tokio::test(start_paused = true)]
async fn redelivered_batch_needs_one_look_up() {
    let (script, store) = (Script::default(), Store::new());
    let items = || event((0..100).map(|number| item(number, &number.to_string(), b"ok")));
    for (claims, looks) in [(100, 1), (100, 2)] {
        // A new container has an empty cache.
        let builder = builder(&script).dead_letters(dead_letter::Memory::new());
        let builder = builder.idempotency(Idempotency::new(store.clone()));
        let function = Function::new(builder.build().expect("valid"));
        let answer = function.settle(items(), Instant::now() + secs(10)).await;
        assert_eq!(answer.expect("an answer"), Response::settled());
        assert_eq!(store.claims.load(Relaxed), claims);
        assert_eq!(store.looks.load(Relaxed), looks);
    }
    assert_eq!(script.calls().len(), 100);
}

#[tokio::test(start_paused = true)]
async fn the_deadline_of_the_invocation_is_kept() {
    let (script, letters) = (Script::default(), dead_letter::Memory::new());
    let function = function(&script, &letters).partial_responses(true);
    let mut context = Context::default();
    let deadline = SystemTime::now() + secs(10);
    context.deadline = deadline
        .duration_since(SystemTime::UNIX_EPOCH)
        .expect("since 1970")
        .as_millis() as u64;
    let start = Instant::now();
    let invocation = LambdaEvent::new(event([item(1, "a", b"hang")]), context);
    let answer = function.handle(invocation).await.expect("an answer");
    assert!(answer.first_unsettled().is_some());
    let took = start.elapsed();
    assert!(secs(8) < took && took < secs(10), "{took:?}");

    // The deadline is over already, so no attempt begins.
    let calls = script.calls().len();
    let invocation = LambdaEvent::new(event([item(2, "a", b"ok")]), Context::default());
    let answer = function.handle(invocation).await.expect("an answer");
    assert!(answer.first_unsettled().is_some());
    assert_eq!(script.calls().len(), calls);
}

#[test]
fn event_of_lambda_is_parsed() {
    let event = event([item(1, "schlüssel \"a\"", b"\x00\xff data"), item(2, "b", b"")]);
    let [first, second] = event.records() else {
        panic!("two records");
    };
    assert_eq!(
        (first.stream(), first.shard().as_str()),
        ("orders", "shardId-000000000006")
    );
    assert_eq!(first.sequence_number().as_str(), sequence_number(1));
    assert_eq!(first.partition_key(), Some("schlüssel \"a\""));
    assert_eq!(&first.payload()[..], b"\x00\xff data");
    let arrival = SystemTime::UNIX_EPOCH + Duration::from_millis(1_545_084_650_987);
    assert_eq!(first.arrival(), Some(arrival));
    assert!(second.payload().is_empty());
}

#[test]
fn event_of_aws_lambda_events_is_equivalent() {
    let json = json!({"Records": [item(1, "a", b"one"), item(2, "b", b"two")]});
    let theirs: KinesisEvent = serde_json::from_value(json.clone()).expect("an event");
    let theirs = Event::try_from(theirs).expect("an event");
    let ours: Event = serde_json::from_value(json).expect("an event");
    let of = |event: &Event| -> Vec<_> {
        let records = event.records().iter();
        records
            .map(|record| {
                let key = record.partition_key().map(str::to_owned);
                let place = (record.stream().to_owned(), record.position());
                (place, key, record.payload().clone(), record.arrival())
            })
            .collect()
    };
    assert_eq!(of(&theirs), of(&ours));
}

#[test]
fn invalid_event_is_refused_with_its_cause() {
    let read = |change: &dyn Fn(&mut Value)| {
        let mut json = json!({"Records": [item(1, "a", b"ok"), item(2, "a", b"ok")]});
        change(&mut json["Records"][1]);
        Event::from_slice(&serde_json::to_vec(&json).expect("JSON"))
    };
    type Is = fn(&ParseEventError) -> bool;
    let cases: [(&str, Value, Is); 5] = [
        ("/eventID", "nonsense".into(), |error| {
            matches!(error, ParseEventError::NoShard { index: 1 })
        }),
        ("/eventID", "shardId-000000000007:1".into(), |error| {
            matches!(error, ParseEventError::AnotherShard { index: 1 })
        }),
        (
            "/eventSourceARN",
            "arn:aws:sqs:us-east-2:1:orders".into(),
            |error| matches!(error, ParseEventError::AnotherShard { index: 1 }),
        ),
        ("/kinesis/sequenceNumber", "12a".into(), |error| {
            matches!(error, ParseEventError::NoSequenceNumber { index: 1, .. })
        }),
        ("/kinesis/data", "not base64!".into(), |error| {
            matches!(error, ParseEventError::NoBase64 { index: 1, .. })
        }),
    ];
    for (pointer, value, is) in cases {
        let error = read(&|record| *record.pointer_mut(pointer).expect("the field exists") = value.clone());
        let error = error.expect_err(pointer);
        assert!(is(&error), "{pointer}: {error:?}");
        assert!(
            !error.to_string().contains("not base64!"),
            "no payload in an error"
        );
    }
    let missing = read(&|record| drop(record.as_object_mut().expect("an object").remove("kinesis")));
    assert!(matches!(missing, Err(ParseEventError::Json(_))), "{missing:?}");
    for json in ["", "{}", "[]", "{\"Records\":null}", "{\"Records\":[{}]}"] {
        let read = Event::from_slice(json.as_bytes());
        assert!(matches!(read, Err(ParseEventError::Json(_))), "{json}: {read:?}");
    }
    let efo = "arn:aws:kinesis:us-east-2:1:stream/orders/consumer/billing:1545084650";
    let json = json!({"Records": [{"kinesis": {"sequenceNumber": "1", "data": ""}, "eventID": "s:1", "eventSourceARN": efo}]});
    let event = Event::from_slice(&serde_json::to_vec(&json).expect("JSON"))
        .expect("an event of an enhanced fan-out consumer");
    assert_eq!(event.records()[0].stream(), "orders");
    assert_eq!(event.records()[0].partition_key(), None);
}

/// Attempts are counted across invocations, and the dead letter has all of them.
#[tokio::test(start_paused = true)]
async fn attempts_continue_in_the_next_invocation() {
    let (script, letters) = (Script::default(), dead_letter::Memory::new());
    let policy = RetryPolicy::constant(secs(8))
        .jitter(Jitter::None)
        .max_attempts(5);
    let builder = builder(&script).retry(policy.max_elapsed(secs(900)));
    let resilient = builder.dead_letters(letters.clone()).build().expect("valid");
    let function = Function::new(resilient).partial_responses(true);
    let mut invocations = 0;
    loop {
        invocations += 1;
        let items = event([item(1, "a", b"own"), item(2, "b", b"ok")]);
        let answer = function.settle(items, Instant::now() + secs(10)).await;
        if answer.expect("an answer") == Response::settled() {
            break;
        }
        assert!(invocations < 20);
    }
    let calls = script.calls().into_iter();
    let calls: Vec<u32> = calls
        .filter(|call| call.key.as_deref() == Some("a"))
        .map(|call| call.attempt)
        .collect();
    assert_eq!(calls, [1, 2, 3, 4, 5]);
    assert!(invocations > 2, "{invocations}");
    assert_eq!(letters.letters()[0].attempts.count, 5);
}

/// The handler is not called again although its dead letter could not be written in time.
#[tokio::test(start_paused = true)]
async fn a_verdict_is_kept_for_the_next_invocation() {
    let script = Script::default();
    let sink = ScriptedSink::default();
    let resilient = builder(&script)
        .dead_letters(sink.clone())
        .build()
        .expect("valid");
    let function = Function::new(resilient).partial_responses(true);
    for down in [true, true, false] {
        sink.set_down(down);
        let items = event([item(1, "a", b"bad")]);
        let answer = function.settle(items, Instant::now() + secs(10)).await;
        assert_eq!(answer.expect("an answer").first_unsettled().is_some(), down);
    }
    assert_eq!((script.calls().len(), sink.letters().len()), (1, 1));
}

/// One invocation makes all retries with their backoff, and writes the dead letter.
#[tokio::test(start_paused = true)]
async fn lone_record_of_a_batch_is_called_max_attempts_times() {
    for attempts in [1, 3, 5] {
        let (script, letters) = (Script::default(), dead_letter::Memory::new());
        let policy = RetryPolicy::exponential().max_attempts(attempts);
        let builder = builder(&script).retry(policy).dead_letters(letters.clone());
        let function = Function::new(builder.build().expect("valid")).partial_responses(true);
        let items = event([item(1, "a", b"fail")]);
        let answer = function.settle(items, Instant::now() + secs(30)).await;
        assert_eq!(answer.expect("an answer"), Response::settled());
        assert_eq!(script.calls().len(), attempts as usize);
        let letters = letters.letters();
        assert_eq!(letters.len(), 1);
        assert_eq!(
            (letters[0].attempts.count, letters[0].attempts.probes),
            (attempts, 0)
        );
    }
}

/// Dead letters in the source stream would be read again and fail again.
#[tokio::test(start_paused = true)]
async fn forbidden_dead_letter_target_fails_each_invocation() {
    type Says = fn() -> Result<(), TargetError>;

    let itself = || {
        Err(TargetError::SourceItself {
            name: "orders".to_owned(),
        })
    };
    let down = || {
        Err(TargetError::Unreachable {
            name: "letters".to_owned(),
            source: std::io::Error::from(std::io::ErrorKind::ConnectionRefused).into(),
        })
    };
    let cases: [(Says, bool, usize); 3] = [(itself, false, 2), (down, true, 2), (|| Ok(()), true, 1)];
    for (says, is_used, looks) in cases {
        let (script, target) = (Script::default(), ScriptedSink::default());
        let looked = Arc::new(AtomicUsize::new(0));
        let counted = looked.clone();
        target.on_check(move |source| {
            assert_eq!(source.name, "orders");
            let arn = source.arn.as_deref();
            assert!(arn.is_some_and(|arn| arn.ends_with(":stream/orders")));
            counted.fetch_add(1, Relaxed);
            says().map(|()| Vec::new())
        });
        let resilient = builder(&script).dead_letters(target).build().expect("valid");
        let function = Function::new(resilient);
        for _ in 0..2 {
            let items = event([item(1, "a", b"ok")]);
            let answer = function.settle(items, Instant::now() + secs(10)).await;
            assert_eq!(answer.is_ok(), is_used, "{answer:?}");
        }
        assert_eq!(looked.load(Relaxed), looks);
        assert_eq!(script.calls().is_empty(), !is_used);
    }
}

/// A completion may use the reserve, because the handler has finished its work.
#[tokio::test(start_paused = true)]
async fn completion_may_use_the_reserve() {
    let script = Script::default();
    let start = Instant::now();
    let store = Store {
        completes_from: start + secs(22),
        ..Store::new()
    };
    let function = || {
        let builder = builder(&script).dead_letters(dead_letter::Memory::new());
        let resilient = builder.idempotency(store.clone()).build().expect("valid");
        Function::new(resilient).partial_responses(true).reserve(secs(10))
    };
    // The last attempt may end after 20 s. Its completion may be stored until 27.5 s.
    let items = || event([item(1, "a", b"sleep:19000")]);
    let answer = function()
        .settle(items(), start + secs(30))
        .await
        .expect("an answer");
    assert_eq!(answer, Response::settled());
    let again = function()
        .settle(items(), Instant::now() + secs(30))
        .await
        .expect("an answer");
    assert_eq!(
        (again, script.calls().len()),
        (Response::settled(), 1),
        "the completion is stored"
    );
}
