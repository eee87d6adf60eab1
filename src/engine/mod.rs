//! The engine: calls the processor, retries what may succeed, and settles every record.
//!
//! [`Resilient`] wraps the processor. A runtime calls it for every record that it reads. A program without a
//! runtime calls [`settle`](Resilient::settle), which does the same.

use std::any::type_name;
use std::fmt;
use std::sync::Arc;

use tokio::time::Instant;

mod attempt;
mod batch;
mod builder;
mod claims;
mod classifiers;
mod decision;
#[cfg(feature = "kinesis")]
mod dependencies;
mod give_up;
mod group;
mod protection;
mod released;
mod retry;
mod retry_state;
mod slots;
mod spans;
mod workers;

pub use builder::ResilientBuilder;

#[cfg(feature = "kinesis")]
pub(crate) use dependencies::Dependencies;
pub(crate) use give_up::HELD_AT_LEAST;
pub(crate) use group::{Group, Member, MemberStep};
pub(crate) use protection::{Permission, Run, Within};
pub(crate) use slots::Slots;
pub(crate) use workers::{Tag, Workers};

use crate::dead_letter::{DeadLetterPolicy, DeadLetterSink};
#[cfg(feature = "kinesis")]
use crate::idempotency::IdempotencyStore;
#[cfg(feature = "lambda")]
use crate::idempotency::StoreError;
use crate::observer::{Event, Interest, RecordEvent, Success};
use crate::processor::{Bounds, Handler};
use crate::protection::{CircuitBreaker, DeadLetterGuard, RetryBudget};
use crate::record::Record;
use crate::retention::Retention;
use crate::settlement::{Settled, Unsettled};
use crate::stopwatch::Stopwatch;
use attempt::{AttemptRunner, Term};
use batch::BatchStep;
use claims::Claims;
use decision::Decisions;
use give_up::DeadLetterWriter;
use protection::{Protection, RunSettings};
use released::ReleasedRecords;
use retry_state::RetryState;
use spans::Traces;
use workers::WorkerSetting;

/// A processor made resilient: every record that it receives is settled, or released to be delivered again.
///
/// Clones share everything: policy, sink, observers.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use redrive::{Record, Resilient, Settled, dead_letter, processor_fn};
///
/// async fn store(record: Record) -> Result<(), std::io::Error> {
///     Ok(())
/// }
///
/// let orders = Resilient::builder("billing", processor_fn(store))
///     .dead_letters(dead_letter::Memory::new())
///     .build()?;
///
/// let record = Record::builder("orders", "shardId-000000000000".into(), 1.into()).build();
/// assert_eq!(orders.settle(&record).await?, Settled::Processed);
/// # Ok(())
/// # }
/// ```
pub struct Resilient<P: Handler>(Arc<Engine<P>>);

/// The parts that settle a processor's records.
struct Engine<P: Handler> {
    application: Arc<str>,
    attempts: AttemptRunner<P>,
    decisions: Decisions<P::Error>,
    dead_letters: Option<DeadLetterWriter>,
    after_dead_letter: DeadLetterPolicy,
    claims: Option<Claims>,
    traces: Arc<Traces>,
    interrupted: Arc<ReleasedRecords>,
    protection: Arc<Protection>,
    workers: Option<WorkerSetting<P>>,
    /// The run of the records that are settled by hand. Lambda invocations are parts of this run.
    run: Run,
}

/// The result of one step.
enum Step {
    Done(Result<Settled, Unsettled>),
    /// The record resumes when its state is due. Until then it occupies only its place in the lane.
    Later(Box<RetryState>),
}

/// The result of a step. It has the size of one word, because it passes through many calls. All that follows
/// a first attempt is boxed.
#[allow(clippy::box_collection, reason = "one word instead of three")]
pub(crate) enum Stepped {
    Processed,
    Otherwise(Box<Vec<MemberStep>>),
}

impl<P: Handler> Resilient<P> {
    /// Creates a builder with the application's name and the processor.
    ///
    /// The application is the user's name for this consumer. It is part of checkpoints, idempotency keys and
    /// dead-letter ids. Two applications on one stream therefore do not mistake each other's work for their
    /// own.
    pub fn builder(application: impl Into<String>, processor: P) -> ResilientBuilder<P> {
        ResilientBuilder::new(application.into(), processor)
    }

    /// Returns the application's name.
    pub fn application(&self) -> &str {
        &self.0.application
    }

    /// Settles the record: attempts, retries, dead letter.
    ///
    /// Returns when the record is settled. A record that becomes a dead letter waits for as long as the
    /// dead-letter sink is down. Needs a tokio runtime with time enabled.
    ///
    /// If the future is dropped, the record is not settled. A dead letter may have been written already. That
    /// is harmless, because its id is the same the next time.
    pub fn settle(&self, record: &Record) -> impl Future<Output = Result<Settled, Unsettled>> + Send {
        self.settle_in(record, None)
    }

    /// Settles the record like [`settle`](Resilient::settle), until a deadline.
    ///
    /// No attempt runs past the deadline. If the record is not settled by then, the error says what it was
    /// waiting for: [`Unsettled::Deadline`], or a variant such as [`Unsettled::BreakerOpen`]. When this
    /// processor settles the record again, the record resumes with its attempts, its hold or its dead letter.
    pub fn settle_by(
        &self,
        record: &Record,
        deadline: Instant,
    ) -> impl Future<Output = Result<Settled, Unsettled>> + Send {
        self.settle_in(record, Some(deadline))
    }

    async fn settle_in(&self, record: &Record, deadline: Option<Instant>) -> Result<Settled, Unsettled> {
        let engine = &*self.0;
        if !engine.protection.is_clear() || engine.has_more_to_do() {
            return Box::pin(engine.settle_slowly(record, engine.term(deadline))).await;
        }
        match engine.attempts.run_first(record, deadline).await {
            Ok(began) => Ok(engine.processed_first(record, began, &engine.run)),
            Err(failed) => {
                Box::pin(engine.recover(record, failed, Permission::FREE, engine.term(deadline))).await
            }
        }
    }

    /// Takes one step of a record: an attempt, or the write of its dead letter.
    ///
    /// The pipeline runs other records while this one waits between its steps. `again`: the group that
    /// continues, of which `record` is the place of the first record. Without `again` this is the record's
    /// first attempt.
    pub(crate) fn step(
        &self,
        ordinal: u64,
        record: Record,
        again: Option<Box<Group>>,
        run: &Run,
    ) -> impl Future<Output = Stepped> + Send {
        let engine = &*self.0;
        async move {
            if again.is_some() || engine.has_more_to_do() {
                let steps = Box::pin(engine.step_slowly(ordinal, record, again, Term::of(run))).await;
                return Stepped::Otherwise(Box::new(steps));
            }
            let step = match engine.attempts.run_first(&record, run.deadline()).await {
                Ok(began) => {
                    let _ = engine.processed_first(&record, began, run);
                    return Stepped::Processed;
                }
                Err(failed) => engine.attempt_failed(&record, None, failed, Permission::FREE, run),
            };
            let step = MemberStep::of(Member::new(ordinal, None, record), step);
            Stepped::Otherwise(Box::new(vec![step]))
        }
    }

    #[cfg(feature = "lambda")]
    pub(crate) fn processor(&self) -> &P {
        &self.0.attempts.processor
    }

    /// Returns the dead-letter sink, if dead letters are enabled.
    pub fn dead_letters(&self) -> Option<&Arc<dyn DeadLetterSink>> {
        self.0.dead_letters.as_ref().map(|writer| writer.outbox.sink())
    }

    /// Returns the processor's own circuit breaker, if it is enabled.
    pub fn breaker(&self) -> Option<&CircuitBreaker> {
        self.0.protection.own_breaker()
    }

    /// Returns the dead-letter guard, if it is enabled.
    pub fn guard(&self) -> Option<&DeadLetterGuard> {
        self.0.protection.guard.as_ref()
    }

    /// Returns the retry budget, if it is enabled.
    pub fn retry_budget(&self) -> Option<&RetryBudget> {
        self.0.protection.budget.as_ref()
    }

    /// Returns a view of what the processor's records depend on, for health checks.
    #[cfg(feature = "kinesis")]
    pub(crate) fn dependencies(&self) -> Dependencies {
        let protection = &self.0.protection;
        let breakers = protection.breakers.iter();
        Dependencies {
            breakers: breakers
                .map(|named| (named.dependency.clone(), named.breaker.clone()))
                .collect(),
            guard: protection.guard.clone(),
            budget: protection.budget.clone(),
            sink_failures: self
                .0
                .dead_letters
                .as_ref()
                .map(|writer| writer.outbox.failures().clone()),
        }
    }

    /// Begins a run of a shard. `lets_expire`: a held record may become a dead letter before the stream, with
    /// this retention, drops it.
    pub(crate) fn begin_run(&self, lets_expire: bool, retention: Retention) -> Run {
        self.0.begin_run(lets_expire, retention)
    }

    /// Begins a run of a few records with these time limits. The run shares its counters with earlier runs,
    /// and resumes the records that they released.
    pub(crate) fn part_of_run(&self, within: Within, retention: Retention) -> Run {
        let interrupted = self.0.interrupted.clone();
        self.0.run.part(within, retention, interrupted)
    }

    /// Returns true if a call has shown that the processor works on another thread than the one that polls it.
    pub(crate) fn runs_elsewhere(&self) -> bool {
        self.0.attempts.runs_elsewhere()
    }

    /// Starts the workers of a run, each with room for `in_flight` steps, if steps are taken on several tasks.
    pub(crate) fn start_workers(&self, in_flight: usize, run: &Arc<Run>) -> Option<Workers> {
        self.0.workers.as_ref()?.start(in_flight, self, run)
    }

    /// Returns the bounds of a batch, if the processor takes several records at once.
    pub(crate) fn batches(&self) -> Option<Bounds> {
        let bounds = self.0.attempts.processor.batches()?;
        Some(match self.0.claims {
            None => bounds,
            Some(_) => bounds.at_most(claims::AT_ONCE),
        })
    }

    /// Returns whether an idempotency store remembers which records are processed.
    #[cfg(feature = "lambda")]
    pub(crate) fn remembers(&self) -> bool {
        self.0.claims.is_some()
    }

    #[cfg(feature = "kinesis")]
    pub(crate) fn idempotency_store(&self) -> Option<&Arc<dyn IdempotencyStore>> {
        self.0.claims.as_ref().map(|claims| claims.store())
    }

    /// Asks the idempotency store about these records in one call.
    ///
    /// Returns how many processes crashed while they processed the same record: 0 without a store, `None` if
    /// the store does not answer.
    ///
    /// # Errors
    ///
    /// The store refuses the call.
    #[cfg(feature = "lambda")]
    pub(crate) async fn recall(&self, records: &[Record]) -> Result<Option<u32>, StoreError> {
        match &self.0.claims {
            Some(claims) => claims.recall(&self.0.application, records).await,
            None => Ok(Some(0)),
        }
    }

    #[cfg(any(feature = "kinesis", feature = "lambda", feature = "multilang"))]
    pub(crate) fn observers(&self) -> &crate::observer::Observers {
        &self.0.protection.observers
    }
}

impl<P: Handler> Engine<P> {
    /// Returns true if a record needs more than a plain first attempt.
    #[inline]
    fn has_more_to_do(&self) -> bool {
        self.claims.is_some() || self.interrupted.has_any() || spans::is_wanted()
    }

    /// Returns the limits of a record that is settled by hand.
    fn term(&self, deadline: Option<Instant>) -> Term<'_> {
        Term {
            deadline,
            finish_by: deadline,
            ..Term::of(&self.run)
        }
    }

    async fn settle_slowly(&self, record: &Record, term: Term<'_>) -> Result<Settled, Unsettled> {
        let settling = self.settle_when_admitted(record, term);
        match self.traces.of_record(record) {
            None => settling.await,
            Some(span) => spans::settled(settling, span).await,
        }
    }

    async fn step_slowly(
        &self,
        ordinal: u64,
        record: Record,
        again: Option<Box<Group>>,
        term: Term<'_>,
    ) -> Vec<MemberStep> {
        let mut group = match again {
            Some(group) => group,
            None => {
                let mut group = Group::of(vec![Member::new(ordinal, None, record)]);
                if let Some(state) = group.first().and_then(|one| self.interrupted.take(&one.record)) {
                    // The record resumes when its state is due.
                    group.state = Some(state);
                    return vec![MemberStep::Later(group)];
                }
                group
            }
        };
        match self.traces.of_step(&mut group) {
            None => self.go_a_step(*group, term).await,
            Some(span) => spans::stepped(self.go_a_step(*group, term), span).await,
        }
    }

    async fn go_a_step(&self, mut group: Group, term: Term<'_>) -> Vec<MemberStep> {
        if group.has_several() {
            return BatchStep::run(self, group, term).await;
        }
        let Some(member) = group.members.pop() else {
            return Vec::new();
        };
        let step = self
            .resume(&member.record, group.state, group.permission, term)
            .await;
        vec![MemberStep::of(member, step)]
    }

    fn begin_run(&self, lets_expire: bool, retention: Retention) -> Run {
        let settings = RunSettings {
            lets_expire,
            remembers: self.claims.is_some(),
            after_dead_letter: self.after_dead_letter,
        };
        Run::begin(self.protection.clone(), settings, retention)
    }

    /// Settles a record that succeeded at its first attempt. `began`: the start of the attempt, if an observer
    /// wants its duration.
    #[inline(always)]
    fn processed_first(&self, record: &Record, began: Option<Stopwatch>, run: &Run) -> Settled {
        let Some(began) = began else {
            return self.processed(record, 1, run);
        };
        run.tally.add();
        let success = Success::new(record, began.elapsed_nanos());
        self.protection.observers.tell_success(&success);
        Settled::Processed
    }

    #[inline(always)]
    fn processed(&self, record: &Record, attempts: u32, run: &Run) -> Settled {
        run.tally.add();
        self.tell_settled(record, Settled::Processed, attempts);
        Settled::Processed
    }

    /// Settles a record that was processed before. The processor was not called, so no breaker counts a
    /// success.
    fn duplicate(&self, record: &Record, attempts: u32) -> Settled {
        self.tell_settled(record, Settled::Duplicate, attempts);
        Settled::Duplicate
    }

    fn tell_settled(&self, record: &Record, settled: Settled, attempts: u32) {
        self.protection
            .observers
            .report(Interest::SETTLEMENTS, || Event::Record {
                record,
                event: RecordEvent::Settled { settled, attempts },
            });
    }
}

impl<P: Handler> Clone for Resilient<P> {
    fn clone(&self) -> Self {
        Resilient(self.0.clone())
    }
}

impl<P: Handler> fmt::Debug for Resilient<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resilient")
            .field("application", &self.0.application)
            .field("processor", &type_name::<P>())
            .field("policy", self.0.decisions.policy())
            .field("dead_letters", &self.dead_letters())
            .field("idempotency", &self.0.claims)
            .finish_non_exhaustive()
    }
}
