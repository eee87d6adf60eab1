//! Who is to blame: the record, or what its handler needs? The successes of others tell.

use std::time::Duration;

use tokio::time::Instant;

use crate::breaker::Breaker;

/// The breaker that a record's failures count for, and how many others had succeeded there.
pub(super) struct Blame {
    breaker: Breaker,
    /// When the record failed first.
    since: Instant,
    /// By its last failure.
    at_last: u64,
    /// When its last attempt began.
    at_begin: u64,
    /// Whether it has failed where others did succeed.
    proven: bool,
}

/// Whether others succeed where a record fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Others {
    /// None has between its failures so far: it may be an outage.
    Unknown,
    /// None has since its last failure, but it has failed before where others did succeed.
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
            at_last: now,
            at_begin: now,
            proven: false,
        }
    }

    pub(super) fn is_on(&self, breaker: &Breaker) -> bool {
        self.breaker.is(breaker)
    }

    /// Another attempt begins.
    pub(super) fn attempt_begins(&mut self) {
        self.at_begin = self.breaker.successes();
    }

    /// What succeeded so far says nothing of the time to come.
    pub(super) fn forget(&mut self) {
        let now = self.breaker.successes();
        (self.at_last, self.at_begin, self.proven) = (now, now, false);
    }

    /// It has failed. What do the others say?
    pub(super) fn attempt_failed(&mut self, timed_out: bool) -> Others {
        let now = self.breaker.successes();
        // An attempt that hung may have begun before an outage, or ended after it.
        let succeed = self.at_begin > self.at_last && (!timed_out || now > self.at_begin);
        self.at_last = now;
        self.proven |= succeed;
        match (succeed, self.proven) {
            (true, _) => Others::Succeed,
            (false, true) => Others::Succeeded,
            (false, false) => Others::Unknown,
        }
    }

    /// For how long it may be in doubt whether the record is to blame.
    pub(super) fn doubt_at_most(&self, others: Others) -> Duration {
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
