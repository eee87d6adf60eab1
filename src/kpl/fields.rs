//! The fields of a protobuf message, found without a copy.

use std::ops::Range;

use prost::encoding::{DecodeContext, WireType, decode_varint, skip_field};

use super::deaggregator::{DamagedAggregate, format};
use crate::failure::BoxError;

/// The value of a field.
pub(super) enum Value {
    Number(u64),
    /// The place of a text, of bytes or of a message.
    Bytes(Range<usize>),
    /// A value of another type.
    Other,
}

/// The numbers and the values of the fields in a part of a message. Ends after an error.
///
/// The methods that read a field are inlined: each record inside an aggregate has several fields.
pub(super) struct Fields<'a> {
    /// The rest of the part, which is not read yet.
    rest: &'a [u8],
    /// The end of the part in the message.
    end: usize,
}

impl<'a> Fields<'a> {
    /// Starts at the beginning of a part, which ends with the message at the latest.
    #[inline]
    pub(super) fn of(message: &'a [u8], part: Range<usize>) -> Self {
        let end = part.end;
        let rest = message.get(part).unwrap_or_default();
        Fields { rest, end }
    }

    /// Returns the place in the message of what is read next.
    #[inline]
    fn at(&self) -> usize {
        self.end - self.rest.len()
    }

    #[inline(always)]
    fn varint(&mut self) -> Result<u64, BoxError> {
        match self.rest.split_first() {
            Some((&byte, rest)) if byte < 0x80 => {
                self.rest = rest;
                Ok(u64::from(byte))
            }
            _ => Ok(decode_varint(&mut self.rest)?),
        }
    }

    #[inline(always)]
    fn read(&mut self) -> Result<(u32, Value), BoxError> {
        let key = self.varint()?;
        let field = u32::try_from(key >> 3)?;
        let value = match key & 0x7 {
            _ if field == 0 => return Err("a field of the aggregate has the number 0".into()),
            0 => Value::Number(self.varint()?),
            2 => {
                let length = usize::try_from(self.varint()?)?;
                let start = self.at();
                let rest = self.rest.get(length..);
                self.rest = rest.ok_or("a field of the aggregate is longer than the aggregate")?;
                Value::Bytes(start..self.at())
            }
            other => {
                let wire_type = WireType::try_from(other)?;
                skip_field(wire_type, field, &mut self.rest, DecodeContext::default())?;
                Value::Other
            }
        };
        Ok((field, value))
    }
}

impl Iterator for Fields<'_> {
    type Item = Result<(u32, Value), DamagedAggregate>;

    #[inline(always)]
    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let read = self.read();
        if read.is_err() {
            self.rest = &[];
        }
        Some(read.map_err(format))
    }
}
