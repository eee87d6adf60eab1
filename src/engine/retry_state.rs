//! The retry state of a record that has failed and is not settled yet.

use std::time::Duration;

use tokio::time::Instant;
use tracing::Span;

use super::claims::WaitsFor;
use crate::dead_letter::{Attempts, DeadLetter, Reason};
use crate::failure::{Failure, Scope};
use crate::idempotency::Claim;
use crate::protection::breaker::{CircuitBreaker, Round};
use crate::protection::{Backoff, after};
use crate::record::Record;
use crate::settlement::Unsettled;

/// The backoff of a record whose retry the budget refuses.
pub(super) const RECHECK: Backoff = Backoff::exponential();

/// The retry state of a record that has failed and is not settled yet.
pub(super) struct RetryState {
    /// All calls that were made.
    pub(super) attempts: Attempts,
    /// The number of calls that counted as attempts of the retry policy.
    pub(super) counted: u32,
    /// The time of the counted attempts and of the backoffs between them.
    pub(super) spent: Duration,
    pub(super) delay: Duration,
    pub(super) panics: u32,
    /// The breaker that the record's failures count for.
    failing: Option<Failing>,
    pub(super) hold: Option<Hold>,
    /// The start of the record's first hold. `hold_at_most` limits the time since then, across all holds.
    held_since: Option<Instant>,
    /// The state of the breaker when the last attempt began.
    began: Began,
    /// The rounds of probes in which the record last took part.
    pub(super) probed: Vec<Round>,
    /// The number of times in a row that the budget refused the retry.
    pub(super) refused: u32,
    /// The claim of the record's key, if one has been created.
    pub(super) claim: Option<Claim>,
    /// The store or claim that the record waits for, and the number of times in a row that it has waited.
    pub(super) waits: Option<(WaitsFor, u32)>,
    /// True for the state of a group, kept with a record that was released from the group.
    pub(super) is_shared: bool,
    /// The span of the record's life.
    pub(super) span: Option<Box<Span>>,
    pub(super) phase: Phase,
}

/// The breaker that a record's failures count for.
#[derive(Clone)]
struct Failing {
    breaker: CircuitBreaker,
    /// The breaker's successes when the record first failed in this count of attempts.
    successes: u64,
    /// The breaker's successes when the record first failed with [`Scope::Dependency`]. `None`: it has not.
    successes_when_blamed: Option<u64>,
}

impl Failing {
    fn none_has_succeeded(&self) -> bool {
        let blamed = self.successes_when_blamed;
        blamed.is_some_and(|successes| self.breaker.successes() <= successes)
    }
}

/// The state of a record's breaker when an attempt begins. An attempt that hangs may end long after an
/// outage.
#[derive(Clone, Copy, Default)]
struct Began {
    /// Another record had failed since the last success.
    others_had_failed: bool,
    /// No other record had succeeded since this record first failed with [`Scope::Dependency`].
    none_had_succeeded: bool,
}

/// The hold of a record while an outage is suspected.
#[derive(Clone)]
pub(super) struct Hold {
    cause: Cause,
    /// The number of probes with this record so far.
    pub(super) probes: u32,
}

#[derive(Clone, Copy)]
enum Cause {
    /// A breaker is not closed.
    Breaker,
    /// Other records fail as well, or the error blames the dependency. `successes`: the breaker's successes
    /// when the hold began.
    Suspicion { successes: u64 },
}

impl Hold {
    pub(super) fn by_breaker() -> Self {
        Hold {
            cause: Cause::Breaker,
            probes: 0,
        }
    }

    pub(super) fn suspected(breaker: &CircuitBreaker) -> Self {
        let successes = breaker.successes();
        Hold {
            cause: Cause::Suspicion { successes },
            ..Hold::by_breaker()
        }
    }

    pub(super) fn is_by_breaker(&mut self) {
        self.cause = Cause::Breaker;
    }

    /// Returns true if another record has succeeded since the hold began. A breaker ends its own holds.
    pub(super) fn is_over(&self, breaker: &CircuitBreaker) -> bool {
        match self.cause {
            Cause::Breaker => false,
            Cause::Suspicion { successes } => breaker.successes() > successes,
        }
    }
}

pub(super) enum Phase {
    /// The record gets another attempt, at this time.
    Retry { at: Instant },
    /// The record becomes a dead letter without another attempt.
    GivenUp(Reason),
    /// The verdict is reached and kept: only the dead letter is left to write.
    Letter(Box<(DeadLetter, Failure)>),
}

impl RetryState {
    pub(super) fn new() -> Self {
        RetryState {
            attempts: Attempts::default(),
            counted: 0,
            spent: Duration::ZERO,
            delay: Duration::ZERO,
            panics: 0,
            failing: None,
            hold: None,
            held_since: None,
            began: Began::default(),
            probed: Vec::new(),
            refused: 0,
            claim: None,
            waits: None,
            is_shared: false,
            span: None,
            phase: Phase::Retry { at: Instant::now() },
        }
    }

    /// Creates the state of a record that becomes a dead letter without another attempt.
    pub(super) fn given_up(state: Option<Box<RetryState>>, reason: Reason) -> Box<RetryState> {
        let mut state = state.unwrap_or_else(|| Box::new(RetryState::new()));
        state.phase = Phase::GivenUp(reason);
        state
    }

    /// Creates the state of one record of a group, without its attempts.
    pub(super) fn part(&self) -> Box<Self> {
        Box::new(RetryState {
            attempts: Attempts::default(),
            counted: self.counted,
            spent: self.spent,
            delay: self.delay,
            // The panic may have been another record's fault.
            panics: 0,
            failing: self.failing.clone(),
            hold: None,
            held_since: None,
            began: Began::default(),
            probed: self.probed.clone(),
            refused: self.refused,
            claim: None,
            waits: self.waits,
            is_shared: false,
            span: None,
            phase: Phase::Retry {
                at: self.due().unwrap_or_else(Instant::now),
            },
        })
    }

    /// Restores the full count of attempts, because the failures so far had another cause.
    pub(super) fn begin_again(&mut self) {
        (self.counted, self.spent, self.panics) = (0, Duration::ZERO, 0);
        self.hold = None;
    }

    /// Forgets the breaker, because its successes so far say nothing about the attempts to come.
    pub(super) fn forget_breaker(&mut self) {
        self.failing = None;
    }

    /// Takes over the breaker that the failures of the record's group counted for.
    pub(super) fn share_breaker(&mut self, group: &RetryState) {
        self.failing = group.failing.clone();
    }

    pub(super) fn is_due_later(&self) -> bool {
        self.due().is_some_and(|due| due > Instant::now())
    }

    /// Returns when the next step is due. `None`: at once.
    pub(super) fn due(&self) -> Option<Instant> {
        match self.phase {
            Phase::Retry { at } => Some(at),
            Phase::GivenUp(_) | Phase::Letter(_) => None,
        }
    }

    /// Returns true if the next step calls the processor.
    pub(super) fn calls_handler(&self) -> bool {
        matches!(self.phase, Phase::Retry { .. })
    }

    /// Returns the reason that is reported if the record is released now.
    pub(super) fn why_unsettled(&self) -> Unsettled {
        match (self.waits, &self.hold) {
            (Some((WaitsFor::Claim, _)), _) => Unsettled::ClaimedElsewhere,
            (Some((WaitsFor::Store, _)), _) => Unsettled::StoreDown,
            (None, Some(_)) => Unsettled::BreakerOpen,
            (None, None) => Unsettled::Deadline,
        }
    }

    /// Returns true if the record took part in one of these rounds of probes. Other records then come first.
    pub(super) fn has_probed(&self, rounds: &[Round]) -> bool {
        self.probed.iter().any(|round| rounds.contains(round))
    }

    /// Notes that a failure of this scope counts for this breaker. A change of the breaker ends the hold.
    pub(super) fn meets(&mut self, breaker: Option<&CircuitBreaker>, scope: Scope) {
        let is_same = |failing: &Failing| breaker.is_some_and(|breaker| failing.breaker.is(breaker));
        if !self.failing.as_ref().is_some_and(is_same) {
            if self.failing.is_some() {
                self.hold = None;
            }
            self.failing = breaker.map(|breaker| Failing {
                breaker: breaker.clone(),
                successes: breaker.successes(),
                successes_when_blamed: None,
            });
        }
        // Failures for another reason say nothing about the dependency: the record may have been the first to
        // fail in an outage that began after them.
        if let (Some(failing), Scope::Dependency) = (&mut self.failing, scope) {
            let successes = failing.breaker.successes();
            failing.successes_when_blamed.get_or_insert(successes);
        }
    }

    /// Begins a hold, because an outage is suspected.
    pub(super) fn suspect(&mut self, breaker: &CircuitBreaker) {
        self.hold = Some(Hold::suspected(breaker));
        self.held_since.get_or_insert_with(Instant::now);
    }

    /// Returns the time since the first hold began, across all holds.
    pub(super) fn held_for(&mut self) -> Duration {
        self.held_since.get_or_insert_with(Instant::now).elapsed()
    }

    /// Notes the state of the breaker at the start of an attempt.
    pub(super) fn attempt_begins(&mut self, record: &Record) {
        self.began = match &self.failing {
            None => Began::default(),
            Some(failing) => Began {
                others_had_failed: failing.breaker.has_failed_beside(record),
                none_had_succeeded: failing.none_has_succeeded(),
            },
        };
    }

    /// Returns true if an outage was suspected when the last attempt began.
    pub(super) fn was_suspected(&self, scope: Scope) -> bool {
        match scope {
            Scope::Dependency => self.began.none_had_succeeded,
            _ => self.began.others_had_failed,
        }
    }

    /// Returns true if other records have succeeded at this breaker since the record first failed in this
    /// count of attempts.
    pub(super) fn have_others_succeeded(&self, breaker: &CircuitBreaker) -> bool {
        let failing = self.failing.as_ref();
        failing.is_some_and(|failing| breaker.successes() > failing.successes)
    }

    /// Returns true if no other record has succeeded at the record's breaker since the record first failed with
    /// [`Scope::Dependency`].
    pub(super) fn is_dependency_blamed(&self) -> bool {
        self.failing.as_ref().is_some_and(Failing::none_has_succeeded)
    }

    /// Returns true if the record is held although its breaker is closed. Its calls then do not count.
    pub(super) fn is_suspected(&self) -> bool {
        let hold = self.hold.as_ref();
        hold.is_some_and(|hold| matches!(hold.cause, Cause::Suspicion { .. }))
    }

    pub(super) fn retry_after(mut self: Box<Self>, delay: Duration) -> Box<Self> {
        self.phase = Phase::Retry {
            at: after(Instant::now(), delay),
        };
        self
    }
}
