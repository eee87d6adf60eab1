//! The lease of a shard. It is renewed on a separate task, so that nothing else can starve the renewal.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use aws_sdk_kinesis::Client;
use rand::rngs::SmallRng;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::shard_end::ShardEnd;
use crate::aws::Located;
use crate::checkpoint::{CheckpointStore, Leases, Renewal, ShardKey};
use crate::consumer::calls::{STORE, answer};
use crate::consumer::shards::discovery::Discovery;
use crate::consumer::stream_facts::StreamFacts;
use crate::failure::BoxError;
use crate::observer::{Event, Interest, Observers, ShardEvent};
use crate::protection::{Backoff, RetryTimer};
use crate::record::StreamId;
use crate::sabotage::Sabotage;

/// Delay between failed renewals, short enough for a few attempts before the lease is lost.
const BACKOFF: Backoff = Backoff::exponential().cap(Duration::from_secs(1));

/// The state of a lease: whether this process may still work on the shard.
#[derive(Debug)]
pub(in crate::consumer) struct LeaseState {
    state: AtomicU8,
    /// Cancelled once nothing new may start.
    ends: CancellationToken,
}

const OWNED: u8 = 0;
const WANTED: u8 = 1;
const LOST: u8 = 2;

impl LeaseState {
    /// Creates the state of a lease that is owned. Its end token is also cancelled by `shutdown`.
    pub(in crate::consumer) fn new(shutdown: &CancellationToken) -> Self {
        LeaseState {
            state: AtomicU8::new(OWNED),
            ends: shutdown.child_token(),
        }
    }

    pub(in crate::consumer) fn ends(&self) -> &CancellationToken {
        &self.ends
    }

    /// Notes that another worker owns the lease, or may own it.
    pub(in crate::consumer) fn mark_lost(&self) {
        if Sabotage::KeepLostLease.is_committed() {
            return;
        }
        self.state.store(LOST, Ordering::Release);
        self.ends.cancel();
    }

    /// Notes that another worker asks for the lease.
    fn mark_wanted(&self) {
        // A lost lease stays lost.
        let _ = self
            .state
            .compare_exchange(OWNED, WANTED, Ordering::AcqRel, Ordering::Acquire);
        self.ends.cancel();
    }

    pub(in crate::consumer) fn is_lost(&self) -> bool {
        self.state.load(Ordering::Acquire) == LOST
    }

    pub(in crate::consumer) fn is_wanted(&self) -> bool {
        self.state.load(Ordering::Acquire) == WANTED
    }
}

/// The lease of a shard, owned by this process.
pub(in crate::consumer) struct Lease {
    pub(in crate::consumer) state: Arc<LeaseState>,
    pub(in crate::consumer) key: ShardKey,
    pub(in crate::consumer) store: Arc<dyn CheckpointStore>,
    pub(in crate::consumer) client: Located<Client>,
    pub(in crate::consumer) stream: StreamId,
    pub(in crate::consumer) observers: Observers,
    pub(in crate::consumer) facts: Arc<StreamFacts>,
    pub(in crate::consumer) rng: SmallRng,
    /// The time just before the lease was taken.
    pub(in crate::consumer) since: Instant,
}

/// A lease that is being renewed.
pub(in crate::consumer) struct RenewedLease {
    lease: Arc<Lease>,
    _renewing: AbortOnDropHandle<()>,
}

impl Lease {
    /// Starts the renewal of the lease.
    pub(in crate::consumer) fn start_renewal(self) -> RenewedLease {
        let lease = Arc::new(self);
        let renewing = tokio::spawn(lease.clone().keep_renewed());
        RenewedLease {
            lease,
            _renewing: AbortOnDropHandle::new(renewing),
        }
    }

    /// Renews the lease until it is lost, a third of the failover time after each write to its row. A lease that
    /// could not be renewed for two thirds of the failover time counts as lost: this process starts nothing new
    /// before another worker may take the lease.
    async fn keep_renewed(self: Arc<Self>) {
        let Some(leases) = self.store.leases() else { return };
        let mut retries = RetryTimer::new(BACKOFF, self.rng.clone());
        let failover = leases.failover_time();
        let (every, limit) = (failover / 3, failover / 3 * 2);
        let (mut renewed, mut next) = (self.since, self.since + every);
        loop {
            sleep_until(next).await;
            let asked = Instant::now();
            // A stored checkpoint is a renewal, too. The row that it returned also names a worker that waits for
            // the shard, so the owner notices a request within the same time.
            if let Some(last) = leases.last_renewal(&self.key)
                && last.age < every
                && let Some(sent) = asked.checked_sub(last.age)
            {
                (renewed, next) = (sent, sent + every);
                retries.reset();
                if last.is_wanted {
                    self.state.mark_wanted();
                }
                continue;
            }
            let answer = timeout_at(renewed + limit, self.renew(leases)).await;
            let error = match answer {
                Ok(Ok(renewal @ (Renewal::Leased | Renewal::Wanted))) => {
                    (renewed, next) = (asked, asked + every);
                    retries.reset();
                    if renewal == Renewal::Wanted {
                        self.state.mark_wanted();
                    }
                    continue;
                }
                Ok(Ok(Renewal::Lost)) => return self.state.mark_lost(),
                Ok(Err(error)) => error,
                Err(_) => "the checkpoint store did not answer in time".into(),
            };
            let delay = retries.next_delay();
            self.report(&error, retries.failures(), delay);
            let now = Instant::now();
            if now >= renewed + limit {
                return self.state.mark_lost();
            }
            next = (now + delay).min(renewed + limit);
        }
    }

    async fn renew(&self, leases: &dyn Leases) -> Result<Renewal, BoxError> {
        Ok(answer(STORE, leases.renew(&self.key)).await??)
    }

    fn report(&self, error: &BoxError, failures: u32, delay: Duration) {
        if self.observers.want(Interest::SHARDS) {
            self.observers.tell(&Event::Shard {
                stream: &self.key.stream,
                shard: &self.key.shard,
                event: ShardEvent::LeaseNotRenewed {
                    failures,
                    error: &**error,
                    delay,
                },
            });
        }
    }
}

impl RenewedLease {
    /// Creates rows for the children of this shard. Returns whether the lease is still owned.
    pub(in crate::consumer) async fn begin_children(&self) -> bool {
        let Lease { key, store, .. } = &*self.lease;
        let Some(leases) = store.leases() else { return true };
        let discovery = Discovery {
            client: &self.lease.client,
            stream: &self.lease.stream,
            application: &key.application,
            checkpoints: &**store,
            observers: &self.lease.observers,
            facts: &self.lease.facts,
            rng: self.lease.rng.clone(),
        };
        let begun = Box::pin(discovery.begin_children(leases, &key.shard)).await;
        if begun.is_err() {
            self.lease.state.mark_lost();
        }
        begun.is_ok()
    }

    /// Releases the lease. Returns how the shard's task has ended, given the state of the lease.
    pub(in crate::consumer) async fn end(self, end: ShardEnd, within: Duration) -> ShardEnd {
        let Lease {
            state, key, store, ..
        } = &*self.lease;
        // A shard that restarts here stays here, if a leader would otherwise have to assign it again.
        let restarts = matches!(end, ShardEnd::CrashLoopOver | ShardEnd::PositionRefused);
        let shares = store.leases().is_some_and(|leases| leases.sharing().is_some());
        let stays = restarts && shares && !state.ends().is_cancelled();
        if let Some(leases) = store.leases().filter(|_| !stays) {
            // If this fails, another worker takes the lease after the failover time.
            let given_up = timeout(within, answer(STORE, leases.give_up(key))).await;
            if let Ok(Ok(Err(error))) = given_up {
                tracing::debug!(shard = %key.shard, %error, "lease not released");
            }
        }
        match end {
            // The checkpointer also ends without an error if the store refused the last checkpoint because
            // the lease is lost.
            ShardEnd::Ended | ShardEnd::Stopped | ShardEnd::CrashLoopOver | ShardEnd::PositionRefused
                if state.is_lost() =>
            {
                ShardEnd::Lost
            }
            ShardEnd::Stopped | ShardEnd::CrashLoopOver | ShardEnd::PositionRefused if state.is_wanted() => {
                ShardEnd::HandedOver
            }
            end => end,
        }
    }
}
