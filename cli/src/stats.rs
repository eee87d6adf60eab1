//! `redrive stats`: counts dead letters by cause and time.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::{Duration, SystemTime};

use crate::address::Address;
use clap::Args;
use redrive::BoxError;
use redrive::replay::for_each_letter;
use serde_json::json;

use crate::Ended;
use crate::clients::Clients;
use crate::filter::Only;
use crate::list::Tally;
use crate::output;

/// Count dead letters by reason, error code, stream and hour
#[derive(Debug, Args)]
pub(crate) struct Stats {
    /// Address of the dead letters
    address: Address,
    #[command(flatten)]
    only: Only,
}

type Counts = BTreeMap<String, u64>;

#[derive(Default)]
struct Tables {
    reasons: Counts,
    codes: Counts,
    streams: Counts,
    hours: Counts,
    bytes: u64,
    oldest: Option<SystemTime>,
    newest: Option<SystemTime>,
}

/// The maximum number of rows of a table: the latest hours, or the most frequent values.
const ROWS: usize = 24;
const BAR: u64 = 40;

impl Stats {
    pub(crate) async fn run(self, json: bool) -> Result<Ended, BoxError> {
        let mut source = Clients::default().source(&self.address).await?;
        let bar = output::progress(source.estimate().await);
        let filter = self.only.filter();
        let (mut tally, mut tables) = (Tally::default(), Tables::default());
        let rest = for_each_letter(&mut *source, |place, letter| {
            bar.inc(1);
            let letter = bar.suspend(|| tally.readable(place, letter));
            if let Some(letter) = letter.filter(|letter| filter.matches(letter)) {
                tally.letters += 1;
                let at = letter.dead_lettered_at;
                let count = |counts: &mut Counts, of: &str| *counts.entry(of.to_owned()).or_default() += 1;
                count(&mut tables.reasons, letter.reason.as_str());
                count(&mut tables.codes, output::code(letter.code.as_deref()));
                count(&mut tables.streams, &letter.stream);
                count(&mut tables.hours, &hour(at));
                tables.bytes += letter.payload_bytes;
                tables.oldest = Some(tables.oldest.map_or(at, |oldest| oldest.min(at)));
                tables.newest = Some(tables.newest.map_or(at, |newest| newest.max(at)));
            }
            ControlFlow::Continue(())
        })
        .await?;
        bar.finish_and_clear();
        output::rest(rest);
        match json {
            true => tables.as_json(tally.letters),
            false => tables.as_text(tally.letters),
        }
        Ok(tally.ended(&self.address))
    }
}

impl Tables {
    fn as_json(&self, letters: u64) {
        let json = json!({
            "letters": letters,
            "payload_bytes": self.bytes,
            "oldest": self.oldest.map(output::time),
            "newest": self.newest.map(output::time),
            "reasons": self.reasons,
            "codes": self.codes,
            "streams": self.streams,
            "hours": self.hours,
        });
        output::line(output::json(&json.to_string()));
    }

    fn as_text(&self, letters: u64) {
        let (Some(oldest), Some(newest)) = (self.oldest, self.newest) else {
            return;
        };
        let bytes = indicatif::HumanBytes(self.bytes);
        let (oldest, newest) = (output::time(oldest), output::time(newest));
        output::line(format_args!(
            "{letters} dead letters, {bytes}, from {oldest} to {newest}"
        ));
        table("reason", &most(&self.reasons));
        table("code", &most(&self.codes));
        table("stream", &most(&self.streams));
        table("hour", &self.latest_hours());
    }

    /// Returns the latest hours with their counts, including hours without dead letters.
    fn latest_hours(&self) -> Vec<(String, u64)> {
        let (Some(oldest), Some(newest)) = (self.oldest, self.newest) else {
            return Vec::new();
        };
        let mut hours = Vec::new();
        let mut at = newest;
        while hours.len() < ROWS {
            let hour = hour(at);
            hours.push((hour.clone(), self.hours.get(&hour).copied().unwrap_or(0)));
            match at.checked_sub(Duration::from_secs(3_600)) {
                Some(earlier) if hour > self::hour(oldest) => at = earlier,
                _ => break,
            }
        }
        hours.reverse();
        hours
    }
}

/// Formats the hour of a time in UTC: `2026-11-28T09`.
fn hour(time: SystemTime) -> String {
    output::time(time).chars().take(13).collect()
}

fn most(counts: &Counts) -> Vec<(String, u64)> {
    let rows = counts
        .iter()
        .map(|(of, count)| (output::escaped(of).into_owned(), *count));
    let mut rows: Vec<_> = rows.collect();
    rows.sort_by(|(_, a), (_, b)| b.cmp(a));
    if rows.len() > ROWS {
        let others = rows.split_off(ROWS);
        let count = others.iter().map(|(_, count)| count).sum();
        rows.push((format!("({} others)", others.len()), count));
    }
    rows
}

fn table(title: &str, rows: &[(String, u64)]) {
    let widest = rows
        .iter()
        .map(|(of, _)| of.chars().count())
        .max()
        .unwrap_or(0)
        .max(title.len());
    let most = rows.iter().map(|(_, count)| *count).max().unwrap_or(1).max(1);
    output::line(format_args!("\n{title:<widest$}  letters"));
    for (of, count) in rows {
        let eighths = usize::try_from(count * BAR * 8 / most)
            .unwrap_or(0)
            .max(usize::from(*count > 0));
        let part = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"][eighths % 8];
        let bar = "█".repeat(eighths / 8);
        output::line(format_args!("{of:<widest$}  {count:>7}  {bar}{part}"));
    }
}
