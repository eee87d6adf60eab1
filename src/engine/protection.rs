//! The protections that all records of a processor share: circuit breakers, retry budget, dead-letter guard.

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
use crate::observer::{Event, Interest, Observers, ProtectionEvent, RecordEvent};
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

/// A breaker and its dependency. The breaker without a dependency counts all other failures.
#[derive(Debug)]
pub(super) struct Named {
    pub(super) dependency: Option<String>,
    pub(super) breaker: CircuitBreaker,
}

/// The state that the records of one run of a shard share, and the protections that admit their attempts.
pub(crate) struct Run {
    protection: Arc<Protection>,
    settings: RunSettings,
    /// The retry states of records that an earlier part of the run released before they were settled.
    interrupted: Option<Arc<ReleasedRecords>>,
    pub(super) tally: Arc<SuccessCounter>,
    pub(super) guard: Option<Arc<Watch>>,
    /// True while held records that are about to expire become dead letters.
    gives_up: AtomicBool,
    /// The retention of the stream.
    pub(super) retention: Retention,
    /// True for a part of another run. All parts share that run's counter of successes.
    goes_on: bool,
    /// The time limits of the run, if there are any.
    pub(crate) within: Option<Within>,
    /// True once the run begins no new steps.
    stopping: AtomicBool,
}

/// The settings of a run.
#[derive(Debug, Clone, Copy)]
pub(super) struct RunSettings {
    /// True if a held record may become a dead letter before the stream drops it.
    pub(super) lets_expire: bool,
    /// True if an idempotency store remembers which records are processed.
    pub(super) remembers: bool,
    /// The effect of a dead letter on the shard.
    pub(super) after_dead_letter: DeadLetterPolicy,
}

/// The time limits of a run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Within {
    /// The latest end of an attempt: no attempt runs past this time.
    pub(crate) attempts_until: Instant,
    /// The time by which dead letters and completions must be written.
    pub(crate) finish_by: Instant,
}

impl Drop for Run {
    fn drop(&mut self) {
        // A part does not end the counter: later parts continue with it.
        if !self.goes_on {
            self.tally.end();
        }
    }
}

impl Run {
    /// Begins a run.
    pub(super) fn begin(protection: Arc<Protection>, settings: RunSettings, retention: Retention) -> Run {
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
            settings,
            interrupted: None,
            tally,
            gives_up: AtomicBool::new(false),
            retention,
            goes_on: false,
            within: None,
            stopping: AtomicBool::new(false),
        }
    }

    /// Creates a part of this run with these time limits. The part shares the run's counters and its guard,
    /// and resumes the `interrupted` records of earlier parts.
    pub(super) fn part(
        &self,
        within: Within,
        retention: Retention,
        interrupted: Arc<ReleasedRecords>,
    ) -> Run {
        Run {
            protection: self.protection.clone(),
            settings: RunSettings {
                lets_expire: false,
                // Lambda has no way to stop a shard.
                after_dead_letter: DeadLetterPolicy::Continue,
                ..self.settings
            },
            interrupted: Some(interrupted),
            tally: self.tally.clone(),
            guard: self.guard.clone(),
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

    /// Returns whether an idempotency store remembers which records are processed.
    pub(crate) fn remembers(&self) -> bool {
        self.settings.remembers
    }

    /// Returns what a dead letter does to the shard.
    pub(crate) fn after_dead_letter(&self) -> DeadLetterPolicy {
        self.settings.after_dead_letter
    }

    /// Returns the latest end of an attempt, if the run has time limits.
    #[inline]
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.within.map(|within| within.attempts_until)
    }

    /// Returns true if the run has time limits, as a part of another run does.
    pub(crate) fn is_part(&self) -> bool {
        self.within.is_some()
    }

    /// Returns true if every breaker is closed, so that any attempt may begin.
    #[inline]
    pub(crate) fn is_clear(&self) -> bool {
        self.protection.is_clear()
    }

    /// Returns the rounds in which a probe made now would take part. Returns `None` if no probe can be made.
    pub(crate) fn rounds(&self) -> Option<Vec<Round>> {
        self.protection.rounds()
    }

    /// Admits one attempt. Returns `None` if a breaker is open or has no probe left.
    pub(crate) fn permission(&self) -> Option<Permission> {
        self.protection.permission()
    }

    /// Waits until a breaker that is not closed has changed. A change after this call is not missed.
    pub(crate) fn change(&self) -> impl Future<Output = ()> + Send + '_ {
        self.protection.change()
    }

    /// Reports that the dead-letter guard has resumed the shard, once for each time that the guard stopped
    /// it.
    pub(crate) fn tell_resumed(&self) {
        self.protection.tell_resumed(self);
    }

    /// Splits a released group into its records. In a part of a run their retry states are kept, so that they
    /// resume where they were when another part receives them.
    pub(crate) fn give_back(&self, group: Group) -> Vec<Record> {
        let records = group.into_records().map(|(record, state)| {
            if let (Some(interrupted), Some(state)) = (&self.interrupted, state) {
                interrupted.keep(&record, state);
            }
            record
        });
        records.collect()
    }

    /// Returns true while the dead-letter guard stops the shard.
    #[inline]
    pub(crate) fn is_stopped(&self) -> bool {
        self.guard.as_ref().is_some_and(|guard| guard.is_stopped())
    }

    /// Returns true if the dead-letter guard has resumed the shard and the resumption is not reported yet.
    #[inline]
    pub(crate) fn was_stopped(&self) -> bool {
        self.guard.as_ref().is_some_and(|guard| guard.was_stopped())
    }

    /// Waits until the dead-letter guard next resumes its shards.
    pub(crate) async fn resumed(&self) {
        match &self.guard {
            Some(guard) => guard.resumed().await,
            None => std::future::pending().await,
        }
    }

    /// Returns true while held records that are about to expire become dead letters.
    #[inline]
    pub(crate) fn gives_up(&self) -> bool {
        self.gives_up.load(Ordering::Relaxed)
    }

    /// Sets whether held records that are about to expire become dead letters.
    pub(crate) fn give_up_expiring(&self, gives_up: bool) {
        self.gives_up.store(gives_up, Ordering::Relaxed);
    }

    /// Returns true if no attempt may run at this time any more.
    pub(crate) fn is_over_by(&self, time: Instant) -> bool {
        self.within.is_some_and(|within| time >= within.attempts_until)
    }

    /// Marks the run as stopping. From now on a completion that the idempotency store does not accept is not
    /// retried.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Returns true once the run begins no new steps.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Returns true if this record must not be held any longer, because it is about to expire.
    pub(crate) fn is_expiring(&self, record: &Record) -> bool {
        self.gives_up() && self.held_for_at_most(record).is_some_and(|left| left.is_zero())
    }

    /// Returns how much longer a record may be held, if a limit applies and is known.
    pub(super) fn held_for_at_most(&self, record: &Record) -> Option<Duration> {
        let give_up_age = self
            .settings
            .lets_expire
            .then(|| self.retention.give_up_age())??;
        Some(give_up_age.saturating_sub(record.age()?))
    }
}

/// Permission for one attempt.
#[must_use]
#[derive(Debug)]
pub(crate) struct Permission {
    /// The probe of each breaker that is not closed; empty if all are closed.
    probes: Vec<Probe>,
}

impl Permission {
    /// The permission of an attempt that begins while every breaker is closed.
    pub(crate) const FREE: Permission = Permission { probes: Vec::new() };

    pub(crate) fn is_free(&self) -> bool {
        self.probes.is_empty()
    }

    pub(super) fn rounds(&self) -> Vec<Round> {
        self.probes.iter().map(Probe::round).collect()
    }
}

impl Protection {
    /// Returns true if every breaker is closed, so that any attempt may begin.
    #[inline]
    pub(super) fn is_clear(&self) -> bool {
        self.breakers.iter().all(|named| named.breaker.is_closed())
    }

    /// Returns true if a breaker is open: no attempt begins, and no record is given up.
    pub(super) fn is_open(&self) -> bool {
        let open = |named: &Named| matches!(named.breaker.state(), CircuitBreakerState::Open);
        self.breakers.iter().any(open)
    }

    /// Returns the rounds in which a probe made now would take part. Returns `None` if no probe can be made.
    pub(super) fn rounds(&self) -> Option<Vec<Round>> {
        let unclosed = self.breakers.iter().filter(|named| !named.breaker.is_closed());
        unclosed.map(|named| named.breaker.round()).collect()
    }

    /// Admits one attempt. Returns `None` if a breaker is open or has no probe left.
    pub(super) fn permission(&self) -> Option<Permission> {
        let unclosed = self.breakers.iter().filter(|named| !named.breaker.is_closed());
        let probes: Option<Vec<Probe>> = unclosed.map(|named| named.breaker.probe()).collect();
        probes.map(|probes| Permission { probes })
    }

    /// Waits until a breaker that is not closed has changed. A change after this call is not missed.
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

    /// Returns the breaker that a failure counts for: its dependency's own, or else the processor's. Returns
    /// `None` for a failure that counts for no breaker.
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

    /// Returns the processor's breaker, which belongs to no particular dependency.
    pub(super) fn own_breaker(&self) -> Option<&CircuitBreaker> {
        let own = self.breakers.iter().find(|named| named.dependency.is_none());
        own.map(|named| &named.breaker)
    }

    /// Counts a successful attempt.
    pub(super) fn succeeded(&self, record: &Record, permission: Permission) {
        self.showed(record, permission, |_| Proof::Works);
    }

    /// Counts a failed attempt. `others_succeed`: other records have succeeded since this record first
    /// failed.
    pub(super) fn failed(
        &self,
        record: &Record,
        permission: Permission,
        blamed: Option<&CircuitBreaker>,
        others_succeed: bool,
    ) {
        if !permission.is_free() {
            // A failure for another reason proves nothing about this breaker's dependency.
            self.showed(record, permission, |breaker| match blamed {
                Some(blamed) if blamed.is(breaker) && !others_succeed => Proof::Fails,
                _ => Proof::Nothing,
            });
        } else if let Some(breaker) = blamed {
            let change = breaker.failed(record, others_succeed);
            self.tell_of(breaker, change);
        }
    }

    /// Reports that the dead-letter guard has resumed the shard, once for each time that the guard stopped
    /// it.
    pub(super) fn tell_resumed(&self, run: &Run) {
        let Some(record) = run.guard.as_ref().and_then(|guard| guard.take_resumption()) else {
            return;
        };
        if self.observers.want(Interest::FAILURES) {
            self.observers.tell(&Event::Record {
                record: &record,
                event: RecordEvent::DeadLetterGuardResumed,
            });
        }
    }

    fn showed(&self, record: &Record, permission: Permission, proof: impl Fn(&CircuitBreaker) -> Proof) {
        for probe in permission.probes {
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
            } => Event::Protection(ProtectionEvent::BreakerOpened {
                dependency,
                failures,
                attempts,
                pause,
            }),
            Change::HalfOpened => Event::Protection(ProtectionEvent::BreakerHalfOpened { dependency }),
            Change::Closed { after } => {
                Event::Protection(ProtectionEvent::BreakerClosed { dependency, after })
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A process may begin and end runs for years: ended runs must not accumulate.
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
            let settings = RunSettings {
                lets_expire: false,
                remembers: false,
                after_dead_letter: DeadLetterPolicy::Continue,
            };
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
            protection.failed(&record, Permission::FREE, Some(&breaker), false);
            protection.change().await;
            let permission = protection.permission().expect("the breaker's pause is over");
            protection.failed(&record, permission, Some(&breaker), others_succeed);
            assert_eq!(breaker.state(), state);
        }
    }
}
