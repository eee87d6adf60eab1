//! Slots in which attempts run. Slots are reused, so that a record costs no allocation.
//!
//! `Slots` differs from `FuturesUnordered` in three ways. A slot is allocated once and filled again and
//! again. A future that is ready at once never enters a list. Polling stops when tokio's cooperation budget
//! is exhausted: from then on every timer and channel would return `Pending`, and polling would be wasted.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use atomic_waker::AtomicWaker;
use tokio::task::coop::has_budget_remaining;

/// Up to a fixed number of futures, each with a tag. Slots are allocated when they are first needed.
pub(crate) struct Slots<F, T> {
    slots: Vec<Slot<F, T>>,
    free: Vec<usize>,
    signals: Arc<Signals>,
}

struct Slot<F, T> {
    future: Pin<Box<Option<F>>>,
    tag: Option<T>,
    waker: Waker,
}

/// One bit per slot, set while the slot is woken and not polled yet.
struct Signals {
    words: Vec<AtomicU64>,
    task: AtomicWaker,
}

struct SlotWaker {
    signals: Arc<Signals>,
    index: usize,
}

impl Wake for SlotWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if let Some(word) = self.signals.words.get(self.index / 64) {
            // `Release`: the poll that finds the bit sees what the waking thread wrote before.
            word.fetch_or(1 << (self.index % 64), Ordering::Release);
            self.signals.task.wake();
        }
    }
}

impl<F: Future, T> Slots<F, T> {
    pub(crate) fn new(capacity: usize) -> Self {
        Slots {
            slots: Vec::new(),
            free: Vec::new(),
            signals: Arc::new(Signals {
                words: (0..capacity.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
                task: AtomicWaker::new(),
            }),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    /// Puts a future into a slot and polls it. Returns its output if it is ready at once.
    #[inline]
    pub(crate) fn start(&mut self, tag: T, future: impl FnOnce() -> F) -> Option<(T, F::Output)> {
        let index = self.free.pop().unwrap_or_else(|| self.add());
        let slot = self.slots.get_mut(index)?;
        slot.future.set(Some(future()));
        match slot.poll() {
            Some(output) => {
                self.free.push(index);
                Some((tag, output))
            }
            None => {
                slot.tag = Some(tag);
                None
            }
        }
    }

    #[cold]
    fn add(&mut self) -> usize {
        let index = self.slots.len();
        self.slots.push(Slot {
            future: Box::pin(None),
            tag: None,
            waker: Waker::from(Arc::new(SlotWaker {
                signals: self.signals.clone(),
                index,
            })),
        });
        index
    }

    /// Polls every slot that was woken since the last round, once, and appends ready outputs to `ready`.
    /// Stops when the task's budget is exhausted. Returns the number of slots polled.
    pub(crate) fn poll_woken(&mut self, ready: &mut Vec<(T, F::Output)>) -> usize {
        let mut polled = 0;
        for number in 0..self.slots.len().div_ceil(64) {
            let Some(word) = self.signals.words.get(number) else {
                break;
            };
            // The load spares a swap of words in which no slot was woken.
            if word.load(Ordering::Relaxed) == 0 {
                continue;
            }
            // Cleared before the polls: a slot that is woken during them is polled in the next round. A slot
            // that always wakes itself therefore starves no other slot.
            let mut bits = word.swap(0, Ordering::Acquire);
            while bits != 0 {
                if !has_budget_remaining() {
                    if let Some(word) = self.signals.words.get(number) {
                        word.fetch_or(bits, Ordering::Release);
                    }
                    return polled;
                }
                let index = number * 64 + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                let Some(slot) = self.slots.get_mut(index) else {
                    continue;
                };
                polled += 1;
                if let Some(output) = slot.poll() {
                    self.free.push(index);
                    ready.extend(slot.tag.take().map(|tag| (tag, output)));
                }
            }
        }
        polled
    }

    /// Returns whether a slot was woken and not polled yet.
    pub(crate) fn has_woken(&self) -> bool {
        let words = self.signals.words.iter().take(self.slots.len().div_ceil(64));
        words.fold(0, |sum, word| sum | word.load(Ordering::Relaxed)) != 0
    }

    /// Stops waking the task: until `listen` the task checks for woken slots itself.
    pub(crate) fn stop_listening(&self) {
        self.signals.task.take();
    }

    /// Wakes the task for every slot that is woken from now on, and at once if a slot is woken already.
    pub(crate) fn listen(&self, cx: &Context<'_>) {
        self.signals.task.register(cx.waker());
        if self.has_woken() {
            cx.waker().wake_by_ref();
        }
    }
}

impl<F: Future, T> Slot<F, T> {
    #[inline]
    fn poll(&mut self) -> Option<F::Output> {
        let future = self.future.as_mut().as_pin_mut()?;
        match future.poll(&mut Context::from_waker(&self.waker)) {
            Poll::Pending => None,
            Poll::Ready(output) => {
                self.future.set(None);
                Some(output)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::sync::oneshot;

    use super::*;

    async fn next<F: Future, T>(slots: &mut Slots<F, T>) -> Vec<(T, F::Output)> {
        let mut ready = Vec::new();
        poll_fn(|cx| {
            slots.poll_woken(&mut ready);
            if ready.is_empty() {
                slots.listen(cx);
                Poll::Pending
            } else {
                Poll::Ready(())
            }
        })
        .await;
        ready
    }

    #[tokio::test]
    async fn ready_future_returns_at_once_and_its_slot_is_reused() {
        let mut slots = Slots::new(4);
        for tag in 0..100 {
            assert_eq!(
                slots.start(tag, || std::future::ready(tag * 2)),
                Some((tag, tag * 2))
            );
        }
        assert_eq!(slots.slots.len(), 1);
        assert!(slots.is_empty());
    }

    #[tokio::test]
    async fn each_future_comes_back_with_its_tag_when_it_is_woken() {
        let mut slots = Slots::new(200);
        let mut senders = Vec::new();
        for tag in 0..200u32 {
            let (sender, receiver) = oneshot::channel::<u32>();
            senders.push(Some(sender));
            assert!(slots.start(tag, || receiver).is_none());
        }
        for which in [3u32, 199, 64, 63, 0] {
            let sender = senders[which as usize].take().expect("not sent yet");
            tokio::spawn(async move { sender.send(which + 1) });
            assert_eq!(next(&mut slots).await, [(which, Ok(which + 1))]);
        }
        assert_eq!(slots.free.len(), 5);
    }

    #[tokio::test]
    async fn a_place_that_always_wakes_itself_starves_nobody() {
        let mut slots: Slots<Pin<Box<dyn Future<Output = u32>>>, u32> = Slots::new(2);
        let restless = poll_fn(|cx| {
            cx.waker().wake_by_ref();
            Poll::Pending
        });
        assert!(slots.start(0, || Box::pin(restless)).is_none());
        let (sender, receiver) = oneshot::channel::<u32>();
        assert!(
            slots
                .start(1, || Box::pin(async { receiver.await.unwrap_or(0) }))
                .is_none()
        );
        tokio::spawn(async { sender.send(7) });
        assert_eq!(next(&mut slots).await, [(1, 7)]);
    }

    /// With more work than one turn's budget, the round stops and the task is woken to continue.
    #[tokio::test]
    async fn a_round_stops_when_the_budget_is_used_up() {
        const MANY: usize = 1_000;
        let mut slots = Slots::new(MANY);
        let mut senders = Vec::new();
        for tag in 0..MANY {
            let (sender, receiver) = oneshot::channel::<()>();
            assert!(slots.start(tag, || receiver).is_none());
            senders.push(sender);
        }
        tokio::task::yield_now().await;
        for sender in senders {
            sender.send(()).expect("still waiting");
        }
        let mut rounds = 0;
        let mut ready = Vec::new();
        poll_fn(|cx| {
            rounds += 1;
            slots.poll_woken(&mut ready);
            if ready.len() == MANY {
                Poll::Ready(())
            } else {
                slots.listen(cx);
                Poll::Pending
            }
        })
        .await;
        assert!(rounds > 1, "128 operations a turn cannot have sufficed");
    }
}
