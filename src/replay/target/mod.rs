//! The targets of a replay.

pub(in crate::replay) mod processor;
#[cfg(feature = "kinesis")]
pub(in crate::replay) mod stream;

use std::future::Future;

use tokio_util::sync::CancellationToken;

use super::report::Outcome;
use crate::dead_letter::{DeadLetter, DeadLetterSink, SinkError};
use crate::failure::BoxError;
use crate::record::Redriven;

/// A dead letter to send.
pub(super) struct Job {
    pub(super) letter: DeadLetter,
    /// The redrive data that the record carries if it is replayed.
    pub(super) redriven: Redriven,
    /// True if an earlier run began this dead letter, and its outcome is unknown.
    pub(super) possibly_repeated: bool,
}

/// The outcomes of jobs, in their order, and the error of a target that could not be reached.
pub(super) struct Sent {
    pub(super) outcomes: Vec<Outcome>,
    pub(super) failed: Option<BoxError>,
}

pub(super) trait Target: Send + Sync {
    /// Returns the target's name in the ledger. Each target has ledger entries of its own.
    fn name(&self) -> String;

    /// Returns true if replayed records carry no stamp, so that only their content identifies them.
    fn is_known_by_content(&self) -> bool {
        false
    }

    /// Returns true if records are replayed, and false if dead letters are only moved.
    fn drives(&self) -> bool {
        true
    }

    /// Sends the jobs. Jobs of one partition key are sent one after the other.
    fn send(&self, jobs: &[Job], stop: &CancellationToken) -> impl Future<Output = Sent> + Send;
}

/// Moves dead letters as they are.
pub(super) struct Sink<S>(pub(super) S);

impl<S: DeadLetterSink> Target for Sink<S> {
    fn name(&self) -> String {
        self.0.name()
    }

    fn drives(&self) -> bool {
        false
    }

    async fn send(&self, jobs: &[Job], _: &CancellationToken) -> Sent {
        let letters = jobs.iter().map(|job| job.letter.clone()).collect();
        write(&self.0, jobs, letters).await
    }
}

/// Writes a dead letter for each job. A refused dead letter does not stop later ones of its key.
pub(super) async fn write(sink: &impl DeadLetterSink, jobs: &[Job], letters: Vec<DeadLetter>) -> Sent {
    let mut outcomes: Vec<Outcome> = jobs.iter().map(|_| Outcome::Blocked).collect();
    let mut left: Vec<(usize, DeadLetter)> = letters.into_iter().enumerate().collect();
    let mut failed = None;
    while !left.is_empty() && failed.is_none() {
        let letters: Vec<DeadLetter> = left.iter().map(|(_, letter)| letter.clone()).collect();
        let mut results = sink.put(&letters).await.into_iter();
        let before = left.len();
        left.retain(|(job, _)| match results.next() {
            Some(Ok(_)) => {
                let possibly_repeated = jobs[*job].possibly_repeated;
                outcomes[*job] = Outcome::Replayed { possibly_repeated };
                false
            }
            Some(Err(error @ SinkError::Refused { .. })) => {
                outcomes[*job] = Outcome::Refused(error);
                false
            }
            Some(Err(SinkError::Unavailable(error))) => {
                failed.get_or_insert(error);
                true
            }
            Some(Err(SinkError::Behind)) => true,
            None => {
                failed.get_or_insert_with(|| "the sink gave no result for a dead letter".into());
                true
            }
        });
        if left.len() == before && failed.is_none() {
            failed = Some("the sink wrote nothing".into());
        }
    }
    Sent { outcomes, failed }
}
