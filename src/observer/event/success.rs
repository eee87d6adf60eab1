//! The success of a record at its first attempt.

use std::time::Duration;

use super::{Event, RecordEvent};
use crate::record::Record;
use crate::settlement::Settled;

/// The success of a record at its first attempt. It stands for two events: [`RecordEvent::AttemptEnded`] and
/// [`RecordEvent::Settled`].
#[derive(Debug)]
#[non_exhaustive]
pub struct Success<'a> {
    /// The record.
    pub record: &'a Record,
    /// The duration of the attempt.
    pub took: Duration,
}

impl<'a> Success<'a> {
    /// Returns the two events, in their order.
    pub fn events(&self) -> [Event<'a>; 2] {
        let ended = RecordEvent::AttemptEnded {
            records: 1,
            attempt: 1,
            took: self.took,
            succeeded: true,
        };
        let settled = RecordEvent::Settled {
            settled: Settled::Processed,
            attempts: 1,
        };
        let record = self.record;
        [ended, settled].map(|event| Event::Record { record, event })
    }
}

#[cfg(test)]
mod tests {
    use crate::observer::Interest;

    use super::*;

    #[test]
    fn success_is_an_ended_attempt_and_a_settlement() {
        let success = Success {
            record: &Record::builder("orders", "shardId-0".into(), 1.into()).build(),
            took: Duration::from_millis(2),
        };
        let kinds = success.events().map(|event| event.kind());
        assert_eq!(kinds, [Interest::ATTEMPTS, Interest::SETTLEMENTS]);
    }
}
