//! The checkpoints of a run, for a program that stores them itself.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::progress::{Progress, Published};
use crate::checkpoint::Checkpoint;

/// Calls `on_checkpoint` with each checkpoint, one call at a time, and returns after the last one.
/// `interval`: the minimum time between two checkpoints that are not urgent.
pub(super) async fn hand_over<F: Future<Output = ()>>(
    progress: &Progress,
    mut latest: watch::Receiver<Option<Published>>,
    interval: Duration,
    mut on_checkpoint: impl FnMut(Checkpoint) -> F,
) {
    loop {
        let due = Instant::now() + interval;
        progress.want_urgent();
        let is_early = tokio::select! {
            biased;
            _ = latest.changed() => true,
            () = sleep_until(due) => false,
        };
        if !is_early {
            progress.want_any();
            // No error: the sender lives as long as the progress.
            let _ = latest.changed().await;
        }
        let published = latest.borrow_and_update().clone();
        let Some(Published { checkpoint, last }) = published else {
            continue;
        };
        on_checkpoint(checkpoint).await;
        if last {
            return;
        }
    }
}
