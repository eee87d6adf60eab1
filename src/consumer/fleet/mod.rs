//! Sharing a stream's shards among the workers of an application.
//!
//! Each worker is a [member]: it announces itself and finds out which shards are assigned to it. One worker is
//! also the [leader]: it assigns shards to living workers, by the [plan]. The supervisor starts the shards that
//! are assigned to this worker.

mod finished;
mod leader;
mod member;
mod plan;
mod sightings;
mod taker;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use self::leader::Leader;
use self::member::Member;
use crate::checkpoint::{CheckpointError, CheckpointStore, LeaseOutcome, Leases, ShardKey, Sharing};
use crate::consumer::calls::{STORE, answer};
use crate::failure::BoxError;
use crate::observer::{Event, FleetEvent, Interest, Observers};
use crate::protection::{Backoff, Jitter, RetryTimer};
use crate::record::ShardId;

/// Delay between failed calls.
const RETRIES: Backoff = Backoff::exponential().cap(Duration::from_secs(10));

/// This worker's part in the fleet, as the supervisor uses it. Dropping it ends the tasks of the fleet, and the
/// leases that it keeps expire.
pub(in crate::consumer) struct Fleet {
    shared: Arc<Shared>,
    view: watch::Receiver<View>,
    member: AbortOnDropHandle<()>,
    leader: AbortOnDropHandle<()>,
    leaving: CancellationToken,
    /// The last survey that was made.
    surveyed: u64,
}

/// The facts that the tasks of the fleet tell the supervisor.
#[derive(Debug, Clone, Default)]
struct View {
    assigned: BTreeSet<ShardId>,
    /// The number of surveys that the leader has asked for.
    surveys: u64,
    is_leader: bool,
}

/// The parts that the tasks of the fleet share.
struct Shared {
    store: Arc<dyn CheckpointStore>,
    application: Arc<str>,
    stream: Arc<str>,
    observers: Observers,
    failover_time: Duration,
    view: watch::Sender<View>,
    /// The leases that this worker owns and renews, and whose shards it does not read.
    kept: Mutex<BTreeSet<ShardId>>,
    /// Wakes the member: shards may have been assigned to this worker.
    look: Notify,
    /// Wakes the leader: rows were created, or released.
    run: Notify,
}

impl Fleet {
    /// Starts the tasks of the fleet. Returns `None` if the store does not share its shards.
    pub(in crate::consumer) fn start(
        store: &Arc<dyn CheckpointStore>,
        application: &Arc<str>,
        stream: &Arc<str>,
        observers: &Observers,
        mut rng: SmallRng,
    ) -> Option<Self> {
        let leases = store.leases()?;
        leases.sharing()?;
        let (sender, view) = watch::channel(View::default());
        let shared = Arc::new(Shared {
            store: store.clone(),
            application: application.clone(),
            stream: stream.clone(),
            observers: observers.clone(),
            failover_time: leases.failover_time(),
            view: sender,
            kept: Mutex::default(),
            look: Notify::new(),
            run: Notify::new(),
        });
        let leaving = CancellationToken::new();
        let member = Member::new(shared.clone(), SmallRng::from_rng(&mut rng));
        let leader = Leader::new(shared.clone(), leaving.clone(), SmallRng::from_rng(&mut rng));
        Some(Fleet {
            shared,
            view,
            member: AbortOnDropHandle::new(tokio::spawn(member.run())),
            leader: AbortOnDropHandle::new(tokio::spawn(leader.run())),
            leaving,
            surveyed: 0,
        })
    }

    /// Waits until other shards are assigned to this worker, or a survey is due.
    pub(in crate::consumer) async fn changed(&mut self) {
        // The sender lives as long as this receiver.
        let _ = self.view.changed().await;
    }

    /// Returns the shards that are assigned to this worker.
    pub(in crate::consumer) fn assigned(&mut self) -> Vec<ShardId> {
        self.view.borrow_and_update().assigned.iter().cloned().collect()
    }

    pub(in crate::consumer) fn is_leader(&self) -> bool {
        self.view.borrow().is_leader
    }

    /// Returns true if this worker is the leader and is to list the stream's shards.
    pub(in crate::consumer) fn is_survey_due(&self) -> bool {
        let view = self.view.borrow();
        view.is_leader && view.surveys > self.surveyed
    }

    /// Notes that the stream's shards were listed, and that missing rows were created.
    pub(in crate::consumer) fn note_survey(&mut self) {
        self.surveyed = self.view.borrow().surveys;
        self.shared.run.notify_one();
    }

    /// Looks for assigned shards now.
    pub(in crate::consumer) fn look(&self) {
        self.shared.look.notify_one();
    }

    /// Renews the lease of a shard that this worker owns and does not read.
    pub(in crate::consumer) fn keep(&self, shard: ShardId) {
        self.shared.kept().insert(shard);
    }

    pub(in crate::consumer) fn keeps(&self, shard: &ShardId) -> bool {
        self.shared.kept().contains(shard)
    }

    /// Stops renewing the lease of a shard that is being read: its task renews the lease.
    pub(in crate::consumer) fn stop_keeping(&self, shard: &ShardId) {
        self.shared.kept().remove(shard);
    }

    /// Tells the other workers that this one takes no more shards.
    pub(in crate::consumer) async fn withdraw(&mut self, within: Duration) {
        self.member.abort();
        let Some(sharing) = self.shared.sharing() else {
            return;
        };
        if let Ok(Err(error)) = timeout(within, call(sharing.withdraw())).await {
            self.shared
                .report_failure("withdraw the announcement", 1, &error, Duration::ZERO);
        }
    }

    /// Releases the leases that are kept. A leader assigns its shards to the other workers, and resigns.
    pub(in crate::consumer) async fn leave(self, within: Duration) {
        let Fleet {
            shared,
            leaving,
            leader,
            ..
        } = self;
        let leave = async {
            let kept: Vec<ShardId> = shared.kept().iter().cloned().collect();
            for shard in kept {
                shared.give_up(&shard).await;
            }
            shared.give_up_assigned().await;
            leaving.cancel();
            let _ = leader.await;
        };
        // What is not released expires.
        let _ = timeout(within, leave).await;
    }
}

impl Shared {
    fn leases(&self) -> Option<&dyn Leases> {
        self.store.leases()
    }

    fn sharing(&self) -> Option<&dyn Sharing> {
        self.leases()?.sharing()
    }

    fn key(&self, shard: ShardId) -> ShardKey {
        ShardKey::new(self.application.clone(), self.stream.clone(), shard)
    }

    fn kept(&self) -> MutexGuard<'_, BTreeSet<ShardId>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Releases a lease that is kept.
    async fn give_up(&self, shard: &ShardId) {
        let Some(leases) = self.leases() else { return };
        self.kept().remove(shard);
        if let Err(error) = call(leases.give_up(&self.key(shard.clone()))).await {
            self.report_failure("release a lease", 1, &error, Duration::ZERO);
        }
    }

    /// Releases the shards that were assigned to this worker while it was stopping.
    async fn give_up_assigned(&self) {
        let Some(sharing) = self.sharing() else { return };
        let assigned = call(sharing.assigned(&self.application, &self.stream)).await;
        let assigned = assigned.unwrap_or_default().shards;
        let keys: Vec<ShardKey> = assigned.into_iter().map(|shard| self.key(shard)).collect();
        if keys.is_empty() {
            return;
        }
        let adopted = answer(STORE, sharing.adopt(&keys)).await.unwrap_or_default();
        for (key, adopted) in keys.iter().zip(adopted) {
            if let Ok(LeaseOutcome::Leased(_)) = adopted {
                self.give_up(&key.shard).await;
            }
        }
    }

    fn report(&self, event: FleetEvent<'_>) {
        if self.observers.want(Interest::SHARDS) {
            self.observers.tell(&Event::Fleet {
                stream: &self.stream,
                event,
            });
        }
    }

    fn report_failure(&self, task: &'static str, failures: u32, error: &BoxError, delay: Duration) {
        self.report(FleetEvent::Failed {
            task,
            failures,
            error: &**error,
            delay,
        });
    }
}

/// Awaits the answer of the checkpoint store.
async fn call<T>(asked: impl Future<Output = Result<T, CheckpointError>>) -> Result<T, BoxError> {
    Ok(answer(STORE, asked).await??)
}

/// Returns a delay between three quarters of this time and all of it, so that workers do not call at the same
/// moment.
fn jittered(time: Duration, rng: &mut SmallRng) -> Duration {
    let quarter = time / 4;
    time - quarter
        + Jitter::Full.delay(
            &Backoff::exponential().base(quarter).cap(quarter),
            0,
            Duration::ZERO,
            rng,
        )
}

/// A call that is repeated at intervals, and sooner after a failure.
struct Repeated {
    task: &'static str,
    retries: RetryTimer,
}

impl Repeated {
    fn new(task: &'static str, rng: &mut SmallRng) -> Self {
        Repeated {
            task,
            retries: RetryTimer::new(RETRIES, SmallRng::from_rng(rng)),
        }
    }

    /// Returns the value of a call that succeeded, and reports a failure.
    fn note<T>(&mut self, result: Result<T, BoxError>, shared: &Shared) -> Option<T> {
        match result {
            Ok(value) => {
                self.retries.reset();
                Some(value)
            }
            Err(error) => {
                let delay = self.retries.next_delay();
                shared.report_failure(self.task, self.retries.failures(), &error, delay);
                None
            }
        }
    }

    fn failures(&self) -> u32 {
        self.retries.failures()
    }
}
