//! Detects records that the stream dropped before they were settled: the record of the checkpoint is gone.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::checkpoint::{Checkpoint, SettledAhead};
use crate::external::caught;
use crate::observer::{Event, Interest, Observers, ShardEvent};
use crate::record::{Position, SequenceNumber, ShardId};
use crate::rfc3339;
use crate::sabotage::Sabotage;
use crate::wall_clock;

/// Records that a shard dropped, or may have dropped, before they were settled, because they were older than
/// the stream's retention.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DataLoss {
    /// The stream's name.
    pub stream: String,
    /// The shard.
    pub shard: ShardId,
    /// The time before which everything that arrived was settled. `None` if the time is unknown, for example
    /// because another program wrote the checkpoint.
    pub from: Option<SystemTime>,
    /// The time since which everything that arrived is still in the stream.
    pub to: SystemTime,
    /// True if the sequence number of such a record is known: the checkpoint does not have that record as
    /// settled. (A process that died may have settled the record without storing that.) False if it is
    /// unknown whether any record arrived in that time.
    pub certain: bool,
}

impl fmt::Display for DataLoss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = if self.certain {
            "has dropped"
        } else {
            "may have dropped"
        };
        write!(f, "shard {} {how} unsettled records that arrived ", self.shard)?;
        match self.from {
            Some(from) => write!(f, "between {} and ", rfc3339::format_seconds(from))?,
            None => f.write_str("before ")?,
        }
        write!(f, "{}", rfc3339::format_seconds(self.to))
    }
}

impl std::error::Error for DataLoss {}

/// The decision about a shard that has lost records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum DataLossPolicy {
    /// The shard continues with the oldest record that is left.
    #[default]
    Resume,
    /// The shard stops until an operator has moved its checkpoint. The other shards continue.
    Halt,
}

type Decide = dyn Fn(&DataLoss) -> DataLossPolicy + Send + Sync;

/// The user's decision about losses.
#[derive(Clone, Default)]
pub(in crate::consumer) struct OnDataLoss(Option<Arc<Decide>>);

impl OnDataLoss {
    pub(in crate::consumer) fn new(
        decide: impl Fn(&DataLoss) -> DataLossPolicy + Send + Sync + 'static,
    ) -> Self {
        OnDataLoss(Some(Arc::new(decide)))
    }

    /// Reports a loss, and returns the user's decision.
    pub(in crate::consumer) fn report(&self, loss: &DataLoss, observers: &Observers) -> DataLossPolicy {
        if observers.want(Interest::SHARDS) && !Sabotage::HideDataLoss.is_committed() {
            observers.tell(&Event::Shard {
                stream: &loss.stream,
                shard: &loss.shard,
                event: ShardEvent::DataLoss {
                    from: loss.from,
                    to: loss.to,
                    certain: loss.certain,
                },
            });
        }
        let decision = self.0.as_ref().and_then(|decide| caught(|| decide(loss)));
        decision.unwrap_or_default()
    }
}

/// The expected first record when reading starts or resumes, if nothing was lost.
#[derive(Debug, Clone)]
pub(in crate::consumer) struct Expected {
    /// The record that should come first: the checkpoint's own, or the last one handed over. If the position
    /// is a time or the oldest record, the number is that of the first record known to be unsettled, if any.
    pub(in crate::consumer) number: Option<SequenceNumber>,
    /// The time before which everything that arrived was read, or was never wanted.
    pub(in crate::consumer) read_until: Option<SystemTime>,
    /// The first unsettled record, at or after `number`.
    pub(in crate::consumer) first_unsettled: Option<SequenceNumber>,
    /// The observations since Kinesis refused the number. `None` if Kinesis has not refused it.
    pub(in crate::consumer) refused: Option<Refused>,
}

/// The observations that show whether a refused number belongs to the shard.
#[derive(Debug, Clone, Copy)]
pub(in crate::consumer) struct Refused {
    /// True if a record with a lower number was read: then the record itself was not trimmed.
    pub(in crate::consumer) seen_below: bool,
}

impl Expected {
    /// Returns what reading from this checkpoint should begin with.
    pub(in crate::consumer) fn of(checkpoint: &Checkpoint) -> Option<Self> {
        let read_until = checkpoint.read_until();
        let first_unsettled = checkpoint.ahead().and_then(SettledAhead::first_hole).cloned();
        let (number, read_until) = match (checkpoint.position(), &first_unsettled) {
            (Position::Record { sequence_number, .. }, _) => (Some(sequence_number.clone()), read_until),
            // The first unsettled record was the first record that was read.
            (_, Some(first)) => (Some(first.clone()), read_until),
            (position, None) => (None, Some(read_until.or_else(|| begun_at(position))?)),
        };
        Some(Expected {
            number,
            read_until,
            first_unsettled,
            refused: None,
        })
    }

    /// Returns true if the time alone proves that nothing was lost, because no stream drops a record so
    /// early.
    pub(in crate::consumer) fn is_recent(&self) -> bool {
        self.first_unsettled.is_none()
            && self
                .read_until
                .is_some_and(|until| !is_older_than_shortest(until))
    }

    /// Returns what is lost if the expected record is gone: the start of the range, and whether the loss is
    /// certain. `first` is the record that came first instead, if any. The stream keeps nothing from before
    /// `horizon`.
    pub(in crate::consumer) fn missed(
        &self,
        first: Option<&SequenceNumber>,
        horizon: SystemTime,
    ) -> Option<(Option<SystemTime>, bool)> {
        if let Some(unsettled) = &self.first_unsettled {
            // All records between the checkpoint and this one were settled.
            let is_there = first.is_some_and(|first| first <= unsettled);
            return (!is_there).then_some((self.read_until, true));
        }
        match self.read_until {
            Some(until) if until >= horizon => None,
            // The year 1970 stands for an unknown time.
            until => Some((until.filter(|until| *until > SystemTime::UNIX_EPOCH), false)),
        }
    }
}

/// Returns the time since which an application wants a shard's records. A KCL row that began at LATEST has no
/// such time.
fn begun_at(position: &Position) -> Option<SystemTime> {
    match position {
        Position::AtTimestamp { millis } if *millis > 0 => {
            SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(*millis))
        }
        _ => None,
    }
}

/// Returns whether a stream may have dropped what arrived at this time.
pub(in crate::consumer) fn is_older_than_shortest(time: SystemTime) -> bool {
    let age = wall_clock::now().duration_since(time).unwrap_or_default();
    age + CLOCK_SKEW >= SHORTEST_RETENTION
}

/// The assumed maximum difference between the clocks of this machine and of Kinesis.
pub(in crate::consumer) const CLOCK_SKEW: Duration = Duration::from_secs(60);
/// The minimum and default retention of a stream (Kinesis Data Streams quotas).
pub(in crate::consumer) const SHORTEST_RETENTION: Duration = Duration::from_secs(24 * 60 * 60);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Record;

    fn at(secs: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(secs)
    }

    fn missed(
        read_until: Option<u64>,
        first_unsettled: Option<u64>,
        first: Option<u64>,
    ) -> Option<(Option<SystemTime>, bool)> {
        let expected = Expected {
            number: Some(10.into()),
            read_until: read_until.map(at),
            first_unsettled: first_unsettled.map(SequenceNumber::from),
            refused: None,
        };
        expected.missed(first.map(SequenceNumber::from).as_ref(), at(100))
    }

    #[test]
    fn what_was_read_until_then_was_settled() {
        for first in [None, Some(20)] {
            assert_eq!(missed(Some(100), None, first), None);
            assert_eq!(missed(Some(99), None, first), Some((Some(at(99)), false)));
            // The time is unknown: KCL's rows do not state it.
            assert_eq!(missed(None, None, first), Some((None, false)));
        }
    }

    #[test]
    fn a_record_that_was_not_settled_is_known_by_its_number() {
        assert_eq!(missed(Some(50), Some(15), Some(15)), None);
        assert_eq!(missed(Some(50), Some(15), Some(12)), None);
        assert_eq!(missed(Some(50), Some(15), Some(16)), Some((Some(at(50)), true)));
        // The record was not settled, however recently the shard was read.
        assert_eq!(missed(Some(150), Some(15), None), Some((Some(at(150)), true)));
    }

    #[test]
    fn first_unsettled_record_is_expected_without_a_position() {
        let record = |number: u64| Record::builder("orders", "shardId-1".into(), number.into()).build();
        let mut ahead = SettledAhead::builder(Position::TrimHorizon);
        ahead.hole(&record(10), &record(10));
        let ahead = ahead.settled_through(&record(20));
        let checkpoint = Checkpoint::at(Position::TrimHorizon).with_ahead(ahead);
        let expected = Expected::of(&checkpoint).expect("the checkpoint has an unsettled record");
        assert_eq!(expected.number, Some(10.into()));
        assert_eq!(expected.missed(Some(&10.into()), at(100)), None);
        assert_eq!(expected.missed(Some(&15.into()), at(100)), Some((None, true)));
    }

    #[test]
    fn it_says_what_is_lost() {
        let loss = DataLoss {
            stream: "orders".into(),
            shard: "shardId-1".into(),
            from: Some(at(0)),
            to: at(60),
            certain: false,
        };
        assert_eq!(
            loss.to_string(),
            "shard shardId-1 may have dropped unsettled records that arrived between 1970-01-01T00:00:00Z and \
             1970-01-01T00:01:00Z"
        );
    }
}
