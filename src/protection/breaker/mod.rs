//! The circuit breaker: a pause while a dependency is sick, so that an outage causes no dead letters and
//! retries do not make the outage worse.
//!
//! A retry policy knows one record. When the database is down every record fails, and exhausts its attempts
//! within seconds. All of them would become dead letters, although no record is bad.
//!
//! The breaker watches all records together. When too many attempts fail it opens: no attempt begins, no
//! record is given up, and the stream keeps its data. After a pause a few records are attempted as probes.
//! When most of the probes succeed, all records resume.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

mod machine;

pub(crate) use machine::{Change, Proof, Round};

use crate::config::ConfigError;
use crate::protection::retry::{Backoff, seeded_rng};
use crate::protection::sliding_window::{SuccessCounter, SuccessCounters};
use crate::record::Record;
use machine::{Hashes, Machine, Phase};

/// A circuit breaker, on by default in every [`Resilient`](crate::Resilient).
///
/// The breaker counts failures whose [scope](crate::Scope) is a dependency or unknown, as a share of all
/// attempts. Clones share one breaker. Pass a clone to each processor that needs the same dependency.
#[derive(Clone)]
pub struct CircuitBreaker(Arc<Shared>);

struct Shared {
    /// The state that every attempt checks, without the lock.
    state: AtomicU8,
    hold_at_most: Duration,
    pause: Backoff,
    inner: Mutex<Inner>,
    /// Wakes waiters in the order in which they began to wait. A watch channel would not.
    changes: Arc<Notify>,
    keys: RandomState,
}

struct Inner {
    machine: Machine,
    successes: SuccessCounters,
}

const CLOSED: u8 = 0;
const OPEN: u8 = 1;
const HALF_OPEN: u8 = 2;

/// The state of a [`CircuitBreaker`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CircuitBreakerState {
    /// Every attempt may begin.
    Closed,
    /// No attempt may begin.
    Open,
    /// A few attempts may begin as probes, to find out whether the dependency works again.
    HalfOpen,
}

#[derive(Debug, Clone, PartialEq)]
struct Settings {
    share: f64,
    attempts: u64,
    window: Duration,
    in_a_row: usize,
    probes: u32,
    pause: Backoff,
    hold_at_most: Duration,
}

/// Builds a [`CircuitBreaker`].
///
/// | setting | default |
/// |---|---|
/// | [`failure_share`](CircuitBreakerBuilder::failure_share) | 0.5 |
/// | [`min_attempts`](CircuitBreakerBuilder::min_attempts) | 20 |
/// | [`window`](CircuitBreakerBuilder::window) | 10 s |
/// | [`keys_in_a_row`](CircuitBreakerBuilder::keys_in_a_row) | 5 |
/// | [`pause`](CircuitBreakerBuilder::pause) | 1 s doubling up to 1 min, with [`Jitter::Equal`](crate::Jitter::Equal) |
/// | [`probes`](CircuitBreakerBuilder::probes) | 5 |
/// | [`hold_at_most`](CircuitBreakerBuilder::hold_at_most) | 15 min |
/// | [`seed`](CircuitBreakerBuilder::seed) | random |
#[derive(Debug, Clone)]
#[must_use]
pub struct CircuitBreakerBuilder {
    settings: Settings,
    seed: Option<u64>,
}

impl CircuitBreakerBuilder {
    /// Sets the share of failed attempts within the window at which the breaker opens: more than 0 and at
    /// most 1.
    pub fn failure_share(mut self, share: f64) -> Self {
        self.settings.share = share;
        self
    }

    /// Sets the minimum number of attempts within the window: at least 1. With fewer attempts their share says
    /// nothing.
    pub fn min_attempts(mut self, attempts: u64) -> Self {
        self.settings.attempts = attempts;
        self
    }

    /// Sets the time for which an attempt counts: more than zero.
    pub fn window(mut self, window: Duration) -> Self {
        self.settings.window = window;
        self
    }

    /// Sets the number of different partition keys whose records must fail in a row, with no success between,
    /// to open the breaker whatever the share of failures: at least 1.
    ///
    /// A quiet stream opens the breaker in this way, before any share says something. A record that fails
    /// again while other records succeed does not count: the fault is its own.
    pub fn keys_in_a_row(mut self, keys: usize) -> Self {
        self.settings.in_a_row = keys;
        self
    }

    /// Sets the time for which no attempt begins: more than zero. The pause grows each time that the probes
    /// fail.
    pub fn pause(mut self, pause: Backoff) -> Self {
        self.settings.pause = pause;
        self
    }

    /// Sets the number of probes that decide, by majority, whether the dependency works again. Must be odd.
    pub fn probes(mut self, probes: u32) -> Self {
        self.settings.probes = probes;
        self
    }

    /// Sets the maximum time for which a record is held because nothing else succeeds either. After this time
    /// the record becomes a dead letter. Any time is valid.
    ///
    /// While the breaker is not closed, the limit applies only as long as fewer different partition keys have
    /// failed than [`min_attempts`](CircuitBreakerBuilder::min_attempts). More keys are an outage, in which
    /// no record is given up, however long the outage lasts.
    pub fn hold_at_most(mut self, time: Duration) -> Self {
        self.settings.hold_at_most = time;
        self
    }

    /// Sets the seed of the jitter, which makes pauses repeatable. Default: random.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Builds the breaker.
    ///
    /// # Errors
    ///
    /// A setting cannot be used. The error names the setting.
    pub fn build(self) -> Result<CircuitBreaker, ConfigError> {
        let settings = &self.settings;
        if !(settings.share > 0.0 && settings.share <= 1.0) {
            let problem = format!("must be more than 0 and at most 1, not {}", settings.share);
            return Err(ConfigError::new("failure_share", problem));
        }
        if settings.attempts == 0 {
            return Err(ConfigError::new("min_attempts", "must be at least 1"));
        }
        if settings.in_a_row == 0 {
            return Err(ConfigError::new("keys_in_a_row", "must be at least 1"));
        }
        if settings.window.is_zero() {
            return Err(ConfigError::new("window", "must be more than zero"));
        }
        if settings.probes.is_multiple_of(2) {
            let problem = format!(
                "must be odd, so that there is a majority, not {}",
                settings.probes
            );
            return Err(ConfigError::new("probes", problem));
        }
        settings.pause.validate("pause")?;
        if settings.pause.delay(0).is_zero() {
            let problem = "must be more than zero, so that a sick dependency gets time to recover";
            return Err(ConfigError::new("pause", problem));
        }
        Ok(self.make())
    }

    pub(crate) fn make(self) -> CircuitBreaker {
        let rng = seeded_rng(self.seed);
        CircuitBreaker(Arc::new(Shared {
            state: AtomicU8::new(CLOSED),
            hold_at_most: self.settings.hold_at_most,
            pause: self.settings.pause,
            inner: Mutex::new(Inner {
                machine: Machine::new(self.settings, rng),
                successes: SuccessCounters::default(),
            }),
            changes: Arc::default(),
            keys: RandomState::new(),
        }))
    }
}

impl Default for CircuitBreaker {
    fn default() -> Self {
        CircuitBreaker::builder().make()
    }
}

impl CircuitBreaker {
    /// Creates a builder with the defaults.
    pub fn builder() -> CircuitBreakerBuilder {
        CircuitBreakerBuilder {
            settings: Settings {
                share: 0.5,
                attempts: 20,
                window: Duration::from_secs(10),
                in_a_row: 5,
                probes: 5,
                pause: Backoff::exponential()
                    .base(Duration::from_secs(1))
                    .cap(Duration::from_secs(60)),
                hold_at_most: Duration::from_secs(15 * 60),
            },
            seed: None,
        }
    }

    /// Returns the breaker's state.
    pub fn state(&self) -> CircuitBreakerState {
        match self.0.state.load(Ordering::Relaxed) {
            CLOSED => CircuitBreakerState::Closed,
            OPEN => CircuitBreakerState::Open,
            _ => CircuitBreakerState::HalfOpen,
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is(&self, other: &CircuitBreaker) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    #[inline]
    pub(crate) fn is_closed(&self) -> bool {
        self.0.state.load(Ordering::Relaxed) == CLOSED
    }

    pub(crate) fn hold_at_most(&self) -> Duration {
        self.0.hold_at_most
    }

    /// Counts these successes from now on.
    pub(crate) fn enlist(&self, tally: Arc<SuccessCounter>) {
        let mut inner = self.inner();
        inner.successes.enlist(tally);
    }

    /// Returns the number of all successes so far.
    pub(crate) fn successes(&self) -> u64 {
        let mut inner = self.inner();
        inner.successes.total()
    }

    /// Counts a failed attempt that began while the breaker was closed. `others_succeed`: other records have
    /// succeeded since this record first failed.
    pub(crate) fn failed(&self, record: &Record, others_succeed: bool) -> Option<Change> {
        let key = Some(self.key(record)).filter(|_| !others_succeed);
        let record = self.identity(record);
        self.with(|machine, successes| machine.failed(Instant::now(), record, key, successes))
    }

    fn key(&self, record: &Record) -> u64 {
        // A record without a partition key stands for itself.
        match record.partition_key() {
            Some(key) => self.0.keys.hash_one(key),
            None => self.0.keys.hash_one(record.sequence_number()),
        }
    }

    /// Returns a hash that tells a record from others.
    fn identity(&self, record: &Record) -> u64 {
        self.0.keys.hash_one((
            record.stream(),
            record.shard(),
            record.sequence_number(),
            record.sub_sequence_number(),
        ))
    }

    /// Returns true if another record than this one has failed since the last success.
    pub(crate) fn has_failed_beside(&self, record: &Record) -> bool {
        let record = self.identity(record);
        let mut inner = self.inner();
        let Inner { machine, successes } = &mut *inner;
        machine.has_failed_beside(Instant::now(), record, successes.total())
    }

    /// Returns the backoff between attempts of a held record.
    pub(crate) fn pause(&self) -> Backoff {
        self.0.pause
    }

    /// Returns true if the breaker has been closed for at least this time.
    pub(crate) fn is_closed_for(&self, time: Duration) -> bool {
        self.inner().machine.is_closed_for(Instant::now(), time)
    }

    /// Returns true if only a few keys have failed since the last success, so that their records may be bad
    /// themselves.
    pub(crate) fn is_narrow(&self) -> bool {
        self.inner().machine.is_narrow(Instant::now())
    }

    /// Ends a pause or a round whose time is over. Call it after [`change`](CircuitBreaker::change) has
    /// returned.
    pub(crate) fn tick(&self) -> Option<Change> {
        self.with(|machine, successes| machine.tick(Instant::now(), successes))
    }

    /// Returns the current round, if a probe is left in it.
    pub(crate) fn round(&self) -> Option<Round> {
        self.inner().machine.round()
    }

    /// Begins a probe, if one is left.
    pub(crate) fn probe(&self) -> Option<Probe> {
        let mut inner = self.inner();
        inner.machine.probe().map(|round| Probe {
            breaker: self.clone(),
            round,
            ended: false,
        })
    }

    /// Counts the result of a probe with the record that `of` identifies.
    fn proved(&self, round: Round, proof: Proof, of: Hashes) -> Option<Change> {
        let change =
            self.with(|machine, successes| machine.proved(Instant::now(), round, proof, of, successes));
        // Another record may repeat a probe that showed nothing, and the first probe that ends sets the end
        // of its round. All waiters must check again.
        self.0.changes.notify_waiters();
        change
    }

    /// Waits until the breaker changes after this call, or until time alone changes its state. Then call
    /// [`tick`](CircuitBreaker::tick).
    pub(crate) fn change(&self) -> impl Future<Output = ()> + Send + use<> {
        let (breaker, changed) = (self.clone(), self.0.changes.clone().notified_owned());
        async move {
            let tick = breaker.inner().machine.next_tick();
            match tick {
                Some(tick) => tokio::select! {
                    biased;
                    () = changed => {}
                    () = sleep_until(tick) => {}
                },
                None => changed.await,
            }
        }
    }

    fn with(&self, f: impl FnOnce(&mut Machine, u64) -> Option<Change>) -> Option<Change> {
        let mut inner = self.inner();
        let Inner { machine, successes } = &mut *inner;
        let change = f(machine, successes.total());
        let state = match machine.phase() {
            Phase::Closed => CLOSED,
            Phase::Open { .. } => OPEN,
            Phase::HalfOpen(_) => HALF_OPEN,
        };
        self.0.state.store(state, Ordering::Relaxed);
        if change.is_some() {
            self.0.changes.notify_waiters();
        }
        change
    }
}

impl fmt::Debug for CircuitBreaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CircuitBreaker")
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

/// An attempt that shows whether the dependency works again. A probe that is dropped shows nothing.
#[derive(Debug)]
pub(crate) struct Probe {
    breaker: CircuitBreaker,
    round: Round,
    ended: bool,
}

impl Probe {
    pub(crate) fn round(&self) -> Round {
        self.round
    }

    pub(crate) fn breaker(&self) -> &CircuitBreaker {
        &self.breaker
    }

    pub(crate) fn showed(mut self, proof: Proof, record: &Record) -> Option<Change> {
        self.ended = true;
        let of = Hashes {
            record: self.breaker.identity(record),
            key: self.breaker.key(record),
        };
        self.breaker.proved(self.round, proof, of)
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        if !self.ended {
            self.breaker.proved(self.round, Proof::Nothing, Hashes::default());
        }
    }
}

#[cfg(test)]
mod tests;
