//! Reads CBOR (RFC 8949) as AWS writes it.
//!
//! It is not documented which forms Kinesis uses, so each is accepted: definite and indefinite lengths, null and
//! undefined, tags or none. Times are integers of milliseconds, where RFC 8949 has seconds. An emulator sends
//! seconds, so small integers count as seconds.

use std::borrow::Cow;

use aws_smithy_schema::serde::SerdeError;
use aws_smithy_types::DateTime;

use super::source::{
    Rest, Source, decode_base64, integral, mismatch, out_of_range, skip_list, skip_map, time_of_integer,
    time_of_seconds, truncated,
};

const UNSIGNED: u8 = 0;
const NEGATIVE: u8 = 1;
const BYTES: u8 = 2;
const TEXT: u8 = 3;
const LIST: u8 = 4;
const MAP: u8 = 5;
const TAG: u8 = 6;
const SIMPLE: u8 = 7;

const FALSE: u8 = 20;
const TRUE: u8 = 21;
const NULL: u8 = 22;
const UNDEFINED: u8 = 23;
const HALF: u8 = 25;
const SINGLE: u8 = 26;
const DOUBLE: u8 = 27;
const BREAK: u8 = 0xff;

/// A position in a body of CBOR.
#[derive(Debug, Clone)]
pub(super) struct Cbor<'a> {
    rest: &'a [u8],
}

/// The head of a value.
#[derive(Debug, Clone, Copy)]
struct Head {
    major: u8,
    /// The low bits of the first byte.
    info: u8,
    /// The length, integer, or bits of a float. `None`: the length is indefinite.
    argument: Option<u64>,
}

impl<'a> Cbor<'a> {
    pub(super) fn new(body: &'a [u8]) -> Self {
        Cbor { rest: body }
    }

    /// Returns true if a body begins like a map, perhaps with a tag.
    pub(super) fn is_map(body: &[u8]) -> bool {
        matches!(Cbor::new(body).head(), Ok(Head { major: MAP, .. }))
    }

    /// Reads the head of a value, behind its tags.
    #[inline]
    fn head(&mut self) -> Result<Head, SerdeError> {
        match self.rest.split_first() {
            // The head of most values is one byte.
            Some((first, rest)) if first & 0x1f < 24 && first >> 5 != TAG => {
                self.rest = rest;
                let (major, info) = (first >> 5, first & 0x1f);
                let argument = Some(u64::from(info));
                Ok(Head {
                    major,
                    info,
                    argument,
                })
            }
            _ => self.long_head(),
        }
    }

    fn long_head(&mut self) -> Result<Head, SerdeError> {
        loop {
            let (first, rest) = self.rest.split_first().ok_or_else(truncated)?;
            self.rest = rest;
            let (major, info) = (first >> 5, first & 0x1f);
            let argument = match info {
                0..24 => Some(u64::from(info)),
                24 => Some(u64::from(self.take::<1>()?[0])),
                25 => Some(u64::from(u16::from_be_bytes(self.take()?))),
                26 => Some(u64::from(u32::from_be_bytes(self.take()?))),
                27 => Some(u64::from_be_bytes(self.take()?)),
                31 if matches!(major, BYTES | TEXT | LIST | MAP | SIMPLE) => None,
                _ => return Err(SerdeError::invalid_input("the answer has a reserved byte")),
            };
            if major != TAG {
                return Ok(Head {
                    major,
                    info,
                    argument,
                });
            }
        }
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], SerdeError> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or_else(truncated)?;
        self.rest = rest;
        Ok(*taken)
    }

    fn take_slice(&mut self, length: u64) -> Result<&'a [u8], SerdeError> {
        let length = usize::try_from(length).map_err(|_| truncated())?;
        let (taken, rest) = self.rest.split_at_checked(length).ok_or_else(truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    /// Reads the bytes of a string behind its head.
    #[inline]
    fn string(&mut self, head: Head) -> Result<Cow<'a, [u8]>, SerdeError> {
        match head.argument {
            Some(length) => self.take_slice(length).map(Cow::Borrowed),
            None => self.chunks(head),
        }
    }

    /// Reads a string that comes in chunks.
    fn chunks(&mut self, head: Head) -> Result<Cow<'a, [u8]>, SerdeError> {
        let mut whole = Vec::new();
        while !self.take_break() {
            let chunk = self.head()?;
            match chunk.argument.filter(|_| chunk.major == head.major) {
                Some(length) => whole.extend_from_slice(self.take_slice(length)?),
                None => return Err(mismatch("a chunk of a string")),
            }
        }
        Ok(Cow::Owned(whole))
    }

    fn take_break(&mut self) -> bool {
        match self.rest.split_first() {
            Some((&BREAK, rest)) => {
                self.rest = rest;
                true
            }
            _ => false,
        }
    }

    /// Returns true if there is another member or item.
    fn has_next(&mut self, rest: &mut Rest) -> bool {
        match &mut rest.left {
            Some(0) => false,
            Some(left) => {
                *left -= 1;
                true
            }
            None => !self.take_break(),
        }
    }

    fn begin(&mut self, major: u8, expected: &str) -> Result<Rest, SerdeError> {
        let head = self.head()?;
        match head.major == major {
            true => Ok(head.argument.map_or(Rest::UNTIL_END, Rest::of)),
            false => Err(mismatch(expected)),
        }
    }
}

impl Head {
    fn number(self) -> Option<Number> {
        let argument = self.argument?;
        Some(match (self.major, self.info) {
            (UNSIGNED, _) => Number::Integer(i128::from(argument)),
            (NEGATIVE, _) => Number::Integer(-1 - i128::from(argument)),
            (SIMPLE, HALF) => Number::Float(half(argument as u16)),
            (SIMPLE, SINGLE) => Number::Float(f64::from(f32::from_bits(argument as u32))),
            (SIMPLE, DOUBLE) => Number::Float(f64::from_bits(argument)),
            _ => return None,
        })
    }
}

enum Number {
    Integer(i128),
    Float(f64),
}

/// Returns the value of a half-precision float (RFC 8949, appendix D).
fn half(bits: u16) -> f64 {
    let (exponent, mantissa) = (i32::from(bits >> 10 & 0x1f), f64::from(bits & 0x3ff));
    let value = match exponent {
        0 => mantissa * 2f64.powi(-24),
        31 if mantissa == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        _ => (mantissa + 1024.0) * 2f64.powi(exponent - 25),
    };
    if bits & 0x8000 == 0 { value } else { -value }
}

impl<'a> Source<'a> for Cbor<'a> {
    fn is_null(&self) -> bool {
        // Quick, as each value passes here: only a tag hides what follows.
        if self
            .rest
            .first()
            .is_some_and(|first| !matches!(first >> 5, SIMPLE | TAG))
        {
            return false;
        }
        let head = self.clone().head();
        matches!(
            head,
            Ok(Head {
                major: SIMPLE,
                info: NULL | UNDEFINED,
                ..
            })
        )
    }

    fn read_null(&mut self) -> Result<(), SerdeError> {
        self.head().map(drop)
    }

    fn begin_map(&mut self) -> Result<Rest, SerdeError> {
        self.begin(MAP, "a map")
    }

    #[inline]
    fn next_key(&mut self, map: &mut Rest) -> Result<Option<Cow<'a, [u8]>>, SerdeError> {
        match self.has_next(map) {
            true => self.read_string().map(Some),
            false => Ok(None),
        }
    }

    fn begin_list(&mut self) -> Result<Rest, SerdeError> {
        self.begin(LIST, "a list")
    }

    fn next_item(&mut self, list: &mut Rest) -> Result<bool, SerdeError> {
        Ok(self.has_next(list))
    }

    #[inline]
    fn read_string(&mut self) -> Result<Cow<'a, [u8]>, SerdeError> {
        let head = self.head()?;
        match head.major {
            TEXT => self.string(head),
            _ => Err(mismatch("a text")),
        }
    }

    fn read_integer(&mut self) -> Result<i64, SerdeError> {
        match self.head()?.number() {
            Some(Number::Integer(integer)) => {
                i64::try_from(integer).map_err(|_| mismatch("a smaller integer"))
            }
            Some(Number::Float(float)) => integral(float),
            None => Err(mismatch("an integer")),
        }
    }

    fn read_boolean(&mut self) -> Result<bool, SerdeError> {
        match self.head()? {
            Head {
                major: SIMPLE,
                info: FALSE,
                ..
            } => Ok(false),
            Head {
                major: SIMPLE,
                info: TRUE,
                ..
            } => Ok(true),
            _ => Err(mismatch("true or false")),
        }
    }

    fn read_bytes(&mut self) -> Result<Vec<u8>, SerdeError> {
        let head = self.head()?;
        match head.major {
            BYTES => Ok(self.string(head)?.into_owned()),
            TEXT => decode_base64(&self.string(head)?),
            _ => Err(mismatch("bytes")),
        }
    }

    fn read_time(&mut self) -> Result<DateTime, SerdeError> {
        match self.head()?.number() {
            Some(Number::Integer(integer)) => {
                time_of_integer(i64::try_from(integer).map_err(|_| out_of_range())?)
            }
            Some(Number::Float(float)) => time_of_seconds(float),
            None => Err(mismatch("a time")),
        }
    }

    fn skip(&mut self, depth: u32) -> Result<(), SerdeError> {
        let before = self.clone();
        let head = self.head()?;
        match (head.major, head.argument) {
            (BYTES | TEXT, _) => self.string(head).map(drop),
            (LIST, _) => {
                *self = before;
                skip_list(self, depth)
            }
            (MAP, _) => {
                *self = before;
                skip_map(self, depth)
            }
            // A break outside of a list or map.
            (_, None) => Err(mismatch("a value")),
            _ => Ok(()),
        }
    }

    fn end(&mut self) -> Result<(), SerdeError> {
        match self.rest {
            [] => Ok(()),
            _ => Err(SerdeError::invalid_input("bytes follow the answer")),
        }
    }
}
