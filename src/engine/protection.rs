//! What looks at all records together: breakers, budget, guard.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use futures_core::future::BoxFuture;
use tokio::time::Instant;

use super::group::Group;
use super::released::ReleasedRecords;
use crate::dead_letter::DeadLetterPolicy;
use crate::failure::{Class, Scope, Verdict};
use crate::observer::{Event, Interest, Observers};
use crate::protection::RetryBudget;
use crate::protection::breaker::{Change, CircuitBreaker, CircuitBreakerState, Probe, Proof, Round};
use crate::protection::guard::{DeadLetterGuard, Watch};
use crate::protection::sliding_window::SuccessCounter;
use crate::record::Record;
use crate::retention::Retention;

/// The protections of one processor.
#[derive(Debug)]
pub(super) struct Protection {
    pub(super) breakers: Vec<Named>,
    pub(super) budget: Option<RetryBudget>,
    pub(super) guard: Option<DeadLetterGuard>,
    pub(super) observers: Observers,
}

/// A breaker, and the dependency that it is for; the one without is for all that have none of their own.
#[derive(Debug)]
pub(super) struct Named {
    pub(super) dependency: Option<String>,
    pub(super) breaker: CircuitBreaker,
}

/// What the records of one run of a shard share, and what stands against their attempts.
pub(crate) struct Run {
    protection: Arc<Protection>,
    /// An idempotency store knows what is processed.
    remembers: bool,
    after_dead_letter: DeadLetterPolicy,
    /// What was begun with records that a part of it has given back.
    interrupted: Option<Arc<ReleasedRecords>>,
    pub(super) tally: Arc<SuccessCounter>,
    pub(super) guard: Option<Arc<Watch>>,
    /// Whether a held record that the stream is about to drop may be given up.
    lets_expire: bool,
    /// Whether such records are given up now.
    gives_up: AtomicBool,
    /// Of the stream.
    pub(super) retention: Retention,
    /// It is a part of another, which counts what happened in all of them.
    goes_on: bool,
    /// When it must be over, if it must.
    pub(crate) within: Option<Within>,
    /// Nothing new begins.
    stopping: AtomicBool,
}

/// When a run must be over.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Within {
    /// No attempt runs past it.
    pub(crate) attempts_until: Instant,
    /// By when letters and completions must be written.
    pub(crate) finish_by: Instant,
}

impl Drop for Run {
    fn drop(&mut self) {
        // Unless it goes on in another.
        if !self.goes_on {
            self.tally.end();
        }
    }
}

impl Run {
    /// Begins a run with these settings: whether a held record may be given up before the stream drops it, whether an
    /// idempotency store knows what is processed, and what a dead letter does to the shard.
    pub(super) fn begin(
        protection: Arc<Protection>,
        (lets_expire, remembers, after_dead_letter): (bool, bool, DeadLetterPolicy),
        retention: Retention,
    ) -> Run {
        let tally = Arc::new(SuccessCounter::default());
        for named in &protection.breakers {
            named.breaker.enlist(tally.clone());
        }
        if let Some(budget) = &protection.budget {
            budget.enlist(tally.clone());
        }
        let guard = protection.guard.as_ref();
        Run {
            guard: guard.map(|guard| Arc::new(guard.watch(tally.clone()))),
            protection,
            remembers,
            after_dead_letter,
            interrupted: None,
            tally,
            lets_expire,
            gives_up: AtomicBool::new(false),
            retention,
            goes_on: false,
            within: None,
            stopping: AtomicBool::new(false),
        }
    }

    /// A part of it that must be over by then. What happened in the parts before is known in it.
    pub(super) fn part(
        &self,
        within: Within,
        retention: Retention,
        interrupted: Arc<ReleasedRecords>,
    ) -> Run {
        Run {
            protection: self.protection.clone(),
            remembers: self.remembers,
            // There is no way to stop.
            after_dead_letter: DeadLetterPolicy::Continue,
            interrupted: Some(interrupted),
            tally: self.tally.clone(),
            guard: self.guard.clone(),
            lets_expire: false,
            gives_up: AtomicBool::new(false),
            retention,
            goes_on: true,
            within: Some(within),
            stopping: AtomicBool::new(false),
        }
    }

    pub(crate) fn observers(&self) -> &Observers {
        &self.protection.observers
    }

    /// Whether an idempotency store knows what is processed.
    pub(crate) fn remembers(&self) -> bool {
        self.remembers
    }

    /// What a dead letter does to the shard.
    pub(crate) fn after_dead_letter(&self) -> DeadLetterPolicy {
        self.after_dead_letter
    }

    /// When its last attempt ends, if it must be over by some time.
    #[inline]
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.within.map(|within| within.attempts_until)
    }

    /// Whether it must be over by some time.
    pub(crate) fn is_part(&self) -> bool {
        self.within.is_some()
    }

    /// Whether every breaker is closed: any attempt may begin.
    #[inline]
    pub(crate) fn is_clear(&self) -> bool {
        self.protection.is_clear()
    }

    /// The rounds that a probe made now would take part in; `None`: none can be made.
    pub(crate) fn rounds(&self) -> Option<Vec<Round>> {
        self.protection.rounds()
    }

    /// Allows an attempt, if there is no breaker against it.
    pub(crate) fn pass(&self) -> Option<Pass> {
        self.protection.pass()
    }

    /// Returns when a breaker that is not closed has changed. What changes after the call is not missed.
    pub(crate) fn change(&self) -> impl Future<Output = ()> + Send + '_ {
        self.protection.change()
    }

    /// Reports that the dead-letter guard has resumed the shard, once for each time that the guard stopped it.
    pub(crate) fn tell_resumed(&self) {
        self.protection.tell_resumed(self);
    }

    /// Takes records apart that are given back. If they are delivered to another part of the run, they go on where they
    /// were.
    pub(crate) fn give_back(&self, group: Group) -> Vec<Record> {
        let records = group.into_records().map(|(record, state)| {
            if let (Some(interrupted), Some(state)) = (&self.interrupted, state) {
                interrupted.keep(&record, state);
            }
            record
        });
        records.collect()
    }

    /// Whether the dead-letter guard has stopped the shard.
    #[inline]
    pub(crate) fn is_stopped(&self) -> bool {
        self.guard.as_ref().is_some_and(|guard| guard.is_stopped())
    }

    /// Whether the dead-letter guard has resumed the shard, and that is not reported yet.
    #[inline]
    pub(crate) fn was_stopped(&self) -> bool {
        self.guard.as_ref().is_some_and(|guard| guard.was_stopped())
    }

    /// Returns when the dead-letter guard resumes its shards, after this call.
    pub(crate) async fn resumed(&self) {
        match &self.guard {
            Some(guard) => guard.resumed().await,
            None => std::future::pending().await,
        }
    }

    /// Whether records are given up that must not be held any longer.
    #[inline]
    pub(crate) fn gives_up(&self) -> bool {
        self.gives_up.load(Ordering::Relaxed)
    }

    /// From now on, or no more.
    pub(crate) fn give_up_expiring(&self, gives_up: bool) {
        self.gives_up.store(gives_up, Ordering::Relaxed);
    }

    /// Whether it must be over by then.
    pub(crate) fn is_over_by(&self, time: Instant) -> bool {
        self.within.is_some_and(|within| time >= within.attempts_until)
    }

    /// Nothing new begins, and what only tells others is not waited for.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Whether a record must not be held any longer.
    pub(crate) fn is_expiring(&self, record: &Record) -> bool {
        self.gives_up() && self.held_for_at_most(record).is_some_and(|left| left.is_zero())
    }

    /// How much longer a record may be held, if that has an end.
    pub(super) fn held_for_at_most(&self, record: &Record) -> Option<Duration> {
        let give_up_age = self.lets_expire.then(|| self.retention.give_up_age())??;
        Some(give_up_age.saturating_sub(record.age()?))
    }
}

/// Allows one attempt.
#[must_use]
#[derive(Debug)]
pub(crate) struct Pass {
    /// None where every breaker is closed.
    probes: Vec<Probe>,
}

impl Pass {
    /// For an attempt that begins while every breaker is closed.
    pub(crate) const FREE: Pass = Pass { probes: Vec::new() };

    pub(crate) fn is_free(&self) -> bool {
        self.probes.is_empty()
    }

    pub(super) fn rounds(&self) -> Vec<Round> {
        self.probes.iter().map(Probe::round).collect()
    }
}

impl Protection {
    /// Whether every breaker is closed: any attempt may begin.
    #[inline]
    pub(super) fn is_clear(&self) -> bool {
        self.breakers.iter().all(|named| named.breaker.is_closed())
    }

    /// Whether a breaker is open: nothing begins, and nothing is given up.
    pub(super) fn is_open(&self) -> bool {
        let open = |named: &Named| matches!(named.breaker.state(), CircuitBreakerState::Open);
        self.breakers.iter().any(open)
    }

    /// The rounds that a probe made now would take part in; `None`: none can be made.
    pub(super) fn rounds(&self) -> Option<Vec<Round>> {
        let unclosed = self.breakers.iter().filter(|named| !named.breaker.is_closed());
        unclosed.map(|named| named.breaker.round()).collect()
    }

    /// Allows an attempt, if there is no breaker against it.
    pub(super) fn pass(&self) -> Option<Pass> {
        let unclosed = self.breakers.iter().filter(|named| !named.breaker.is_closed());
        let probes: Option<Vec<Probe>> = unclosed.map(|named| named.breaker.probe()).collect();
        probes.map(|probes| Pass { probes })
    }

    /// Returns when a breaker that is not closed has changed. What changes after the call is not missed.
    pub(super) fn change(&self) -> impl Future<Output = ()> + Send + '_ {
        let unclosed = self.breakers.iter().filter(|named| !named.breaker.is_closed());
        let mut waits: Vec<(&Named, BoxFuture<'_, ()>)> = unclosed
            .map(|named| {
                let wait: BoxFuture<'_, ()> = Box::pin(named.breaker.change());
                (named, wait)
            })
            .collect();
        poll_fn(move |cx| {
            let mut changed = waits.is_empty();
            for (named, wait) in &mut waits {
                if wait.as_mut().poll(cx).is_ready() {
                    changed = true;
                    self.tell(named, named.breaker.tick());
                }
            }
            if changed { Poll::Ready(()) } else { Poll::Pending }
        })
    }

    /// The breaker that a failure counts for.
    pub(super) fn blamed(&self, verdict: &Verdict) -> Option<&CircuitBreaker> {
        match (verdict.scope(), verdict.class()) {
            (Scope::Dependency, _) | (Scope::Unknown, Class::Transient) => {}
            _ => return None,
        }
        let own = self
            .breakers
            .iter()
            .find(|named| named.dependency.is_some() && named.dependency.as_deref() == verdict.dependency());
        own.map(|named| &named.breaker).or_else(|| self.own_breaker())
    }

    /// The one that is for no dependency in particular.
    pub(super) fn own_breaker(&self) -> Option<&CircuitBreaker> {
        let own = self.breakers.iter().find(|named| named.dependency.is_none());
        own.map(|named| &named.breaker)
    }

    /// An attempt succeeded.
    pub(super) fn succeeded(&self, record: &Record, pass: Pass) {
        self.showed(record, pass, |_| Proof::Works);
    }

    /// An attempt failed. `others_succeed`: since the record failed first.
    pub(super) fn failed(
        &self,
        record: &Record,
        pass: Pass,
        blamed: Option<&CircuitBreaker>,
        others_succeed: bool,
    ) {
        if !pass.is_free() {
            // What failed for another reason has shown nothing.
            self.showed(record, pass, |breaker| match blamed {
                Some(blamed) if blamed.is(breaker) && !others_succeed => Proof::Fails,
                _ => Proof::Nothing,
            });
        } else if let Some(breaker) = blamed {
            let change = breaker.failed(record, others_succeed);
            self.tell_of(breaker, change);
        }
    }

    /// Reports that the dead-letter guard has resumed the shard, once for each time that the guard stopped it.
    pub(super) fn tell_resumed(&self, run: &Run) {
        let Some(record) = run.guard.as_ref().and_then(|guard| guard.take_resumption()) else {
            return;
        };
        if self.observers.want(Interest::FAILURES) {
            self.observers
                .tell(&Event::DeadLetterGuardResumed { record: &record });
        }
    }

    fn showed(&self, record: &Record, pass: Pass, proof: impl Fn(&CircuitBreaker) -> Proof) {
        for probe in pass.probes {
            let breaker = probe.breaker().clone();
            let proof = proof(&breaker);
            self.tell_of(&breaker, probe.showed(proof, record));
        }
    }

    fn tell_of(&self, breaker: &CircuitBreaker, change: Option<Change>) {
        if let Some(named) = self.breakers.iter().find(|named| named.breaker.is(breaker)) {
            self.tell(named, change);
        }
    }

    fn tell(&self, named: &Named, change: Option<Change>) {
        let Some(change) = change.filter(|_| self.observers.want(Interest::FAILURES)) else {
            return;
        };
        let dependency = named.dependency.as_deref();
        self.observers.tell(&match change {
            Change::Opened {
                failures,
                attempts,
                pause,
            } => Event::BreakerOpened {
                dependency,
                failures,
                attempts,
                pause,
            },
            Change::HalfOpened => Event::BreakerHalfOpened { dependency },
            Change::Closed { after } => Event::BreakerClosed { dependency, after },
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Shards come and go for years.
    #[test]
    fn runs_that_have_ended_are_forgotten() {
        let protection = Arc::new(Protection {
            breakers: vec![Named {
                dependency: None,
                breaker: CircuitBreaker::default(),
            }],
            budget: Some(RetryBudget::default()),
            guard: Some(DeadLetterGuard::default()),
            observers: Observers::new(Vec::new()),
        });
        let begin = || {
            let settings = (false, false, DeadLetterPolicy::Continue);
            Run::begin(protection.clone(), settings, Retention::default())
        };
        let run = begin();
        let tally = Arc::downgrade(&run.tally);
        drop(run);
        let _next = begin();
        assert!(tally.upgrade().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_fails_where_others_succeed_shows_nothing() {
        for (others_succeed, state) in [
            (true, CircuitBreakerState::HalfOpen),
            (false, CircuitBreakerState::Open),
        ] {
            let breaker = CircuitBreaker::builder().probes(1).keys_in_a_row(1).make();
            let protection = Protection {
                breakers: vec![Named {
                    dependency: None,
                    breaker: breaker.clone(),
                }],
                budget: None,
                guard: None,
                observers: Observers::new(Vec::new()),
            };
            let record = Record::builder("s", "shardId-0".into(), 1.into()).build();
            protection.failed(&record, Pass::FREE, Some(&breaker), false);
            protection.change().await;
            let pass = protection.pass().expect("its pause is over");
            protection.failed(&record, pass, Some(&breaker), others_succeed);
            assert_eq!(breaker.state(), state);
        }
    }
}
