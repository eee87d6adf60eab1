//! May the dead-letter sink be used with this stream? Every runtime asks before the first record.

use std::time::Duration;

use super::answer::answer;
use crate::classify::StandardClassifier;
use crate::dead_letter::{DeadLetterSink, SourceStream, TargetError};
use crate::external::caught;
use crate::failure::BoxError;
use crate::observer::{Event, Interest, Observers};

/// Who has not answered by then is asked once more.
const CHECK_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a sink is not used.
pub(crate) enum Unusable {
    /// It could not be looked at, and may be the next time.
    NotNow(BoxError),
    /// Letters would be lost, or read again.
    Never(TargetError),
}

/// Looks at a sink's target, and tells what may lose letters later.
pub(crate) async fn check_target(
    sink: &dyn DeadLetterSink,
    source: &SourceStream,
    observers: &Observers,
) -> Result<(), Unusable> {
    let checked = answer("the dead-letter target", CHECK_TIMEOUT, sink.check(source)).await;
    let warnings = match checked.map_err(Unusable::NotNow)? {
        Ok(warnings) => warnings,
        Err(error) => {
            return Err(match &error {
                TargetError::Unreachable { source, .. } if StandardClassifier::is_passing(&**source) => {
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
