//! The targets of a replay.

pub(in crate::replay) mod processor;
#[cfg(feature = "kinesis")]
pub(in crate::replay) mod stream;

use std::future::Future;

use tokio_util::sync::CancellationToken;

use super::report::Outcome;
use crate::dead_letter::{DeadLetter, DeadLetterSink, Receipt, SinkError};
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
        write(jobs, |jobs| {
            let letters: Vec<DeadLetter> = jobs.into_iter().map(|job| job.letter.clone()).collect();
            async move { self.0.put(&letters).await }
        })
        .await
    }
}

/// Writes the jobs with `put`, which returns a result for each job that it gets. A refused job does not stop
/// later ones of its key.
async fn write<'a, P, F>(jobs: &'a [Job], put: P) -> Sent
where
    P: Fn(Vec<&'a Job>) -> F,
    F: Future<Output = Vec<Result<Receipt, SinkError>>>,
{
    let mut outcomes: Vec<Outcome> = jobs.iter().map(|_| Outcome::Blocked).collect();
    let mut left: Vec<usize> = (0..jobs.len()).collect();
    let mut failed = None;
    while !left.is_empty() && failed.is_none() {
        let mut results = put(left.iter().map(|&job| &jobs[job]).collect())
            .await
            .into_iter();
        let before = left.len();
        left.retain(|&job| match results.next() {
            Some(Ok(_)) => {
                let possibly_repeated = jobs[job].possibly_repeated;
                outcomes[job] = Outcome::Replayed { possibly_repeated };
                false
            }
            Some(Err(error @ SinkError::Refused { .. })) => {
                outcomes[job] = Outcome::Refused(error);
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
