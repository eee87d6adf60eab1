//! Idempotency: the engine claims a record's key before each attempt, completes the claim after a success,
//! and releases the claim after a failure.

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
use crate::idempotency::Status;
use crate::idempotency::{
    CLOCK_SKEW, Claim, Claimed, Completion, Idempotency, IdempotencyStore, Key, Owner, PayloadHash,
    StoreError,
};
use crate::observer::{Event, Interest, Observers, ProtectionEvent, RecordEvent};
use crate::protection::{Backoff, Jitter, RetryTimer};
use crate::record::Record;

/// The claims of one processor's records.
#[derive(Debug)]
pub(super) struct Claims {
    settings: Idempotency,
    observers: Observers,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// The completed keys, each with the time until which it is remembered and the hash of its payload.
    completed: Option<LruCache<Key, (SystemTime, Option<PayloadHash>)>>,
    /// Counts the calls in a row that the store did not answer.
    retries: RetryTimer,
    /// The time before which the store is not called again.
    not_before: Option<Instant>,
    rng: SmallRng,
}

/// The reason why a record may not be attempted.
pub(super) enum ClaimRefused {
    /// The record was processed before.
    Completed,
    /// A record with the same key and another payload was processed before.
    Mismatch,
    /// Too many processes crashed while they processed the record.
    Crashes,
    /// The record must wait this long before it is attempted.
    Wait(WaitsFor, Duration),
}

impl ClaimRefused {
    /// Returns the delay before the claim is retried, if the store did not answer.
    pub(super) fn of_store(turn: &Result<(), ClaimRefused>) -> Option<Duration> {
        match turn {
            Err(ClaimRefused::Wait(WaitsFor::Store, delay)) => Some(*delay),
            _ => None,
        }
    }
}

/// The reason why a record waits before its attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WaitsFor {
    /// Another delivery of the record is being processed.
    Claim,
    /// The store does not answer.
    Store,
}

/// The number of crashed processes after which a record becomes a dead letter. Only in Lambda, where the last
/// three of those processes processed nothing else.
const CRASHES: u32 = 5;
/// The time limit of a call to the store.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// The number of keys that any store can claim within `CALL_TIMEOUT`.
pub(super) const AT_ONCE: NonZeroUsize = NonZeroUsize::new(256).expect("more than none");
/// The time by which a claim outlives its attempt. It covers the call that makes the claim and the call that
/// completes it.
const MARGIN: Duration = Duration::from_secs(10);
/// The backoff between calls to a store that does not answer.
const BACKOFF: Backoff = Backoff::exponential();
/// The backoff between calls that only complete claims. A shutdown waits for one of these delays at most.
const COMPLETING: Backoff = Backoff::exponential().cap(Duration::from_secs(1));
/// The backoff between checks of a claim that another owner has.
const CLAIM_POLL_BACKOFF: Backoff = Backoff::exponential().cap(Duration::from_secs(5));
/// The time for which a key that the store reported as completed is cached. The store does not report for how
/// long it remembers the key.
const COMPLETED_TTL: Duration = Duration::from_secs(60 * 60);

impl Claims {
    pub(super) fn new(settings: Idempotency, observers: Observers, seed: u64) -> Self {
        let completed = NonZeroUsize::new(settings.cache).map(LruCache::new);
        let mut rng = SmallRng::seed_from_u64(seed);
        Claims {
            settings,
            observers,
            state: Mutex::new(State {
                completed,
                retries: RetryTimer::new(BACKOFF, SmallRng::from_rng(&mut rng)),
                not_before: None,
                rng,
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Creates the claim for a record's first attempt.
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

    /// Asks the store for the status of these records, and caches which of them were processed. If the store
    /// does not answer, each record's claim asks again.
    ///
    /// Returns how many processes crashed while they processed the same record: the largest number among all
    /// records. Returns `None` if the store does not answer for each record.
    ///
    /// # Errors
    ///
    /// The store refuses the call, and refuses it until an operator changes something.
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
                Ok(Some(Status::Completed { payload })) => {
                    self.remember(key, now.checked_add(COMPLETED_TTL), payload);
                }
                // The record was delivered again, so the process with the last claim has crashed as well.
                Ok(Some(Status::InProgress { abandoned, .. })) => {
                    crashes = crashes.map(|most: u32| most.max(abandoned.saturating_add(1)));
                }
                Ok(None) => {}
                Err(error) if error.is_final() => return Err(error),
                Err(_) => crashes = None,
            }
        }
        Ok(crashes)
    }

    /// Claims these keys for an attempt of this maximum duration. `looks`: how many times in a row they could
    /// not be claimed before.
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
        // After a slow answer the attempt would outlive its claim.
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

    /// Interprets the store's answer to a claim.
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
                // Jitter keeps records apart that wait for the same claim.
                let jitter = Duration::from_millis(state.rng.random_range(1..=50));
                Err(ClaimRefused::Wait(WaitsFor::Claim, look.min(left + jitter)))
            }
            // Only this entry is damaged and the store works, so no other record waits for its repair.
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

    /// Restarts the lifetime of a claim.
    fn renew(&self, claim: &mut Claim, attempt: Duration, term: Term<'_>) {
        claim.now = self.settings.now();
        let mut lives = attempt.saturating_add(MARGIN);
        if let Some(deadline) = term.finish_by {
            lives = lives.min(deadline.saturating_duration_since(Instant::now()));
        }
        claim.expires = claim.now.checked_add(lives).unwrap_or(claim.now);
        claim.keep_until = self.settings.keep_until(claim.now, term.run.retention.get());
    }

    /// Prepares the claim for the next attempt: a new owner replaces the last one.
    pub(super) fn begin_anew(claim: &mut Claim) {
        claim.replaces = Some(claim.owner);
        claim.owner = new_owner();
    }

    /// Completes the claims of processed records. Retries until the store has answered, `finish_by` comes or
    /// the run stops.
    pub(super) async fn complete(&self, records: &[Record], mut claims: Vec<Claim>, term: Term<'_>) {
        let mut records: Vec<&Record> = records.iter().collect();
        let mut retries: Option<RetryTimer> = None;
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
            let new = || RetryTimer::new(COMPLETING, SmallRng::from_rng(&mut self.state().rng));
            let retries = retries.get_or_insert_with(new);
            let delay = retries.next_delay();
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
            self.tell_unanswered(retries.failures(), error, delay);
            sleep(delay).await;
            (records, claims) = left.into_iter().unzip();
        }
    }

    fn tell_lost(&self, record: &Record, error: Option<&StoreError>) {
        if self.observers.want(Interest::FAILURES) {
            self.observers.tell(&Event::Record {
                record,
                event: RecordEvent::CompletionLost {
                    error: error.map(|error| error as &(dyn std::error::Error + Send + Sync)),
                },
            });
        }
    }

    /// Releases these claims. A claim whose release fails ends when it expires.
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

    /// Calls the store, and returns exactly one answer for each claim.
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

    /// Notes that the store did not answer. Returns the delay before the next call.
    fn unanswered(&self, error: &(dyn std::error::Error + Send + Sync + 'static)) -> Duration {
        let (failures, delay) = {
            let mut state = self.state();
            if let Some(delay) = state.rest() {
                // This call began before the store was known to be down.
                return delay;
            }
            let delay = state.retries.next_delay();
            state.not_before = Some(Instant::now() + delay);
            (state.retries.failures(), delay)
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
            self.observers
                .tell(&Event::Protection(ProtectionEvent::IdempotencyDelayed {
                    store: name.as_deref().unwrap_or("the store"),
                    failures,
                    error,
                    delay,
                }));
        }
    }
}

const SLOW: &str = "the store took too long to answer";
const SILENT: &str = "the store returned no answer for this key";

impl State {
    /// Returns how much longer the store is not to be called.
    fn rest(&self) -> Option<Duration> {
        let left = self.not_before?.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
    }

    fn answered(&mut self) {
        self.retries.reset();
        self.not_before = None;
    }
}

/// Creates an owner from real randomness, whatever the seed, so that no two processes share an owner.
fn new_owner() -> Owner {
    Owner::new(rand::random())
}

fn processed(claim: &Claim, payload: Option<PayloadHash>) -> ClaimRefused {
    match (claim.payload, payload) {
        (Some(now), Some(before)) if now != before => ClaimRefused::Mismatch,
        _ => ClaimRefused::Completed,
    }
}
