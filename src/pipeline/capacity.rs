//! The bounds that all shards of a process share: running processor calls, and bytes of records in flight.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};

#[cfg(feature = "kinesis")]
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::PollSemaphore;

use crate::config::ConfigError;

/// The bounds of a process: running processor calls, and bytes of records in flight. Clones share the bounds,
/// so several consumers that get clones of one capacity stay within it together. [`CapacityBuilder`] lists
/// the defaults.
#[derive(Clone)]
pub struct Capacity {
    running: Arc<Semaphore>,
    max_running: usize,
    memory: Arc<Memory>,
}

/// Builds a [`Capacity`].
///
/// | setting | default |
/// |---|---|
/// | [`running`](CapacityBuilder::running) | 64 |
/// | [`bytes`](CapacityBuilder::bytes) | 268,435,456 (256 MiB) |
#[derive(Debug, Clone)]
#[must_use]
pub struct CapacityBuilder {
    running: usize,
    bytes: usize,
}

impl CapacityBuilder {
    /// Sets the maximum number of processor calls that run at a time: at least 1, and at most tokio's
    /// `Semaphore::MAX_PERMITS`.
    pub fn running(mut self, calls: usize) -> Self {
        self.running = calls;
        self
    }

    /// Sets the maximum number of bytes of records that are read and not settled: at least 1.
    ///
    /// A record counts its payload and 256 bytes of its own. Two cases exceed the bound, so that no shard
    /// stops reading permanently:
    /// - A read that may return `bytes` or more begins as soon as less than `bytes` is in use, one such read
    ///   at a time. (A GetRecords call may return 10 MiB.)
    /// - Shards that the dead-letter guard has stopped keep their records. The other shards always have at
    ///   least a quarter of `bytes`.
    pub fn bytes(mut self, bytes: usize) -> Self {
        self.bytes = bytes;
        self
    }

    /// Builds the capacity.
    ///
    /// # Errors
    ///
    /// A setting cannot be used. The error names the setting.
    pub fn build(self) -> Result<Capacity, ConfigError> {
        if !(1..=Semaphore::MAX_PERMITS).contains(&self.running) {
            let most = Semaphore::MAX_PERMITS;
            let problem = format!("must be at least 1 and at most {most}, not {}", self.running);
            return Err(ConfigError::new("running", problem));
        }
        if self.bytes == 0 {
            return Err(ConfigError::new("bytes", "must be at least 1"));
        }
        Ok(self.make())
    }

    fn make(self) -> Capacity {
        Capacity {
            running: Arc::new(Semaphore::new(self.running)),
            max_running: self.running,
            memory: Arc::new(Memory {
                limit: self.bytes,
                used: AtomicUsize::new(0),
                parked: AtomicUsize::new(0),
                beyond: AtomicBool::new(false),
                freed: Notify::new(),
                waiting: AtomicUsize::new(0),
            }),
        }
    }
}

impl Capacity {
    /// Creates a builder with the defaults.
    pub fn builder() -> CapacityBuilder {
        CapacityBuilder {
            running: 64,
            bytes: 256 * 1024 * 1024,
        }
    }

    /// Waits until one more processor call is allowed.
    #[cfg(feature = "kinesis")]
    pub(crate) async fn one_more(&self) -> Option<OwnedSemaphorePermit> {
        self.running.clone().acquire_owned().await.ok()
    }

    /// Returns a capacity with the same memory that allows one processor call at a time. Its calls do not
    /// count against the shared bound: the caller takes a shared permit with
    /// [`one_more`](Capacity::one_more).
    #[cfg(any(feature = "kinesis", feature = "lambda"))]
    pub(crate) fn one_at_a_time(&self) -> Self {
        Capacity {
            running: Arc::new(Semaphore::new(1)),
            max_running: 1,
            memory: self.memory.clone(),
        }
    }

    /// Returns the number of processor calls that run now. A record in backoff does not count, nor does one
    /// whose dead letter is being written.
    pub fn running(&self) -> usize {
        self.max_running - self.running.available_permits().min(self.max_running)
    }

    /// Returns the number of bytes that are reserved, or in use by records that are not settled.
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

    /// Waits until `bytes` bytes are free and takes them, for a [`Batch`](super::Batch) that is about to be
    /// read. A reservation of the whole limit or more waits only until less than the limit is in use. One
    /// such read is in progress at a time.
    pub(crate) async fn reserve(&self, bytes: usize) -> Reservation {
        let mut waiting = None;
        loop {
            // Enabled before the check, so that a release in between is not missed.
            let freed = self.memory.freed.notified();
            if let Some(is_beyond) = self.memory.take(bytes) {
                return Reservation {
                    memory: self.memory.clone(),
                    bytes,
                    is_beyond,
                    is_parked: false,
                };
            }
            waiting.get_or_insert_with(|| Waiting::new(&self.memory));
            freed.await;
        }
    }

    /// Returns whether a fetch waits for memory.
    pub(super) fn is_short(&self) -> bool {
        self.memory.waiting.load(Ordering::Relaxed) > 0
    }

    pub(crate) fn reservation(&self) -> Reservation {
        Reservation {
            memory: self.memory.clone(),
            bytes: 0,
            is_beyond: false,
            is_parked: false,
        }
    }
}

impl Default for Capacity {
    fn default() -> Self {
        Capacity::builder().make()
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
    /// The part of `used` that belongs to shards which the dead-letter guard has stopped.
    parked: AtomicUsize,
    /// True while a read is in progress that may exceed the limit.
    beyond: AtomicBool,
    freed: Notify,
    /// The number of fetches that wait for memory.
    waiting: AtomicUsize,
}

impl Memory {
    /// Takes `bytes` bytes if they are free. Returns whether they may exceed the limit; `None` if nothing was
    /// taken.
    fn take(&self, bytes: usize) -> Option<bool> {
        if self.take_if(bytes, |active, limit| bytes <= limit.saturating_sub(active)) {
            return Some(false);
        }
        // A read may need a whole page, and the limit may be no larger than a page.
        let may_exceed = |active, limit| bytes >= limit && active < limit;
        if !self.allows(self.used.load(Ordering::Relaxed), may_exceed)
            || self.beyond.swap(true, Ordering::AcqRel)
        {
            return None;
        }
        if self.take_if(bytes, may_exceed) {
            return Some(true);
        }
        self.end_beyond();
        None
    }

    fn end_beyond(&self) {
        self.beyond.store(false, Ordering::Release);
        self.freed.notify_waiters();
    }

    fn take_if(&self, bytes: usize, is_allowed: impl Fn(usize, usize) -> bool) -> bool {
        self.used
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |used| {
                self.allows(used, &is_allowed).then_some(used + bytes)
            })
            .is_ok()
    }

    /// Calls `is_allowed` with the bytes in use and the limit, both without the bytes of stopped shards.
    fn allows(&self, used: usize, is_allowed: impl Fn(usize, usize) -> bool) -> bool {
        let parked = self.parked.load(Ordering::Relaxed);
        let of_others = (self.limit / SHARE_OF_OTHERS).max(1);
        let limit = self.limit.saturating_sub(parked).max(of_others);
        is_allowed(used.saturating_sub(parked), limit)
    }

    fn release(&self, bytes: usize) {
        if bytes > 0 {
            self.used.fetch_sub(bytes, Ordering::AcqRel);
            self.freed.notify_waiters();
        }
    }
}

/// Counts one waiting fetch, for as long as this guard lives.
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

/// The share of all bytes that is left to running shards, whatever stopped shards keep: one in four.
const SHARE_OF_OTHERS: usize = 4;

/// Bytes taken from a [`Capacity`]. Dropping the reservation releases them.
pub(crate) struct Reservation {
    memory: Arc<Memory>,
    bytes: usize,
    /// The bytes may exceed the limit. No other read may exceed it until the size of this one is known.
    is_beyond: bool,
    /// The dead-letter guard has stopped the shard that owns the bytes.
    is_parked: bool,
}

impl Reservation {
    /// Releases all but `bytes` bytes, which are in use. If `bytes` is more than was reserved, takes the
    /// difference, whether it is free or not: the records are in memory already.
    pub(crate) fn use_only(&mut self, bytes: usize) {
        self.grow(bytes.saturating_sub(self.bytes));
        self.release(self.bytes - bytes);
        if std::mem::take(&mut self.is_beyond) {
            self.memory.end_beyond();
        }
    }

    /// Takes more bytes, whether they are free or not.
    pub(crate) fn grow(&mut self, bytes: usize) {
        if bytes > 0 {
            self.bytes += bytes;
            self.memory.used.fetch_add(bytes, Ordering::AcqRel);
            if self.is_parked {
                self.memory.parked.fetch_add(bytes, Ordering::AcqRel);
            }
        }
    }

    /// Releases `bytes` of the reserved bytes, or all of them if fewer are reserved.
    pub(crate) fn release(&mut self, bytes: usize) {
        let freed = bytes.min(self.bytes);
        self.bytes -= freed;
        if self.is_parked {
            self.memory.parked.fetch_sub(freed, Ordering::AcqRel);
        }
        self.memory.release(freed);
    }

    /// Takes over the bytes of another reservation.
    pub(crate) fn absorb(&mut self, mut other: Reservation) {
        let bytes = std::mem::take(&mut other.bytes);
        self.bytes += bytes;
        if self.is_parked {
            self.memory.parked.fetch_add(bytes, Ordering::AcqRel);
        }
    }

    /// Records whether the dead-letter guard has stopped the shard. The bytes of a stopped shard do not count
    /// against the other shards.
    pub(crate) fn park(&mut self, is_parked: bool) {
        if self.is_parked == is_parked {
            return;
        }
        self.is_parked = is_parked;
        match is_parked {
            true => {
                self.memory.parked.fetch_add(self.bytes, Ordering::AcqRel);
                self.memory.freed.notify_waiters();
            }
            false => drop(self.memory.parked.fetch_sub(self.bytes, Ordering::AcqRel)),
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.use_only(0);
    }
}

impl fmt::Debug for Reservation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reservation").field("bytes", &self.bytes).finish()
    }
}

/// The permits of one shard for processor calls.
///
/// Within a turn of the shard's task a permit passes from one record to the next without touching the shared
/// count. Unused permits return to the shared count at the end of the turn, where other shards wait for them
/// in line.
pub(crate) struct Permits {
    semaphore: PollSemaphore,
    queued: bool,
    idle: usize,
    busy: usize,
}

impl Permits {
    /// Takes a permit. `Pending`: all permits are in use, and the task is woken when it gets one.
    #[inline]
    pub(crate) fn poll_take(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.idle == 0 && self.poll_share(cx).is_pending() {
            return Poll::Pending;
        }
        self.idle -= 1;
        self.busy += 1;
        Poll::Ready(())
    }

    /// Moves a permit from the shared count to this shard.
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

    /// Returns a permit to this shard, for the next record of this turn.
    #[inline]
    pub(crate) fn give(&mut self) {
        self.busy -= 1;
        self.idle += 1;
    }

    /// Returns the permits that this turn did not use to the shared count. A shard that wants no more permits
    /// leaves the line: a permit that it received there would lie idle.
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

    fn capacity(running: usize, bytes: usize) -> Capacity {
        let builder = Capacity::builder().running(running).bytes(bytes);
        builder.build().expect("valid")
    }

    #[test]
    fn the_documented_defaults() {
        for capacity in [Capacity::default(), Capacity::builder().build().expect("valid")] {
            assert_eq!((capacity.max_running, capacity.memory.limit), (64, 268_435_456));
        }
    }

    #[test]
    fn invalid_bounds_are_refused_by_name() {
        let refused = |builder: CapacityBuilder| builder.build().expect_err("refused").setting();
        for running in [0, Semaphore::MAX_PERMITS + 1] {
            assert_eq!(refused(Capacity::builder().running(running)), "running");
        }
        assert_eq!(refused(Capacity::builder().bytes(0)), "bytes");
    }

    #[tokio::test]
    async fn a_reservation_waits_until_enough_is_given_back() {
        let capacity = capacity(1, 100);
        let mut first = capacity.reserve(80).await;
        let waiting = tokio::spawn({
            let capacity = capacity.clone();
            async move { capacity.reserve(50).await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        first.use_only(60);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished(), "110 bytes are more than 100");
        first.release(10);
        let second = waiting.await.expect("no panic");
        assert_eq!(capacity.bytes(), 100);
        drop((first, second));
        assert_eq!(capacity.bytes(), 0);
    }

    fn is_there_room(capacity: &Capacity, bytes: usize) -> bool {
        let mut reserving = std::pin::pin!(capacity.reserve(bytes));
        let mut cx = Context::from_waker(std::task::Waker::noop());
        reserving.as_mut().poll(&mut cx).is_ready()
    }

    #[tokio::test]
    async fn one_that_is_larger_than_all_memory_goes_through_alone() {
        let capacity = capacity(1, 100);
        let one = capacity.reserve(1_000).await;
        assert!(!is_there_room(&capacity, 1_000));
        drop(one);
        assert_eq!(capacity.bytes(), 0);
        drop(capacity.reserve(1_000).await);
    }

    /// A page may need all of the memory, or more. One record in backoff must not stop all other reads.
    #[tokio::test]
    async fn a_few_bytes_in_use_do_not_stop_a_read_of_the_largest_size() {
        for page in [100, 1_000] {
            let capacity = capacity(1, 100);
            let mut in_backoff = capacity.reserve(page).await;
            in_backoff.use_only(99);
            let mut read = capacity.reserve(page).await;
            assert!(!is_there_room(&capacity, page), "one at a time");
            read.use_only(1);
            assert!(!is_there_room(&capacity, page), "all of it is in use");
            in_backoff.release(1);
            assert!(is_there_room(&capacity, page));
        }
    }

    #[tokio::test]
    async fn what_stopped_shards_keep_leaves_a_quarter_to_the_others() {
        let capacity = capacity(1, 100);
        let mut stopped = capacity.reserve(100).await;
        assert!(!is_there_room(&capacity, 25));
        stopped.park(true);
        let other = capacity.reserve(25).await;
        assert!(!is_there_room(&capacity, 1));
        stopped.release(10);
        stopped.grow(10);
        drop(other);
        assert!(is_there_room(&capacity, 25));
        stopped.release(60);
        assert!(is_there_room(&capacity, 60));
        stopped.park(false);
        assert!(is_there_room(&capacity, 60) && !is_there_room(&capacity, 61));
        drop(stopped);
        assert_eq!(
            (capacity.bytes(), capacity.memory.parked.load(Ordering::Relaxed)),
            (0, 0)
        );
    }

    #[tokio::test]
    async fn a_read_that_brings_more_than_was_reserved_counts_in_full() {
        let capacity = capacity(1, 100);
        let mut read = capacity.reserve(10).await;
        read.use_only(150);
        assert_eq!(capacity.bytes(), 150);
        read.release(150);
        assert_eq!(capacity.bytes(), 0);
    }

    #[tokio::test]
    async fn permits_are_shared_and_never_lost() {
        let capacity = capacity(2, 1);
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
        let capacity = capacity(1, 1);
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
