//! A process that dies with a record in hand (an abort, a stack overflow, too little memory) cannot say so: it starts
//! again, reads the same record, and dies again. What is written before a record begins tells the next start.
//!
//! Each start that begins a record is counted beside the checkpoint until that moves on. From the third on the handler
//! is called for one record at a time, and that is written down first, with how often it was so; one that was in hand
//! at three crashes becomes a dead letter. Once all are through that may have been in hand, the shard begins anew.
//!
//! Only a death that the record can have caused counts. A handler that has waited for seconds, for a dependency that hangs
//! for example, did not end the process: its mark is removed while it waits, and stored again before it continues.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{self, Arc, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use futures_core::Stream;
use futures_core::future::BoxFuture;
use tokio::sync::{Mutex, OwnedMutexGuard, OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::idle::Call;
use crate::checkpoint::{Checkpoint, CrashCount, InFlightRecord};
use crate::dead_letter::Reason;
use crate::pipeline::{Admission, Batch, CallGate, Capacity, Pipeline};
use crate::record::{Position, Record};
use crate::wall_clock;

/// So many starts came to nothing, and the next is careful.
const SUSPICIOUS: u32 = 2;
/// So many crashes with a record in hand are its own.
const CRASHES: u32 = 3;
/// A handler that is not woken for so long waits: what ends the process meanwhile is not the record.
const WAITS: Duration = Duration::from_secs(2);
/// A store that does not take a first start in time keeps nothing from being processed.
const AT_MOST: Duration = Duration::from_secs(5);
/// By how much our clock may be behind that of Kinesis.
const CLOCKS: Duration = Duration::from_secs(15 * 60);
/// For so long a shard leaves another one alone that is careful as well.
const TURN: Duration = Duration::from_secs(30);

/// What is written beside each checkpoint of a run, until they move on.
#[derive(Debug)]
pub(in crate::consumer) struct Mark {
    from: Position,
    starts: sync::Mutex<CrashCount>,
}

impl Mark {
    fn new(from: &Position) -> Self {
        Mark {
            from: from.clone(),
            starts: sync::Mutex::default(),
        }
    }

    fn set(&self, starts: CrashCount) {
        *self.starts.lock().unwrap_or_else(PoisonError::into_inner) = starts;
    }

    fn put_down(&self) {
        self.starts.lock().unwrap_or_else(PoisonError::into_inner).in_hand = None;
    }

    /// The checkpoint as it is to be stored while the run goes on.
    pub(in crate::consumer) fn beside(&self, checkpoint: Checkpoint) -> Checkpoint {
        let starts = self.starts.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let position = checkpoint.position();
        let count = if *position == self.from { starts.count } else { 0 };
        let in_hand = starts.in_hand.filter(|in_hand| in_hand.position > *position);
        checkpoint.with_starts(CrashCount::new(count, in_hand))
    }
}

/// Asks for the mark to be stored, and is told when it is.
pub(in crate::consumer) type Request = oneshot::Sender<()>;

/// One handler call at a time in the whole process, and who had the last turn: with two records written down as in
/// hand, a crash would not say of which.
pub(in crate::consumer) type Turns = Arc<Mutex<Option<Marker>>>;

/// Stores the mark of one shard.
#[derive(Clone)]
pub(in crate::consumer) struct Marker {
    mark: Arc<Mark>,
    requests: mpsc::Sender<Request>,
    count: u32,
}

impl Marker {
    async fn store(&self, in_hand: Option<InFlightRecord>) {
        self.mark.set(CrashCount::new(self.count, in_hand));
        let (request, stored) = oneshot::channel();
        // Without a checkpointer the shard has ended, or its lease is lost and it will.
        if self.requests.send(request).await.is_ok() {
            let _ = stored.await;
        }
    }
}

/// Tells after a crash which record it was.
#[derive(Clone)]
pub(in crate::consumer) struct CrashLoop {
    marker: Marker,
    /// What the last process left behind.
    before: CrashCount,
    turns: Turns,
}

impl CrashLoop {
    /// Beside it: what the checkpointer needs.
    pub(in crate::consumer) fn new(
        from: &Checkpoint,
        turns: Turns,
    ) -> (Self, Arc<Mark>, mpsc::Receiver<Request>) {
        let mark = Arc::new(Mark::new(from.position()));
        let (requests, receiver) = mpsc::channel(1);
        let mut before = from.starts().cloned().unwrap_or_default();
        // Whoever else moved the position left it as it was.
        before
            .in_hand
            .take_if(|in_hand| in_hand.position <= *from.position());
        let marker = Marker {
            mark: mark.clone(),
            requests,
            count: before.count.saturating_add(1),
        };
        let crash_loop = CrashLoop {
            marker,
            before,
            turns,
        };
        (crash_loop, mark, receiver)
    }

    /// How many starts came to nothing, if that is suspicious.
    pub(in crate::consumer) fn is_suspected(&self) -> Option<u32> {
        let suspected = self.before.count >= SUSPICIOUS || self.before.in_hand.is_some();
        suspected.then_some(self.before.count)
    }

    /// Stores that this run begins a record.
    fn begin(&self) -> BoxFuture<'static, ()> {
        let marker = self.marker.clone();
        Box::pin(async move {
            let _ = timeout(AT_MOST, marker.store(None)).await;
        })
    }

    /// Waits for others, and until it is stored that they have nothing in hand any more.
    async fn turn(&self) -> OwnedMutexGuard<Option<Marker>> {
        let mut last = self.turns.clone().lock_owned().await;
        if let Some(other) = last.take()
            && !Arc::ptr_eq(&other.mark, &self.marker.mark)
        {
            other.store(None).await;
        }
        *last = Some(self.marker.clone());
        last
    }
}

/// One record at a time, as many as may have been in hand when the process died.
pub(in crate::consumer) struct OneByOne {
    crash_loop: CrashLoop,
    capacity: Capacity,
    since: SystemTime,
    left: AtomicUsize,
    over: CancellationToken,
}

impl OneByOne {
    /// Cancels `over` when they are all through.
    pub(in crate::consumer) fn new(
        crash_loop: CrashLoop,
        pipeline: &Pipeline,
        over: CancellationToken,
    ) -> Self {
        OneByOne {
            crash_loop,
            capacity: pipeline.shared_capacity().clone(),
            since: wall_clock::now(),
            // More are not read ahead of one that is not settled.
            left: AtomicUsize::new(pipeline.most_in_flight()),
            over,
        }
    }

    fn is_last(&self, record: &Record) -> bool {
        let left = self.left.load(Ordering::Relaxed);
        self.left.store(left.saturating_sub(1), Ordering::Relaxed);
        // What came after the last crash was in hand at none.
        left <= 1
            || record
                .arrival()
                .is_some_and(|arrival| arrival > self.since + CLOCKS)
    }
}

impl CallGate for OneByOne {
    type Turn = Turn;

    async fn take(&self, record: &Record) -> Admission<Turn> {
        let CrashLoop { marker, before, .. } = &self.crash_loop;
        let position = record.position();
        let known = before.in_hand.as_ref().filter(|known| known.position == position);
        let crashes = known.map_or(0, |known| known.times);
        if crashes >= CRASHES {
            return Admission::GivenUp(Reason::CrashLoop);
        }
        let turn = async {
            let turn = timeout(TURN, self.crash_loop.turn()).await;
            let turn = Turn {
                mark: marker.mark.clone(),
                in_hand: InFlightRecord::new(position, crashes + 1),
                _turn: turn.ok(),
                _permit: self.capacity.one_more().await,
            };
            marker.store(Some(turn.in_hand.clone())).await;
            turn
        };
        // The wait can be long. If the lease is lost meanwhile, another worker has the record.
        let turn = tokio::select! {
            biased;
            () = self.over.cancelled() => return Admission::Stopped,
            turn = turn => turn,
        };
        if self.over.is_cancelled() {
            return Admission::Stopped;
        }
        if self.is_last(record) {
            self.over.cancel();
        }
        Admission::Attempt(turn)
    }

    async fn watch<F: Future + Send>(&self, turn: Turn, call: F, runs_elsewhere: bool) -> F::Output
    where
        F::Output: Send,
    {
        if runs_elsewhere {
            return call.await;
        }
        let marker = &self.crash_loop.marker;
        let mut call = Call::new(call, WAITS);
        let woken = call.woken.clone();
        loop {
            if let Some(output) = call.run().await {
                return output;
            }
            tokio::select! {
                biased;
                () = woken.happened() => {}
                () = async {
                    marker.store(None).await;
                    woken.happened().await;
                } => {}
            }
            marker.store(Some(turn.in_hand.clone())).await;
        }
    }
}

/// As long as it lives the process may die of one record.
pub(in crate::consumer) struct Turn {
    mark: Arc<Mark>,
    in_hand: InFlightRecord,
    _turn: Option<OwnedMutexGuard<Option<Marker>>>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.mark.put_down();
    }
}

/// The reader's pages as a stream. The first with a record waits until it is stored that the run begins.
pub(in crate::consumer) struct Pages {
    pages: mpsc::Receiver<Batch>,
    beginning: Beginning,
}

enum Beginning {
    NotYet(CrashLoop),
    Stored(BoxFuture<'static, ()>, Option<Batch>),
    Over,
}

impl Pages {
    pub(in crate::consumer) fn new(pages: mpsc::Receiver<Batch>, crash_loop: CrashLoop) -> Self {
        // Where one record at a time is in hand, each is stored.
        let beginning = match crash_loop.is_suspected() {
            Some(_) => Beginning::Over,
            None => Beginning::NotYet(crash_loop),
        };
        Pages { pages, beginning }
    }
}

impl Stream for Pages {
    type Item = Batch;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Batch>> {
        let Pages { pages, beginning } = &mut *self;
        loop {
            match beginning {
                Beginning::Over => return pages.poll_recv(cx),
                Beginning::NotYet(crash_loop) => match ready!(pages.poll_recv(cx)) {
                    Some(batch) if !batch.is_empty() => {
                        *beginning = Beginning::Stored(crash_loop.begin(), Some(batch));
                    }
                    empty => return Poll::Ready(empty),
                },
                Beginning::Stored(stored, batch) => {
                    ready!(stored.as_mut().poll(cx));
                    let batch = batch.take();
                    *beginning = Beginning::Over;
                    return Poll::Ready(batch);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(number: u64) -> Position {
        Record::builder("s", "shardId-0".into(), number.into())
            .build()
            .position()
    }

    #[test]
    fn a_mark_is_worth_something_until_the_checkpoint_passes_it() {
        let mark = Mark::new(&at(10));
        let beside = |number| mark.beside(Checkpoint::at(at(number))).starts().cloned();
        assert_eq!(beside(10), None);
        let in_hand = Some(InFlightRecord::new(at(12), 1));
        mark.set(CrashCount::new(3, in_hand.clone()));
        assert_eq!(beside(10), Some(CrashCount::new(3, in_hand.clone())));
        assert_eq!(beside(11), Some(CrashCount::new(0, in_hand)));
        assert_eq!(beside(12), None);
        mark.put_down();
        assert_eq!(beside(10), Some(CrashCount::new(3, None)));
        assert_eq!(beside(11), None);
    }

    #[test]
    fn two_starts_that_came_to_nothing_are_suspicious_and_so_is_a_record_that_was_in_hand() {
        let suspected = |starts| {
            let from = Checkpoint::at(at(10)).with_starts(starts);
            CrashLoop::new(&from, Turns::default()).0.is_suspected()
        };
        assert_eq!(suspected(CrashCount::default()), None);
        assert_eq!(suspected(CrashCount::new(1, None)), None);
        assert_eq!(suspected(CrashCount::new(2, None)), Some(2));
        assert_eq!(
            suspected(CrashCount::new(0, Some(InFlightRecord::new(at(11), 1)))),
            Some(0)
        );
        // Another program has moved the position past it.
        assert_eq!(
            suspected(CrashCount::new(0, Some(InFlightRecord::new(at(10), 1)))),
            None
        );
    }

    /// A record that waits for its turn when the lease is lost belongs to another worker.
    #[tokio::test(start_paused = true)]
    async fn a_record_that_waits_when_the_shard_stops_is_not_attempted() {
        let turns = Turns::default();
        let (crash_loop, _mark, mut marks) = CrashLoop::new(&Checkpoint::at(at(10)), turns.clone());
        let over = CancellationToken::new();
        let one_by_one = OneByOne::new(crash_loop, &Pipeline::new(), over.clone());
        let record = Record::builder("s", "shardId-0".into(), 11.into()).build();
        let others_turn = turns.lock().await;
        let mut waiting = std::pin::pin!(one_by_one.take(&record));
        let waits = timeout(Duration::from_secs(1), &mut waiting).await;
        assert!(waits.is_err(), "another record has the turn");
        over.cancel();
        drop(others_turn);
        assert!(matches!(waiting.await, Admission::Stopped));
        assert!(marks.try_recv().is_err(), "no mark is stored");
    }

    #[test]
    fn what_came_after_the_start_was_in_hand_at_no_crash() {
        let (crash_loop, ..) = CrashLoop::new(&Checkpoint::at(at(10)), Turns::default());
        let pipeline = Pipeline::new().in_flight(3);
        let record = |arrival| {
            Record::builder("s", "shardId-0".into(), 11.into())
                .arrival(arrival)
                .build()
        };
        let one_by_one = OneByOne::new(crash_loop, &pipeline, CancellationToken::new());
        assert!(!one_by_one.is_last(&record(SystemTime::now())));
        assert!(one_by_one.is_last(&record(SystemTime::now() + 2 * CLOCKS)));
        assert!(
            one_by_one.is_last(&record(SystemTime::now())),
            "as many as are held"
        );
    }
}
