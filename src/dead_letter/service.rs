//! Writing letters to a service that takes many in a request: what fails is tried again alone, what is refused does not
//! keep the others back.

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

/// How often a letter, or a call, is tried in one put.
const TRIES: u32 = 5;
/// The longest rest after the first failure; doubled with each further one.
const BASE: Duration = Duration::from_millis(100);
/// A target that did not tell its limit, as to somebody without the permission, is not asked again for so long.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(5 * 60);

/// A service that takes many letters in a request.
pub(super) trait Service: Sync {
    /// One call: an answer for each entry. `letters`: those of the put.
    fn call(
        &self,
        letters: &[DeadLetter],
        schedule: &mut Schedule,
        request: &Request,
    ) -> impl Future<Output = Result<Vec<Result<Receipt, SharedError>>, CallError>> + Send;

    /// The most bytes of a letter that any target of the service takes.
    const LARGEST_LIMIT: u64;

    /// Up to so many bytes no letter is too large, as far as one knows without asking.
    fn known_limit(&self) -> u64;

    /// The most bytes of a letter that the target takes at this moment. `None` if it does not say. (To be called by
    /// [`ask_for_limit`].)
    fn ask_target_for_limit(&self) -> impl Future<Output = Option<u64>> + Send;

    /// The limit that a letter is over which was refused by itself for what it holds, if it is over one. `message`: what the
    /// service says of it.
    fn limit_over(&self, entry: &Entry, message: &str) -> impl Future<Output = Option<u64>> + Send {
        let (bytes, _) = (entry.bytes, message);
        async move { ask_for_limit(self).await.filter(|&limit| bytes > limit) }
    }

    fn rests(&self) -> &Rests;
}

/// The most bytes of a letter that the target takes at this moment, if it says so.
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

/// Writes what can be written, and says of each letter what became of it.
pub(super) async fn write<S: Service>(
    service: &S,
    letters: &[DeadLetter],
    mut schedule: Schedule,
) -> Vec<Result<Receipt, SinkError>> {
    if schedule.largest() > service.known_limit() {
        // Asked for again, because it may have been raised since. Where it stays unknown the service
        // judges what no target refuses as yet: nothing is refused on a guess.
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
            // The service judges a request as a whole: one entry that it cannot take must not keep
            // the others back.
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

/// A call that says nothing of its entries.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    #[error("the call to {operation} failed")]
    Failed {
        operation: &'static str,
        #[source]
        source: BoxError,
    },
    #[error("the call to {operation} was refused for what it holds")]
    Refused {
        operation: &'static str,
        /// What the service says of it.
        message: String,
        #[source]
        source: BoxError,
    },
    #[error("{operation} answered for {answered} entries, {sent} were sent; none counts as written")]
    Miscounted {
        operation: &'static str,
        sent: usize,
        answered: usize,
    },
}

impl CallError {
    /// `refusal`: what the service says of it, if it was refused for what it holds.
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

/// An entry of a request that is not written, or not known to be.
#[derive(Debug, thiserror::Error)]
pub(super) enum EntryError {
    #[error("the service did not take the letter: {code}: {message}")]
    Failed { code: String, message: String },
    #[error("the service answered with neither a place nor an error")]
    Unconfirmed,
}

/// Answers that came in any order, by the places that were given as ids.
pub(super) fn in_order(
    mut answers: HashMap<String, Result<Receipt, SharedError>>,
    sent: usize,
) -> Vec<Result<Receipt, SharedError>> {
    let mut answer = |place: usize| answers.remove(&place.to_string());
    let of = |place| answer(place).unwrap_or_else(|| Err(Arc::new(EntryError::Unconfirmed)));
    (0..sent).map(of).collect()
}

/// Between tries, and between questions.
#[derive(Debug)]
pub(super) struct Rests {
    rng: Mutex<SmallRng>,
    /// When the target was asked for its limit and did not say.
    unanswered: Mutex<Option<Instant>>,
}

impl Rests {
    pub(super) fn new() -> Self {
        Rests::of(make_rng())
    }

    /// Repeatable ones.
    pub(super) fn seeded(seed: u64) -> Self {
        Rests::of(SmallRng::seed_from_u64(seed))
    }

    fn of(rng: SmallRng) -> Self {
        Rests {
            rng: Mutex::new(rng),
            unanswered: Mutex::new(None),
        }
    }

    /// Waits for up to the base time, doubled with each failure after the first.
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
