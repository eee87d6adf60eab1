//! A sink that writes every dead letter to several sinks.

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::future::join_all;

use super::{DeadLetter, DeadLetterSink, Receipt, SinkError, SourceStream, Storage, TargetError, Warning};

/// Writes each dead letter to all of its sinks. The dead letter counts as written when all have confirmed it.
///
/// ```
/// # fn example(stream: redrive::dead_letter::Memory, archive: redrive::dead_letter::Memory) {
/// use redrive::dead_letter::FanOut;
///
/// let sink = FanOut::new().and(stream).and(archive);
/// # }
/// ```
///
/// When one sink fails, the dead letter is written again to all of them, also to those that have it. The copy
/// has the same id, so that readers drop it. If one sink can never take the dead letter, the shard halts.
/// Wrap such a sink in a [`Fallback`](super::Fallback).
#[derive(Debug, Clone, Default)]
pub struct FanOut {
    sinks: Vec<Arc<dyn DeadLetterSink>>,
}

impl FanOut {
    /// Creates a fan-out without sinks. Add at least one with [`and`](FanOut::and): without a sink every put
    /// fails.
    pub fn new() -> Self {
        FanOut::default()
    }

    /// Adds a sink.
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

/// Combines the results of all sinks for one dead letter: the worst error, or all places.
fn all(said: Vec<Result<Receipt, SinkError>>) -> Result<Receipt, SinkError> {
    let rank = |error: &SinkError| match error {
        SinkError::Refused { .. } => 2,
        SinkError::Unavailable(_) => 1,
        SinkError::Behind => 0,
    };
    let (mut places, mut worst) = (Vec::new(), None);
    if said.is_empty() {
        return Err(SinkError::unavailable(
            "the fan-out has no sink; add one with .and(…)",
        ));
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
