//! The limits of calls to Kinesis and to the stores.

use std::future::Future;
use std::time::Duration;

use crate::external;
use crate::failure::BoxError;

/// Time limit for the answers of stores, and for calls without a timeout of their own.
pub(in crate::consumer) const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// The number of consecutive refusals that end the start of a consumer. They take some seconds, as IAM is
/// eventually consistent.
pub(in crate::consumer) const REFUSALS: u32 = 6;
/// The maximum number of calls to Kinesis before a loss is decided.
pub(in crate::consumer) const CALLS_BEFORE_LOSS: u32 = 5;

/// The checkpoint store, as errors name it.
pub(in crate::consumer) const STORE: &str = "the checkpoint store";

/// Awaits the answer of a store.
pub(in crate::consumer) async fn answer<T>(who: &str, asked: impl Future<Output = T>) -> Result<T, BoxError> {
    external::answer(who, ANSWER_TIMEOUT, asked).await
}
