//! Operator actions on a shard: show its position, skip records, rewind, hand it over to another worker.
//!
//! ```no_run
//! # async fn example(
//! #     client: aws_sdk_kinesis::Client,
//! #     store: redrive::checkpoint::Memory,
//! # ) -> Result<(), redrive::operator::OperatorError> {
//! use std::num::NonZeroUsize;
//! use redrive::{dead_letter, operator::Shards};
//!
//! let shards = Shards::new(client.clone(), store, "billing", "orders");
//! let skip = shards.skip(&"shardId-000000000000".into(), NonZeroUsize::MIN).await?;
//! println!("{:?}", skip.records());                         // nothing is moved yet
//! skip.carry_out(&dead_letter::Kinesis::new(client, "orders-dlq")).await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Guarantees
//!
//! - No shard is moved while its owner is running: the owner would continue from its own position, and store
//!   that. The action fails with [`OperatorError::Alive`] once the owner renews its lease. An owner that does
//!   not renew within the failover time has left the shard. A store without
//!   [leases](crate::checkpoint::Leases) has no owners: no other process may have it open.
//! - [`Shards::force`] takes the shard from a running owner. The store then refuses everything that the owner
//!   writes. The owner stops the shard, and takes it again from the new position. Processor calls that are
//!   already running run to their end.
//! - [`skip`](Shards::skip) writes a record as a dead letter
//!   ([`Reason::Operator`](crate::dead_letter::Reason::Operator)), and moves the position past the record
//!   only once the dead letter is confirmed. Records that are settled further ahead stay settled.
//! - [`rewind`](Shards::rewind) only moves a shard back. A rewind that would pass over an unsettled record is
//!   refused.
//! - Both actions first return what they would do. `carry_out` makes the change, and checks again if the
//!   shard has moved in the meantime.
//! - [`hand_over`](Shards::hand_over) asks the owner of a shard to hand the shard over to another worker. No
//!   record is lost or repeated. The other actions move the position of a shard; this one does not.
//!
//! A halted shard resumes once its consumer is restarted.
//!
//! Permissions: `kinesis:GetShardIterator` and `GetRecords` on the stream; `kinesis:ListShards` to list
//! shards, and to rewind a shard that has ended. The checkpoint store and the dead-letter sink need their own
//! permissions.

use std::fmt;
use std::sync::Arc;

use aws_sdk_kinesis::Client;

use crate::aws::{self, Located};
use crate::checkpoint::{Checkpoint, CheckpointError, CheckpointStore, Holder, ShardKey};
use crate::record::{ShardId, StreamId};

mod error;
mod fleet;
mod hand_over;
mod list;
mod owner;
mod rewind;
mod skip;
mod unsettled;

pub use error::OperatorError;
pub use fleet::{Announcement, FleetStatus, WorkerStatus};
pub use hand_over::{HandOver, HandOverRefusal};
pub use list::ShardStatus;
pub use rewind::Rewind;
pub use skip::{Skip, Skipped, SkippedByOperator};

/// The shards of a stream as one application reads them: lists, skips, rewinds and hands over.
#[derive(Clone)]
pub struct Shards {
    client: Located<Client>,
    store: Arc<dyn CheckpointStore>,
    application: Arc<str>,
    stream: StreamId,
    force: bool,
}

impl Shards {
    /// Creates access to the shards of this application (the name that its processor was built with) and
    /// stream (its name or ARN). Checkpoints are found by the stream's name. The client's region must be that
    /// of the ARN. If the stream is neither a name nor an ARN, every action fails with
    /// [`Config`](OperatorError::Config).
    ///
    /// A store with leases must have the same failover time as the application's own store.
    pub fn new(
        client: Client,
        store: impl CheckpointStore + 'static,
        application: impl Into<Arc<str>>,
        stream: impl Into<StreamId>,
    ) -> Self {
        Shards {
            client: aws::kinesis::with_timeout(&client, aws::ATTEMPT_TIMEOUT),
            store: Arc::new(store),
            application: application.into(),
            stream: stream.into(),
            force: false,
        }
    }

    /// Moves shards even while their owner is running. The owner loses the shard.
    #[must_use]
    pub fn force(mut self) -> Self {
        self.force = true;
        self
    }

    /// Returns the owner of a shard's lease, running or not. `None` if no worker owns the lease, or the store
    /// has no leases.
    pub async fn holder(&self, shard: &ShardId) -> Result<Option<Holder>, OperatorError> {
        self.check_stream()?;
        self.holder_of(&self.key(shard.clone())).await
    }

    fn key(&self, shard: ShardId) -> ShardKey {
        ShardKey::new(self.application.clone(), self.stream.shared_name(), shard)
    }

    fn check_stream(&self) -> Result<(), OperatorError> {
        Ok(self.stream.check("operator::Shards::new")?)
    }

    async fn load(&self, key: &ShardKey) -> Result<Checkpoint, OperatorError> {
        self.check_stream()?;
        let loaded = self.store.load(std::slice::from_ref(key)).await;
        only(loaded)?.ok_or_else(|| self.not_begun(key))
    }

    fn not_begun(&self, key: &ShardKey) -> OperatorError {
        OperatorError::NotBegun {
            application: self.application.to_string(),
            stream: self.stream.name().to_owned(),
            shard: key.shard.clone(),
        }
    }
}

/// Returns the only result of a store call for one shard.
fn only<T>(mut results: Vec<Result<T, CheckpointError>>) -> Result<T, CheckpointError> {
    let result = results.pop().filter(|_| results.is_empty());
    let none = || {
        Err(CheckpointError::unavailable(
            "the store did not return exactly one result for one shard",
        ))
    };
    result.unwrap_or_else(none)
}

impl fmt::Debug for Shards {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shards")
            .field("application", &self.application)
            .field("stream", &self.stream.to_string())
            .field("store", &self.store)
            .field("force", &self.force)
            .finish_non_exhaustive()
    }
}
