//! A dead-letter sink that answers as a script says, and records every put.

use std::collections::HashSet;
use std::fmt;
use std::future::pending;
use std::slice;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use redrive::dead_letter::{
    DeadLetter, DeadLetterSink, Memory, Receipt, SinkError, SourceStream, TargetError, Warning,
};
use tokio::time::{Instant, sleep};

/// Confirms every dead letter unless a script says otherwise. Clones share all state.
#[derive(Clone, Default)]
pub struct ScriptedSink {
    letters: Memory,
    state: Arc<Mutex<State>>,
}

type Checked = Result<Vec<Warning>, TargetError>;
type OnPut = dyn FnMut(&Put, &[DeadLetter]) -> Answer + Send;
type OnCheck = dyn FnMut(&SourceStream) -> Checked + Send;

#[derive(Default)]
struct State {
    puts: Vec<Put>,
    on_put: Option<Box<OnPut>>,
    on_check: Option<Box<OnCheck>>,
}

/// One call of `put`.
#[derive(Debug, Clone)]
pub struct Put {
    /// The number of the call, from 1.
    pub number: usize,
    /// The partition key of each dead letter.
    pub keys: Vec<Option<String>>,
    pub at: Instant,
}

/// The sink's response to the dead letters of one put. After a dead letter that fails, later ones of its
/// partition key fail as [`SinkError::Behind`].
pub enum Answer {
    /// Confirms all.
    Take,
    /// Confirms all once the future completes.
    TakeAfter(BoxFuture<'static, ()>),
    /// Confirms the first ones, up to this number. The others fail as unavailable.
    TakeFirst(usize),
    /// Confirms or fails each dead letter by its own result.
    Each(Vec<Result<(), SinkError>>),
    /// Fails all, each with an error from this function.
    Fail(fn() -> SinkError),
    /// Writes all and reports all as unavailable.
    Lose,
    Hang,
    Panic,
    /// Returns no results.
    Nothing,
}

impl Answer {
    /// Creates an answer that confirms all after this time.
    pub fn take_late(time: Duration) -> Self {
        Answer::TakeAfter(Box::pin(sleep(time)))
    }
}

/// Returns the error of a sink that is down.
pub fn unavailable() -> SinkError {
    SinkError::unavailable("down")
}

impl ScriptedSink {
    /// Returns the dead letters that were written: all confirmed ones, and those of [`Answer::Lose`].
    pub fn letters(&self) -> Vec<DeadLetter> {
        self.letters.letters()
    }

    pub fn puts(&self) -> Vec<Put> {
        self.state().puts.clone()
    }

    /// Replaces the script for puts.
    pub fn on_put(&self, script: impl FnMut(&Put, &[DeadLetter]) -> Answer + Send + 'static) {
        self.state().on_put = Some(Box::new(script));
    }

    /// Replaces the script for puts with one that fails all as unavailable, or confirms all.
    pub fn set_down(&self, down: bool) {
        self.on_put(move |_, _| match down {
            true => Answer::Fail(unavailable),
            false => Answer::Take,
        });
    }

    /// Replaces the script for checks.
    pub fn on_check(&self, script: impl FnMut(&SourceStream) -> Checked + Send + 'static) {
        self.state().on_check = Some(Box::new(script));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while locked")
    }

    fn answer(&self, letters: &[DeadLetter]) -> Answer {
        let mut state = self.state();
        let keys = letters.iter().map(|letter| letter.partition_key.clone());
        let put = Put {
            number: state.puts.len() + 1,
            keys: keys.collect(),
            at: Instant::now(),
        };
        state.puts.push(put.clone());
        let script = state.on_put.as_mut();
        script.map_or(Answer::Take, |script| script(&put, letters))
    }
}

#[async_trait]
impl DeadLetterSink for ScriptedSink {
    async fn put(&self, letters: &[DeadLetter]) -> Vec<Result<Receipt, SinkError>> {
        let mut outcomes: Vec<Result<(), SinkError>> = letters.iter().map(|_| Ok(())).collect();
        match self.answer(letters) {
            Answer::Take => {}
            Answer::TakeAfter(until) => until.await,
            Answer::TakeFirst(count) => {
                let rest = outcomes.iter_mut().skip(count);
                rest.for_each(|outcome| *outcome = Err(unavailable()));
            }
            Answer::Each(each) => outcomes = each,
            Answer::Fail(error) => outcomes.fill_with(|| Err(error())),
            Answer::Lose => {
                let written = self.letters.put(letters).await;
                return written.iter().map(|_| Err(unavailable())).collect();
            }
            Answer::Hang => pending().await,
            Answer::Panic => panic!("scripted"),
            Answer::Nothing => return Vec::new(),
        }
        assert_eq!(outcomes.len(), letters.len(), "a result for each dead letter");
        let mut failed = HashSet::new();
        let mut results = Vec::new();
        for (letter, outcome) in letters.iter().zip(outcomes) {
            let key = &letter.partition_key;
            let result = match outcome {
                _ if failed.contains(key) => Err(SinkError::Behind),
                Ok(()) => self.letters.put(slice::from_ref(letter)).await.remove(0),
                Err(error) => Err(error),
            };
            failed.extend(result.is_err().then_some(key));
            results.push(result);
        }
        results
    }

    async fn check(&self, source: &SourceStream) -> Checked {
        let mut state = self.state();
        let script = state.on_check.as_mut();
        script.map_or(Ok(Vec::new()), |script| script(source))
    }

    fn name(&self) -> String {
        "scripted".to_owned()
    }
}

impl fmt::Debug for ScriptedSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ScriptedSink")
    }
}
