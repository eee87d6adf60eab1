//! Idempotency: a record's key is claimed before each attempt, completed after one that succeeds, and given back
//! after any other.

use std::future::Future;
use std::num::NonZeroUsize;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use lru::LruCache;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::time::{Instant, sleep};

use super::attempt::Term;
use crate::external::answer;
use crate::external::caught;
use crate::external::failed_alike;
#[cfg(feature = "lambda")]
use crate::external::is_passing;
use crate::idempotency::{
    CLOCK_SKEW, Claim, Claimed, Completion, Idempotency, IdempotencyStore, Key, Owner, PayloadHash,
    StoreError,
};
use crate::observer::{Event, Interest, Observers};
use crate::protection::{Backoff, Jitter};
use crate::record::Record;

/// The keys of one processor's records.
#[derive(Debug)]
pub(super) struct Claims {
    settings: Idempotency,
    observers: Observers,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// What is completed, and until when it is known to be.
    completed: Option<LruCache<Key, (SystemTime, Option<PayloadHash>)>>,
    /// Calls in a row that the store did not answer, and when it is asked again.
    failures: u32,
    not_before: Option<Instant>,
    rng: SmallRng,
}

/// Why a record may not be tried.
pub(super) enum ClaimRefused {
    /// It was processed before.
    Completed,
    /// Its key was, with another payload.
    Mismatch,
    /// Too many processes died while they processed it.
    Crashes,
    /// Not now.
    Wait(WaitsFor, Duration),
}

impl ClaimRefused {
    /// How long one waits whom the store did not answer.
    pub(super) fn of_store(turn: &Result<(), ClaimRefused>) -> Option<Duration> {
        match turn {
            Err(ClaimRefused::Wait(WaitsFor::Store, delay)) => Some(*delay),
            _ => None,
        }
    }
}

/// What a record waits for that may not be tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WaitsFor {
    /// Another delivery of it is being processed.
    Claim,
    /// The store does not answer.
    Store,
}

/// After this many processes died while they processed a record, the record becomes a dead letter. Only in Lambda, where the
/// last three of them processed nothing else.
const CRASHES: u32 = 5;
/// A call that takes so long has failed.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// So many keys are claimed within that time, however the store does it.
pub(super) const AT_ONCE: NonZeroUsize = NonZeroUsize::new(256).expect("more than none");
/// How much longer than its attempt a claim lives: the call that makes it and the one that completes it have their time.
const MARGIN: Duration = Duration::from_secs(10);
/// Between calls to a store that does not answer.
const BACKOFF: Backoff = Backoff::exponential();
/// Between calls that only complete what is done: whoever shuts down waits for no more than one of them.
const COMPLETING: Backoff = Backoff::exponential().cap(Duration::from_secs(1));
/// Between looks at a claim of somebody else.
const CLAIM_POLL_BACKOFF: Backoff = Backoff::exponential().cap(Duration::from_secs(5));
/// What the store said is remembered for so long, as it does not say how long it remembers.
const COMPLETED_TTL: Duration = Duration::from_secs(60 * 60);

impl Claims {
    pub(super) fn new(settings: Idempotency, observers: Observers, seed: u64) -> Self {
        let completed = NonZeroUsize::new(settings.cache).map(LruCache::new);
        Claims {
            settings,
            observers,
            state: Mutex::new(State {
                completed,
                failures: 0,
                not_before: None,
                rng: SmallRng::seed_from_u64(seed),
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The claim that a record begins with.
    pub(super) fn of(&self, application: &str, record: &Record) -> Claim {
        let key = self.settings.key_of(application, record, &self.observers);
        let mut claim = Claim::new(key, new_owner(), self.settings.now());
        claim.payload = self.settings.payload_of(record);
        claim
    }

    #[cfg(feature = "kinesis")]
    pub(super) fn store(&self) -> &std::sync::Arc<dyn IdempotencyStore> {
        &self.settings.store
    }

    /// Asks the store what is known of these records, and remembers which were processed. If it does not answer, each
    /// record's claim asks again.
    ///
    /// Returns how many processes died while they processed the same record, the largest number of all records; `None` if the
    /// store does not answer for each.
    #[cfg(feature = "lambda")]
    pub(super) async fn recall(
        &self,
        application: &str,
        records: &[Record],
    ) -> Result<Option<u32>, StoreError> {
        if self.state().rest().is_some() {
            return Ok(None);
        }
        let keys = records
            .iter()
            .map(|record| self.settings.key_of(application, record, &self.observers));
        let keys: Vec<Key> = keys.filter(|key| self.known(key).is_none()).collect();
        let now = self.settings.now();
        let asked = self.settings.store.status(&keys, now);
        let Ok(answers) = answer("the store", CALL_TIMEOUT, asked).await else {
            return Ok(None);
        };
        let mut crashes = Some(0);
        for (key, answer) in keys.iter().zip(answers) {
            match answer {
                Ok(Some(Claimed::Completed { payload })) => {
                    self.remember(key, now.checked_add(COMPLETED_TTL), payload);
                }
                // The record was delivered again: the process that claimed it last has died as well.
                Ok(Some(Claimed::InProgress { abandoned, .. })) => {
                    crashes = crashes.map(|most: u32| most.max(abandoned.saturating_add(1)));
                }
                Ok(_) => {}
                Err(error @ StoreError::Unavailable(_)) if !is_passing(&error) => return Err(error),
                Err(_) => crashes = None,
            }
        }
        Ok(crashes)
    }

    /// Claims these keys for an attempt that takes so long at most. `looks`: how often in a row they could not be.
    pub(super) async fn claim(
        &self,
        claims: &mut [Claim],
        attempt: Duration,
        looks: u32,
        term: Term<'_>,
    ) -> Vec<Result<(), ClaimRefused>> {
        let known: Vec<_> = claims.iter().map(|claim| self.known(&claim.key)).collect();
        let rest = self.state().rest();
        let mut asked = Vec::new();
        if rest.is_none() {
            let unknown = claims.iter_mut().zip(&known).filter(|(_, known)| known.is_none());
            asked.extend(unknown.map(|(claim, _)| {
                self.renew(claim, attempt, term);
                claim.clone()
            }));
        }
        let began = Instant::now();
        let answers = self.call(&asked, |store| store.claim(&asked)).await;
        // The attempt would outlive it.
        let slow = began.elapsed() > CALL_TIMEOUT;
        let mut answers = answers.into_iter();
        let turns = claims.iter().zip(known).map(|(claim, known)| {
            if let Some((_, payload)) = known {
                return Err(processed(claim, payload));
            }
            if let Some(delay) = rest {
                return Err(ClaimRefused::Wait(WaitsFor::Store, delay));
            }
            match answers.next() {
                Some(Ok(Claimed::Granted { .. })) if slow => {
                    self.turn(claim, looks, Err(StoreError::unavailable(SLOW)))
                }
                Some(Ok(Claimed::Granted { abandoned }))
                    if abandoned >= CRASHES && term.run.within.is_some() =>
                {
                    Err(ClaimRefused::Crashes)
                }
                Some(answer) => self.turn(claim, looks, answer),
                None => self.turn(claim, looks, Err(StoreError::unavailable(SILENT))),
            }
        });
        turns.collect()
    }

    /// What the store's answer means.
    fn turn(
        &self,
        claim: &Claim,
        looks: u32,
        answer: Result<Claimed, StoreError>,
    ) -> Result<(), ClaimRefused> {
        match answer {
            Ok(Claimed::Granted { .. }) => {
                self.state().answered();
                Ok(())
            }
            Ok(Claimed::Completed { payload }) => {
                self.state().answered();
                self.remember(&claim.key, claim.now.checked_add(COMPLETED_TTL), payload);
                Err(processed(claim, payload))
            }
            Ok(Claimed::InProgress { expires, .. }) => {
                let mut state = self.state();
                state.answered();
                let look = Jitter::Equal.delay(&CLAIM_POLL_BACKOFF, looks, Duration::ZERO, &mut state.rng);
                let expired = expires.checked_add(CLOCK_SKEW).unwrap_or(expires);
                let left = expired.duration_since(claim.now).unwrap_or_default();
                // Not at the same moment as whoever else waits for it.
                let jitter = Duration::from_millis(state.rng.random_range(1..=50));
                Err(ClaimRefused::Wait(WaitsFor::Claim, look.min(left + jitter)))
            }
            // The store is well: nobody else waits for somebody to mend it.
            Err(error @ StoreError::Corrupt { .. }) => {
                let delay = {
                    let rng = &mut self.state().rng;
                    Jitter::Equal.delay(&BACKOFF, looks, Duration::ZERO, rng)
                };
                self.tell_unanswered(looks.saturating_add(1), &error, delay);
                Err(ClaimRefused::Wait(WaitsFor::Store, delay))
            }
            Err(error) => Err(ClaimRefused::Wait(WaitsFor::Store, self.unanswered(&error))),
        }
    }

    /// From now on.
    fn renew(&self, claim: &mut Claim, attempt: Duration, term: Term<'_>) {
        claim.now = self.settings.now();
        let mut lives = attempt.saturating_add(MARGIN);
        if let Some(deadline) = term.finish_by {
            lives = lives.min(deadline.saturating_duration_since(Instant::now()));
        }
        claim.expires = claim.now.checked_add(lives).unwrap_or(claim.now);
        claim.keep_until = self.settings.keep_until(claim.now, term.run.retention.get());
    }

    /// The attempt is over, and the next one is another claim's.
    pub(super) fn begin_anew(claim: &mut Claim) {
        claim.replaces = Some(claim.owner);
        claim.owner = new_owner();
    }

    /// Remembers what was processed, for as long as that takes, or until nobody waits any more.
    pub(super) async fn complete(&self, records: &[Record], mut claims: Vec<Claim>, term: Term<'_>) {
        let mut records: Vec<&Record> = records.iter().collect();
        let mut failures = 0;
        loop {
            for claim in &mut claims {
                claim.now = self.settings.now();
                claim.keep_until = self.settings.keep_until(claim.now, term.run.retention.get());
            }
            let answers = self.call(&claims, |store| store.complete(&claims)).await;
            let (mut left, mut errors) = (Vec::new(), Vec::new());
            for ((record, claim), answer) in records.into_iter().zip(claims).zip(answers) {
                match answer {
                    Ok(Completion::Stored) => {
                        self.state().answered();
                        self.remember(&claim.key, Some(claim.keep_until), claim.payload);
                    }
                    Ok(Completion::Lost) => self.tell_lost(record, None),
                    Err(error) => {
                        left.push((record, claim));
                        errors.push(error);
                    }
                }
            }
            let Some(error) = errors.first() else {
                return;
            };
            let delay = {
                let rng = &mut self.state().rng;
                Jitter::Equal.delay(&COMPLETING, failures, Duration::ZERO, rng)
            };
            failures += 1;
            let ends = match term.finish_by {
                Some(time) => Instant::now() + delay >= time,
                None => term.run.is_stopping(),
            };
            if ends {
                for ((record, _), error) in left.iter().zip(&errors) {
                    self.tell_lost(record, Some(error));
                }
                return;
            }
            self.tell_unanswered(failures, error, delay);
            sleep(delay).await;
            (records, claims) = left.into_iter().unzip();
        }
    }

    fn tell_lost(&self, record: &Record, error: Option<&StoreError>) {
        if self.observers.want(Interest::FAILURES) {
            self.observers.tell(&Event::CompletionLost {
                record,
                error: error.map(|error| error as &(dyn std::error::Error + Send + Sync)),
            });
        }
    }

    /// Gives the keys back. Where that fails, they are once the claims expire.
    pub(super) async fn release(&self, claims: &[Claim]) {
        if self.state().rest().is_none() {
            for error in self
                .call(claims, |store| store.release(claims))
                .await
                .into_iter()
                .filter_map(Result::err)
            {
                self.unanswered(&error);
            }
        }
    }

    /// As many answers as are asked for.
    async fn call<'a, T, F>(
        &'a self,
        claims: &[Claim],
        call: impl FnOnce(&'a dyn IdempotencyStore) -> F,
    ) -> Vec<Result<T, StoreError>>
    where
        F: Future<Output = Vec<Result<T, StoreError>>> + Send,
    {
        if claims.is_empty() {
            return Vec::new();
        }
        let asked = async { call(&*self.settings.store).await };
        match answer("the store", CALL_TIMEOUT, asked).await {
            Ok(mut answers) => {
                answers.resize_with(claims.len(), || Err(StoreError::unavailable(SILENT)));
                answers
            }
            Err(error) => failed_alike(claims.len(), error, StoreError::unavailable),
        }
    }

    fn known(&self, key: &Key) -> Option<(SystemTime, Option<PayloadHash>)> {
        let mut state = self.state();
        let completed = state.completed.as_mut()?;
        let known = *completed.get(key)?;
        if known.0 >= self.settings.now() {
            return Some(known);
        }
        completed.pop(key);
        None
    }

    fn remember(&self, key: &Key, until: Option<SystemTime>, payload: Option<PayloadHash>) {
        if let (Some(completed), Some(until)) = (&mut self.state().completed, until) {
            completed.put(key.clone(), (until, payload));
        }
    }

    /// When to ask the store again.
    fn unanswered(&self, error: &(dyn std::error::Error + Send + Sync + 'static)) -> Duration {
        let (failures, delay) = {
            let mut state = self.state();
            if let Some(delay) = state.rest() {
                // One that was under way.
                return delay;
            }
            let failures = state.failures;
            let delay = Jitter::Equal.delay(&BACKOFF, failures, Duration::ZERO, &mut state.rng);
            state.failures = failures.saturating_add(1);
            state.not_before = Some(Instant::now() + delay);
            (state.failures, delay)
        };
        self.tell_unanswered(failures, error, delay);
        delay
    }

    fn tell_unanswered(
        &self,
        failures: u32,
        error: &(dyn std::error::Error + Send + Sync + 'static),
        delay: Duration,
    ) {
        if self.observers.want(Interest::FAILURES) {
            let name = caught(|| self.settings.store.name());
            self.observers.tell(&Event::IdempotencyDelayed {
                store: name.as_deref().unwrap_or("the store"),
                failures,
                error,
                delay,
            });
        }
    }
}

const SLOW: &str = "the store took too long to answer";
const SILENT: &str = "the store gave no answer";

impl State {
    /// How much longer it is not to be asked.
    fn rest(&self) -> Option<Duration> {
        let left = self.not_before?.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
    }

    fn answered(&mut self) {
        self.failures = 0;
        self.not_before = None;
    }
}

/// Of true chance, whatever the seed: no two processes are ever one.
fn new_owner() -> Owner {
    Owner::new(rand::random())
}

fn processed(claim: &Claim, payload: Option<PayloadHash>) -> ClaimRefused {
    match (claim.payload, payload) {
        (Some(now), Some(before)) if now != before => ClaimRefused::Mismatch,
        _ => ClaimRefused::Completed,
    }
}
