//! Tests of idempotency keys: the engine claims a key before an attempt, completes it after a success, and
//! releases it otherwise. Time is paused throughout.

use std::borrow::Cow;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use redrive::dead_letter;
use redrive::idempotency::{
    Claim, Claimed, Completion, IdempotencyStore, Key, Memory, Owner, Status, StoreError,
};
use redrive::observer::{Event, Observer};
use redrive::pipeline::{Batch, Pipeline};
use redrive::{
    Idempotency, Jitter, Record, Resilient, ResilientBuilder, RetryBudget, RetryPolicy, Settled, Unsettled,
    processor_with,
};
use support::events::{known, name};
use support::script::record;
use support::sink::{Answer, ScriptedSink};
use tokio::time::{Instant, sleep};

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// A store that can be down and can lose answers. It records its calls.
#[derive(Debug, Clone, Default)]
struct Store {
    memory: Memory,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    down: bool,
    /// The time that a call takes.
    takes: Duration,
    completions_fail: bool,
    release_hangs: bool,
    /// The key whose entry cannot be read.
    corrupt: Option<Key>,
    loses_answers: u32,
    /// The operation whose next call fails.
    fails_next: Option<&'static str>,
    calls: Vec<(&'static str, Key)>,
}

impl Store {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while locked")
    }

    async fn takes(&self) {
        let time = self.state().takes;
        if !time.is_zero() {
            sleep(time).await;
        }
    }

    fn calls(&self) -> Vec<&'static str> {
        self.state().calls.iter().map(|(call, _)| *call).collect()
    }

    /// Records the call. Returns whether the store is down for it, and whether its answer is lost.
    fn note(&self, call: &'static str, claims: &[Claim]) -> (bool, bool) {
        let mut state = self.state();
        let keys = claims.iter().map(|claim| (call, claim.key.clone()));
        state.calls.extend(keys);
        let fails = state.fails_next.take_if(|next| *next == call).is_some();
        let down = state.down || fails || call == "complete" && state.completions_fail;
        let lost = !down && state.loses_answers > 0;
        state.loses_answers -= u32::from(lost);
        (down, lost)
    }
}

const GRANTED: Claimed = Claimed::Granted { abandoned: 0 };

fn unavailable<T>(claims: &[Claim]) -> Vec<Result<T, StoreError>> {
    claims
        .iter()
        .map(|_| Err(StoreError::unavailable("down")))
        .collect()
}

#[async_trait]
impl IdempotencyStore for Store {
    async fn claim(&self, claims: &[Claim]) -> Vec<Result<Claimed, StoreError>> {
        let (down, lost) = self.note("claim", claims);
        self.takes().await;
        if let Some(key) = self.state().corrupt.clone().filter(|key| claims[0].key == *key) {
            let source = "of another program".into();
            return vec![Err(StoreError::Corrupt { key, source })];
        }
        if down {
            return unavailable(claims);
        }
        let answers = self.memory.claim(claims).await;
        if lost { unavailable(claims) } else { answers }
    }

    async fn complete(&self, claims: &[Claim]) -> Vec<Result<Completion, StoreError>> {
        let (down, lost) = self.note("complete", claims);
        self.takes().await;
        if down {
            return unavailable(claims);
        }
        let answers = self.memory.complete(claims).await;
        if lost { unavailable(claims) } else { answers }
    }

    async fn release(&self, claims: &[Claim]) -> Vec<Result<(), StoreError>> {
        let (down, lost) = self.note("release", claims);
        let hangs = self.state().release_hangs;
        if hangs {
            std::future::pending::<()>().await;
        }
        if down {
            return unavailable(claims);
        }
        let answers = self.memory.release(claims).await;
        if lost { unavailable(claims) } else { answers }
    }

    async fn status(&self, keys: &[Key], now: SystemTime) -> Vec<Result<Option<Status>, StoreError>> {
        self.memory.status(keys, now).await
    }

    fn name(&self) -> Cow<'_, str> {
        "faulty".into()
    }
}

/// The setup of a test: the store, the dead letters, the events, and the calls of the handler.
#[derive(Clone)]
struct Scene {
    store: Store,
    letters: dead_letter::Memory,
    calls: Arc<AtomicU32>,
    events: Arc<Mutex<Vec<String>>>,
    start: Instant,
}

impl Observer for Scene {
    fn on(&self, event: &Event<'_>) {
        self.events
            .lock()
            .expect("no panic while locked")
            .push(name(event));
    }
}

impl Scene {
    fn new() -> Self {
        Scene {
            store: Store::default(),
            letters: dead_letter::Memory::new(),
            calls: Arc::default(),
            events: Arc::default(),
            start: Instant::now(),
        }
    }

    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + secs(1_800_000_000) + self.start.elapsed()
    }

    fn settings(&self) -> Idempotency {
        let scene = self.clone();
        Idempotency::new(self.store.clone()).clock(move || scene.now())
    }

    /// Creates a handler that does what the payload says, one step per call. The last step repeats. Steps are
    /// `ok`, `bad`, `fail` and `slow`, which takes 10 s.
    fn builder(&self, idempotency: Idempotency) -> ResilientBuilder<impl redrive::RecordProcessor + use<>> {
        let handler = async |calls: Arc<AtomicU32>, record: Record| -> Result<(), redrive::BoxError> {
            let call = calls.fetch_add(1, Relaxed) as usize;
            let payload = String::from_utf8_lossy(record.payload()).into_owned();
            let steps: Vec<&str> = payload
                .split([',', '"'])
                .filter(|step| !step.is_empty())
                .collect();
            match steps[call.min(steps.len() - 1)] {
                "bad" => Err(redrive::Failure::permanent(std::io::Error::other("bad")).into()),
                "fail" => Err("of unknown cause".into()),
                "slow" => {
                    sleep(secs(10)).await;
                    Ok(())
                }
                _ => Ok(()),
            }
        };
        let policy = RetryPolicy::constant(secs(5))
            .jitter(Jitter::None)
            .max_attempts(3);
        Resilient::builder("billing", processor_with(self.calls.clone(), handler))
            .dead_letters(self.letters.clone())
            .retry(policy.max_elapsed(secs(1_000)))
            .idempotency(idempotency)
            .observer(self.clone())
            .seed(3)
    }

    fn resilient(&self) -> Resilient<impl redrive::RecordProcessor + use<>> {
        self.builder(self.settings()).build().expect("valid")
    }

    fn calls(&self) -> u32 {
        self.calls.load(Relaxed)
    }

    fn told(&self, event: &str) -> usize {
        let (event, events) = (known(event), self.events.lock().expect("no panic while locked"));
        events.iter().filter(|name| *name == event).count()
    }

    /// Returns a claim of the record's key by another worker.
    fn other(&self, record: &Record) -> Claim {
        let key = Key::of_place("billing", record);
        let mut claim = Claim::new(key, Owner::new(99), self.now());
        claim.expires = self.now() + secs(60);
        claim.keep_until = self.now() + secs(100_000);
        claim
    }

    async fn claim(&self, claim: &Claim) -> Claimed {
        let answer = self
            .store
            .memory
            .claim(std::slice::from_ref(claim))
            .await
            .remove(0);
        answer.expect("memory answers")
    }
}

fn is(result: Result<Settled, Unsettled>, settled: Settled) -> bool {
    matches!(result, Ok(it) if it == settled)
}

#[tokio::test(start_paused = true)]
async fn a_record_that_was_processed_is_a_duplicate() {
    let scene = Scene::new();
    let record = record(1, "a", "ok");
    assert!(is(scene.resilient().settle(&record).await, Settled::Processed));
    // A new process knows only what the store knows.
    let resilient = scene.resilient();
    assert!(is(resilient.settle(&record).await, Settled::Duplicate));
    assert!(is(resilient.settle(&record).await, Settled::Duplicate));
    assert_eq!(scene.calls(), 1);
    assert_eq!(
        scene.store.calls(),
        ["claim", "complete", "claim"],
        "the last duplicate is found in the cache"
    );
}

#[tokio::test(start_paused = true)]
async fn without_a_cache_the_store_is_asked_each_time() {
    let scene = Scene::new();
    let resilient = scene.builder(scene.settings().cache(0)).build().expect("valid");
    for _ in 0..3 {
        let _ = resilient.settle(&record(1, "a", "ok")).await;
    }
    assert_eq!(scene.store.calls(), ["claim", "complete", "claim", "claim"]);
}

#[tokio::test(start_paused = true)]
async fn payload_key_detects_duplicates_of_the_producer() {
    let scene = Scene::new();
    let resilient = scene
        .builder(scene.settings().json_field("/order/id"))
        .build()
        .expect("valid");
    let order = |number, id: &str| record(number, "a", &format!("{{\"order\":{{\"id\":{id}}}}}"));
    assert!(is(resilient.settle(&order(1, "7")).await, Settled::Processed));
    assert!(is(resilient.settle(&order(2, "7")).await, Settled::Duplicate));
    assert!(is(resilient.settle(&order(3, "\"7\"")).await, Settled::Processed));
    // Records without an id are distinguished by their positions.
    for number in 4..6 {
        assert!(is(
            resilient.settle(&order(number, "null")).await,
            Settled::Processed
        ));
        assert!(is(
            resilient.settle(&order(number, "null")).await,
            Settled::Duplicate
        ));
    }
    assert_eq!(scene.calls(), 4);
    let state = scene.store.state();
    let leaks = |(_, key): &(&str, Key)| key.as_str().contains("order\"") || key.as_str() == "billing#7";
    assert!(
        !state.calls.iter().any(leaks),
        "only hashes of a payload are stored"
    );
}

#[tokio::test(start_paused = true)]
async fn known_key_with_another_payload_is_dead_lettered() {
    let scene = Scene::new();
    let by_key = |record: &Record| record.partition_key().map(str::to_owned);
    let settings = scene.settings().key(by_key).check_payload(true);
    let resilient = scene.builder(settings).build().expect("valid");
    assert!(is(
        resilient.settle(&record(1, "order-7", "ok")).await,
        Settled::Processed
    ));
    assert!(is(
        resilient.settle(&record(2, "order-7", "ok")).await,
        Settled::Duplicate
    ));
    let settled = resilient.settle(&record(3, "order-7", "ok,ok")).await;
    assert!(matches!(settled, Ok(Settled::DeadLettered(_))), "{settled:?}");
    let letters = scene.letters.letters();
    assert_eq!(letters[0].sequence_number, 3.into());
    assert_eq!(letters[0].code.as_deref(), Some("payload_mismatch"));
    assert_eq!(scene.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_dead_lettered_record_is_not_remembered_as_processed() {
    let scene = Scene::new();
    let resilient = scene.resilient();
    let record = record(1, "a", "bad,ok");
    let settled = resilient.settle(&record).await;
    assert!(matches!(settled, Ok(Settled::DeadLettered(_))), "{settled:?}");
    assert!(is(resilient.settle(&record).await, Settled::Processed));
    assert_eq!(scene.calls(), 2);
}

/// The claim keeps another delivery from running the record until the dead letter is confirmed.
#[tokio::test(start_paused = true)]
async fn claim_is_released_once_the_dead_letter_is_confirmed() {
    let scene = Scene::new();
    let sink = ScriptedSink::default();
    sink.on_put(|_, _| Answer::take_late(secs(20)));
    let builder = scene.builder(scene.settings()).dead_letters(sink);
    let resilient = builder.build().expect("valid");
    let record = record(1, "a", "bad");
    let settling = tokio::spawn({
        let record = record.clone();
        async move { resilient.settle(&record).await }
    });
    sleep(secs(15)).await;
    assert!(matches!(
        scene.claim(&scene.other(&record)).await,
        Claimed::InProgress { .. }
    ));
    let settled = settling.await.expect("no panic");
    assert!(matches!(settled, Ok(Settled::DeadLettered(_))), "{settled:?}");
    assert_eq!(scene.claim(&scene.other(&record)).await, GRANTED);
}

#[tokio::test(start_paused = true)]
async fn claim_is_released_during_a_backoff() {
    let scene = Scene::new();
    let resilient = scene.resilient();
    let record = record(1, "a", "fail,ok");
    let settling = tokio::spawn({
        let record = record.clone();
        async move { resilient.settle(&record).await }
    });
    sleep(secs(2)).await;
    let other = scene.other(&record);
    assert_eq!(scene.claim(&other).await, GRANTED);
    sleep(secs(30)).await;
    assert_eq!(scene.calls(), 1, "the other worker has the claim");
    let completed = scene.store.memory.complete(&[other]).await.remove(0);
    assert_eq!(completed.expect("memory answers"), Completion::Stored);
    assert!(is(settling.await.expect("no panic"), Settled::Duplicate));
    assert_eq!(
        (scene.calls(), scene.told("RecordEvent::ClaimedElsewhere") > 0),
        (1, true)
    );
}

#[tokio::test(start_paused = true)]
async fn concurrent_deliveries_run_once() {
    let scene = Scene::new();
    let settle = || {
        let resilient = scene.resilient();
        tokio::spawn(async move { resilient.settle(&record(1, "a", "slow")).await })
    };
    let (first, second) = (settle(), settle());
    let mut ends = [first.await.expect("no panic"), second.await.expect("no panic")];
    ends.sort_by_key(|end| !matches!(end, Ok(Settled::Processed)));
    let [first, second] = ends;
    assert!(is(first, Settled::Processed) && is(second, Settled::Duplicate));
    assert_eq!(scene.calls(), 1);
}

/// A claim can be taken over only 10 s after it has expired, because clocks differ.
#[tokio::test(start_paused = true)]
async fn record_of_a_dead_process_runs_after_its_claim_expires() {
    let scene = Scene::new();
    let record = record(1, "a", "ok");
    let dead = scene.other(&record);
    assert_eq!(scene.claim(&dead).await, GRANTED);
    assert!(is(scene.resilient().settle(&record).await, Settled::Processed));
    let waited = scene.start.elapsed();
    assert!(secs(70) <= waited && waited < secs(71), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn deadline_reports_what_the_record_waited_for() {
    let scene = Scene::new();
    let record = record(1, "a", "ok");
    assert_eq!(scene.claim(&scene.other(&record)).await, GRANTED);
    let by = Instant::now() + secs(20);
    let unsettled = scene.resilient().settle_by(&record, by).await;
    assert!(
        matches!(unsettled, Err(Unsettled::ClaimedElsewhere)),
        "{unsettled:?}"
    );
    scene.store.state().down = true;
    let by = Instant::now() + secs(20);
    let unsettled = scene.resilient().settle_by(&record, by).await;
    assert!(matches!(unsettled, Err(Unsettled::StoreDown)), "{unsettled:?}");
    assert_eq!(scene.calls(), 0);
}

/// The next invocation must not wait for the claim.
#[tokio::test(start_paused = true)]
async fn a_claim_does_not_outlive_its_deadline() {
    let scene = Scene::new();
    let record = record(1, "a", "slow");
    let by = Instant::now() + secs(4);
    let unsettled = scene.resilient().settle_by(&record, by).await;
    assert!(matches!(unsettled, Err(Unsettled::Deadline)), "{unsettled:?}");
    assert_eq!(scene.claim(&scene.other(&record)).await, GRANTED, "released");

    let scene = Scene::new();
    let by = Instant::now() + secs(4);
    let resilient = scene.resilient();
    {
        let settling = resilient.settle_by(&record, by);
        let dropped = tokio::time::timeout(secs(1), settling).await;
        assert!(dropped.is_err());
    }
    let Claimed::InProgress { expires, .. } = scene.claim(&scene.other(&record)).await else {
        panic!("the claim remains after the drop");
    };
    assert!(
        expires <= scene.now() + secs(3),
        "the claim expires at the deadline"
    );
}

#[tokio::test(start_paused = true)]
async fn records_wait_while_the_store_is_down() {
    let scene = Scene::new();
    scene.store.state().down = true;
    let budget = RetryBudget::builder()
        .share_of_successes(0.2)
        .per_second(1.0)
        .build()
        .expect("valid");
    let builder = scene.builder(scene.settings()).retry_budget(budget);
    let resilient = builder.build().expect("valid");
    let batch = Batch::from(
        (0..50)
            .map(|number| record(number, &number.to_string(), "ok"))
            .collect::<Vec<_>>(),
    );
    let running = tokio::spawn(async move {
        let batches = futures_util::stream::iter([batch]);
        Pipeline::default().run(&resilient, batches).await
    });
    sleep(secs(600)).await;
    assert_eq!(scene.calls(), 0);
    let asked = scene.store.calls().len();
    // Each round claims for as many records as may run concurrently. In the end a round starts every 10 s.
    assert!(asked < 50 * 75, "{asked}");
    assert!(scene.told("ProtectionEvent::IdempotencyDelayed") < 100);
    scene.store.state().down = false;
    let finished = running.await.expect("no panic").expect("nothing halted");
    assert!(finished.complete);
    assert_eq!((scene.calls(), scene.letters.letters().len()), (50, 0));
    assert_eq!(
        scene.told("RecordEvent::RetryDelayed") + scene.told("RecordEvent::AttemptFailed"),
        0,
        "waiting for the store is no attempt"
    );
}

#[tokio::test(start_paused = true)]
async fn claim_with_a_lost_answer_is_granted_again() {
    let scene = Scene::new();
    scene.store.state().loses_answers = 1;
    assert!(is(
        scene.resilient().settle(&record(1, "a", "ok")).await,
        Settled::Processed
    ));
    assert!(
        scene.start.elapsed() < secs(5),
        "the record does not wait for its own claim"
    );

    // A claim that could not be released is also granted again.
    let scene = Scene::new();
    scene.store.state().fails_next = Some("release");
    let settled = scene.resilient().settle(&record(1, "a", "fail,ok")).await;
    assert!(is(settled, Settled::Processed));
    assert_eq!(scene.store.calls(), ["claim", "release", "claim", "complete"]);
    assert!(
        scene.start.elapsed() < secs(10),
        "the record does not wait for its own claim"
    );
}

#[tokio::test(start_paused = true)]
async fn failed_completion_is_retried_without_the_handler() {
    let scene = Scene::new();
    scene.store.state().completions_fail = true;
    let resilient = scene.resilient();
    let settling = tokio::spawn(async move { resilient.settle(&record(1, "a", "ok")).await });
    sleep(secs(300)).await;
    assert!(!settling.is_finished());
    scene.store.state().completions_fail = false;
    assert!(is(settling.await.expect("no panic"), Settled::Processed));
    assert_eq!((scene.calls(), scene.told("RecordEvent::CompletionLost")), (1, 0));
    assert!(is(
        scene.resilient().settle(&record(1, "a", "ok")).await,
        Settled::Duplicate
    ));
}

#[tokio::test(start_paused = true)]
async fn completion_lost_at_the_deadline_is_reported() {
    let scene = Scene::new();
    scene.store.state().completions_fail = true;
    let by = Instant::now() + secs(20);
    let settled = scene.resilient().settle_by(&record(1, "a", "ok"), by).await;
    assert!(is(settled, Settled::Processed));
    assert_eq!((scene.calls(), scene.told("RecordEvent::CompletionLost")), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_does_not_wait_for_a_completion() {
    let scene = Scene::new();
    scene.store.state().completions_fail = true;
    let (resilient, shutdown) = (scene.resilient(), sleep(secs(60)));
    let batches = futures_util::stream::iter([Batch::from(vec![record(1, "a", "ok")])]);
    let from = redrive::checkpoint::Checkpoint::at(redrive::Position::TrimHorizon);
    let pipeline = Pipeline::default();
    let running = pipeline.run_until(&resilient, batches, from, |_| async {}, shutdown);
    let finished = running.await.expect("nothing halted");
    assert_eq!(finished.unsettled, 0, "the record is processed");
    assert_eq!(scene.told("RecordEvent::CompletionLost"), 1);
    assert!(scene.start.elapsed() < secs(62));
}

/// Another worker has taken over the key of a slow handler. The late completion does not overwrite its claim.
#[tokio::test(start_paused = true)]
async fn completion_of_an_expired_claim_is_lost() {
    let scene = Scene::new();
    let record = record(1, "a", "slow");
    let skewed = scene.clone();
    let ahead = Idempotency::new(scene.store.clone()).clock(move || skewed.now() - secs(3_600));
    let slow = scene.builder(ahead).build().expect("valid");
    let settling = tokio::spawn({
        let record = record.clone();
        async move { slow.settle(&record).await }
    });
    sleep(secs(5)).await;
    // The claim has expired long ago by the clock of every other worker.
    let other = scene.other(&record);
    let granted = scene.claim(&other).await;
    assert_eq!(granted, Claimed::Granted { abandoned: 1 });
    assert!(is(settling.await.expect("no panic"), Settled::Processed));
    assert_eq!(scene.told("RecordEvent::CompletionLost"), 1);
    let completed = scene.store.memory.complete(&[other]).await.remove(0);
    assert_eq!(completed.expect("memory answers"), Completion::Stored);
}

#[tokio::test(start_paused = true)]
async fn hanging_or_panicking_store_counts_as_down() {
    #[derive(Debug, Clone, Copy)]
    enum Broken {
        Hangs,
        Panics,
        SaysNothing,
    }

    #[async_trait]
    impl IdempotencyStore for Broken {
        async fn claim(&self, _: &[Claim]) -> Vec<Result<Claimed, StoreError>> {
            match self {
                Broken::Hangs => std::future::pending().await,
                Broken::Panics => panic!("the store's own fault"),
                Broken::SaysNothing => Vec::new(),
            }
        }
        async fn complete(&self, _: &[Claim]) -> Vec<Result<Completion, StoreError>> {
            Vec::new()
        }
        async fn release(&self, _: &[Claim]) -> Vec<Result<(), StoreError>> {
            Vec::new()
        }
        async fn status(&self, _: &[Key], _: SystemTime) -> Vec<Result<Option<Status>, StoreError>> {
            Vec::new()
        }
    }

    for broken in [Broken::Hangs, Broken::Panics, Broken::SaysNothing] {
        let scene = Scene::new();
        let resilient = scene.builder(Idempotency::new(broken)).build().expect("valid");
        let by = Instant::now() + secs(60);
        let unsettled = resilient.settle_by(&record(1, "a", "ok"), by).await;
        assert!(
            matches!(unsettled, Err(Unsettled::StoreDown)),
            "{broken:?}: {unsettled:?}"
        );
        assert_eq!(scene.calls(), 0);
        assert!(scene.told("ProtectionEvent::IdempotencyDelayed") > 0);
    }
}

#[tokio::test(start_paused = true)]
async fn keep_for_of_zero_is_refused() {
    let scene = Scene::new();
    let error = scene
        .builder(scene.settings().keep_for(Duration::ZERO))
        .build()
        .err();
    assert!(error.expect("refused").to_string().contains("keep_for"));
}

/// The 64 records that may run concurrently claim and complete their keys at the same time.
#[tokio::test(start_paused = true)]
async fn store_calls_of_500_records_run_concurrently() {
    let scene = Scene::new();
    let trip = secs(1);
    scene.store.state().takes = trip;
    let resilient = scene.resilient();
    let records: Vec<Record> = (0..500)
        .map(|number| record(number, &number.to_string(), "ok"))
        .collect();
    let run = async || {
        let began = Instant::now();
        let batches = futures_util::stream::iter([Batch::from(records.clone())]);
        let finished = Pipeline::default().run(&resilient, batches).await;
        assert!(finished.expect("nothing halted").complete);
        began.elapsed().as_secs_f64() / trip.as_secs_f64()
    };
    let (first, again) = (run().await, run().await);
    println!("500 records: {first:.1} sequential round trips; redelivered: {again:.1}");
    assert_eq!(scene.calls(), 500);
    // Two round trips for each group of 64 records: 2 × ⌈500 / 64⌉.
    assert!(first < 16.5 && again < 0.5, "{first} {again}");
}

/// The record waits until an operator repairs the entry. No other record waits.
#[tokio::test(start_paused = true)]
async fn corrupt_key_delays_only_its_own_record() {
    let scene = Scene::new();
    let bad = record(0, "bad", "ok");
    scene.store.state().corrupt = Some(Key::of_place("billing", &bad));
    let others = (1..1_000).map(|number| record(number, &number.to_string(), "ok"));
    let records: Vec<Record> = [bad].into_iter().chain(others).collect();
    let resilient = scene.resilient();
    let running = tokio::spawn(async move {
        let batches = futures_util::stream::iter([Batch::from(records)]);
        Pipeline::default().run(&resilient, batches).await
    });
    sleep(Duration::from_millis(20)).await;
    assert_eq!(scene.calls(), 999, "the others did not wait");
    sleep(secs(600)).await;
    assert_eq!(scene.calls(), 999);
    assert!((10..200).contains(&scene.told("ProtectionEvent::IdempotencyDelayed")));
    scene.store.state().corrupt = None;
    let finished = running.await.expect("no panic").expect("nothing halted");
    assert!(finished.complete);
    assert_eq!(scene.calls(), 1_000);
}

#[tokio::test(start_paused = true)]
async fn confirmed_dead_letter_settles_though_the_release_hangs() {
    let scene = Scene::new();
    scene.store.state().release_hangs = true;
    let by = Instant::now() + secs(3);
    let settled = scene.resilient().settle_by(&record(1, "a", "bad"), by).await;
    assert!(matches!(settled, Ok(Settled::DeadLettered(_))), "{settled:?}");
    assert!(Instant::now() <= by + Duration::from_millis(1));
}
