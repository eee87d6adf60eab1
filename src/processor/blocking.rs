//! Processors that block their thread.

use std::any::type_name;
use std::fmt;
use std::num::NonZeroUsize;
use std::panic::resume_unwind;
use std::sync::{Arc, Mutex, PoisonError};

use lru::LruCache;
use tokio::sync::watch;
use tokio::task::spawn_blocking;

use super::{Attempt, RecordProcessor};
use crate::failure::BoxError;
use crate::record::Record;

/// Creates a processor from a synchronous function, which runs on tokio's threads for blocking work
/// ([`tokio::task::spawn_blocking`], 512 threads by default). A [`Capacity`](crate::pipeline::Capacity)
/// bounds the number of running calls.
///
/// A thread cannot be stopped: a call whose attempt has timed out continues to run. The next attempt waits
/// for that call, so that no record is processed on two threads at once. If the call succeeds, the waiting
/// attempt succeeds. If the waiting attempt times out as well, the engine reports
/// [`HandlerStuck`](crate::observer::RecordEvent::HandlerStuck).
///
/// ```
/// use redrive::{Record, processor_blocking};
///
/// fn store(record: &Record) -> Result<(), std::io::Error> {
///     std::fs::write("/dev/null", record.payload())
/// }
/// let orders = processor_blocking(store);
/// ```
pub fn processor_blocking<F, E>(handler: F) -> ProcessorBlocking<F>
where
    F: Fn(&Record) -> Result<(), E> + Send + Sync + 'static,
    E: Into<BoxError> + Send + 'static,
{
    ProcessorBlocking {
        handler: Arc::new(handler),
        left: Arc::new(Mutex::new(LruCache::new(MOST))),
    }
}

/// A processor made by [`processor_blocking`].
pub struct ProcessorBlocking<F> {
    handler: Arc<F>,
    left: Arc<Left>,
}

/// The calls that no attempt waits for any more, by idempotency key of the record.
type Left = Mutex<LruCache<String, watch::Receiver<Call>>>;

/// The maximum number of such calls: tokio's default for the number of blocking threads.
const MOST: NonZeroUsize = NonZeroUsize::new(512).expect("512 is not zero");

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    Runs,
    Succeeded,
    Failed,
}

/// Leaves a call to the next attempt when dropped, unless the current attempt saw the call's end.
struct Leave<'a> {
    left: &'a Left,
    record: &'a Record,
    call: Option<watch::Receiver<Call>>,
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        if let Some(call) = self.call.take() {
            let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
            left.put(self.record.idempotency_key(), call);
        }
    }
}

impl<F, E> RecordProcessor for ProcessorBlocking<F>
where
    F: Fn(&Record) -> Result<(), E> + Send + Sync + 'static,
    E: Into<BoxError> + Send + 'static,
{
    type Error = E;

    async fn process(&self, record: &Record, attempt: &Attempt<'_>) -> Result<(), E> {
        attempt.moves_to_another_thread();
        let mut leave = Leave {
            left: &self.left,
            record,
            call: None,
        };
        {
            let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
            if !left.is_empty() {
                leave.call = left.pop(&record.idempotency_key());
            }
        }
        if let Some(earlier) = &mut leave.call {
            attempt.waits_for_an_earlier_one(true);
            // The sender is gone only after a panic.
            let ended = earlier.wait_for(|call| *call != Call::Runs).await;
            let succeeded = ended.is_ok_and(|call| *call == Call::Succeeded);
            attempt.waits_for_an_earlier_one(false);
            leave.call = None;
            if succeeded {
                return Ok(());
            }
        }
        let (handler, its_record) = (self.handler.clone(), record.clone());
        let (said, call) = watch::channel(Call::Runs);
        leave.call = Some(call);
        let ended = spawn_blocking(move || {
            let result = handler(&its_record);
            let call = if result.is_ok() {
                Call::Succeeded
            } else {
                Call::Failed
            };
            // Sent even if no attempt waits for the call any more.
            said.send_replace(call);
            result
        });
        let ended = ended.await;
        leave.call = None;
        match ended {
            Ok(result) => result,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => resume_unwind(panic),
                // The runtime is shutting down, and this task with it.
                Err(_) => std::future::pending().await,
            },
        }
    }
}

impl<F> Clone for ProcessorBlocking<F> {
    fn clone(&self) -> Self {
        ProcessorBlocking {
            handler: self.handler.clone(),
            left: self.left.clone(),
        }
    }
}

impl<F> fmt::Debug for ProcessorBlocking<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ProcessorBlocking")
            .field(&type_name::<F>())
            .finish()
    }
}
