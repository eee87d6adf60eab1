//! The dead letters on their way to the sink: written together, kept until confirmed.

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
use crate::observer::{Event, Observers};
use crate::protection::{Backoff, Jitter};
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
    /// The number of dead letters so far.
    count: AtomicU64,
    // Its letters are bounded by the callers, each of which waits for its own.
    inbox: Mutex<Option<mpsc::UnboundedSender<Entry>>>,
}

struct Entry {
    /// Its place in the order of arrival.
    number: u64,
    letter: DeadLetter,
    done: oneshot::Sender<Result<Receipt, Refused>>,
    not_before: Instant,
    failures: u32,
    /// The most dead letters in a put with this one.
    together: usize,
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
/// The number of parts that a put is divided into which the sink did not answer.
const PARTS: usize = 16;
/// The most puts at a time.
const PUTS: usize = 8;
/// The most puts of such parts at a time: half, so that dead letters which hang leave room to others.
const PARTS_AT_A_TIME: usize = 4;
/// A put that takes longer lets another begin.
const SLOW: Duration = Duration::from_secs(1);
/// Between tries of a letter that the sink did not take.
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

/// The task that writes to the sink.
///
/// One put follows the other, so that dead letters which come meanwhile go out together. A put that takes longer than
/// [`SLOW`] lets others begin before it ends: the sink may hang for one of its dead letters. If it has not answered in
/// time, nothing is known of any of them. They are put again in smaller parts, each with its own answer, down to one by
/// one: what the sink takes is confirmed, and one that hangs is alone.
struct Writer {
    sink: Arc<dyn DeadLetterSink>,
    name: String,
    observers: Observers,
    rng: SmallRng,
    /// In the order in which they came.
    waiting: Vec<Entry>,
    puts: JoinSet<Answered>,
    running: HashMap<Id, PutUnderWay>,
    /// The most dead letters of one put: fewer once a put was too slow, more again once puts are fast.
    most: usize,
    /// Puts in a row of which nothing was confirmed.
    failures: u32,
    shown: Arc<AtomicU32>,
}

/// A put that is under way.
struct PutUnderWay {
    began: Instant,
    is_part: bool,
    /// The partition keys of its dead letters. No other put has one of them.
    keys: HashSet<String>,
}

/// What the sink said of these dead letters. An error if it said nothing.
struct Answered {
    entries: Vec<Entry>,
    results: Result<Vec<Result<Receipt, SinkError>>, BoxError>,
}

impl Entry {
    /// Whether it was in a put that the sink did not answer.
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
                // No caller waits for these any more: their records were returned to the stream.
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
                    // Whoever waits for one of its dead letters sends it again.
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

    /// Whether another put may begin now: of parts, or of dead letters that are new or were answered.
    fn may_begin(&self, parts: bool, now: Instant) -> bool {
        let running = self.running.values();
        match parts {
            true => running.filter(|put| put.is_part).count() < PARTS_AT_A_TIME,
            false => self.running.len() < PUTS && running.clone().all(|put| now >= put.began + SLOW),
        }
    }

    /// When there may be something to begin, other than by an answer or by another dead letter.
    fn next_time(&self, now: Instant) -> Option<Instant> {
        let due = self.waiting.iter().map(|entry| entry.not_before);
        let slow = self.running.values().map(|put| put.began + SLOW);
        let slow = slow.filter(|_| !self.waiting.is_empty());
        due.chain(slow).filter(|time| *time > now).min()
    }

    /// Takes what is to be put now. A dead letter waits for those of its key that came before it.
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
            // Those that are least suspected to hang come first.
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

    /// Tells whoever waits what the sink said. What it did not take is put again later.
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
            // The sink does not hang for it.
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
            // A receiver that is gone has returned its record to the stream.
            let _ = entry.done.send(answer);
        }
        self.count(progress || again.is_empty());
        if again.is_empty() {
            return;
        }
        let mut longest = Duration::ZERO;
        for entry in &mut again {
            entry.failures = entry.failures.saturating_add(1);
            // A sink that is down as a whole is asked once for all; one bad dead letter waits alone.
            let tries = if progress { entry.failures } else { self.failures };
            longest = longest.max(self.delay(entry, tries));
        }
        if !progress {
            self.delay_all(longest);
        }
        let error = failed.unwrap_or_else(|| "the sink wrote nothing".into());
        self.put_back(again, &*error, longest);
    }

    /// The sink said nothing of them: they are put again in parts, and one by itself after a while.
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
        // One that fails at once, whatever it is given, is down as a whole.
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

    /// Puts it off, as after this number of tries. Returns for how long.
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
        self.observers.tell(&Event::DeadLetterDelayed {
            sink: &self.name,
            letters: self.waiting.len(),
            failures: self.failures.max(1),
            error,
            delay,
        });
    }
}
