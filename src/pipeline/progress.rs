//! What a shard's task tells the one that stores its checkpoints.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::task::Context;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use atomic_waker::AtomicWaker;
use tokio::sync::watch;

use super::SettledCounts;
use crate::checkpoint::Checkpoint;
use crate::observer::Bound;
use crate::record::Record;

/// A shard's checkpoints while it runs, made when they are asked for: collecting what is settled ahead
/// of the watermark takes a walk over the window.
///
/// Whoever stores them subscribes, asks for the next, waits for it, stores it, and asks again.
#[derive(Debug)]
pub struct Progress {
    demand: AtomicU8,
    shard: AtomicWaker,
    turns: AtomicU64,
    /// Whether the pipeline's run has ended, after which the shard's task has no more turns.
    ended: AtomicBool,
    stopped: AtomicBool,
    stuck: AtomicU8,
    in_flight: AtomicUsize,
    /// When the oldest that is not settled arrived, in milliseconds since 1970; 0 without one.
    oldest: AtomicU64,
    latest: watch::Sender<Option<Published>>,
    settled: Arc<SettledCounts>,
}

/// A checkpoint to be stored.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Published {
    /// How far the shard is settled.
    pub checkpoint: Checkpoint,
    /// No other follows.
    pub last: bool,
}

/// One is being stored.
const NONE: u8 = 0;
/// The last is stored, the next not due: only one that is urgent is taken.
const URGENT: u8 = 1;
/// The next is due.
const ANY: u8 = 2;

impl Default for Progress {
    fn default() -> Self {
        Progress::new()
    }
}

impl Progress {
    /// Nothing asked for, nothing published.
    pub fn new() -> Self {
        Progress {
            demand: AtomicU8::new(NONE),
            shard: AtomicWaker::new(),
            turns: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            stuck: AtomicU8::new(0),
            in_flight: AtomicUsize::new(0),
            oldest: AtomicU64::new(0),
            latest: watch::Sender::new(None),
            settled: Arc::default(),
        }
    }

    /// Counts what is settled there.
    #[cfg(feature = "kinesis")]
    pub(crate) fn counting(self, settled: Arc<SettledCounts>) -> Self {
        Progress { settled, ..self }
    }

    /// Takes the next one only if it should not wait, as after a dead letter.
    pub fn want_urgent(&self) {
        self.ask(URGENT);
    }

    /// Takes the next one that differs from the last.
    pub fn want_any(&self) {
        self.ask(ANY);
    }

    fn ask(&self, demand: u8) {
        self.demand.store(demand, Ordering::Release);
        self.shard.wake();
    }

    /// Where the checkpoints arrive.
    pub fn subscribe(&self) -> watch::Receiver<Option<Published>> {
        self.latest.subscribe()
    }

    /// To be called by the shard's task in each turn, before it looks at the demand.
    pub(super) fn register(&self, cx: &Context<'_>) {
        self.turns.fetch_add(1, Ordering::Relaxed);
        self.shard.register(cx.waker());
    }

    /// Reports that a run begins; that it is over when the result is dropped.
    pub(super) fn run(&self) -> RunGuard<'_> {
        self.ended.store(false, Ordering::Relaxed);
        RunGuard(self)
    }

    /// Whether the pipeline's run is over. What its task does after that, such as waiting for a store, takes no
    /// [turns](Progress::turns).
    pub fn is_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// The number of turns that the shard's task has had. A task that hangs has no more of them, however often it is
    /// [woken](Progress::wake); nor has one whose run has [ended](Progress::is_ended).
    pub fn turns(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }

    /// Gives the shard's task a turn.
    pub fn wake(&self) {
        self.shard.wake();
    }

    /// Whether the dead-letter guard has stopped the shard, which waits for
    /// [`DeadLetterGuard::resume`](crate::DeadLetterGuard::resume).
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// The bound behind which the shard has waited for the same record for some time, if it does.
    pub fn stuck(&self) -> Option<Bound> {
        match self.stuck.load(Ordering::Relaxed) {
            1 => Some(Bound::InFlight),
            2 => Some(Bound::Span),
            3 => Some(Bound::Bytes),
            _ => None,
        }
    }

    /// How many records are read and not settled.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// When the oldest of them arrived in the stream.
    pub fn oldest(&self) -> Option<SystemTime> {
        let millis = self.oldest.load(Ordering::Relaxed);
        (millis > 0).then(|| UNIX_EPOCH + Duration::from_millis(millis))
    }

    pub(super) fn settled(&self) -> &SettledCounts {
        &self.settled
    }

    pub(super) fn set_in_flight(&self, in_flight: usize, oldest: Option<&Record>) {
        self.in_flight.store(in_flight, Ordering::Relaxed);
        let since = oldest.and_then(|oldest| oldest.arrival()?.duration_since(UNIX_EPOCH).ok());
        let millis = since.map_or(0, |since| since.as_millis() as u64);
        self.oldest.store(millis, Ordering::Relaxed);
    }

    pub(super) fn set_stopped(&self, stopped: bool) {
        self.stopped.store(stopped, Ordering::Relaxed);
    }

    pub(super) fn set_stuck(&self, bound: Option<Bound>) {
        let stuck = match bound {
            None => 0,
            Some(Bound::InFlight) => 1,
            Some(Bound::Span) => 2,
            Some(Bound::Bytes) => 3,
        };
        self.stuck.store(stuck, Ordering::Relaxed);
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
        self.send(checkpoint, false);
    }

    /// Publishes the last one: the shard's run has ended here.
    pub fn finish(&self, checkpoint: Checkpoint) {
        self.send(checkpoint, true);
    }

    fn send(&self, checkpoint: Checkpoint, last: bool) {
        self.latest.send_replace(Some(Published { checkpoint, last }));
    }
}

/// As long as it lives, the shard's task has turns.
pub(super) struct RunGuard<'a>(&'a Progress);

impl Drop for RunGuard<'_> {
    fn drop(&mut self) {
        self.0.set_stopped(false);
        self.0.ended.store(true, Ordering::Relaxed);
    }
}
