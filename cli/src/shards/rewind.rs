//! `redrive shards rewind`: a shard goes back.

use clap::Args;
use redrive::{BoxError, ShardId};
use serde_json::json;

use super::list::position;
use super::place::To;
use super::{How, Whose};
use crate::Ended;
use crate::clients::Clients;
use crate::output;

/// Go back in a shard
///
/// What stands behind the new position comes again, settled or not. Refused if a record that is not settled would be passed
/// over.
#[derive(Debug, Args)]
pub(crate) struct Rewind {
    /// The shard
    shard: String,
    #[command(flatten)]
    whose: Whose,
    /// To the first record that arrived then or later (2026-11-28T09:00:00Z, or 2h for two hours ago); behind the record
    /// SEQUENCE, of an aggregated one behind its part SUB, or 0; to the oldest record there is (trim-horizon). To have a
    /// record again give the time of its arrival
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
                "{shard} was settled to its end; what was read of {} stays read. Start the consumers again: one that has seen the end does not read the shard again",
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
                false => output::line(format_args!(
                    "{shard} would go back from {from_text} to {to_text}"
                )),
            };
            return Ok(Ended::Done);
        }
        let question = format!(
            "Go back with {shard} from {from_text} to {to_text}, and process again what stands behind it?"
        );
        if !output::confirm(&question, self.how.yes)? {
            return Ok(Ended::Interrupted);
        }
        let stands = rewind.carry_out().await?;
        let stands = stands.position();
        match json {
            true => output::json_line(&json!({ "shard": self.shard, "position": stands.to_string() })),
            false => output::line(format_args!("{shard} stands at {}", position(stands))),
        };
        Ok(Ended::Done)
    }
}
