//! The task of one shard: polls the attempts that were woken, starts records that may start, and reads while
//! the bounds allow.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_core::Stream;
use futures_core::future::BoxFuture;
use tokio::task::coop::has_budget_remaining;
use tokio::time::{Sleep, sleep};

mod batching;
mod intake;
mod queue;
mod scheduling;
mod settling;
mod setup;
mod steps;
#[cfg(test)]
mod tests;
mod wakers;

pub(super) use setup::run;

use self::intake::Intake;
use self::queue::Queue;
use self::settling::Settling;
use self::steps::Steps;
use self::wakers::Wakers;
use super::capacity::Permits;
use super::expiry::Expiring;
use super::progress::Progress;
use super::stall::StallDetector;
use super::turn_budget::TurnBudget;
use super::unread::NextRecord;
use super::window::{Earlier, Ordinal};
use crate::dead_letter::DeadLetterPolicy;
use crate::engine::{Group, MemberStep, Permission, Run, Stepped, Tag};
use crate::observer::{Bound, Event, Interest, RecordEvent};
use crate::pipeline::{Batch, Finished, Pipeline, ShardHalted};
use crate::record::Record;
use crate::sabotage::Sabotage;
use crate::settlement::{Halt, Settled, Unsettled};

/// The number of untried records up to which the shard reads while a breaker is not closed. Probes made only
/// of records that failed before might never succeed.
const UNTRIED: usize = 8;

/// A running shard. [`turn`](Shard::turn) is the table of contents.
struct Shard<'a, S, F, M> {
    pipeline: &'a Pipeline,
    run: &'a Run,
    progress: &'a Progress,
    shutdown: BoxFuture<'a, ()>,
    intake: Intake<S>,
    queue: Queue,
    running: Running<F, M>,
    settling: Settling,
    wakers: Wakers<'a>,
    fullness: StallDetector,
    expiring: Expiring,
    stop: Option<Stop>,
}

/// The running steps of records, and the permits for them.
struct Running<F, M> {
    steps: Steps<F, M>,
    permits: Permits,
    /// The steps that ended in this turn. Kept between turns only to reuse its allocation.
    ended: Vec<(Tag, Stepped)>,
}

/// A stop in progress: nothing new begins, and running steps may end until the timer fires.
struct Stop {
    timer: Pin<Box<Sleep>>,
    halted: Option<(Record, Halt)>,
}

impl<S, F, M> Shard<'_, S, F, M>
where
    S: Stream<Item = Batch> + Unpin,
    F: Future<Output = Stepped>,
    M: Fn(Ordinal, Record, Option<Box<Group>>) -> F,
{
    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.progress.register(cx);
        if self.stop.is_none() && self.shutdown.as_mut().poll(cx).is_ready() {
            self.stop();
        }
        self.running.steps.stop_listening();
        let mut work = TurnBudget::new();
        let bound = loop {
            self.go_on(cx, &mut work);
            let bound = self.begin(cx, &mut work);
            // Attempts that were woken meanwhile are polled in this turn of the task.
            if work.is_used_up() || !self.running.steps.has_woken() || !has_budget_remaining() {
                break bound;
            }
        };
        self.running.steps.listen(cx);
        self.wakers.listen(self.run, cx);
        self.end_turn(cx, bound);

        if let Some(stop) = &mut self.stop {
            if self.running.steps.is_empty() || stop.timer.as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
            return Poll::Pending;
        }
        let idle = self.running.steps.is_empty() && self.queue.is_empty();
        // Idle behind a full bound: every lane in the window has stopped.
        if idle && (self.intake.is_over() || bound.is_some()) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }

    /// Polls the attempts that were woken, and handles the steps that have ended.
    fn go_on(&mut self, cx: &mut Context<'_>, work: &mut TurnBudget) {
        let mut ended = std::mem::take(&mut self.running.ended);
        work.did(self.running.steps.go_on(cx, &mut ended));
        for (tag, step) in ended.drain(..) {
            self.stepped(tag, step);
        }
        self.running.ended = ended;
    }

    /// Starts records that may start, and reads more. Returns the bound that stops the reading, if any.
    fn begin(&mut self, cx: &mut Context<'_>, work: &mut TurnBudget) -> Option<Bound> {
        loop {
            self.queue.wake_due(cx);
            self.start_ready(cx);
            let read = self.read(cx, work);
            match read {
                Read::Some if !work.is_used_up() => {}
                Read::Some => {
                    cx.waker().wake_by_ref();
                    return None;
                }
                _ if self.queue.gather.is_some()
                    && self.begin_what_is_there(self.more_may_come(&read), cx) => {}
                // A record that was just started may be in backoff already, and the timer is not set for it
                // yet.
                _ if !self.queue.delays.is_armed() => {}
                Read::Nothing => return None,
                Read::Bounded(bound) => return Some(bound),
            }
        }
    }

    fn end_turn(&mut self, cx: &mut Context<'_>, bound: Option<Bound>) {
        // A stopped shard uses no permit: one that it received in the line would be lost to all other shards.
        let is_stopped = self.run.is_stopped();
        self.running
            .permits
            .end_turn(!is_stopped && self.queue.waits_for_permit());
        self.progress.set_stopped(is_stopped);
        self.settling.end_turn(self.progress, is_stopped);
        let bound = bound.or_else(|| self.pipeline.capacity.is_short().then_some(Bound::Bytes));
        let stuck = self
            .fullness
            .observe(bound, &self.settling.window, self.run.observers(), cx);
        self.progress.set_stuck(stuck);
        let may_begin = self.may_begin_all();
        self.expiring
            .observe(&self.settling.window, self.run, may_begin, cx);
    }

    /// Admits the next record, or reads the next batch.
    fn read(&mut self, cx: &mut Context<'_>, work: &mut TurnBudget) -> Read {
        if self.stop.is_some() || self.run.is_stopped() && !self.run.gives_up() {
            return Read::Nothing;
        }
        if !self.may_begin_all() && self.queue.ready.untried() >= UNTRIED {
            return Read::Nothing;
        }
        if self.settling.window.in_flight() >= self.pipeline.in_flight {
            if Sabotage::DropWhenFull.is_committed() {
                self.intake.next();
            }
            return Read::Bounded(Bound::InFlight);
        }
        if self.settling.window.span() >= self.pipeline.span {
            return Read::Bounded(Bound::Span);
        }
        if let Some(next) = self.intake.next() {
            work.did(1);
            self.admit(next, cx);
            if self.intake.is_batch_empty() {
                self.settling.batch_admitted();
            }
            return Read::Some;
        }
        match self.intake.poll_batch(cx) {
            Some(arrival) => {
                self.settling.arrived(arrival);
                Read::Some
            }
            None => Read::Nothing,
        }
    }

    /// Returns whether waiting may bring another record.
    fn more_may_come(&self, read: &Read) -> bool {
        matches!(read, Read::Nothing) && !self.intake.is_over()
    }

    fn admit(&mut self, next: NextRecord, cx: &mut Context<'_>) {
        let bytes = match self.intake.is_reserved() {
            true => self.settling.weigh(&next, self.intake.behind()),
            false => 0,
        };
        let record = next.record;
        match self.settling.window.earlier(&record) {
            Earlier::Passed => return self.settling.passed(bytes),
            Earlier::Settled => return self.settling.settled_before(record, bytes),
            Earlier::Unsettled => {}
        }
        let lane = self.settling.lanes.of(&record);
        let ahead = self.settling.lanes.enter(lane, self.settling.window.next());
        match ahead.filter(|_| !Sabotage::LoseOrder.is_committed()) {
            Some(ahead) => {
                let ordinal = self.settling.window.admit(record, lane, bytes);
                self.settling.window.follow(ahead, ordinal);
                self.join_behind(ahead, ordinal);
            }
            // The record runs at once: the window keeps only its place.
            None if self.may_run_at_once(cx) => {
                let ordinal = self.settling.window.admit(record.place(), lane, bytes);
                self.start(ordinal, record, None);
            }
            None => {
                let ordinal = self.settling.window.admit(record, lane, bytes);
                self.queue.ready.push_first(ordinal);
            }
        }
    }

    /// Handles the end of a step.
    fn stepped(&mut self, tag: Tag, step: Stepped) {
        if tag.permit {
            self.running.permits.give();
        }
        match step {
            Stepped::Processed => self.settle(tag.ordinal, Settled::Processed),
            Stepped::Otherwise(steps) => self.parted(*steps),
        }
    }

    /// Handles the end of a step other than success at the first attempt.
    #[cold]
    fn parted(&mut self, mut steps: Vec<MemberStep>) {
        // Put back first: the settlement of the record ahead must find them in the window.
        for step in steps.extract_if(.., |step| matches!(step, MemberStep::Behind(_))) {
            if let MemberStep::Behind(member) = step {
                self.put_back(member);
            }
        }
        for step in steps {
            match step {
                MemberStep::Done(member, Ok(settled)) => self.settle(member.ordinal, settled),
                MemberStep::Done(member, Err(reason)) => self.unsettled(member.record, reason),
                MemberStep::Later(group) => self.wait(group),
                MemberStep::Behind(_) => {}
            }
        }
    }

    fn wait(&mut self, group: Box<Group>) {
        match group.due() {
            // The verdict is reached: the dead letter is written even during a stop. This last step takes no
            // permit.
            None => self.start_again(group, Permission::FREE),
            Some(_) if self.stop.is_some() => self.give_back(*group, |_| Unsettled::Shutdown),
            Some(due) if self.run.is_over_by(due) => self.give_back(*group, Group::why_unsettled),
            Some(due) => self.queue.delays.push(due, group),
        }
    }

    fn settle(&mut self, ordinal: Ordinal, settled: Settled) {
        if let (Settled::DeadLettered(id), DeadLetterPolicy::Stop) = (settled, self.run.after_dead_letter())
            && let Some(place) = self.settling.window.record(ordinal).map(Record::place)
        {
            let stop = self.stop();
            stop.halted.get_or_insert((place, Halt::DeadLetterPolicy(id)));
        }
        let Some(released) = self.settling.settle(ordinal, settled) else {
            return;
        };
        match released.next {
            // The next record of the lane has not begun, and nothing new begins during a stop.
            Some(_) if self.stop.is_some() => {}
            // The next record went to the processor together with this one.
            Some(next) if self.queue.gather.is_some() && self.settling.window.is_taken(next) => {}
            Some(next) => self.queue.ready.push_first(next),
            None => self.settling.lanes.leave(released.lane),
        }
    }

    /// Releases records that were tried.
    fn give_back(&mut self, group: Group, reason: impl Fn(&Group) -> Unsettled) {
        let reasons: Vec<Unsettled> = (0..group.len()).map(|_| reason(&group)).collect();
        for (record, reason) in self.run.give_back(group).into_iter().zip(reasons) {
            self.unsettled(record, reason);
        }
    }

    /// Releases a record unsettled. Its lane stops here: no record behind it may overtake it.
    fn unsettled(&mut self, record: Record, reason: Unsettled) {
        if self.run.observers().want(Interest::FAILURES) {
            self.run.observers().tell(&Event::Record {
                record: &record,
                event: RecordEvent::Unsettled { reason: &reason },
            });
        }
        match reason {
            Unsettled::Halted(halt) => {
                let stop = self.stop();
                stop.halted.get_or_insert((record.place(), halt));
            }
            // The records behind it are redelivered with it: stop, so that as few as possible are processed
            // twice.
            reason if self.run.is_part() && !self.is_done_once(&reason) => drop(self.stop()),
            _ => {}
        }
    }

    /// Returns whether other records may be processed although a record is released for this reason. They may
    /// if an idempotency store remembers them and the reason is no failure of a dependency.
    fn is_done_once(&self, reason: &Unsettled) -> bool {
        self.run.remembers() && matches!(reason, Unsettled::ClaimedElsewhere | Unsettled::Deadline)
    }

    /// Stops the shard: nothing new begins from here on.
    fn stop(&mut self) -> &mut Stop {
        for group in self.queue.drain() {
            self.give_back(group, |_| Unsettled::Shutdown);
        }
        self.run.stop();
        let drain = self.pipeline.drain;
        self.stop.get_or_insert_with(|| Stop {
            timer: Box::pin(sleep(drain)),
            halted: None,
        })
    }

    fn finish(mut self) -> Result<Finished, Box<ShardHalted>> {
        let checkpoint = self.settling.checkpoint();
        let unsettled = self.settling.window.in_flight() + self.intake.batch().count();
        let in_flight = self
            .settling
            .window
            .oldest()
            .map(|(_, oldest)| oldest.sequence_number());
        let first_unsettled = in_flight.or(self.intake.batch().sequence_number()).cloned();
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
                complete: self.intake.has_ended() && unsettled == 0,
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
