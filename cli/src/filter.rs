//! Which letters.

use std::time::{Duration, SystemTime};

use clap::{Args, ValueEnum};
use redrive::BoxError;
use redrive::dead_letter::Reason;
use redrive::replay::Filter;

/// Of several values of one option one must fit, of several options all must.
#[derive(Debug, Args)]
#[command(next_help_heading = "Which letters")]
pub(crate) struct Only {
    /// Made at this time or later: 2026-11-28T09:00:00Z, or 2h for two hours ago
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<SystemTime>,
    /// Made before this time
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<SystemTime>,
    /// Given up for this reason: permanent, attempts_exhausted, time_exhausted, panicked, expiring, crash_loop, operator
    #[arg(long)]
    reason: Vec<Reason>,
    /// Classified so
    #[arg(long)]
    class: Vec<Class>,
    /// With this error code
    #[arg(long)]
    code: Vec<String>,
    /// Of records of this stream
    #[arg(long)]
    stream: Vec<String>,
    /// Of records of this shard
    #[arg(long)]
    shard: Vec<String>,
    /// Of records with this partition key
    #[arg(long, value_name = "PARTITION_KEY")]
    key: Vec<String>,
    /// With this id, or one that begins so
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
        filter = add(filter, &self.code, Filter::code);
        filter = add(filter, &self.stream, Filter::stream);
        filter = add(filter, &self.shard, Filter::shard);
        filter = add(filter, &self.key, Filter::partition_key);
        add(filter, &self.id, Filter::id)
    }
}

/// A time, or how long ago it was.
pub(crate) fn time(text: &str) -> Result<SystemTime, BoxError> {
    if let Ok(time) = humantime::parse_rfc3339_weak(text) {
        return Ok(time);
    }
    let ago: Duration = humantime::parse_duration(text)
        .map_err(|_| "write a time such as 2026-11-28T09:00:00Z, or how long ago: 2h, 30m, 7d")?;
    let time = SystemTime::now().checked_sub(ago);
    time.ok_or_else(|| "that is too long ago".into())
}
