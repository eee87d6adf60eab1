//! What a checkpoint store or a dead-letter target says: it is the user's code, which may hang or panic.

use std::future::poll_fn;
use std::pin::pin;
use std::time::Duration;

use tokio::time::timeout;

use crate::failure::BoxError;
use crate::resilient::poll_caught;

/// Who has not answered by then has failed.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

pub(super) async fn answer<T>(who: &str, asked: impl Future<Output = T>) -> Result<T, BoxError> {
    let mut asked = pin!(asked);
    let caught = poll_fn(|cx| poll_caught(asked.as_mut(), cx));
    match timeout(ANSWER_TIMEOUT, caught).await {
        Ok(Ok(answer)) => Ok(answer),
        // What it says of itself may hold anything; the panic hook has printed it.
        Ok(Err(_)) => Err(format!("{who} panicked").into()),
        Err(_) => Err(format!("{who} did not answer within {ANSWER_TIMEOUT:?}").into()),
    }
}
