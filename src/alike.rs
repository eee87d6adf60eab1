//! One failure of many things that were asked for at once.

use std::error::Error;
use std::sync::Arc;

use crate::failure::BoxError;

/// The same failure for each of them.
pub(crate) fn failed_alike<T, E>(
    count: usize,
    error: impl Into<BoxError>,
    failed: impl Fn(BoxError) -> E,
) -> Vec<Result<T, E>> {
    let error: Arc<dyn Error + Send + Sync> = error.into().into();
    (0..count).map(|_| Err(failed(error.clone().into()))).collect()
}

/// Runs file access where it may block. If it fails as a whole, all of it has failed.
#[cfg(feature = "redb")]
pub(crate) async fn blocking<T, E>(
    count: usize,
    work: impl FnOnce() -> Result<Vec<Result<T, E>>, BoxError> + Send + 'static,
    failed: impl Fn(BoxError) -> E,
) -> Vec<Result<T, E>>
where
    T: Send + 'static,
    E: Send + 'static,
{
    let result = match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(panicked) => Err(panicked.into()),
    };
    result.unwrap_or_else(|error| failed_alike(count, error, failed))
}
