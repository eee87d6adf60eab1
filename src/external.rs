//! Calls into code that is not ours: a user's processor, sink, store or observer. A panic or a hang in such
//! code ends neither a task nor the processing of a record.

use std::any::Any;
use std::error::Error;
use std::fmt;
use std::future::poll_fn;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::timeout;

/// The same as `failure::BoxError`, which stands above this module.
type BoxError = Box<dyn Error + Send + Sync + 'static>;

/// Calls code that is not ours. Returns `None` if the code panicked. The panic's message may quote a payload:
/// the panic hook has printed the message, and redrive does not pass it on.
#[inline]
pub(crate) fn caught<T>(call: impl FnOnce() -> T) -> Option<T> {
    // The code must keep its shared state sound, as on any thread that may panic.
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => Some(result),
        Err(panic) => {
            discard(panic);
            None
        }
    }
}

/// Drops a panic's payload, which may panic again.
#[cold]
fn discard(panic: Box<dyn Any + Send>) {
    if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(panic))) {
        mem::forget(again);
    }
}

/// The processor panicked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Panicked {
    message: Option<String>,
}

impl fmt::Display for Panicked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.message {
            Some(message) => write!(f, "the processor panicked: {message}"),
            None => f.write_str("the processor panicked"),
        }
    }
}

impl Error for Panicked {}

impl From<Box<dyn Any + Send>> for Panicked {
    fn from(payload: Box<dyn Any + Send>) -> Self {
        let text = payload
            .downcast_ref::<&'static str>()
            .map(|text| text.to_string());
        let message = text.or_else(|| payload.downcast_ref::<String>().cloned());
        discard(payload);
        Panicked { message }
    }
}

/// Polls a future, and returns a panic as an error.
#[inline]
pub(crate) fn poll_caught<T>(
    future: Pin<&mut impl Future<Output = T>>,
    cx: &mut Context<'_>,
) -> Poll<Result<T, Panicked>> {
    // After a panic the future is never polled again. The user's code must keep its shared state sound, as on
    // any thread that may panic.
    match catch_unwind(AssertUnwindSafe(|| future.poll(cx))) {
        Ok(poll) => poll.map(Ok),
        Err(payload) => Poll::Ready(Err(payload.into())),
    }
}

/// Awaits the answer of `who`, for this time at most.
///
/// # Errors
///
/// `who` has panicked, or has not answered in time.
pub(crate) async fn answer<T>(
    who: &str,
    within: Duration,
    asked: impl Future<Output = T>,
) -> Result<T, BoxError> {
    let mut asked = pin!(asked);
    let caught = poll_fn(|cx| poll_caught(asked.as_mut(), cx));
    match timeout(within, caught).await {
        Ok(Ok(answer)) => Ok(answer),
        // The panic's message may quote anything; the panic hook has printed it.
        Ok(Err(_)) => Err(format!("{who} panicked").into()),
        Err(_) => Err(format!("{who} did not answer within {within:?}").into()),
    }
}

/// Returns the same error for each item of a call that failed as a whole.
pub(crate) fn failed_alike<T, E>(
    count: usize,
    error: impl Into<BoxError>,
    failed: impl Fn(BoxError) -> E,
) -> Vec<Result<T, E>> {
    let error: Arc<dyn Error + Send + Sync> = error.into().into();
    (0..count).map(|_| Err(failed(error.clone().into()))).collect()
}

#[cfg(test)]
mod tests {
    use std::panic::panic_any;

    use super::*;

    struct PanicsWhenDropped;

    impl Drop for PanicsWhenDropped {
        fn drop(&mut self) {
            panic_any(PanicsWhenDropped);
        }
    }

    #[test]
    fn a_panic_is_caught_whatever_it_says() {
        assert_eq!(caught(|| 1), Some(1));
        assert_eq!(caught(|| -> u32 { panic!("text") }), None);
        assert_eq!(caught(|| -> u32 { panic_any(PanicsWhenDropped) }), None);
    }
}
