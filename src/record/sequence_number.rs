//! Sequence numbers, which order the records of a shard.

use std::fmt;
use std::str::FromStr;
#[cfg(feature = "kpl")]
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::text::Text;

/// A Kinesis sequence number: up to 129 decimal digits, so no integer holds it.
///
/// Sequence numbers sort by numeric value. (The API's pattern is `0|([1-9]\d{0,128})`, see `SequenceNumber`
/// in the Kinesis API reference.)
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SequenceNumber(Text);

impl SequenceNumber {
    /// The maximum number of digits in a sequence number.
    pub const MAX_DIGITS: usize = 129;

    /// Returns the decimal digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the same number in shared form, so that clones share its text.
    #[cfg(feature = "kpl")]
    pub(crate) fn into_shared(self) -> Self {
        SequenceNumber(Arc::<str>::from(String::from(self.0)).into())
    }
}

/// The error for a text that is not a Kinesis sequence number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a Kinesis sequence number (1 to 129 decimal digits without leading zeros): {text:?}")]
pub struct ParseSequenceNumberError {
    text: String,
}

fn is_sequence_number(text: &str) -> bool {
    let digits = text.as_bytes();
    (1..=SequenceNumber::MAX_DIGITS).contains(&digits.len())
        // No short circuit, so that the check covers many digits at a time: every record passes here.
        && digits.iter().fold(true, |all, digit| all & digit.is_ascii_digit())
        && (digits[0] != b'0' || digits.len() == 1)
}

impl TryFrom<String> for SequenceNumber {
    type Error = ParseSequenceNumberError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        if is_sequence_number(&text) {
            Ok(SequenceNumber(text.into_boxed_str().into()))
        } else {
            // Truncated, as the text may be anything and the error must stay readable.
            Err(ParseSequenceNumberError {
                text: text.chars().take(160).collect(),
            })
        }
    }
}

impl FromStr for SequenceNumber {
    type Err = ParseSequenceNumberError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.to_owned().try_into()
    }
}

impl From<u64> for SequenceNumber {
    fn from(number: u64) -> Self {
        SequenceNumber(number.to_string().into_boxed_str().into())
    }
}

impl From<SequenceNumber> for String {
    fn from(number: SequenceNumber) -> Self {
        number.0.into()
    }
}

impl Ord for SequenceNumber {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        // Without leading zeros more digits mean a larger number.
        (self.0.len(), &self.0).cmp(&(other.0.len(), &other.0))
    }
}

impl PartialOrd for SequenceNumber {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for SequenceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for SequenceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(text: &str) -> SequenceNumber {
        text.parse().expect("a sequence number")
    }

    #[test]
    fn sequence_numbers_sort_as_numbers_not_as_text() {
        assert!(number("9") < number("10"));
        assert!(number("0") < number("1"));
        assert!(number(&"9".repeat(56)) < number(&format!("1{}", "0".repeat(56))));
    }

    #[test]
    fn what_is_no_sequence_number_is_refused() {
        for text in ["", "01", "-1", "1e3", "12x", &"1".repeat(130)] {
            assert!(text.parse::<SequenceNumber>().is_err(), "{text:?}");
        }
        assert!("1".repeat(129).parse::<SequenceNumber>().is_ok());
    }
}
