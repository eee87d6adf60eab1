//! What every runtime does with a record that it has read: what the KPL has aggregated is taken apart.

use crate::kpl::{Deaggregator, Expanded};
use crate::observer::{Event, Interest, Observers};
use crate::record::Record;

/// Adds the records inside of one that the KPL has aggregated, and any other as it is.
#[inline]
pub(crate) fn unpack(
    deaggregator: &Deaggregator,
    record: Record,
    observers: &Observers,
    into: &mut Vec<Record>,
) {
    let before = into.len();
    match deaggregator.expand(record, into) {
        Expanded::Plain | Expanded::Aggregate { out_of_range: 0, .. } => {}
        Expanded::Aggregate { out_of_range, .. } => tell(observers, || Event::AggregateOutOfRange {
            record: &into[before],
            records: out_of_range,
            dropped: false,
        }),
        Expanded::Dropped { record, records } => tell(observers, || Event::AggregateOutOfRange {
            record: &record,
            records,
            dropped: true,
        }),
        Expanded::Damaged(error) => tell(observers, || Event::AggregateDamaged {
            record: &into[before],
            error: &error,
        }),
    }
}

#[cold]
fn tell<'a>(observers: &Observers, event: impl FnOnce() -> Event<'a>) {
    if observers.want(Interest::SHARDS) {
        observers.tell(&event());
    }
}
