//! The progress that a shard's task reports to the task that stores its checkpoints.

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

/// The checkpoints of a running shard, made on demand: collecting what is settled ahead of the watermark
/// takes a walk over the window.
///
/// The task that stores the checkpoints subscribes. Then it repeats: ask for the next checkpoint, wait for
/// it, store it.
#[derive(Debug)]
pub(crate) struct Progress {
    demand: AtomicU8,
    shard: AtomicWaker,
    turns: AtomicU64,
    /// True once the pipeline's run has ended, after which the shard's task has no more turns.
    ended: AtomicBool,
    stopped: AtomicBool,
    stuck: AtomicU8,
    in_flight: AtomicUsize,
    /// The arrival time of the oldest record in flight, in milliseconds since 1970; 0 without such a record.
    oldest: AtomicU64,
    latest: watch::Sender<Option<Published>>,
    settled: Arc<SettledCounts>,
}

/// A checkpoint to be stored.
#[derive(Debug, Clone)]
pub(crate) struct Published {
    /// The position up to which the shard is settled.
    pub(crate) checkpoint: Checkpoint,
    /// True if no other checkpoint follows.
    pub(crate) last: bool,
}

/// No checkpoint is wanted: one is being stored, or none was asked for yet.
const NONE: u8 = 0;
/// Only an urgent checkpoint is wanted: the last one is stored, and the next is not due.
const URGENT: u8 = 1;
/// Any checkpoint is wanted: the next one is due.
const ANY: u8 = 2;

impl Progress {
    /// Creates a progress without a demand and without a published checkpoint.
    pub(crate) fn new() -> Self {
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

    /// Adds the counts of settled records to `settled`.
    #[cfg(feature = "kinesis")]
    pub(crate) fn counting(self, settled: Arc<SettledCounts>) -> Self {
        Progress { settled, ..self }
    }

    /// Asks for the next checkpoint only if it should not wait, as after a dead letter.
    pub(crate) fn want_urgent(&self) {
        self.ask(URGENT);
    }

    /// Asks for the next checkpoint that differs from the last.
    pub(crate) fn want_any(&self) {
        self.ask(ANY);
    }

    fn ask(&self, demand: u8) {
        self.demand.store(demand, Ordering::Release);
        self.shard.wake();
    }

    /// Returns the channel on which the checkpoints arrive.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Option<Published>> {
        self.latest.subscribe()
    }

    /// Counts a turn and registers the shard's task to be woken. The task calls this in each turn, before it
    /// checks the demand.
    pub(super) fn register(&self, cx: &Context<'_>) {
        self.turns.fetch_add(1, Ordering::Relaxed);
        self.shard.register(cx.waker());
    }

    /// Marks the run as begun. Dropping the returned guard marks it as ended.
    pub(super) fn run(&self) -> RunGuard<'_> {
        self.ended.store(false, Ordering::Relaxed);
        RunGuard(self)
    }

    /// Returns true once the pipeline's run is over. Later work of the shard's task, such as waiting for a
    /// store, counts no [turns](Progress::turns).
    pub(crate) fn is_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// Returns the number of turns that the shard's task has had. The number stays the same for a task that
    /// hangs, however often it is [woken](Progress::wake), and for a task whose run has
    /// [ended](Progress::is_ended).
    pub(crate) fn turns(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }

    /// Wakes the shard's task for another turn.
    pub(crate) fn wake(&self) {
        self.shard.wake();
    }

    /// Returns whether the dead-letter guard has stopped the shard. A stopped shard waits for
    /// [`DeadLetterGuard::resume`](crate::DeadLetterGuard::resume).
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// Returns the full bound behind which the shard is stuck: it has waited for the same record for at least
    /// 5 s.
    pub(crate) fn stuck(&self) -> Option<Bound> {
        match self.stuck.load(Ordering::Relaxed) {
            1 => Some(Bound::InFlight),
            2 => Some(Bound::Span),
            3 => Some(Bound::Bytes),
            _ => None,
        }
    }

    /// Returns the number of records in flight: read and not settled.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Returns the time at which the oldest record in flight arrived in the stream.
    pub(crate) fn oldest(&self) -> Option<SystemTime> {
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

    /// Publishes the last checkpoint: the shard's run has ended there.
    pub(crate) fn finish(&self, checkpoint: Checkpoint) {
        self.send(checkpoint, true);
    }

    fn send(&self, checkpoint: Checkpoint, last: bool) {
        self.latest.send_replace(Some(Published { checkpoint, last }));
    }
}

/// A guard that lives as long as the shard's task has turns.
pub(super) struct RunGuard<'a>(&'a Progress);

impl Drop for RunGuard<'_> {
    fn drop(&mut self) {
        self.0.set_stopped(false);
        self.0.ended.store(true, Ordering::Relaxed);
    }
}
