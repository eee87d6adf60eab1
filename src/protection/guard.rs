//! The dead-letter guard: stops a flood of dead letters, whatever its cause.
//!
//! A bad deployment makes every record fail permanently, one by one, and each failure alone looks like bad
//! data. So each shard counts. When most of the records that a shard settled lately became dead letters, the
//! shard stops before the next one. It reports the stop and waits for an operator to resume it. The stream
//! keeps its data.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::config::ConfigError;
use crate::protection::sliding_window::{SlidingWindow, SuccessCounter, WindowedGrowth};
use crate::record::{Record, ShardId};

/// A dead-letter guard, on by default in every [`Resilient`](crate::Resilient).
///
/// A shard watches the records that it settled within a minute. When they are at least 100 and more than half
/// became dead letters, the shard stops before the next dead letter. [`resume`](DeadLetterGuard::resume) lets
/// the shard continue. Clones share one guard. [`DeadLetterGuardBuilder`] sets other limits.
#[derive(Clone)]
pub struct DeadLetterGuard(Arc<Shared>);

struct Shared {
    settings: Settings,
    /// The shards that are stopped now. [`DeadLetterGuard::resume`] counts under this lock, so that no shard
    /// enters the list by an older count.
    stopped: Mutex<Vec<StoppedShard>>,
    /// The number of calls of [`DeadLetterGuard::resume`].
    resumptions: AtomicU64,
    resumed: Notify,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Settings {
    share: f64,
    records: u64,
    window: Duration,
}

/// A shard that the guard has stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoppedShard {
    /// The stream's name.
    pub stream: String,
    /// The shard's id.
    pub shard: ShardId,
    /// The number of records that became dead letters, among those settled within the window.
    pub letters: u64,
    /// The number of records settled within the window.
    pub settled: u64,
}

/// Builds a [`DeadLetterGuard`].
///
/// | setting | default |
/// |---|---|
/// | [`share`](DeadLetterGuardBuilder::share) | 0.5 |
/// | [`min_records`](DeadLetterGuardBuilder::min_records) | 100 |
/// | [`window`](DeadLetterGuardBuilder::window) | 1 min |
#[derive(Debug, Clone)]
#[must_use]
pub struct DeadLetterGuardBuilder {
    settings: Settings,
}

impl DeadLetterGuardBuilder {
    /// Sets the share of dead letters among the records settled within the window, above which the guard
    /// stops the shard: at least 0 and less than 1.
    pub fn share(mut self, share: f64) -> Self {
        self.settings.share = share;
        self
    }

    /// Sets the minimum number of records settled within the window: at least 1. With fewer records their
    /// share says nothing.
    pub fn min_records(mut self, records: u64) -> Self {
        self.settings.records = records;
        self
    }

    /// Sets the time for which a settled record counts: more than zero.
    pub fn window(mut self, window: Duration) -> Self {
        self.settings.window = window;
        self
    }

    /// Builds the guard.
    ///
    /// # Errors
    ///
    /// A setting cannot be used. The error names the setting.
    pub fn build(self) -> Result<DeadLetterGuard, ConfigError> {
        let Settings {
            share,
            records,
            window,
        } = self.settings;
        if !(0.0..1.0).contains(&share) {
            let problem = format!(
                "must be at least 0 and less than 1, not {share}; to disable the guard, call without_guard()"
            );
            return Err(ConfigError::new("share", problem));
        }
        if records == 0 {
            return Err(ConfigError::new("min_records", "must be at least 1"));
        }
        if window.is_zero() {
            return Err(ConfigError::new("window", "must be more than zero"));
        }
        Ok(self.make())
    }

    fn make(self) -> DeadLetterGuard {
        DeadLetterGuard(Arc::new(Shared {
            settings: self.settings,
            stopped: Mutex::new(Vec::new()),
            resumptions: AtomicU64::new(0),
            resumed: Notify::new(),
        }))
    }
}

impl Default for DeadLetterGuard {
    fn default() -> Self {
        DeadLetterGuard::builder().make()
    }
}

impl DeadLetterGuard {
    /// Creates a builder with the defaults.
    pub fn builder() -> DeadLetterGuardBuilder {
        DeadLetterGuardBuilder {
            settings: Settings {
                share: 0.5,
                records: 100,
                window: Duration::from_secs(60),
            },
        }
    }

    /// Returns the shards that wait for [`resume`](DeadLetterGuard::resume).
    pub fn state(&self) -> Vec<StoppedShard> {
        self.0
            .stopped
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Resumes all shards, and forgets what they counted. A shard whose records still fail stops again after
    /// as many dead letters.
    pub fn resume(&self) {
        let mut stopped = self.0.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        stopped.clear();
        self.0.resumptions.fetch_add(1, Ordering::Release);
        drop(stopped);
        self.0.resumed.notify_waiters();
    }

    /// Begins to watch a shard whose successes this counter counts.
    pub(crate) fn watch(&self, tally: Arc<SuccessCounter>) -> Watch {
        Watch {
            stopped_at: AtomicU64::new(RUNS),
            counts: Mutex::new(Counts {
                letters: SlidingWindow::new(self.0.settings.window),
                successes: WindowedGrowth::new(self.0.settings.window),
                resumed: self.0.resumptions.load(Ordering::Acquire),
                stopped: None,
                unreported: None,
            }),
            tally,
            guard: self.clone(),
        }
    }
}

impl Shared {
    /// Removes a shard whose run has ended. If the guard has resumed its shards since this one stopped, at
    /// count `stopped_at`, the list no longer contains it.
    fn forget(&self, stopped: &StoppedShard, stopped_at: u64) {
        let mut all = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        if self.resumptions.load(Ordering::Acquire) != stopped_at {
            return;
        }
        if let Some(index) = all.iter().position(|one| one == stopped) {
            all.swap_remove(index);
        }
    }
}

impl fmt::Debug for DeadLetterGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeadLetterGuard")
            .field("share", &self.0.settings.share)
            .field("min_records", &self.0.settings.records)
            .field("window", &self.0.settings.window)
            .field("stopped", &self.state())
            .finish()
    }
}

/// The value of `stopped_at` while the shard is not stopped.
const RUNS: u64 = u64::MAX;

/// The guard's view of one shard.
pub(crate) struct Watch {
    /// The count of resumptions at which the shard stopped. The shard resumes with the next resumption,
    /// whether or not a dead letter still waits to ask the guard.
    stopped_at: AtomicU64,
    counts: Mutex<Counts>,
    tally: Arc<SuccessCounter>,
    guard: DeadLetterGuard,
}

struct Counts {
    letters: SlidingWindow,
    successes: WindowedGrowth,
    resumed: u64,
    stopped: Option<StoppedShard>,
    /// The record before which the shard stopped, until the resumption is reported.
    unreported: Option<Record>,
}

/// The guard's answer to the request to write a dead letter.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Permission {
    Granted,
    /// The guard has stopped the shard just now.
    Stopped(StoppedShard),
    /// The guard had stopped the shard before.
    Waits,
}

impl Watch {
    /// Returns true while the shard is stopped, so that nothing new may begin.
    #[inline]
    pub(crate) fn is_stopped(&self) -> bool {
        let stopped_at = self.stopped_at.load(Ordering::Relaxed);
        stopped_at != RUNS && stopped_at == self.guard.0.resumptions.load(Ordering::Acquire)
    }

    /// Returns true if the shard was stopped and is resumed, and [`take_resumption`](Watch::take_resumption)
    /// has not reported the resumption yet.
    #[inline]
    pub(crate) fn was_stopped(&self) -> bool {
        self.stopped_at.load(Ordering::Relaxed) != RUNS && !self.is_stopped()
    }

    /// Asks whether a dead letter may be written. Must be called before each dead letter.
    pub(crate) fn ask(&self, record: &Record) -> Permission {
        let now = Instant::now();
        let shared = &self.guard.0;
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = shared.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        let resumed = shared.resumptions.load(Ordering::Acquire);
        if counts.resumed != resumed {
            counts.resumed = resumed;
            counts.stopped = None;
            counts.letters.clear();
            counts.successes.restart(now, self.tally.count());
            self.stopped_at.store(RUNS, Ordering::Relaxed);
        }
        if counts.stopped.is_some() {
            return Permission::Waits;
        }
        counts.successes.observe(now, self.tally.count());
        let letters = counts.letters.sum(now);
        let settled = letters + counts.successes.sum(now);
        let Settings { share, records, .. } = shared.settings;
        if settled < records || letters as f64 <= share * settled as f64 {
            counts.letters.add(now, 1);
            return Permission::Granted;
        }
        let stopped = StoppedShard {
            stream: record.stream().to_owned(),
            shard: record.shard().clone(),
            letters,
            settled,
        };
        counts.stopped = Some(stopped.clone());
        counts.unreported = Some(record.place());
        self.stopped_at.store(resumed, Ordering::Relaxed);
        all.push(stopped.clone());
        Permission::Stopped(stopped)
    }

    /// Returns the record before which the shard had stopped, once after each resumption.
    pub(crate) fn take_resumption(&self) -> Option<Record> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_stopped() {
            return None;
        }
        self.stopped_at.store(RUNS, Ordering::Relaxed);
        counts.unreported.take()
    }

    /// Waits until [`DeadLetterGuard::resume`] is called after this call.
    pub(crate) fn resumed(&self) -> impl Future<Output = ()> + Send + '_ {
        self.guard.0.resumed.notified()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let counts = self.counts.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(stopped) = counts.stopped.take() {
            self.guard.0.forget(&stopped, counts.resumed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record::builder("orders", "shardId-0".into(), 1.into()).build()
    }

    #[test]
    fn the_documented_defaults() {
        let defaults = Settings {
            share: 0.5,
            records: 100,
            window: Duration::from_secs(60),
        };
        assert_eq!(DeadLetterGuard::default().0.settings, defaults);
        assert_eq!(DeadLetterGuard::builder().settings, defaults);
    }

    #[test]
    fn invalid_settings_are_refused_by_name() {
        let refused = |builder: DeadLetterGuardBuilder| builder.build().expect_err("refused").setting();
        for share in [-0.1, 1.0, f64::NAN] {
            assert_eq!(
                refused(DeadLetterGuard::builder().share(share)),
                "share",
                "{share}"
            );
        }
        assert_eq!(refused(DeadLetterGuard::builder().min_records(0)), "min_records");
        assert_eq!(
            refused(DeadLetterGuard::builder().window(Duration::ZERO)),
            "window"
        );
        let strictest = DeadLetterGuard::builder().share(0.0).min_records(1);
        assert!(strictest.build().is_ok());
    }

    fn granted(watch: &Watch, most: usize) -> usize {
        (0..most)
            .take_while(|_| watch.ask(&record()) == Permission::Granted)
            .count()
    }

    #[tokio::test(start_paused = true)]
    async fn guard_stops_after_100_dead_letters_and_again_after_resume() {
        let guard = DeadLetterGuard::default();
        let watch = guard.watch(Arc::new(SuccessCounter::default()));
        assert_eq!(granted(&watch, 1_000), 100);
        assert!(watch.is_stopped());
        assert_eq!(watch.ask(&record()), Permission::Waits);
        let [stopped] = &guard.state()[..] else {
            panic!("one shard has stopped: {guard:?}")
        };
        assert_eq!((stopped.letters, stopped.settled), (100, 100));
        guard.resume();
        assert!(guard.state().is_empty());
        assert!(!watch.is_stopped(), "no dead letter has to ask first");
        assert_eq!(granted(&watch, 1_000), 100);
        drop(watch);
        assert!(guard.state().is_empty(), "a shard that has ended is not listed");
    }

    #[tokio::test(start_paused = true)]
    async fn half_dead_letters_are_let_through_and_more_are_not() {
        let tally = Arc::new(SuccessCounter::default());
        let guard = DeadLetterGuard::default();
        let watch = guard.watch(tally.clone());
        for _ in 0..1_000 {
            tally.add();
            assert_eq!(watch.ask(&record()), Permission::Granted);
        }
        assert_eq!(granted(&watch, 1_000), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_trickle_of_dead_letters_is_no_flood() {
        let guard = DeadLetterGuard::default();
        let watch = guard.watch(Arc::new(SuccessCounter::default()));
        for _ in 0..1_000 {
            assert_eq!(watch.ask(&record()), Permission::Granted);
            tokio::time::advance(Duration::from_secs(1)).await;
        }
    }
}
