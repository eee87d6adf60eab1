//! Writes dead letters to a service that takes many in a request. A failed entry is retried without the
//! others, and a refused entry does not hold the others back.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng, make_rng};
use tokio::time::Instant;

use super::schedule::{Entry, Request, Schedule, SharedError};
use super::{DeadLetter, Receipt, SinkError};
use crate::failure::BoxError;

/// The maximum number of tries of a dead letter, or of a call, in one put.
const TRIES: u32 = 5;
/// The longest rest after the first failure. Each further failure doubles it.
const BASE: Duration = Duration::from_millis(100);
/// The time before a target is asked for its limit again, after it did not answer. A missing permission is a
/// typical cause.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(5 * 60);

/// A service that takes many dead letters in a request.
pub(super) trait Service: Sync {
    /// Makes one call. Returns an answer for each entry. `letters` are all dead letters of the put.
    fn call(
        &self,
        letters: &[DeadLetter],
        schedule: &mut Schedule,
        request: &Request,
    ) -> impl Future<Output = Result<Vec<Result<Receipt, SharedError>>, CallError>> + Send;

    /// The largest dead letter that any target of the service takes, in bytes.
    const LARGEST_LIMIT: u64;

    /// Returns the largest size, in bytes, that the target is known to take without another call.
    fn known_limit(&self) -> u64;

    /// Asks for the largest dead letter, in bytes, that the target takes at this moment. Returns `None` if
    /// the target does not answer. Only [`ask_for_limit`] calls this.
    fn ask_target_for_limit(&self) -> impl Future<Output = Option<u64>> + Send;

    /// Returns the limit that an entry exceeds, if it exceeds one. The service has refused a request with
    /// only this entry for its content; `message` is the service's error message.
    fn limit_over(&self, entry: &Entry, message: &str) -> impl Future<Output = Option<u64>> + Send {
        let (bytes, _) = (entry.bytes, message);
        async move { ask_for_limit(self).await.filter(|&limit| bytes > limit) }
    }

    fn rests(&self) -> &Rests;
}

/// Returns the largest dead letter, in bytes, that the target takes at this moment, if the target answers.
pub(super) async fn ask_for_limit<S: Service + ?Sized>(service: &S) -> Option<u64> {
    let unanswered = || {
        let unanswered = &service.rests().unanswered;
        unanswered.lock().unwrap_or_else(PoisonError::into_inner)
    };
    if unanswered().is_some_and(|asked| asked.elapsed() < ASK_AGAIN_AFTER) {
        return None;
    }
    let limit = service.ask_target_for_limit().await;
    *unanswered() = limit.is_none().then(Instant::now);
    limit
}

/// Writes the dead letters of the schedule. Returns a result for each.
pub(super) async fn write<S: Service>(
    service: &S,
    letters: &[DeadLetter],
    mut schedule: Schedule,
) -> Vec<Result<Receipt, SinkError>> {
    if schedule.largest() > service.known_limit() {
        // The limit is asked for again, because it may have been raised since. If it stays unknown, the
        // service decides about every size that some target may take: nothing is refused on a guess.
        schedule.refuse_larger_than(ask_for_limit(service).await.unwrap_or(S::LARGEST_LIMIT));
    }
    let mut failed_calls = 0;
    loop {
        let Some(request) = schedule.next_request() else {
            match schedule.wake() {
                Some(tries) => service.rests().rest(tries).await,
                None => return schedule.into_results(),
            }
            continue;
        };
        let error = match service.call(letters, &mut schedule, &request).await {
            Ok(answers) => {
                failed_calls = 0;
                schedule.answered(request, answers, TRIES);
                continue;
            }
            Err(error) => error,
        };
        match error.refusal() {
            // The service refuses a request as a whole. One entry that it cannot take must not hold back the
            // others.
            Some(_) if request.len() > 1 => schedule.split(request),
            Some(message) => {
                let limit = match schedule.entries(&request).next() {
                    Some(entry) => service.limit_over(entry, message).await,
                    None => None,
                };
                let error: SharedError = Arc::new(error);
                schedule.refuse(request, |entry| match limit {
                    Some(limit) => entry.refused(limit, error.clone()),
                    None => SinkError::unavailable(error.clone()),
                });
            }
            None => {
                schedule.put_back(request);
                failed_calls += 1;
                if failed_calls == TRIES {
                    let error: SharedError = Arc::new(error);
                    schedule.give_up(&error);
                } else {
                    service.rests().rest(failed_calls).await;
                }
            }
        }
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
        /// The service's error message.
        message: String,
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
    /// Creates the error of a call. `refusal` is the service's error message, if it refused the call for its
    /// content.
    pub(super) fn new(operation: &'static str, refusal: Option<String>, source: impl Into<BoxError>) -> Self {
        let source = source.into();
        match refusal {
            Some(message) => CallError::Refused {
                operation,
                message,
                source,
            },
            None => CallError::Failed { operation, source },
        }
    }

    fn refusal(&self) -> Option<&str> {
        match self {
            CallError::Refused { message, .. } => Some(message),
            _ => None,
        }
    }
}

/// The reason why an entry of a request is not written, or not known to be written.
#[derive(Debug, thiserror::Error)]
pub(super) enum EntryError {
    #[error("the service did not take the dead letter: {code}: {message}")]
    Failed { code: String, message: String },
    #[error("the service returned neither a place nor an error for the dead letter")]
    Unconfirmed,
}

/// Puts answers in order by their ids, which are the places of the entries in the request.
pub(super) fn in_order(
    mut answers: HashMap<String, Result<Receipt, SharedError>>,
    sent: usize,
) -> Vec<Result<Receipt, SharedError>> {
    let mut answer = |place: usize| answers.remove(&place.to_string());
    let of = |place| answer(place).unwrap_or_else(|| Err(Arc::new(EntryError::Unconfirmed)));
    (0..sent).map(of).collect()
}

/// The pauses between tries, and between questions for the limit.
#[derive(Debug)]
pub(super) struct Rests {
    rng: Mutex<SmallRng>,
    /// The time at which the target was last asked for its limit, if it did not answer.
    unanswered: Mutex<Option<Instant>>,
}

impl Rests {
    pub(super) fn new() -> Self {
        Rests::of(make_rng())
    }

    /// Creates rests with repeatable jitter.
    pub(super) fn seeded(seed: u64) -> Self {
        Rests::of(SmallRng::seed_from_u64(seed))
    }

    fn of(rng: SmallRng) -> Self {
        Rests {
            rng: Mutex::new(rng),
            unanswered: Mutex::new(None),
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
