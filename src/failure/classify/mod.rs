//! What an error means: will trying again help, and whose fault is it?
//!
//! Retrying what cannot succeed wastes time and blocks a lane; dead-lettering what would have
//! succeeded a second later loses it to an operator's desk. So every error gets a [`Verdict`], in
//! three steps:
//! 1. the builder's `.classify(|error: &MyError| …)`, which sees the handler's own type;
//! 2. any [`Classify`], which sees a `dyn Error`;
//! 3. [`StandardClassifier`]: marks ([`MarkFailure`](crate::MarkFailure)), I/O, timeouts, parsers and
//!    AWS errors.
//!
//! An error that none of them knows is taken for [`Verdict::transient`]: it is tried a few times, and
//! its scope is unknown.
#![cfg_attr(
    feature = "kinesis",
    doc = "
For AWS: the standard classifier knows the Kinesis client's errors as they are, of other services only
what has the same type everywhere. [`sdk_errors`] teaches it an operation of another service;
[`sdk_error`] and [`aws_code`] are for a handler that has the error, or just its code, in hand."
)]

use std::error::Error;
use std::sync::Arc;

use crate::failure::Verdict;

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

/// Says what an error means.
///
/// Called once for each failed attempt, never for one that succeeded. It must be quick and must not
/// block. A function is a classifier, and so is a closure that names its argument's type:
///
/// ```
/// use std::error::Error;
/// use redrive::{Classify, Verdict};
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
    /// The verdict; `None` when this classifier does not know the error, and the next is asked.
    ///
    /// `error` is what the handler returned: what it wraps is reached through `source()`. Beware of
    /// wrappers that show the source of an error in place of the error itself, as
    /// `#[error(transparent)]` and `Arc` do: the typed `.classify(…)` of the builder sees through
    /// them, this does not. (Through an `anyhow::Error` the engine looks, with feature `anyhow`.)
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
