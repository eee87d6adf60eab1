//! The tags that mark a redriven record inside an aggregate.
//!
//! The KPL's format has tags for each record. The KPL does not write them and KCL does not read them, so the
//! payload stays unchanged for every consumer that opens aggregates.

use bytes::Bytes;

use super::wire::Tag;
use crate::record::Redriven;
use crate::rfc3339;

const ORIGIN: &str = "redrive.origin";
const COUNT: &str = "redrive.count";
const ARRIVED_AT: &str = "redrive.arrived_at";

/// The number of redrive's tags.
pub(super) const TAGS: usize = 3;

pub(super) fn is_ours(tag: &Tag) -> bool {
    [ORIGIN, COUNT, ARRIVED_AT]
        .iter()
        .any(|key| tag.key == key.as_bytes())
}

pub(super) fn tags(redriven: &Redriven) -> Vec<Tag> {
    let tag = |key: &'static str, value: String| Tag {
        key: Bytes::from_static(key.as_bytes()),
        value: Some(value.into()),
    };
    let mut tags = vec![
        tag(ORIGIN, redriven.origin.to_string()),
        tag(COUNT, redriven.count.to_string()),
    ];
    if let Some(arrival) = redriven.arrival {
        tags.push(tag(ARRIVED_AT, rfc3339::format(arrival).to_string()));
    }
    tags
}

/// Reads the origin of a redriven record from its tags. Returns `None` without tags of redrive, or with
/// invalid ones: the record then counts as an ordinary record.
pub(super) fn redriven(tags: &[Tag]) -> Option<Redriven> {
    if tags.is_empty() {
        return None;
    }
    let value = |key: &str| {
        let tag = tags.iter().find(|tag| tag.key == key.as_bytes())?;
        std::str::from_utf8(tag.value.as_ref()?).ok()
    };
    let arrival = value(ARRIVED_AT).and_then(|time| humantime::parse_rfc3339(time).ok());
    Some(Redriven::new(
        value(ORIGIN)?.parse().ok()?,
        value(COUNT)?.parse().ok().filter(|&count| count > 0)?,
        arrival,
    ))
}
