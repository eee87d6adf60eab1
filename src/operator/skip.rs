//! Records passed over, each as a dead letter.

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

/// Why there is a letter of a record that was skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an operator had the shard go on behind it")]
pub struct SkippedByOperator;

/// The most letters given to a sink at once.
const BATCH: usize = 500;
/// A sink that has not answered by then has failed.
const ANSWER: Duration = Duration::from_secs(60);
/// Another record may have arrived in the same millisecond.
const TICK: Duration = Duration::from_millis(1);

/// Records that are to be skipped, and are not yet.
#[must_use = "nothing is moved before it is carried out"]
pub struct Skip<'a> {
    shards: &'a Shards,
    key: ShardKey,
    at_most: NonZeroUsize,
    from: Checkpoint,
    records: Vec<Record>,
    trimmed: bool,
}

/// Records that were skipped.
#[derive(Debug)]
#[non_exhaustive]
pub struct Skipped {
    /// Their letters, in their order, and where those are.
    pub letters: Vec<(DeadLetterId, Receipt)>,
    /// Where the shard stands now.
    pub to: Checkpoint,
    /// What may lose letters later.
    pub warnings: Vec<Warning>,
}

impl Shards {
    /// Looks for the first records of a shard that are not settled, so many at most. Records inside one that the KPL has
    /// aggregated are records of their own; what is settled ahead of the position is not among them.
    ///
    /// [`Alive`](OperatorError::Alive), [`NotBegun`](OperatorError::NotBegun),
    /// [`NothingToSkip`](OperatorError::NothingToSkip), or store or stream cannot be read.
    pub async fn skip(&self, shard: &ShardId, at_most: NonZeroUsize) -> Result<Skip<'_>, OperatorError> {
        let key = self.key(shard.clone());
        // Its names are wrong: that is worth no waiting.
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
    /// Where the shard stands.
    pub fn from(&self) -> &Checkpoint {
        &self.from
    }

    /// What is to be skipped, in its order; at least one.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// Whether the record at the shard's position is gone from the stream. Others behind it may be gone as well, and once
    /// the position has moved nothing tells of them any more.
    pub fn is_trimmed(&self) -> bool {
        self.trimmed
    }

    /// Writes the letters, and moves the position past their records once all are confirmed.
    ///
    /// Dropped before its end it leaves the shard to its owner after the failover time.
    pub async fn carry_out(&self, sink: &dyn DeadLetterSink) -> Result<Skipped, OperatorError> {
        let mut source = SourceStream::new(&*self.key.stream);
        source.arn = self.shards.stream.arn().map(str::to_owned);
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

    /// The same records come first.
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
                Ok(_) => (Vec::new(), Some("the sink did not answer for each letter".into())),
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

/// Past these records, which are the first that are not settled. What is settled further ahead stays so.
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
    // Of another record: a crash with it in hand is still worth knowing.
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
