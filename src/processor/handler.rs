//! The trait through which the engine calls a processor.

use std::future::Future;

use super::{Attempt, BatchFailure, BatchProcessor, Batched, Bounds, BoxProcessor, RecordProcessor};
use crate::failure::BoxError;
use crate::record::Record;

/// A processor as the engine calls it: a [`RecordProcessor`], a [`BatchProcessor`] in its [`Batched`]
/// settings, or a [`BoxProcessor`] around one of them.
///
/// Every type that takes a processor, such as [`Resilient`](crate::Resilient), takes a `Handler`. The trait is
/// implemented for all processors, and no other crate can implement it.
pub trait Handler: sealed::Sealed + Send + Sync {
    /// The error of a failed attempt.
    type Error: Into<BoxError> + Send + 'static;

    /// Processes one record.
    #[doc(hidden)]
    fn handle(
        &self,
        record: &Record,
        attempt: &Attempt<'_>,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Returns the limits of a batch, if the processor takes many records at once.
    #[doc(hidden)]
    fn batches(&self) -> Option<Bounds>;

    /// Processes a batch. The engine calls this only if [`batches`](Handler::batches) returns limits.
    #[doc(hidden)]
    fn handle_batch(
        &self,
        records: &[Record],
        attempt: &Attempt<'_>,
    ) -> impl Future<Output = Result<(), BatchFailure<Self::Error>>> + Send;
}

mod sealed {
    pub trait Sealed {}
}

impl<P: RecordProcessor> sealed::Sealed for P {}
impl<B: BatchProcessor> sealed::Sealed for Batched<B> {}
impl sealed::Sealed for BoxProcessor {}

impl<P: RecordProcessor> Handler for P {
    type Error = P::Error;

    #[inline]
    fn handle(
        &self,
        record: &Record,
        attempt: &Attempt<'_>,
    ) -> impl Future<Output = Result<(), P::Error>> + Send {
        self.process(record, attempt)
    }

    #[inline]
    fn batches(&self) -> Option<Bounds> {
        None
    }

    async fn handle_batch(
        &self,
        records: &[Record],
        attempt: &Attempt<'_>,
    ) -> Result<(), BatchFailure<P::Error>> {
        for record in records {
            self.process(record, attempt).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::processor::{ProcessorFn, processor_fn};

    struct Rows;

    impl BatchProcessor for Rows {
        type Error = BoxError;

        async fn process_batch(&self, _: &[Record], _: &Attempt<'_>) -> Result<(), BatchFailure<BoxError>> {
            Ok(())
        }
    }

    struct Implements<T>(T);

    /// The answer for every type that has no inherent answer.
    trait Otherwise {
        const RECORD_PROCESSOR: bool = false;
    }

    impl<T> Otherwise for Implements<T> {}

    impl<P: RecordProcessor> Implements<P> {
        const RECORD_PROCESSOR: bool = true;
    }

    /// A decorator that passes on single records would turn batches into single records.
    #[test]
    fn processors_that_may_batch_are_no_record_processors() {
        fn is_record_processor<F: Fn(Record) -> Fut + Send + Sync, Fut>(_: &ProcessorFn<F>) -> bool
        where
            Fut: Future<Output = Result<(), BoxError>> + Send,
        {
            Implements::<ProcessorFn<F>>::RECORD_PROCESSOR
        }
        assert!(is_record_processor(&processor_fn(async |_: Record| Ok(()))));
        const { assert!(!Implements::<Batched<Rows>>::RECORD_PROCESSOR) };
        const { assert!(!Implements::<&Batched<Rows>>::RECORD_PROCESSOR) };
        const { assert!(!Implements::<BoxProcessor>::RECORD_PROCESSOR) };
    }
}
