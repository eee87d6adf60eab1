//! redrive

#![forbid(unsafe_code)]
#![warn(missing_docs, missing_debug_implementations, unreachable_pub)]

pub mod checkpoint;
pub mod classify;
mod config;
#[cfg(feature = "kinesis")]
pub mod consumer;
pub mod dead_letter;
mod failure;
pub mod observer;
pub mod pipeline;
mod processor;
mod record;
mod resilient;
mod retry;
#[cfg(feature = "kinesis")]
mod sdk;
mod settled;

pub use classify::{Classify, StandardClassifier};
pub use config::ConfigError;
#[cfg(feature = "kinesis")]
pub use consumer::{Consumer, ConsumerBuilder, ConsumerError, StreamId};
pub use failure::{BoxError, Class, Failure, MarkFailure, Scope, Verdict};
pub use processor::{
    Attempt, BoxProcessor, ProcessorFn, ProcessorWith, RecordProcessor, processor_fn, processor_with,
};
pub use record::{InvalidSequenceNumber, KeyHash, Position, Record, RecordBuilder, SequenceNumber, ShardId};
pub use resilient::{AttemptTimedOut, Panicked, Resilient, ResilientBuilder};
pub use retry::{Backoff, Jitter, RetryPolicy};
pub use settled::{Halt, InvalidLetterId, LetterId, Settled, Unsettled};
