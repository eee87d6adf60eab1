//! The success of a record at its first attempt.

use std::time::Duration;

use super::{Event, RecordEvent};
use crate::record::Record;
use crate::settlement::Settled;

/// The success of a record at its first attempt. It stands for two events: [`RecordEvent::AttemptEnded`] and
/// [`RecordEvent::Settled`].
#[derive(Debug)]
pub struct Success<'a> {
    record: &'a Record,
    /// The duration of the attempt in nanoseconds. A `Duration` is made only for an observer that wants one.
    nanos: i64,
}

impl<'a> Success<'a> {
    /// Creates the success of an attempt that took this number of nanoseconds.
    #[inline]
    pub(crate) fn new(record: &'a Record, nanos: i64) -> Self {
        Success { record, nanos }
    }

    /// Returns the record.
    pub fn record(&self) -> &'a Record {
        self.record
    }

    /// Returns the duration of the attempt.
    pub fn took(&self) -> Duration {
        Duration::from_nanos(self.nanos.unsigned_abs())
    }

    /// Returns the duration of the attempt in nanoseconds, which is never negative.
    #[cfg(feature = "metrics")]
    #[inline]
    pub(crate) fn nanos(&self) -> i64 {
        self.nanos
    }

    /// Returns the two events, in their order.
    pub fn events(&self) -> [Event<'a>; 2] {
        let ended = RecordEvent::AttemptEnded {
            records: 1,
            attempt: 1,
            took: self.took(),
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
        let record = Record::builder("orders", "shardId-0".into(), 1.into()).build();
        let success = Success::new(&record, 2_000_000);
        let kinds = success.events().map(|event| event.kind());
        assert_eq!(kinds, [Interest::ATTEMPTS, Interest::SETTLEMENTS]);
    }
}
