//! Writes a request: texts, integers, booleans, times, and structures of them.

use aws_smithy_schema::Schema;
use aws_smithy_schema::codec::FinishSerializer;
use aws_smithy_schema::serde::{SerdeError, SerializableStruct, ShapeSerializer};
use aws_smithy_types::date_time::Format;
use aws_smithy_types::{BigDecimal, BigInteger, Blob, DateTime, Document};

use super::Encoding;

/// The body of a request.
pub(super) struct Body {
    encoding: Encoding,
    bytes: Vec<u8>,
    /// True before the first member of a structure.
    is_empty: bool,
}

impl Body {
    pub(super) fn new(encoding: Encoding) -> Self {
        Body {
            encoding,
            bytes: Vec::with_capacity(512),
            is_empty: true,
        }
    }

    pub(super) fn of(encoding: Encoding, input: &dyn SerializableStruct) -> Result<Vec<u8>, SerdeError> {
        let mut body = Body::new(encoding);
        body.structure(input)?;
        Ok(body.bytes)
    }

    fn structure(&mut self, value: &dyn SerializableStruct) -> Result<(), SerdeError> {
        // A map of indefinite length, as the AWS SDK for Java writes it.
        self.bytes.push(match self.encoding {
            Encoding::Cbor => 0xbf,
            Encoding::Json => b'{',
        });
        self.is_empty = true;
        value.serialize_members(self)?;
        self.is_empty = false;
        self.bytes.push(match self.encoding {
            Encoding::Cbor => 0xff,
            Encoding::Json => b'}',
        });
        Ok(())
    }

    fn key(&mut self, schema: &Schema<'_>) -> Result<(), SerdeError> {
        let name = schema.member_name().ok_or_else(unused)?;
        let is_first = std::mem::replace(&mut self.is_empty, false);
        if self.encoding == Encoding::Json && !is_first {
            self.bytes.push(b',');
        }
        self.text(name);
        if self.encoding == Encoding::Json {
            self.bytes.push(b':');
        }
        Ok(())
    }

    fn text(&mut self, text: &str) {
        match self.encoding {
            Encoding::Cbor => {
                self.head(3, text.len() as u64);
                self.bytes.extend_from_slice(text.as_bytes());
            }
            // Writing to memory does not fail.
            Encoding::Json => drop(serde_json::to_writer(&mut self.bytes, text)),
        }
    }

    fn integer(&mut self, integer: i64) {
        match self.encoding {
            Encoding::Cbor if integer < 0 => self.head(1, !integer as u64),
            Encoding::Cbor => self.head(0, integer as u64),
            Encoding::Json => self.bytes.extend_from_slice(integer.to_string().as_bytes()),
        }
    }

    /// Writes the head of a CBOR value.
    fn head(&mut self, major: u8, argument: u64) {
        let major = major << 5;
        let bytes = argument.to_be_bytes();
        let (info, length) = match argument {
            0..24 => {
                self.bytes.push(major | argument as u8);
                return;
            }
            24..=0xff => (24, 1),
            0x100..=0xffff => (25, 2),
            0x1_0000..=0xffff_ffff => (26, 4),
            _ => (27, 8),
        };
        self.bytes.push(major | info);
        self.bytes.extend_from_slice(&bytes[8 - length..]);
    }
}

fn unused() -> SerdeError {
    SerdeError::unsupported("a type that no request for records has")
}

impl FinishSerializer for Body {
    fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

impl ShapeSerializer for Body {
    fn write_string(&mut self, schema: &Schema<'_>, value: &str) -> Result<(), SerdeError> {
        self.key(schema)?;
        self.text(value);
        Ok(())
    }

    fn write_boolean(&mut self, schema: &Schema<'_>, value: bool) -> Result<(), SerdeError> {
        self.key(schema)?;
        match (self.encoding, value) {
            (Encoding::Cbor, false) => self.bytes.push(0xf4),
            (Encoding::Cbor, true) => self.bytes.push(0xf5),
            (Encoding::Json, _) => self.bytes.extend_from_slice(value.to_string().as_bytes()),
        }
        Ok(())
    }

    fn write_byte(&mut self, schema: &Schema<'_>, value: i8) -> Result<(), SerdeError> {
        self.write_long(schema, value.into())
    }

    fn write_short(&mut self, schema: &Schema<'_>, value: i16) -> Result<(), SerdeError> {
        self.write_long(schema, value.into())
    }

    fn write_integer(&mut self, schema: &Schema<'_>, value: i32) -> Result<(), SerdeError> {
        self.write_long(schema, value.into())
    }

    fn write_long(&mut self, schema: &Schema<'_>, value: i64) -> Result<(), SerdeError> {
        self.key(schema)?;
        self.integer(value);
        Ok(())
    }

    fn write_struct(
        &mut self,
        schema: &Schema<'_>,
        value: &dyn SerializableStruct,
    ) -> Result<(), SerdeError> {
        // The request itself is no member.
        if schema.member_name().is_some() {
            self.key(schema)?;
        }
        self.structure(value)
    }

    fn write_list(
        &mut self,
        _: &Schema<'_>,
        _: &dyn Fn(&mut dyn ShapeSerializer) -> Result<(), SerdeError>,
    ) -> Result<(), SerdeError> {
        Err(unused())
    }

    fn write_map(
        &mut self,
        _: &Schema<'_>,
        _: &dyn Fn(&mut dyn ShapeSerializer) -> Result<(), SerdeError>,
    ) -> Result<(), SerdeError> {
        Err(unused())
    }

    fn write_float(&mut self, _: &Schema<'_>, _: f32) -> Result<(), SerdeError> {
        Err(unused())
    }

    fn write_double(&mut self, _: &Schema<'_>, _: f64) -> Result<(), SerdeError> {
        Err(unused())
    }

    fn write_big_integer(&mut self, _: &Schema<'_>, _: &BigInteger) -> Result<(), SerdeError> {
        Err(unused())
    }

    fn write_big_decimal(&mut self, _: &Schema<'_>, _: &BigDecimal) -> Result<(), SerdeError> {
        Err(unused())
    }

    fn write_blob(&mut self, _: &Schema<'_>, _: Blob) -> Result<(), SerdeError> {
        Err(unused())
    }

    fn write_timestamp(&mut self, schema: &Schema<'_>, value: &DateTime) -> Result<(), SerdeError> {
        // Emulators read times in CBOR in different units, and only SubscribeToShard has one, which is JSON.
        if self.encoding == Encoding::Cbor {
            return Err(unused());
        }
        self.key(schema)?;
        let seconds = value.fmt(Format::EpochSeconds);
        let seconds = seconds.map_err(|_| SerdeError::custom("the time is out of range"))?;
        self.bytes.extend_from_slice(seconds.as_bytes());
        Ok(())
    }

    fn write_document(&mut self, _: &Schema<'_>, _: &Document) -> Result<(), SerdeError> {
        Err(unused())
    }

    fn write_null(&mut self, _: &Schema<'_>) -> Result<(), SerdeError> {
        Err(unused())
    }
}
