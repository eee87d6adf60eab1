//! The retry state of a record that has failed and is not settled yet.

use std::time::Duration;

use tokio::time::Instant;
use tracing::Span;

use super::claims::WaitsFor;
use crate::dead_letter::{Attempts, DeadLetter, Reason};
use crate::failure::{Failure, Scope};
use crate::idempotency::Claim;
use crate::protection::Backoff;
use crate::protection::breaker::{CircuitBreaker, Round};
use crate::record::Record;
use crate::settlement::Unsettled;

/// Between two tries of a record whose retry the budget refused.
pub(super) const RECHECK: Backoff = Backoff::exponential();

/// The retry state of a record that has failed and is not settled yet.
pub(super) struct RetryState {
    /// All calls that were made.
    pub(super) attempts: Attempts,
    /// How many attempts are used up of those that the policy gives.
    pub(super) counted: u32,
    /// The time of those, and of the backoffs between.
    pub(super) spent: Duration,
    pub(super) delay: Duration,
    pub(super) panics: u32,
    /// The breaker that its failures count for.
    failing: Option<Failing>,
    pub(super) hold: Option<Hold>,
    /// When it was held first. Two holds with a short time between are one to whoever waits for the record.
    held_since: Option<Instant>,
    /// What was known when its last attempt began.
    began: Began,
    /// The rounds of probes that it has taken part in last.
    pub(super) probed: Vec<Round>,
    /// How often in a row the budget refused its retry.
    pub(super) refused: u32,
    /// Of its key, as far as it was made.
    pub(super) claim: Option<Claim>,
    /// What it waits for before its next attempt, other than its time, and how often in a row it did.
    pub(super) waits: Option<(WaitsFor, u32)>,
    /// It is a group's, of one of whose records it was given back.
    pub(super) is_shared: bool,
    /// Of the record's life.
    pub(super) span: Option<Box<Span>>,
    pub(super) phase: Phase,
}

/// The breaker that a record's failures count for.
#[derive(Clone)]
struct Failing {
    breaker: CircuitBreaker,
    /// The successes there when the record failed first in this count of attempts.
    successes: u64,
}

/// What is known of a record's breaker when an attempt begins. One that hangs may end long after an outage.
#[derive(Clone, Copy, Default)]
struct Began {
    /// Another record had failed since the last success.
    others_had_failed: bool,
    /// No other had succeeded since the record failed first.
    none_had_succeeded: bool,
}

/// A record that is held, as an outage is suspected.
#[derive(Clone)]
pub(super) struct Hold {
    cause: Cause,
    /// How often it was tried meanwhile.
    pub(super) probes: u32,
}

#[derive(Clone, Copy)]
enum Cause {
    /// A breaker is not closed.
    Breaker,
    /// Other records fail as well, or the error says so. The successes there so far.
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

    /// Whether another record has succeeded since.
    pub(super) fn is_over(&self, breaker: &CircuitBreaker) -> bool {
        match self.cause {
            Cause::Breaker => false,
            Cause::Suspicion { successes } => breaker.successes() > successes,
        }
    }
}

pub(super) enum Phase {
    /// Another attempt, at this time.
    Retry { at: Instant },
    /// A letter, without another attempt.
    GivenUp(Reason),
    /// The verdict is reached and kept: only the letter is left to write.
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

    /// Of a record that is not tried, or not any more.
    pub(super) fn given_up(state: Option<Box<RetryState>>, reason: Reason) -> Box<RetryState> {
        let mut state = state.unwrap_or_else(|| Box::new(RetryState::new()));
        state.phase = Phase::GivenUp(reason);
        state
    }

    /// For one of those that have been through it together, but for its attempts.
    pub(super) fn part(&self) -> Box<Self> {
        Box::new(RetryState {
            attempts: Attempts::default(),
            counted: self.counted,
            spent: self.spent,
            delay: self.delay,
            // It may have been another.
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

    /// Begins again with a full count of attempts: what it failed for so far was another's fault.
    pub(super) fn begin_again(&mut self) {
        (self.counted, self.spent, self.panics) = (0, Duration::ZERO, 0);
        self.hold = None;
    }

    /// What succeeded at its breaker so far says nothing of the attempts to come.
    pub(super) fn forget_breaker(&mut self) {
        self.failing = None;
    }

    /// It failed for the same breaker as the group that it was in.
    pub(super) fn share_breaker(&mut self, group: &RetryState) {
        self.failing = group.failing.clone();
    }

    pub(super) fn is_due_later(&self) -> bool {
        self.due().is_some_and(|due| due > Instant::now())
    }

    /// When to go on; `None`: at once.
    pub(super) fn due(&self) -> Option<Instant> {
        match self.phase {
            Phase::Retry { at } => Some(at),
            Phase::GivenUp(_) | Phase::Letter(_) => None,
        }
    }

    /// Whether going on calls the handler.
    pub(super) fn calls_handler(&self) -> bool {
        matches!(self.phase, Phase::Retry { .. })
    }

    /// What is in its way, where it is given back.
    pub(super) fn why_unsettled(&self) -> Unsettled {
        match (self.waits, &self.hold) {
            (Some((WaitsFor::Claim, _)), _) => Unsettled::ClaimedElsewhere,
            (Some((WaitsFor::Store, _)), _) => Unsettled::StoreDown,
            (None, Some(_)) => Unsettled::BreakerOpen,
            (None, None) => Unsettled::Deadline,
        }
    }

    /// Whether it took part in one of these rounds of probes: others come first.
    pub(super) fn has_probed(&self, rounds: &[Round]) -> bool {
        self.probed.iter().any(|round| rounds.contains(round))
    }

    /// It has failed, and that counts for this breaker.
    pub(super) fn meets(&mut self, breaker: Option<&CircuitBreaker>) {
        let is_same = |failing: &Failing| breaker.is_some_and(|breaker| failing.breaker.is(breaker));
        if self.failing.as_ref().is_some_and(is_same) {
            return;
        }
        if self.failing.is_some() {
            self.hold = None;
        }
        self.failing = breaker.map(|breaker| Failing {
            breaker: breaker.clone(),
            successes: breaker.successes(),
        });
    }

    /// It is held, as an outage is suspected.
    pub(super) fn suspect(&mut self, breaker: &CircuitBreaker) {
        self.hold = Some(Hold::suspected(breaker));
        self.held_since.get_or_insert_with(Instant::now);
    }

    /// For how long it has been held, in all its holds.
    pub(super) fn held_for(&mut self) -> Duration {
        self.held_since.get_or_insert_with(Instant::now).elapsed()
    }

    /// Another attempt begins.
    pub(super) fn attempt_begins(&mut self, record: &Record) {
        self.began = match &self.failing {
            None => Began::default(),
            Some(failing) => Began {
                others_had_failed: failing.breaker.has_failed_beside(record),
                none_had_succeeded: failing.breaker.successes() <= failing.successes,
            },
        };
    }

    /// Whether an outage was suspected when its last attempt began.
    pub(super) fn was_suspected(&self, scope: Scope) -> bool {
        match scope {
            Scope::Dependency => self.began.none_had_succeeded,
            _ => self.began.others_had_failed,
        }
    }

    /// Whether others have succeeded at its breaker since it failed first in this count of attempts.
    pub(super) fn have_others_succeeded(&self, breaker: &CircuitBreaker) -> bool {
        let failing = self.failing.as_ref();
        failing.is_some_and(|failing| breaker.successes() > failing.successes)
    }

    /// Whether it is held although its breaker is closed: its calls do not count.
    pub(super) fn is_suspected(&self) -> bool {
        let hold = self.hold.as_ref();
        hold.is_some_and(|hold| matches!(hold.cause, Cause::Suspicion { .. }))
    }

    pub(super) fn retry_after(mut self: Box<Self>, delay: Duration) -> Box<Self> {
        let now = Instant::now();
        self.phase = Phase::Retry {
            at: now.checked_add(delay).unwrap_or(now),
        };
        self
    }
}
