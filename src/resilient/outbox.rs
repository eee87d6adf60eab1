//! The letters on their way to the sink: written together, kept until confirmed.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use super::answer::answer;
use crate::alike::failed_alike;
use crate::dead_letter::{DeadLetter, DeadLetterSink, Receipt, SinkError};
use crate::failure::BoxError;
use crate::observer::{Event, Observers};
use crate::retry::{Backoff, Jitter};
use crate::sabotage::Sabotage;

/// One sink and the task that writes to it. The task begins with the first letter, and ends when the
/// processor is dropped.
///
/// A task of its own, so that letters of many shards go out in one request, a sink that is down is
/// asked by one caller and not by each record, and a caller that goes away tears nothing.
pub(crate) struct Outbox {
    sink: Arc<dyn DeadLetterSink>,
    observers: Observers,
    seed: u64,
    /// Puts in a row of which nothing was confirmed.
    failures: Arc<AtomicU32>,
    // Its letters are bounded by the callers, each of which waits for its own.
    inbox: Mutex<Option<mpsc::UnboundedSender<Entry>>>,
}

struct Entry {
    letter: DeadLetter,
    done: oneshot::Sender<Result<Receipt, Refused>>,
    not_before: Instant,
    failures: u32,
}

/// The sink can never take the letter.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) size: u64,
    pub(crate) limit: u64,
    pub(crate) source: BoxError,
}

/// The most letters given to a sink at once: a PutRecords request takes as many.
const BATCH: usize = 500;
/// A sink that has not answered by then has failed. Its letters are written again, which is harmless.
const PUT_TIMEOUT: Duration = Duration::from_secs(60);
/// Between tries of a letter that the sink did not take.
const BACKOFF: Backoff = Backoff::exponential();

impl Outbox {
    pub(crate) fn new(sink: Arc<dyn DeadLetterSink>, observers: Observers, seed: u64) -> Self {
        Outbox {
            sink,
            observers,
            seed,
            failures: Arc::default(),
            inbox: Mutex::new(None),
        }
    }

    pub(crate) fn sink(&self) -> &Arc<dyn DeadLetterSink> {
        &self.sink
    }

    /// How often in a row nothing of a put was confirmed.
    #[cfg(feature = "kinesis")]
    pub(crate) fn failures(&self) -> &Arc<AtomicU32> {
        &self.failures
    }

    /// Waits until the letter is confirmed, or refused for good.
    pub(crate) async fn write(&self, letter: &DeadLetter) -> Result<Receipt, Refused> {
        loop {
            let (done, result) = oneshot::channel();
            self.send(Entry {
                letter: letter.clone(),
                done,
                not_before: Instant::now(),
                failures: 0,
            });
            if Sabotage::SettleUnconfirmed.is_committed() {
                std::mem::forget(result);
                return Ok(Receipt::new("on its way"));
            }
            // The task went away only if its runtime did; on this one a new task begins.
            if let Ok(result) = result.await {
                return result;
            }
        }
    }

    fn send(&self, entry: Entry) {
        let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        let unsent = match &*inbox {
            Some(sender) => sender.send(entry).err().map(|unsent| unsent.0),
            None => Some(entry),
        };
        if let Some(entry) = unsent {
            let (sender, receiver) = mpsc::unbounded_channel();
            let postman = Postman {
                sink: self.sink.clone(),
                observers: self.observers.clone(),
                rng: SmallRng::seed_from_u64(self.seed),
                waiting: VecDeque::new(),
                failures: 0,
                shown: self.failures.clone(),
            };
            tokio::spawn(postman.run(receiver));
            // The receiver was made a line above.
            let _ = sender.send(entry);
            *inbox = Some(sender);
        }
    }
}

impl fmt::Debug for Outbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Outbox").field(&self.sink).finish()
    }
}

struct Postman {
    sink: Arc<dyn DeadLetterSink>,
    observers: Observers,
    rng: SmallRng,
    waiting: VecDeque<Entry>,
    /// Puts in a row of which nothing was confirmed.
    failures: u32,
    shown: Arc<AtomicU32>,
}

impl Postman {
    async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Entry>) {
        let mut open = true;
        loop {
            while let Ok(entry) = inbox.try_recv() {
                self.waiting.push_back(entry);
            }
            // Nobody waits for it any more: its record was given back and will come again.
            self.waiting.retain(|entry| !entry.done.is_closed());
            if self.waiting.is_empty() {
                self.shown.store(0, Ordering::Relaxed);
            }
            let batch = self.due();
            if !batch.is_empty() {
                self.put(batch).await;
                continue;
            }
            let next = self.waiting.iter().map(|entry| entry.not_before).min();
            match (open, next) {
                (true, None) => match inbox.recv().await {
                    Some(entry) => self.waiting.push_back(entry),
                    None => open = false,
                },
                (true, Some(next)) => tokio::select! {
                    biased;
                    entry = inbox.recv() => match entry {
                        Some(entry) => self.waiting.push_back(entry),
                        None => open = false,
                    },
                    () = sleep_until(next) => {}
                },
                (false, Some(next)) => sleep_until(next).await,
                (false, None) => return,
            }
        }
    }

    /// Takes what can be written now. A letter behind one of its key that must wait waits as long.
    fn due(&mut self) -> Vec<Entry> {
        let now = Instant::now();
        let mut held: HashMap<String, Instant> = HashMap::new();
        let mut batch = Vec::new();
        let mut rest = VecDeque::new();
        for mut entry in self.waiting.drain(..) {
            let key = entry.letter.partition_key.as_deref();
            let ahead = key.and_then(|key| held.get(key)).copied();
            let waits = ahead.is_some() || entry.not_before > now || batch.len() == BATCH;
            if !waits {
                batch.push(entry);
                continue;
            }
            entry.not_before = entry.not_before.max(ahead.unwrap_or(now));
            if let Some(key) = key {
                held.insert(key.to_owned(), entry.not_before);
            }
            rest.push_back(entry);
        }
        self.waiting = rest;
        batch
    }

    async fn put(&mut self, mut batch: Vec<Entry>) {
        let letters: Vec<DeadLetter> = batch.iter().map(|entry| entry.letter.clone()).collect();
        let mut results = self.results(&letters).await;
        // A sink that answers for fewer letters than it got has not confirmed the rest.
        results.resize_with(letters.len(), || {
            Err(SinkError::unavailable("the sink gave no result for this letter"))
        });
        let mut failed: Option<BoxError> = None;
        let mut progress = false;
        let mut again = Vec::new();
        for (entry, result) in batch.drain(..).zip(results) {
            let answer = match result {
                Ok(receipt) => Ok(receipt),
                Err(SinkError::Refused { size, limit, source }) => Err(Refused { size, limit, source }),
                Err(SinkError::Unavailable(error)) => {
                    failed.get_or_insert(error);
                    again.push(entry);
                    continue;
                }
                Err(SinkError::Behind) => {
                    again.push(entry);
                    continue;
                }
            };
            progress = true;
            // A receiver that is gone has given its record back.
            let _ = entry.done.send(answer);
        }
        self.failures = if progress || again.is_empty() {
            0
        } else {
            self.failures.saturating_add(1)
        };
        self.shown.store(self.failures, Ordering::Relaxed);
        if again.is_empty() {
            return;
        }
        let mut longest = Duration::ZERO;
        let now = Instant::now();
        for mut entry in again.into_iter().rev() {
            entry.failures = entry.failures.saturating_add(1);
            // A sink that is down as a whole is asked once for all; one bad letter waits alone.
            let tries = if progress { entry.failures } else { self.failures };
            let delay = Jitter::Equal.delay(&BACKOFF, tries - 1, Duration::ZERO, &mut self.rng);
            longest = longest.max(delay);
            entry.not_before = now + delay;
            self.waiting.push_front(entry);
        }
        if !progress {
            for entry in &mut self.waiting {
                entry.not_before = entry.not_before.max(now + longest);
            }
        }
        let error = failed.unwrap_or_else(|| "the sink wrote nothing".into());
        self.observers.tell(&Event::DeadLetterDelayed {
            sink: &self.sink.name(),
            letters: self.waiting.len(),
            failures: self.failures.max(1),
            error: &*error,
            delay: longest,
        });
    }

    async fn results(&self, letters: &[DeadLetter]) -> Vec<Result<Receipt, SinkError>> {
        match answer("the sink", PUT_TIMEOUT, self.sink.put(letters)).await {
            Ok(results) => results,
            Err(error) => failed_alike(letters.len(), error, SinkError::unavailable),
        }
    }
}
