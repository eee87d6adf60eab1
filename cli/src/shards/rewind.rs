//! `redrive shards rewind`: moves a checkpoint back.

use clap::Args;
use redrive::{BoxError, ShardId};
use serde_json::json;

use super::list::position;
use super::place::To;
use super::{How, Whose};
use crate::Ended;
use crate::clients::Clients;
use crate::output;

/// Rewind a shard to an earlier position
///
/// All records after the new position are processed again, settled or not. The command refuses a position
/// that would pass over an unsettled record.
#[derive(Debug, Args)]
pub(crate) struct Rewind {
    /// Shard id
    shard: String,
    #[command(flatten)]
    whose: Whose,
    /// New position. TIME (2026-11-28T09:00:00Z, or 2h for two hours ago): the first record that arrived at
    /// this time or later. SEQUENCE: after this record, or after part SUB (default 0) of an aggregated
    /// record. trim-horizon: the oldest record in the shard. To process a record again, use its arrival time
    #[arg(long, value_name = "TIME|SEQUENCE[/SUB]|trim-horizon")]
    to: To,
    #[command(flatten)]
    how: How,
}

impl Rewind {
    pub(super) async fn run(self, json: bool) -> Result<Ended, BoxError> {
        let clients = Clients::default();
        let shard = ShardId::from(&*self.shard);
        let shards = self.whose.shards_to_move(&clients, &shard, &self.how).await?;
        let rewind = shards.rewind(&shard, self.to.0).await?;
        if !rewind.children().is_empty() {
            let children: Vec<&str> = rewind.children().iter().map(ShardId::as_str).collect();
            eprintln!(
                "{shard} was settled to its end. Records already read from {} are not read again. Restart the consumers: a consumer that has seen the end of a shard does not read that shard again",
                children.join(" and ")
            );
        }
        let (from, to) = (rewind.from().position(), rewind.to());
        let (from_text, to_text) = (position(from), position(to));
        if self.how.dry_run {
            match json {
                true => output::json_line(&json!({
                    "shard": self.shard, "from": from.to_string(), "to": to.to_string(),
                })),
                false => output::line(format_args!("would rewind {shard} from {from_text} to {to_text}")),
            };
            return Ok(Ended::Done);
        }
        let question =
            format!("Rewind {shard} from {from_text} to {to_text}, and process all later records again?");
        if !output::confirm(&question, self.how.yes)? {
            return Ok(Ended::Interrupted);
        }
        let stands = rewind.carry_out().await?;
        let stands = stands.position();
        match json {
            true => output::json_line(&json!({ "shard": self.shard, "position": stands.to_string() })),
            false => output::line(format_args!("{shard} is now at {}", position(stands))),
        };
        Ok(Ended::Done)
    }
}
