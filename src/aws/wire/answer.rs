//! Reads an answer of Kinesis for the SDK, which fills its own types. Only the records are not read by the SDK.

use std::marker::PhantomData;
use std::sync::Arc;

use aws_smithy_schema::Schema;
use aws_smithy_schema::serde::{SerdeError, ShapeDeserializer};
use aws_smithy_types::{BigDecimal, BigInteger, Blob, DateTime, Document};

use super::page::{Page, twice};
use super::source::{Source, text};

/// The member that holds the records of an answer.
const RECORDS: &str = "Records";

/// Reads the values of a body by their schemas.
pub(super) struct Answer<'a, S> {
    source: S,
    body: PhantomData<&'a [u8]>,
    page: Arc<Page>,
    /// The number of structures around the current value.
    depth: u32,
}

impl<S> Answer<'_, S> {
    /// Starts to read an answer. Its records go to `page`, and not to the SDK.
    pub(super) fn new(source: S, page: &Arc<Page>) -> Self {
        Answer {
            source,
            body: PhantomData,
            page: page.clone(),
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
            let name = str::from_utf8(&key).unwrap_or_default();
            let Some(member) = schema.member_schema(name) else {
                self.source.skip(self.depth)?;
                continue;
            };
            let bit = member.member_index().map_or(0, |index| 1 << (index % 64));
            if read & bit != 0 {
                return Err(twice(name));
            }
            read |= bit;
            // As in the SDK, a member without a value is absent, also if it is required.
            if self.source.is_null() {
                self.source.read_null()?;
                continue;
            }
            match self.depth == 1 && name == RECORDS {
                true => self.page.read(&mut self.source)?,
                false => consumer(member, self)?,
            }
        }
        self.depth -= 1;
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
            consumer(text(key)?.into_owned(), self)?;
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
    SerdeError::unsupported("a type that no answer with records has")
}
