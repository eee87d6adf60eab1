//! `redrive replay`: records driven again.

use std::sync::Arc;
use std::time::Instant;

use crate::address::{self, Address, StoreAddress};
use clap::Args;
use redrive::dead_letter::{self, DeadLetterSink};
use redrive::replay::{DeadLetterSource, Outcome, Progress, Report, Stream};
use redrive::{BoxError, replay};
use serde_json::json;

use crate::Ended;
use crate::clients::{Clients, own_ledger};
use crate::filter::Only;
use crate::{output, stop};

/// Drive letters' records again
///
/// Each is put into a stream, under its own partition key.
/// What was put is removed from a queue or a bucket once the stream has confirmed it. A file and a stream keep their
/// letters: what was done is remembered in the ledger. Interrupted, even killed, and started again, it goes on where it was.
///
/// A record comes behind newer records of its key, and every application that reads the stream sees it.
#[derive(Debug, Args)]
pub(crate) struct Replay {
    /// Where the letters are
    address: Address,
    /// The stream to put the records into, by its name or ARN
    #[arg(long, value_name = "STREAM", required_unless_present = "to")]
    into: Option<address::Stream>,
    /// Move the letters to this address instead, as they are
    #[arg(long, value_name = "ADDRESS", conflicts_with_all = ["into", "stamp"])]
    to: Option<Address>,
    /// Wrap each record in a KPL aggregate with tags that name its dead letter. A consumer of redrive reads them if it was
    /// built with `redrive_stamps`
    #[arg(long)]
    stamp: bool,
    /// Read payloads also from this bucket, where a claim check has put them: s3:BUCKET/PREFIX. Those of the bucket that
    /// ADDRESS names are read in any case
    #[arg(long, value_name = "ADDRESS")]
    payloads_from: Vec<Address>,
    #[command(flatten)]
    how: How,
    #[command(flatten)]
    only: Only,
}

#[derive(Debug, Args)]
pub(crate) struct How {
    /// So many letters a second at most
    #[arg(long, default_value_t = 100.0, value_name = "LETTERS")]
    rate: f64,
    /// Maximum number of letters to replay in this run
    #[arg(long, value_name = "LETTERS")]
    limit: Option<u64>,
    /// Leave alone what was driven again so often and failed
    #[arg(long, default_value_t = 3, value_name = "TIMES")]
    max_redrives: u32,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
    /// Also what the ledger knows as done
    #[arg(long)]
    again: bool,
    /// Where is remembered what was done: redb:FILE or dynamodb:TABLE. Default: a file below the user's state folder
    #[arg(long, value_name = "STORE")]
    ledger: Option<StoreAddress>,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

/// Where they go.
pub(crate) enum Target {
    Stream { name: address::Stream, stamp: bool },
    Sink(Address),
}

impl Target {
    /// Returns the stream that records or letters are put into.
    fn stream(&self) -> Option<&address::Stream> {
        match self {
            Target::Stream { name, .. } | Target::Sink(Address::Kinesis(name)) => Some(name),
            Target::Sink(_) => None,
        }
    }
}

impl Replay {
    pub(crate) async fn run(self, json: bool) -> Result<Ended, BoxError> {
        let clients = Clients::default();
        let source = clients.source(&self.address).await?;
        let target = match (self.into, self.to) {
            (Some(name), _) => Target::Stream {
                name,
                stamp: self.stamp,
            },
            (None, Some(to)) => Target::Sink(to),
            (None, None) => return Err("say where to: --into STREAM or --to ADDRESS".into()),
        };
        if !source.keeps_order() {
            eprintln!(
                "{}: a standard queue keeps no order; letters of a key are in order among those that are collected together",
                self.address
            );
        }
        let from = Source::new(&self.address, &*source);
        let mut replay = replay::Replay::new(source).filter(self.only.filter());
        for address in self.payloads_from.iter().chain([&self.address]) {
            match address {
                Address::S3 { bucket, prefix } => {
                    // The letters' prefix is not that of the payloads.
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

/// Where the letters are read.
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

/// The same, ready to be written to.
enum To {
    Stream(Stream),
    Sink(Arc<dyn DeadLetterSink>),
}

impl How {
    /// Asks before letters are removed from their source, or anything is put into a stream.
    fn confirmed(&self, from: &Source<'_>, target: &Target) -> Result<bool, BoxError> {
        let into = target.stream().map(|stream| {
            format!("Records are put into the stream {stream}; every application that reads it sees them. ")
        });
        let removed = from
            .removes
            .then(|| format!("What is done is removed from {}. ", from.address));
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

    /// Tells where the ledger is. Of a source that keeps its letters the ledger alone knows what was replayed.
    fn tell_ledger(&self, from: &Source<'_>, json: bool) -> Result<(), BoxError> {
        let own = match &self.ledger {
            Some(StoreAddress::DynamoDb(_)) => return Ok(()),
            Some(StoreAddress::Redb(path)) => path.clone(),
            None => own_ledger()?,
        };
        let own = StoreAddress::Redb(own);
        if !from.removes {
            eprintln!(
                "warning: {} keeps its letters, and what was replayed is known only to {own}, a file of this machine; to replay from several machines use --ledger dynamodb:TABLE",
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
            Target::Stream { name, stamp } => {
                let stream = Stream::new(clients.kinesis(name).await, name.as_str());
                let stream = if *stamp { stream.stamped() } else { stream };
                replay.check_stream(&stream).await?;
                To::Stream(stream)
            }
            Target::Sink(address) => {
                let sink = clients.sink(address).await?;
                replay.check_sink(&*sink).await?;
                To::Sink(sink)
            }
        };
        if !self.confirmed(&from, &target)? {
            return Ok(Ended::Interrupted);
        }
        let mut replay = replay
            .rate(self.rate)
            .max_redrives(self.max_redrives)
            .dry_run(self.dry_run)
            .ignore_ledger(self.again)
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
            To::Stream(stream) => replay.into_stream(stream, stop::asked()).await,
            To::Sink(sink) => replay.to_sink(sink, stop::asked()).await,
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

/// What became of it, without what is in a letter that cannot be read.
fn outcome(said: &Progress<'_>) -> String {
    match said.outcome {
        Outcome::Unreadable(error) => {
            format!("cannot be read, left where it is: {}", output::unreadable(error))
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
        ("driven again", report.replayed),
        (
            "of these maybe for the second time, as an earlier run was interrupted",
            report.possibly_repeated,
        ),
        ("known as processed", report.duplicates),
        ("done already", report.already),
        ("would be driven again", report.would),
        ("do not match", report.not_matched),
        ("are no letters of redrive, and were left", report.foreign),
        ("cannot be read, and were left", report.unreadable),
        ("are redacted, and were left", report.redacted),
        ("were driven again too often, and were left", report.too_often),
        ("came back meanwhile, and were left", report.returned),
        ("have no payload any more, and were left", report.no_payload),
        ("were refused, and were left", report.refused),
        ("are gone from their stream", report.gone),
        ("were not come to", report.unsettled),
        (
            "or so were not given, in a FIFO queue because they are behind others of their group",
            report.rest.behind,
        ),
        (
            "or so are with another reader, or with one that was killed: shown again within a minute",
            report.rest.hidden,
        ),
        (
            "are done and could not be removed; run it again",
            report.not_removed,
        ),
    ];
    output::line(format_args!("{} read in {seconds:.1} s", report.read));
    for (what, count) in said.iter().filter(|(_, count)| *count > 0) {
        output::line(format_args!("{count:>9} {what}"));
    }
    if report.read == 0 {
        output::line("there is nothing to drive again");
    }
    if report.limit_reached {
        output::line("the limit is reached: other letters were left");
    }
    if report.stopped {
        output::line("it was stopped: start it again, and it goes on where it was");
    }
}
