//! The count, stored with a checkpoint, of starts that did not get past that checkpoint.

use std::fmt;
use std::str::FromStr;

use crate::record::Position;

/// The number of times that a shard started at a checkpoint without getting past it. A process that aborts,
/// overflows its stack or is killed for its memory leaves no other trace.
///
/// Stores keep the count as text (`Display`, `FromStr`): `2`, or with a record in flight `3 4965…127/0 1`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct CrashCount {
    /// The number of starts that began a record and stored no later checkpoint past the position.
    pub count: u32,
    /// The only record in flight when the count was stored, while the consumer processes one record at a
    /// time.
    pub in_hand: Option<InFlightRecord>,
}

/// A record that the consumer processes alone, because it may have crashed the process.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct InFlightRecord {
    /// The record's position.
    pub position: Position,
    /// The number of times that processing of the record began.
    pub times: u32,
}

impl CrashCount {
    /// Creates a count of starts, with the record in flight if there is one.
    pub fn new(count: u32, in_hand: Option<InFlightRecord>) -> Self {
        CrashCount { count, in_hand }
    }

    /// Returns true if there is nothing to store.
    pub fn is_none(&self) -> bool {
        self.count == 0 && self.in_hand.is_none()
    }
}

impl InFlightRecord {
    /// Creates a record in flight whose processing began `times` times.
    pub fn new(position: Position, times: u32) -> Self {
        InFlightRecord { position, times }
    }
}

impl fmt::Display for CrashCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.count)?;
        match &self.in_hand {
            Some(InFlightRecord {
                position:
                    Position::Record {
                        sequence_number,
                        sub_sequence_number,
                    },
                times,
            }) => write!(f, " {sequence_number}/{sub_sequence_number} {times}"),
            _ => Ok(()),
        }
    }
}

/// The text is not a [`CrashCount`].
#[derive(Debug, thiserror::Error)]
#[error("not a crash count: expected `COUNT`, or `COUNT SEQUENCE/SUB TIMES`")]
pub struct ParseCrashCountError;

impl FromStr for CrashCount {
    type Err = ParseCrashCountError;

    fn from_str(text: &str) -> Result<Self, ParseCrashCountError> {
        let parse = || {
            let mut words = text.split(' ');
            let count = words.next()?.parse().ok()?;
            let Some(place) = words.next() else {
                return Some(CrashCount::new(count, None));
            };
            let (sequence_number, sub_sequence_number) = place.split_once('/')?;
            let position = Position::Record {
                sequence_number: sequence_number.parse().ok()?,
                sub_sequence_number: sub_sequence_number.parse().ok()?,
            };
            let times = words.next()?.parse().ok()?;
            let in_hand = Some(InFlightRecord { position, times });
            words.next().is_none().then_some(CrashCount { count, in_hand })
        };
        parse().ok_or(ParseCrashCountError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let position = Position::Record {
            sequence_number: 4_965.into(),
            sub_sequence_number: 7,
        };
        for (starts, text) in [
            (CrashCount::new(2, None), "2"),
            (
                CrashCount::new(3, Some(InFlightRecord::new(position, 1))),
                "3 4965/7 1",
            ),
        ] {
            assert_eq!(starts.to_string(), text);
            assert_eq!(text.parse::<CrashCount>().expect("as written"), starts);
        }
        for text in ["", "x", "1 ", "1 5", "1 5/0", "1 5/x 1", "1 5/0 1 2", "-1"] {
            assert!(text.parse::<CrashCount>().is_err(), "{text:?}");
        }
    }
}
