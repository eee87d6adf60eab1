//! Times as RFC 3339 with milliseconds: readable, and sortable as text.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Deserializer, Serializer, de};

pub(crate) fn serialize<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format(*time))
}

/// Formats a time, limited to the years 1970 to 9999: a clock that is off must not lose a dead letter.
pub(crate) fn format(time: SystemTime) -> humantime::Rfc3339Timestamp {
    humantime::format_rfc3339_millis(time.clamp(UNIX_EPOCH, last()))
}

/// Formats a time to the second, for texts that a person reads.
pub(crate) fn format_seconds(time: SystemTime) -> humantime::Rfc3339Timestamp {
    humantime::format_rfc3339_seconds(time.clamp(UNIX_EPOCH, last()))
}

fn last() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(253_402_300_799)
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SystemTime, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_rfc3339(&text).map_err(de::Error::custom)
}

pub(crate) mod optional {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(
        time: &Option<SystemTime>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match time {
            Some(time) => super::serialize(time, serializer),
            None => serializer.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<SystemTime>, D::Error> {
        Option::<String>::deserialize(deserializer)?
            .map(|text| humantime::parse_rfc3339(&text).map_err(de::Error::custom))
            .transpose()
    }
}

/// Truncates a time to milliseconds, so that a dead letter reads back as it was written.
pub(crate) fn to_millis(time: SystemTime) -> SystemTime {
    let below = time
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.subsec_nanos() % 1_000_000);
    time.checked_sub(Duration::from_nanos(u64::from(below)))
        .unwrap_or(time)
}
