//! Creates the tasks of shards.

use std::ops::RangeInclusive;
use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::context::RunContext;
use crate::checkpoint::Checkpoint;
use crate::consumer::data_loss::Expected;
use crate::consumer::read::cursor::Reading;
use crate::consumer::read::fan_out::FanOut;
use crate::consumer::read::fetched_bytes::FetchedBytes;
use crate::consumer::read::incarnation::Incarnation;
use crate::consumer::read::polling::Poller;
use crate::consumer::read::read_from::ReadFrom;
use crate::consumer::read::read_until::ReadUntil;
use crate::consumer::read::registration::Registration;
use crate::consumer::read::retrieval::Retrieval;
use crate::consumer::read::wire::ShardWire;
use crate::consumer::shard::ShardTask;
use crate::consumer::shard::checkpointer::Checkpointer;
use crate::consumer::shard::crash_loop::{CrashLoop, Turns};
use crate::consumer::shard::lease::{Lease, LeaseState};
use crate::engine::Resilient;
use crate::pipeline::{Progress, RecordOrder, SettledCounts};
use crate::processor::Handler;
use crate::protection::{Backoff, RetryTimer};
use crate::record::{ShardId, Source};

/// The parts that the tasks of all shards share.
pub(super) struct TaskFactory<P: Handler> {
    pub(super) resilient: Resilient<P>,
    /// The counts of records that were settled in this run.
    pub(super) settled: Arc<SettledCounts>,
    /// Permits for concurrent read calls.
    calls: Arc<Semaphore>,
    /// The turns of shards that run one record at a time.
    turns: Turns,
    /// The registered consumer of enhanced fan-out. `None` if shards are polled.
    registration: Option<Arc<Registration>>,
    shutdown: CancellationToken,
}

/// A shard that is about to be read.
pub(super) struct NewTask {
    pub(super) shard: ShardId,
    pub(super) from: Checkpoint,
    pub(super) hash_keys: RangeInclusive<u128>,
    /// The time just before the shard's lease was taken, if the store has leases.
    pub(super) taken: Option<Instant>,
}

impl<P: Handler> TaskFactory<P> {
    pub(super) fn new(context: &RunContext, resilient: Resilient<P>, shutdown: CancellationToken) -> Self {
        let settings = &context.settings;
        let registration = match &settings.retrieval {
            Retrieval::Polling => None,
            Retrieval::FanOut(consumer) => Some(Arc::new(Registration::new(
                settings.stream.clone(),
                consumer.clone(),
                context.application.clone(),
            ))),
        };
        TaskFactory {
            resilient,
            settled: Arc::default(),
            calls: Arc::new(Semaphore::new(settings.polling.calls_in_flight)),
            turns: Turns::default(),
            registration,
            shutdown,
        }
    }

    pub(super) fn create(&self, context: &mut RunContext, new: NewTask) -> ShardTask<P> {
        let NewTask {
            shard,
            from,
            hash_keys,
            taken,
        } = new;
        let (key, rng) = (context.key(shard.clone()), [(); 3].map(|()| context.rng()));
        let [reading_rng, storing_rng, lease_rng] = rng;
        let (settings, observers, facts) = (&context.settings, &context.observers, &context.facts);
        let capacity = settings.pipeline.shared_capacity();
        let progress = Arc::new(Progress::new().counting(self.settled.clone()));
        let lease_state = taken.map(|_| Arc::new(LeaseState::new(&self.shutdown)));
        let incarnation = Incarnation::of(&from, facts);
        let stream_created = incarnation.created();
        let source = Source {
            stream: settings.stream.shared_name(),
            shard: shard.clone(),
        };
        let (crash_loop, mark, marks) = CrashLoop::new(&from, self.turns.clone());
        ShardTask {
            resilient: self.resilient.clone(),
            pipeline: settings.pipeline.clone(),
            reading: Reading {
                client: settings.client.clone(),
                wire: ShardWire::new(&settings.wire, source),
                stream: settings.stream.clone(),
                shard,
                deaggregator: settings.deaggregator.clone().hash_keys(hash_keys),
                observers: observers.clone(),
                rng: reading_rng,
                from: ReadFrom::checkpoint(from.position()),
                newest: None,
                needs_keys: settings.pipeline.order() == RecordOrder::PartitionKey,
                read_until: ReadUntil::of(Expected::of(&from).as_ref()),
                last_page: None,
                is_lag_reported: false,
                unverified: None,
                expected: Expected::of(&from),
                on_data_loss: settings.on_data_loss.clone(),
                facts: facts.clone(),
                incarnation,
                fetched_bytes: FetchedBytes::new(&settings.checkpoints, &key),
            },
            poller: Poller {
                polling: settings.polling.clone(),
                calls: self.calls.clone(),
                capacity: capacity.clone(),
            },
            fan_out: self.registration.clone().map(|registration| FanOut {
                registration,
                capacity: capacity.clone(),
            }),
            checkpointer: Checkpointer {
                store: settings.checkpoints.clone(),
                key: key.clone(),
                observers: observers.clone(),
                progress: progress.clone(),
                retries: RetryTimer::new(Backoff::exponential(), storing_rng),
                lease: lease_state.clone(),
                stream_created,
                from: from.clone(),
                mark,
                marks,
            },
            lease: lease_state.zip(taken).map(|(state, since)| Lease {
                state,
                since,
                key,
                store: settings.checkpoints.clone(),
                client: settings.client.clone(),
                stream: settings.stream.clone(),
                observers: observers.clone(),
                facts: facts.clone(),
                rng: lease_rng,
            }),
            progress,
            from,
            crash_loop,
            shutdown: self.shutdown.clone(),
            last_call: settings.last_call,
        }
    }
}
