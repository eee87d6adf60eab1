//! A runtime for KCL's MultiLangDaemon, which distributes the shards among any number of machines: runs the
//! same processor as the daemon's child process.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use redrive::{Record, Resilient, dead_letter, multilang, processor_fn};
//!
//! async fn store_order(record: Record) -> Result<(), std::io::Error> {
//!     /* the handler you have */
//!     Ok(())
//! }
//!
//! let orders = Resilient::builder("billing", processor_fn(store_order))
//!     .dead_letters(dead_letter::File::open("letters.jsonl")?) // a sink of yours
//!     .build()?;
//! multilang::run(orders, "orders").await?;
//! # Ok(())
//! # }
//! ```
//!
//! The daemon starts the program once for each shard that is leased to its machine. Both communicate by
//! standard input and output, with one JSON object per line (`software.amazon.kinesis.multilang.messages`).
//! So **nothing else may be written to standard output**: write logs to standard error.
//!
//! The child answers a batch when the batch enters the window, not when it is settled. The daemon thus
//! continues to read while records are retried, and waits only while the window is full. The checkpoint that
//! the daemon stores is the watermark. No record, sink or breaker ends the process; the end of its standard
//! input does.
//!
//! # The daemon's settings
//!
//! - Set `callProcessRecordsEvenForEmptyRecordList = true`. A checkpoint may be sent only between a batch and
//!   its answer. Without this setting, the last records of a quiet shard are not checkpointed until the next
//!   record arrives.
//! - Do not set `timeoutInSeconds`. After this timeout the daemon halts with all of its shards, even if the
//!   window is merely full.
//!
//! # Limits set by KCL
//!
//! KCL drops records inside an aggregated record that belong to another shard; redrive never sees them. Each
//! shard has its own process, and with it its own breaker, guard and retry budget. Records that were settled
//! ahead of the watermark are processed again after a restart.

use std::io;

use crate::config::ConfigError;
use crate::failure::BoxError;

mod daemon;
mod message;
mod shard;
mod worker;

pub use worker::{Worker, run};

/// The reason why the child process ends before its standard input does.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MultiLangError {
    /// The stream is neither the name nor the ARN of a Kinesis stream.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Standard input cannot be read, or standard output cannot be written to.
    #[error("cannot read from or write to the MultiLangDaemon (standard input and output)")]
    Io(#[from] io::Error),
    /// The daemon sent an unexpected message.
    #[error("unexpected message from the MultiLangDaemon")]
    Protocol(#[source] BoxError),
}
