//! A log of everything that happens to the records of a stream, in one order: what was begun, confirmed and
//! checkpointed.
//!
//! Each test ends with the invariants that this log must satisfy.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use redrive::checkpoint::{self, Checkpoint, CheckpointError, CheckpointStore, Leases, ShardKey};
use redrive::dead_letter::{
    DeadLetter, DeadLetterSink, Receipt, SinkError, SourceStream, TargetError, Warning,
};
use redrive::observer::{Event, FleetEvent, Observer, StreamEvent};
use redrive::processor::Attempt;
use redrive::{Position, Record, RecordProcessor, ShardId};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::events::{known, name};
use super::stream::{Place, Sent};
use super::waiting::{PATIENCE, eventually};

/// A shared log of the notes of a test. Clones share the same log.
#[derive(Clone, Default)]
pub struct Ledger(Arc<Mutex<Book>>);

#[derive(Debug, Default)]
pub struct Book {
    pub notes: Vec<Note>,
    /// The records that were processed, or whose dead letter the sink confirmed.
    pub settled: HashSet<Place>,
    /// The number of events of each [`name`] that observers received.
    pub events: HashMap<String, usize>,
}

#[derive(Debug, Clone)]
pub enum Note {
    /// A consumer starts.
    Run,
    /// The handler is called.
    Began(Place),
    /// The handler returns `Ok`.
    Processed(Place),
    /// The sink confirms a dead letter.
    Lettered(Place),
    /// A checkpoint is passed to the store.
    Saving(ShardId, Checkpoint),
    /// The store has saved a checkpoint.
    Saved(ShardId, Checkpoint),
}

impl Ledger {
    pub fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn note(&self, note: Note) {
        let mut book = self.book();
        if let Note::Processed(place) | Note::Lettered(place) = &note {
            book.settled.insert(place.clone());
        }
        book.notes.push(note);
    }

    /// Returns the number of events of this kind.
    pub fn events(&self, name: &str) -> usize {
        self.book().events.get(known(name)).copied().unwrap_or(0)
    }

    /// Wraps a handler whose calls are noted.
    pub fn handler<P>(&self, inner: P) -> Handler<P> {
        Handler {
            ledger: self.clone(),
            inner,
        }
    }

    /// Waits until `count` records are settled.
    pub async fn settled(&self, count: usize) {
        let start = Instant::now();
        while self.book().settled.len() < count {
            if start.elapsed() > PATIENCE {
                let book = self.book();
                panic!(
                    "{} of {count} records settled: {:?}",
                    book.settled.len(),
                    book.events
                );
            }
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until the stored checkpoints cover exactly the settled records.
    pub async fn stored(&self, stream: &[Sent]) {
        eventually("all settled records are stored", || self.is_stored(stream)).await;
    }

    pub fn is_stored(&self, stream: &[Sent]) -> bool {
        let book = self.book();
        let last = book.last_saved();
        stream
            .iter()
            .all(|sent| book.settled.contains(&sent.place) == covers(&last, sent))
    }

    /// Asserts what must hold in each test, at every moment.
    pub fn check(&self, stream: &[Sent]) {
        let book = self.book();
        book.check_checkpoints(stream);
        book.check_order(stream);
    }

    /// Asserts also that every record of the stream is settled exactly once.
    pub fn check_settled_once(&self, stream: &[Sent]) {
        self.check(stream);
        let book = self.book();
        let lost = stream.iter().find(|sent| !book.settled.contains(&sent.place));
        assert_eq!(lost, None, "lost");
        assert_eq!(
            book.settled.len(),
            stream.len(),
            "settled a record that is not in the stream"
        );
        assert_eq!(book.repeats(), 0, "settled twice");
    }
}

impl Book {
    /// Returns the last stored checkpoint of each shard.
    pub fn last_saved(&self) -> HashMap<ShardId, Checkpoint> {
        let mut last = HashMap::new();
        for note in &self.notes {
            if let Note::Saved(shard, checkpoint) = note {
                last.insert(shard.clone(), checkpoint.clone());
            }
        }
        last
    }

    /// Returns the number of times that a settled record was settled again.
    pub fn repeats(&self) -> usize {
        let ends = |note: &&Note| matches!(note, Note::Processed(_) | Note::Lettered(_));
        self.notes.iter().filter(ends).count() - self.settled.len()
    }

    /// Returns the notes since the last start of a consumer.
    pub fn last_run(&self) -> &[Note] {
        let start = self.notes.iter().rposition(|note| matches!(note, Note::Run));
        &self.notes[start.unwrap_or(0)..]
    }

    /// Asserts that no checkpoint passes an unsettled record, and that none moves backwards.
    fn check_checkpoints(&self, stream: &[Sent]) {
        let mut shards: HashMap<&ShardId, Vec<(&Place, Record)>> = HashMap::new();
        for sent in stream {
            let shard = shards.entry(&sent.place.shard).or_default();
            shard.push((&sent.place, sent.record()));
        }
        let mut settled: HashSet<&Place> = HashSet::new();
        let mut last: HashMap<&ShardId, &Position> = HashMap::new();
        let mut stored: HashMap<&ShardId, &Position> = HashMap::new();
        for note in &self.notes {
            match note {
                // The new run starts from what the store has. A checkpoint passed to the store last may not
                // have been saved.
                Note::Run => last = stored.clone(),
                Note::Saved(shard, checkpoint) => {
                    stored.insert(shard, checkpoint.position());
                }
                Note::Processed(place) | Note::Lettered(place) => {
                    settled.insert(place);
                }
                Note::Saving(shard, checkpoint) => {
                    for (place, record) in shards.get(shard).into_iter().flatten() {
                        assert!(
                            settled.contains(place) || !covered(checkpoint, record),
                            "{checkpoint:?} passes {place:?}, which is not settled"
                        );
                    }
                    let before = last.insert(shard, checkpoint.position());
                    assert!(
                        before.is_none_or(|before| before <= checkpoint.position()),
                        "{shard} moved backwards from {before:?} to {checkpoint:?}"
                    );
                }
                _ => {}
            }
        }
    }

    /// Asserts that a record begins only when all earlier records of its key are settled. Within one run, no
    /// record begins after a later record of its key.
    fn check_order(&self, stream: &[Sent]) {
        let mut keys: HashMap<&str, Vec<&Place>> = HashMap::new();
        let mut ranks: HashMap<&Place, (&str, usize)> = HashMap::new();
        for sent in stream {
            let places = keys.entry(&sent.key).or_default();
            ranks.insert(&sent.place, (&sent.key, places.len()));
            places.push(&sent.place);
        }
        let mut settled: HashSet<&Place> = HashSet::new();
        // For each key, the rank of the last record that has begun in this run.
        let mut last: HashMap<&str, usize> = HashMap::new();
        for note in &self.notes {
            match note {
                Note::Run => last.clear(),
                Note::Began(place) => {
                    let &(key, rank) = ranks
                        .get(place)
                        .unwrap_or_else(|| panic!("{place:?} is in no stream"));
                    let open = keys[key][..rank]
                        .iter()
                        .find(|before| !settled.contains(**before));
                    assert_eq!(open, None, "{place:?} overtakes a record of its key");
                    let before = last.insert(key, rank);
                    assert!(
                        before.is_none_or(|before| before <= rank),
                        "{place:?} begins after a later record of its key"
                    );
                }
                Note::Processed(place) | Note::Lettered(place) => {
                    settled.insert(place);
                }
                _ => {}
            }
        }
    }
}

/// Returns whether a restart from these checkpoints skips the record.
pub fn covers(checkpoints: &HashMap<ShardId, Checkpoint>, sent: &Sent) -> bool {
    let checkpoint = checkpoints.get(&sent.place.shard);
    checkpoint.is_some_and(|checkpoint| covered(checkpoint, &sent.record()))
}

fn covered(checkpoint: &Checkpoint, record: &Record) -> bool {
    checkpoint.position().covers(record) || checkpoint.ahead().is_some_and(|ahead| ahead.covers(record))
}

impl Observer for Ledger {
    fn on(&self, event: &Event<'_>) {
        *self.book().events.entry(name(event)).or_default() += 1;
        // Shown if the test fails.
        match event {
            Event::Stream {
                event: event @ StreamEvent::DiscoveryFailed { .. },
                ..
            } => println!("{event:?}"),
            Event::Fleet {
                event: event @ FleetEvent::Failed { .. },
                ..
            } => println!("{event:?}"),
            _ => {}
        }
    }
}

/// A handler whose calls are noted.
#[derive(Clone)]
pub struct Handler<P> {
    ledger: Ledger,
    inner: P,
}

impl<P: RecordProcessor> RecordProcessor for Handler<P> {
    type Error = P::Error;

    async fn process(&self, record: &Record, attempt: &Attempt<'_>) -> Result<(), P::Error> {
        self.ledger.note(Note::Began(Place::of(record)));
        self.inner.process(record, attempt).await?;
        self.ledger.note(Note::Processed(Place::of(record)));
        Ok(())
    }
}

/// A sink that can be made to fail. Clones share its state.
#[derive(Clone)]
pub struct Sink {
    ledger: Ledger,
    inner: Arc<dyn DeadLetterSink>,
    state: Arc<Mutex<SinkState>>,
}

#[derive(Debug, Clone, Default)]
pub enum SinkState {
    #[default]
    Up,
    Down,
    /// Takes dead letters once this token is cancelled.
    Waits(CancellationToken),
    /// Can never take a dead letter of this key.
    Refuses(String),
}

impl Sink {
    pub fn new(ledger: &Ledger, inner: impl DeadLetterSink + 'static) -> Self {
        Sink {
            ledger: ledger.clone(),
            inner: Arc::new(inner),
            state: Arc::default(),
        }
    }

    pub fn set(&self, state: SinkState) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }
}

impl fmt::Debug for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Sink").field(&self.inner).finish()
    }
}

#[async_trait]
impl DeadLetterSink for Sink {
    async fn put(&self, letters: &[DeadLetter]) -> Vec<Result<Receipt, SinkError>> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let SinkState::Waits(until) = &state {
            until.cancelled().await;
        }
        let mut results = Vec::new();
        for letter in letters {
            let result = match &state {
                SinkState::Down => Err(SinkError::unavailable("down")),
                SinkState::Refuses(key) if letter.partition_key.as_ref() == Some(key) => {
                    Err(SinkError::Refused {
                        size: 2_000_000,
                        limit: 1_048_576,
                        source: "too large".into(),
                    })
                }
                _ => self.inner.put(std::slice::from_ref(letter)).await.remove(0),
            };
            if result.is_ok() {
                self.ledger.note(Note::Lettered(Place {
                    shard: letter.shard.clone(),
                    number: letter.sequence_number.clone(),
                }));
            }
            results.push(result);
        }
        results
    }

    async fn check(&self, source: &SourceStream) -> Result<Vec<Warning>, TargetError> {
        self.inner.check(source).await
    }

    fn name(&self) -> String {
        self.inner.name()
    }
}

/// A store that notes each checkpoint and can be made to fail. Clones share its state.
#[derive(Clone, Debug)]
pub struct Store {
    ledger: Ledger,
    inner: Arc<dyn CheckpointStore>,
    down: Arc<AtomicBool>,
    interval: Duration,
}

impl Store {
    /// Creates a store in memory with a short write interval, so that a test sees many checkpoints.
    pub fn new(ledger: &Ledger) -> Self {
        Store::over(ledger, checkpoint::Memory::new())
    }

    /// Wraps another store, with the same short write interval.
    pub fn over(ledger: &Ledger, inner: impl CheckpointStore + 'static) -> Self {
        Store {
            ledger: ledger.clone(),
            inner: Arc::new(inner),
            down: Arc::default(),
            interval: Duration::from_millis(10),
        }
    }

    pub fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    pub fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::Relaxed);
    }

    fn is_down(&self) -> bool {
        self.down.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl CheckpointStore for Store {
    async fn load(&self, shards: &[ShardKey]) -> Vec<Result<Option<Checkpoint>, CheckpointError>> {
        if self.is_down() {
            return shards
                .iter()
                .map(|_| Err(CheckpointError::unavailable("down")))
                .collect();
        }
        self.inner.load(shards).await
    }

    async fn save(&self, rows: &[(ShardKey, Checkpoint)]) -> Vec<Result<(), CheckpointError>> {
        for (key, checkpoint) in rows {
            self.ledger
                .note(Note::Saving(key.shard.clone(), checkpoint.clone()));
        }
        if self.is_down() {
            return rows
                .iter()
                .map(|_| Err(CheckpointError::unavailable("down")))
                .collect();
        }
        let results = self.inner.save(rows).await;
        for ((key, checkpoint), _) in rows.iter().zip(&results).filter(|(_, result)| result.is_ok()) {
            self.ledger
                .note(Note::Saved(key.shard.clone(), checkpoint.clone()));
        }
        results
    }

    async fn list(
        &self,
        application: &str,
        stream: &str,
    ) -> Result<Option<Vec<(ShardId, Checkpoint)>>, CheckpointError> {
        match self.is_down() {
            true => Err(CheckpointError::unavailable("down")),
            false => self.inner.list(application, stream).await,
        }
    }

    fn leases(&self) -> Option<&dyn Leases> {
        self.inner.leases()
    }

    fn write_interval(&self) -> Duration {
        self.interval
    }
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ledger").finish_non_exhaustive()
    }
}
