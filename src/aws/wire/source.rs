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
    /// Reads the next key of a map, which need not be UTF-8. Returns `None` behind the end of the map.
    fn next_key(&mut self, map: &mut Rest) -> Result<Option<Cow<'a, [u8]>>, SerdeError>;
    fn begin_list(&mut self) -> Result<Rest, SerdeError>;
    /// Moves to the next item of a list. Returns false behind the end of the list.
    fn next_item(&mut self, list: &mut Rest) -> Result<bool, SerdeError>;
    /// Reads the bytes of a text, which need not be UTF-8.
    fn read_string(&mut self) -> Result<Cow<'a, [u8]>, SerdeError>;

    fn read_text(&mut self) -> Result<Cow<'a, str>, SerdeError> {
        self.read_string().and_then(text)
    }

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

/// Checks that a text is UTF-8.
pub(super) fn text(string: Cow<'_, [u8]>) -> Result<Cow<'_, str>, SerdeError> {
    Ok(match string {
        Cow::Borrowed(bytes) => Cow::Borrowed(str::from_utf8(bytes).map_err(|_| no_utf8())?),
        Cow::Owned(bytes) => Cow::Owned(String::from_utf8(bytes).map_err(|_| no_utf8())?),
    })
}

pub(super) fn no_utf8() -> SerdeError {
    SerdeError::invalid_input("a text is no UTF-8")
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
const SMALLEST_MILLIS: u64 = 100_000_000_000;
/// The largest time that the SDK formats, in the year 9999.
const LARGEST_MILLIS: u64 = 253_402_300_799_999;

/// Returns the time that an integer means. Kinesis has seconds in JSON and milliseconds in CBOR; emulators mix them
/// up.
pub(super) fn time_of_integer(integer: i64) -> Result<DateTime, SerdeError> {
    match integer.unsigned_abs() < SMALLEST_MILLIS {
        true => time_of_millis(integer * 1_000),
        false => time_of_millis(integer),
    }
}

/// Returns the time that is this number of seconds after 1970, to the millisecond.
pub(super) fn time_of_seconds(seconds: f64) -> Result<DateTime, SerdeError> {
    let millis = (seconds * 1_000.0).round();
    // Exact: the largest time is below 2^53. No number is not within the range either.
    match millis.abs() <= LARGEST_MILLIS as f64 {
        true => time_of_millis(millis as i64),
        false => Err(out_of_range()),
    }
}

fn time_of_millis(millis: i64) -> Result<DateTime, SerdeError> {
    match millis.unsigned_abs() <= LARGEST_MILLIS {
        true => Ok(DateTime::from_millis(millis)),
        false => Err(out_of_range()),
    }
}

pub(super) fn out_of_range() -> SerdeError {
    SerdeError::timestamp_parse_failed("the time is out of range")
}

/// Decodes base64 text, with or without padding.
pub(super) fn decode_base64(text: &[u8]) -> Result<Vec<u8>, SerdeError> {
    // The same decoder as in the SDK.
    let decoder = match text.len() % 4 {
        0 => base64_simd::STANDARD,
        _ => base64_simd::STANDARD_NO_PAD,
    };
    let invalid = |_| SerdeError::blob_decode_failed("a payload is no base64 text");
    decoder.decode_to_vec(text).map_err(invalid)
}
