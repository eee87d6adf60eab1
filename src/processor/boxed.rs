//! Processors whose type is erased.

use std::any::type_name;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use super::{Attempt, BatchFailure, Bounds, Handler};
use crate::failure::BoxError;
use crate::record::Record;

/// A processor with its type erased; see [`RecordProcessor::boxed`](super::RecordProcessor::boxed) and
/// [`Batched::boxed`](super::Batched::boxed). Clones share the processor.
///
/// The erased processor may take batches. `BoxProcessor` therefore does not implement
/// [`RecordProcessor`](super::RecordProcessor): add decorators first, and erase the type last.
#[derive(Clone)]
pub struct BoxProcessor {
    inner: Arc<dyn ErasedHandler>,
    name: &'static str,
}

impl BoxProcessor {
    pub(super) fn new<H: Handler + 'static>(handler: H) -> Self {
        BoxProcessor {
            inner: Arc::new(handler),
            name: type_name::<H>(),
        }
    }
}

trait ErasedHandler: Send + Sync {
    fn handle_boxed<'a>(
        &'a self,
        record: &'a Record,
        attempt: &'a Attempt<'a>,
    ) -> Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send + 'a>>;

    fn bounds(&self) -> Option<Bounds>;

    fn handle_batch_boxed<'a>(&'a self, records: &'a [Record], attempt: &'a Attempt<'a>) -> BoxedBatch<'a>;
}

type BoxedBatch<'a> = Pin<Box<dyn Future<Output = Result<(), BatchFailure<BoxError>>> + Send + 'a>>;

impl<H: Handler> ErasedHandler for H {
    fn handle_boxed<'a>(
        &'a self,
        record: &'a Record,
        attempt: &'a Attempt<'a>,
    ) -> Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send + 'a>> {
        Box::pin(async move { self.handle(record, attempt).await.map_err(Into::into) })
    }

    fn bounds(&self) -> Option<Bounds> {
        self.batches()
    }

    fn handle_batch_boxed<'a>(&'a self, records: &'a [Record], attempt: &'a Attempt<'a>) -> BoxedBatch<'a> {
        Box::pin(async move {
            let processed = self.handle_batch(records, attempt).await;
            processed.map_err(|failure| match failure {
                BatchFailure::All(error) => BatchFailure::All(error.into()),
                BatchFailure::Of(failed) => {
                    BatchFailure::of(failed.into_iter().map(|(index, error)| (index, error.into())))
                }
            })
        })
    }
}

impl Handler for BoxProcessor {
    type Error = BoxError;

    async fn handle(&self, record: &Record, attempt: &Attempt<'_>) -> Result<(), BoxError> {
        self.inner.handle_boxed(record, attempt).await
    }

    fn batches(&self) -> Option<Bounds> {
        self.inner.bounds()
    }

    async fn handle_batch(
        &self,
        records: &[Record],
        attempt: &Attempt<'_>,
    ) -> Result<(), BatchFailure<BoxError>> {
        self.inner.handle_batch_boxed(records, attempt).await
    }
}

impl fmt::Debug for BoxProcessor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("BoxProcessor").field(&self.name).finish()
    }
}
