//! Simulation of twenty processes that share an idempotency store and get the same records.
//!
//! Their clocks differ, their calls to the store fail in every way, and they crash at any moment. A completed
//! key is never processed again, and no two processes work on one key at the same time.
//!
//! Time is paused, and all randomness comes from a seed.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use redrive::idempotency::{
    CLOCK_SKEW, Claim, Claimed, Completion, IdempotencyStore, Key, Memory, Status, StoreError,
};
use redrive::processor::Attempt;
use redrive::{BoxError, Idempotency, Record, RecordProcessor, Resilient, RetryPolicy, Settled, dead_letter};
use support::script::record;
use tokio::time::{Instant, sleep, timeout};

const OWNERS: u64 = 20;
const KEYS: u64 = 60;
/// The timeout of an attempt.
const ATTEMPT: Duration = Duration::from_secs(20);
/// The maximum delay of a late call to the store, or of its repetition.
const LATE: Duration = Duration::from_secs(4);
/// The maximum time that a call takes.
const LATENCY: Duration = Duration::from_secs(3);
/// The deviation of each clock, ahead or behind.
const OFF: Duration = Duration::from_secs(5);
/// The maximum time for which a process cannot reach the store.
const CUT: Duration = Duration::from_secs(90);
/// The time after which no more faults happen.
const CALM: Duration = Duration::from_secs(600);

/// The simulated world: its store, its faults and the ground truth.
#[derive(Clone)]
struct World {
    start: Instant,
    memory: Memory,
    /// The time until which this process cannot reach the store.
    cut: Arc<Mutex<Instant>>,
    state: Arc<Mutex<State>>,
}

struct State {
    rng: SmallRng,
    /// The process that works on each key.
    running: HashMap<Key, u64>,
    /// The keys that the store has confirmed as completed.
    completed: HashSet<Key>,
    violations: Vec<String>,
    calls: u64,
    crashes: u64,
    lost: u64,
    late: u64,
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("World")
    }
}

impl World {
    fn new(seed: u64) -> Self {
        World {
            start: Instant::now(),
            memory: Memory::new(),
            cut: Arc::new(Mutex::new(Instant::now())),
            state: Arc::new(Mutex::new(State {
                rng: SmallRng::seed_from_u64(seed),
                running: HashMap::new(),
                completed: HashSet::new(),
                violations: Vec::new(),
                calls: 0,
                crashes: 0,
                lost: 0,
                late: 0,
            })),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while locked")
    }

    fn draw(&self, most: Duration) -> Duration {
        let millis = self.state().rng.random_range(0..=most.as_millis() as u64);
        Duration::from_millis(millis)
    }

    fn strikes(&self, share: f64) -> bool {
        self.start.elapsed() < CALM && self.state().rng.random_bool(share)
    }

    /// Returns whether the call arrives. It may also arrive late, when no caller waits any more, or twice.
    async fn arrives(&self, call: Call, claims: &[Claim]) -> bool {
        sleep(self.draw(LATENCY)).await;
        if self.strikes(0.02) {
            *self.cut.lock().expect("no panic while locked") = Instant::now() + self.draw(CUT);
        }
        let cut = *self.cut.lock().expect("no panic while locked") > Instant::now();
        let lost = cut || self.strikes(0.1);
        self.state().lost += u64::from(lost);
        let late = !lost && self.strikes(0.15);
        if late {
            self.state().late += 1;
            let (world, claims, after) = (self.clone(), claims.to_vec(), self.draw(LATE));
            // The late call arrives even if its process has crashed.
            tokio::spawn(async move {
                sleep(after).await;
                match call {
                    Call::Claim => drop(world.memory.claim(&claims).await),
                    Call::Complete => drop(world.completes(&claims).await),
                    Call::Release => drop(world.memory.release(&claims).await),
                }
            });
        }
        !(lost || late && self.strikes(0.5))
    }

    /// Returns the answers, or loses them.
    fn answered<T>(&self, answers: Vec<Result<T, StoreError>>) -> Vec<Result<T, StoreError>> {
        match self.strikes(0.1) {
            true => {
                self.state().lost += 1;
                unanswered(answers.len())
            }
            false => answers,
        }
    }

    async fn completes(&self, claims: &[Claim]) -> Vec<Result<Completion, StoreError>> {
        let answers = self.memory.complete(claims).await;
        let mut state = self.state();
        for (claim, answer) in claims.iter().zip(&answers) {
            if matches!(answer, Ok(Completion::Stored)) {
                if state.running.contains_key(&claim.key) {
                    let what = format!("{} is completed while another process works on it", claim.key);
                    state.violations.push(what);
                }
                state.completed.insert(claim.key.clone());
            }
        }
        answers
    }
}

#[derive(Clone, Copy)]
enum Call {
    Claim,
    Complete,
    Release,
}

fn unanswered<T>(count: usize) -> Vec<Result<T, StoreError>> {
    (0..count).map(|_| Err(StoreError::unavailable("lost"))).collect()
}

#[async_trait]
impl IdempotencyStore for World {
    async fn claim(&self, claims: &[Claim]) -> Vec<Result<Claimed, StoreError>> {
        match self.arrives(Call::Claim, claims).await {
            true => self.answered(self.memory.claim(claims).await),
            false => unanswered(claims.len()),
        }
    }

    async fn complete(&self, claims: &[Claim]) -> Vec<Result<Completion, StoreError>> {
        match self.arrives(Call::Complete, claims).await {
            true => self.answered(self.completes(claims).await),
            false => unanswered(claims.len()),
        }
    }

    async fn release(&self, claims: &[Claim]) -> Vec<Result<(), StoreError>> {
        match self.arrives(Call::Release, claims).await {
            true => self.answered(self.memory.release(claims).await),
            false => unanswered(claims.len()),
        }
    }

    async fn status(&self, keys: &[Key], now: SystemTime) -> Vec<Result<Option<Status>, StoreError>> {
        self.memory.status(keys, now).await
    }
}

/// The handler of a process.
struct Handler {
    world: World,
    owner: u64,
}

/// A guard that marks a key as running until it is dropped.
struct AtIt {
    world: World,
    key: Key,
}

impl Drop for AtIt {
    fn drop(&mut self) {
        self.world.state().running.remove(&self.key);
    }
}

impl RecordProcessor for Handler {
    type Error = BoxError;

    async fn process(&self, record: &Record, _: &Attempt<'_>) -> Result<(), BoxError> {
        let key = Key::of_place("billing", record);
        {
            let mut state = self.world.state();
            state.calls += 1;
            if state.completed.contains(&key) {
                let what = format!("{key} is processed again by {}", self.owner);
                state.violations.push(what);
            }
            if let Some(other) = state.running.insert(key.clone(), self.owner) {
                let what = format!("{other} and {} work on {key} at the same time", self.owner);
                state.violations.push(what);
            }
        }
        let world = self.world.clone();
        let _at_it = AtIt { world, key };
        let most = if self.world.strikes(0.2) {
            2 * ATTEMPT
        } else {
            ATTEMPT / 4
        };
        sleep(self.world.draw(most)).await;
        if self.world.strikes(0.3) {
            return Err("of unknown cause".into());
        }
        Ok(())
    }
}

/// Runs a process that settles every record, crashes now and then, and restarts.
async fn process(world: World, owner: u64) {
    let world = World {
        cut: Arc::new(Mutex::new(Instant::now())),
        ..world
    };
    loop {
        let (clock, seed) = (world.clone(), world.state().rng.random());
        let now = move || {
            let epoch = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
            let time = epoch + clock.start.elapsed();
            if owner.is_multiple_of(2) {
                time - OFF
            } else {
                time + OFF
            }
        };
        let handler = Handler {
            world: world.clone(),
            owner,
        };
        // No record becomes a dead letter: every failure is retried.
        let resilient = Resilient::builder("billing", handler)
            .dead_letters(dead_letter::Memory::new())
            .retry(
                RetryPolicy::exponential()
                    .attempt_timeout(ATTEMPT)
                    .max_attempts(1_000)
                    .max_elapsed(Duration::from_secs(100_000)),
            )
            .without_breaker()
            .idempotency(Idempotency::new(world.clone()).clock(now))
            .seed(seed)
            .build()
            .expect("valid");
        let life = match world.start.elapsed() < CALM {
            true => world.draw(Duration::from_secs(120)),
            false => Duration::from_secs(1_000_000),
        };
        let all = async {
            let first = world.state().rng.random_range(0..KEYS);
            for key in (first..KEYS).chain(0..first) {
                let settled = resilient.settle(&record(key, "a", "")).await;
                assert!(
                    matches!(settled, Ok(Settled::Processed | Settled::Duplicate)),
                    "{settled:?}"
                );
            }
        };
        if timeout(life, all).await.is_ok() && world.start.elapsed() >= CALM {
            return;
        }
        world.state().crashes += 1;
        sleep(world.draw(Duration::from_secs(30))).await;
    }
}

#[test]
fn keys_run_one_at_a_time_and_never_after_completion() {
    let (mut crashes, mut lost, mut late, mut calls) = (0, 0, 0, 0);
    for seed in 0..100 {
        let clock = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build();
        let world = clock.expect("a runtime").block_on(async {
            let world = World::new(seed);
            let processes: Vec<_> = (0..OWNERS)
                .map(|owner| tokio::spawn(process(world.clone(), owner)))
                .collect();
            for process in processes {
                process.await.expect("no panic");
            }
            // The last crash leaves a claim that expires. The other processes then continue.
            let most = ATTEMPT + Duration::from_secs(10) + CLOCK_SKEW + Duration::from_secs(120);
            let over = world.start.elapsed();
            assert!(
                over < CALM + KEYS as u32 * most,
                "seed {seed}: a claim is stuck: {over:?}"
            );
            world
        });
        let state = world.state();
        assert!(state.violations.is_empty(), "seed {seed}: {:?}", state.violations);
        assert_eq!(state.completed.len() as u64, KEYS, "seed {seed}");
        crashes += state.crashes;
        lost += state.lost;
        late += state.late;
        calls += state.calls;
    }
    println!("{calls} calls of the handler, {crashes} crashes, {lost} calls lost, {late} late");
    assert!(
        crashes > 1_000 && lost > 1_000 && late > 1_000,
        "the simulation has too few faults"
    );
}
