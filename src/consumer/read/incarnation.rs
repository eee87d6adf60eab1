//! Checks, after a pause and at a start, whether the stream is still the one that was read before.
//!
//! A stream may be deleted and created again while this process stands still. Kinesis refuses the sequence
//! number of an earlier stream, but accepts any other position: a shard without records would be read on in
//! the new stream, and the loss of its unread records would not be reported.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use crate::checkpoint::Checkpoint;
use crate::consumer::stream_facts::StreamFacts;
use crate::observer::Observers;

/// The shortest pause after which the stream is checked. To delete and create a stream takes longer.
const SHORTEST_PAUSE: Duration = Duration::from_secs(5);
/// The time between two questions while Kinesis does not describe the stream.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(5);

/// The incarnation of the stream that a shard is read from.
#[derive(Debug)]
pub(in crate::consumer) struct Incarnation {
    /// The creation time of the stream, if it was known when the shard was started.
    created: Option<SystemTime>,
    unverified: Option<Unverified>,
}

/// A pause or a start after which the stream has not been verified.
#[derive(Debug)]
struct Unverified {
    /// The end of the pause, or the start.
    since: Instant,
    /// The time up to which everything was read before.
    read_until: Option<SystemTime>,
    asked: Option<Instant>,
}

/// The stream that was read is deleted. Another one has its name.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::consumer) struct Recreated {
    /// The time up to which everything was read from the deleted stream.
    pub(in crate::consumer) read_until: Option<SystemTime>,
    /// The creation time of the current stream.
    pub(in crate::consumer) created: Option<SystemTime>,
}

impl Incarnation {
    /// Creates the incarnation that a checkpoint belongs to. While Kinesis has not described the stream, the
    /// checkpoint may belong to an earlier one.
    pub(in crate::consumer) fn of(checkpoint: &Checkpoint, facts: &StreamFacts) -> Self {
        let is_unverified = facts.created().is_none() && checkpoint.stream_created().is_some();
        Incarnation {
            created: facts.created().or(checkpoint.stream_created()),
            unverified: is_unverified.then(|| Unverified {
                since: Instant::now(),
                read_until: checkpoint.read_until(),
                asked: None,
            }),
        }
    }

    /// Returns the creation time of the stream, if it was known when the shard was started.
    pub(in crate::consumer) fn created(&self) -> Option<SystemTime> {
        self.created
    }

    /// Notes, before each new iterator or subscription, when the last page was read, and up to which time
    /// pages have stated that everything was read.
    pub(in crate::consumer) fn resume(&mut self, last_page: Option<Instant>, read_until: Option<SystemTime>) {
        let has_paused = last_page.is_some_and(|at| at.elapsed() >= SHORTEST_PAUSE);
        if has_paused && self.unverified.is_none() {
            self.unverified = Some(Unverified {
                since: Instant::now(),
                read_until,
                asked: None,
            });
        }
    }

    /// Returns whether the stream was recreated, if that has to be verified and Kinesis describes the stream.
    pub(in crate::consumer) async fn verify(
        &mut self,
        facts: &StreamFacts,
        observers: &Observers,
    ) -> Option<Recreated> {
        let unverified = self.unverified.as_mut()?;
        let since = unverified.since;
        let is_due = unverified
            .asked
            .is_none_or(|asked| asked.elapsed() >= ASK_AGAIN_AFTER);
        if facts.described_since(since).is_none() && is_due {
            unverified.asked = Some(Instant::now());
            Box::pin(facts.refresh(observers)).await;
        }
        if !facts.described_since(since)? {
            // The permission is missing: this cannot be known before it is granted.
            return None;
        }
        let read_until = self.unverified.take()?.read_until;
        facts
            .is_another_stream(self.created, read_until)
            .then(|| Recreated {
                read_until,
                created: facts.created(),
            })
    }
}
