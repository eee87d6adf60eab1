//! The events that observers receive.

use super::Interest;
use crate::record::{Record, ShardId};

mod dead_letter;
mod fleet;
mod protection;
mod record;
mod shard;
mod stream;
mod success;

pub use dead_letter::DeadLetterEvent;
pub use fleet::FleetEvent;
pub use protection::ProtectionEvent;
pub use record::{RecordEvent, Redacted};
pub use shard::{Bound, ShardEvent};
pub use stream::StreamEvent;
pub use success::Success;

/// An event that observers receive, in the family of what the event concerns. New families may be added.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// An event of a record.
    Record {
        /// The record.
        record: &'a Record,
        /// The event.
        event: RecordEvent<'a>,
    },
    /// An event of a shard.
    Shard {
        /// The stream's name.
        stream: &'a str,
        /// The shard.
        shard: &'a ShardId,
        /// The event.
        event: ShardEvent<'a>,
    },
    /// An event of a stream and its consumer.
    Stream {
        /// The stream's name.
        stream: &'a str,
        /// The event.
        event: StreamEvent<'a>,
    },
    /// An event of the workers that share the shards of a stream.
    Fleet {
        /// The stream's name.
        stream: &'a str,
        /// The event.
        event: FleetEvent<'a>,
    },
    /// An event of a dead-letter sink.
    DeadLetter(DeadLetterEvent<'a>),
    /// An event of what all records share: a circuit breaker, the idempotency store or user code.
    Protection(ProtectionEvent<'a>),
}

impl<'a> Event<'a> {
    /// Returns the kind of the event: one of the constants of [`Interest`].
    pub fn kind(&self) -> Interest {
        match self {
            Event::Record { event, .. } => match event {
                RecordEvent::Settled { .. } => Interest::SETTLEMENTS,
                RecordEvent::AttemptEnded { .. } => Interest::ATTEMPTS,
                RecordEvent::AggregateDamaged { .. }
                | RecordEvent::AggregateOutOfRange { .. }
                | RecordEvent::Expiring { .. } => Interest::SHARDS,
                _ => Interest::FAILURES,
            },
            Event::Shard { event, .. } => match event {
                ShardEvent::Status { .. } => Interest::STATUS,
                _ => Interest::SHARDS,
            },
            Event::Stream { .. } | Event::Fleet { .. } => Interest::SHARDS,
            Event::DeadLetter(event) => match event {
                DeadLetterEvent::WriteDelayed { .. } => Interest::FAILURES,
                DeadLetterEvent::TargetWarning { .. } => Interest::SHARDS,
            },
            Event::Protection(_) => Interest::FAILURES,
        }
    }

    /// Returns the name of the stream that the event belongs to, if any.
    pub fn stream(&self) -> Option<&'a str> {
        match *self {
            Event::Record { record, .. } => Some(record.stream()),
            Event::Shard { stream, .. } | Event::Stream { stream, .. } | Event::Fleet { stream, .. } => {
                Some(stream)
            }
            Event::DeadLetter(_) | Event::Protection(_) => None,
        }
    }

    /// Returns the shard that the event belongs to, if any.
    pub fn shard(&self) -> Option<&'a ShardId> {
        match *self {
            Event::Record { record, .. } => Some(record.shard()),
            Event::Shard { shard, .. } => Some(shard),
            Event::Stream { .. } | Event::Fleet { .. } | Event::DeadLetter(_) | Event::Protection(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::settlement::Settled;

    #[test]
    fn families_and_their_exceptions_have_their_kinds() {
        let record = &Record::builder("orders", "shardId-0".into(), 1.into()).build();
        let (stream, shard) = (record.stream(), record.shard());
        let (error, delay, attempt, records) = (&std::fmt::Error, Duration::ZERO, 1, 1);
        let of_record = |event| Event::Record { record, event }.kind();
        let of_shard = |event| Event::Shard { stream, shard, event }.kind();

        assert_eq!(of_record(RecordEvent::RetryDelayed { delay }), Interest::FAILURES);
        assert_eq!(of_record(RecordEvent::DeadLetterGuardResumed), Interest::FAILURES);
        let settled = RecordEvent::Settled {
            settled: Settled::Processed,
            attempts: 1,
        };
        assert_eq!(of_record(settled), Interest::SETTLEMENTS);
        let ended = RecordEvent::AttemptEnded {
            records,
            attempt,
            took: delay,
            succeeded: true,
        };
        assert_eq!(of_record(ended), Interest::ATTEMPTS);
        for of_reading in [
            RecordEvent::AggregateDamaged { error },
            RecordEvent::AggregateOutOfRange {
                records,
                dropped: true,
            },
            RecordEvent::Expiring {
                age: delay,
                left: delay,
            },
        ] {
            assert_eq!(of_record(of_reading), Interest::SHARDS);
        }

        assert_eq!(of_shard(ShardEvent::HandedOver), Interest::SHARDS);
        let status = ShardEvent::Status {
            in_flight: 0,
            oldest: None,
            since_progress: delay,
        };
        assert_eq!(of_shard(status), Interest::STATUS);
        let event = FleetEvent::IndexMissing;
        assert_eq!(Event::Fleet { stream, event }.kind(), Interest::SHARDS);
        let event = StreamEvent::NotDescribed { error };
        assert_eq!(Event::Stream { stream, event }.kind(), Interest::SHARDS);

        let delayed = DeadLetterEvent::WriteDelayed {
            sink: "",
            letters: 1,
            failures: 1,
            error,
            delay,
        };
        assert_eq!(Event::DeadLetter(delayed).kind(), Interest::FAILURES);
        let warning = DeadLetterEvent::TargetWarning {
            sink: "",
            message: "",
            remedy: "",
        };
        assert_eq!(Event::DeadLetter(warning).kind(), Interest::SHARDS);
        let closed = ProtectionEvent::BreakerClosed {
            dependency: None,
            after: delay,
        };
        assert_eq!(Event::Protection(closed).kind(), Interest::FAILURES);
    }
}
