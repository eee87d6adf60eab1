//! Where what is driven again goes.

pub(in crate::replay) mod processor;
#[cfg(feature = "kinesis")]
pub(in crate::replay) mod stream;

use std::future::Future;

use tokio_util::sync::CancellationToken;

use super::report::Outcome;
use crate::dead_letter::{DeadLetter, DeadLetterSink, SinkError};
use crate::failure::BoxError;
use crate::record::Redriven;

/// A letter on its way.
pub(super) struct Job {
    pub(super) letter: DeadLetter,
    /// As the record will be known, if it is driven again.
    pub(super) redriven: Redriven,
    /// It was begun by a run of which no more is known.
    pub(super) possibly_repeated: bool,
}

/// What became of them, in their order; and why not more, if the target could not be reached.
pub(super) struct Sent {
    pub(super) outcomes: Vec<Outcome>,
    pub(super) failed: Option<BoxError>,
}

pub(super) trait Target: Send + Sync {
    /// For the ledger: what is done for one target is not for another.
    fn name(&self) -> String;

    /// Whether a record that comes back to the queue is found by its content alone.
    fn is_known_by_content(&self) -> bool {
        false
    }

    /// Whether the records are driven again; letters that are only moved are not.
    fn drives(&self) -> bool {
        true
    }

    /// Those of one partition key one after the other.
    fn send(&self, jobs: &[Job], stop: &CancellationToken) -> impl Future<Output = Sent> + Send;
}

/// Moves letters as they are.
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

/// Writes a letter for each job. What is refused does not hold up those of its key behind it.
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
                failed.get_or_insert_with(|| "the sink gave no result for a letter".into());
                true
            }
        });
        if left.len() == before && failed.is_none() {
            failed = Some("the sink wrote nothing".into());
        }
    }
    Sent { outcomes, failed }
}
