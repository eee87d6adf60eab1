//! Who is to blame: the record, or what its handler needs? The successes of others tell.

use std::time::Duration;

use tokio::time::Instant;

use crate::breaker::Breaker;

/// The breaker that a record's failures count for, and how many others had succeeded there.
#[derive(Clone)]
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

    /// It was proven of others with it.
    pub(super) fn is_unproven(&mut self) {
        self.proven = false;
    }

    /// It has failed. What do the others say?
    pub(super) fn attempt_failed(&mut self, timed_out: bool) -> Others {
        let now = self.breaker.successes();
        // An attempt that hung may have begun before an outage, or ended after it.
        let succeed = self.at_begin > self.at_last && (!timed_out || now > self.at_begin);
        self.at_last = now;
        // Right after an outage the next one may have begun behind those successes.
        self.proven |= succeed && self.breaker.is_closed_for(self.breaker.window());
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

/// Nothing else has succeeded since the record failed before: it may be an outage. As long as that is so
/// the record is tried again, which uses up nothing.
pub(super) struct Doubt {
    pub(super) others: Others,
    /// Since when they say so.
    pub(super) since: Instant,
    pub(super) failures: u32,
    pub(super) told: bool,
}

impl Doubt {
    pub(super) fn new(others: Others) -> Self {
        Doubt {
            others,
            since: Instant::now(),
            failures: 0,
            told: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::breaker::Proof;
    use crate::tally::Tally;

    fn breaker() -> (Breaker, Arc<Tally>) {
        let (breaker, tally) = (Breaker::default(), Arc::new(Tally::default()));
        breaker.enlist(tally.clone());
        (breaker, tally)
    }

    #[test]
    fn only_an_attempt_begun_after_a_success_tells_that_others_succeed() {
        let (breaker, others) = breaker();
        others.add();
        let mut blame = Blame::new(&breaker);
        blame.attempt_begins();
        assert_eq!(blame.attempt_failed(false), Others::Unknown);
        blame.attempt_begins();
        // Too late: the attempt may have begun in an outage that is over now.
        others.add();
        assert_eq!(blame.attempt_failed(false), Others::Unknown);
        others.add();
        blame.attempt_begins();
        assert_eq!(blame.attempt_failed(false), Others::Succeed);
        blame.attempt_begins();
        assert_eq!(blame.attempt_failed(false), Others::Succeeded);
        blame.forget();
        blame.attempt_begins();
        assert_eq!(blame.attempt_failed(false), Others::Unknown);
    }

    /// The outage is over for a moment in which others succeed, and comes back.
    #[tokio::test(start_paused = true)]
    async fn right_after_an_outage_a_proof_is_not_kept() {
        let breaker = Breaker::builder().probes(1).keys_in_a_row(1).make();
        let others = Arc::new(Tally::default());
        breaker.enlist(others.clone());
        let record = crate::Record::builder("s", "shardId-0".into(), 1.into()).build();
        breaker.failed(&record, false);
        breaker.change().await;
        breaker.tick();
        let probe = breaker.probe().expect("its pause is over");
        probe.showed(Proof::Works, &record);
        assert!(breaker.is_closed());

        let mut blame = Blame::new(&breaker);
        for expected in [Others::Unknown, Others::Succeeded] {
            others.add();
            blame.attempt_begins();
            assert_eq!(blame.attempt_failed(false), Others::Succeed);
            blame.attempt_begins();
            assert_eq!(blame.attempt_failed(false), expected);
            tokio::time::advance(breaker.window()).await;
        }
    }

    #[test]
    fn one_that_hung_needs_a_success_on_either_side() {
        let (breaker, others) = breaker();
        let mut blame = Blame::new(&breaker);
        others.add();
        blame.attempt_begins();
        assert_eq!(blame.attempt_failed(true), Others::Unknown);
        others.add();
        blame.attempt_begins();
        others.add();
        assert_eq!(blame.attempt_failed(true), Others::Succeed);
    }

    #[test]
    fn a_doubt_is_short_where_nobody_else_has_trouble() {
        let (breaker, _) = breaker();
        let blame = Blame::new(&breaker);
        let record = crate::Record::builder("s", "shardId-0".into(), 1.into()).build();
        assert_eq!(blame.doubt_at_most(Others::Succeed), Duration::ZERO);
        assert_eq!(blame.doubt_at_most(Others::Succeeded), Duration::from_secs(10));
        assert_eq!(blame.doubt_at_most(Others::Unknown), Duration::from_secs(15 * 60));
        breaker.failed(&record, false);
        assert_eq!(
            blame.doubt_at_most(Others::Succeeded),
            Duration::from_secs(15 * 60)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn patience_ends_where_few_have_failed() {
        let (breaker, _) = breaker();
        let blame = Blame::new(&breaker);
        assert!(!blame.is_out_of_patience());
        tokio::time::advance(Duration::from_secs(15 * 60)).await;
        assert!(blame.is_out_of_patience());
    }
}
