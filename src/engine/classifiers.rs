//! The classifiers of one processor, which turn a failed attempt into a failure.

use std::error::Error;
use std::time::Duration;

use super::attempt::AttemptError;
use crate::failure::classify::{Classify, StandardClassifier};
use crate::failure::{BoxError, Failure, Scope, Verdict};
use crate::observer::{Observers, UserCode};
use crate::processor::AttemptTimedOut;

pub(super) type Typed<E> = Box<dyn Fn(&E) -> Option<Verdict> + Send + Sync>;

/// The classifiers in their order: the user's typed ones, while the error still has its type; then the erased
/// ones; the standard one last.
///
/// A classifier that panics is skipped.
pub(super) struct Classifiers<E> {
    typed: Vec<Typed<E>>,
    erased: Vec<Box<dyn Classify>>,
    observers: Observers,
    classifier: UserCode,
    error: UserCode,
}

/// Replaces an error whose own code panicked when the error was boxed.
#[derive(Debug, thiserror::Error)]
#[error("the processor failed, and its error cannot be read: the error's code panicked")]
struct Unreadable;

impl<E: Into<BoxError> + 'static> Classifiers<E> {
    pub(super) fn new(typed: Vec<Typed<E>>, erased: Vec<Box<dyn Classify>>, observers: Observers) -> Self {
        Classifiers {
            typed,
            erased,
            observers,
            classifier: UserCode::new("classifier"),
            error: UserCode::new("error of the processor"),
        }
    }

    /// Returns the failure of an attempt; `None` if the attempt was interrupted, which shows nothing.
    /// `timeout` is the limit that the attempt had. `panics` counts the panics of the record.
    pub(super) fn failure(
        &self,
        error: AttemptError<E>,
        timeout: Duration,
        panics: &mut u32,
    ) -> Option<Failure> {
        Some(match error {
            AttemptError::Interrupted => return None,
            AttemptError::Returned(error) => self.judge(error),
            AttemptError::TimedOut => {
                let after = timeout;
                Failure::transient(AttemptTimedOut { after }).with_code("attempt_timed_out")
            }
            AttemptError::Panicked(panicked) => {
                *panics += 1;
                // One panic may be chance, such as a poisoned connection. The second is the record's fault.
                let verdict = if *panics < 2 {
                    Verdict::transient().with_scope(Scope::Record)
                } else {
                    Verdict::permanent()
                };
                Failure::new(panicked, verdict.with_code("panicked"))
            }
        })
    }

    /// Classifies an error. An error that no classifier knows is transient, with unknown scope.
    fn judge(&self, error: E) -> Failure {
        let observers = &self.observers;
        let ask = |classify: &Typed<E>| observers.caught(&self.classifier, || classify(&error)).flatten();
        let early = self.typed.iter().find_map(ask);
        let early = early.or_else(|| {
            let within = observers.caught(&self.error, || within_anyhow(&error))??;
            self.ask(within)
        });
        let boxed = observers.caught(&self.error, || error.into());
        let error: BoxError = boxed.unwrap_or_else(|| Unreadable.into());
        let verdict = early.or_else(|| self.ask(&*error));
        Failure::new(error, verdict.unwrap_or(const { Verdict::transient() }))
    }

    fn ask(&self, error: &(dyn Error + 'static)) -> Option<Verdict> {
        let observers = &self.observers;
        let ask = |classifier: &dyn Classify| {
            let verdict = observers.caught(&self.classifier, || classifier.classify(error));
            verdict.flatten()
        };
        let known = self.erased.iter().find_map(|classifier| ask(&**classifier));
        // The standard classifier calls the error's own code, which may panic.
        known.or_else(|| {
            observers
                .caught(&self.error, || StandardClassifier.classify(error))
                .flatten()
        })
    }
}

/// Returns the error inside an `anyhow::Error`. Once that is boxed, its `source()` is the *source* of the
/// error inside, and the error itself is no longer visible.
#[cfg(feature = "anyhow")]
fn within_anyhow<E: 'static>(error: &E) -> Option<&(dyn Error + 'static)> {
    let error = (error as &dyn std::any::Any).downcast_ref::<anyhow::Error>()?;
    Some(&**error)
}

#[cfg(not(feature = "anyhow"))]
fn within_anyhow<E: 'static>(_: &E) -> Option<&(dyn Error + 'static)> {
    None
}
