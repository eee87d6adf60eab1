//! `redrive show`: shows one dead letter in full.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::ops::ControlFlow;

use crate::address::Address;
use clap::Args;
use redrive::dead_letter::{AttemptReport, DeadLetter};
use redrive::record::KeyHash;
use redrive::replay::{Filter, for_each_letter};
use redrive::{BoxError, DeadLetterId};

use crate::Ended;
use crate::clients::Clients;
use crate::list::{Tally, as_json, as_text, marks};
use crate::output;

/// Show one dead letter in full
///
/// The payload, the partition key, the error texts, and error codes that may contain data of the record are
/// shown only with --payload. Characters that a terminal interprets are escaped. With --raw, the payload's
/// bytes are written unchanged.
#[derive(Debug, Args)]
pub(crate) struct Show {
    /// Address of the dead letters
    address: Address,
    /// Id of the dead letter, or the start of the id
    id: String,
    /// Show also the confidential parts: payload, partition key, error texts
    #[arg(long)]
    payload: bool,
    /// Write only the payload's bytes, for a file or a pipe
    #[arg(long, conflicts_with = "json")]
    raw: bool,
}

/// The maximum number of further matches of an ambiguous id that are listed after the first match.
const MATCHES: usize = 19;
/// The number of characters of a complete id.
const WHOLE_ID: usize = 64;

impl Show {
    pub(crate) async fn run(self, json: bool) -> Result<Ended, BoxError> {
        let mut source = Clients::default().source(&self.address).await?;
        let filter = Filter::new().id(&self.id);
        let mut found: Option<(String, DeadLetter)> = None;
        let mut others: BTreeMap<DeadLetterId, String> = BTreeMap::new();
        let mut more = false;
        let rest = for_each_letter(&mut *source, |place, letter| {
            let Some(letter) = Tally::default().readable(place, letter) else {
                return ControlFlow::Continue(());
            };
            if !filter.matches(&letter) {
                return ControlFlow::Continue(());
            }
            match &found {
                None => found = Some((place.to_owned(), letter)),
                // A copy of the same dead letter.
                Some((_, first)) if first.id == letter.id => {}
                Some(_) if others.len() < MATCHES => drop(others.insert(letter.id, as_text(&letter))),
                Some(_) => more |= !others.contains_key(&letter.id),
            }
            // A complete id matches only one dead letter.
            match more || self.id.len() == WHOLE_ID {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        })
        .await?;
        let Some((place, letter)) = found else {
            output::rest(rest);
            return Err(format!(
                "no dead letter in {} has an id that starts with {:?}",
                self.address, self.id
            )
            .into());
        };
        if !others.is_empty() {
            eprintln!("{}", as_text(&letter));
            others.values().for_each(|other| eprintln!("{other}"));
            let more = if more { " and more" } else { "" };
            return Err(format!(
                "the id {:?} is ambiguous: it matches the dead letters above{more}; give more characters of the id",
                self.id
            )
            .into());
        }
        match (self.raw, json, self.payload) {
            (true, ..) => std::io::stdout().lock().write_all(&letter.payload)?,
            (_, true, true) => {
                let json = String::from_utf8_lossy(&letter.to_json_line()).into_owned();
                output::line(output::json(&json));
            }
            (_, true, false) => drop(output::line(as_json(&letter))),
            _ => self.text(&place, &letter),
        }
        Ok(Ended::Done)
    }

    fn text(&self, place: &str, letter: &DeadLetter) {
        let say = |what: &str, value: &dyn std::fmt::Display| {
            output::line(format_args!("{what:<16} {}", output::escaped(&value.to_string())));
        };
        say("dead letter", &format_args!("{}{}", letter.id, marks(letter)));
        say("location", &place);
        say("application", &letter.application);
        say("stream", &letter.stream);
        say("shard", &letter.shard);
        say("sequence number", &letter.sequence_number);
        say("sub-sequence", &letter.sub_sequence_number);
        match (&letter.partition_key, self.payload) {
            (Some(key), true) => say("partition key", &format_args!("{key:?}")),
            (Some(key), false) => say("key hash", &KeyHash::of(key)),
            (None, _) => {}
        }
        if let Some(arrival) = letter.arrival {
            say("arrived", &output::time(arrival));
        }
        say("dead-lettered", &output::time(letter.dead_lettered_at));
        say("reason", &letter.reason.as_str());
        say(
            "class, scope",
            &format_args!("{}, {}", letter.class.as_str(), letter.scope.as_str()),
        );
        let shown = |code: Option<&str>| match (code, self.payload) {
            (Some(code), true) => output::escaped(code).into_owned(),
            (code, _) => output::code(code).to_owned(),
        };
        say("code", &shown(letter.code.as_deref()));
        say("error type", &letter.error.type_name);
        if self.payload {
            for text in &letter.error.chain {
                say("error", &text.trim_end());
            }
        }
        say("attempts", &letter.attempts.count);
        if letter.attempts.probes > 0 {
            say("probes", &letter.attempts.probes);
        }
        let Attempts {
            first,
            last,
            left_out,
        } = Attempts::of(letter);
        let attempt = |of: &AttemptReport| attempt(of, &shown(of.code.as_deref()));
        first.iter().for_each(attempt);
        if left_out > 0 {
            say("", &format_args!("… {left_out} more"));
        }
        last.iter().for_each(attempt);
        say("processor", &letter.processor);
        if let Some(version) = &letter.processor_version {
            say("version", version);
        }
        if let Some(trace) = &letter.trace_context {
            say("trace", trace);
        }
        if letter.redrive_count > 0 {
            say("origin", &letter.origin);
        }
        if let Some(place) = &letter.payload_at {
            say("payload location", place);
        }
        say("payload bytes", &letter.payload_bytes);
        if self.payload && letter.payload_at.is_none() {
            output::line("");
            output::line(output::escaped_lines(&String::from_utf8_lossy(&letter.payload)));
        }
    }
}

struct Attempts<'a> {
    first: &'a [AttemptReport],
    last: &'a [AttemptReport],
    left_out: usize,
}

impl<'a> Attempts<'a> {
    fn of(letter: &'a DeadLetter) -> Self {
        let attempts = &letter.attempts;
        let told = attempts.first.len() + attempts.last.len();
        Attempts {
            first: &attempts.first,
            last: &attempts.last,
            left_out: usize::try_from(attempts.calls()).map_or(0, |count| count.saturating_sub(told)),
        }
    }
}

fn attempt(attempt: &AttemptReport, code: &str) {
    let (number, ended_at) = (attempt.number, output::time(attempt.ended_at));
    output::line(format_args!("  {number:>4}  {ended_at}  {code}"));
}
