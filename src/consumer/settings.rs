//! The settings of a consumer, validated by its builder.

use std::sync::Arc;
use std::time::Duration;

use aws_sdk_kinesis::Client;
use rand::rngs::SmallRng;

use crate::aws::Located;
use crate::checkpoint::CheckpointStore;
use crate::consumer::data_loss::OnDataLoss;
use crate::consumer::health::Health;
use crate::consumer::read::polling::PollingSettings;
use crate::consumer::read::retrieval::Retrieval;
use crate::consumer::read::wire::ActiveWire;
use crate::consumer::shards::starting_position::StartingPosition;
use crate::kpl::Deaggregator;
use crate::pipeline::Pipeline;
use crate::record::StreamId;

/// The settings of a consumer that is ready to run.
pub(in crate::consumer) struct Settings {
    pub(in crate::consumer) client: Located<Client>,
    pub(in crate::consumer) stream: StreamId,
    pub(in crate::consumer) checkpoints: Arc<dyn CheckpointStore>,
    pub(in crate::consumer) pipeline: Pipeline,
    pub(in crate::consumer) start: StartingPosition,
    pub(in crate::consumer) retrieval: Retrieval,
    pub(in crate::consumer) wire: Arc<ActiveWire>,
    pub(in crate::consumer) polling: PollingSettings,
    pub(in crate::consumer) on_data_loss: OnDataLoss,
    pub(in crate::consumer) refresh_interval: Duration,
    pub(in crate::consumer) health: Health,
    pub(in crate::consumer) deaggregator: Deaggregator,
    pub(in crate::consumer) shutdown_timeout: Duration,
    /// The part of `shutdown_timeout` for a shard's last checkpoint, and again for the release of its lease.
    pub(in crate::consumer) last_call: Duration,
    /// The source of randomness for the jitter of all tasks.
    pub(in crate::consumer) rng: SmallRng,
}
