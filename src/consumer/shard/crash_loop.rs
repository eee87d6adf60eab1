//! Detects records that crash the process. A process that dies while it processes a record (abort, stack
//! overflow, out of memory) cannot report the record: the process restarts, reads the same record and dies
//! again. A mark that is stored before a record starts shows the next start what happened.
//!
//! The checkpoint row counts the starts that began a record, until the checkpoint advances. From the third
//! start on, the consumer calls the processor for one record at a time. Before each call it stores the
//! record's position and how often the record was attempted this way. A record that was in flight in three
//! crashes becomes a dead letter. When all records that may have been in flight at the crash were processed,
//! the shard restarts at normal concurrency.
//!
//! Only a death that the record can have caused counts. A processor that has waited for seconds, for example
//! for a dependency that hangs, did not end the process. The mark is removed while the processor waits, and
//! is stored again before the processor continues.

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

/// The number of starts without progress after which the next start is careful: one record at a time.
const SUSPICIOUS: u32 = 2;
/// The number of crashes with a record in flight after which the record is blamed.
const CRASHES: u32 = 3;
/// The time without a wake-up after which a processor counts as waiting. The record is not blamed for a death
/// during the wait.
const WAITS: Duration = Duration::from_secs(2);
/// The time limit for storing the mark of a first start. Then processing starts without the mark.
const AT_MOST: Duration = Duration::from_secs(5);
/// The most by which this machine's clock may be behind the clock of Kinesis.
const CLOCKS: Duration = Duration::from_secs(15 * 60);
/// The time limit of a careful shard's wait for its turn. Then it continues without the turn.
const TURN: Duration = Duration::from_secs(30);

/// The crash count that is stored with each checkpoint of a run, until the checkpoint advances.
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

    /// Adds the mark to a checkpoint that is stored during the run.
    pub(in crate::consumer) fn beside(&self, checkpoint: Checkpoint) -> Checkpoint {
        let starts = self.starts.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let position = checkpoint.position();
        let count = if *position == self.from { starts.count } else { 0 };
        let in_hand = starts.in_hand.filter(|in_hand| in_hand.position > *position);
        checkpoint.with_starts(CrashCount::new(count, in_hand))
    }
}

/// A request to store the mark. The sender is notified when the mark is stored.
pub(in crate::consumer) type Request = oneshot::Sender<()>;

/// The lock that admits one careful processor call at a time in the whole process, with the marker of its
/// last holder. If two records were marked as in flight, a crash would not show which one caused it.
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
        // Without a checkpointer the shard has ended, or its lease is lost and it will end.
        if self.requests.send(request).await.is_ok() {
            let _ = stored.await;
        }
    }
}

/// Detects after a crash which record caused it.
#[derive(Clone)]
pub(in crate::consumer) struct CrashLoop {
    marker: Marker,
    /// The crash count that the previous process stored.
    before: CrashCount,
    turns: Turns,
}

impl CrashLoop {
    /// Creates the detection, and the mark and the request channel that the checkpointer needs.
    pub(in crate::consumer) fn new(
        from: &Checkpoint,
        turns: Turns,
    ) -> (Self, Arc<Mark>, mpsc::Receiver<Request>) {
        let mark = Arc::new(Mark::new(from.position()));
        let (requests, receiver) = mpsc::channel(1);
        let mut before = from.starts().cloned().unwrap_or_default();
        // Another program that moved the position left the mark as it was: a record that the position has
        // passed does not count.
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

    /// Returns the number of starts without progress, if a crash loop is suspected.
    pub(in crate::consumer) fn is_suspected(&self) -> Option<u32> {
        let suspected = self.before.count >= SUSPICIOUS || self.before.in_hand.is_some();
        suspected.then_some(self.before.count)
    }

    /// Stores that this run begins a record. Waits for at most [`AT_MOST`].
    fn begin(&self) -> BoxFuture<'static, ()> {
        let marker = self.marker.clone();
        Box::pin(async move {
            let _ = timeout(AT_MOST, marker.store(None)).await;
        })
    }

    /// Waits for the turn, and until the store shows that the previous shard has no record in flight any
    /// more.
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

/// Admits one record at a time, for as many records as may have been in flight when the process died.
pub(in crate::consumer) struct OneByOne {
    crash_loop: CrashLoop,
    capacity: Capacity,
    since: SystemTime,
    left: AtomicUsize,
    over: CancellationToken,
}

impl OneByOne {
    /// Creates the gate. The gate cancels `over` when it admits the last of these records.
    pub(in crate::consumer) fn new(
        crash_loop: CrashLoop,
        pipeline: &Pipeline,
        over: CancellationToken,
    ) -> Self {
        OneByOne {
            crash_loop,
            capacity: pipeline.shared_capacity().clone(),
            since: wall_clock::now(),
            // The reader does not read more records than this ahead of an unsettled one.
            left: AtomicUsize::new(pipeline.most_in_flight()),
            over,
        }
    }

    fn is_last(&self, record: &Record) -> bool {
        let left = self.left.load(Ordering::Relaxed);
        self.left.store(left.saturating_sub(1), Ordering::Relaxed);
        // A record that arrived after the last crash was not in flight at any crash.
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

    async fn watch<F: Future + Send>(
        &self,
        turn: Turn,
        call: F,
        runs_elsewhere: impl Fn() -> bool + Send,
    ) -> F::Output
    where
        F::Output: Send,
    {
        let marker = &self.crash_loop.marker;
        let mut call = Call::new(call, WAITS);
        let woken = call.woken.clone();
        loop {
            if let Some(output) = call.run().await {
                return output;
            }
            // The other thread may work without waking the call.
            if runs_elsewhere() {
                continue;
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

/// The permission for one processor call. While it exists, the process may die because of one known record.
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

/// The reader's pages as a stream. The first page with a record waits until the start of the run is stored.
pub(in crate::consumer) struct Pages {
    pages: mpsc::Receiver<Box<Batch>>,
    beginning: Beginning,
}

enum Beginning {
    NotYet(CrashLoop),
    Stored(BoxFuture<'static, ()>, Option<Box<Batch>>),
    Over,
}

impl Pages {
    pub(in crate::consumer) fn new(pages: mpsc::Receiver<Box<Batch>>, crash_loop: CrashLoop) -> Self {
        // If one record is in flight at a time, the mark is stored for each record instead.
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
                Beginning::Over => return pages.poll_recv(cx).map(unboxed),
                Beginning::NotYet(crash_loop) => match ready!(pages.poll_recv(cx)) {
                    Some(batch) if !batch.is_empty() => {
                        *beginning = Beginning::Stored(crash_loop.begin(), Some(batch));
                    }
                    empty => return Poll::Ready(unboxed(empty)),
                },
                Beginning::Stored(stored, batch) => {
                    ready!(stored.as_mut().poll(cx));
                    let batch = batch.take();
                    *beginning = Beginning::Over;
                    return Poll::Ready(unboxed(batch));
                }
            }
        }
    }
}

fn unboxed(batch: Option<Box<Batch>>) -> Option<Batch> {
    batch.map(|batch| *batch)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use tokio::sync::Notify;
    use tokio::task::yield_now;
    use tokio::time::{advance, sleep};

    use super::*;
    use crate::dead_letter;
    use crate::engine::Resilient;
    use crate::failure::BoxError;
    use crate::pipeline::Progress;
    use crate::processor::{Attempt, RecordProcessor, processor_blocking, processor_fn};

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
    fn two_failed_starts_or_an_in_flight_record_are_suspicious() {
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
        // Another program has moved the position past the record.
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
        let one_by_one = OneByOne::new(crash_loop, &Pipeline::default(), over.clone());
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
        let pipeline = Pipeline::builder().in_flight(3).build().expect("valid");
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
            "the limit of records in flight is reached"
        );
    }

    /// A decorator, whose inner processor only the attempt connects with the engine.
    struct Decorated<P>(P);

    impl<P: RecordProcessor> RecordProcessor for Decorated<P> {
        type Error = P::Error;

        async fn process(&self, record: &Record, attempt: &Attempt<'_>) -> Result<(), P::Error> {
            self.0.process(record, attempt).await
        }
    }

    /// Processes one record at a time. Returns the stored marks: whether a record was in flight.
    async fn stored_marks(processor: impl RecordProcessor, meanwhile: impl Future<Output = ()>) -> Vec<bool> {
        let (crash_loop, mark, mut requests) = CrashLoop::new(&Checkpoint::at(at(10)), Turns::default());
        let storing = tokio::spawn(async move {
            let mut stored = Vec::new();
            while let Some(request) = requests.recv().await {
                let starts = mark.starts.lock().unwrap_or_else(PoisonError::into_inner);
                stored.push(starts.in_hand.is_some());
                let _ = request.send(());
            }
            stored
        });
        let resilient = Resilient::builder("billing", Decorated(processor))
            .dead_letters(dead_letter::Memory::new())
            .build()
            .expect("valid");
        let (pipeline, over) = (Pipeline::default(), CancellationToken::new());
        let careful = OneByOne::new(crash_loop, &pipeline, over.clone());
        let record = Record::builder("s", "shardId-0".into(), 11.into()).build();
        let pages = futures_util::stream::iter([Batch::from(vec![record])]);
        let (from, progress) = (Checkpoint::at(at(10)), Progress::new());
        let pipeline = pipeline.one_by_one();
        let running = pipeline.run_from(&resilient, pages, from, &careful, &progress, over.cancelled());
        let (finished, ()) = tokio::join!(running, meanwhile);
        assert!(finished.expect("no halt").complete);
        drop(careful);
        storing.await.expect("no panic")
    }

    #[tokio::test(start_paused = true)]
    async fn mark_is_removed_while_a_processor_waits() {
        let waits = processor_fn(async |_: Record| -> Result<(), BoxError> {
            sleep(2 * WAITS).await;
            Ok(())
        });
        assert_eq!(stored_marks(waits, async {}).await, [true, false, true]);
    }

    #[tokio::test(start_paused = true)]
    async fn mark_stays_while_a_decorated_processor_blocks() {
        let begun = Arc::new(Notify::new());
        let (end, ends) = channel();
        let (ends, begins) = (sync::Mutex::new(ends), begun.clone());
        let blocks = processor_blocking(move |_: &Record| -> Result<(), BoxError> {
            begins.notify_one();
            Ok(ends.lock().expect("no panic while locked").recv()?)
        });
        let meanwhile = async move {
            begun.notified().await;
            for _ in 0..3 {
                advance(2 * WAITS).await;
                for _ in 0..10 {
                    yield_now().await;
                }
            }
            end.send(()).expect("the call receives");
        };
        assert_eq!(stored_marks(blocks, meanwhile).await, [true]);
    }
}
