//! `redrive shards move`: hands a shard over to another worker.

use clap::Args;
use redrive::operator::HandOver;
use redrive::{BoxError, ShardId};
use serde_json::json;

use super::Whose;
use crate::Ended;
use crate::clients::Clients;
use crate::output;

/// Ask a shard's owner to hand the shard over to another worker
///
/// The owner finishes the records in flight, stores the checkpoint and releases the shard. Then WORKER takes
/// the shard up. No record is lost or repeated. A shard without an owner is assigned to WORKER. The command
/// asks when the owner next renews its lease, which takes a few seconds. It does not wait for the hand-over:
/// "redrive shards list" shows its progress.
///
/// The leader keeps the shares of the workers even. If this hand-over makes them uneven, the leader moves a
/// shard in return, which may be the same one.
#[derive(Debug, Args)]
pub(crate) struct Move {
    /// Shard id
    shard: String,
    /// Name of the worker that receives the shard, or the beginning of its name
    worker: String,
    #[command(flatten)]
    whose: Whose,
}

impl Move {
    pub(super) async fn run(self, json: bool) -> Result<Ended, BoxError> {
        let shards = self.whose.shards(&Clients::default()).await?;
        let shard = ShardId::from(&*self.shard);
        let (from, to) = match shards.hand_over(&shard, &self.worker).await? {
            HandOver::Requested { from, to, .. } => (Some(from), to),
            HandOver::Assigned { to, .. } => (None, to),
            other => return Err(format!("unknown outcome: {other:?}").into()),
        };
        match json {
            true => output::json_line(&json!({ "shard": self.shard, "from": from, "to": to })),
            false => output::line(output::escaped(&match from {
                Some(from) => format!("{shard}: requested from {from} for {to}"),
                None => format!("{shard}: had no owner, assigned to {to}"),
            })),
        };
        Ok(Ended::Done)
    }
}
