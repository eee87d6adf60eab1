//! Sequence numbers, which order the records of a shard.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A Kinesis sequence number: up to 129 decimal digits, so no integer holds it.
///
/// Sequence numbers sort by numeric value. (The API's pattern is `0|([1-9]\d{0,128})`, see `SequenceNumber`
/// in the Kinesis API reference.)
#[derive(Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SequenceNumber(Digits);

/// Decimal digits without leading zeros. The numbers of Kinesis have 56 and need no allocation of their own.
#[derive(Clone)]
enum Digits {
    Inline { length: u8, digits: [u8; INLINE] },
    Shared(Arc<str>),
}

/// The number of digits that makes the type 64 bytes long.
const INLINE: usize = 62;

impl Digits {
    #[inline]
    fn of(text: &[u8]) -> Self {
        let mut digits = [0; INLINE];
        match digits.get_mut(..text.len()) {
            Some(inline) => {
                inline.copy_from_slice(text);
                Digits::Inline {
                    length: text.len() as u8,
                    digits,
                }
            }
            // Digits are ASCII.
            None => Digits::Shared(String::from_utf8_lossy(text).into()),
        }
    }
}

impl SequenceNumber {
    /// The maximum number of digits in a sequence number.
    pub const MAX_DIGITS: usize = 129;

    /// Returns the number with these digits. `None`: they are not those of a sequence number.
    #[inline]
    pub(crate) fn of_digits(digits: &[u8]) -> Option<Self> {
        is_sequence_number(digits).then(|| SequenceNumber(Digits::of(digits)))
    }

    /// Returns the decimal digits.
    pub fn as_str(&self) -> &str {
        match &self.0 {
            Digits::Shared(digits) => digits,
            Digits::Inline { .. } => str::from_utf8(self.digits()).unwrap_or_default(),
        }
    }

    fn digits(&self) -> &[u8] {
        match &self.0 {
            Digits::Shared(digits) => digits.as_bytes(),
            Digits::Inline { length, digits } => &digits[..usize::from(*length)],
        }
    }
}

/// The error for a text that is not a Kinesis sequence number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a Kinesis sequence number (1 to 129 decimal digits without leading zeros): {text:?}")]
pub struct ParseSequenceNumberError {
    text: String,
}

#[inline]
fn is_sequence_number(digits: &[u8]) -> bool {
    (1..=SequenceNumber::MAX_DIGITS).contains(&digits.len())
        // No short circuit, so that the check covers many digits at a time: every record passes here.
        && digits.iter().fold(true, |all, digit| all & digit.is_ascii_digit())
        && (digits[0] != b'0' || digits.len() == 1)
}

impl FromStr for SequenceNumber {
    type Err = ParseSequenceNumberError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // Truncated, as the text may be anything and the error must stay readable.
        let invalid = || ParseSequenceNumberError {
            text: text.chars().take(160).collect(),
        };
        SequenceNumber::of_digits(text.as_bytes()).ok_or_else(invalid)
    }
}

impl TryFrom<String> for SequenceNumber {
    type Error = ParseSequenceNumberError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<u64> for SequenceNumber {
    fn from(number: u64) -> Self {
        let text = number.to_string();
        SequenceNumber(Digits::of(text.as_bytes()))
    }
}

impl From<SequenceNumber> for String {
    fn from(number: SequenceNumber) -> Self {
        number.as_str().to_owned()
    }
}

impl PartialEq for SequenceNumber {
    fn eq(&self, other: &Self) -> bool {
        self.digits() == other.digits()
    }
}

impl Eq for SequenceNumber {}

impl Hash for SequenceNumber {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.digits().hash(state);
    }
}

impl Ord for SequenceNumber {
    fn cmp(&self, other: &Self) -> Ordering {
        // Without leading zeros more digits mean a larger number.
        let (digits, others) = (self.digits(), other.digits());
        (digits.len(), digits).cmp(&(others.len(), others))
    }
}

impl PartialOrd for SequenceNumber {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for SequenceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for SequenceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
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
    fn numbers_of_each_length_keep_their_text() {
        assert_eq!(size_of::<SequenceNumber>(), 64);
        for length in 1..=SequenceNumber::MAX_DIGITS {
            let text = "7".repeat(length);
            let (shorter, read) = (&text[..length - 1], number(&text));
            assert_eq!(read.as_str(), text);
            assert_eq!(String::from(read.clone()), text);
            assert_eq!(read, read.clone());
            assert!(shorter.is_empty() || number(shorter) < read);
        }
        assert_eq!(SequenceNumber::from(u64::MAX).as_str(), u64::MAX.to_string());
        assert_eq!(SequenceNumber::from(0).as_str(), "0");
    }

    #[test]
    fn what_is_no_sequence_number_is_refused() {
        for text in ["", "01", "-1", "1e3", "12x", &"1".repeat(130)] {
            assert!(text.parse::<SequenceNumber>().is_err(), "{text:?}");
        }
        assert!("1".repeat(129).parse::<SequenceNumber>().is_ok());
    }
}
