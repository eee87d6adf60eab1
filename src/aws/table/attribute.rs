//! Attributes of an item: reads and writes texts, numbers and times.

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_sdk_dynamodb::types::AttributeValue;

use crate::failure::BoxError;

pub(crate) type Item = HashMap<String, AttributeValue>;

pub(crate) fn string(text: &str) -> AttributeValue {
    AttributeValue::S(text.to_owned())
}

pub(crate) fn numeral(number: u64) -> AttributeValue {
    AttributeValue::N(number.to_string())
}

/// Returns a text; `None` if the attribute is missing or of another type.
pub(crate) fn text<'a>(item: &'a Item, name: &str) -> Option<&'a str> {
    item.get(name)?.as_s().ok().map(String::as_str)
}

/// Returns a number; `None` if the attribute is missing.
pub(crate) fn number(item: &Item, name: &str) -> Result<Option<u64>, BoxError> {
    match item.get(name) {
        None => Ok(None),
        Some(AttributeValue::N(digits)) => Ok(Some(digits.parse()?)),
        Some(_) => Err(format!("{name} is not a number").into()),
    }
}

/// Returns the seconds since 1970; 0 for an earlier time.
pub(crate) fn seconds(time: SystemTime) -> u64 {
    since_1970(time).as_secs()
}

/// Returns the milliseconds since 1970; 0 for an earlier time.
pub(crate) fn millis(time: SystemTime) -> u64 {
    u64::try_from(since_1970(time).as_millis()).unwrap_or(u64::MAX)
}

fn since_1970(time: SystemTime) -> Duration {
    time.duration_since(UNIX_EPOCH).unwrap_or_default()
}
