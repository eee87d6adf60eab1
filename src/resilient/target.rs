//! May the dead-letter sink and the idempotency store be used? Every runtime asks before the first record.

use std::error::Error;
use std::time::Duration;

use super::answer::answer;
#[cfg(feature = "aws")]
use crate::aws::FailedCall;
use crate::dead_letter::{DeadLetterSink, SourceStream, TargetError};
use crate::external::caught;
use crate::failure::BoxError;
use crate::failure::classify::StandardClassifier;
#[cfg(feature = "kinesis")]
use crate::idempotency::{IdempotencyStore, Key, StoreError};
use crate::observer::{Event, Interest, Observers};
#[cfg(feature = "kinesis")]
use crate::wall_clock;

/// Who has not answered by then is asked once more.
const CHECK_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a sink or a store is not used.
pub(crate) enum Unusable<E> {
    /// It could not be checked, and may be the next time.
    NotNow(BoxError),
    /// The same answer comes until an operator changes something.
    Never(E),
}

/// Looks at a sink's target, and tells what may lose letters later.
pub(crate) async fn check_target(
    sink: &dyn DeadLetterSink,
    source: &SourceStream,
    observers: &Observers,
) -> Result<(), Unusable<TargetError>> {
    let checked = answer("the dead-letter target", CHECK_TIMEOUT, sink.check(source)).await;
    let warnings = match checked.map_err(Unusable::NotNow)? {
        Ok(warnings) => warnings,
        Err(error) => {
            return Err(match &error {
                TargetError::Unreachable { source, .. } if is_passing(&**source) => {
                    Unusable::NotNow(error.into())
                }
                _ => Unusable::Never(error),
            });
        }
    };
    if observers.want(Interest::SHARDS) {
        let name = caught(|| sink.name());
        for warning in warnings {
            observers.tell(&Event::DeadLetterTargetWarning {
                sink: name.as_deref().unwrap_or("the dead-letter sink"),
                message: &warning.message,
                remedy: &warning.remedy,
            });
        }
    }
    Ok(())
}

/// Checks that an idempotency store answers.
#[cfg(feature = "kinesis")]
pub(crate) async fn check_store(store: &dyn IdempotencyStore) -> Result<(), Unusable<StoreError>> {
    // No record has this key.
    let keys = [Key::of_check()];
    let answers = answer(
        "the idempotency store",
        CHECK_TIMEOUT,
        store.status(&keys, wall_clock::now()),
    )
    .await;
    match answers.map_err(Unusable::NotNow)?.pop() {
        Some(Err(error @ StoreError::Unavailable(_))) => Err(match is_passing(&error) {
            true => Unusable::NotNow(error.into()),
            false => Unusable::Never(error),
        }),
        // What is stored under a key is that key's affair.
        _ => Ok(()),
    }
}

/// Returns false if another call gives the same answer until an operator changes something.
pub(super) fn is_passing(error: &(dyn Error + 'static)) -> bool {
    #[cfg(feature = "aws")]
    if FailedCall::is_refused(error) {
        return false;
    }
    StandardClassifier::is_passing(error)
}
