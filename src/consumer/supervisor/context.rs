//! The parts of a running consumer that the supervision of its shards shares.

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rand::SeedableRng;
use rand::rngs::SmallRng;

use crate::checkpoint::ShardKey;
use crate::consumer::data_loss::{DataLoss, DataLossPolicy};
use crate::consumer::error::ConsumerError;
use crate::consumer::settings::Settings;
use crate::consumer::shards::discovery::Discovery;
use crate::consumer::stream_facts::StreamFacts;
use crate::observer::{Event, Interest, Observers, StreamEvent};
use crate::record::ShardId;

pub(super) struct RunContext {
    pub(super) settings: Settings,
    pub(super) application: Arc<str>,
    /// The observers of the engine, and the consumer's health.
    pub(super) observers: Observers,
    pub(super) facts: Arc<StreamFacts>,
    /// The error that the consumer returns: that of the first shard that halted.
    pub(super) failed: Option<ConsumerError>,
}

impl RunContext {
    pub(super) fn discovery(&mut self) -> Discovery<'_> {
        Discovery {
            rng: self.rng(),
            client: &self.settings.client,
            stream: &self.settings.stream,
            application: &self.application,
            checkpoints: &*self.settings.checkpoints,
            observers: &self.observers,
            facts: &self.facts,
        }
    }

    /// Returns the generator of one part's jitter.
    pub(super) fn rng(&mut self) -> SmallRng {
        SmallRng::from_rng(&mut self.settings.rng)
    }

    pub(super) fn key(&self, shard: ShardId) -> ShardKey {
        ShardKey::new(
            self.application.clone(),
            self.settings.stream.shared_name(),
            shard,
        )
    }

    pub(super) fn report<'a>(&'a self, event: impl FnOnce(&'a str) -> Event<'a>) {
        if self.observers.want(Interest::SHARDS) {
            self.observers.tell(&event(self.settings.stream.name()));
        }
    }

    /// Reports a failure that ends nothing. `delay`: the time until the next check.
    pub(super) fn report_failure(&self, error: &(dyn Error + Send + Sync + 'static), delay: Duration) {
        self.report(|stream| Event::Stream {
            stream,
            event: StreamEvent::DiscoveryFailed {
                failures: 1,
                error,
                delay,
            },
        });
    }

    /// Reports that a shard may have lost the records that arrived between these times. Keeps the error if the
    /// user's policy halts the shard.
    pub(super) fn report_loss(
        &mut self,
        shard: &ShardId,
        from: Option<SystemTime>,
        to: SystemTime,
    ) -> DataLossPolicy {
        let loss = DataLoss {
            stream: self.settings.stream.name().to_owned(),
            shard: shard.clone(),
            from,
            to,
            certain: false,
        };
        let decision = self.settings.on_data_loss.report(&loss, &self.observers);
        if decision == DataLossPolicy::Halt {
            let error = ConsumerError::DataLoss(Box::new(loss));
            self.failed.get_or_insert(error);
        }
        decision
    }
}
