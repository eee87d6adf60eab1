//! Several sinks, each with every letter.

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::future::join_all;

use super::{DeadLetter, DeadLetterSink, Receipt, SinkError, SourceStream, Storage, TargetError, Warning};

/// Writes each letter to every one of its sinks; it counts as written when all have confirmed it.
///
/// ```
/// # fn example(stream: redrive::dead_letter::Memory, archive: redrive::dead_letter::Memory) {
/// use redrive::dead_letter::FanOut;
///
/// let sink = FanOut::new().and(stream).and(archive);
/// # }
/// ```
///
/// When one fails the letter is written again, also to those that have it: with the same id, so that readers drop the
/// copy. If one can never take it the shard halts: give that one a [`Fallback`](super::Fallback).
#[derive(Debug, Clone, Default)]
pub struct FanOut {
    sinks: Vec<Arc<dyn DeadLetterSink>>,
}

impl FanOut {
    /// Of no sink yet. Without any nothing is ever confirmed.
    pub fn new() -> Self {
        FanOut::default()
    }

    /// And this one.
    #[must_use]
    pub fn and(mut self, sink: impl DeadLetterSink + 'static) -> Self {
        self.sinks.push(Arc::new(sink));
        self
    }
}

#[async_trait]
impl DeadLetterSink for FanOut {
    async fn put(&self, letters: &[DeadLetter]) -> Vec<Result<Receipt, SinkError>> {
        let puts = self.sinks.iter().map(|sink| sink.put(letters));
        let mut said: Vec<_> = join_all(puts).await.into_iter().map(Vec::into_iter).collect();
        let results = letters.iter().map(|_| {
            let of_one = said
                .iter_mut()
                .map(|said| said.next().unwrap_or(Err(SinkError::Behind)));
            all(of_one.collect())
        });
        results.collect()
    }

    async fn check(&self, source: &SourceStream) -> Result<Vec<Warning>, TargetError> {
        let checks = self.sinks.iter().map(|sink| sink.check(source));
        let warnings = join_all(checks)
            .await
            .into_iter()
            .collect::<Result<Vec<_>, _>>()?;
        Ok(warnings.concat())
    }

    fn name(&self) -> String {
        let names: Vec<String> = self.sinks.iter().map(|sink| sink.name()).collect();
        match names.is_empty() {
            true => "no sink".to_owned(),
            false => names.join(" and "),
        }
    }

    fn storage(&self) -> Vec<Storage> {
        self.sinks.iter().flat_map(|sink| sink.storage()).collect()
    }
}

/// What all say together: the worst.
fn all(said: Vec<Result<Receipt, SinkError>>) -> Result<Receipt, SinkError> {
    let rank = |error: &SinkError| match error {
        SinkError::Refused { .. } => 2,
        SinkError::Unavailable(_) => 1,
        SinkError::Behind => 0,
    };
    let (mut places, mut worst) = (Vec::new(), None);
    if said.is_empty() {
        return Err(SinkError::unavailable("there is no sink: FanOut::new().and(…)"));
    }
    for said in said {
        match said {
            Ok(receipt) => places.push(receipt.location),
            Err(error) if worst.as_ref().is_none_or(|worst| rank(worst) < rank(&error)) => {
                worst = Some(error)
            }
            Err(_) => {}
        }
    }
    match worst {
        Some(error) => Err(error),
        None => Ok(Receipt::new(places.join(" and "))),
    }
}
