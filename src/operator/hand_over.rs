//! Hands a shard over to another worker.

use std::slice;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::fleet::FleetStatus;
use super::{OperatorError, Shards, only};
use crate::checkpoint::{SharedLease, Sharing};
use crate::record::{Position, ShardId};

/// The time within which an owner must renew its lease. Workers renew three times in their failover time, which is 10 s
/// by default.
const RENEWED_WITHIN: Duration = Duration::from_secs(60);
/// Interval between two looks at a row.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// The outcome of a [hand-over](Shards::hand_over).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum HandOver {
    /// The owner of the shard was asked. It finishes the records in flight, stores the checkpoint and releases
    /// the shard; then the new owner takes the shard up.
    #[non_exhaustive]
    Requested {
        /// The owner.
        from: String,
        /// The new owner.
        to: String,
    },
    /// The shard had no owner and is assigned to the worker, which takes it up within the failover time.
    #[non_exhaustive]
    Assigned {
        /// The owner.
        to: String,
    },
}

/// The reason why a shard is not handed over. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HandOverRefusal {
    /// The workers of this store do not share their shards.
    #[error(
        "the checkpoint store {store} does not share shards among workers; use a DynamoDB table, without `.standby()`"
    )]
    NotShared {
        /// The store.
        store: String,
    },
    /// No worker has such a name.
    #[error("there is no worker {worker:?}; {}", choose(workers))]
    UnknownWorker {
        /// The name, as given.
        worker: String,
        /// The workers that take shards.
        workers: Vec<String>,
    },
    /// Several workers have names that begin so.
    #[error("{worker:?} is the beginning of several names: {}; use a longer one", workers.join(", "))]
    AmbiguousWorker {
        /// The name, as given.
        worker: String,
        /// The workers whose names begin so.
        workers: Vec<String>,
    },
    /// The worker takes no shards.
    #[error(
        "the worker {worker} takes no shards: it has not announced itself within the last minute, or is stopping; {}",
        choose(workers)
    )]
    TakesNoShards {
        /// The worker.
        worker: String,
        /// The workers that take shards.
        workers: Vec<String>,
    },
    /// The owner of the shard does not share its shards, or has stopped or failed.
    #[error(
        "shard {shard} is owned by {owner}, which has not announced itself within the last minute; if the owner has failed, the leader assigns the shard after the failover time"
    )]
    OwnerIsSilent {
        /// The shard.
        shard: ShardId,
        /// The owner.
        owner: String,
    },
    /// The owner has not renewed its lease. It may have been assigned the shard a moment ago, or may have failed.
    #[error(
        "the owner of shard {shard}, {owner}, has not renewed its lease within {:?}; check it with `redrive shards list`, and retry",
        RENEWED_WITHIN
    )]
    OwnerDoesNotRenew {
        /// The shard.
        shard: ShardId,
        /// The owner.
        owner: String,
    },
    /// The worker owns the shard already.
    #[error("nothing to move: shard {shard} is owned by {worker}")]
    AlreadyOwned {
        /// The shard.
        shard: ShardId,
        /// The owner.
        worker: String,
    },
    /// The shard is being handed over.
    #[error(
        "shard {shard} is being handed over by {from} to {to}; retry when `redrive shards list` shows that this is done"
    )]
    InProgress {
        /// The shard.
        shard: ShardId,
        /// The worker that hands the shard over.
        from: String,
        /// The worker that receives the shard.
        to: String,
    },
    /// The shard is settled to its end: no worker reads it.
    #[error("nothing to move: shard {shard} is settled to its end, and no worker reads it")]
    Ended {
        /// The shard.
        shard: ShardId,
    },
    /// The owner of the shard changed while the hand-over was being written.
    #[error(
        "the owner of shard {shard} changed concurrently; check it with `redrive shards list`, and retry"
    )]
    OwnerChanged {
        /// The shard.
        shard: ShardId,
    },
}

fn choose(workers: &[String]) -> String {
    match workers {
        [] => "no worker takes shards now; start one".to_owned(),
        workers => format!("choose one of {}", workers.join(", ")),
    }
}

impl Shards {
    /// Asks the owner of a shard to hand the shard over to `worker`: the name of a worker that takes shards, or
    /// the beginning of its name. A shard without an owner is assigned to the worker.
    ///
    /// The leader keeps the shares even. If the hand-over makes them uneven, the leader moves a shard in
    /// return, which may be the same one. The worker's `max_leases` is not checked.
    ///
    /// Waits until the owner renews its lease, for 60 s at most. A worker that has been assigned a shard and has not
    /// taken it up yet would not learn of the request.
    ///
    /// Fails with [`Refused`](OperatorError::Refused) or [`NotBegun`](OperatorError::NotBegun), or if the store
    /// cannot be used.
    pub async fn hand_over(&self, shard: &ShardId, worker: &str) -> Result<HandOver, OperatorError> {
        self.check_stream()?;
        let Some(sharing) = self.sharing() else {
            let store = self.store.name().into_owned();
            return Err(HandOverRefusal::NotShared { store }.into());
        };
        let key = self.key(shard.clone());
        let fleet = self.fleet_of(sharing).await?;
        let to = chosen(&fleet, worker)?;
        let row = only(sharing.rows(slice::from_ref(&key)).await)?;
        let row = row.ok_or_else(|| self.not_begun(&key))?;
        let shard = || shard.clone();
        if *row.checkpoint.position() == Position::ShardEnd {
            return Err(HandOverRefusal::Ended { shard: shard() }.into());
        }
        let changed = |is_done: bool| match is_done {
            true => Ok(()),
            false => Err(HandOverRefusal::OwnerChanged { shard: shard() }),
        };
        let Some(from) = row.owner.clone() else {
            changed(sharing.assign(&row, &to).await?)?;
            return Ok(HandOver::Assigned { to });
        };
        if let Some(by) = &row.handed_over_by {
            let (from, to) = (by.clone(), from);
            return Err(HandOverRefusal::InProgress {
                shard: shard(),
                from,
                to,
            }
            .into());
        }
        if from == to {
            return Err(HandOverRefusal::AlreadyOwned {
                shard: shard(),
                worker: to,
            }
            .into());
        }
        // A worker of KCL 2 never answers a request.
        if !fleet.worker(&from).is_some_and(|owner| owner.is_recent()) {
            return Err(HandOverRefusal::OwnerIsSilent {
                shard: shard(),
                owner: from,
            }
            .into());
        }
        let row = self.renewed(sharing, row).await?;
        changed(sharing.request(&row, &to).await?)?;
        Ok(HandOver::Requested { from, to })
    }

    /// Waits until the owner renews its lease, and returns the renewed row. A worker finds its shards by its name in
    /// their rows, which a request replaces: only a worker that has taken the shard up looks at the row itself.
    async fn renewed(&self, sharing: &dyn Sharing, seen: SharedLease) -> Result<SharedLease, OperatorError> {
        let until = Instant::now() + RENEWED_WITHIN;
        while Instant::now() < until {
            sleep(LOOK_INTERVAL).await;
            let row = only(sharing.rows(slice::from_ref(&seen.key)).await)?;
            let row = row.ok_or_else(|| self.not_begun(&seen.key))?;
            if row.owner != seen.owner || row.handed_over_by.is_some() {
                let shard = seen.key.shard;
                return Err(HandOverRefusal::OwnerChanged { shard }.into());
            }
            if row.counter != seen.counter {
                return Ok(row);
            }
        }
        Err(HandOverRefusal::OwnerDoesNotRenew {
            shard: seen.key.shard,
            owner: seen.owner.unwrap_or_default(),
        }
        .into())
    }
}

/// Returns the name of the worker that takes shards and whose name is `worker`, or begins so.
fn chosen(fleet: &FleetStatus, worker: &str) -> Result<String, HandOverRefusal> {
    let (takers, others): (Vec<_>, Vec<_>) = fleet.workers.iter().partition(|worker| worker.takes_shards());
    let takers: Vec<&str> = takers.iter().map(|taker| taker.name.as_str()).collect();
    if takers.contains(&worker) {
        return Ok(worker.to_owned());
    }
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let found: Vec<&str> = takers
        .iter()
        .copied()
        .filter(|name| name.starts_with(worker))
        .collect();
    match found[..] {
        [name] => return Ok(name.to_owned()),
        [] => {}
        _ => {
            return Err(HandOverRefusal::AmbiguousWorker {
                worker: worker.to_owned(),
                workers: owned(&found),
            });
        }
    }
    let workers = owned(&takers);
    match others.iter().find(|other| other.name.starts_with(worker)) {
        Some(other) => Err(HandOverRefusal::TakesNoShards {
            worker: other.name.clone(),
            workers,
        }),
        None => Err(HandOverRefusal::UnknownWorker {
            worker: worker.to_owned(),
            workers,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::fleet::{Announcement, WorkerStatus};

    fn fleet(workers: &[(&str, Announcement)]) -> FleetStatus {
        let status = |(name, announcement): &(&str, Announcement)| WorkerStatus {
            announcement: *announcement,
            ..WorkerStatus::new(name)
        };
        FleetStatus {
            workers: workers.iter().map(status).collect(),
        }
    }

    #[test]
    fn worker_is_found_by_the_beginning_of_its_name() {
        use Announcement::{Missing, Old, Recent, Stopping};
        let fleet = fleet(&[
            ("web-1-aa", Old),
            ("web-1-bb", Recent),
            ("web-1-bbb", Recent),
            ("web-2-cc", Recent),
            ("web-3-dd", Stopping),
            ("web-4-ee", Missing),
        ]);
        assert_eq!(chosen(&fleet, "web-2").as_deref(), Ok("web-2-cc"));
        // A whole name counts before the beginning of a longer one.
        assert_eq!(chosen(&fleet, "web-1-bb").as_deref(), Ok("web-1-bb"));
        // The announcement of a process that was restarted is in the store for a while.
        assert_eq!(chosen(&fleet, "web-1-bbb").as_deref(), Ok("web-1-bbb"));
        let refused = |worker| chosen(&fleet, worker).expect_err("refused").to_string();
        assert_eq!(
            refused("web-1"),
            "\"web-1\" is the beginning of several names: web-1-bb, web-1-bbb; use a longer one"
        );
        assert_eq!(
            refused("web-9"),
            "there is no worker \"web-9\"; choose one of web-1-bb, web-1-bbb, web-2-cc"
        );
        for silent in ["web-1-aa", "web-3", "web-4"] {
            assert!(refused(silent).contains("takes no shards"), "{silent}");
        }
        assert!(
            chosen(&FleetStatus { workers: vec![] }, "web")
                .expect_err("refused")
                .to_string()
                .ends_with("no worker takes shards now; start one")
        );
    }
}
