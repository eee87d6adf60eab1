//! The bounds that all shards of a process share: handler calls now, and payload bytes held.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

#[cfg(feature = "kinesis")]
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::PollSemaphore;

use crate::config::ConfigError;

/// How much a process does at once. A clone shares it: give one to several consumers, and together
/// they stay within it.
#[derive(Clone)]
pub struct Capacity {
    running: Arc<Semaphore>,
    max_running: usize,
    memory: Arc<Memory>,
}

impl Capacity {
    /// At most so many handler calls now, and so many payload bytes held.
    ///
    /// Defaults elsewhere: [`Capacity::default`].
    pub fn new(running: usize, bytes: usize) -> Result<Self, ConfigError> {
        if running == 0 || running > Semaphore::MAX_PERMITS {
            return Err(ConfigError::new(
                "running",
                "at least one handler call must be allowed",
            ));
        }
        if bytes == 0 {
            return Err(ConfigError::new("bytes", "some memory must be allowed"));
        }
        Ok(Capacity::of(running, bytes))
    }

    /// Waits until there is room for one more handler call.
    #[cfg(feature = "kinesis")]
    pub(crate) async fn one_more(&self) -> Option<OwnedSemaphorePermit> {
        self.running.clone().acquire_owned().await.ok()
    }

    /// The same memory, and one handler call at a time: beside those of all others, which are asked for
    /// [one by one](Capacity::one_more).
    #[cfg(feature = "kinesis")]
    pub(crate) fn one_at_a_time(&self) -> Self {
        Capacity {
            running: Arc::new(Semaphore::new(1)),
            max_running: 1,
            memory: self.memory.clone(),
        }
    }

    fn of(running: usize, bytes: usize) -> Self {
        Capacity {
            running: Arc::new(Semaphore::new(running)),
            max_running: running,
            memory: Arc::new(Memory {
                limit: bytes,
                used: AtomicUsize::new(0),
                freed: Notify::new(),
                waiting: AtomicUsize::new(0),
            }),
        }
    }

    /// Handler calls that run now: a record in backoff, or whose letter is being written, is none.
    pub fn running(&self) -> usize {
        self.max_running - self.running.available_permits().min(self.max_running)
    }

    /// Payload bytes reserved and held now.
    pub fn bytes(&self) -> usize {
        self.memory.used.load(Ordering::Relaxed)
    }

    pub(crate) fn permits(&self) -> Permits {
        Permits {
            semaphore: PollSemaphore::new(self.running.clone()),
            queued: false,
            idle: 0,
            busy: 0,
        }
    }

    /// Waits until so many payload bytes are free, and takes them; what is larger than all of the memory
    /// goes through when nothing else does. For a [`Batch`](super::Batch) to be read.
    pub async fn reserve(&self, bytes: usize) -> Reservation {
        let mut waiting = None;
        loop {
            // Enabled before the look, so that a release in between is not missed.
            let freed = self.memory.freed.notified();
            if self.memory.take(bytes) {
                return Reservation {
                    memory: self.memory.clone(),
                    bytes,
                };
            }
            waiting.get_or_insert_with(|| Waiting::new(&self.memory));
            freed.await;
        }
    }

    /// Whether a fetch waits for memory.
    pub(super) fn is_short(&self) -> bool {
        self.memory.waiting.load(Ordering::Relaxed) > 0
    }

    pub(crate) fn reservation(&self) -> Reservation {
        Reservation {
            memory: self.memory.clone(),
            bytes: 0,
        }
    }
}

impl Default for Capacity {
    /// 64 handler calls, 256 MiB.
    fn default() -> Self {
        Capacity::of(64, 256 * 1024 * 1024)
    }
}

impl fmt::Debug for Capacity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Capacity")
            .field("running", &self.running())
            .field("max_running", &self.max_running)
            .field("bytes", &self.bytes())
            .field("max_bytes", &self.memory.limit)
            .finish()
    }
}

struct Memory {
    limit: usize,
    used: AtomicUsize,
    freed: Notify,
    /// Fetches that wait for memory.
    waiting: AtomicUsize,
}

impl Memory {
    fn take(&self, bytes: usize) -> bool {
        self.used
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |used| {
                // Whatever the limit, one fetch at a time goes through.
                (used == 0 || used + bytes <= self.limit).then_some(used + bytes)
            })
            .is_ok()
    }

    fn release(&self, bytes: usize) {
        if bytes > 0 {
            self.used.fetch_sub(bytes, Ordering::AcqRel);
            self.freed.notify_waiters();
        }
    }
}

/// Counts one that waits for memory, as long as it waits.
struct Waiting<'a>(&'a Memory);

impl<'a> Waiting<'a> {
    fn new(memory: &'a Memory) -> Self {
        memory.waiting.fetch_add(1, Ordering::Relaxed);
        Waiting(memory)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Bytes taken from a [`Capacity`]; given back when dropped.
pub struct Reservation {
    memory: Arc<Memory>,
    bytes: usize,
}

impl Reservation {
    /// Gives back all but so many.
    pub(crate) fn keep(&mut self, bytes: usize) {
        let freed = self.bytes.saturating_sub(bytes);
        self.bytes -= freed;
        self.memory.release(freed);
    }

    /// Gives back so many.
    pub(crate) fn release(&mut self, bytes: usize) {
        self.keep(self.bytes.saturating_sub(bytes));
    }

    /// Takes over another's.
    pub(crate) fn absorb(&mut self, mut other: Reservation) {
        self.bytes += std::mem::take(&mut other.bytes);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.keep(0);
    }
}

impl fmt::Debug for Reservation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reservation").field("bytes", &self.bytes).finish()
    }
}

/// One shard's share of the handler calls.
///
/// Within a turn of the shard's task a permit passes from one record to the next without touching the
/// shared count; what is left over goes back at the turn's end, where others wait for it in line.
pub(crate) struct Permits {
    semaphore: PollSemaphore,
    queued: bool,
    idle: usize,
    busy: usize,
}

impl Permits {
    /// Takes one. `Pending`: all are in use, and the task is woken when one is its own.
    #[inline]
    pub(crate) fn poll_take(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.idle == 0 && self.poll_share(cx).is_pending() {
            return Poll::Pending;
        }
        self.idle -= 1;
        self.busy += 1;
        Poll::Ready(())
    }

    /// Takes one of all into this share.
    fn poll_share(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // `None` never comes: the semaphore is never closed.
        let Poll::Ready(Some(permit)) = self.semaphore.poll_acquire(cx) else {
            self.queued = true;
            return Poll::Pending;
        };
        permit.forget();
        self.queued = false;
        self.idle += 1;
        Poll::Ready(())
    }

    /// Gives one back, for the next record of this turn.
    #[inline]
    pub(crate) fn give(&mut self) {
        self.busy -= 1;
        self.idle += 1;
    }

    /// Gives back to all what this turn did not use. A shard that wants no more leaves the line: a
    /// permit that came to it there would lie idle.
    pub(crate) fn end_turn(&mut self, wants_more: bool) {
        if self.queued && !wants_more {
            self.semaphore = PollSemaphore::new(self.semaphore.clone_inner());
            self.queued = false;
        }
        let idle = std::mem::take(&mut self.idle);
        if idle > 0 {
            self.semaphore.add_permits(idle);
        }
    }
}

impl Drop for Permits {
    fn drop(&mut self) {
        self.idle += std::mem::take(&mut self.busy);
        self.end_turn(false);
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test]
    async fn a_reservation_waits_until_enough_is_given_back() {
        let capacity = Capacity::new(1, 100).expect("valid");
        let mut first = capacity.reserve(80).await;
        let waiting = tokio::spawn({
            let capacity = capacity.clone();
            async move { capacity.reserve(50).await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        first.keep(60);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished(), "110 bytes are more than 100");
        first.release(10);
        let second = waiting.await.expect("no panic");
        assert_eq!(capacity.bytes(), 100);
        drop((first, second));
        assert_eq!(capacity.bytes(), 0);
    }

    #[tokio::test]
    async fn one_that_is_larger_than_all_memory_goes_through_alone() {
        let capacity = Capacity::new(1, 100).expect("valid");
        drop(capacity.reserve(1_000).await);
        assert_eq!(capacity.bytes(), 0);
    }

    #[tokio::test]
    async fn permits_are_shared_and_never_lost() {
        let capacity = Capacity::new(2, 1).expect("valid");
        let (mut a, mut b) = (capacity.permits(), capacity.permits());
        poll_fn(|cx| a.poll_take(cx)).await;
        poll_fn(|cx| a.poll_take(cx)).await;
        assert!(poll_fn(|cx| Poll::Ready(b.poll_take(cx))).await.is_pending());
        a.give();
        assert!(
            poll_fn(|cx| Poll::Ready(b.poll_take(cx))).await.is_pending(),
            "a's turn is not over"
        );
        a.end_turn(false);
        poll_fn(|cx| b.poll_take(cx)).await;
        assert_eq!(capacity.running(), 2);
        drop((a, b));
        assert_eq!(capacity.running(), 0);
    }

    #[tokio::test]
    async fn a_permit_that_comes_too_late_goes_to_the_next_in_line() {
        let capacity = Capacity::new(1, 1).expect("valid");
        let (mut a, mut b, mut c) = (capacity.permits(), capacity.permits(), capacity.permits());
        poll_fn(|cx| a.poll_take(cx)).await;
        for waiting in [&mut b, &mut c] {
            assert!(
                poll_fn(|cx| Poll::Ready(waiting.poll_take(cx)))
                    .await
                    .is_pending()
            );
        }
        a.give();
        a.end_turn(false);
        b.end_turn(false);
        poll_fn(|cx| c.poll_take(cx)).await;
    }
}
