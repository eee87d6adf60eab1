//! The task of one shard: polls the attempts that were woken, starts what may start, reads on while the
//! bounds allow.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_core::Stream;
use futures_core::future::BoxFuture;
use tokio::task::coop::has_budget_remaining;
use tokio::time::{Sleep, sleep};
use tokio_util::sync::WaitForCancellationFuture;

mod beginning;
mod starting;
mod together;

pub(super) use beginning::run;
#[cfg(feature = "kinesis")]
pub(super) use beginning::run_careful;

use super::buffers::{Buffers, OVERHEAD};
use super::capacity::{Permits, Reservation};
use super::delays::Delays;
use super::expiring::Expiring;
use super::fullness::Fullness;
use super::gather::Gather;
use super::lanes::Lanes;
use super::progress::Progress;
use super::read_until::ReadUntil;
use super::ready::{Ready, Waiting};
use super::settled_counts::Counted;
use super::slots::Slots;
use super::unread::{NextRecord, Unread};
use super::window::{Earlier, Ordinal, Window};
use super::work::Work;
use super::{Batch, Finished, Pipeline, ShardHalted};
use crate::checkpoint::Checkpoint;
use crate::dead_letter::AfterDeadLetter;
use crate::observer::{Bound, Event, Interest, Observers};
use crate::record::Record;
use crate::resilient::{
    Group, Interrupted, Otherwise, Pass, Protection, RetryState, Run, Stage, Step, Stepped,
};
use crate::sabotage::Sabotage;
use crate::settled::{Halt, Settled, Unsettled};

/// While a breaker is not closed, reading goes on until so many records are there that were not tried
/// yet: probes made of nothing but records that failed before might never succeed.
const UNTRIED: usize = 8;

struct Shard<'a, S, F, M> {
    pipeline: &'a Pipeline,
    protection: &'a Protection,
    run: &'a Run,
    interrupted: &'a Interrupted,
    /// An idempotency store knows what is processed.
    remembers: bool,
    after_dead_letter: AfterDeadLetter,
    /// While a breaker is not closed: wakes the task when that changes.
    breaker_change: Option<BoxFuture<'a, ()>>,
    /// While the dead-letter guard has stopped the shard: wakes the task when the guard resumes it.
    guard_resumed: Option<BoxFuture<'a, ()>>,
    observers: &'a Observers,
    batches: S,
    progress: &'a Progress,
    shutdown: Pin<Box<WaitForCancellationFuture<'a>>>,
    /// Makes the future of one step.
    step: M,
    window: Window,
    read_until: ReadUntil,
    lanes: Lanes,
    slots: Slots<F, Tag>,
    /// Kept between turns for its allocation only.
    stepped: Vec<(Tag, Stepped)>,
    delays: Delays<Waiting>,
    ready: Ready,
    /// Of a handler that works on many records at once.
    gather: Option<Gather>,
    permits: Permits,
    memory: Reservation,
    freed: usize,
    buffers: Buffers,
    batch: Unread,
    batch_reserved: bool,
    input_ended: bool,
    stop: Option<Stop>,
    fullness: Fullness,
    expiring: Expiring,
    counted: Counted,
    /// Something settled since the last checkpoint was made.
    changed: bool,
    /// And the checkpoint should not wait.
    urgent: bool,
}

#[derive(Clone, Copy)]
struct Tag {
    ordinal: Ordinal,
    permit: bool,
}

/// Nothing new begins; what runs may end until the timer fires.
struct Stop {
    timer: Pin<Box<Sleep>>,
    halted: Option<(Record, Halt)>,
}

impl<S, F, M> Shard<'_, S, F, M>
where
    S: Stream<Item = Batch> + Unpin,
    F: Future<Output = Stepped>,
    M: Fn(Record, Option<Box<Stage>>) -> F,
{
    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.progress.register(cx);
        if self.stop.is_none() && self.shutdown.as_mut().poll(cx).is_ready() {
            self.stop();
        }
        self.slots.stop_listening();
        let mut work = Work::new();
        let bound = loop {
            self.go_on(&mut work);
            let bound = self.begin(cx, &mut work);
            // What was woken meanwhile need not wait for another turn of the task.
            if work.is_used_up() || !self.slots.has_woken() || !has_budget_remaining() {
                break bound;
            }
        };
        self.slots.listen(cx);
        self.await_breakers(cx);
        self.await_guard(cx);
        self.end_turn(cx, bound);

        if let Some(stop) = &mut self.stop {
            if self.slots.is_empty() || stop.timer.as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
            return Poll::Pending;
        }
        let gathered = self.gather.as_ref().is_none_or(Gather::is_empty);
        let idle = self.slots.is_empty() && self.ready.is_empty() && self.delays.is_empty() && gathered;
        let nothing_more = self.input_ended && self.batch.is_empty();
        // Idle behind a bound: every lane in the window has stopped.
        if idle && (nothing_more || bound.is_some()) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }

    /// Polls the attempts that were woken.
    fn go_on(&mut self, work: &mut Work) {
        let mut stepped = std::mem::take(&mut self.stepped);
        work.did(self.slots.poll_woken(&mut stepped));
        for (tag, step) in stepped.drain(..) {
            self.stepped(tag, step);
        }
        self.stepped = stepped;
    }

    /// Begins what may begin, and reads on. Returns the bound that stops the reading, if one does.
    fn begin(&mut self, cx: &mut Context<'_>, work: &mut Work) -> Option<Bound> {
        loop {
            while let Poll::Ready(waiting) = self.delays.poll_due(cx) {
                self.ready.push_again(waiting);
            }
            self.start_ready(cx);
            let read = self.read(cx, work);
            match read {
                Read::Some if !work.is_used_up() => {}
                Read::Some => {
                    cx.waker().wake_by_ref();
                    return None;
                }
                _ if self.gather.is_some() && self.begin_what_is_there(self.more_may_come(&read), cx) => {}
                // What was started just now may wait for a time that no timer is set to yet.
                _ if !self.delays.is_armed() => {}
                Read::Nothing => return None,
                Read::Bounded(bound) => return Some(bound),
            }
        }
    }

    fn end_turn(&mut self, cx: &mut Context<'_>, bound: Option<Bound>) {
        let gather_waits = self.gather.as_ref().is_some_and(|gather| gather.waits_for_permit);
        // A stopped shard takes no permit, so that one which came to it in the line would be lost to all others.
        let is_stopped = self.run.is_stopped();
        self.permits
            .end_turn(!is_stopped && (!self.ready.is_empty() || gather_waits));
        self.progress.set_stopped(is_stopped);
        self.memory.park(is_stopped);
        self.memory.release(std::mem::take(&mut self.freed));
        self.counted.share(self.progress.settled());
        if self.changed && self.progress.wanted(self.urgent) {
            let checkpoint = self.checkpoint();
            self.progress.publish(checkpoint);
            self.changed = false;
            self.urgent = false;
        }
        let bound = bound.or_else(|| self.pipeline.capacity.is_short().then_some(Bound::Bytes));
        let stuck = self.fullness.observe(bound, &self.window, self.observers, cx);
        self.progress.set_stuck(stuck);
        let oldest = self.window.oldest().map(|(_, record)| record);
        self.progress.set_held(self.window.held(), oldest);
        let may_begin = self.may_begin_all();
        self.expiring
            .observe(&self.window, (self.run, may_begin), self.observers, cx);
    }

    /// Admits the next record, or reads the next batch.
    fn read(&mut self, cx: &mut Context<'_>, work: &mut Work) -> Read {
        if self.stop.is_some() || self.run.is_stopped() && !self.run.gives_up() {
            return Read::Nothing;
        }
        if !self.may_begin_all() && self.ready.untried() >= UNTRIED {
            return Read::Nothing;
        }
        if self.window.held() >= self.pipeline.held {
            if Sabotage::DropWhenFull.is_committed() {
                self.batch.next();
            }
            return Read::Bounded(Bound::Held);
        }
        if self.window.span() >= self.pipeline.span {
            return Read::Bounded(Bound::Span);
        }
        if let Some(next) = self.batch.next() {
            work.did(1);
            self.admit(next, cx);
            if self.batch.is_empty() {
                self.read_until.admitted(self.window.next());
            }
            return Read::Some;
        }
        if self.input_ended {
            return Read::Nothing;
        }
        match Pin::new(&mut self.batches).poll_next(cx) {
            Poll::Ready(Some(batch)) => {
                self.read_until.batch(batch.read_until, self.window.next());
                if batch.records.is_empty() {
                    self.read_until.admitted(self.window.next());
                    // Of an idle shard a checkpoint is made for this alone.
                    self.changed |= batch.read_until.is_some() && self.window.held() == 0;
                }
                self.batch = Unread::new(batch.records);
                self.batch_reserved = batch.reservation.is_some();
                if let Some(reservation) = batch.reservation {
                    self.memory.absorb(reservation);
                }
                Read::Some
            }
            Poll::Ready(None) => {
                self.input_ended = true;
                Read::Nothing
            }
            Poll::Pending => Read::Nothing,
        }
    }

    /// Whether waiting may bring another record.
    fn more_may_come(&self, read: &Read) -> bool {
        matches!(read, Read::Nothing) && !(self.input_ended && self.batch.is_empty())
    }

    fn admit(&mut self, next: NextRecord, cx: &mut Context<'_>) {
        let bytes = match self.batch_reserved {
            true => self.weigh(&next),
            false => 0,
        };
        let record = next.record;
        match self.window.earlier(&record) {
            Earlier::Passed => {
                self.freed += self.buffers.passed(bytes);
                return;
            }
            Earlier::Settled => {
                // In the window, so that the next checkpoint remembers it as well.
                let ordinal = self.window.admit(record, 0, 0);
                self.window.settle(ordinal, Settled::Processed);
                self.freed += self.buffers.passed(bytes);
                self.changed = true;
                return;
            }
            Earlier::Unsettled => {}
        }
        let lane = self.lanes.of(&record);
        let ahead = self.lanes.enter(lane, self.window.next());
        match ahead.filter(|_| !Sabotage::LoseOrder.is_committed()) {
            Some(ahead) => {
                let ordinal = self.window.admit(record, lane, bytes);
                self.window.follow(ahead, ordinal);
                self.join_behind(ahead, ordinal);
            }
            // It may run: only its place is kept.
            None if self.may_run_at_once(cx) => {
                let ordinal = self.window.admit(record.place(), lane, bytes);
                self.start(ordinal, record, None);
            }
            None => {
                let ordinal = self.window.admit(record, lane, bytes);
                self.ready.push_first(ordinal);
            }
        }
    }

    /// What the next record counts for.
    #[inline]
    fn weigh(&mut self, next: &NextRecord) -> u32 {
        let ordinal = self.window.next();
        if next.is_made {
            if let Some((records, bytes)) = next.opens {
                self.buffers.open(ordinal, records, bytes);
            }
            // Until now it was a few bytes of its aggregate.
            self.memory.grow(OVERHEAD);
        }
        self.buffers.weigh(&next.record, self.batch.behind(), ordinal)
    }

    /// A step has ended.
    fn stepped(&mut self, tag: Tag, step: Stepped) {
        if tag.permit {
            self.permits.give();
        }
        match step {
            Stepped::Processed => self.settle(tag.ordinal, Settled::Processed),
            Stepped::Otherwise(otherwise) => match *otherwise {
                Otherwise::Alone(record, step) => self.advanced(tag.ordinal, record, step),
                Otherwise::Parted(fates) => self.parted(fates),
            },
        }
    }

    /// A record's step has ended otherwise than by its first success.
    #[cold]
    fn advanced(&mut self, ordinal: Ordinal, record: Record, step: Step) {
        match step {
            Step::Done(Ok(settled)) => self.settle(ordinal, settled),
            Step::Done(Err(reason)) => self.unsettled(record, reason),
            Step::Later(state) => self.wait(Waiting {
                ordinal,
                record,
                state,
                group: Group::default(),
            }),
        }
    }

    fn wait(&mut self, waiting: Waiting) {
        match waiting.state.due() {
            // The verdict is reached: the letter is written even while we stop. It takes no permit,
            // and it is the record's last step.
            None => self.go_on_with(waiting.ordinal, waiting.record, waiting.state, Pass::FREE),
            Some(_) if self.stop.is_some() => self.give_back_waiting(waiting, |_| Unsettled::Shutdown),
            Some(due) if self.run.is_over_by(due) => {
                self.give_back_waiting(waiting, RetryState::why_unsettled);
            }
            Some(due) => self.delays.push(due, waiting),
        }
    }

    fn settle(&mut self, ordinal: Ordinal, settled: Settled) {
        if let (Settled::DeadLettered(id), AfterDeadLetter::Stop) = (settled, self.after_dead_letter)
            && let Some(place) = self.window.record(ordinal).map(Record::place)
        {
            let stop = self.stop();
            stop.halted.get_or_insert((place, Halt::AfterDeadLetter(id)));
        }
        let Some(released) = self.window.settle(ordinal, settled) else {
            return;
        };
        self.counted.count(settled);
        self.changed = true;
        self.urgent |= matches!(settled, Settled::DeadLettered(_));
        self.freed += self.buffers.settled(ordinal, released.bytes);
        match released.next {
            // What stands behind it has not begun, and nothing new begins.
            Some(_) if self.stop.is_some() => {}
            // It went to its handler together with this one.
            Some(next) if self.gather.is_some() && self.window.is_taken(next) => {}
            Some(next) => self.ready.push_first(next),
            None => self.lanes.leave(released.lane),
        }
    }

    /// A record is given back that was tried.
    fn give_back(&mut self, record: Record, state: Box<RetryState>, reason: Unsettled) {
        if self.run.within.is_some() {
            self.interrupted.keep(&record, state);
        }
        self.unsettled(record, reason);
    }

    /// A record is given back. Its lane stops here: nothing behind it may overtake it.
    fn unsettled(&mut self, record: Record, reason: Unsettled) {
        if self.observers.want(Interest::FAILURES) {
            self.observers.tell(&Event::Unsettled {
                record: &record,
                reason: &reason,
            });
        }
        match reason {
            Unsettled::Halted(halt) => {
                let stop = self.stop();
                stop.halted.get_or_insert((record.place(), halt));
            }
            // What comes behind it is delivered again with it: as little as possible is done twice.
            reason if self.run.within.is_some() && !self.is_done_once(&reason) => drop(self.stop()),
            _ => {}
        }
    }

    /// Whether others may be processed though a record is given back for this reason: they are remembered, and
    /// nothing that they need is sick.
    fn is_done_once(&self, reason: &Unsettled) -> bool {
        self.remembers && matches!(reason, Unsettled::ClaimedElsewhere | Unsettled::Deadline)
    }

    /// Nothing new begins from here on.
    fn stop(&mut self) -> &mut Stop {
        let waiting: Vec<Waiting> = self.ready.drain().chain(self.delays.drain()).collect();
        for waiting in waiting {
            self.give_back_waiting(waiting, |_| Unsettled::Shutdown);
        }
        self.gather.iter_mut().for_each(|gather| drop(gather.take()));
        self.run.stop();
        let drain = self.pipeline.drain;
        self.stop.get_or_insert_with(|| Stop {
            timer: Box::pin(sleep(drain)),
            halted: None,
        })
    }

    /// How far it is settled.
    fn checkpoint(&mut self) -> Checkpoint {
        let checkpoint = self.window.checkpoint();
        let base = self.window.next() - self.window.span() as Ordinal;
        match self.read_until.settled(base) {
            Some(time) => checkpoint.with_read_until(time),
            None => checkpoint,
        }
    }

    fn finish(mut self) -> Result<Finished, Box<ShardHalted>> {
        let checkpoint = self.checkpoint();
        let unsettled = self.window.held() + self.batch.count();
        let held = self.window.oldest().map(|(_, oldest)| oldest.sequence_number());
        let first_unsettled = held.or(self.batch.sequence_number()).cloned();
        match self.stop.and_then(|stop| stop.halted) {
            Some((record, halt)) => Err(Box::new(ShardHalted {
                unsettled,
                first_unsettled: first_unsettled.unwrap_or_else(|| record.sequence_number().clone()),
                record,
                halt,
                checkpoint,
            })),
            None => Ok(Finished {
                checkpoint,
                unsettled,
                complete: self.input_ended && unsettled == 0,
                first_unsettled,
            }),
        }
    }
}

enum Read {
    Some,
    Nothing,
    Bounded(Bound),
}
