//! The verdict is reached: what is left is the letter.

use std::any::type_name;
use std::time::Duration;

use tokio::time::timeout;

use super::outbox::Refused;
use super::protection::Run;
use super::retry_state::{Phase, RetryState};
use super::trace::trace_id;
use super::{Inner, Step};
use crate::dead_letter::{DeadLetter, Reason};
use crate::failure::Failure;
use crate::guard::Permission;
use crate::observer::{Event, Interest, Redacted};
use crate::processor::RecordProcessor;
use crate::record::Record;
use crate::sabotage::Sabotage;
use crate::settled::{Halt, Settled, Unsettled};

/// However old a record is: for so long a breaker or the guard may hold it.
pub(crate) const HELD_AT_LEAST: Duration = Duration::from_secs(5 * 60);

/// Why there is a letter of a record that was not tried once more.
#[derive(Debug, thiserror::Error)]
#[error("the stream would have dropped the record soon, and a breaker or the dead-letter guard held it")]
pub(super) struct HeldTooLong;

/// Why there is a letter of a record that was never seen to fail.
#[derive(Debug, thiserror::Error)]
#[error("the process died three times while this was the only record in hand")]
pub(super) struct Crashed;

impl<P: RecordProcessor> Inner<P> {
    /// The verdict is reached. It is kept from here on: the handler is not called again.
    pub(super) fn give_up(
        &self,
        record: &Record,
        mut state: Box<RetryState>,
        reason: Reason,
        failure: Failure,
    ) -> Step {
        if self.outbox.is_none() {
            return Step::Done(Err(Unsettled::Halted(Halt::WithoutDeadLetters(failure))));
        }
        let letter = DeadLetter::new(&self.application, record, reason, &failure).with_attempts(
            state.attempts.clone(),
            type_name::<P::Error>(),
            &self.name,
            self.version.as_deref(),
        );
        let letter = letter.with_trace_context(self.traces.context(record));
        state.phase = Phase::Letter(Box::new((letter, failure)));
        Step::Later(state)
    }

    /// Writes the letter, however long the sink is down.
    pub(super) async fn write(
        &self,
        record: &Record,
        letter: &DeadLetter,
        failure: &Failure,
        attempts: u32,
    ) -> Result<Settled, Unsettled> {
        let Some(outbox) = &self.outbox else {
            // `give_up` writes no letter without a sink.
            return Err(Unsettled::Shutdown);
        };
        match outbox.write(letter).await {
            Ok(receipt) => {
                self.tell(Interest::FAILURES, || Event::DeadLettered {
                    record,
                    id: letter.id,
                    reason: letter.reason.as_str(),
                    failure: Redacted(failure),
                    location: &receipt.location,
                    trace_id: letter.trace_context.as_deref().and_then(trace_id),
                });
                let settled = Settled::DeadLettered(letter.id);
                self.tell_settled(record, settled, attempts);
                Ok(settled)
            }
            Err(Refused { size, limit, source }) => {
                Err(Unsettled::Halted(Halt::DeadLetterRefused { size, limit, source }))
            }
        }
    }

    /// Waits until no breaker is open and the dead-letter guard lets the letter through, or until the record must not
    /// be held any longer.
    pub(super) async fn may_give_up(&self, record: &Record, run: &Run) {
        let allowed = self.is_let_through(record, run);
        match run.held_for_at_most(record) {
            Some(left) => drop(timeout(left.max(HELD_AT_LEAST), allowed).await),
            None => allowed.await,
        }
    }

    async fn is_let_through(&self, record: &Record, run: &Run) {
        loop {
            if self.protection.is_open() && !Sabotage::LetterWhileOpen.is_committed() {
                self.protection.change().await;
                continue;
            }
            let Some(guard) = &run.guard else {
                return;
            };
            // Before the question, so that an answer's end is not missed.
            let resumed = guard.resumed();
            match guard.ask(record) {
                Permission::Granted => {
                    self.protection.tell_resumed(run);
                    return;
                }
                Permission::Stopped(shard) => {
                    self.tell(Interest::FAILURES, || Event::DeadLetterGuardStopped {
                        record,
                        letters: shard.letters,
                        settled: shard.settled,
                    });
                }
                Permission::Waits => {}
            }
            resumed.await;
        }
    }
}
