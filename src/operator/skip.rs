//! Skips records, each of which becomes a dead letter.

use std::any::type_name;
use std::fmt;
use std::num::NonZeroUsize;
use std::time::Duration;

use super::{OperatorError, Shards};
use crate::checkpoint::{Checkpoint, CrashCount, SettledAhead, ShardKey};
use crate::dead_letter::{
    DeadLetter, DeadLetterSink, Reason, Receipt, SinkError, SourceStream, TargetError, Warning,
};
use crate::external::answer;
use crate::failure::{Failure, Scope};
use crate::record::DeadLetterId;
use crate::record::{Position, Record, ShardId};

/// The error in the dead letter of a skipped record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("skipped by an operator")]
pub struct SkippedByOperator;

/// The maximum number of dead letters that are passed to a sink at once.
const BATCH: usize = 500;
/// The time after which a sink that does not respond has failed.
const ANSWER: Duration = Duration::from_secs(60);
/// The resolution of arrival times. Another record may have arrived in the same millisecond.
const TICK: Duration = Duration::from_millis(1);

/// A skip that was prepared and is not carried out yet.
#[must_use = "a skip does nothing until `carry_out` is called"]
pub struct Skip<'a> {
    shards: &'a Shards,
    key: ShardKey,
    at_most: NonZeroUsize,
    from: Checkpoint,
    records: Vec<Record>,
    trimmed: bool,
}

/// The result of a skip.
#[derive(Debug)]
#[non_exhaustive]
pub struct Skipped {
    /// The ids of the dead letters in the order of their records, each with the receipt that says where the
    /// dead letter is.
    pub letters: Vec<(DeadLetterId, Receipt)>,
    /// The new checkpoint of the shard.
    pub to: Checkpoint,
    /// Warnings about a target that may lose dead letters later.
    pub warnings: Vec<Warning>,
}

impl Shards {
    /// Finds the first unsettled records of a shard, up to `at_most`. Records inside a KPL aggregate count as
    /// records of their own. Records that are settled ahead of the position are not included.
    ///
    /// Fails with [`Alive`](OperatorError::Alive), [`NotBegun`](OperatorError::NotBegun) or
    /// [`NothingToSkip`](OperatorError::NothingToSkip), or if the store or the stream cannot be read.
    pub async fn skip(&self, shard: &ShardId, at_most: NonZeroUsize) -> Result<Skip<'_>, OperatorError> {
        let key = self.key(shard.clone());
        // Fails at once if the names are wrong, instead of after the failover time.
        self.load(&key).await?;
        self.refuse_if_alive(&key).await?;
        let from = self.load(&key).await?;
        let found = self.unsettled(shard, &from, at_most.get()).await?;
        if found.records.is_empty() {
            return Err(OperatorError::NothingToSkip {
                shard: shard.clone(),
                position: from.position().clone(),
            });
        }
        Ok(Skip {
            shards: self,
            key,
            at_most,
            from,
            records: found.records,
            trimmed: found.trimmed,
        })
    }
}

impl Skip<'_> {
    /// Returns the checkpoint of the shard before the skip.
    pub fn from(&self) -> &Checkpoint {
        &self.from
    }

    /// Returns the records to skip, in their order; at least one.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// Returns true if the record at the shard's position is gone from the stream. Records after it may be
    /// gone as well. Once the position has moved, nothing shows that any more.
    pub fn is_trimmed(&self) -> bool {
        self.trimmed
    }

    /// Writes the dead letters, and moves the position past their records once the sink has confirmed all of
    /// them.
    ///
    /// If this future is dropped before it completes, another worker can take the shard after the failover
    /// time.
    pub async fn carry_out(&self, sink: &dyn DeadLetterSink) -> Result<Skipped, OperatorError> {
        let source = SourceStream::new(self.shards.stream.clone());
        let checked = answer("the dead-letter target", ANSWER, sink.check(&source)).await;
        let warnings = checked.map_err(|error| TargetError::Unreachable {
            name: sink.name(),
            source: error,
        })??;
        let (hold, stands) = self.shards.hold(&self.key).await?;
        let work = async {
            self.check(&stands).await?;
            let letters = self.write(sink).await?;
            let to = past(&stands, &self.records);
            hold.save(&to).await?;
            Ok(Skipped {
                letters,
                to,
                warnings,
            })
        };
        hold.during(work).await
    }

    /// Checks that the same records are still the first unsettled ones.
    async fn check(&self, stands: &Checkpoint) -> Result<(), OperatorError> {
        if *stands == self.from {
            return Ok(());
        }
        let shard = &self.key.shard;
        let found = self.shards.unsettled(shard, stands, self.at_most.get()).await?;
        let places = |records: &[Record]| -> Vec<Position> {
            let records = records.iter().take(self.records.len());
            records.map(Record::position).collect()
        };
        match places(&found.records) == places(&self.records) {
            true => Ok(()),
            false => Err(OperatorError::Moved { shard: shard.clone() }),
        }
    }

    async fn write(&self, sink: &dyn DeadLetterSink) -> Result<Vec<(DeadLetterId, Receipt)>, OperatorError> {
        let mut confirmed = Vec::with_capacity(self.records.len());
        for records in self.records.chunks(BATCH) {
            let letters: Vec<DeadLetter> = records.iter().map(|record| self.letter(record)).collect();
            let put = answer("the dead-letter sink", ANSWER, sink.put(&letters)).await;
            let (results, failed) = match put {
                Ok(results) if results.len() == letters.len() => (results, None),
                Ok(_) => (Vec::new(), Some("wrong number of results from the sink".into())),
                Err(error) => (Vec::new(), Some(error)),
            };
            let mut failed = failed.map(SinkError::Unavailable);
            for (letter, result) in letters.iter().zip(results) {
                match result {
                    Ok(receipt) => confirmed.push((letter.id, receipt)),
                    Err(error) => failed = failed.or(Some(error)),
                }
            }
            if let Some(source) = failed {
                return Err(OperatorError::NotConfirmed {
                    confirmed: confirmed.len(),
                    letters: self.records.len(),
                    source,
                });
            }
        }
        Ok(confirmed)
    }

    fn letter(&self, record: &Record) -> DeadLetter {
        let failure = Failure::permanent(SkippedByOperator).with_scope(Scope::Record);
        let mut letter = DeadLetter::new(&self.key.application, record, Reason::Operator, &failure);
        letter.error.type_name = type_name::<SkippedByOperator>().to_owned();
        letter
    }
}

/// Returns the checkpoint after these records, which are the first unsettled ones. Records that are settled
/// further ahead stay settled.
fn past(stands: &Checkpoint, skipped: &[Record]) -> Checkpoint {
    let Some(last) = skipped.last() else {
        return stands.clone();
    };
    let position = last.position();
    let mut past = Checkpoint::at(position.clone());
    if let Some(ahead) = stands.ahead().filter(|ahead| !ahead.ends_at(last)) {
        past = past.with_ahead(SettledAhead::builder(position.clone()).settled_as_before(Some(last), ahead));
    }
    let arrival = last.arrival().and_then(|arrival| arrival.checked_sub(TICK));
    if let Some(time) = stands.read_until().max(arrival) {
        past = past.with_read_until(time);
    }
    // A count that belongs to a later record is kept: the crashes of that record still matter.
    let in_hand = stands.starts().and_then(|starts| starts.in_hand.clone());
    past.with_starts(CrashCount::new(0, in_hand.filter(|it| it.position > position)))
}

impl fmt::Debug for Skip<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Skip")
            .field("shard", &self.key.shard)
            .field("from", &self.from)
            .field("records", &self.records)
            .field("trimmed", &self.trimmed)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
