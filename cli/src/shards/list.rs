//! `redrive shards list`: prints one line for each shard, and one for each worker.

use std::time::{Duration, SystemTime};

use clap::Args;
use redrive::operator::{Announcement, FleetStatus, ShardStatus, WorkerStatus};
use redrive::{BoxError, Position, ShardId};
use serde_json::{Value, json};

use super::Whose;
use crate::Ended;
use crate::clients::Clients;
use crate::output;

/// List the shards and the workers, one per line
///
/// Shows for each shard the checkpoint, the time until which all arrived records are settled, the records
/// settled ahead of the checkpoint, the lease owner, and the worker that the shard is being handed over to.
/// Takes no lease and moves nothing.
///
/// With a lease table that the workers share evenly, also shows each worker: the open shards that it works on,
/// its kind (redrive, or other), its last announcement (recent, old, stopping, or none), and which one is the
/// leader. A worker announces itself every 30 seconds; an announcement older than a minute is old. A worker
/// without an announcement neither gives nor gets shards.
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
                return Ok(ended);
            }
        }
        if let Some(fleet) = shards.fleet().await? {
            write(&fleet, json);
        }
        Ok(ended)
    }
}

fn write(fleet: &FleetStatus, json: bool) {
    for worker in &fleet.workers {
        let is_written = match json {
            true => output::json_line(&worker_as_json(worker)),
            false => output::line(worker_as_text(worker)),
        };
        if !is_written {
            return;
        }
    }
    if fleet.leader().is_none() && fleet.workers.iter().any(WorkerStatus::takes_shards) && !json {
        output::line("no leader: shards are assigned once a worker becomes the leader");
    }
}

fn worker_as_text(worker: &WorkerStatus) -> String {
    let mut text = format!(
        "worker {}  open shards: {}  {}  announced: {}",
        worker.name,
        worker.open_shards,
        if worker.is_native { "redrive" } else { "other" },
        announcement(worker),
    );
    if let Some(most) = worker.max_leases {
        text.push_str(&format!("  at most {most} shards"));
    }
    if worker.is_leader {
        text.push_str("  leader");
    }
    output::escaped(&text).into_owned()
}

fn worker_as_json(worker: &WorkerStatus) -> Value {
    json!({
        "worker": worker.name,
        "open_shards": worker.open_shards,
        "redrive": worker.is_native,
        "announcement": announcement(worker),
        "max_leases": worker.max_leases,
        "leader": worker.is_leader,
    })
}

fn announcement(worker: &WorkerStatus) -> &'static str {
    match worker.announcement {
        Announcement::Recent => "recent",
        Announcement::Old => "old",
        Announcement::Stopping => "stopping",
        _ => "none",
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
            // An idle shard has one.
            if let Some(starts) = checkpoint.starts().filter(|starts| starts.count > 1) {
                text.push_str(&format!("  {} starts without progress", starts.count));
            }
        }
        Ok(None) => text.push_str("no checkpoint"),
        Err(_) => text.push_str("unreadable checkpoint"),
    }
    if let Some(holder) = &status.holder {
        text.push_str(&format!("  leased by {}", holder.name));
    }
    if let Some(to) = &status.handed_over_to {
        text.push_str(&format!("  being handed over to {to}"));
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
        "handed_over_to": status.handed_over_to,
        "error": checkpoint.err().map(|error| output::chain(error)),
    })
    .to_string()
}
