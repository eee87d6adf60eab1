//! What an operator does to a shard by hand: see where it stands, pass over a record, go back.
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
//! # What is promised
//!
//! - Nothing is moved while the shard's owner lives: it would go on where it is, and store that. [`OperatorError::Alive`]
//!   comes as soon as the owner shows that it lives; one that shows nothing for the failover time has left the shard.
//!   A store without [leases](crate::checkpoint::Leases) has no owners: it must not be open elsewhere.
//! - [`Shards::force`] takes the shard from an owner that lives. All that it stores from then on is refused; it ends its
//!   shard, and takes it again from the new position. Handlers that it has called meanwhile run to their end.
//! - [`skip`](Shards::skip) writes a record as a dead letter ([`Reason::Operator`](crate::dead_letter::Reason::Operator)),
//!   and moves the position past it only once that is confirmed. What is settled further ahead stays so.
//! - [`rewind`](Shards::rewind) only goes back: what would pass over a record that is not settled is refused.
//! - Both first say what they would do, and do it only to a shard that still stands as it did.
//!
//! A shard that has halted begins again where its consumer is started again.
//!
//! Permissions: `kinesis:GetShardIterator` and `GetRecords` on the stream; `kinesis:ListShards` to list, and to go back
//! in a shard that has ended; what the checkpoint store and the dead-letter sink need.

use std::fmt;
use std::sync::Arc;

use aws_sdk_kinesis::Client;

use crate::StreamId;
use crate::aws::{self, Located};
use crate::checkpoint::{Checkpoint, CheckpointError, CheckpointStore, Holder, ShardKey};
use crate::record::ShardId;

mod error;
mod list;
mod owner;
mod rewind;
mod skip;
mod unsettled;

pub use error::OperatorError;
pub use list::ShardStatus;
pub use rewind::Rewind;
pub use skip::{Skip, Skipped, SkippedByOperator};

/// An application's shards of a stream, to be looked at and moved.
#[derive(Clone)]
pub struct Shards {
    client: Located<Client>,
    store: Arc<dyn CheckpointStore>,
    application: Arc<str>,
    stream: StreamId,
    force: bool,
}

impl Shards {
    /// Those of this application (the name that its processor was built with) and stream (its name or ARN). Checkpoints
    /// are found by the stream's name; the client's region must be that of the ARN.
    ///
    /// A store with leases must have the failover time that the application's own has.
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

    /// Moves shards also while their owner lives, which loses them.
    #[must_use]
    pub fn force(mut self) -> Self {
        self.force = true;
        self
    }

    /// Who holds a shard, alive or not. `None` if nobody does, or the store has no leases.
    pub async fn holder(&self, shard: &ShardId) -> Result<Option<Holder>, OperatorError> {
        self.holder_of(&self.key(shard.clone())).await
    }

    fn key(&self, shard: ShardId) -> ShardKey {
        ShardKey::new(self.application.clone(), self.stream.name().clone(), shard)
    }

    async fn load(&self, key: &ShardKey) -> Result<Checkpoint, OperatorError> {
        let loaded = self.store.load(std::slice::from_ref(key)).await;
        only(loaded)?.ok_or_else(|| self.not_begun(key))
    }

    fn not_begun(&self, key: &ShardKey) -> OperatorError {
        OperatorError::NotBegun {
            application: self.application.to_string(),
            stream: self.stream.name().to_string(),
            shard: key.shard.clone(),
        }
    }
}

/// The one result for the one shard that a store was asked about.
fn only<T>(mut results: Vec<Result<T, CheckpointError>>) -> Result<T, CheckpointError> {
    let result = results.pop().filter(|_| results.is_empty());
    let none = || {
        Err(CheckpointError::unavailable(
            "the store did not give one result for one shard",
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
