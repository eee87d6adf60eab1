//! Reads an answer of Kinesis for the SDK, which fills its own types.

use std::marker::PhantomData;

use aws_smithy_schema::Schema;
use aws_smithy_schema::serde::{SerdeError, ShapeDeserializer};
use aws_smithy_types::{BigDecimal, BigInteger, Blob, DateTime, Document};

use super::source::Source;

/// The members without which a record is none. The SDK would fill them in: a record without its payload would be
/// processed as an empty one.
const REQUIRED: [&str; 2] = ["SequenceNumber", "Data"];

/// Reads the values of a body by their schemas.
pub(super) struct Answer<'a, S> {
    source: S,
    body: PhantomData<&'a [u8]>,
    /// The number of structures around the current value.
    depth: u32,
}

impl<S> Answer<'_, S> {
    pub(super) fn new(source: S) -> Self {
        Answer {
            source,
            body: PhantomData,
            depth: 0,
        }
    }
}

impl<'a, S: Source<'a>> ShapeDeserializer for Answer<'a, S> {
    fn read_struct(
        &mut self,
        schema: &Schema<'_>,
        consumer: &mut dyn FnMut(&Schema<'_>, &mut dyn ShapeDeserializer) -> Result<(), SerdeError>,
    ) -> Result<(), SerdeError> {
        self.depth += 1;
        let mut map = self.source.begin_map()?;
        let mut read = 0_u64;
        while let Some(key) = self.source.next_key(&mut map)? {
            let Some(member) = schema.member_schema(&key) else {
                self.source.skip(self.depth)?;
                continue;
            };
            let bit = member.member_index().map_or(0, |index| 1 << (index % 64));
            if read & bit != 0 {
                return Err(SerdeError::invalid_input(format!("the answer has {key} twice")));
            }
            read |= bit;
            consumer(member, self)?;
        }
        self.depth -= 1;
        for name in REQUIRED {
            let member = schema.member_schema(name).and_then(Schema::member_index);
            if member.is_some_and(|index| read & 1 << (index % 64) == 0) {
                return Err(SerdeError::missing_member(name));
            }
        }
        match self.depth {
            0 => self.source.end(),
            _ => Ok(()),
        }
    }

    fn read_list(
        &mut self,
        _: &Schema<'_>,
        consumer: &mut dyn FnMut(&mut dyn ShapeDeserializer) -> Result<(), SerdeError>,
    ) -> Result<(), SerdeError> {
        let mut list = self.source.begin_list()?;
        while self.source.next_item(&mut list)? {
            consumer(self)?;
        }
        Ok(())
    }

    fn read_map(
        &mut self,
        _: &Schema<'_>,
        consumer: &mut dyn FnMut(String, &mut dyn ShapeDeserializer) -> Result<(), SerdeError>,
    ) -> Result<(), SerdeError> {
        let mut map = self.source.begin_map()?;
        while let Some(key) = self.source.next_key(&mut map)? {
            consumer(key.into_owned(), self)?;
        }
        Ok(())
    }

    fn read_boolean(&mut self, _: &Schema<'_>) -> Result<bool, SerdeError> {
        self.source.read_boolean()
    }

    fn read_byte(&mut self, _: &Schema<'_>) -> Result<i8, SerdeError> {
        small(self.source.read_integer()?)
    }

    fn read_short(&mut self, _: &Schema<'_>) -> Result<i16, SerdeError> {
        small(self.source.read_integer()?)
    }

    fn read_integer(&mut self, _: &Schema<'_>) -> Result<i32, SerdeError> {
        small(self.source.read_integer()?)
    }

    fn read_long(&mut self, _: &Schema<'_>) -> Result<i64, SerdeError> {
        self.source.read_integer()
    }

    fn read_float(&mut self, _: &Schema<'_>) -> Result<f32, SerdeError> {
        Err(unused())
    }

    fn read_double(&mut self, _: &Schema<'_>) -> Result<f64, SerdeError> {
        Err(unused())
    }

    fn read_big_integer(&mut self, _: &Schema<'_>) -> Result<BigInteger, SerdeError> {
        Err(unused())
    }

    fn read_big_decimal(&mut self, _: &Schema<'_>) -> Result<BigDecimal, SerdeError> {
        Err(unused())
    }

    fn read_string(&mut self, _: &Schema<'_>) -> Result<String, SerdeError> {
        Ok(self.source.read_text()?.into_owned())
    }

    fn read_blob(&mut self, _: &Schema<'_>) -> Result<Blob, SerdeError> {
        self.source.read_bytes().map(Blob::new)
    }

    fn read_timestamp(&mut self, _: &Schema<'_>) -> Result<DateTime, SerdeError> {
        self.source.read_time()
    }

    fn read_document(&mut self, _: &Schema<'_>) -> Result<Document, SerdeError> {
        Err(unused())
    }

    fn is_null(&self) -> bool {
        self.source.is_null()
    }

    fn read_null(&mut self) -> Result<(), SerdeError> {
        self.source.read_null()
    }

    fn skip_value(&mut self) -> Result<(), SerdeError> {
        self.source.skip(self.depth)
    }

    // A list grows as its items are read: a wrong length reserves no memory.
    fn container_size(&self) -> Option<usize> {
        None
    }
}

fn small<T: TryFrom<i64>>(integer: i64) -> Result<T, SerdeError> {
    T::try_from(integer)
        .map_err(|_| SerdeError::numeric_coercion_overflow("a smaller integer", integer.to_string()))
}

fn unused() -> SerdeError {
    SerdeError::unsupported("a type that no answer to GetRecords has")
}
