//! Classification of errors: can another attempt succeed, and whose fault is the error?
//!
//! Retrying a record that cannot succeed wastes time and blocks a lane. Dead-lettering a record that would
//! have succeeded a second later leaves it to an operator. The engine therefore gets a [`Verdict`] on every
//! error, in three steps:
//! 1. the builder's `.classify(|error: &MyError| …)`, which sees the processor's own error type;
//! 2. any [`Classify`], which sees a `dyn Error`;
//! 3. [`StandardClassifier`]: marks ([`MarkFailure`](crate::MarkFailure)), I/O, timeouts, parsers and AWS
//!    errors.
//!
//! An error that none of them knows is treated as [`Verdict::transient`]: the record is retried a few times,
//! and the scope is unknown.
#![cfg_attr(
    feature = "kinesis",
    doc = "
For AWS, the standard classifier knows all errors of the Kinesis client. Of other services it knows only
the errors that have the same type in every service. [`sdk_errors`] is a classifier for an operation of
another service. [`sdk_error`] and [`aws_code`] are for a processor that has the error, or only its code."
)]

use std::error::Error;
use std::sync::Arc;

pub use crate::failure::Verdict;

#[cfg(feature = "kinesis")]
mod aws;
#[cfg(feature = "kinesis")]
mod aws_code;
mod standard;

#[cfg(feature = "kinesis")]
pub use aws::{SdkErrors, sdk_error, sdk_errors};
#[cfg(feature = "kinesis")]
pub use aws_code::aws_code;
pub use standard::StandardClassifier;

/// Classifies an error.
///
/// The engine calls a classifier once for each failed attempt, never for a successful one. A classifier must
/// be quick and must not block. A function is a classifier, and so is a closure that names its argument's
/// type:
///
/// ```
/// use std::error::Error;
/// use redrive::{Classify, classify::Verdict};
/// # #[derive(Debug)] struct CardDeclined;
/// # impl std::fmt::Display for CardDeclined {
/// #     fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { f.write_str("declined") }
/// # }
/// # impl Error for CardDeclined {}
///
/// let declined = |error: &(dyn Error + 'static)| {
///     error.is::<CardDeclined>().then(|| Verdict::permanent().with_code("card_declined"))
/// };
/// assert!(declined.classify(&CardDeclined).is_some());
/// assert!(declined.classify(&std::fmt::Error).is_none());
/// ```
pub trait Classify: Send + Sync {
    /// Returns the verdict on an error; `None` if this classifier does not know the error. The engine then
    /// asks the next classifier.
    ///
    /// `error` is the error that the processor returned. Its `source()` leads to the errors that it wraps.
    /// Beware of wrappers that expose the source of an error in place of the error itself, such as
    /// `#[error(transparent)]` and `Arc`. The builder's typed `.classify(…)` sees through them, this method
    /// does not. (The engine looks through an `anyhow::Error` if the feature `anyhow` is on.)
    fn classify(&self, error: &(dyn Error + 'static)) -> Option<Verdict>;
}

const _: Option<&dyn Classify> = None;

impl<C: Classify + ?Sized> Classify for Arc<C> {
    fn classify(&self, error: &(dyn Error + 'static)) -> Option<Verdict> {
        (**self).classify(error)
    }
}

impl<F> Classify for F
where
    F: Fn(&(dyn Error + 'static)) -> Option<Verdict> + Send + Sync,
{
    fn classify(&self, error: &(dyn Error + 'static)) -> Option<Verdict> {
        self(error)
    }
}
