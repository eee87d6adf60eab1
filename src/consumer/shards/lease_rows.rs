//! Rows that several processes share. A row is created before its shard is read, and one process takes its
//! lease. The rows of the children are created at the shard's end.

use tokio::time::Instant;

use super::discovery::{Discovery, StartRetries, all_of};
use super::lineage::Lineage;
use crate::checkpoint::{Checkpoint, CheckpointError, LeaseOutcome, Leases, NewShard, ShardKey};
use crate::consumer::calls::{STORE, answer};
use crate::failure::BoxError;
use crate::record::{Position, ShardId};

/// The number of checks for the children of a closed shard. They are listed a moment after the shard is
/// closed.
const CHECKS: u32 = 8;

/// The answer of a store that was asked for the lease of a shard.
pub(in crate::consumer) struct TakenLease {
    pub(in crate::consumer) shard: ShardId,
    /// The time just before the lease was requested.
    pub(in crate::consumer) asked: Instant,
    pub(in crate::consumer) outcome: Result<LeaseOutcome, CheckpointError>,
}

impl TakenLease {
    /// Assigns the answers of a store, which come in the order of the shards.
    pub(super) fn each(
        shards: Vec<ShardId>,
        asked: Instant,
        outcomes: Vec<Result<LeaseOutcome, CheckpointError>>,
    ) -> Result<Vec<Self>, BoxError> {
        let outcomes = all_of(outcomes, shards.len())?;
        let each = shards.into_iter().zip(outcomes);
        let each = each.map(|(shard, outcome)| TakenLease {
            shard,
            asked,
            outcome,
        });
        Ok(each.collect())
    }
}

impl Discovery<'_> {
    /// Creates rows for those of these shards that have none, and takes the available leases.
    pub(in crate::consumer) async fn take(
        &self,
        leases: &dyn Leases,
        found: &Lineage,
        shards: Vec<ShardId>,
    ) -> Result<Vec<TakenLease>, BoxError> {
        let lacking = shards.iter().filter(|shard| !found.has_row(shard));
        let lacking = lacking.map(|shard| (shard.clone(), Checkpoint::at(Position::TrimHorizon)));
        self.create(leases, found, lacking.collect()).await?;
        let keys: Vec<ShardKey> = shards.iter().map(|shard| self.key(shard.clone())).collect();
        let asked = Instant::now();
        let taken = answer(STORE, leases.take(&keys)).await?;
        TakenLease::each(shards, asked, taken)
    }

    /// Stores a checkpoint of a shard. If the store has leases, this process owns the shard's lease.
    pub(in crate::consumer) async fn store(
        &self,
        shard: &ShardId,
        checkpoint: Checkpoint,
    ) -> Result<(), BoxError> {
        let rows = [(self.key(shard.clone()), checkpoint)];
        let saved = answer(STORE, self.checkpoints.save(&rows)).await?;
        for saved in all_of(saved, 1)? {
            saved?;
        }
        Ok(())
    }

    /// Takes the lease of a shard that is not read. A store without leases always grants it.
    pub(in crate::consumer) async fn take_unread(&self, shard: &ShardId) -> Result<LeaseOutcome, BoxError> {
        let Some(leases) = self.checkpoints.leases() else {
            return Ok(LeaseOutcome::Leased(Checkpoint::at(Position::TrimHorizon)));
        };
        let key = [self.key(shard.clone())];
        let taken = match leases.sharing() {
            Some(sharing) => answer(STORE, sharing.adopt(&key)).await?,
            None => answer(STORE, leases.take(&key)).await?,
        };
        let taken = all_of(taken, 1)?.pop();
        Ok(taken.unwrap_or(Ok(LeaseOutcome::Missing))?)
    }

    /// Stores the end of a shard whose lease was taken, and releases the lease.
    pub(in crate::consumer) async fn store_end(
        &self,
        shard: &ShardId,
        end: Checkpoint,
    ) -> Result<(), BoxError> {
        self.store(shard, self.facts.tag(end)).await?;
        if let Some(leases) = self.checkpoints.leases() {
            answer(STORE, leases.give_up(&self.key(shard.clone()))).await??;
        }
        Ok(())
    }

    /// Creates these rows, parents before children.
    pub(in crate::consumer) async fn create(
        &self,
        leases: &dyn Leases,
        found: &Lineage,
        rows: Vec<(ShardId, Checkpoint)>,
    ) -> Result<(), BoxError> {
        if rows.is_empty() {
            return Ok(());
        }
        let row = |(shard, checkpoint)| found.new_shard(self.key(shard), self.facts.tag(checkpoint));
        let rows: Vec<NewShard> = rows.into_iter().map(row).collect();
        let created = answer(STORE, leases.create(&rows)).await?;
        for created in all_of(created, rows.len())? {
            created?;
        }
        Ok(())
    }

    /// Creates rows for the children of a shard before its end is stored, and adds their names to the shard's
    /// row. Other readers of the rows (KCL) need these names. Each step may be repeated. After 8 attempts the
    /// shard may end without them.
    pub(in crate::consumer) async fn begin_children(
        &self,
        leases: &dyn Leases,
        shard: &ShardId,
    ) -> Result<(), CheckpointError> {
        let mut retries = StartRetries::running(self);
        let mut checks = 0;
        loop {
            let error = match self.create_children(leases, shard).await {
                Ok(true) => return Ok(()),
                Ok(false) => "not all child shards are listed yet".into(),
                Err(error) => match error.downcast::<CheckpointError>() {
                    Ok(lost) if matches!(*lost, CheckpointError::LeaseLost { .. }) => return Err(*lost),
                    Ok(other) => other.into(),
                    Err(other) => other,
                },
            };
            // A later discovery that lists the children creates their rows.
            checks += 1;
            if checks == CHECKS {
                return Ok(());
            }
            retries.wait_after(self, error).await;
        }
    }

    /// Creates the rows of the listed children. Returns whether all children are listed.
    async fn create_children(&self, leases: &dyn Leases, shard: &ShardId) -> Result<bool, BoxError> {
        let found = self.shards_once().await?;
        let children = found.children(shard);
        let lacking = children.iter().filter(|child| found.may_begin_row(child, shard));
        let lacking = lacking.map(|child| (child.shard_id().into(), Checkpoint::at(Position::TrimHorizon)));
        self.create(leases, &found, lacking.collect()).await?;
        let names: Vec<ShardId> = children.iter().map(|child| child.shard_id().into()).collect();
        answer(STORE, leases.name_children(&self.key(shard.clone()), &names)).await??;
        Ok(found.has_all_children(shard))
    }
}
