//! What an attempt's failure means: the classifiers of one processor, asked in turn.

use std::error::Error;

use super::Inner;
use super::attempt::{AttemptTimedOut, How};
use crate::classify::{Classify, StandardClassifier};
use crate::failure::{BoxError, Failure, Scope, Verdict};
use crate::processor::RecordProcessor;

pub(super) type Typed<E> = Box<dyn Fn(&E) -> Option<Verdict> + Send + Sync>;

/// The user's typed ones first, while the error still has its type; then the erased ones; the standard
/// one last.
pub(super) struct Classifiers<E> {
    pub(super) typed: Vec<Typed<E>>,
    pub(super) erased: Vec<Box<dyn Classify>>,
}

impl<E: Into<BoxError> + 'static> Classifiers<E> {
    /// What nobody knows is transient, and nobody's fault as far as one can tell.
    pub(super) fn judge(&self, error: E) -> Failure {
        let early = self
            .typed
            .iter()
            .find_map(|classify| classify(&error))
            .or_else(|| self.ask(within_anyhow(&error)?));
        let error: BoxError = error.into();
        let verdict = early
            .or_else(|| self.ask(&*error))
            .unwrap_or(const { Verdict::transient() });
        Failure::new(error, verdict)
    }

    fn ask(&self, error: &(dyn Error + 'static)) -> Option<Verdict> {
        self.erased
            .iter()
            .find_map(|classifier| classifier.classify(error))
            .or_else(|| StandardClassifier.classify(error))
    }
}

impl<P: RecordProcessor> Inner<P> {
    /// The failure that an attempt ended in; `None`: it was cut short, which says nothing. `panics` counts
    /// the record's.
    pub(super) fn failure(&self, how: How<P::Error>, panics: &mut u32) -> Option<Failure> {
        Some(match how {
            How::Cut => return None,
            How::Failed(error) => self.classifiers.judge(error),
            How::TimedOut => {
                let after = self.policy.timeout();
                Failure::transient(AttemptTimedOut { after }).with_code("attempt_timed_out")
            }
            How::Panicked(panicked) => {
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
