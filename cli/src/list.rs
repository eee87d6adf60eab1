//! `redrive list`: prints one line for each dead letter.

use std::ops::ControlFlow;

use crate::address::Address;
use clap::Args;
use redrive::BoxError;
use redrive::dead_letter::{DeadLetter, DecodeError};
use redrive::replay::for_each_letter;
use serde_json::json;

use crate::Ended;
use crate::clients::Clients;
use crate::filter::Only;
use crate::output;

/// List dead letters, one per line
///
/// An error code is hidden if it is longer than 64 characters or contains other characters than letters,
/// digits and _-.:#/, because it may contain data of the record.
///
/// Listing removes nothing. (An SQS queue counts each read as a receive of the message.)
#[derive(Debug, Args)]
pub(crate) struct List {
    /// Address of the dead letters
    address: Address,
    #[command(flatten)]
    only: Only,
    /// Maximum number of dead letters to list
    #[arg(long, default_value_t = 1_000)]
    limit: u64,
}

impl List {
    pub(crate) async fn run(self, json: bool) -> Result<Ended, BoxError> {
        let mut source = Clients::default().source(&self.address).await?;
        let filter = self.only.filter();
        let mut tally = Tally::default();
        let limit = self.limit;
        let each = |place: &str, letter: Result<DeadLetter, DecodeError>| {
            let Some(letter) = tally.readable(place, letter) else {
                return ControlFlow::Continue(());
            };
            if !filter.matches(&letter) {
                return ControlFlow::Continue(());
            }
            if tally.letters == limit {
                tally.more = true;
                return ControlFlow::Break(());
            }
            tally.letters += 1;
            match output::line(if json { as_json(&letter) } else { as_text(&letter) }) {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            }
        };
        let rest = for_each_letter(&mut *source, each).await?;
        output::rest(rest);
        if tally.more {
            eprintln!("more than {limit} dead letters match; raise --limit or narrow the filters");
        }
        Ok(tally.ended(&self.address))
    }
}

/// The counts of messages that were read from a source.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) letters: u64,
    more: bool,
    foreign: u64,
    unreadable: u64,
}

impl Tally {
    /// Returns the dead letter. Counts a foreign or unreadable message instead, and reports an unreadable one
    /// on standard error.
    pub(crate) fn readable(
        &mut self,
        place: &str,
        letter: Result<DeadLetter, DecodeError>,
    ) -> Option<DeadLetter> {
        match letter {
            Ok(letter) => return Some(letter),
            Err(DecodeError::Foreign) => self.foreign += 1,
            Err(error) => {
                self.unreadable += 1;
                eprintln!("{}: {}", output::escaped(place), output::unreadable(&error));
            }
        }
        None
    }

    pub(crate) fn ended(&self, address: &Address) -> Ended {
        if self.foreign > 0 {
            eprintln!("{} messages are not dead letters of redrive", self.foreign);
        }
        if self.letters == 0 && self.foreign == 0 && self.unreadable == 0 {
            eprintln!("no dead letters in {address}");
        }
        match self.unreadable {
            0 => Ended::Done,
            _ => Ended::Left,
        }
    }
}

/// Formats a dead letter as one line of a list.
pub(crate) fn as_text(letter: &DeadLetter) -> String {
    let id = letter.id.to_string();
    let text = format!(
        "{}  {}  {:<18} {:<9} {:<24} {}/{}/{}{}  {} B, {}{}",
        &id[..12],
        output::time(letter.dead_lettered_at),
        letter.reason.as_str(),
        letter.class.as_str(),
        output::code(letter.code.as_deref()),
        letter.stream,
        letter.shard,
        letter.sequence_number,
        match letter.sub_sequence_number {
            0 => String::new(),
            sub => format!("+{sub}"),
        },
        letter.payload_bytes,
        letter.attempts,
        marks(letter),
    );
    output::escaped(&text).into_owned()
}

/// Returns the unusual properties of a dead letter, each after a comma.
pub(crate) fn marks(letter: &DeadLetter) -> String {
    let mut marks = String::new();
    if letter.redrive_count > 0 {
        marks.push_str(&format!(", redriven {}x", letter.redrive_count));
    }
    for (is, mark) in [
        (letter.redacted, ", redacted"),
        (letter.suspect, ", suspect"),
        (letter.payload_at.is_some(), ", payload stored separately"),
    ] {
        if is {
            marks.push_str(mark);
        }
    }
    marks
}

/// Formats a dead letter as JSON, without the record's content.
pub(crate) fn as_json(letter: &DeadLetter) -> String {
    let json = json!({
        "id": letter.id.to_string(),
        "origin": letter.origin.to_string(),
        "application": letter.application,
        "stream": letter.stream,
        "shard": letter.shard.as_str(),
        "sequence_number": letter.sequence_number.as_str(),
        "sub_sequence_number": letter.sub_sequence_number,
        "key_hash": letter.partition_key.as_deref().map(|key| redrive::record::KeyHash::of(key).to_string()),
        "arrived_at": letter.arrival.map(output::time),
        "dead_lettered_at": output::time(letter.dead_lettered_at),
        "reason": letter.reason.as_str(),
        "class": letter.class.as_str(),
        "scope": letter.scope.as_str(),
        "code": letter.code.as_deref().map(|code| output::code(Some(code))),
        "error_type": letter.error.type_name,
        "attempts": letter.attempts.count,
        "probes": letter.attempts.probes,
        "processor": letter.processor,
        "processor_version": letter.processor_version,
        "redrive_count": letter.redrive_count,
        "redacted": letter.redacted,
        "suspect": letter.suspect,
        "payload_at": letter.payload_at,
        "payload_bytes": letter.payload_bytes,
    });
    output::json(&json.to_string())
}
