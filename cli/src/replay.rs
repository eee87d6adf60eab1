//! `redrive replay`: records driven again.

use std::time::Instant;

use crate::address::{Address, StoreAddress};
use clap::Args;
use redrive::replay::{Report, Said, Stream};
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
    /// The stream to put the records into
    #[arg(long, value_name = "STREAM", required_unless_present = "to")]
    into: Option<String>,
    /// Move the letters to this address instead, as they are
    #[arg(long, value_name = "ADDRESS", conflicts_with_all = ["into", "stamp"])]
    to: Option<Address>,
    /// Wrap each record in a KPL aggregate whose tags tell consumers of redrive where it comes from
    #[arg(long)]
    stamp: bool,
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
    Stream { name: String, stamp: bool },
    Sink(Address),
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
        if source.removes() && !self.how.dry_run && !self.how.confirmed(&self.address)? {
            return Ok(Ended::Interrupted);
        }
        let replay = replay::Replay::new(source).only(self.only.filter());
        self.how.run(replay, target, &clients, json).await
    }
}

impl How {
    pub(crate) fn confirmed(&self, address: &Address) -> Result<bool, BoxError> {
        let question = format!("What is done is removed from {address}. Go on?");
        output::confirm(&question, self.yes || self.dry_run)
    }

    pub(crate) async fn run(
        &self,
        replay: replay::Replay,
        target: Target,
        clients: &Clients,
        json: bool,
    ) -> Result<Ended, BoxError> {
        let mut replay = replay
            .rate(self.rate)
            .max_redrives(self.max_redrives)
            .dry_run(self.dry_run)
            .again(self.again)
            .ledger(clients.ledger(self.ledger.as_ref()).await?)
            .payloads(clients.s3().await);
        if self.ledger.is_none() && !json {
            eprintln!("ledger: redb:{}", own_ledger()?.display());
        }
        let bar = output::progress(replay.estimate().await);
        let (shown, began) = (bar.clone(), Instant::now());
        let replay = replay.on_each(move |said, report| {
            shown.set_position(report.read);
            shown.set_message(format!("{} done", report.replayed + report.already));
            if json {
                output::line(as_json(said));
            } else if said.outcome.is_trouble() {
                shown.suspend(|| eprintln!("{}", as_text(said)));
            }
        });
        let done = match target {
            Target::Stream { name, stamp } => {
                let stream = Stream::new(clients.kinesis().await, name);
                let stream = if stamp { stream.stamped() } else { stream };
                replay.into_stream(stream, stop::asked()).await
            }
            Target::Sink(address) => {
                let sink = clients.sink(&address).await?;
                replay.to_sink(sink, stop::asked()).await
            }
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

fn as_text(said: &Said<'_>) -> String {
    let id = said.letter.map(|letter| letter.id.to_string());
    let id = id.as_deref().map_or("", |id| &id[..12]);
    format!("{} {id}: {}", said.place, said.outcome)
}

fn as_json(said: &Said<'_>) -> String {
    json!({
        "place": said.place,
        "id": said.letter.map(|letter| letter.id.to_string()),
        "origin": said.letter.map(|letter| letter.origin.to_string()),
        "outcome": said.outcome.as_str(),
        "text": said.outcome.to_string(),
    })
    .to_string()
}

fn report_as_json(report: &Report) -> String {
    let counts: serde_json::Map<_, _> = report
        .counts()
        .into_iter()
        .map(|(what, count)| (what.to_owned(), count.into()))
        .collect();
    json!({ "report": counts, "in_order": report.in_order, "stopped": report.stopped }).to_string()
}

fn tell(report: &Report, seconds: f64) {
    let said = [
        ("driven again", report.replayed),
        (
            "of these maybe for the second time, as an earlier run was interrupted",
            report.maybe_again,
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
            "or so are behind others of their group, which were left",
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
    if report.stopped {
        output::line("it was stopped: start it again, and it goes on where it was");
    }
}
