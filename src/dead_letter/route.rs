//! A sink that routes each dead letter to one of several sinks.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::future::join_all;

use super::{DeadLetter, DeadLetterSink, Receipt, SinkError, SourceStream, Storage, TargetError, Warning};

/// Writes each dead letter to the first sink whose condition it meets, or to the default sink if it meets
/// none.
///
/// ```
/// # fn example(bad_data: redrive::dead_letter::Memory, rest: redrive::dead_letter::Memory) {
/// use redrive::Class;
/// use redrive::dead_letter::Route;
///
/// let sink = Route::by_default(rest)
///     .when(|letter| letter.class == Class::Permanent, bad_data);
/// # }
/// ```
///
/// Dead letters of one partition key are in order in each sink.
pub struct Route {
    routes: Vec<(Condition, Arc<dyn DeadLetterSink>)>,
    default: Arc<dyn DeadLetterSink>,
}

type Condition = Box<dyn Fn(&DeadLetter) -> bool + Send + Sync>;

impl Route {
    /// Routes dead letters that meet no condition to `sink`.
    pub fn by_default(sink: impl DeadLetterSink + 'static) -> Self {
        Route {
            routes: Vec::new(),
            default: Arc::new(sink),
        }
    }

    /// Routes dead letters that meet `condition` to `sink`; the first condition that a dead letter meets
    /// wins. A condition may use the class, reason, error code or any other field.
    #[must_use]
    pub fn when(
        mut self,
        condition: impl Fn(&DeadLetter) -> bool + Send + Sync + 'static,
        sink: impl DeadLetterSink + 'static,
    ) -> Self {
        self.routes.push((Box::new(condition), Arc::new(sink)));
        self
    }

    fn sinks(&self) -> impl Iterator<Item = &Arc<dyn DeadLetterSink>> {
        self.routes.iter().map(|(_, sink)| sink).chain([&self.default])
    }
}

#[async_trait]
impl DeadLetterSink for Route {
    async fn put(&self, letters: &[DeadLetter]) -> Vec<Result<Receipt, SinkError>> {
        let mut shares: Vec<(Vec<usize>, Vec<DeadLetter>)> =
            self.sinks().map(|_| Default::default()).collect();
        for (index, letter) in letters.iter().enumerate() {
            let route = self.routes.iter().position(|(condition, _)| condition(letter));
            let (indices, share) = &mut shares[route.unwrap_or(self.routes.len())];
            indices.push(index);
            share.push(letter.clone());
        }
        let puts = self.sinks().zip(&shares).map(|(sink, (_, share))| async move {
            match share.is_empty() {
                true => Vec::new(),
                false => sink.put(share).await,
            }
        });
        let said = join_all(puts).await;
        let mut results: Vec<Option<Result<Receipt, SinkError>>> = letters.iter().map(|_| None).collect();
        for ((indices, _), said) in shares.iter().zip(said) {
            for (&index, said) in indices.iter().zip(said) {
                results[index] = Some(said);
            }
        }
        results
            .into_iter()
            .map(|result| result.unwrap_or(Err(SinkError::Behind)))
            .collect()
    }

    async fn check(&self, source: &SourceStream) -> Result<Vec<Warning>, TargetError> {
        let checks = self.sinks().map(|sink| sink.check(source));
        let warnings = join_all(checks)
            .await
            .into_iter()
            .collect::<Result<Vec<_>, _>>()?;
        Ok(warnings.concat())
    }

    fn name(&self) -> String {
        let names: Vec<String> = self.sinks().map(|sink| sink.name()).collect();
        format!("one of {}", names.join(", "))
    }

    fn storage(&self) -> Vec<Storage> {
        self.sinks().flat_map(|sink| sink.storage()).collect()
    }
}

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.sinks()).finish()
    }
}
