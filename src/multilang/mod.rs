//! The same processor under KCL's MultiLangDaemon, which shares the shards among any number of machines.
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
//! The daemon starts the program once for each shard that its machine holds, and speaks with it by standard input and
//! output, one JSON object a line (`software.amazon.kinesis.multilang.messages`). So **nothing else may be written to
//! standard output**: logs go to standard error.
//!
//! A batch is answered for once it is on its way into the window, not when it is settled: the daemon reads on while
//! records are retried, and waits only while the window is full. What it stores is the watermark. No record, sink or
//! breaker ends the process; the end of its standard input does.
//!
//! # The daemon's settings
//!
//! - `callProcessRecordsEvenForEmptyRecordList = true`: only between a batch and its answer may a checkpoint be sent, so
//!   that without it the last records of a quiet shard would not be stored until the next comes.
//! - no `timeoutInSeconds`: past it the daemon halts, with all of its shards, though the window is only full.
//!
//! # What KCL decides
//!
//! Records inside an aggregated one that belong to another shard are dropped by KCL, unseen. Each shard has a process of
//! its own, and with it a breaker, a guard and a retry budget of its own. What settled ahead of the watermark is not
//! remembered over a restart.

use std::io;

use crate::failure::BoxError;

mod daemon;
mod message;
mod shard;
mod worker;

pub use worker::{Worker, run};

/// Why a child has ended before its standard input did.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MultiLangError {
    /// The daemon cannot be read, or written to.
    #[error("cannot read from or write to the MultiLangDaemon (standard input and output)")]
    Io(#[from] io::Error),
    /// It said what it must not.
    #[error("unexpected message from the MultiLangDaemon")]
    Protocol(#[source] BoxError),
}
