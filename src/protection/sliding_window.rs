//! Counters of successes. Each shard counts its own, and the totals are added up only when a failure needs
//! them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// The successes of one run of a shard. Each run has its own counter, so that shards share no cache line.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(crate) struct SuccessCounter {
    count: AtomicU64,
    /// The records among `count` that were not the first of their batch.
    in_batches: AtomicU64,
    ended: AtomicBool,
}

impl SuccessCounter {
    #[inline]
    pub(crate) fn add(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// Adds the records of one successful call of the processor.
    pub(crate) fn add_batch(&self, records: usize) {
        // In this order, so that a reader never sees more calls than were made.
        self.in_batches
            .fetch_add(records.saturating_sub(1) as u64, Ordering::Release);
        self.count.fetch_add(records as u64, Ordering::Release);
    }

    /// Returns the number of records.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Returns the number of calls of the processor.
    fn calls(&self) -> u64 {
        let records = self.count.load(Ordering::Acquire);
        records.saturating_sub(self.in_batches.load(Ordering::Relaxed))
    }

    /// Marks the count as final: nothing is added from now on.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }
}

/// The successful calls of all runs that share a breaker or a budget.
#[derive(Debug, Default)]
pub(crate) struct SuccessCounters {
    running: Vec<Arc<SuccessCounter>>,
    ended: u64,
}

impl SuccessCounters {
    pub(crate) fn enlist(&mut self, tally: Arc<SuccessCounter>) {
        self.total();
        self.running.push(tally);
    }

    pub(crate) fn total(&mut self) -> u64 {
        let (mut total, mut ended) = (0, 0);
        self.running.retain(|tally| {
            // In this order: once the run has ended, the count is final.
            let has_ended = tally.ended.load(Ordering::Acquire);
            let count = tally.calls();
            *(if has_ended { &mut ended } else { &mut total }) += count;
            !has_ended
        });
        self.ended += ended;
        self.ended + total
    }
}

const BUCKETS: u64 = 10;

/// The number of recent events, in tenths of a window.
#[derive(Debug)]
pub(crate) struct SlidingWindow {
    bucket: Duration,
    origin: Option<Instant>,
    newest: u64,
    counts: [u64; BUCKETS as usize],
}

impl SlidingWindow {
    pub(crate) fn new(window: Duration) -> Self {
        SlidingWindow {
            bucket: (window / BUCKETS as u32).max(Duration::from_nanos(1)),
            origin: None,
            newest: 0,
            counts: [0; BUCKETS as usize],
        }
    }

    pub(crate) fn clear(&mut self) {
        self.counts = [0; BUCKETS as usize];
    }

    pub(crate) fn add(&mut self, now: Instant, count: u64) {
        let newest = self.advance(now);
        self.counts[newest] += count;
    }

    /// Adds events that happened at unknown times since `then`, spread evenly. `None`: at any time within the
    /// window.
    pub(crate) fn add_since(&mut self, then: Option<Instant>, now: Instant, count: u64) {
        let newest = self.advance(now);
        let passed = match then {
            Some(then) => now.saturating_duration_since(then).as_nanos() / self.bucket.as_nanos(),
            None => u128::from(BUCKETS) - 1,
        };
        let spread = u64::try_from(passed).unwrap_or(u64::MAX).saturating_add(1);
        let each = count / spread;
        for back in 1..spread.min(BUCKETS) {
            let index = (self.newest + BUCKETS - back) % BUCKETS;
            self.counts[index as usize] += each;
        }
        // The remainder of the division counts as new.
        self.counts[newest] += each + count % spread;
    }

    pub(crate) fn sum(&mut self, now: Instant) -> u64 {
        self.advance(now);
        self.counts.iter().sum()
    }

    fn advance(&mut self, now: Instant) -> usize {
        let origin = *self.origin.get_or_insert(now);
        let passed = now.saturating_duration_since(origin).as_nanos() / self.bucket.as_nanos();
        let newest = u64::try_from(passed).unwrap_or(u64::MAX).max(self.newest);
        for step in 1..=(newest - self.newest).min(BUCKETS) {
            self.counts[((self.newest + step) % BUCKETS) as usize] = 0;
        }
        self.newest = newest;
        (newest % BUCKETS) as usize
    }
}

/// The growth of a total within a window.
#[derive(Debug)]
pub(crate) struct WindowedGrowth {
    recent: SlidingWindow,
    total: u64,
    at: Option<Instant>,
}

impl WindowedGrowth {
    pub(crate) fn new(window: Duration) -> Self {
        WindowedGrowth {
            recent: SlidingWindow::new(window),
            total: 0,
            at: None,
        }
    }

    /// Takes the current total. Returns the growth since the last call.
    pub(crate) fn observe(&mut self, now: Instant, total: u64) -> u64 {
        let grown = total.saturating_sub(self.total);
        self.recent.add_since(self.at, now, grown);
        self.total = total;
        self.at = Some(now);
        grown
    }

    /// Forgets the growth so far, and continues from this total.
    pub(crate) fn restart(&mut self, now: Instant, total: u64) {
        self.recent.clear();
        self.total = total;
        self.at = Some(now);
    }

    pub(crate) fn sum(&mut self, now: Instant) -> u64 {
        self.recent.sum(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_has_ended_still_counts() {
        let (first, second) = (
            Arc::new(SuccessCounter::default()),
            Arc::new(SuccessCounter::default()),
        );
        let mut tallies = SuccessCounters::default();
        tallies.enlist(first.clone());
        tallies.enlist(second.clone());
        first.add();
        second.add();
        assert_eq!(tallies.total(), 2);
        first.add();
        first.end();
        assert_eq!(tallies.total(), 3);
        assert_eq!(tallies.running.len(), 1);
        second.add();
        assert_eq!(tallies.total(), 4);
    }

    #[test]
    fn only_the_window_counts() {
        let start = Instant::now();
        let at = |secs| start + Duration::from_secs(secs);
        let mut recent = SlidingWindow::new(Duration::from_secs(10));
        recent.add(at(0), 5);
        recent.add(at(4), 3);
        assert_eq!(recent.sum(at(9)), 8);
        assert_eq!(recent.sum(at(10)), 3);
        assert_eq!(recent.sum(at(14)), 0);
        recent.add(at(1_000_000), 2);
        assert_eq!(recent.sum(at(1_000_000)), 2);
    }

    #[test]
    fn added_count_is_spread_over_the_time_since_the_last_call() {
        let start = Instant::now();
        let at = |secs| start + Duration::from_secs(secs);
        let mut recent = SlidingWindow::new(Duration::from_secs(10));
        recent.add(at(0), 0);
        recent.add_since(Some(at(0)), at(2), 300);
        assert_eq!(
            [2, 5, 9, 10, 11, 12].map(|secs| recent.sum(at(secs))),
            [300, 300, 300, 200, 100, 0]
        );
        // Without an earlier observation, over the whole window.
        let mut recent = SlidingWindow::new(Duration::from_secs(10));
        recent.add_since(None, at(0), 1_000);
        assert_eq!([0, 5, 9].map(|secs| recent.sum(at(secs))), [1_000, 500, 100]);
    }

    #[test]
    fn a_restart_forgets_what_was() {
        let now = Instant::now();
        let mut growth = WindowedGrowth::new(Duration::from_secs(10));
        growth.observe(now, 50);
        growth.restart(now, 60);
        assert_eq!(growth.sum(now), 0);
        assert_eq!(growth.observe(now, 61), 1);
        assert_eq!(growth.sum(now), 1);
    }

    #[test]
    fn what_happened_over_an_hour_counts_for_its_last_seconds_only() {
        let start = Instant::now();
        let mut growth = WindowedGrowth::new(Duration::from_secs(10));
        assert_eq!(growth.observe(start, 0), 0);
        let later = start + Duration::from_secs(3_600);
        assert_eq!(growth.observe(later, 36_010), 36_010);
        let sum = growth.sum(later);
        assert!((90..=110).contains(&sum), "ten a second for ten seconds: {sum}");
    }
}
