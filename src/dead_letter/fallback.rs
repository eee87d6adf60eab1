//! A second sink for dead letters that the first does not take.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::{Instant, timeout};

use super::{DeadLetter, DeadLetterSink, Receipt, SinkError, SourceStream, Storage, TargetError, Warning};

/// Writes dead letters to a first sink, and to another one those that the first can never take. The other
/// sink also takes over while the first is down for long.
///
/// ```
/// # fn example(letters: redrive::dead_letter::Memory, disk: redrive::dead_letter::Memory) {
/// use std::time::Duration;
/// use redrive::dead_letter::Fallback;
///
/// let sink = Fallback::new(letters, disk).after(Duration::from_secs(300));
/// # }
/// ```
///
/// - A dead letter that the first sink [refuses](SinkError::Refused) goes to the other at once.
/// - While the first sink is down, dead letters wait for it, as for any sink. When it has confirmed nothing
///   for [`after`](Fallback::after), they go to the other. The first is then retried twice a minute.
/// - A put into the first sink fails if it takes longer than 20 s.
///
/// Dead letters of one partition key are in order in each of the two sinks. A replay must read both sinks.
#[derive(Debug)]
pub struct Fallback<A, B> {
    first: A,
    other: B,
    after: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The time of the first failed put since the first sink last answered.
    down_since: Option<Instant>,
    /// The time of the next put into the first sink, while the other has taken over.
    next_try: Option<Instant>,
}

/// The timeout of a put into the first sink: shorter than the engine's, so that the other sink has time.
const FIRST_TIMEOUT: Duration = Duration::from_secs(20);
const RETRY_INTERVAL: Duration = Duration::from_secs(30);

impl<A: DeadLetterSink, B: DeadLetterSink> Fallback<A, B> {
    /// Creates a sink that writes to `first`, and falls back to `other`.
    pub fn new(first: A, other: B) -> Self {
        Fallback {
            first,
            other,
            after: Duration::from_secs(60),
            state: Mutex::default(),
        }
    }

    /// Sets how long the first sink must be down before the other takes over. Any time is valid: with zero, the
    /// other sink takes over at the first failed put. Default: a minute.
    #[must_use]
    pub fn after(mut self, time: Duration) -> Self {
        self.after = time;
        self
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns true if the other sink has taken over and the next try of the first is not due.
    fn is_given_up(&self) -> bool {
        self.state().next_try.is_some_and(|next| Instant::now() < next)
    }

    /// Puts the dead letters into the first sink. Returns its results, and whether it has been down for so
    /// long that the other takes over.
    async fn ask_first(&self, letters: &[DeadLetter]) -> (Vec<Result<Receipt, SinkError>>, bool) {
        let said = timeout(FIRST_TIMEOUT, self.first.put(letters)).await;
        let mut results = said.unwrap_or_default();
        let silent = || {
            Err(SinkError::unavailable(format!(
                "{} did not answer",
                self.first.name()
            )))
        };
        results.resize_with(letters.len(), silent);
        let answered = |result: &Result<Receipt, SinkError>| {
            // A sink that refuses a dead letter is up.
            matches!(result, Ok(_) | Err(SinkError::Refused { .. }))
        };
        let now = Instant::now();
        let mut state = self.state();
        if results.iter().any(answered) {
            *state = State::default();
            return (results, false);
        }
        let since = *state.down_since.get_or_insert(now);
        let is_down = now - since >= self.after;
        state.next_try = is_down.then(|| now + RETRY_INTERVAL);
        (results, is_down)
    }
}

#[async_trait]
impl<A: DeadLetterSink, B: DeadLetterSink> DeadLetterSink for Fallback<A, B> {
    async fn put(&self, letters: &[DeadLetter]) -> Vec<Result<Receipt, SinkError>> {
        let mut results: Vec<Option<Result<Receipt, SinkError>>> = letters.iter().map(|_| None).collect();
        let mut left: Vec<usize> = (0..letters.len()).collect();
        // Each turn settles at least one dead letter of each key that continues, or the loop ends.
        while !left.is_empty() {
            let some: Vec<DeadLetter> = left.iter().map(|&index| letters[index].clone()).collect();
            let (said, is_down) = match self.is_given_up() {
                true => (some.iter().map(|_| Err(SinkError::Behind)).collect(), true),
                false => self.ask_first(&some).await,
            };
            let mut to_other = Vec::new();
            let mut next = Vec::new();
            let mut ended: HashSet<Option<&str>> = HashSet::new();
            for (&index, said) in left.iter().zip(said) {
                let key = letters[index].partition_key.as_deref();
                match said {
                    Ok(receipt) => results[index] = Some(Ok(receipt)),
                    // The other sink may take the dead letter ahead of it in this turn.
                    Err(SinkError::Behind) if !is_down && !ended.contains(&key) => next.push(index),
                    Err(SinkError::Refused { .. }) => to_other.push(index),
                    Err(_) if is_down => to_other.push(index),
                    Err(error) => {
                        ended.insert(key);
                        results[index] = Some(Err(error));
                    }
                }
            }
            let some: Vec<DeadLetter> = to_other.iter().map(|&index| letters[index].clone()).collect();
            if !some.is_empty() {
                let mut said = self.other.put(&some).await.into_iter();
                for &index in &to_other {
                    let said = said.next().unwrap_or(Err(SinkError::Behind));
                    if said.is_err() {
                        ended.insert(letters[index].partition_key.as_deref());
                    }
                    results[index] = Some(said);
                }
            }
            next.retain(|&index| {
                let goes_on = !ended.contains(&letters[index].partition_key.as_deref());
                if !goes_on {
                    results[index] = Some(Err(SinkError::Behind));
                }
                goes_on
            });
            if next.len() == left.len() {
                break;
            }
            left = next;
        }
        results
            .into_iter()
            .map(|result| result.unwrap_or(Err(SinkError::Behind)))
            .collect()
    }

    async fn check(&self, source: &SourceStream) -> Result<Vec<Warning>, TargetError> {
        let mut warnings = self.first.check(source).await?;
        warnings.extend(self.other.check(source).await?);
        Ok(warnings)
    }

    fn name(&self) -> String {
        format!("{} or {}", self.first.name(), self.other.name())
    }

    fn storage(&self) -> Vec<Storage> {
        [self.first.storage(), self.other.storage()].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dead_letter::Memory;

    #[test]
    fn the_documented_default() {
        let sink = Fallback::new(Memory::new(), Memory::new());
        assert_eq!(sink.after, Duration::from_secs(60));
    }
}
