//! The retry budget: a limit on the retries of all records together.
//!
//! A limit on the retries of one record does not protect a dependency. When every second call fails, four
//! retries each triple the load, at the worst time. A budget limits retries by what succeeds, as the retry
//! budgets of Finagle and tower do.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::config::ConfigError;
use crate::protection::sliding_window::{SuccessCounter, SuccessCounters, WindowedGrowth};

/// A limit on retries: a share of the successes, and a number per second in addition.
///
/// An empty budget delays a record's retry. The delay counts neither as an attempt nor as elapsed time, so a
/// budget never causes a dead letter.
///
/// Clones share one budget. Pass a clone to each processor that needs the same dependency.
///
/// Unused retries are kept for 10 s. [`RetryBudgetBuilder`] lists the defaults.
#[derive(Clone)]
pub struct RetryBudget(Arc<Shared>);

struct Shared {
    settings: Settings,
    bucket: Mutex<Bucket>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Settings {
    share: f64,
    per_second: f64,
}

struct Bucket {
    balance: f64,
    at: Option<Instant>,
    successes: SuccessCounters,
    lately: WindowedGrowth,
}

/// The time for which unused retries are kept.
const KEPT: Duration = Duration::from_secs(10);

/// Builds a [`RetryBudget`].
///
/// | setting | default |
/// |---|---|
/// | [`share_of_successes`](RetryBudgetBuilder::share_of_successes) | 0.2 |
/// | [`per_second`](RetryBudgetBuilder::per_second) | 10 |
#[derive(Debug, Clone)]
#[must_use]
pub struct RetryBudgetBuilder {
    settings: Settings,
}

impl RetryBudgetBuilder {
    /// Sets the number of retries for each success: finite, and at least 0. 0.2 is 20 %.
    pub fn share_of_successes(mut self, share: f64) -> Self {
        self.settings.share = share;
        self
    }

    /// Sets the number of retries per second, whatever succeeds: finite, and more than 0.
    pub fn per_second(mut self, retries: f64) -> Self {
        self.settings.per_second = retries;
        self
    }

    /// Builds the budget.
    ///
    /// # Errors
    ///
    /// A setting cannot be used. The error names the setting.
    pub fn build(self) -> Result<RetryBudget, ConfigError> {
        let Settings { share, per_second } = self.settings;
        if !(share.is_finite() && share >= 0.0) {
            let problem = format!("must be finite and at least 0, not {share}");
            return Err(ConfigError::new("share_of_successes", problem));
        }
        if !(per_second.is_finite() && per_second > 0.0) {
            let problem = format!(
                "must be finite and more than 0, not {per_second}: \
                 without it, no retry is made once nothing succeeds"
            );
            return Err(ConfigError::new("per_second", problem));
        }
        Ok(self.make())
    }

    fn make(self) -> RetryBudget {
        RetryBudget(Arc::new(Shared {
            settings: self.settings,
            bucket: Mutex::new(Bucket {
                balance: 0.0,
                at: None,
                successes: SuccessCounters::default(),
                lately: WindowedGrowth::new(KEPT),
            }),
        }))
    }
}

impl RetryBudget {
    /// Creates a builder with the defaults.
    pub fn builder() -> RetryBudgetBuilder {
        RetryBudgetBuilder {
            settings: Settings {
                share: 0.2,
                per_second: 10.0,
            },
        }
    }

    /// Returns the number of retries that could be made now.
    pub fn state(&self) -> u64 {
        let mut bucket = self.0.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        self.fill(&mut bucket);
        bucket.balance as u64
    }

    /// Counts these successes from now on.
    pub(crate) fn enlist(&self, tally: Arc<SuccessCounter>) {
        let mut bucket = self.0.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        bucket.successes.enlist(tally);
    }

    /// Takes one retry from the budget. Returns false if there is none.
    pub(crate) fn withdraw(&self) -> bool {
        let mut bucket = self.0.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        self.fill(&mut bucket);
        let granted = bucket.balance >= 1.0;
        if granted {
            bucket.balance -= 1.0;
        }
        granted
    }

    fn fill(&self, bucket: &mut Bucket) {
        let now = Instant::now();
        let Settings { share, per_second } = self.0.settings;
        let total = bucket.successes.total();
        let grown = bucket.lately.observe(now, total);
        let passed = match bucket.at.replace(now) {
            Some(at) => now.saturating_duration_since(at),
            None => KEPT,
        };
        let most = per_second * KEPT.as_secs_f64() + share * bucket.lately.sum(now) as f64;
        let earned = per_second * passed.as_secs_f64() + share * grown as f64;
        // A budget of less than one retry in `KEPT` must still add up to one.
        bucket.balance = (bucket.balance + earned).min(most.max(1.0));
    }
}

impl Default for RetryBudget {
    fn default() -> Self {
        RetryBudget::builder().make()
    }
}

impl fmt::Debug for RetryBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryBudget")
            .field("share_of_successes", &self.0.settings.share)
            .field("per_second", &self.0.settings.per_second)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn take_all(budget: &RetryBudget) -> usize {
        std::iter::from_fn(|| budget.withdraw().then_some(())).count()
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_succeeds_and_ten_a_second_remain() {
        let budget = RetryBudget::default();
        assert_eq!(take_all(&budget), 100, "ten seconds' worth to begin with");
        advance(Duration::from_secs(3)).await;
        assert_eq!(take_all(&budget), 30);
        advance(Duration::from_secs(3_600)).await;
        assert_eq!(budget.state(), 100);
    }

    #[tokio::test(start_paused = true)]
    async fn every_fifth_success_pays_for_a_retry() {
        let budget = RetryBudget::default();
        let tally = Arc::new(SuccessCounter::default());
        budget.enlist(tally.clone());
        take_all(&budget);
        for _ in 0..1_000 {
            tally.add();
        }
        assert_eq!(take_all(&budget), 200);
        for _ in 0..1_000 {
            tally.add();
        }
        advance(Duration::from_secs(60)).await;
        let left = take_all(&budget);
        assert!(
            (100..200).contains(&left),
            "an old success is worth nothing: {left}"
        );
    }

    #[test]
    fn the_documented_defaults() {
        let defaults = Settings {
            share: 0.2,
            per_second: 10.0,
        };
        assert_eq!(RetryBudget::default().0.settings, defaults);
        assert_eq!(RetryBudget::builder().settings, defaults);
    }

    #[test]
    fn a_budget_that_would_end_all_retries_is_refused() {
        let refused = |builder: RetryBudgetBuilder| builder.build().expect_err("refused").setting();
        for share in [-0.1, f64::NAN, f64::INFINITY] {
            let builder = RetryBudget::builder().share_of_successes(share);
            assert_eq!(refused(builder), "share_of_successes", "{share}");
        }
        for retries in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let builder = RetryBudget::builder().per_second(retries);
            assert_eq!(refused(builder), "per_second", "{retries}");
        }
        let least = RetryBudget::builder().share_of_successes(0.0).per_second(0.5);
        assert!(least.build().is_ok());
    }
}
