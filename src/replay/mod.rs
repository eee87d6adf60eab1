//! Replay of dead letters: reads dead letters and sends their records to a stream or a processor again.
//!
//! ```no_run
//! # #[cfg(all(feature = "kinesis", feature = "sqs", feature = "redb"))]
//! # async fn example(
//! #     sqs: aws_sdk_sqs::Client,
//! #     kinesis: aws_sdk_kinesis::Client,
//! # ) -> Result<(), Box<dyn std::error::Error>> {
//! use redrive::dead_letter::Reason;
//! use redrive::replay::{Filter, Replay, Stream, ledger, source};
//!
//! let letters = source::Sqs::new(sqs, "https://sqs.eu-west-1.amazonaws.com/111122223333/orders-dlq");
//! let report = Replay::new(letters)
//!     .ledger(ledger::Redb::open("replay.redb")?)
//!     .filter(Filter::new().reason(Reason::AttemptsExhausted))
//!     .rate(50.0)
//!     .into_stream(Stream::new(kinesis, "orders"), std::future::pending())
//!     .await?;
//! println!("{} driven again, {} cannot be read", report.replayed, report.unreadable);
//! # Ok(())
//! # }
//! ```
//!
//! A dead letter's record goes [into a stream](Replay::into_stream) under its own partition key, or [through
//! a processor](Replay::through) in this process, with its original position. Dead letters can also move
//! unchanged [to another sink](Replay::to_sink).
//!
//! # Guarantees
//!
//! - A dead letter is removed from its source, or recorded as done, only once its outcome is confirmed: put
//!   into the stream, processed, or dead-lettered again. A replay that is interrupted at any point and
//!   restarted loses nothing.
//! - A restarted replay repeats only what the interrupted run had begun and not recorded as done: at most a
//!   batch (500 dead letters). The report counts each of them ([`Report::possibly_repeated`]).
//! - Records of one partition key are replayed one after the other, in the order of their dead letters, if
//!   the source [keeps the order](DeadLetterSource::keeps_order).
//! - A message that is not a dead letter, or cannot be read, stays in the source. The run continues with the
//!   others.
//! - A record that fails again becomes a dead letter again, with a higher redrive count. At the [maximum
//!   count](Replay::max_redrives) it is left in the source.
//!
//! # Limits
//!
//! - A replayed record comes after newer records of its key, which were processed while it was a dead letter.
//! - A record that is put into a stream reaches every application that reads the stream, including those that
//!   processed it the first time.
//! - A record that is put into a stream has a new position there. An idempotency key made from the position
//!   does not recognize it; a key made from business data does.
//! - Without a [stamp](Stream::stamped), nothing in the stream marks a record as replayed. If the record
//!   fails again, the [`Ledger`] recognizes its dead letter by partition key and payload. Two records that
//!   have the same key and payload count as one.

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use crate::config::ConfigError;
use crate::dead_letter::{DeadLetterSink, PayloadStore, SourceStream, Storage, TargetError};
use crate::engine::Resilient;
use crate::failure::BoxError;
use crate::idempotency::{Idempotency, StoreError};
use crate::processor::Handler;

mod filter;
mod for_each_letter;
pub mod ledger;
mod opened;
mod payload;
mod rate_limit;
mod reader;
#[cfg(feature = "kinesis")]
mod rehydrate;
mod report;
mod run;
mod select;
pub mod source;
mod source_lock;
mod target;
mod written;

pub use filter::Filter;
pub use for_each_letter::for_each_letter;
pub use ledger::{Ledger, LedgerError};
#[cfg(feature = "kinesis")]
pub use rehydrate::Rehydrate;
#[cfg(feature = "kinesis")]
pub use rehydrate::on_failure::{OnFailure, ParseOnFailureError};
pub use report::{Outcome, Progress, Report};
pub use source::{DeadLetterSource, Remaining, SourceError};
#[cfg(feature = "kinesis")]
pub use target::stream::Stream;

use reader::{Letters, Reader};
use run::Run;
use target::processor::Through;
#[cfg(feature = "testing")]
pub(crate) use target::processor::record;
use target::{Sink, Target};

/// Replays the records of dead letters. [`into_stream`](Replay::into_stream), [`through`](Replay::through) and
/// [`to_sink`](Replay::to_sink) check the settings before they read anything.
///
/// | setting | default |
/// |---|---|
/// | [`ledger`](Replay::ledger) | none: must be set, also if it is [`ledger::Memory`] |
/// | [`filter`](Replay::filter) | all dead letters |
/// | [`rate`](Replay::rate) | 100 dead letters per second |
/// | [`max_redrives`](Replay::max_redrives) | 3 |
/// | [`dry_run`](Replay::dry_run) | off |
/// | [`ignore_ledger`](Replay::ignore_ledger) | off |
/// | [`limit`](Replay::limit) | all dead letters |
#[must_use]
pub struct Replay {
    source: Box<dyn DeadLetterSource>,
    reader: Box<dyn Reader>,
    ledger: Option<Arc<dyn Ledger>>,
    filter: Filter,
    rate: f64,
    max_redrives: u32,
    dry_run: bool,
    ignore_ledger: bool,
    limit: Option<u64>,
    completed: Option<Idempotency>,
    payloads: Vec<Box<dyn PayloadStore>>,
    heard: Option<Box<Heard>>,
}

/// The minimum of [`rate`](Replay::rate): one dead letter in 24 hours.
const MIN_RATE: f64 = 1.0 / (24.0 * 60.0 * 60.0);

/// The user's function that receives the outcome of each dead letter, and the report so far.
type Heard = dyn FnMut(&Progress<'_>, &Report) + Send + Sync;

impl Replay {
    /// Creates a replay of the dead letters in this source.
    pub fn new(source: impl DeadLetterSource + 'static) -> Self {
        Replay {
            source: Box::new(source),
            reader: Box::new(Letters),
            ledger: None,
            filter: Filter::new(),
            rate: 100.0,
            max_redrives: 3,
            dry_run: false,
            ignore_ledger: false,
            limit: None,
            completed: None,
            payloads: Vec::new(),
            heard: None,
        }
    }

    /// Treats the messages as those of a Lambda function's on-failure destination, and creates dead letters
    /// from them first.
    #[cfg(feature = "kinesis")]
    pub fn rehydrated(mut self, rehydrate: Rehydrate) -> Self {
        self.reader = Box::new(rehydrate);
        self
    }

    /// Sets the ledger, which remembers what was replayed and how often. Mandatory.
    pub fn ledger(mut self, ledger: impl Ledger + 'static) -> Self {
        self.ledger = Some(Arc::new(ledger));
        self
    }

    /// Replays only the dead letters that match this filter; the others stay as they are. Default: all match.
    pub fn filter(mut self, filter: Filter) -> Self {
        self.filter = filter;
        self
    }

    /// Sets the maximum number of dead letters per second: finite, and at least one in 24 hours. A low rate
    /// keeps the replay from overloading the dependency that the records failed at. Default: 100.
    pub fn rate(mut self, letters_per_second: f64) -> Self {
        self.rate = letters_per_second;
        self
    }

    /// Sets how often a record may be replayed: at least once. A dead letter whose record has reached this
    /// count is left in the source. Default: 3.
    pub fn max_redrives(mut self, times: u32) -> Self {
        self.max_redrives = times;
        self
    }

    /// Reports what the run would do; nothing is written or removed. Default: off.
    pub fn dry_run(mut self, on: bool) -> Self {
        self.dry_run = on;
        self
    }

    /// Also replays dead letters that the ledger has as done. Default: off.
    pub fn ignore_ledger(mut self, on: bool) -> Self {
        self.ignore_ledger = on;
        self
    }

    /// Treats [suspect](crate::dead_letter::DeadLetter::suspect) dead letters as done if this idempotency
    /// store has their records as processed. The settings must make the same keys as the processor that
    /// failed.
    pub fn without_completed(mut self, idempotency: impl Into<Idempotency>) -> Self {
        self.completed = Some(idempotency.into());
        self
    }

    /// Allows the replay to read payloads that a [claim check](crate::dead_letter::ClaimCheck) has put into
    /// this store, such as a bucket, below its prefix. Can be called for several stores. Default: none.
    ///
    /// The dead letter states where its payload is, and that statement is untrusted input. The replay
    /// therefore reads no payload elsewhere, and none larger than 10 MiB.
    pub fn payloads(mut self, store: impl PayloadStore + 'static) -> Self {
        self.payloads.push(Box::new(store));
        self
    }

    /// Sets the maximum number of dead letters that this run sends to the target. Any number is valid: with 0,
    /// the run reads no dead letter. Default: all.
    pub fn limit(mut self, letters: u64) -> Self {
        self.limit = Some(letters);
        self
    }

    /// Calls `heard` with the outcome of each dead letter and the report so far. The run waits until `heard`
    /// returns.
    pub fn on_progress(mut self, heard: impl FnMut(&Progress<'_>, &Report) + Send + Sync + 'static) -> Self {
        self.heard = Some(Box::new(heard));
        self
    }

    /// Returns the approximate number of messages in the source, if the source can tell.
    pub async fn estimate(&mut self) -> Option<u64> {
        self.source.estimate().await
    }

    /// Puts the records of the dead letters into a stream.
    ///
    /// Ends after the last dead letter, or once `stop` completes. A stopped run finishes its current batch,
    /// so that the next run repeats nothing.
    #[cfg(feature = "kinesis")]
    pub async fn into_stream(
        self,
        stream: Stream,
        stop: impl Future<Output = ()> + Send,
    ) -> Result<Report, ReplayError> {
        self.check_stream(&stream).await?;
        self.run(stream, stop).await
    }

    /// Settles the records of the dead letters with a processor in this process. Each record keeps its
    /// original position, and therefore its idempotency key.
    ///
    /// A record that fails again becomes a dead letter again, in the processor's own sink. The processor's
    /// circuit breaker, dead-letter guard and retry budget apply.
    ///
    /// Ends after the last dead letter, or once `stop` completes. A record that is not settled by then stays
    /// a dead letter.
    pub async fn through<P: Handler>(
        self,
        processor: &Resilient<P>,
        stop: impl Future<Output = ()> + Send,
    ) -> Result<Report, ReplayError> {
        self.run(Through::new(processor.clone()), stop).await
    }

    /// Writes the dead letters, unchanged, to another sink.
    ///
    /// A sink whose [storage](DeadLetterSink::storage) overlaps that of the source is refused before anything
    /// is read. If the run reads a dead letter that it has written itself, it leaves that one in the source
    /// ([`Outcome::Returned`]).
    pub async fn to_sink(
        self,
        sink: impl DeadLetterSink + 'static,
        stop: impl Future<Output = ()> + Send,
    ) -> Result<Report, ReplayError> {
        self.check_sink(&sink).await?;
        self.run(Sink(sink), stop).await
    }

    /// Checks that dead letters can go to a sink: the sink writes into no storage that the source reads, and
    /// its target exists. Reads and writes nothing. [`to_sink`](Replay::to_sink) runs this check first.
    pub async fn check_sink(&self, sink: &(impl DeadLetterSink + ?Sized)) -> Result<(), ReplayError> {
        self.check_overlap(&sink.storage(), sink.name())?;
        // The dead letters may be of any stream.
        sink.check(&SourceStream::new("")).await?;
        Ok(())
    }

    /// Checks that records can go into a stream, in the same way as [`check_sink`](Replay::check_sink) for a
    /// sink.
    #[cfg(feature = "kinesis")]
    pub async fn check_stream(&self, stream: &Stream) -> Result<(), ReplayError> {
        let writer = stream.writer();
        self.check_overlap(&[writer.storage()], writer.name())?;
        Box::pin(writer.describe()).await?;
        Ok(())
    }

    /// Checks that the target writes into no storage that the source reads.
    fn check_overlap(&self, target: &[Storage], name: String) -> Result<(), ReplayError> {
        let source = self.source.storage();
        // If one of the two gives only a name, the names are compared.
        let same_name = |storage: &Storage| {
            let is_named = |storage: &Storage| matches!(storage, Storage::Named(_));
            (is_named(storage) || is_named(&source)) && self.source.name() == name
        };
        let overlaps = |storage: &Storage| storage.overlaps(&source) || same_name(storage);
        if target.iter().any(overlaps) {
            return Err(ReplayError::IntoItself {
                source_name: self.source.name(),
                target: name,
            });
        }
        Ok(())
    }

    async fn run(
        self,
        target: impl Target,
        stop: impl Future<Output = ()> + Send,
    ) -> Result<Report, ReplayError> {
        let ledger = self.validate()?;
        Run::new(self, ledger, target).until_the_end(stop).await
    }

    /// Checks the settings. Returns the ledger.
    fn validate(&self) -> Result<Arc<dyn Ledger>, ConfigError> {
        if !(self.rate.is_finite() && self.rate >= MIN_RATE) {
            let problem = format!(
                "must be a finite number of dead letters per second, at least one in 24 hours, not {}",
                self.rate
            );
            return Err(ConfigError::new("rate", problem));
        }
        if self.max_redrives == 0 {
            let problem = "must be at least 1; with 0 no dead letter is replayed";
            return Err(ConfigError::new("max_redrives", problem));
        }
        self.filter.check()?;
        self.ledger.clone().ok_or_else(|| {
            ConfigError::new(
                "ledger",
                "a replay needs a ledger; call .ledger(ledger::Redb::open(…)?) or .ledger(ledger::Memory::new())",
            )
        })
    }
}

impl fmt::Debug for Replay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replay")
            .field("source", &self.source)
            .field("ledger", &self.ledger)
            .field("filter", &self.filter)
            .field("rate", &self.rate)
            .field("max_redrives", &self.max_redrives)
            .field("dry_run", &self.dry_run)
            .finish_non_exhaustive()
    }
}

/// An error that ends a replay. A restarted replay continues where this one stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// A setting is missing or cannot be used. Nothing was read.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The target overlaps the source: the replay would read what it writes.
    #[error(
        "cannot write to {target}: the dead letters are read from {source_name}, which overlaps it; name another target"
    )]
    IntoItself {
        /// The name of the source.
        source_name: String,
        /// The name of the target.
        target: String,
    },
    /// The target does not exist, or must not be used.
    #[error("the target of the replay cannot be used")]
    TargetCheck(#[from] TargetError),
    /// The dead letters cannot be read.
    #[error("the dead letters cannot be read")]
    Source(#[from] SourceError),
    /// The ledger failed.
    #[error("the replay stopped: its ledger failed")]
    Ledger(#[from] LedgerError),
    /// The idempotency store cannot say which records were processed.
    #[error("the replay stopped: the idempotency store failed")]
    Store(#[from] StoreError),
    /// The target did not accept the dead letters after several attempts.
    #[error(
        "{target} does not accept the dead letters; confirmed ones are done, the others stay for the next run"
    )]
    Target {
        /// The name of the target.
        target: String,
        /// The error of the target.
        #[source]
        source: BoxError,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_defaults() {
        let replay = Replay::new(source::File::new("letters.jsonl"));
        assert!(replay.ledger.is_none() && replay.limit.is_none() && replay.completed.is_none());
        assert_eq!((replay.rate, replay.max_redrives), (100.0, 3));
        assert!(!replay.dry_run && !replay.ignore_ledger);
        let filter = format!("{:?}", replay.filter);
        assert_eq!(filter, format!("{:?}", Filter::new()));
    }
}
