//! Says so when a shard waits: which bound is reached, and for which record.

use std::pin::Pin;
use std::task::Context;
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

use super::window::{Ordinal, Window};
use crate::observer::{Bound, Event, Interest, Observers};

/// A full window is how a busy shard lives. One that waits this long for the same record is stuck.
const STUCK_AFTER: Duration = Duration::from_secs(5);
/// And is spoken of again.
const REPEAT_AFTER: Duration = Duration::from_secs(60);

#[derive(Default)]
pub(super) struct Fullness {
    oldest: Option<Ordinal>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Fullness {
    /// To be called in every turn, with the bound that stops the reading, if one does.
    pub(super) fn observe(
        &mut self,
        bound: Option<Bound>,
        window: &Window,
        observers: &Observers,
        cx: &mut Context<'_>,
    ) {
        let Some((bound, (ordinal, oldest))) = bound.zip(window.oldest()) else {
            self.oldest = None;
            return;
        };
        if !observers.want(Interest::SHARDS) {
            return;
        }
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(STUCK_AFTER)));
        if self.oldest != Some(ordinal) {
            self.oldest = Some(ordinal);
            timer.as_mut().reset(Instant::now() + STUCK_AFTER);
        }
        while timer.as_mut().poll(cx).is_ready() {
            observers.tell(&Event::WindowFull {
                bound,
                oldest,
                held: window.held(),
            });
            timer.as_mut().reset(Instant::now() + REPEAT_AFTER);
        }
    }
}
