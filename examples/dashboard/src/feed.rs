//! The events of the consumer, counted per second by an observer.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use redrive::Settled;
use redrive::observer::{Event, Observer, RecordEvent};

/// The number of past seconds to keep.
const SECONDS: usize = 60;
const LETTERS: usize = 8;

#[derive(Debug, Default)]
pub(crate) struct Feed(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    began: Option<Instant>,
    now: Second,
    past: VecDeque<Second>,
    letters: VecDeque<Letter>,
    total: u64,
}

/// The counts of one second.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Second {
    pub(crate) processed: u64,
    pub(crate) failed_transient: u64,
    pub(crate) failed_permanent: u64,
    pub(crate) retries: u64,
    pub(crate) letters: u64,
}

#[derive(Debug, Clone)]
pub(crate) struct Letter {
    pub(crate) id: String,
    pub(crate) reason: &'static str,
    pub(crate) place: String,
    pub(crate) at: Instant,
}

impl Feed {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the next second once the current one is over.
    pub(crate) fn tick(&self) {
        let mut inner = self.inner();
        let began = *inner.began.get_or_insert_with(Instant::now);
        if began.elapsed() < Duration::from_secs(1) {
            return;
        }
        inner.began = Some(Instant::now());
        let second = std::mem::take(&mut inner.now);
        inner.past.push_back(second);
        if inner.past.len() > SECONDS {
            inner.past.pop_front();
        }
    }

    /// Returns the past seconds, the oldest first.
    pub(crate) fn seconds(&self) -> Vec<Second> {
        self.inner().past.iter().copied().collect()
    }

    pub(crate) fn letters(&self) -> Vec<Letter> {
        self.inner().letters.iter().cloned().collect()
    }

    pub(crate) fn total(&self) -> u64 {
        self.inner().total
    }
}

impl Observer for Feed {
    fn on(&self, event: &Event<'_>) {
        let Event::Record { record, event } = event else {
            return;
        };
        let mut inner = self.inner();
        match event {
            RecordEvent::Settled { settled, .. } => {
                inner.total += 1;
                if matches!(settled, Settled::Processed) {
                    inner.now.processed += 1;
                }
            }
            RecordEvent::AttemptFailed { failure, .. } => match failure.reveal().verdict().class() {
                redrive::Class::Transient => inner.now.failed_transient += 1,
                redrive::Class::Permanent => inner.now.failed_permanent += 1,
            },
            RecordEvent::RetryScheduled { .. } => inner.now.retries += 1,
            RecordEvent::DeadLettered { id, reason, .. } => {
                inner.now.letters += 1;
                inner.letters.push_front(Letter {
                    id: id.to_string(),
                    reason,
                    place: format!("{}/{}", record.shard(), record.sequence_number()),
                    at: Instant::now(),
                });
                inner.letters.truncate(LETTERS);
            }
            _ => {}
        }
    }
}
