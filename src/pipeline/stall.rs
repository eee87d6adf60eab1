//! Detection of a stuck shard: reports which bound is full, and which record the shard waits for.

use std::pin::Pin;
use std::task::Context;
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

use super::window::{Ordinal, Window};
use crate::observer::{Bound, Event, Interest, Observers, ShardEvent};

/// The time after which a shard that waits for the same record is stuck. A full window alone is normal for a
/// busy shard.
const STUCK_AFTER: Duration = Duration::from_secs(5);
/// The interval at which a stuck shard is reported again.
const REPEAT_AFTER: Duration = Duration::from_secs(60);

#[derive(Default)]
pub(super) struct StallDetector {
    oldest: Option<Ordinal>,
    stuck: Option<Bound>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl StallDetector {
    /// Checks for a stall. The task calls this in every turn with the bound that stops the reading, if any.
    /// Returns the bound behind which the shard is stuck.
    pub(super) fn observe(
        &mut self,
        bound: Option<Bound>,
        window: &Window,
        observers: &Observers,
        cx: &mut Context<'_>,
    ) -> Option<Bound> {
        let Some((bound, (ordinal, oldest))) = bound.zip(window.oldest()) else {
            (self.oldest, self.stuck) = (None, None);
            return None;
        };
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(STUCK_AFTER)));
        if self.oldest != Some(ordinal) {
            (self.oldest, self.stuck) = (Some(ordinal), None);
            timer.as_mut().reset(Instant::now() + STUCK_AFTER);
        }
        while timer.as_mut().poll(cx).is_ready() {
            self.stuck = Some(bound);
            if observers.want(Interest::SHARDS) {
                observers.tell(&Event::Shard {
                    stream: oldest.stream(),
                    shard: oldest.shard(),
                    event: ShardEvent::WindowFull {
                        bound,
                        oldest,
                        in_flight: window.in_flight(),
                    },
                });
            }
            timer.as_mut().reset(Instant::now() + REPEAT_AFTER);
        }
        self.stuck
    }
}
