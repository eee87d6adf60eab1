//! Filters that select dead letters.

use std::time::{Duration, SystemTime};

use clap::{Args, ValueEnum};
use redrive::dead_letter::Reason;
use redrive::replay::Filter;
use redrive::{BoxError, StreamId};

/// The filter options. A repeated option matches any of its values; different options must all match.
#[derive(Debug, Args)]
#[command(next_help_heading = "Filters")]
pub(crate) struct Only {
    /// Select dead letters written at this time or later: 2026-11-28T09:00:00Z, or 2h for two hours ago
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<SystemTime>,
    /// Select dead letters written before this time
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<SystemTime>,
    /// Select dead letters with this reason: permanent, attempts_exhausted, time_exhausted, panicked,
    /// expiring, crash_loop, operator
    #[arg(long)]
    reason: Vec<Reason>,
    /// Select dead letters of this failure class
    #[arg(long)]
    class: Vec<Class>,
    /// Select dead letters with this error code
    #[arg(long)]
    code: Vec<String>,
    /// Select dead letters of records from this stream, given by name or ARN. Only the name is compared
    #[arg(long, value_name = "NAME|ARN", value_parser = str::parse::<StreamId>)]
    stream: Vec<StreamId>,
    /// Select dead letters of records from this shard
    #[arg(long)]
    shard: Vec<String>,
    /// Select dead letters of records with this partition key
    #[arg(long, value_name = "PARTITION_KEY")]
    key: Vec<String>,
    /// Select dead letters whose id is, or starts with, this text
    #[arg(long)]
    id: Vec<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Class {
    Transient,
    Permanent,
}

impl Only {
    pub(crate) fn filter(&self) -> Filter {
        let mut filter = Filter::new();
        if let Some(since) = self.since {
            filter = filter.since(since);
        }
        if let Some(until) = self.until {
            filter = filter.until(until);
        }
        for class in &self.class {
            filter = filter.class(match class {
                Class::Transient => redrive::Class::Transient,
                Class::Permanent => redrive::Class::Permanent,
            });
        }
        let add = |filter, values: &[String], add: fn(Filter, String) -> Filter| {
            values.iter().cloned().fold(filter, add)
        };
        filter = self.reason.iter().copied().fold(filter, Filter::reason);
        filter = self.stream.iter().cloned().fold(filter, Filter::stream);
        filter = add(filter, &self.code, Filter::code);
        filter = add(filter, &self.shard, Filter::shard);
        filter = add(filter, &self.key, Filter::partition_key);
        add(filter, &self.id, Filter::id)
    }
}

/// Parses a time, or a duration before now.
pub(crate) fn time(text: &str) -> Result<SystemTime, BoxError> {
    if let Ok(time) = humantime::parse_rfc3339_weak(text) {
        return Ok(time);
    }
    let ago: Duration = humantime::parse_duration(text)
        .map_err(|_| "write a time such as 2026-11-28T09:00:00Z, or a duration before now: 2h, 30m, 7d")?;
    let time = SystemTime::now().checked_sub(ago);
    time.ok_or_else(|| "the time is too far in the past".into())
}
