//! The fields of a protobuf message, found without a copy.

use std::ops::Range;

use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use super::deaggregator::{DamagedAggregate, format};

/// The value of a field.
pub(super) enum Value {
    Number(u64),
    /// The place of a text, of bytes or of a message.
    Bytes(Range<usize>),
    /// A value of another type.
    Other,
}

/// The numbers and the values of the fields in a part of a message. Ends after an error.
pub(super) struct Fields<'a> {
    message: &'a [u8],
    /// What is left of the part.
    place: Range<usize>,
}

impl<'a> Fields<'a> {
    #[inline]
    pub(super) fn of(message: &'a [u8], place: Range<usize>) -> Self {
        Fields { message, place }
    }

    #[inline]
    fn read(&mut self, mut left: &[u8]) -> Result<(u32, Value), DamagedAggregate> {
        let (field, wire_type) = decode_key(&mut left).map_err(format)?;
        let value = match wire_type {
            WireType::Varint => Value::Number(decode_varint(&mut left).map_err(format)?),
            WireType::LengthDelimited => {
                let length = decode_varint(&mut left).map_err(format)?;
                let start = self.place.end - left.len();
                let rest = usize::try_from(length).ok().and_then(|length| left.get(length..));
                left = rest.ok_or_else(|| format("a field of the aggregate is longer than the aggregate"))?;
                Value::Bytes(start..self.place.end - left.len())
            }
            _ => {
                skip_field(wire_type, field, &mut left, DecodeContext::default()).map_err(format)?;
                Value::Other
            }
        };
        self.place.start = self.place.end - left.len();
        Ok((field, value))
    }
}

impl Iterator for Fields<'_> {
    type Item = Result<(u32, Value), DamagedAggregate>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let left = self.message.get(self.place.clone()).filter(|left| !left.is_empty())?;
        let read = self.read(left);
        if read.is_err() {
            self.place.start = self.place.end;
        }
        Some(read)
    }
}
