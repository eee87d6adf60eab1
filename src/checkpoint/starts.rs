//! What is known, beside a checkpoint, of processes that did not come past it.

use std::fmt;
use std::str::FromStr;

use crate::record::Position;

/// How often a shard was begun at a checkpoint without coming past it. A process that aborts, overflows its stack or
/// is killed for its memory leaves no other trace.
///
/// As text (`Display`, `FromStr`) it is what stores keep: `2`, or with a record in hand `3 4965…127/0 1`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct CrashCount {
    /// CrashCount that began a record, without a checkpoint since that is past the position.
    pub count: u32,
    /// The only record that was tried when this was written, where one at a time is.
    pub in_hand: Option<InFlightRecord>,
}

/// A record that is tried alone.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct InFlightRecord {
    /// The record's.
    pub position: Position,
    /// How often it was taken in hand.
    pub times: u32,
}

impl CrashCount {
    /// So many, with this record in hand.
    pub fn new(count: u32, in_hand: Option<InFlightRecord>) -> Self {
        CrashCount { count, in_hand }
    }

    /// Whether there is nothing to keep.
    pub fn is_none(&self) -> bool {
        self.count == 0 && self.in_hand.is_none()
    }
}

impl InFlightRecord {
    /// This record, so often.
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

/// The text is none of a [`CrashCount`].
#[derive(Debug, thiserror::Error)]
#[error("not a count of starts")]
pub struct InvalidStarts;

impl FromStr for CrashCount {
    type Err = InvalidStarts;

    fn from_str(text: &str) -> Result<Self, InvalidStarts> {
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
        parse().ok_or(InvalidStarts)
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
