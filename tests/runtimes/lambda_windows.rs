//! Tests of tumbling windows in Lambda, whose state is passed from invocation to invocation. Time is paused
//! throughout.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use redrive::lambda::{Fold, InvocationError, Window, WindowEvent, WindowResponse, Windowed};
use redrive::processor::Attempt;
use redrive::{BoxError, Failure, Jitter, Record, RetryPolicy, Scope, dead_letter, idempotency};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Volume {
    orders: u64,
    by_key: BTreeMap<String, u64>,
}

/// Counts orders. The payload of a record says what its call does:
///
/// - `bad`: fails permanently.
/// - `own`: fails with a transient error that blames the record.
/// - `odd:<n>`: fails for an unknown cause, the first `n` times.
/// - `slow` takes 2 s, and `hang` never returns.
#[derive(Clone, Default)]
struct Count {
    finished: Arc<Mutex<Vec<(String, Volume)>>>,
    calls: Arc<AtomicUsize>,
    running: Arc<AtomicUsize>,
    refuses_to_finish: Arc<AtomicUsize>,
    hangs_at_the_end: Arc<AtomicUsize>,
    failed: Arc<Mutex<BTreeMap<String, u32>>>,
}

impl Fold for Count {
    type State = Volume;
    type Error = BoxError;

    async fn fold(&self, volume: &mut Volume, order: &Record, _: &Attempt<'_>) -> Result<(), BoxError> {
        self.calls.fetch_add(1, SeqCst);
        assert_eq!(self.running.fetch_add(1, SeqCst), 0, "one at a time");
        // The changes of a failed attempt must be discarded.
        volume.orders += 1;
        let word = std::str::from_utf8(order.payload())?.to_owned();
        match &*word {
            "slow" => sleep(secs(2)).await,
            "hang" => std::future::pending().await,
            _ => {}
        }
        self.running.fetch_sub(1, SeqCst);
        if let Some(times) = word.strip_prefix("odd:") {
            let mut failed = self.failed.lock().expect("no panic while locked");
            let failed = failed
                .entry(order.sequence_number().as_str().to_owned())
                .or_default();
            *failed += 1;
            if *failed <= times.parse()? {
                return Err("something is odd".into());
            }
        }
        if word == "own" {
            return Err(Failure::transient("locked").with_scope(Scope::Record).into());
        }
        if word == "bad" {
            return Err(Failure::permanent("no order").into());
        }
        let key = order.partition_key().unwrap_or_default().to_owned();
        *volume.by_key.entry(key).or_default() += 1;
        Ok(())
    }

    async fn finish(&self, window: &Window, volume: &Volume) -> Result<(), BoxError> {
        if self.hangs_at_the_end.load(SeqCst) > 0 {
            std::future::pending::<()>().await;
        }
        if self
            .refuses_to_finish
            .fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1))
            .is_ok()
        {
            return Err("no connection".into());
        }
        let mut finished = self.finished.lock().expect("no panic while locked");
        finished.push((window.shard.clone(), volume.clone()));
        Ok(())
    }
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn sequence_number(number: usize) -> String {
    format!("4959033827149025660855969253836157109592157{number:013}")
}

fn item(number: usize, word: &str) -> Value {
    json!({
        "kinesis": {
            "kinesisSchemaVersion": "1.0",
            "partitionKey": format!("key-{}", number % 7),
            "sequenceNumber": sequence_number(number),
            "data": BASE64.encode(word),
            "approximateArrivalTimestamp": 1_607_497_475.000,
        },
        "eventSource": "aws:kinesis",
        "eventVersion": "1.0",
        "eventID": format!("shardId-000000000006:{}", sequence_number(number)),
        "eventName": "aws:kinesis:record",
        "awsRegion": "us-east-1",
        "eventSourceARN": "arn:aws:kinesis:us-east-1:123456789012:stream/orders",
    })
}

/// Creates an event, as Lambda writes it.
fn event(items: &[Value], state: &Value, is_final: bool) -> WindowEvent {
    let json = json!({
        "Records": items,
        "window": { "start": "2020-12-09T07:04:00Z", "end": "2020-12-09T07:06:00Z" },
        "state": state,
        "shardId": "shardId-000000000006",
        "eventSourceARN": "arn:aws:kinesis:us-east-1:123456789012:stream/orders",
        "isFinalInvokeForWindow": is_final,
        "isWindowTerminatedEarly": false,
    });
    let json = serde_json::to_vec(&json).expect("JSON");
    serde_json::from_slice(&json).expect("an event")
}

fn windowed(count: &Count, letters: &dead_letter::Memory) -> Windowed<Count> {
    let policy = RetryPolicy::constant(secs(1))
        .jitter(Jitter::None)
        .max_attempts(3);
    let windowed = Windowed::build("volumes", count.clone(), |builder| {
        builder
            .retry(policy)
            .dead_letters(letters.clone())
            .without_guard()
    });
    windowed.expect("valid")
}

/// An event source mapping with tumbling windows that passes on the state and redelivers unsettled records.
struct Mapping {
    reports_failures: bool,
    batch: usize,
    timeout: Duration,
}

impl Mapping {
    /// Sends all records in one window. Returns the number of invocations.
    async fn run(&self, windowed: &Windowed<Count>, items: &[Value]) -> usize {
        let (mut at, mut state, mut invocations) = (0, json!({}), 0);
        loop {
            let batch = &items[at..items.len().min(at + self.batch)];
            let is_final = batch.is_empty();
            let deadline = Instant::now() + self.timeout;
            invocations += 1;
            assert!(invocations < 500, "no progress");
            let answer = windowed.settle(event(batch, &state, is_final), deadline).await;
            assert!(Instant::now() <= deadline, "the function has timed out");
            let Ok(answer) = answer else { continue };
            let answer = serde_json::to_value(&answer).expect("JSON");
            assert!(
                answer["state"].is_object(),
                "Lambda treats an answer without a state as a failure: {answer}"
            );
            if is_final {
                return invocations;
            }
            let failed = answer["batchItemFailures"].as_array().expect("a list");
            let again = failed.first().filter(|_| self.reports_failures).map(|failed| {
                let failed = failed["itemIdentifier"].as_str().expect("a number");
                (at..)
                    .find(|number| sequence_number(*number) == failed)
                    .expect("one of the batch")
            });
            at = again.unwrap_or(at + batch.len());
            state = answer["state"].clone();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn record_is_counted_once_or_dead_lettered() {
    let word = |number: usize| match number % 40 {
        3 => "odd:2",
        7 => "bad",
        12 => "own",
        19 => "slow",
        _ => "",
    };
    let items: Vec<Value> = (0..200).map(|number| item(number, word(number))).collect();
    for reports_failures in [true, false] {
        let (count, letters) = (Count::default(), dead_letter::Memory::new());
        let windowed = windowed(&count, &letters).partial_responses(reports_failures);
        let mapping = Mapping {
            reports_failures,
            batch: 30,
            timeout: secs(20),
        };
        mapping.run(&windowed, &items).await;
        let finished = count.finished.lock().expect("no panic while locked");
        let [(shard, volume)] = &finished[..] else {
            panic!("{finished:?}");
        };
        assert_eq!(shard, "shardId-000000000006");
        assert_eq!(letters.letters().len(), 10);
        assert_eq!(volume.orders, 190, "changes of failed attempts are discarded");
        let mut expected: BTreeMap<String, u64> = BTreeMap::new();
        for number in (0..200).filter(|number| !matches!(word(*number), "bad" | "own")) {
            *expected.entry(format!("key-{}", number % 7)).or_default() += 1;
        }
        assert_eq!(volume.by_key, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn first_unsettled_record_ends_the_fold_with_the_state_before() {
    let (count, letters) = (Count::default(), dead_letter::Memory::new());
    let windowed = windowed(&count, &letters).partial_responses(true);
    let items: Vec<Value> = ["", "", "slow", "slow", "slow", "", ""]
        .iter()
        .enumerate()
        .map(|(number, word)| item(number, word))
        .collect();
    let before = json!({"orders": 100, "by_key": {"key-0": 100}});
    let answer = windowed
        .settle(event(&items, &before, false), Instant::now() + secs(6))
        .await
        .expect("an answer");
    assert_eq!(
        serde_json::to_value(&answer).expect("JSON"),
        json!({
            "state": {"orders": 104, "by_key": {"key-0": 101, "key-1": 1, "key-2": 1, "key-3": 1}},
            "batchItemFailures": [{"itemIdentifier": sequence_number(4)}],
        })
    );
    assert_eq!(
        count.calls.load(SeqCst),
        5,
        "records behind the unsettled one are not begun"
    );
}

#[tokio::test(start_paused = true)]
async fn failed_finish_redelivers_the_window() {
    let (count, letters) = (Count::default(), dead_letter::Memory::new());
    let windowed = windowed(&count, &letters);
    count.refuses_to_finish.store(1, SeqCst);
    let state = json!({"orders": 3, "by_key": {"key-0": 3}});
    let settle = |items: Vec<Value>| {
        let event = event(&items, &state, true);
        windowed.settle(event, Instant::now() + secs(10))
    };
    let error = settle(vec![item(0, "")]).await.expect_err("no connection");
    assert!(matches!(error, InvocationError::Finish(_)), "{error:?}");
    let answer = settle(vec![item(0, "")]).await.expect("finished");
    assert_eq!(answer.state().orders, 4);
    let finished = count.finished.lock().expect("no panic while locked");
    assert_eq!(finished.len(), 1);
    assert_eq!(finished[0].1.orders, 4, "with the last records");
}

#[tokio::test(start_paused = true)]
async fn hanging_finish_ends_before_the_deadline() {
    let (count, letters) = (Count::default(), dead_letter::Memory::new());
    count.hangs_at_the_end.store(1, SeqCst);
    let start = Instant::now();
    let event = event(&[item(0, "")], &json!({}), true);
    let settled = windowed(&count, &letters).settle(event, start + secs(20)).await;
    let error = settled.expect_err("Lambda retries the invocation");
    assert!(matches!(error, InvocationError::Finish(_)), "{error:?}");
    assert!(start.elapsed() < secs(20), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn unsettled_record_keeps_the_window_open() {
    let (count, letters) = (Count::default(), dead_letter::Memory::new());
    let windowed = windowed(&count, &letters).partial_responses(true);
    let event = event(&[item(0, ""), item(1, "hang")], &json!({}), true);
    let answer: WindowResponse<Volume> = windowed
        .settle(event, Instant::now() + secs(5))
        .await
        .expect("an answer");
    let first = answer.response().first_unsettled().map(ToString::to_string);
    assert_eq!((first, answer.state().orders), (Some(sequence_number(1)), 1));
    assert!(count.finished.lock().expect("no panic while locked").is_empty());
}

#[tokio::test(start_paused = true)]
async fn unreadable_state_or_event_is_an_error() {
    let (count, letters) = (Count::default(), dead_letter::Memory::new());
    let windowed = windowed(&count, &letters);
    let other = json!({"orders": "many"});
    let settled = windowed
        .settle(event(&[item(0, "")], &other, false), Instant::now() + secs(5))
        .await;
    let error = settled.expect_err("the state has another format");
    assert!(matches!(error, InvocationError::State(_)), "{error:?}");
    assert_eq!(count.calls.load(SeqCst), 0);
    // An event without a state starts a window.
    let none = windowed
        .settle(event(&[], &Value::Null, false), Instant::now() + secs(5))
        .await
        .expect("an answer");
    assert_eq!(*none.state(), Volume::default());

    for broken in [
        json!({}),
        json!({"Records": []}),
        json!({"Records": [], "window": {"start": "yesterday", "end": "today"}}),
        json!({"Records": 7, "window": {"start": "2020-12-09T07:04:00Z", "end": "2020-12-09T07:06:00Z"}}),
        json!([1]),
    ] {
        let read: Result<WindowEvent, _> = serde_json::from_value(broken.clone());
        assert!(read.is_err(), "{broken}");
    }
}

#[test]
fn idempotency_store_is_refused_for_windows() {
    let refused = Windowed::build("volumes", Count::default(), |builder| {
        builder
            .dead_letters(dead_letter::Memory::new())
            .idempotency(idempotency::Memory::new())
    });
    let error = refused.expect_err("refused").to_string();
    assert!(
        error.contains("idempotency") && error.contains("state"),
        "{error}"
    );
}
