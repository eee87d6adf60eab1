//! A position in a shard, as written on a command line.

use std::str::FromStr;
use std::time::{Duration, UNIX_EPOCH};

use redrive::{BoxError, Position};

use crate::filter;

/// The position of a record: `SEQUENCE`, or `SEQUENCE/SUB` for a record inside an aggregated record.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct At(pub(super) Position);

/// The target of a rewind: a record, a time, or `trim-horizon`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct To(pub(super) Position);

impl FromStr for At {
    type Err = BoxError;

    fn from_str(text: &str) -> Result<Self, BoxError> {
        // `redrive shards list` separates the two numbers with a colon, as KCL does.
        let (number, sub) = text.split_once(['/', ':']).unwrap_or((text, "0"));
        Ok(At(Position::Record {
            sequence_number: number.parse()?,
            sub_sequence_number: sub.parse()?,
        }))
    }
}

impl FromStr for To {
    type Err = BoxError;

    fn from_str(text: &str) -> Result<Self, BoxError> {
        if text.eq_ignore_ascii_case("trim-horizon") || text == Position::TrimHorizon.to_string() {
            return Ok(To(Position::TrimHorizon));
        }
        if let Ok(At(record)) = text.parse() {
            return Ok(To(record));
        }
        let time = filter::time(text)
            .map_err(|_| "write a time (2026-11-28T09:00:00Z, or 2h for two hours ago), SEQUENCE[/SUB] or trim-horizon")?;
        let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Ok(To(Position::AtTimestamp {
            millis: u64::try_from(since.as_millis())?,
        }))
    }
}
