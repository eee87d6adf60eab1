//! The retry loops that redrive is compared with.
//!
//! All of them use exponential backoff from 100 ms to 10 s, 5 attempts and the same handler.

use std::io;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use futures_util::FutureExt;
use redrive::Record;
use tower::retry::backoff::{Backoff, ExponentialBackoff, ExponentialBackoffMaker, MakeBackoff};
use tower::retry::{Policy, Retry};
use tower::util::rng::HasherRng;
use tower::{Service, ServiceExt};

use super::handlers::{handle, handle_owned};

const BASE: Duration = Duration::from_millis(100);
const CAP: Duration = Duration::from_secs(10);
const ATTEMPTS: u32 = 5;
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(30);

/// Returns the settings of `backon`.
pub fn exponential() -> ExponentialBuilder {
    ExponentialBuilder::default()
        .with_min_delay(BASE)
        .with_max_delay(CAP)
        .with_max_times(ATTEMPTS as usize - 1)
}

/// Handles a record with `backon`, as its documentation shows.
pub async fn backon(record: &Record, policy: ExponentialBuilder) -> Result<(), io::Error> {
    (|| handle(record)).retry(policy).await
}

/// Handles a record with `backon` and a handler that takes an owned record.
pub async fn backon_owned(record: &Record, policy: ExponentialBuilder) -> Result<(), io::Error> {
    (|| handle_owned(record.clone())).retry(policy).await
}

/// Handles a record with `backon` and two more features of `Resilient`: an attempt timeout and caught panics.
pub async fn backon_guarded(record: &Record, policy: ExponentialBuilder) -> Result<(), io::Error> {
    let attempt = || async {
        match tokio::time::timeout(ATTEMPT_TIMEOUT, AssertUnwindSafe(handle(record)).catch_unwind()).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(io::Error::other("the handler panicked")),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    };
    attempt.retry(policy).await
}

/// Returns a service of the handler with `tower::retry`.
pub fn tower_retry() -> impl Service<Record, Response = (), Error = io::Error> {
    let backoff = ExponentialBackoffMaker::new(BASE, CAP, 0.5, HasherRng::default())
        .expect("valid settings")
        .make_backoff();
    let policy = Attempts {
        left: ATTEMPTS - 1,
        backoff,
    };
    Retry::new(policy, tower::service_fn(handle_owned))
}

/// Calls the service once.
pub async fn call<S>(service: &mut S, record: &Record) -> Result<(), io::Error>
where
    S: Service<Record, Response = (), Error = io::Error>,
{
    service.ready().await?.call(record.clone()).await
}

#[derive(Clone)]
struct Attempts {
    left: u32,
    backoff: ExponentialBackoff,
}

impl Policy<Record, (), io::Error> for Attempts {
    type Future = <ExponentialBackoff as Backoff>::Future;

    fn retry(&mut self, _: &mut Record, result: &mut Result<(), io::Error>) -> Option<Self::Future> {
        if result.is_ok() || self.left == 0 {
            return None;
        }
        self.left -= 1;
        Some(self.backoff.next_backoff())
    }

    fn clone_request(&mut self, record: &Record) -> Option<Record> {
        Some(record.clone())
    }
}
