//! What an attempt's failure means: the classifiers of one processor, asked in turn.

use std::error::Error;

use super::Inner;
use super::attempt::{AttemptError, AttemptTimedOut};
use crate::classify::{Classify, StandardClassifier};
use crate::failure::{BoxError, Failure, Scope, Verdict};
use crate::observer::{Observers, UserCode};
use crate::processor::RecordProcessor;

pub(super) type Typed<E> = Box<dyn Fn(&E) -> Option<Verdict> + Send + Sync>;

/// The user's typed ones first, while the error still has its type; then the erased ones; the standard
/// one last.
///
/// One that panics does not know the error.
pub(super) struct Classifiers<E> {
    typed: Vec<Typed<E>>,
    erased: Vec<Box<dyn Classify>>,
    classifier: UserCode,
    error: UserCode,
}

/// Stands for an error whose own code panicked when it was to be boxed.
#[derive(Debug, thiserror::Error)]
#[error("the handler failed, and its error cannot be read: the error's code panicked")]
struct Unreadable;

impl<E: Into<BoxError> + 'static> Classifiers<E> {
    pub(super) fn new(typed: Vec<Typed<E>>, erased: Vec<Box<dyn Classify>>) -> Self {
        Classifiers {
            typed,
            erased,
            classifier: UserCode::new("classifier"),
            error: UserCode::new("error of the handler"),
        }
    }

    /// An error that no classifier knows is transient, of unknown scope.
    pub(super) fn judge(&self, error: E, observers: &Observers) -> Failure {
        let ask = |classify: &Typed<E>| observers.caught(&self.classifier, || classify(&error)).flatten();
        let early = self.typed.iter().find_map(ask);
        let early = early.or_else(|| {
            let within = observers.caught(&self.error, || within_anyhow(&error))??;
            self.ask(within, observers)
        });
        let boxed = observers.caught(&self.error, || error.into());
        let error: BoxError = boxed.unwrap_or_else(|| Unreadable.into());
        let verdict = early.or_else(|| self.ask(&*error, observers));
        Failure::new(error, verdict.unwrap_or(const { Verdict::transient() }))
    }

    fn ask(&self, error: &(dyn Error + 'static), observers: &Observers) -> Option<Verdict> {
        let ask = |classifier: &dyn Classify| {
            let verdict = observers.caught(&self.classifier, || classifier.classify(error));
            verdict.flatten()
        };
        let known = self.erased.iter().find_map(|classifier| ask(&**classifier));
        // It calls the error's own code.
        known.or_else(|| {
            observers
                .caught(&self.error, || StandardClassifier.classify(error))
                .flatten()
        })
    }
}

impl<P: RecordProcessor> Inner<P> {
    /// The failure that an attempt ended in; `None`: it was cut short, which says nothing. `panics` counts
    /// the record's.
    pub(super) fn failure(&self, error: AttemptError<P::Error>, panics: &mut u32) -> Option<Failure> {
        Some(match error {
            AttemptError::Interrupted => return None,
            AttemptError::Returned(error) => self.classifiers.judge(error, &self.protection.observers),
            AttemptError::TimedOut => {
                let after = self.policy.timeout();
                Failure::transient(AttemptTimedOut { after }).with_code("attempt_timed_out")
            }
            AttemptError::Panicked(panicked) => {
                *panics += 1;
                // Once may be chance, such as a poisoned connection; twice is the record.
                let verdict = if *panics < 2 {
                    Verdict::transient().with_scope(Scope::Record)
                } else {
                    Verdict::permanent()
                };
                Failure::new(panicked, verdict.with_code("panicked"))
            }
        })
    }
}

/// The error inside an `anyhow::Error`. Once that is boxed, its `source()` is the *source* of the error
/// that it holds, and the error itself is seen no more.
#[cfg(feature = "anyhow")]
fn within_anyhow<E: 'static>(error: &E) -> Option<&(dyn Error + 'static)> {
    let error = (error as &dyn std::any::Any).downcast_ref::<anyhow::Error>()?;
    Some(&**error)
}

#[cfg(not(feature = "anyhow"))]
fn within_anyhow<E: 'static>(_: &E) -> Option<&(dyn Error + 'static)> {
    None
}
