//! Records in backoff: a heap of times and one timer per shard.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::time::{Instant, Sleep, sleep_until};

/// Items that each wait until a given time.
pub(crate) struct BackoffQueue<T> {
    heap: BinaryHeap<Reverse<Delayed<T>>>,
    timer: Option<Pin<Box<Sleep>>>,
    armed: Option<Instant>,
    count: u64,
    now: Option<Instant>,
}

struct Delayed<T> {
    at: Instant,
    /// The order of insertion, which decides between equal times.
    order: u64,
    item: T,
}

impl<T> BackoffQueue<T> {
    pub(crate) fn new() -> Self {
        BackoffQueue {
            heap: BinaryHeap::new(),
            timer: None,
            armed: None,
            count: 0,
            now: None,
        }
    }

    pub(crate) fn push(&mut self, at: Instant, item: T) {
        let order = self.count;
        self.count += 1;
        self.heap.push(Reverse(Delayed { at, order, item }));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }

    pub(crate) fn drain(&mut self) -> impl Iterator<Item = T> + '_ {
        self.heap.drain().map(|Reverse(delayed)| delayed.item)
    }

    /// Returns whether the timer is set to the earliest time. A [poll](BackoffQueue::poll_due) sets it.
    pub(crate) fn is_armed(&self) -> bool {
        self.heap
            .peek()
            .is_none_or(|Reverse(next)| self.armed == Some(next.at))
    }

    /// Returns the next item that is due. `Pending`: no item is due, and the task is woken when one is.
    #[inline]
    pub(crate) fn poll_due(&mut self, cx: &mut Context<'_>) -> Poll<T> {
        // Asked for each record, and mostly empty.
        match self.heap.is_empty() {
            true => {
                self.now = None;
                Poll::Pending
            }
            false => self.poll_first(cx),
        }
    }

    fn poll_first(&mut self, cx: &mut Context<'_>) -> Poll<T> {
        loop {
            let Some(Reverse(next)) = self.heap.peek() else {
                self.now = None;
                return Poll::Pending;
            };
            // One read of the clock serves all items that are due by then.
            if self.now.is_some_and(|now| next.at <= now) {
                return match self.heap.pop() {
                    Some(Reverse(delayed)) => Poll::Ready(delayed.item),
                    None => Poll::Pending,
                };
            }
            self.now = None;
            let at = next.at;
            let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(at)));
            if self.armed != Some(at) {
                timer.as_mut().reset(at);
                self.armed = Some(at);
            }
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.armed = None;
            self.now = Some(Instant::now().max(at));
        }
    }
}

impl<T> PartialEq for Delayed<T> {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}

impl<T> Eq for Delayed<T> {}

impl<T> PartialOrd for Delayed<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Delayed<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn things_come_back_in_the_order_of_their_times() {
        let start = Instant::now();
        let mut delays = BackoffQueue::new();
        for millis in [30, 10, 20, 10] {
            delays.push(start + Duration::from_millis(millis), millis);
        }
        let mut seen = Vec::new();
        for _ in 0..4 {
            let item = poll_fn(|cx| delays.poll_due(cx)).await;
            seen.push((item, start.elapsed().as_millis() as u64));
        }
        assert_eq!(seen, [(10, 10), (10, 10), (20, 20), (30, 30)]);
        assert!(delays.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn of_those_for_one_time_the_first_to_come_goes_first() {
        let at = Instant::now() + Duration::from_millis(10);
        let mut delays = BackoffQueue::new();
        assert!(delays.is_empty());
        (0..9).for_each(|number| delays.push(at, number));
        assert!(!delays.is_empty());
        for expected in 0..5 {
            assert_eq!(poll_fn(|cx| delays.poll_due(cx)).await, expected);
        }
        let mut left: Vec<i32> = delays.drain().collect();
        left.sort();
        assert_eq!(left, [5, 6, 7, 8]);
        assert!(delays.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn an_earlier_one_that_comes_later_is_not_late() {
        let start = Instant::now();
        let mut delays = BackoffQueue::new();
        delays.push(start + Duration::from_secs(60), "late");
        assert!(poll_fn(|cx| Poll::Ready(delays.poll_due(cx).is_pending())).await);
        delays.push(start + Duration::from_secs(1), "early");
        assert_eq!(poll_fn(|cx| delays.poll_due(cx)).await, "early");
        assert_eq!(start.elapsed(), Duration::from_secs(1));
    }
}
