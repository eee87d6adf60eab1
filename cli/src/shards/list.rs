//! `redrive shards list`: prints one line for each shard.

use std::time::{Duration, SystemTime};

use clap::Args;
use redrive::operator::ShardStatus;
use redrive::{BoxError, Position, ShardId};
use serde_json::json;

use super::Whose;
use crate::Ended;
use crate::clients::Clients;
use crate::output;

/// List the shards, one per line
///
/// Shows for each shard the checkpoint, the time until which all arrived records are settled, the records
/// settled ahead of the checkpoint, and the lease owner. Takes no lease and moves nothing.
#[derive(Debug, Args)]
pub(crate) struct List {
    #[command(flatten)]
    whose: Whose,
}

impl List {
    pub(super) async fn run(self, json: bool) -> Result<Ended, BoxError> {
        let shards = self.whose.shards(&Clients::default()).await?;
        let mut ended = Ended::Done;
        for status in shards.list().await? {
            if let Err(error) = &status.checkpoint {
                ended = Ended::Left;
                eprintln!("{}: {}", status.shard, output::escaped(&output::chain(error)));
            }
            if !output::line(if json { as_json(&status) } else { as_text(&status) }) {
                break;
            }
        }
        Ok(ended)
    }
}

fn as_text(status: &ShardStatus) -> String {
    let mut text = format!(
        "{}  {:<6}  ",
        status.shard,
        if status.closed { "closed" } else { "open" }
    );
    match &status.checkpoint {
        Ok(Some(checkpoint)) => {
            text.push_str(&position(checkpoint.position()));
            if let Some(time) = checkpoint.read_until() {
                let ago = SystemTime::now().duration_since(time).unwrap_or_default();
                let ago = humantime::format_duration(Duration::from_secs(ago.as_secs()));
                let time = output::time(time);
                text.push_str(&format!("  settled until {time} ({ago} ago)"));
            }
            if let Some(ahead) = checkpoint.ahead() {
                text.push_str(&format!("  settled ahead with {} gaps", ahead.holes()));
            }
            if let Some(starts) = checkpoint.starts() {
                text.push_str(&format!("  {} starts without progress", starts.count));
            }
        }
        Ok(None) => text.push_str("no checkpoint"),
        Err(_) => text.push_str("unreadable checkpoint"),
    }
    if let Some(holder) = &status.holder {
        text.push_str(&format!("  leased by {}", holder.name));
    }
    output::escaped(&text).into_owned()
}

/// Formats a position. A timestamp is formatted as a date and time.
pub(super) fn position(position: &Position) -> String {
    match position {
        Position::AtTimestamp { millis } => {
            let time = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(*millis));
            time.map_or_else(|| position.to_string(), output::time)
        }
        position => position.to_string(),
    }
}

fn as_json(status: &ShardStatus) -> String {
    output::json(&json_of(status))
}

fn json_of(status: &ShardStatus) -> String {
    let checkpoint = status.checkpoint.as_ref();
    let stored = checkpoint.ok().and_then(Option::as_ref);
    json!({
        "shard": status.shard.as_str(),
        "parents": status.parents.iter().map(ShardId::as_str).collect::<Vec<_>>(),
        "closed": status.closed,
        "position": stored.map(|stored| stored.position().to_string()),
        "read_until": stored.and_then(|stored| stored.read_until()).map(output::time),
        "gaps_ahead": stored.and_then(|stored| stored.ahead()).map(|ahead| ahead.holes()),
        "starts_in_vain": stored.and_then(|stored| stored.starts()).map_or(0, |starts| starts.count),
        "leased_by": status.holder.as_ref().map(|holder| &holder.name),
        "error": checkpoint.err().map(|error| output::chain(error)),
    })
    .to_string()
}
