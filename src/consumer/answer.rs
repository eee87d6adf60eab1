//! What a checkpoint store or a dead-letter target says.

use std::time::Duration;

use crate::failure::BoxError;
use crate::resilient;

/// Who has not answered by then has failed.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

pub(super) async fn answer<T>(who: &str, asked: impl Future<Output = T>) -> Result<T, BoxError> {
    resilient::answer(who, ANSWER_TIMEOUT, asked).await
}
