//! Processors that get the parsed payload instead of the record.

use std::any::type_name;
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;

use serde::de::DeserializeOwned;

use super::{Attempt, RecordProcessor};
use crate::failure::BoxError;
use crate::record::Record;

/// Creates a processor from a function that takes the parsed JSON payload. A payload that does not parse is a
/// permanent failure of its record.
///
/// ```
/// use redrive::processor_fn_json;
/// use serde::Deserialize;
///
/// #[derive(Deserialize)]
/// struct Order {
///     id: u64,
/// }
///
/// async fn bill(order: Order) -> Result<(), std::io::Error> {
///     Ok(())
/// }
/// let orders = processor_fn_json(bill);
/// ```
pub fn processor_fn_json<T, F, Fut, E>(handler: F) -> ProcessorFnJson<T, F>
where
    T: DeserializeOwned + Send,
    F: Fn(T) -> Fut + Send + Sync,
    Fut: Future<Output = Result<(), E>> + Send,
    E: Into<BoxError> + Send + 'static,
{
    ProcessorFnJson {
        handler,
        payload: PhantomData,
    }
}

/// A processor made by [`processor_fn_json`].
#[derive(Clone, Copy)]
pub struct ProcessorFnJson<T, F> {
    handler: F,
    payload: PhantomData<fn(T)>,
}

/// The error of a processor made by [`processor_fn_json`].
#[derive(Debug)]
#[non_exhaustive]
pub enum JsonError<E> {
    /// The payload does not parse as the expected type.
    Payload(serde_json::Error),
    /// The function returned an error.
    Handler(E),
}

impl<E: Into<BoxError>> From<JsonError<E>> for BoxError {
    fn from(error: JsonError<E>) -> Self {
        match error {
            JsonError::Payload(error) => error.into(),
            JsonError::Handler(error) => error.into(),
        }
    }
}

impl<T, F, Fut, E> RecordProcessor for ProcessorFnJson<T, F>
where
    T: DeserializeOwned + Send,
    F: Fn(T) -> Fut + Send + Sync,
    Fut: Future<Output = Result<(), E>> + Send,
    E: Into<BoxError> + Send + 'static,
{
    type Error = JsonError<E>;

    async fn process(&self, record: &Record, _: &Attempt<'_>) -> Result<(), JsonError<E>> {
        let payload = serde_json::from_slice(record.payload()).map_err(JsonError::Payload)?;
        (self.handler)(payload).await.map_err(JsonError::Handler)
    }
}

impl<T, F> fmt::Debug for ProcessorFnJson<T, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ProcessorFnJson").field(&type_name::<F>()).finish()
    }
}
