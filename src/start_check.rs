//! What a check of a sink or a store at the start concludes: whether another call can help.

use std::error::Error;
use std::time::Duration;

use crate::failure::BoxError;
use crate::failure::classify::StandardClassifier;

/// The time limit for the check of a sink or a store. A check that exceeds the limit is repeated.
pub(crate) const CHECK_TIMEOUT: Duration = Duration::from_secs(30);

/// The reason why a sink or a store cannot be used.
pub(crate) enum Unusable<E> {
    /// The check failed, and may succeed the next time.
    NotNow(BoxError),
    /// The check gives the same answer until an operator changes something.
    Never(E),
}

/// Returns false if another call gives the same answer until an operator changes something.
pub(crate) fn is_passing(error: &(dyn Error + 'static)) -> bool {
    #[cfg(feature = "__aws")]
    if crate::aws::FailedCall::is_refused(error) {
        return false;
    }
    StandardClassifier::is_passing(error)
}
