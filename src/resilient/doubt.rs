//! Is the record to blame? As long as nobody can know, it is not given up.

use std::time::Duration;

use tokio::time::Instant;

use super::blame::{Blame, Doubt, Others};
use super::recovery::{RECHECK, Recovery};
use super::{Inner, Step};
use crate::dead_letter::Reason;
use crate::failure::Failure;
use crate::observer::{Event, Interest, Redacted};
use crate::processor::RecordProcessor;
use crate::record::Record;
use crate::retry::Jitter;

impl<P: RecordProcessor> Inner<P> {
    /// The record may not be to blame. If that stays so for too long, it is given up all the same.
    /// `reason`: why it would be given up now.
    pub(super) fn doubt(
        &self,
        record: &Record,
        mut recovery: Box<Recovery>,
        reason: Option<Reason>,
        failure: Failure,
        others: Others,
    ) -> Step {
        let blame = recovery.blame.as_ref();
        let at_most = blame.map_or(Duration::ZERO, |blame: &Blame| blame.doubt_at_most(others));
        let doubt = recovery.doubt.get_or_insert_with(|| Doubt::new(others));
        if doubt.others != others {
            (doubt.others, doubt.since) = (others, Instant::now());
        }
        if doubt.since.elapsed() >= at_most {
            return self.give_up(record, recovery, reason.unwrap_or(Reason::TimeExhausted), failure);
        }
        // Before that it is a retry as any other.
        let held = reason.is_some() || self.policy.attempts_exhausted(recovery.attempts.count);
        if held && doubt.failures > 0 && !doubt.told {
            doubt.told = true;
            self.tell(Interest::FAILURES, || Event::RecordHeld {
                record,
                failure: Redacted(&failure),
                at_most,
            });
        }
        let delay = self.draw(|rng| match failure.verdict().retry_after() {
            Some(asked) => self.policy.delay(1, Duration::ZERO, Some(asked), rng),
            None => Jitter::Equal.delay(&RECHECK, doubt.failures, Duration::ZERO, rng),
        });
        doubt.failures = doubt.failures.saturating_add(1);
        recovery.retry_after(delay)
    }
}
