//! Is the record to blame? As long as nobody can know, it is not given up.

use std::time::Duration;

use tokio::time::Instant;

use super::Inner;
use super::blame::{Blame, Doubt, Others};
use super::recovery::{RECHECK, Recovery};
use crate::dead_letter::Reason;
use crate::failure::Failure;
use crate::observer::{Event, Interest, Redacted};
use crate::processor::RecordProcessor;
use crate::record::Record;
use crate::retry::Jitter;

/// What may not be its fault.
pub(super) struct Doubted {
    /// Why it would be given up now, if it would.
    pub(super) reason: Option<Reason>,
    pub(super) failure: Failure,
    pub(super) others: Others,
}

impl<P: RecordProcessor> Inner<P> {
    /// What a record has used up that was in doubt for as long as it may be: attempts, if they had all
    /// counted, or time.
    pub(super) fn out_of(&self, recovery: &Recovery) -> Reason {
        if self.policy.attempts_exhausted(recovery.attempts.count) {
            Reason::AttemptsExhausted
        } else {
            Reason::TimeExhausted
        }
    }

    /// The record may not be to blame. If that stays so for too long, it is given up all the same.
    pub(super) fn doubt(
        &self,
        record: &Record,
        mut recovery: Box<Recovery>,
        Doubted {
            reason,
            failure,
            others,
        }: Doubted,
    ) -> Result<Box<Recovery>, (Box<Recovery>, Reason, Failure)> {
        let blame = recovery.blame.as_ref();
        let at_most = blame.map_or(Duration::ZERO, |blame: &Blame| blame.doubt_at_most(others));
        let doubt = recovery.doubt.get_or_insert_with(|| Doubt::new(others));
        if doubt.others != others {
            (doubt.others, doubt.since) = (others, Instant::now());
        }
        if doubt.since.elapsed() >= at_most {
            let reason = reason.unwrap_or_else(|| self.out_of(&recovery));
            return Err((recovery, reason, failure));
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
        Ok(recovery.retry_after(delay))
    }
}
