//! Who is to blame: the record, or what its handler needs? The successes of others tell.

use std::time::Duration;

use tokio::time::Instant;

use crate::breaker::Breaker;

/// The breaker that a record's failures count for, and how many others had succeeded there.
pub(super) struct Blame {
    breaker: Breaker,
    /// When the record failed first.
    since: Instant,
    at_first: u64,
    at_last: u64,
    /// When its last attempt began.
    at_begin: u64,
}

/// Whether others succeed where a record fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Others {
    /// None has since the record failed first: it may be an outage.
    Unknown,
    /// Some have, but it may be that they no longer do.
    Succeeded,
    /// They do: the last attempt began after a success that came after the failure before it.
    Succeed,
}

impl Blame {
    /// Of a record that fails for the first time.
    pub(super) fn new(breaker: &Breaker) -> Self {
        let now = breaker.successes();
        Blame {
            breaker: breaker.clone(),
            since: Instant::now(),
            at_first: now,
            at_last: now,
            at_begin: now,
        }
    }

    pub(super) fn is_on(&self, breaker: &Breaker) -> bool {
        self.breaker.is(breaker)
    }

    /// Another attempt begins.
    pub(super) fn attempt_begins(&mut self) {
        self.at_begin = self.breaker.successes();
    }

    /// It has failed.
    pub(super) fn attempt_failed(&mut self) {
        self.at_last = self.breaker.successes();
    }

    /// What succeeded so far says nothing of the time to come.
    pub(super) fn forget(&mut self) {
        let now = self.breaker.successes();
        (self.at_first, self.at_last, self.at_begin) = (now, now, now);
    }

    /// What the others say to the last attempt, if it has failed.
    pub(super) fn others(&self, timed_out: bool) -> Others {
        let now = self.breaker.successes();
        // An attempt that hung may have begun before an outage, or ended after it.
        if self.at_begin > self.at_last && (!timed_out || now > self.at_begin) {
            Others::Succeed
        } else if now > self.at_first {
            Others::Succeeded
        } else {
            Others::Unknown
        }
    }

    /// How long a record may be held that has used up its attempts.
    pub(super) fn hold_at_most(&self, others: Others) -> Duration {
        match others {
            Others::Succeed => Duration::ZERO,
            // Nobody else has trouble; if somebody had, the breaker would know within its window.
            Others::Succeeded if !self.breaker.has_suspects() => self.breaker.window(),
            _ => self.breaker.hold_at_most(),
        }
    }

    /// Whether the record has failed for so long, and so few others with it, that nothing else may be
    /// left which could succeed.
    pub(super) fn is_out_of_patience(&self) -> bool {
        self.since.elapsed() >= self.breaker.hold_at_most() && self.breaker.is_narrow()
    }
}
