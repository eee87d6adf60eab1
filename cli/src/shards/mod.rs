//! `redrive shards`: where an application stands, and moving it by hand.

use std::time::Duration;

use crate::address::{StoreAddress, Stream};
use clap::{Args, Subcommand};
use redrive::operator::{self, OperatorError};
use redrive::{BoxError, ShardId};

use crate::Ended;
use crate::clients::Clients;
use crate::output;

mod list;
mod place;
mod rewind;
mod skip;

/// See where an application stands in a stream's shards, skip records, go back
///
/// Nothing is moved while the shard's owner lives: stop its consumer first, or say --force. With a lease table this takes
/// up to the failover time to see. A shard that has halted begins again when its consumer is started again.
///
/// Exit codes: 0, it is done; 1, it could not be done, and says why; 2, it was called wrongly; 3, nothing was moved, as
/// there is nothing to move, or something is not as expected; 4, nothing was moved, as the owner lives; 130, the answer was
/// no.
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
}

/// Whose shards.
#[derive(Debug, Args)]
struct Whose {
    /// Where the checkpoints are: redb:FILE or dynamodb:TABLE
    #[arg(long, value_name = "STORE")]
    checkpoints: StoreAddress,
    /// The application, as its processor is called
    #[arg(long, value_name = "NAME")]
    application: String,
    /// The stream, by its name or ARN
    #[arg(long, value_name = "STREAM")]
    stream: Stream,
    /// Of a lease table, as the application has it: who shows nothing for so long is dead
    #[arg(long, default_value = "10s", value_name = "TIME", value_parser = humantime::parse_duration)]
    failover_time: Duration,
}

#[derive(Debug, Args)]
struct How {
    /// Also while the shard's owner lives: the shard is taken from it. It goes on from the new position
    #[arg(long)]
    force: bool,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

impl Shards {
    pub(crate) async fn run(self, json: bool) -> Result<Ended, BoxError> {
        let ended = match self.what {
            What::List(list) => list.run(json).await,
            What::Skip(skip) => skip.run(json).await,
            What::Rewind(rewind) => rewind.run(json).await,
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
                | OperatorError::Moved { .. },
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
        let stream = self.stream.as_str();
        Ok(operator::Shards::new(kinesis, store, &*self.application, stream))
    }

    /// The same, to move this shard. Says whom it is waited for.
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
                "{shard} is leased by {}, which loses it",
                output::escaped(&holder.name)
            );
            return Ok(shards.force());
        }
        let time = humantime::format_duration(self.failover_time);
        eprintln!(
            "{shard} is leased by {}: {time} at most to see whether it lives",
            output::escaped(&holder.name)
        );
        Ok(shards)
    }
}
