//! Back from the dead: letters are read, and their records driven again.
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
//! A letter's record goes [into a stream](Replay::into_stream) under its own partition key, or
//! [through a processor](Replay::through) in this process, with the place that it had. Letters also go, as they are,
//! [to another sink](Replay::to_sink).
//!
//! # What is promised
//!
//! - A letter is removed from its source, or noted as done, only once what became of it is confirmed: put into the stream,
//!   processed, or a letter again. Interrupted at any point and started again, a replay loses nothing.
//! - What it repeats then is what was begun and not noted as done, at most a batch (500 letters): each is counted
//!   ([`Report::possibly_repeated`]).
//! - Records of one partition key are driven again one after the other, in the order of their letters, where the source
//!   [keeps it](DeadLetterSource::keeps_order).
//! - What is no letter stays where it is, and so does a letter that cannot be read; the rest goes on.
//! - A record that fails again is a letter again, with its redrive count raised; after
//!   [so many times](Replay::max_redrives) it is left alone.
//!
//! # What it cannot do
//!
//! - A record that is driven again comes behind newer records of its key: those were processed while it lay in the queue.
//! - A record that is put into a stream is seen by every application that reads it, also by those that processed it at
//!   first.
//! - A record that is put into a stream has a new place there: an idempotency key that is made of the place does not know
//!   it. One of the business does.
//! - Without a [stamp](Stream::stamped) nothing in the stream tells that it was driven again. If it fails again, its letter
//!   is known by its partition key and payload, and by the [`Ledger`]: two records with both alike count as one.

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use crate::dead_letter::{DeadLetterSink, SourceStream, Storage, TargetError};
use crate::engine::Resilient;
use crate::failure::BoxError;
use crate::idempotency::{Idempotency, StoreError};
use crate::processor::RecordProcessor;

mod filter;
pub mod ledger;
mod look;
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
pub use ledger::{Ledger, LedgerError};
pub use look::look;
#[cfg(feature = "kinesis")]
pub use rehydrate::Rehydrate;
#[cfg(feature = "kinesis")]
pub use rehydrate::on_failure::{InvalidOnFailure, OnFailure};
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

/// Drives the records of dead letters again.
///
/// | setting | default |
/// |---|---|
/// | [`ledger`](Replay::ledger) | none: must be given, [`ledger::Memory`] by name |
/// | [`filter`](Replay::filter) | all letters |
/// | [`rate`](Replay::rate) | 100 letters a second |
/// | [`max_redrives`](Replay::max_redrives) | 3 |
/// | [`dry_run`](Replay::dry_run) | off |
/// | [`ignore_ledger`](Replay::ignore_ledger) | off |
/// | [`limit`](Replay::limit) | all letters |
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
    #[cfg(feature = "s3")]
    payloads: Vec<crate::dead_letter::S3>,
    heard: Option<Box<Heard>>,
}

/// Hears of each letter, and how the whole stands.
type Heard = dyn FnMut(&Progress<'_>, &Report) + Send + Sync;

impl Replay {
    /// Of the letters of this source.
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
            #[cfg(feature = "s3")]
            payloads: Vec::new(),
            heard: None,
        }
    }

    /// The messages are those of a Lambda function's on-failure destination: letters are made of them first.
    #[cfg(feature = "kinesis")]
    pub fn rehydrated(mut self, rehydrate: Rehydrate) -> Self {
        self.reader = Box::new(rehydrate);
        self
    }

    /// Where it is remembered what was driven again, and how often.
    pub fn ledger(mut self, ledger: impl Ledger + 'static) -> Self {
        self.ledger = Some(Arc::new(ledger));
        self
    }

    /// Only the letters that this matches; the others stay as they are.
    pub fn filter(mut self, filter: Filter) -> Self {
        self.filter = filter;
        self
    }

    /// So many letters a second at most. What comes back should not overrun what it failed at.
    pub fn rate(mut self, letters_a_second: f64) -> Self {
        self.rate = letters_a_second;
        self
    }

    /// A letter whose record was driven again as often is left alone.
    pub fn max_redrives(mut self, times: u32) -> Self {
        self.max_redrives = times;
        self
    }

    /// Only says what it would do: nothing is written or removed.
    pub fn dry_run(mut self, on: bool) -> Self {
        self.dry_run = on;
        self
    }

    /// Also letters that the ledger knows as done.
    pub fn ignore_ledger(mut self, on: bool) -> Self {
        self.ignore_ledger = on;
        self
    }

    /// Of letters that are [suspect](crate::dead_letter::DeadLetter::suspect), those whose records this knows as processed
    /// are done. It must make keys as the processor that failed does.
    pub fn without_completed(mut self, idempotency: impl Into<Idempotency>) -> Self {
        self.completed = Some(idempotency.into());
        self
    }

    /// Allows payloads that a [claim check](crate::dead_letter::ClaimCheck) has put into this bucket, below its prefix, to
    /// be read. Can be called for several buckets. Default: none.
    ///
    /// Where a payload is, the letter states: untrusted input. So no other object is read, and none larger than 10 MiB.
    #[cfg(feature = "s3")]
    pub fn payloads(mut self, store: crate::dead_letter::S3) -> Self {
        self.payloads.push(store);
        self
    }

    /// The most letters of this run that are sent to the target. Default: all.
    pub fn limit(mut self, letters: u64) -> Self {
        self.limit = Some(letters);
        self
    }

    /// Hears of each letter what became of it, and how all stands. (While it does, nothing else happens.)
    pub fn on_progress(mut self, heard: impl FnMut(&Progress<'_>, &Report) + Send + Sync + 'static) -> Self {
        self.heard = Some(Box::new(heard));
        self
    }

    /// How many messages there are, about, where the source can tell.
    pub async fn estimate(&mut self) -> Option<u64> {
        self.source.estimate().await
    }

    /// Puts the letters' records into a stream.
    ///
    /// Ends with the last letter, or once `stop` does: then the batch that is under way is written to its end, so that a run
    /// that was stopped repeats nothing.
    #[cfg(feature = "kinesis")]
    pub async fn into_stream(
        self,
        stream: Stream,
        stop: impl Future<Output = ()> + Send,
    ) -> Result<Report, ReplayError> {
        self.check_stream(&stream).await?;
        self.run(stream, stop).await
    }

    /// Has a processor settle the letters' records, in this process, with the place, and so the idempotency key, that they
    /// had at first. One that fails again is a letter again, in the processor's own sink; its breaker, guard and retry
    /// budget hold.
    ///
    /// Ends with the last letter, or once `stop` does: a record that is not settled by then stays a letter.
    pub async fn through<P: RecordProcessor>(
        self,
        processor: &Resilient<P>,
        stop: impl Future<Output = ()> + Send,
    ) -> Result<Report, ReplayError> {
        self.run(Through::new(processor.clone()), stop).await
    }

    /// Writes the letters to another sink, as they are.
    ///
    /// A sink whose [storage](DeadLetterSink::storage) overlaps that of the source is refused before anything is read. A
    /// letter that this run has written and then reads is left where it is ([`Outcome::Returned`]).
    pub async fn to_sink(
        self,
        sink: impl DeadLetterSink + 'static,
        stop: impl Future<Output = ()> + Send,
    ) -> Result<Report, ReplayError> {
        self.check_sink(&sink).await?;
        self.run(Sink(sink), stop).await
    }

    /// Checks that letters can go to a sink: that it writes into no storage that is read here, and that its target exists.
    /// Nothing is read or written. [`to_sink`](Replay::to_sink) checks the same first.
    pub async fn check_sink(&self, sink: &(impl DeadLetterSink + ?Sized)) -> Result<(), ReplayError> {
        let source = self.source.storage();
        // Where one of both says nothing but a name, the names are compared.
        let same_name = |storage: &Storage| {
            let is_named = |storage: &Storage| matches!(storage, Storage::Named(_));
            (is_named(storage) || is_named(&source)) && self.source.name() == sink.name()
        };
        let overlaps = |storage: &Storage| storage.overlaps(&source) || same_name(storage);
        if sink.storage().iter().any(overlaps) {
            return Err(ReplayError::IntoItself {
                source_name: self.source.name(),
                target: sink.name(),
            });
        }
        // The letters are of any stream.
        sink.check(&SourceStream::new("")).await?;
        Ok(())
    }

    /// Checks that records can go into a stream, as [`check_sink`](Replay::check_sink) does for a sink.
    #[cfg(feature = "kinesis")]
    pub async fn check_stream(&self, stream: &Stream) -> Result<(), ReplayError> {
        self.check_sink(stream.sink()).await
    }

    async fn run(
        self,
        target: impl Target,
        stop: impl Future<Output = ()> + Send,
    ) -> Result<Report, ReplayError> {
        if !(self.rate.is_finite() && self.rate > 0.0) {
            return Err(ReplayError::Rate(self.rate));
        }
        let ledger = self.ledger.clone().ok_or(ReplayError::NoLedger)?;
        Run::new(self, ledger, target).until_the_end(stop).await
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

/// A replay cannot go on. Started again it goes on where it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// No ledger was named.
    #[error(
        "a replay needs a ledger: .ledger(ledger::Redb::open(…)?), or .ledger(ledger::Memory::new()) by name"
    )]
    NoLedger,
    /// It is no rate.
    #[error("the rate must be a number of letters a second above 0, not {0}")]
    Rate(f64),
    /// Letters would be read again where they are written.
    #[error(
        "cannot write to {target}: the letters are read from {source_name}, which overlaps it; name another target"
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
    /// The letters cannot be read.
    #[error("the dead letters cannot be read")]
    Source(#[from] SourceError),
    /// The ledger does not do what it was asked.
    #[error("the replay stopped: its ledger failed")]
    Ledger(#[from] LedgerError),
    /// What was processed cannot be asked for.
    #[error("the replay stopped: the idempotency store failed")]
    Store(#[from] StoreError),
    /// The target does not take what it is given, after several tries.
    #[error(
        "{target} does not accept the dead letters; confirmed ones are done, the others stay for the next run"
    )]
    Target {
        /// Where they were to go.
        target: String,
        /// What went wrong.
        #[source]
        source: BoxError,
    },
}
