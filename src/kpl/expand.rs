//! Unpacks the KPL aggregates among the records that a runtime has read.
//!
//! The size of one batch is bounded: a large aggregate stays packed, and its records are made when the
//! pipeline takes them in.

use crate::kpl::{Deaggregator, Expanded};
use crate::observer::{Event, Interest, Observers, RecordEvent};
use crate::record::Record;

/// Adds the records inside an aggregate, or the record itself if it is not an aggregate. Only for a
/// [`Batch`](crate::pipeline::Batch), because a large aggregate is added as one packed record.
#[inline]
pub(crate) fn unpack(
    deaggregator: &Deaggregator,
    record: Record,
    observers: &Observers,
    into: &mut Vec<Record>,
) {
    let before = into.len();
    match deaggregator.expand_or_pack(record, into) {
        Expanded::Plain | Expanded::Aggregate { out_of_range: 0, .. } => {}
        Expanded::Aggregate { out_of_range, .. } => tell(observers, || Event::Record {
            record: &into[before],
            event: RecordEvent::AggregateOutOfRange {
                records: out_of_range,
                dropped: false,
            },
        }),
        Expanded::Dropped { record, records } => tell(observers, || Event::Record {
            record: &record,
            event: RecordEvent::AggregateOutOfRange {
                records,
                dropped: true,
            },
        }),
        Expanded::Damaged(error) => tell(observers, || Event::Record {
            record: &into[before],
            event: RecordEvent::AggregateDamaged { error: &error },
        }),
    }
}

/// Returns the number of records, including the records inside packed aggregates.
#[cfg(feature = "kinesis")]
pub(crate) fn count(records: &[Record]) -> usize {
    records.iter().map(Record::count).sum()
}

#[cold]
fn tell<'a>(observers: &Observers, event: impl FnOnce() -> Event<'a>) {
    if observers.want(Interest::SHARDS) {
        observers.tell(&event());
    }
}
