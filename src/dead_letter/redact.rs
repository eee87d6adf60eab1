//! A sink that removes confidential data from dead letters.

use std::fmt;

use async_trait::async_trait;

use super::{DeadLetter, DeadLetterSink, Receipt, SinkError, SourceStream, Storage, TargetError, Warning};

/// Writes dead letters after a function has removed what must not leave the process: from the payload, the
/// error's texts or the partition key.
///
/// ```
/// # fn example(letters: redrive::dead_letter::Memory) {
/// use redrive::dead_letter::Redact;
///
/// let sink = Redact::new(letters, |letter| {
///     letter.payload.clear();
///     letter.error.chain.clear();
/// });
/// # }
/// ```
///
/// The written dead letter is marked as [redacted](DeadLetter::redacted). Its payload may differ from the one
/// that was put into the stream, so it must not be replayed as if it were the original.
pub struct Redact<S, F> {
    sink: S,
    redact: F,
}

impl<S, F> Redact<S, F>
where
    S: DeadLetterSink,
    F: Fn(&mut DeadLetter) + Send + Sync,
{
    /// Creates a sink that writes to `sink` what `redact` leaves of each dead letter. The ids of the dead
    /// letter and the record's position stay unchanged, whatever the function does.
    pub fn new(sink: S, redact: F) -> Self {
        Redact { sink, redact }
    }

    fn redacted(&self, letter: &DeadLetter) -> DeadLetter {
        let mut redacted = letter.clone();
        (self.redact)(&mut redacted);
        DeadLetter {
            id: letter.id,
            origin: letter.origin,
            stream: letter.stream.clone(),
            shard: letter.shard.clone(),
            sequence_number: letter.sequence_number.clone(),
            sub_sequence_number: letter.sub_sequence_number,
            redacted: true,
            payload_bytes: redacted.payload.len() as u64,
            ..redacted
        }
    }
}

#[async_trait]
impl<S, F> DeadLetterSink for Redact<S, F>
where
    S: DeadLetterSink,
    F: Fn(&mut DeadLetter) + Send + Sync,
{
    async fn put(&self, letters: &[DeadLetter]) -> Vec<Result<Receipt, SinkError>> {
        let letters: Vec<DeadLetter> = letters.iter().map(|letter| self.redacted(letter)).collect();
        self.sink.put(&letters).await
    }

    async fn check(&self, source: &SourceStream) -> Result<Vec<Warning>, TargetError> {
        self.sink.check(source).await
    }

    fn name(&self) -> String {
        self.sink.name()
    }

    fn storage(&self) -> Vec<Storage> {
        self.sink.storage()
    }
}

impl<S: fmt::Debug, F> fmt::Debug for Redact<S, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Redact").field(&self.sink).finish()
    }
}
