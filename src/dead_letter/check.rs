//! Checks a dead-letter sink before the first record is read.

use super::{DeadLetterSink, SourceStream, TargetError};
use crate::external::{answer, caught};
use crate::observer::{DeadLetterEvent, Event, Interest, Observers};
use crate::start_check::{CHECK_TIMEOUT, Unusable, is_passing};

/// Checks a sink's target, and reports warnings about what may lose dead letters later.
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
            observers.tell(&Event::DeadLetter(DeadLetterEvent::TargetWarning {
                sink: name.as_deref().unwrap_or("the dead-letter sink"),
                message: &warning.message,
                remedy: &warning.remedy,
            }));
        }
    }
    Ok(())
}
