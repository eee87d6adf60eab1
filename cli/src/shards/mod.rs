//! `redrive shards`: shows and moves an application's checkpoints.

use std::time::Duration;

use crate::address::StoreAddress;
use clap::{Args, Subcommand};
use redrive::operator::{self, OperatorError};
use redrive::{BoxError, ShardId, StreamId};

use crate::Ended;
use crate::clients::Clients;
use crate::output;

mod hand_over;
mod list;
mod place;
mod rewind;
mod skip;

/// List an application's shards and workers, skip records, rewind shards, move shards to another worker
///
/// Skip and rewind refuse while the shard's owner is alive: stop the consumer first, or use --force. With a
/// lease table, detecting a dead owner takes up to the failover time. A halted shard resumes when its consumer
/// restarts. Move works with living owners.
///
/// Exit codes: 0, success; 1, failure (the reason is on standard error); 2, invalid usage; 3, nothing moved,
/// because there is nothing to move, or a record, checkpoint, owner or worker is not as expected; 4, nothing
/// moved, because the owner is alive; 130, not confirmed.
#[derive(Debug, Args)]
pub(crate) struct Shards {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    List(list::List),
    Skip(skip::Skip),
    Rewind(rewind::Rewind),
    Move(hand_over::Move),
}

/// The options that select an application's shards.
#[derive(Debug, Args)]
struct Whose {
    /// Checkpoint store: redb:FILE or dynamodb:TABLE
    #[arg(long, value_name = "STORE")]
    checkpoints: StoreAddress,
    /// Application name, as passed to Resilient::builder
    #[arg(long, value_name = "NAME")]
    application: String,
    /// Stream name or ARN
    #[arg(long, value_name = "NAME|ARN", value_parser = str::parse::<StreamId>)]
    stream: StreamId,
    /// Failover time that the application uses with its lease table: an owner that does not renew its lease
    /// for this long counts as dead
    #[arg(long, default_value = "10s", value_name = "TIME", value_parser = humantime::parse_duration)]
    failover_time: Duration,
}

#[derive(Debug, Args)]
struct How {
    /// Take the shard even if its owner is alive. The owner loses the lease and resumes from the new position
    #[arg(long)]
    force: bool,
    /// Print what would be done, without doing it
    #[arg(long)]
    dry_run: bool,
    /// Skip the confirmation prompt
    #[arg(long, short)]
    yes: bool,
}

impl Shards {
    pub(crate) async fn run(self, json: bool) -> Result<Ended, BoxError> {
        let ended = match self.what {
            What::List(list) => list.run(json).await,
            What::Skip(skip) => skip.run(json).await,
            What::Rewind(rewind) => rewind.run(json).await,
            What::Move(hand_over) => hand_over.run(json).await,
        };
        let error = match ended {
            Ok(ended) => return Ok(ended),
            Err(error) => error,
        };
        let ended = match error.downcast_ref() {
            Some(OperatorError::Alive { .. }) => Ended::Refused,
            Some(
                OperatorError::NothingToSkip { .. }
                | OperatorError::Forward { .. }
                | OperatorError::NoSuchRecord { .. }
                | OperatorError::Moved { .. }
                | OperatorError::Refused(_),
            ) => Ended::Left,
            _ => return Err(error),
        };
        output::error(&*error);
        Ok(ended)
    }
}

impl Whose {
    async fn shards(&self, clients: &Clients) -> Result<operator::Shards, BoxError> {
        let store = clients.checkpoints(&self.checkpoints, self.failover_time).await?;
        let kinesis = clients.kinesis(&self.stream).await;
        let stream = self.stream.clone();
        Ok(operator::Shards::new(kinesis, store, &*self.application, stream))
    }

    /// Creates [`operator::Shards`] that may move this shard. Prints the shard's owner, if any.
    async fn shards_to_move(
        &self,
        clients: &Clients,
        shard: &ShardId,
        how: &How,
    ) -> Result<operator::Shards, BoxError> {
        let shards = self.shards(clients).await?;
        let Some(holder) = shards.holder(shard).await? else {
            return Ok(shards);
        };
        if how.force {
            eprintln!(
                "{shard} is leased by {}, which loses the lease",
                output::escaped(&holder.name)
            );
            return Ok(shards.force());
        }
        let time = humantime::format_duration(self.failover_time);
        eprintln!(
            "{shard} is leased by {}; waiting up to {time} to detect whether the owner is alive",
            output::escaped(&holder.name)
        );
        Ok(shards)
    }
}
