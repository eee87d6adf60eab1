//! The owner of a shard: no shard is moved while its owner is running.

use std::future::{Future, pending};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::{OperatorError, Shards, only};
use crate::checkpoint::{
    self, Checkpoint, CheckpointError, CheckpointStore, Holder, LeaseOutcome, Leases, ShardKey,
};
use crate::protection::retry::seeded_rng;
use crate::protection::{Backoff, RetryTimer};

/// The maximum interval between two checks of a shard's owner.
const LOOKS: Duration = Duration::from_secs(1);
/// The maximum number of attempts to lease the shard. Another worker may be faster each time.
const TAKES: u32 = 3;
/// The backoff between writes of a position that fail. Repeating the same write is harmless, even if an
/// earlier one succeeded.
const WRITES: Backoff = Backoff::exponential();
const TRIES: u32 = 5;
/// The timeout for releasing the shard. If the store does not respond, another worker can take the shard
/// after the failover time.
const GIVE_UP: Duration = Duration::from_secs(10);

/// A shard that is leased to this operator, so that no worker processes it.
pub(super) struct Hold<'a> {
    store: &'a dyn CheckpointStore,
    leases: Option<&'a dyn Leases>,
    key: &'a ShardKey,
}

impl Shards {
    pub(super) async fn holder_of(&self, key: &ShardKey) -> Result<Option<Holder>, OperatorError> {
        match self.store.leases() {
            Some(leases) => Ok(only(leases.holders(std::slice::from_ref(key)).await)?),
            None => Ok(None),
        }
    }

    /// Watches the owner for the failover time, and fails if the owner renews its lease. Returns early if
    /// there is no owner. Takes no lease.
    pub(super) async fn refuse_if_alive(&self, key: &ShardKey) -> Result<(), OperatorError> {
        checkpoint::validate(&*self.store)?;
        let Some(leases) = self.store.leases().filter(|_| !self.force) else {
            return Ok(());
        };
        let failover_time = leases.failover_time();
        let began = Instant::now();
        let mut first = None;
        while let Some(holder) = self.holder_of(key).await? {
            let first = first.get_or_insert_with(|| holder.clone());
            if *first != holder {
                return Err(alive(key, holder.name));
            }
            let left = failover_time.saturating_sub(began.elapsed());
            if left.is_zero() {
                break;
            }
            sleep(left.min(failover_time / 10).min(LOOKS)).await;
        }
        Ok(())
    }

    /// Leases the shard, and returns its checkpoint.
    pub(super) async fn hold<'a>(
        &'a self,
        key: &'a ShardKey,
    ) -> Result<(Hold<'a>, Checkpoint), OperatorError> {
        let leases = self.store.leases();
        let checkpoint = match leases {
            Some(leases) => self.take(leases, key).await?,
            None => self.load(key).await?,
        };
        let hold = Hold {
            store: &*self.store,
            leases,
            key,
        };
        Ok((hold, checkpoint))
    }

    async fn take(&self, leases: &dyn Leases, key: &ShardKey) -> Result<Checkpoint, OperatorError> {
        let mut owner = String::new();
        for _ in 0..TAKES {
            let taken = match self.force {
                true => leases.seize(key).await?,
                false => only(leases.take(std::slice::from_ref(key)).await)?,
            };
            match taken {
                LeaseOutcome::Leased(checkpoint) => return Ok(checkpoint),
                LeaseOutcome::Missing => return Err(self.not_begun(key)),
                // No worker processes an ended shard, so that there is no owner to check.
                LeaseOutcome::Ended => match leases.seize(key).await? {
                    LeaseOutcome::Leased(checkpoint) => return Ok(checkpoint),
                    _ => return Err(self.not_begun(key)),
                },
                LeaseOutcome::Elsewhere { owner: other } => owner = other,
            }
            self.refuse_if_alive(key).await?;
        }
        Err(alive(key, owner))
    }
}

impl Hold<'_> {
    /// Runs `work` while the lease is renewed, then releases the shard.
    pub(super) async fn during<T>(
        &self,
        work: impl Future<Output = Result<T, OperatorError>>,
    ) -> Result<T, OperatorError> {
        let result = tokio::select! {
            biased;
            result = work => result,
            never = self.renew_on() => never,
        };
        if let Some(leases) = self.leases {
            let given_up = timeout(GIVE_UP, leases.give_up(self.key)).await;
            if let Ok(Err(error)) = given_up {
                tracing::debug!(shard = %self.key.shard, %error, "shard not released");
            }
        }
        result
    }

    /// Renews the lease forever. The result is ignored: the write of the position fails if the lease is lost.
    async fn renew_on<T>(&self) -> T {
        if let Some(leases) = self.leases {
            loop {
                sleep(leases.failover_time() / 3).await;
                let _ = leases.renew(self.key).await;
            }
        }
        pending().await
    }

    /// Stores the new checkpoint of the shard.
    pub(super) async fn save(&self, checkpoint: &Checkpoint) -> Result<(), OperatorError> {
        let row = [(self.key.clone(), checkpoint.clone())];
        let mut retries = RetryTimer::new(WRITES, seeded_rng(None));
        loop {
            let error = match only(self.store.save(&row).await) {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            let delay = retries.next_delay();
            if retries.failures() == TRIES || matches!(error, CheckpointError::LeaseLost { .. }) {
                return Err(OperatorError::NotStored {
                    shard: self.key.shard.clone(),
                    source: error,
                });
            }
            sleep(delay).await;
        }
    }
}

fn alive(key: &ShardKey, owner: String) -> OperatorError {
    OperatorError::Alive {
        shard: key.shard.clone(),
        owner,
    }
}
