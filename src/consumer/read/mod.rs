//! The task that reads a shard, by enhanced fan-out or by polling.

pub(in crate::consumer) mod cursor;
pub(in crate::consumer) mod failures;
pub(in crate::consumer) mod fan_out;
pub(in crate::consumer) mod fetched_bytes;
pub(in crate::consumer) mod incarnation;
pub(in crate::consumer) mod polling;
pub(in crate::consumer) mod read_from;
pub(in crate::consumer) mod read_until;
pub(in crate::consumer) mod registration;
pub(in crate::consumer) mod retrieval;
pub(in crate::consumer) mod wire;

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;

use self::cursor::{Reading, ReadingEnded};
use self::fan_out::FanOut;
use self::polling::Poller;
use crate::observer::ShardEvent;
use crate::pipeline::Batch;

/// The time for which a shard is polled that cannot be subscribed to.
const FALL_BACK: Duration = Duration::from_secs(5 * 60);

/// Reads a shard to its end: by subscription if that is configured and possible, otherwise by polling.
pub(super) async fn read(
    mut reading: Reading,
    poller: Poller,
    fan_out: Option<FanOut>,
    pages: mpsc::Sender<Box<Batch>>,
) -> ReadingEnded {
    match fan_out {
        None => poller.run(&mut reading, &pages).await,
        // On the heap, so that a shard that is polled reserves no room for it.
        Some(fan_out) => Box::pin(subscribe(reading, poller, fan_out, pages)).await,
    }
}

/// Reads a shard by subscription, and by polling while it cannot be subscribed to.
async fn subscribe(
    mut reading: Reading,
    poller: Poller,
    fan_out: FanOut,
    pages: mpsc::Sender<Box<Batch>>,
) -> ReadingEnded {
    loop {
        let error = match fan_out.run(&mut reading, &pages).await {
            Ok(ended) => return ended,
            Err(error) => error,
        };
        reading.report(|| ShardEvent::FanOutUnavailable {
            error: &*error,
            delay: FALL_BACK,
        });
        // The timeout may cancel polling at any await. Everything that counts as read is handed over by then.
        if let Ok(ended) = timeout(FALL_BACK, poller.run(&mut reading, &pages)).await {
            return ended;
        }
    }
}
