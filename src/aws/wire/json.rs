//! Reads JSON (RFC 8259) as AWS writes it: bytes as base64 text, times as seconds with a fraction.

use std::borrow::Cow;

use aws_smithy_schema::serde::SerdeError;
use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;

use super::source::{
    Rest, Source, decode_base64, integral, mismatch, skip_list, skip_map, time_of_integer, time_of_seconds,
    truncated,
};

/// A position in a body of JSON.
#[derive(Debug, Clone)]
pub(super) struct Json<'a> {
    rest: &'a [u8],
}

impl<'a> Json<'a> {
    pub(super) fn new(body: &'a [u8]) -> Self {
        Json { rest: body }
    }

    /// Returns true if a body begins like an object.
    pub(super) fn is_map(body: &[u8]) -> bool {
        Json::new(body).peek() == Some(b'{')
    }

    /// Returns the first byte of the next token.
    fn peek(&self) -> Option<u8> {
        let mut rest = self.rest.iter();
        rest.find(|byte| !is_space(**byte)).copied()
    }

    /// Moves behind white space, and returns the next byte.
    fn token(&mut self) -> Option<u8> {
        while let Some((first, rest)) = self.rest.split_first() {
            if !is_space(*first) {
                return Some(*first);
            }
            self.rest = rest;
        }
        None
    }

    /// Reads this byte.
    fn expect(&mut self, byte: u8) -> Result<(), SerdeError> {
        match self.token() {
            Some(found) if found == byte => {
                self.rest = &self.rest[1..];
                Ok(())
            }
            Some(_) => Err(SerdeError::invalid_input(format!(
                "the answer is no JSON: `{}` is missing",
                char::from(byte)
            ))),
            None => Err(truncated()),
        }
    }

    fn word(&mut self, word: &str) -> Result<(), SerdeError> {
        self.token();
        match self.rest.strip_prefix(word.as_bytes()) {
            Some(rest) => {
                self.rest = rest;
                Ok(())
            }
            None if word.as_bytes().starts_with(self.rest) => Err(truncated()),
            None => Err(mismatch(word)),
        }
    }

    /// Moves to the next member or item. Returns false behind the end.
    fn has_next(&mut self, rest: &mut Rest, end: u8) -> Result<bool, SerdeError> {
        let is_first = std::mem::replace(&mut rest.is_first, false);
        if self.token().ok_or_else(truncated)? == end {
            self.rest = &self.rest[1..];
            return Ok(false);
        }
        if !is_first {
            self.expect(b',')?;
        }
        Ok(true)
    }

    /// Reads a string, and decodes its escapes if there are any.
    fn string(&mut self) -> Result<Cow<'a, [u8]>, SerdeError> {
        match self.token() {
            Some(b'"') => self.rest = &self.rest[1..],
            Some(_) => return Err(mismatch("a text")),
            None => return Err(truncated()),
        }
        let end = memchr::memchr2(b'"', b'\\', self.rest).ok_or_else(truncated)?;
        let (plain, rest) = self.rest.split_at(end);
        if rest[0] == b'"' {
            self.rest = &rest[1..];
            return Ok(Cow::Borrowed(plain));
        }
        let mut whole = plain.to_vec();
        self.rest = rest;
        loop {
            let end = memchr::memchr2(b'"', b'\\', self.rest).ok_or_else(truncated)?;
            let (plain, rest) = self.rest.split_at(end);
            whole.extend_from_slice(plain);
            self.rest = &rest[1..];
            if rest[0] == b'"' {
                return Ok(Cow::Owned(whole));
            }
            let decoded = self.escape()?;
            whole.extend_from_slice(decoded.encode_utf8(&mut [0; 4]).as_bytes());
        }
    }

    /// Reads an escape behind its backslash.
    fn escape(&mut self) -> Result<char, SerdeError> {
        let (kind, rest) = self.rest.split_first().ok_or_else(truncated)?;
        self.rest = rest;
        Ok(match kind {
            b'"' | b'\\' | b'/' => char::from(*kind),
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let first = self.unit()?;
                let second = match first {
                    0xd800..0xdc00 if self.rest.starts_with(b"\\u") => {
                        self.rest = &self.rest[2..];
                        Some(self.unit()?)
                    }
                    _ => None,
                };
                let mut decoded = char::decode_utf16([first].into_iter().chain(second));
                let (only, more) = (decoded.next(), decoded.next());
                let invalid = || SerdeError::invalid_input("the answer has half a surrogate pair");
                match (only, more) {
                    (Some(Ok(only)), None) => only,
                    _ => return Err(invalid()),
                }
            }
            _ => return Err(SerdeError::invalid_input("the answer has an unknown escape")),
        })
    }

    /// Reads four hexadecimal digits.
    fn unit(&mut self) -> Result<u16, SerdeError> {
        let (digits, rest) = self.rest.split_first_chunk::<4>().ok_or_else(truncated)?;
        self.rest = rest;
        let invalid = || SerdeError::invalid_input("the answer has an escape without four digits");
        digits.iter().try_fold(0, |unit, digit| {
            let digit = char::from(*digit).to_digit(16).ok_or_else(invalid)?;
            Ok(unit << 4 | digit as u16)
        })
    }

    /// Reads a number. Returns its text.
    fn number(&mut self) -> Result<&'a str, SerdeError> {
        self.token().ok_or_else(truncated)?;
        let is_part = |byte: &u8| matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E');
        let length = self.rest.iter().take_while(|byte| is_part(byte)).count();
        let (number, rest) = self.rest.split_at(length);
        if rest.is_empty() {
            // A number at the end of the body may continue.
            return Err(truncated());
        }
        self.rest = rest;
        match str::from_utf8(number) {
            Ok(number) if !number.is_empty() => Ok(number),
            _ => Err(mismatch("a number")),
        }
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\n' | b'\r' | b'\t')
}

fn float(number: &str) -> Result<f64, SerdeError> {
    number.parse().map_err(|_| mismatch("a number"))
}

impl<'a> Source<'a> for Json<'a> {
    fn is_null(&self) -> bool {
        self.peek() == Some(b'n')
    }

    fn read_null(&mut self) -> Result<(), SerdeError> {
        self.word("null")
    }

    fn begin_map(&mut self) -> Result<Rest, SerdeError> {
        self.expect(b'{')?;
        Ok(Rest::UNTIL_END)
    }

    fn next_key(&mut self, map: &mut Rest) -> Result<Option<Cow<'a, [u8]>>, SerdeError> {
        if !self.has_next(map, b'}')? {
            return Ok(None);
        }
        let key = self.string()?;
        self.expect(b':')?;
        Ok(Some(key))
    }

    fn begin_list(&mut self) -> Result<Rest, SerdeError> {
        self.expect(b'[')?;
        Ok(Rest::UNTIL_END)
    }

    fn next_item(&mut self, list: &mut Rest) -> Result<bool, SerdeError> {
        self.has_next(list, b']')
    }

    fn read_string(&mut self) -> Result<Cow<'a, [u8]>, SerdeError> {
        self.string()
    }

    fn read_integer(&mut self) -> Result<i64, SerdeError> {
        let number = self.number()?;
        match number.parse() {
            Ok(integer) => Ok(integer),
            Err(_) => integral(float(number)?),
        }
    }

    fn read_boolean(&mut self) -> Result<bool, SerdeError> {
        match self.token() {
            Some(b't') => self.word("true").map(|()| true),
            Some(b'f') => self.word("false").map(|()| false),
            _ => Err(mismatch("true or false")),
        }
    }

    fn read_bytes(&mut self) -> Result<Vec<u8>, SerdeError> {
        decode_base64(&self.string()?)
    }

    fn read_time(&mut self) -> Result<DateTime, SerdeError> {
        if self.token() == Some(b'"') {
            // Of an emulator: Kinesis sends a number.
            return DateTime::from_str(&self.read_text()?, Format::DateTimeWithOffset)
                .map_err(|_| mismatch("a time"));
        }
        let number = self.number()?;
        match number.parse() {
            Ok(integer) => time_of_integer(integer),
            Err(_) => time_of_seconds(float(number)?),
        }
    }

    fn skip(&mut self, depth: u32) -> Result<(), SerdeError> {
        match self.token().ok_or_else(truncated)? {
            b'{' => skip_map(self, depth),
            b'[' => skip_list(self, depth),
            b'"' => self.string().map(drop),
            b'n' => self.word("null"),
            b't' | b'f' => self.read_boolean().map(drop),
            _ => float(self.number()?).map(drop),
        }
    }

    fn end(&mut self) -> Result<(), SerdeError> {
        match self.token() {
            None => Ok(()),
            Some(_) => Err(SerdeError::invalid_input("bytes follow the answer")),
        }
    }
}
