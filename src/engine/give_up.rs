//! The end of a record that is given up: its dead letter.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::protection::{Protection, Run};
use super::retry_state::RetryState;
use super::spans::{Traces, trace_id};
use crate::dead_letter::outbox::{Outbox, Refused};
use crate::dead_letter::{DeadLetter, Reason};
use crate::failure::Failure;
use crate::observer::{Event, Interest, RecordEvent, Redacted};
use crate::protection::guard::Permission;
use crate::record::Record;
use crate::sabotage::Sabotage;
use crate::settlement::{Halt, Settled, Unsettled};

/// The minimum time for which a breaker or the dead-letter guard may hold a record, however old the record
/// is.
pub(crate) const HELD_AT_LEAST: Duration = Duration::from_secs(5 * 60);

/// The failure of a record that was about to expire and got no other attempt.
#[derive(Debug, thiserror::Error)]
#[error("the record was about to expire while held by an open breaker or the dead-letter guard")]
pub(super) struct HeldTooLong;

/// The failure of a record that crashed the process, and never failed otherwise.
#[derive(Debug, thiserror::Error)]
#[error("the process crashed three times while this was the only record in flight")]
pub(super) struct Crashed;

/// Creates the dead letters of one processor, and writes each once it may be written.
pub(super) struct DeadLetterWriter {
    pub(super) application: Arc<str>,
    /// The Rust type of the processor's errors.
    pub(super) error_type: &'static str,
    /// The processor's name and version.
    pub(super) name: String,
    pub(super) version: Option<String>,
    pub(super) outbox: Outbox,
    pub(super) protection: Arc<Protection>,
    pub(super) traces: Arc<Traces>,
}

impl DeadLetterWriter {
    /// Creates the dead letter of a record that is given up.
    pub(super) fn letter(
        &self,
        record: &Record,
        state: &RetryState,
        reason: Reason,
        failure: &Failure,
    ) -> DeadLetter {
        let letter = DeadLetter::new(&self.application, record, reason, failure).with_attempts(
            state.attempts.clone(),
            self.error_type,
            &self.name,
            self.version.as_deref(),
        );
        letter.with_trace_context(self.traces.context(record))
    }

    /// Writes the dead letter, however long the sink is down.
    pub(super) async fn write(
        &self,
        record: &Record,
        letter: &DeadLetter,
        failure: &Failure,
        attempts: u32,
    ) -> Result<Settled, Unsettled> {
        let observers = &self.protection.observers;
        match self.outbox.write(letter).await {
            Ok(receipt) => {
                observers.report(Interest::FAILURES, || Event::Record {
                    record,
                    event: RecordEvent::DeadLettered {
                        id: letter.id,
                        reason: letter.reason.as_str(),
                        failure: Redacted(failure),
                        location: &receipt.location,
                        trace_id: letter.trace_context.as_deref().and_then(trace_id),
                    },
                });
                let settled = Settled::DeadLettered(letter.id);
                observers.report(Interest::SETTLEMENTS, || Event::Record {
                    record,
                    event: RecordEvent::Settled { settled, attempts },
                });
                Ok(settled)
            }
            Err(Refused { size, limit, source }) => {
                Err(Unsettled::Halted(Halt::DeadLetterRefused { size, limit, source }))
            }
        }
    }

    /// Waits until no breaker is open and the dead-letter guard permits the dead letter, or until the record
    /// must not be held any longer.
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
            // Registers before it asks the guard, so that a resumption right after the answer is not missed.
            let resumed = guard.resumed();
            match guard.ask(record) {
                Permission::Granted => {
                    self.protection.tell_resumed(run);
                    return;
                }
                Permission::Stopped(shard) => {
                    self.protection
                        .observers
                        .report(Interest::FAILURES, || Event::Record {
                            record,
                            event: RecordEvent::DeadLetterGuardStopped {
                                letters: shard.letters,
                                settled: shard.settled,
                            },
                        });
                }
                Permission::Waits => {}
            }
            resumed.await;
        }
    }
}
