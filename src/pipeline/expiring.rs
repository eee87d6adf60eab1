//! Says so when the record that a shard waits for will be gone soon: Kinesis drops what is older than the retention.

use std::pin::Pin;
use std::task::Context;
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, Sleep, sleep};

use super::window::Window;
use crate::observer::{Event, Interest, Observers};

/// Between looks at the oldest record, by which nothing is spent on records that are settled in time.
const LOOK: Duration = Duration::from_secs(60);
/// Somebody has to come, and has seen it or not.
const REPEAT_AFTER: Duration = Duration::from_secs(5 * 60);
/// From this share of the retention on.
const SHARE: f64 = 0.8;

pub(super) struct Expiring {
    retention: Option<Duration>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Expiring {
    pub(super) fn new(retention: Option<Duration>) -> Self {
        Expiring {
            retention,
            timer: None,
        }
    }

    /// To be called in every turn.
    pub(super) fn observe(&mut self, window: &Window, observers: &Observers, cx: &mut Context<'_>) {
        let Some(retention) = self.retention else { return };
        let Some((_, oldest)) = window.oldest() else {
            self.timer = None;
            return;
        };
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(LOOK)));
        while timer.as_mut().poll(cx).is_ready() {
            let age = oldest
                .arrival()
                .and_then(|arrival| SystemTime::now().duration_since(arrival).ok());
            let expires = age.filter(|age| *age >= retention.mul_f64(SHARE));
            if let Some(age) = expires.filter(|_| observers.want(Interest::SHARDS)) {
                observers.tell(&Event::RecordExpiring {
                    record: oldest,
                    age,
                    left: retention.saturating_sub(age),
                });
            }
            let next = if expires.is_some() { REPEAT_AFTER } else { LOOK };
            timer.as_mut().reset(Instant::now() + next);
        }
    }
}
