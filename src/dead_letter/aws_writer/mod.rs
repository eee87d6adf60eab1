//! Writes dead letters to a service of AWS that takes many in a request. A failed entry is retried without
//! the others, and a refused entry does not hold the others back.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng, make_rng};

use super::{Receipt, SinkError};
use crate::failure::BoxError;

#[cfg(any(feature = "sqs", feature = "sns"))]
pub(super) mod message;
mod schedule;
mod size_limit;

pub(super) use schedule::{Entry, Limits, Request, Schedule, SharedError};
pub(super) use size_limit::SizeLimit;

/// The maximum number of tries of a dead letter, or of a call, in one put.
const TRIES: u32 = 5;
/// The longest rest after the first failure. Each further failure doubles it.
const BASE: Duration = Duration::from_millis(100);

/// A service that takes many dead letters in a request.
pub(super) trait Service: Sync {
    /// Makes one call. Returns an answer for each entry.
    fn call(
        &self,
        schedule: &mut Schedule,
        request: &Request,
    ) -> impl Future<Output = Result<Answers, CallError>> + Send;

    /// Asks the target for its size limit, in bytes. Returns `None` if the target does not answer. Default:
    /// `None`, for a service whose limit is fixed.
    fn ask_for_limit(&self) -> impl Future<Output = Option<u64>> + Send {
        async { None }
    }
}

/// The answers to the entries of a request, in order.
pub(super) type Answers = Vec<Result<Receipt, SharedError>>;

/// Writes the dead letters of a put to a service: one request after the other, with retries.
#[derive(Debug)]
pub(super) struct AwsWriter {
    limit: SizeLimit,
    rng: Mutex<SmallRng>,
}

impl AwsWriter {
    /// Creates a writer for a target with this size limit.
    pub(super) fn new(limit: SizeLimit) -> Self {
        AwsWriter {
            limit,
            rng: Mutex::new(make_rng()),
        }
    }

    /// Makes the jitter repeatable.
    pub(super) fn seed(&mut self, seed: u64) {
        self.rng = Mutex::new(SmallRng::seed_from_u64(seed));
    }

    /// Returns the size limit of the target.
    pub(super) fn limit(&self) -> &SizeLimit {
        &self.limit
    }

    /// Writes the dead letters of the schedule. Returns a result for each.
    pub(super) async fn write(
        &self,
        service: &impl Service,
        mut schedule: Schedule,
    ) -> Vec<Result<Receipt, SinkError>> {
        let limit = self
            .limit
            .for_entries(schedule.largest(), service.ask_for_limit());
        if let Some(limit) = limit.await {
            schedule.refuse_larger_than(limit);
        }
        let mut failed_calls = 0;
        loop {
            let Some(request) = schedule.next_request() else {
                match schedule.wake() {
                    Some(tries) => self.rest(tries).await,
                    None => return schedule.into_results(),
                }
                continue;
            };
            match service.call(&mut schedule, &request).await {
                Ok(answers) => {
                    failed_calls = 0;
                    schedule.answered(request, answers, TRIES);
                }
                // The service refuses a request as a whole. One entry that it cannot take must not hold back
                // the others.
                Err(CallError::Refused { .. }) if request.len() > 1 => schedule.split(request),
                Err(error @ CallError::Refused { stated_limit, .. }) => {
                    let bytes = schedule.entries(&request).map(|entry| entry.bytes).sum();
                    let question = service.ask_for_limit();
                    let limit = self.limit.exceeded_by(bytes, stated_limit, question).await;
                    let error: SharedError = Arc::new(error);
                    schedule.refuse(request, |entry| match limit {
                        Some(limit) => entry.refused(limit, error.clone()),
                        None => SinkError::unavailable(error.clone()),
                    });
                }
                Err(error) => {
                    schedule.put_back(request);
                    failed_calls += 1;
                    if failed_calls == TRIES {
                        let error: SharedError = Arc::new(error);
                        schedule.give_up(&error);
                    } else {
                        self.rest(failed_calls).await;
                    }
                }
            }
        }
    }

    /// Waits for a random time up to [`BASE`], doubled with each failure after the first.
    async fn rest(&self, failures: u32) {
        let longest = BASE * 2u32.pow(failures.saturating_sub(1).min(TRIES));
        let time = self
            .rng
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .random_range(Duration::ZERO..=longest);
        tokio::time::sleep(time).await;
    }
}

/// A call without an answer for each of its entries.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    #[error("the call to {operation} failed")]
    Failed {
        operation: &'static str,
        #[source]
        source: BoxError,
    },
    #[error("the call to {operation} was refused for its content")]
    Refused {
        operation: &'static str,
        /// The size limit, in bytes, that the request's only entry exceeds according to the service.
        stated_limit: Option<u64>,
        #[source]
        source: BoxError,
    },
    #[error("{operation} returned {answered} answers for {sent} entries; none counts as written")]
    Miscounted {
        operation: &'static str,
        sent: usize,
        answered: usize,
    },
}

impl CallError {
    pub(super) fn failed(operation: &'static str, source: impl Into<BoxError>) -> Self {
        CallError::Failed {
            operation,
            source: source.into(),
        }
    }
}

/// Returns true if an error has one of these codes. Error codes of the older protocol have the service's name
/// in front.
pub(super) fn has_code(error: &impl ProvideErrorMetadata, codes: &[&str]) -> bool {
    let code = error.code().and_then(|code| code.rsplit(['.', '#']).next());
    code.is_some_and(|code| codes.contains(&code))
}

/// The reason why an entry of a request is not written, or not known to be written.
#[derive(Debug, thiserror::Error)]
pub(super) enum EntryError {
    #[error("the service did not take the dead letter: {code}: {message}")]
    Failed { code: String, message: String },
    #[error("the service returned neither a place nor an error for the dead letter")]
    Unconfirmed,
}
