//! The outbox: keeps dead letters until the sink confirms them, and writes many of them in one put.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::error::Error;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use std::{fmt, mem};

use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{Id, JoinSet};
use tokio::time::{Instant, sleep_until};

use crate::dead_letter::{DeadLetter, DeadLetterSink, PUT_TIMEOUT, Receipt, SinkError};
use crate::external::answer;
use crate::external::caught;
use crate::failure::BoxError;
use crate::observer::{DeadLetterEvent, Event, Observers};
use crate::protection::{Backoff, Jitter};
use crate::sabotage::Sabotage;

/// One sink and the task that writes to it. The task starts with the first dead letter, and ends when the
/// processor is dropped.
///
/// The separate task has three purposes. Dead letters of many shards share a request. A sink that is down is
/// retried by one caller instead of by every record. A caller that is dropped interrupts no write.
pub(crate) struct Outbox {
    sink: Arc<dyn DeadLetterSink>,
    observers: Observers,
    seed: u64,
    /// The number of consecutive puts of which the sink confirmed nothing.
    failures: Arc<AtomicU32>,
    /// The number of dead letters so far.
    count: AtomicU64,
    // Unbounded, but bounded by the callers: each waits for its own dead letter.
    inbox: Mutex<Option<mpsc::UnboundedSender<Entry>>>,
}

struct Entry {
    /// The place of the dead letter in the order of arrival.
    number: u64,
    letter: DeadLetter,
    done: oneshot::Sender<Result<Receipt, Refused>>,
    not_before: Instant,
    failures: u32,
    /// The maximum number of dead letters in a put that contains this one.
    together: usize,
}

/// A dead letter that the sink can never take.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) size: u64,
    pub(crate) limit: u64,
    pub(crate) source: BoxError,
}

/// The maximum number of dead letters in a put: a PutRecords request takes as many.
const BATCH: usize = 500;
/// The number of parts into which a put is divided after the sink did not answer it.
const PARTS: usize = 16;
/// The maximum number of concurrent puts.
const PUTS: usize = 8;
/// The maximum number of concurrent puts of such parts. Dead letters that make the sink hang thus leave half
/// of the puts to others.
const PARTS_AT_A_TIME: usize = 4;
/// The duration after which a running put lets another one start.
const SLOW: Duration = Duration::from_secs(1);
/// The backoff between tries of a dead letter that the sink did not take.
const BACKOFF: Backoff = Backoff::exponential();

impl Outbox {
    pub(crate) fn new(sink: Arc<dyn DeadLetterSink>, observers: Observers, seed: u64) -> Self {
        Outbox {
            sink,
            observers,
            seed,
            failures: Arc::default(),
            count: AtomicU64::new(0),
            inbox: Mutex::new(None),
        }
    }

    pub(crate) fn sink(&self) -> &Arc<dyn DeadLetterSink> {
        &self.sink
    }

    /// Returns the number of consecutive puts of which the sink confirmed nothing.
    #[cfg(feature = "kinesis")]
    pub(crate) fn failures(&self) -> &Arc<AtomicU32> {
        &self.failures
    }

    /// Waits until the sink confirms the dead letter or refuses it permanently.
    pub(crate) async fn write(&self, letter: &DeadLetter) -> Result<Receipt, Refused> {
        loop {
            let (done, result) = oneshot::channel();
            self.send(Entry {
                number: self.count.fetch_add(1, Ordering::Relaxed),
                letter: letter.clone(),
                done,
                not_before: Instant::now(),
                failures: 0,
                together: BATCH,
            });
            if Sabotage::SettleUnconfirmed.is_committed() {
                std::mem::forget(result);
                return Ok(Receipt::new("on its way"));
            }
            // The put's task ended early, or the writer's runtime shut down. The dead letter is sent again,
            // if necessary to a new writer on this runtime.
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
            let name = caught(|| self.sink.name());
            let writer = Writer {
                sink: self.sink.clone(),
                name: name.unwrap_or_else(|| "the dead-letter sink".to_owned()),
                observers: self.observers.clone(),
                rng: SmallRng::seed_from_u64(self.seed),
                waiting: Vec::new(),
                puts: JoinSet::new(),
                running: HashMap::new(),
                most: BATCH,
                failures: 0,
                shown: self.failures.clone(),
            };
            tokio::spawn(writer.run(receiver));
            // Succeeds: the receiver was created above.
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

/// The task that writes to the sink.
///
/// Puts run one after the other, so that dead letters that arrive during a put share the next one. A put that
/// takes longer than [`SLOW`] lets others start before it ends, because the sink may hang for one of its dead
/// letters.
///
/// If the sink does not answer a put in time, the outcome of its dead letters is unknown. The writer puts
/// them again in smaller parts, down to one by one. A dead letter that makes the sink hang thus ends up
/// alone, and the sink confirms the others.
struct Writer {
    sink: Arc<dyn DeadLetterSink>,
    name: String,
    observers: Observers,
    rng: SmallRng,
    /// The dead letters that wait for a put, in the order of arrival.
    waiting: Vec<Entry>,
    puts: JoinSet<Answered>,
    running: HashMap<Id, PutUnderWay>,
    /// The maximum number of dead letters in a put. It shrinks when the sink does not answer and grows when
    /// puts are fast.
    most: usize,
    /// The number of consecutive puts of which the sink confirmed nothing.
    failures: u32,
    shown: Arc<AtomicU32>,
}

/// A running put.
struct PutUnderWay {
    began: Instant,
    is_part: bool,
    /// The partition keys of the put's dead letters. No other running put has one of these keys.
    keys: HashSet<String>,
}

/// The sink's results for these dead letters, or an error if the sink did not answer.
struct Answered {
    entries: Vec<Entry>,
    results: Result<Vec<Result<Receipt, SinkError>>, BoxError>,
}

impl Entry {
    /// Returns true if the dead letter was in a put that the sink did not answer.
    fn is_part(&self) -> bool {
        self.together < BATCH
    }

    fn key(&self) -> Option<&str> {
        self.letter.partition_key.as_deref()
    }
}

impl Writer {
    async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Entry>) {
        let mut open = true;
        loop {
            while let Ok(entry) = inbox.try_recv() {
                self.waiting.push(entry);
            }
            let now = Instant::now();
            if self.may_begin(false, now) || self.may_begin(true, now) {
                // Drops dead letters whose callers no longer wait: their records were returned to the stream.
                self.waiting.retain(|entry| !entry.done.is_closed());
                while let Some(entries) = self.due(now) {
                    self.begin(entries, now);
                }
            }
            if self.waiting.is_empty() && self.running.is_empty() {
                self.shown.store(0, Ordering::Relaxed);
                if !open {
                    return;
                }
            }
            let next = self.next_time(now);
            tokio::select! {
                biased;
                Some(answered) = self.puts.join_next_with_id(), if !self.puts.is_empty() => match answered {
                    Ok((id, answered)) => self.answered(id, answered),
                    // The callers of the put's dead letters send them again.
                    Err(broken) => drop(self.running.remove(&broken.id())),
                },
                entry = inbox.recv(), if open => match entry {
                    Some(entry) => self.waiting.push(entry),
                    None => open = false,
                },
                () = sleep_until(next.unwrap_or(now)), if next.is_some() => {}
            }
        }
    }

    /// Returns true if another put may start now: if `parts`, one of parts, else one of dead letters that are
    /// new or were answered.
    fn may_begin(&self, parts: bool, now: Instant) -> bool {
        let running = self.running.values();
        match parts {
            true => running.filter(|put| put.is_part).count() < PARTS_AT_A_TIME,
            false => self.running.len() < PUTS && running.clone().all(|put| now >= put.began + SLOW),
        }
    }

    /// Returns the next time at which a put may start, even if neither an answer nor a new dead letter
    /// arrives.
    fn next_time(&self, now: Instant) -> Option<Instant> {
        let due = self.waiting.iter().map(|entry| entry.not_before);
        let slow = self.running.values().map(|put| put.began + SLOW);
        let slow = slow.filter(|_| !self.waiting.is_empty());
        due.chain(slow).filter(|time| *time > now).min()
    }

    /// Takes the dead letters of the next put. A dead letter waits for earlier ones of its key.
    fn due(&mut self, now: Instant) -> Option<Vec<Entry>> {
        let may_begin = [false, true].map(|parts| self.may_begin(parts, now));
        let in_flight = |key| self.running.values().any(|put| put.keys.contains(key));
        let mut seen: HashSet<&str> = HashSet::new();
        let mut first: Option<(usize, &Entry)> = None;
        for (at, entry) in self.waiting.iter().enumerate() {
            let is_behind = entry.key().is_some_and(|key| !seen.insert(key) || in_flight(key));
            if is_behind || entry.not_before > now || !may_begin[usize::from(entry.is_part())] {
                continue;
            }
            // Dead letters that are least suspected to make the sink hang come first.
            let rank = |entry: &Entry| (Reverse(entry.together), entry.failures);
            if first.is_none_or(|(_, first)| rank(entry) < rank(first)) {
                first = Some((at, entry));
            }
        }
        let (first, together) = first.map(|(at, entry)| (at, entry.together))?;
        let most = self.most.min(together);
        if most == 1 {
            return Some(vec![self.waiting.remove(first)]);
        }
        let mut held: HashSet<String> = HashSet::new();
        let mut taken = Vec::new();
        let mut left = Vec::new();
        for entry in mem::take(&mut self.waiting) {
            let is_held =
                |key: &str| held.contains(key) || self.running.values().any(|put| put.keys.contains(key));
            let is_taken = taken.len() < most
                && entry.together == together
                && entry.not_before <= now
                && !entry.key().is_some_and(is_held);
            if is_taken {
                taken.push(entry);
                continue;
            }
            held.extend(entry.key().map(str::to_owned));
            left.push(entry);
        }
        self.waiting = left;
        Some(taken)
    }

    fn begin(&mut self, entries: Vec<Entry>, now: Instant) {
        let running = PutUnderWay {
            began: now,
            is_part: entries.iter().any(Entry::is_part),
            keys: entries
                .iter()
                .filter_map(|entry| entry.key())
                .map(str::to_owned)
                .collect(),
        };
        let sink = self.sink.clone();
        let put = self.puts.spawn(async move {
            let letters: Vec<DeadLetter> = entries.iter().map(|entry| entry.letter.clone()).collect();
            let put = async { sink.put(&letters).await };
            let results = answer("the sink", PUT_TIMEOUT, put).await;
            Answered { entries, results }
        });
        self.running.insert(put.id(), running);
    }

    fn answered(&mut self, id: Id, Answered { entries, results }: Answered) {
        let began = self.running.remove(&id).map(|put| put.began);
        let took = began.map_or(Duration::ZERO, |began| began.elapsed());
        match results {
            Ok(results) => self.settle(entries, results, took),
            Err(error) => self.part(entries, &*error, took),
        }
    }

    /// Sends the sink's results to the callers. Dead letters that the sink did not take are put again later.
    fn settle(&mut self, entries: Vec<Entry>, mut results: Vec<Result<Receipt, SinkError>>, took: Duration) {
        if entries.len() == self.most && took < PUT_TIMEOUT / 8 {
            self.most = (self.most * 2).min(BATCH);
        }
        // A sink that answers for fewer dead letters than it got has not confirmed the rest.
        results.resize_with(entries.len(), || {
            Err(SinkError::unavailable(
                "the sink gave no result for this dead letter",
            ))
        });
        let mut failed: Option<BoxError> = None;
        let mut progress = false;
        let mut again = Vec::new();
        for (mut entry, result) in entries.into_iter().zip(results) {
            // The sink answered, so this dead letter does not make it hang.
            entry.together = BATCH;
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
            // A caller that no longer waits has returned its record to the stream.
            let _ = entry.done.send(answer);
        }
        self.count(progress || again.is_empty());
        if again.is_empty() {
            return;
        }
        let mut longest = Duration::ZERO;
        for entry in &mut again {
            entry.failures = entry.failures.saturating_add(1);
            // If the sink is down as a whole, all dead letters wait together. A single bad one waits alone.
            let tries = if progress { entry.failures } else { self.failures };
            longest = longest.max(self.delay(entry, tries));
        }
        if !progress {
            self.delay_all(longest);
        }
        let error = failed.unwrap_or_else(|| "the sink wrote no dead letter".into());
        self.put_back(again, &*error, longest);
    }

    /// Puts back dead letters that the sink did not answer: several in smaller parts, a single one with a
    /// delay.
    fn part(&mut self, mut entries: Vec<Entry>, error: &(dyn Error + Send + Sync + 'static), took: Duration) {
        self.count(false);
        let count = entries.len();
        let together = (count / PARTS).max(1);
        if count > 1 {
            self.most = self.most.min(together);
        }
        let mut longest = Duration::ZERO;
        for entry in &mut entries {
            entry.together = together;
            if count == 1 {
                let tries = entry.failures.saturating_add(1);
                entry.failures = tries;
                longest = longest.max(self.delay(entry, tries));
            }
        }
        // A sink that fails at once several times in a row is down as a whole.
        if took < SLOW && self.failures > 1 {
            for entry in &mut entries {
                longest = longest.max(self.delay(entry, self.failures));
            }
            self.delay_all(longest);
        }
        self.put_back(entries, error, longest);
    }

    fn count(&mut self, progress: bool) {
        self.failures = if progress {
            0
        } else {
            self.failures.saturating_add(1)
        };
        self.shown.store(self.failures, Ordering::Relaxed);
    }

    /// Delays the entry as after this number of tries. Returns the delay.
    fn delay(&mut self, entry: &mut Entry, tries: u32) -> Duration {
        let delay = Jitter::Equal.delay(&BACKOFF, tries.saturating_sub(1), Duration::ZERO, &mut self.rng);
        entry.not_before = Instant::now() + delay;
        delay
    }

    fn delay_all(&mut self, time: Duration) {
        let until = Instant::now() + time;
        for entry in &mut self.waiting {
            entry.not_before = entry.not_before.max(until);
        }
    }

    fn put_back(
        &mut self,
        entries: Vec<Entry>,
        error: &(dyn Error + Send + Sync + 'static),
        delay: Duration,
    ) {
        self.waiting.extend(entries);
        self.waiting.sort_by_key(|entry| entry.number);
        self.observers
            .tell(&Event::DeadLetter(DeadLetterEvent::WriteDelayed {
                sink: &self.name,
                letters: self.waiting.len(),
                failures: self.failures.max(1),
                error,
                delay,
            }));
    }
}
