//! What somebody else's code says that redrive calls: it may hang or panic.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::time::Duration;

use tokio::time::timeout;

use super::attempt::poll_caught;
use crate::failure::BoxError;

/// The answer, or that there is none: who has not answered within this time has failed.
pub(crate) async fn answer<T>(
    who: &str,
    within: Duration,
    asked: impl Future<Output = T>,
) -> Result<T, BoxError> {
    let mut asked = pin!(asked);
    let caught = poll_fn(|cx| poll_caught(asked.as_mut(), cx));
    match timeout(within, caught).await {
        Ok(Ok(answer)) => Ok(answer),
        // What it says of itself may hold anything; the panic hook has printed it.
        Ok(Err(_)) => Err(format!("{who} panicked").into()),
        Err(_) => Err(format!("{who} did not answer within {within:?}").into()),
    }
}
