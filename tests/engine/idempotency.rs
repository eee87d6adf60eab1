//! What the engine does with a record's key: claimed before an attempt, completed after a success, given back
//! otherwise. Time is paused throughout.

use std::borrow::Cow;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use redrive::dead_letter;
use redrive::idempotency::{Claim, Claimed, Completion, IdempotencyStore, Key, Memory, Owner, StoreError};
use redrive::observer::{Event, Observer};
use redrive::pipeline::{Batch, Pipeline};
use redrive::{
    Idempotency, Jitter, Record, Resilient, ResilientBuilder, RetryBudget, RetryPolicy, Settled, Unsettled,
    processor_with,
};
use support::script::record;
use support::sink::{Answer, ScriptedSink};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// A store that can be down, and lose answers; and what was asked of it.
#[derive(Debug, Clone, Default)]
struct Store {
    memory: Memory,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    down: bool,
    /// How long a call takes.
    takes: Duration,
    completions_fail: bool,
    release_hangs: bool,
    /// What is stored under this key cannot be read.
    corrupt: Option<Key>,
    loses_answers: u32,
    /// The next call of this name does not arrive.
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

    /// What stands in the way of a call, if anything does before or after it.
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

    async fn status(&self, keys: &[Key], now: SystemTime) -> Vec<Result<Option<Claimed>, StoreError>> {
        self.memory.status(keys, now).await
    }

    fn name(&self) -> Cow<'_, str> {
        "faulty".into()
    }
}

/// What a test sees: its store, its letters, what was told, the handler's calls.
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
        let name = format!("{event:?}");
        let name = name.split([' ', '{']).next().unwrap_or_default().to_owned();
        self.events.lock().expect("no panic while locked").push(name);
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

    /// The payload says what the handler does, one step for each call, of which the last repeats: `ok`, `bad`,
    /// `fail`, `slow` (takes 10 s).
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
        let events = self.events.lock().expect("no panic while locked");
        events.iter().filter(|name| *name == event).count()
    }

    /// Somebody else's claim of a record's key.
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
    // Another process: what it knows, it knows of the store.
    let resilient = scene.resilient();
    assert!(is(resilient.settle(&record).await, Settled::Duplicate));
    assert!(is(resilient.settle(&record).await, Settled::Duplicate));
    assert_eq!(scene.calls(), 1);
    assert_eq!(
        scene.store.calls(),
        ["claim", "complete", "claim"],
        "then it is in the cache"
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
async fn a_key_of_the_payload_catches_what_a_producer_has_put_twice() {
    let scene = Scene::new();
    let resilient = scene
        .builder(scene.settings().json_field("/order/id"))
        .build()
        .expect("valid");
    let order = |number, id: &str| record(number, "a", &format!("{{\"order\":{{\"id\":{id}}}}}"));
    assert!(is(resilient.settle(&order(1, "7")).await, Settled::Processed));
    assert!(is(resilient.settle(&order(2, "7")).await, Settled::Duplicate));
    assert!(is(resilient.settle(&order(3, "\"7\"")).await, Settled::Processed));
    // Told apart by their places.
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
        "of a payload only hashes are stored"
    );
}

#[tokio::test(start_paused = true)]
async fn a_known_key_with_another_payload_fails_for_good() {
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

/// Until then another delivery must not run it.
#[tokio::test(start_paused = true)]
async fn a_claim_is_given_back_once_the_letter_is_confirmed() {
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
async fn a_claim_is_not_held_through_a_backoff() {
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
    assert_eq!(scene.calls(), 1, "the other is at it");
    let completed = scene.store.memory.complete(&[other]).await.remove(0);
    assert_eq!(completed.expect("memory answers"), Completion::Stored);
    assert!(is(settling.await.expect("no panic"), Settled::Duplicate));
    assert_eq!((scene.calls(), scene.told("ClaimedElsewhere") > 0), (1, true));
}

#[tokio::test(start_paused = true)]
async fn of_two_deliveries_at_once_one_runs_and_the_other_waits_for_it() {
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

/// Its claim is another's only 10 s after it has expired, as clocks differ.
#[tokio::test(start_paused = true)]
async fn a_record_whose_process_died_is_processed_once_its_claim_has_expired() {
    let scene = Scene::new();
    let record = record(1, "a", "ok");
    let dead = scene.other(&record);
    assert_eq!(scene.claim(&dead).await, GRANTED);
    assert!(is(scene.resilient().settle(&record).await, Settled::Processed));
    let waited = scene.start.elapsed();
    assert!(secs(70) <= waited && waited < secs(71), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn a_deadline_says_what_was_waited_for() {
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

/// The next invocation must not have to wait for it.
#[tokio::test(start_paused = true)]
async fn a_claim_does_not_outlive_its_deadline() {
    let scene = Scene::new();
    let record = record(1, "a", "slow");
    let by = Instant::now() + secs(4);
    let unsettled = scene.resilient().settle_by(&record, by).await;
    assert!(matches!(unsettled, Err(Unsettled::Deadline)), "{unsettled:?}");
    assert_eq!(scene.claim(&scene.other(&record)).await, GRANTED, "given back");

    let scene = Scene::new();
    let by = Instant::now() + secs(4);
    let resilient = scene.resilient();
    {
        let settling = resilient.settle_by(&record, by);
        let dropped = tokio::time::timeout(secs(1), settling).await;
        assert!(dropped.is_err());
    }
    let Claimed::InProgress { expires, .. } = scene.claim(&scene.other(&record)).await else {
        panic!("it was dropped with its claim");
    };
    assert!(expires <= scene.now() + secs(3), "as long as its deadline");
}

#[tokio::test(start_paused = true)]
async fn while_the_store_is_down_records_wait_and_nothing_runs_unguarded() {
    let scene = Scene::new();
    scene.store.state().down = true;
    let budget = RetryBudget::new(0.2, 1.0).expect("valid");
    let builder = scene.builder(scene.settings()).retry_budget(budget);
    let resilient = builder.build().expect("valid");
    let batch = Batch::from(
        (0..50)
            .map(|number| record(number, &number.to_string(), "ok"))
            .collect::<Vec<_>>(),
    );
    let running = tokio::spawn(async move {
        let batches = futures_util::stream::iter([batch]);
        Pipeline::new().run(&resilient, batches).await
    });
    sleep(secs(600)).await;
    assert_eq!(scene.calls(), 0);
    let asked = scene.store.calls().len();
    // A round asks with as many as may run beside each other, and rounds come every 10 s at the end.
    assert!(asked < 50 * 75, "{asked}");
    assert!(scene.told("IdempotencyDelayed") < 100);
    scene.store.state().down = false;
    let finished = running.await.expect("no panic").expect("nothing halted");
    assert!(finished.complete);
    assert_eq!((scene.calls(), scene.letters.letters().len()), (50, 0));
    assert_eq!(
        scene.told("RetryDelayed") + scene.told("AttemptFailed"),
        0,
        "it is no attempt"
    );
}

#[tokio::test(start_paused = true)]
async fn a_claim_whose_answer_was_lost_is_its_own_the_next_time() {
    let scene = Scene::new();
    scene.store.state().loses_answers = 1;
    assert!(is(
        scene.resilient().settle(&record(1, "a", "ok")).await,
        Settled::Processed
    ));
    assert!(scene.start.elapsed() < secs(5), "it does not wait for itself");

    // The same of one that could not be given back.
    let scene = Scene::new();
    scene.store.state().fails_next = Some("release");
    let settled = scene.resilient().settle(&record(1, "a", "fail,ok")).await;
    assert!(is(settled, Settled::Processed));
    assert_eq!(scene.store.calls(), ["claim", "release", "claim", "complete"]);
    assert!(scene.start.elapsed() < secs(10), "it does not wait for itself");
}

#[tokio::test(start_paused = true)]
async fn a_completion_that_fails_is_repeated_and_the_handler_is_not() {
    let scene = Scene::new();
    scene.store.state().completions_fail = true;
    let resilient = scene.resilient();
    let settling = tokio::spawn(async move { resilient.settle(&record(1, "a", "ok")).await });
    sleep(secs(300)).await;
    assert!(!settling.is_finished());
    scene.store.state().completions_fail = false;
    assert!(is(settling.await.expect("no panic"), Settled::Processed));
    assert_eq!((scene.calls(), scene.told("CompletionLost")), (1, 0));
    assert!(is(
        scene.resilient().settle(&record(1, "a", "ok")).await,
        Settled::Duplicate
    ));
}

#[tokio::test(start_paused = true)]
async fn at_the_deadline_a_completion_is_lost_and_told() {
    let scene = Scene::new();
    scene.store.state().completions_fail = true;
    let by = Instant::now() + secs(20);
    let settled = scene.resilient().settle_by(&record(1, "a", "ok"), by).await;
    assert!(is(settled, Settled::Processed));
    assert_eq!((scene.calls(), scene.told("CompletionLost")), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_does_not_wait_for_a_completion() {
    let scene = Scene::new();
    scene.store.state().completions_fail = true;
    let (resilient, shutdown) = (scene.resilient(), CancellationToken::new());
    let stop = shutdown.clone();
    let running = tokio::spawn(async move {
        let batches = futures_util::stream::iter([Batch::from(vec![record(1, "a", "ok")])]);
        let from = redrive::checkpoint::Checkpoint::at(redrive::Position::TrimHorizon);
        let progress = redrive::pipeline::Progress::new();
        let pipeline = Pipeline::new();
        pipeline
            .run_from(&resilient, batches, from, &progress, &stop)
            .await
    });
    sleep(secs(60)).await;
    shutdown.cancel();
    let finished = running.await.expect("no panic").expect("nothing halted");
    assert_eq!(finished.unsettled, 0, "its work is done");
    assert_eq!(scene.told("CompletionLost"), 1);
    assert!(scene.start.elapsed() < secs(62));
}

/// A handler that takes so long that another has taken its key: what that one does is not overwritten.
#[tokio::test(start_paused = true)]
async fn whoever_is_too_slow_loses_its_completion() {
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
    // By the clock of all others its claim has expired long ago.
    let other = scene.other(&record);
    let granted = scene.claim(&other).await;
    assert_eq!(granted, Claimed::Granted { abandoned: 1 });
    assert!(is(settling.await.expect("no panic"), Settled::Processed));
    assert_eq!(scene.told("CompletionLost"), 1);
    let completed = scene.store.memory.complete(&[other]).await.remove(0);
    assert_eq!(completed.expect("memory answers"), Completion::Stored);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_or_panics_is_one_that_is_down() {
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
        async fn status(&self, _: &[Key], _: SystemTime) -> Vec<Result<Option<Claimed>, StoreError>> {
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
        assert!(scene.told("IdempotencyDelayed") > 0);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_kept_for_no_time_is_refused() {
    let scene = Scene::new();
    let error = scene
        .builder(scene.settings().keep_for(Duration::ZERO))
        .build()
        .err();
    assert!(error.expect("refused").to_string().contains("keep_for"));
}

/// As many as may run beside each other, 64, claim and complete at once.
#[tokio::test(start_paused = true)]
async fn a_batch_of_500_records_takes_few_round_trips_one_after_the_other() {
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
        let finished = Pipeline::new().run(&resilient, batches).await;
        assert!(finished.expect("nothing halted").complete);
        began.elapsed().as_secs_f64() / trip.as_secs_f64()
    };
    let (first, again) = (run().await, run().await);
    println!("500 records: {first:.1} round trips after each other; delivered again: {again:.1}");
    assert_eq!(scene.calls(), 500);
    // Two for each of 64: ⌈500 / 64⌉ times.
    assert!(first < 16.5 && again < 0.5, "{first} {again}");
}

/// It waits for somebody to mend it, and nobody waits with it.
#[tokio::test(start_paused = true)]
async fn a_key_that_cannot_be_read_holds_up_its_own_record_alone() {
    let scene = Scene::new();
    let bad = record(0, "bad", "ok");
    scene.store.state().corrupt = Some(Key::of_place("billing", &bad));
    let others = (1..1_000).map(|number| record(number, &number.to_string(), "ok"));
    let records: Vec<Record> = [bad].into_iter().chain(others).collect();
    let resilient = scene.resilient();
    let running = tokio::spawn(async move {
        let batches = futures_util::stream::iter([Batch::from(records)]);
        Pipeline::new().run(&resilient, batches).await
    });
    sleep(Duration::from_millis(20)).await;
    assert_eq!(scene.calls(), 999, "the others did not wait");
    sleep(secs(600)).await;
    assert_eq!(scene.calls(), 999);
    assert!((10..200).contains(&scene.told("IdempotencyDelayed")));
    scene.store.state().corrupt = None;
    let finished = running.await.expect("no panic").expect("nothing halted");
    assert!(finished.complete);
    assert_eq!(scene.calls(), 1_000);
}

#[tokio::test(start_paused = true)]
async fn a_confirmed_letter_is_one_though_its_key_cannot_be_given_back_in_time() {
    let scene = Scene::new();
    scene.store.state().release_hangs = true;
    let by = Instant::now() + secs(3);
    let settled = scene.resilient().settle_by(&record(1, "a", "bad"), by).await;
    assert!(matches!(settled, Ok(Settled::DeadLettered(_))), "{settled:?}");
    assert!(Instant::now() <= by + Duration::from_millis(1));
}
