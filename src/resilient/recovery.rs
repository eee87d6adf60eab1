//! Where a record stands that has failed and is not settled yet.

use std::time::Duration;

use tokio::time::Instant;
use tracing::Span;

use super::blame::{Blame, Doubt, Others};
use super::claims::WaitsFor;
use crate::breaker::{Breaker, Round};
use crate::dead_letter::{Attempts, DeadLetter, Reason};
use crate::failure::Failure;
use crate::idempotency::Claim;
use crate::retry::Backoff;
use crate::settled::Unsettled;

/// Between two tries of a record whose retry the budget refused, or that may not be to blame.
pub(super) const RECHECK: Backoff = Backoff::exponential();

/// Where a record stands that has failed and is not settled yet.
pub(crate) struct Recovery {
    /// All that were made.
    pub(super) attempts: Attempts,
    /// How many of them used up one of those that there are.
    pub(super) used: u32,
    /// The time of those, and of the backoffs between.
    pub(super) spent: Duration,
    pub(super) delay: Duration,
    pub(super) panics: u32,
    pub(super) blame: Option<Blame>,
    pub(super) doubt: Option<Doubt>,
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

pub(super) enum Phase {
    /// Another attempt, at this time.
    Retry { at: Instant },
    /// A letter, without another attempt.
    GivenUp(Reason),
    /// The verdict is reached and kept: only the letter is left to write.
    Letter(Box<(DeadLetter, Failure)>),
}

impl Recovery {
    pub(super) fn new() -> Self {
        Recovery {
            attempts: Attempts::default(),
            used: 0,
            spent: Duration::ZERO,
            delay: Duration::ZERO,
            panics: 0,
            blame: None,
            doubt: None,
            probed: Vec::new(),
            refused: 0,
            claim: None,
            waits: None,
            is_shared: false,
            span: None,
            phase: Phase::Retry { at: Instant::now() },
        }
    }

    /// Of a record that is tried for the first time since it had these.
    pub(crate) fn after(attempts: Attempts) -> Box<Recovery> {
        let mut recovery = Box::new(Recovery::new());
        recovery.attempts = attempts;
        recovery
    }

    /// Of a record that is not tried, or not any more.
    pub(crate) fn given_up(recovery: Option<Box<Recovery>>, reason: Reason) -> Box<Recovery> {
        let mut recovery = recovery.unwrap_or_else(|| Box::new(Recovery::new()));
        recovery.phase = Phase::GivenUp(reason);
        recovery
    }

    /// For one of those that have been through it together, but for its attempts.
    pub(super) fn part(&self) -> Box<Self> {
        Box::new(Recovery {
            attempts: Attempts::default(),
            used: self.used,
            spent: self.spent,
            delay: self.delay,
            // It may have been another.
            panics: 0,
            blame: self.blame.clone(),
            // There is time to find out.
            doubt: None,
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

    /// What it failed for was another's fault.
    pub(super) fn has_used_nothing(&mut self) {
        (self.used, self.spent, self.panics) = (0, Duration::ZERO, 0);
        self.doubt = None;
        if let Some(blame) = &mut self.blame {
            blame.is_unproven();
        }
    }

    pub(super) fn is_due_later(&self) -> bool {
        self.due().is_some_and(|due| due > Instant::now())
    }

    /// When to go on; `None`: at once.
    pub(crate) fn due(&self) -> Option<Instant> {
        match self.phase {
            Phase::Retry { at } => Some(at),
            Phase::GivenUp(_) | Phase::Letter(_) => None,
        }
    }

    /// Whether going on calls the handler.
    pub(crate) fn calls_handler(&self) -> bool {
        matches!(self.phase, Phase::Retry { .. })
    }

    /// What is in its way, where it is given back.
    pub(crate) fn why_unsettled(&self) -> Unsettled {
        match (self.waits, &self.doubt) {
            (Some((WaitsFor::Claim, _)), _) => Unsettled::ClaimedElsewhere,
            (Some((WaitsFor::Store, _)), _) => Unsettled::StoreDown,
            (None, Some(_)) => Unsettled::BreakerOpen,
            (None, None) => Unsettled::Deadline,
        }
    }

    /// Whether it took part in one of these rounds of probes: others come first.
    pub(crate) fn has_probed(&self, rounds: &[Round]) -> bool {
        self.probed.iter().any(|round| rounds.contains(round))
    }

    /// What the others say to an attempt that has failed. `blamed`: the breaker that it counts for.
    pub(super) fn others(&mut self, blamed: Option<&Breaker>, timed_out: bool) -> Others {
        match (&mut self.blame, blamed) {
            // Nobody else has to do with it.
            (_, None) => Others::Succeed,
            (Some(blame), Some(breaker)) if blame.is_on(breaker) => blame.attempt_failed(timed_out),
            (blame, Some(breaker)) => {
                *blame = Some(Blame::new(breaker));
                Others::Unknown
            }
        }
    }

    pub(super) fn is_out_of_patience(&self) -> bool {
        self.blame.as_ref().is_some_and(Blame::is_out_of_patience)
    }

    pub(super) fn retry_after(mut self: Box<Self>, delay: Duration) -> Box<Self> {
        let now = Instant::now();
        self.phase = Phase::Retry {
            at: now.checked_add(delay).unwrap_or(now),
        };
        self
    }
}
