//! What a shard's task tells the one that stores its checkpoints.

use std::sync::atomic::{AtomicU8, Ordering};
use std::task::Context;

use atomic_waker::AtomicWaker;
use tokio::sync::watch;

use crate::checkpoint::Checkpoint;

/// The shard's checkpoint, made when it is asked for: collecting what is settled ahead of the watermark
/// takes a walk over the window.
#[derive(Debug)]
pub(crate) struct Progress {
    demand: AtomicU8,
    shard: AtomicWaker,
    latest: watch::Sender<Option<Checkpoint>>,
}

/// One is being stored.
const NONE: u8 = 0;
/// The last is stored, the next not due: only one that is urgent is taken.
const URGENT: u8 = 1;
/// The next is due.
const ANY: u8 = 2;

impl Progress {
    pub(crate) fn new() -> Self {
        Progress {
            demand: AtomicU8::new(NONE),
            shard: AtomicWaker::new(),
            latest: watch::Sender::new(None),
        }
    }

    /// Takes the next one only if it should not wait, as after a dead letter.
    pub(crate) fn want_urgent(&self) {
        self.ask(URGENT);
    }

    /// Takes the next one that differs from the last.
    pub(crate) fn want_any(&self) {
        self.ask(ANY);
    }

    fn ask(&self, demand: u8) {
        self.demand.store(demand, Ordering::Release);
        self.shard.wake();
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Option<Checkpoint>> {
        self.latest.subscribe()
    }

    /// To be called by the shard's task in each turn, before it looks at the demand.
    pub(super) fn register(&self, cx: &Context<'_>) {
        self.shard.register(cx.waker());
    }

    pub(super) fn wanted(&self, urgent: bool) -> bool {
        match self.demand.load(Ordering::Acquire) {
            ANY => true,
            URGENT => urgent,
            _ => false,
        }
    }

    pub(super) fn publish(&self, checkpoint: Checkpoint) {
        self.demand.store(NONE, Ordering::Release);
        self.latest.send_replace(Some(checkpoint));
    }
}
