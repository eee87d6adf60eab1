//! `redrive replay`: replays the records of dead letters.

use std::sync::Arc;
use std::time::Instant;

use crate::address::{Address, StoreAddress};
use clap::Args;
use redrive::dead_letter::{self, DeadLetterSink};
use redrive::replay::{DeadLetterSource, Outcome, Progress, Report, Stream};
use redrive::{BoxError, StreamId, replay};
use serde_json::json;

use crate::Ended;
use crate::clients::{Clients, own_ledger};
use crate::filter::Only;
use crate::{output, stop};

/// Replay the records of dead letters
///
/// With --to-stream, each record is put into a stream under its own partition key. With --to-dead-letters, the
/// dead letters are moved unchanged to another address, and no record is replayed. Once the target confirms,
/// the dead letter is removed from the queue or bucket. A file or stream keeps its dead letters, and the
/// ledger records which are done. After an interruption or a kill, run the command again to resume.
///
/// A replayed record comes after newer records of its partition key, and every application that reads the
/// stream receives it.
#[derive(Debug, Args)]
pub(crate) struct Replay {
    /// Address of the dead letters
    address: Address,
    #[command(flatten)]
    to: To,
    /// Read also payloads that a claim check stored in this bucket: s3:BUCKET/PREFIX. Payloads in the bucket
    /// of ADDRESS are always read
    #[arg(long, value_name = "ADDRESS")]
    payloads_from: Vec<Address>,
    #[command(flatten)]
    how: How,
    #[command(flatten)]
    only: Only,
}

/// The options that name the target.
#[derive(Debug, Args)]
pub(crate) struct To {
    /// Put the records into this stream, given by name or ARN
    #[arg(
        long,
        value_name = "NAME|ARN",
        value_parser = str::parse::<StreamId>,
        required_unless_present = "to_dead_letters"
    )]
    to_stream: Option<StreamId>,
    /// Write the dead letters to this address: file:PATH, kinesis:STREAM, sqs:QUEUE, sns:TOPIC_ARN or
    /// s3:BUCKET/PREFIX
    #[arg(long, value_name = "ADDRESS", conflicts_with_all = ["to_stream", "stamp"])]
    to_dead_letters: Option<Address>,
    /// With --to-stream: wrap each record in a KPL aggregate whose tags identify its dead letter. A redrive
    /// consumer reads the tags if it was built with `redrive_stamps`
    #[arg(long)]
    stamp: bool,
}

impl To {
    /// Returns the stream of --to-stream.
    pub(crate) fn stream(&self) -> Option<&StreamId> {
        self.to_stream.as_ref()
    }

    pub(crate) fn target(self) -> Result<Target, BoxError> {
        match (self.to_stream, self.to_dead_letters) {
            (Some(stream), _) => Ok(Target::Stream {
                stream,
                stamp: self.stamp,
            }),
            (None, Some(address)) => Ok(Target::Sink(address)),
            (None, None) => Err("no target; use --to-stream NAME|ARN or --to-dead-letters ADDRESS".into()),
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct How {
    /// Maximum dead letters per second
    #[arg(long, default_value_t = 100.0, value_name = "LETTERS")]
    rate: f64,
    /// Maximum number of dead letters to replay in this run
    #[arg(long, value_name = "LETTERS")]
    limit: Option<u64>,
    /// Skip dead letters that were replayed this many times and failed again
    #[arg(long, default_value_t = 3, value_name = "TIMES")]
    max_redrives: u32,
    /// Print what would be done, without doing it
    #[arg(long)]
    dry_run: bool,
    /// Include dead letters that the ledger records as done
    #[arg(long)]
    ignore_ledger: bool,
    /// Ledger that records which dead letters are done: redb:FILE or dynamodb:TABLE. Default: a file in the
    /// user's state directory
    #[arg(long, value_name = "STORE")]
    ledger: Option<StoreAddress>,
    /// Skip the confirmation prompt
    #[arg(long, short)]
    yes: bool,
}

/// The target of the records or dead letters.
pub(crate) enum Target {
    Stream { stream: StreamId, stamp: bool },
    Sink(Address),
}

impl Target {
    /// Returns the stream that records or dead letters are put into.
    fn stream(&self) -> Option<&StreamId> {
        match self {
            Target::Stream { stream, .. } | Target::Sink(Address::Kinesis(stream)) => Some(stream),
            Target::Sink(_) => None,
        }
    }
}

impl Replay {
    pub(crate) async fn run(self, json: bool) -> Result<Ended, BoxError> {
        let clients = Clients::default();
        let source = clients.source(&self.address).await?;
        let target = self.to.target()?;
        if !source.keeps_order() {
            eprintln!(
                "warning: {} is a standard queue and keeps no order; dead letters of a partition key are in order only within a batch that is collected together",
                self.address
            );
        }
        let from = Source::new(&self.address, &*source);
        let mut replay = replay::Replay::new(source).filter(self.only.filter());
        for address in self.payloads_from.iter().chain([&self.address]) {
            match address {
                Address::S3 { bucket, prefix } => {
                    // The prefix of the dead letters does not apply to the payloads.
                    let prefix = if *address == self.address {
                        ""
                    } else {
                        prefix.as_str()
                    };
                    replay = replay.payloads(dead_letter::S3::new(clients.s3().await, bucket).prefix(prefix));
                }
                address if *address == self.address => {}
                address => return Err(format!("--payloads-from {address}: write s3:BUCKET/PREFIX").into()),
            }
        }
        self.how.run(replay, from, target, &clients, json).await
    }
}

/// The source of the dead letters.
pub(crate) struct Source<'a> {
    address: &'a Address,
    removes: bool,
}

impl<'a> Source<'a> {
    pub(crate) fn new(address: &'a Address, source: &dyn DeadLetterSource) -> Self {
        Source {
            address,
            removes: source.removes(),
        }
    }
}

/// A [`Target`] that is opened for writing.
enum Opened {
    Stream(Box<Stream>),
    Sink(Arc<dyn DeadLetterSink>),
}

impl How {
    /// Asks for confirmation before messages are removed from the source or anything is put into a stream.
    fn confirmed(&self, from: &Source<'_>, target: &Target) -> Result<bool, BoxError> {
        let into = target.stream().map(|stream| {
            format!("Records are put into stream {stream}, and every application that reads the stream receives them. ")
        });
        let removed = from
            .removes
            .then(|| format!("Messages are removed from {} once they are done. ", from.address));
        if into.is_none() && removed.is_none() {
            return Ok(true);
        }
        let question = format!(
            "{}{}Continue?",
            into.unwrap_or_default(),
            removed.unwrap_or_default()
        );
        output::confirm(&question, self.yes || self.dry_run)
    }

    /// Prints the ledger's location. If the source keeps its dead letters, only the ledger records which are
    /// done.
    fn tell_ledger(&self, from: &Source<'_>, json: bool) -> Result<(), BoxError> {
        let own = match &self.ledger {
            Some(StoreAddress::DynamoDb(_)) => return Ok(()),
            Some(StoreAddress::Redb(path)) => path.clone(),
            None => own_ledger()?,
        };
        let own = StoreAddress::Redb(own);
        if !from.removes {
            eprintln!(
                "warning: {} keeps its dead letters, and only {own} on this machine records which were replayed; to replay from several machines, use --ledger dynamodb:TABLE",
                from.address
            );
        } else if self.ledger.is_none() && !json {
            eprintln!("ledger: {own}");
        }
        Ok(())
    }

    pub(crate) async fn run(
        &self,
        replay: replay::Replay,
        from: Source<'_>,
        target: Target,
        clients: &Clients,
        json: bool,
    ) -> Result<Ended, BoxError> {
        let to = match &target {
            Target::Stream { stream, stamp } => {
                let stream = Stream::new(clients.kinesis(stream).await, stream.clone());
                let stream = if *stamp { stream.stamped() } else { stream };
                replay.check_stream(&stream).await?;
                Opened::Stream(Box::new(stream))
            }
            Target::Sink(address) => {
                let sink = clients.sink(address).await?;
                replay.check_sink(&*sink).await?;
                Opened::Sink(sink)
            }
        };
        if !self.confirmed(&from, &target)? {
            return Ok(Ended::Interrupted);
        }
        let mut replay = replay
            .rate(self.rate)
            .max_redrives(self.max_redrives)
            .dry_run(self.dry_run)
            .ignore_ledger(self.ignore_ledger)
            .ledger(clients.ledger(self.ledger.as_ref()).await?);
        if let Some(limit) = self.limit {
            replay = replay.limit(limit);
        }
        self.tell_ledger(&from, json)?;
        let bar = output::progress(replay.estimate().await);
        let (shown, began) = (bar.clone(), Instant::now());
        let replay = replay.on_progress(move |said, report| {
            shown.set_position(report.read);
            shown.set_message(format!("{} done", report.replayed + report.already));
            if json {
                output::line(as_json(said));
            } else if said.outcome.is_trouble() {
                shown.suspend(|| eprintln!("{}", as_text(said)));
            }
        });
        let done = match to {
            Opened::Stream(stream) => replay.into_stream(*stream, stop::asked()).await,
            Opened::Sink(sink) => replay.to_sink(sink, stop::asked()).await,
        };
        bar.finish_and_clear();
        let report = done?;
        match json {
            true => drop(output::line(report_as_json(&report))),
            false => tell(&report, began.elapsed().as_secs_f64()),
        }
        Ok(match (report.stopped, report.is_clean()) {
            (true, _) => Ended::Interrupted,
            (false, true) => Ended::Done,
            (false, false) => Ended::Left,
        })
    }
}

fn as_text(said: &Progress<'_>) -> String {
    let id = said.letter.map(|letter| letter.id.to_string());
    let id = id.as_deref().map_or("", |id| &id[..12]);
    output::escaped(&format!("{} {id}: {}", said.place, outcome(said))).into_owned()
}

/// Describes the outcome of a dead letter, without the content of one that cannot be read.
fn outcome(said: &Progress<'_>) -> String {
    match said.outcome {
        Outcome::Unreadable(error) => {
            format!("unreadable, left in place: {}", output::unreadable(error))
        }
        outcome => outcome.to_string(),
    }
}

fn as_json(said: &Progress<'_>) -> String {
    let json = json!({
        "place": said.place,
        "id": said.letter.map(|letter| letter.id.to_string()),
        "origin": said.letter.map(|letter| letter.origin.to_string()),
        "outcome": said.outcome.as_str(),
        "text": outcome(said),
    });
    output::json(&json.to_string())
}

fn report_as_json(report: &Report) -> String {
    let counts: serde_json::Map<_, _> = report
        .counts()
        .into_iter()
        .map(|(what, count)| (what.to_owned(), count.into()))
        .collect();
    json!({
        "report": counts,
        "in_order": report.in_order,
        "stopped": report.stopped,
        "limit_reached": report.limit_reached,
    })
    .to_string()
}

fn tell(report: &Report, seconds: f64) {
    let said = [
        ("replayed", report.replayed),
        (
            "of these possibly replayed twice, because an earlier run was interrupted",
            report.possibly_repeated,
        ),
        ("already processed, by the idempotency store", report.duplicates),
        ("already done", report.already),
        ("would be replayed", report.would),
        ("not matched by the filters", report.not_matched),
        ("not dead letters of redrive, left in place", report.foreign),
        ("unreadable, left in place", report.unreadable),
        ("redacted, left in place", report.redacted),
        ("at the limit of --max-redrives, left in place", report.too_often),
        ("returned during this run, left for the next run", report.returned),
        ("without a stored payload, left in place", report.no_payload),
        ("refused by the target, left in place", report.refused),
        ("no longer in their stream", report.gone),
        ("not reached", report.unsettled),
        (
            "(about) not delivered; a FIFO queue withholds messages behind others of their group",
            report.rest.behind,
        ),
        (
            "(about) in flight with another reader or a killed run; visible again within a minute",
            report.rest.hidden,
        ),
        ("done but not removed; run the command again", report.not_removed),
    ];
    output::line(format_args!("{} messages read in {seconds:.1} s", report.read));
    for (what, count) in said.iter().filter(|(_, count)| *count > 0) {
        output::line(format_args!("{count:>9} {what}"));
    }
    if report.read == 0 {
        output::line("nothing to replay");
    }
    if report.limit_reached {
        output::line("limit reached; other dead letters are left in place");
    }
    if report.stopped {
        output::line("interrupted; run the command again to resume");
    }
}
