//! Waits for conditions, never for a fixed time.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

/// A limit far above the time that anything takes on an idle machine. Only a failing test waits this long.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// Waits until the condition holds.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(
            start.elapsed() < PATIENCE,
            "{what}: did not happen within {PATIENCE:?}"
        );
        sleep(Duration::from_millis(5)).await;
    }
}

/// Waits for the future's result.
pub async fn finished<T>(what: &str, future: impl Future<Output = T>) -> T {
    match timeout(PATIENCE, future).await {
        Ok(result) => result,
        Err(_) => panic!("{what}: did not happen within {PATIENCE:?}"),
    }
}
