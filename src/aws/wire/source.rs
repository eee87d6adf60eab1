//! Reads the values of a body one after the other.

use std::borrow::Cow;

use aws_smithy_schema::serde::SerdeError;
use aws_smithy_types::DateTime;

/// The depth at which nested values are an error. An answer of Kinesis has five levels.
pub(super) const DEEPEST: u32 = 32;

/// The members of a map, or the items of a list, that are not read yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rest {
    /// `None`: the format marks the end.
    pub(super) left: Option<u64>,
    pub(super) is_first: bool,
}

impl Rest {
    /// The rest of a map or list that states its length.
    pub(super) fn of(left: u64) -> Self {
        Rest {
            left: Some(left),
            is_first: true,
        }
    }

    /// The rest of a map or list whose end is marked.
    pub(super) const UNTIL_END: Rest = Rest {
        left: None,
        is_first: true,
    };
}

/// A position in a body. Each method reads the value at this position, and moves behind it. After an error the
/// position means nothing.
pub(super) trait Source<'a> {
    fn is_null(&self) -> bool;
    fn read_null(&mut self) -> Result<(), SerdeError>;
    fn begin_map(&mut self) -> Result<Rest, SerdeError>;
    /// Reads the next key of a map. Returns `None` behind the end of the map.
    fn next_key(&mut self, map: &mut Rest) -> Result<Option<Cow<'a, str>>, SerdeError>;
    fn begin_list(&mut self) -> Result<Rest, SerdeError>;
    /// Moves to the next item of a list. Returns false behind the end of the list.
    fn next_item(&mut self, list: &mut Rest) -> Result<bool, SerdeError>;
    fn read_text(&mut self) -> Result<Cow<'a, str>, SerdeError>;
    fn read_integer(&mut self) -> Result<i64, SerdeError>;
    fn read_boolean(&mut self) -> Result<bool, SerdeError>;
    /// Reads bytes into an allocation of their own: a payload must not keep its page in memory.
    fn read_bytes(&mut self) -> Result<Vec<u8>, SerdeError>;
    fn read_time(&mut self) -> Result<DateTime, SerdeError>;
    /// Reads any value. `depth` is the number of values that contain it.
    fn skip(&mut self, depth: u32) -> Result<(), SerdeError>;
    /// Checks that nothing follows.
    fn end(&mut self) -> Result<(), SerdeError>;
}

/// Reads the rest of a map or list at this depth.
pub(super) fn skip_map<'a>(source: &mut impl Source<'a>, depth: u32) -> Result<(), SerdeError> {
    let depth = deeper(depth)?;
    let mut map = source.begin_map()?;
    while source.next_key(&mut map)?.is_some() {
        source.skip(depth)?;
    }
    Ok(())
}

pub(super) fn skip_list<'a>(source: &mut impl Source<'a>, depth: u32) -> Result<(), SerdeError> {
    let depth = deeper(depth)?;
    let mut list = source.begin_list()?;
    while source.next_item(&mut list)? {
        source.skip(depth)?;
    }
    Ok(())
}

fn deeper(depth: u32) -> Result<u32, SerdeError> {
    match depth < DEEPEST {
        true => Ok(depth + 1),
        false => Err(SerdeError::invalid_input("values are nested too deeply")),
    }
}

pub(super) fn truncated() -> SerdeError {
    SerdeError::invalid_input("the answer ends within a value")
}

pub(super) fn mismatch(expected: &str) -> SerdeError {
    SerdeError::type_mismatch(format!(
        "the answer has a value of another type where {expected} is expected"
    ))
}

/// Returns the integer that this number is, if it is one.
pub(super) fn integral(number: f64) -> Result<i64, SerdeError> {
    // 2^53: larger numbers are not exact.
    match number.fract() == 0.0 && number.abs() <= 9_007_199_254_740_992.0 {
        true => Ok(number as i64),
        false => Err(mismatch("an integer")),
    }
}

/// The smallest integer that counts as milliseconds. As milliseconds it is a time in 1973, as seconds one in the
/// year 5138.
const SMALLEST_MILLIS: f64 = 100_000_000_000.0;

/// Returns the time that an integer means. Kinesis has seconds in JSON and milliseconds in CBOR; emulators mix them
/// up.
pub(super) fn time_of_integer(integer: f64) -> Result<DateTime, SerdeError> {
    match integer.abs() < SMALLEST_MILLIS {
        true => time_of_seconds(integer),
        // Exact: the largest time is below 2^53.
        false => time_of_millis(integer),
    }
}

/// Returns the time that is this number of seconds after 1970, to the millisecond.
pub(super) fn time_of_seconds(seconds: f64) -> Result<DateTime, SerdeError> {
    time_of_millis((seconds * 1_000.0).round())
}

fn time_of_millis(millis: f64) -> Result<DateTime, SerdeError> {
    // The largest time that the SDK formats is in the year 9999.
    match millis.abs() <= 253_402_300_799_999.0 {
        true => Ok(DateTime::from_millis(millis as i64)),
        false => Err(SerdeError::timestamp_parse_failed("the time is out of range")),
    }
}

/// Decodes base64 text, with or without padding.
pub(super) fn decode_base64(text: &[u8]) -> Result<Vec<u8>, SerdeError> {
    use base64::Engine as _;
    use base64::alphabet::STANDARD;
    use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

    const BASE64: GeneralPurpose = GeneralPurpose::new(
        &STANDARD,
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
    );
    let invalid = || SerdeError::blob_decode_failed("a payload is no base64 text");
    let unpadded = text.len() - text.iter().rev().take_while(|byte| **byte == b'=').count();
    // The exact length: a vector with more room costs `Bytes` another allocation.
    let mut data = vec![0; unpadded / 4 * 3 + unpadded % 4 * 3 / 4];
    match BASE64.decode_slice(text, &mut data) {
        Ok(length) if length == data.len() => Ok(data),
        _ => Err(invalid()),
    }
}
