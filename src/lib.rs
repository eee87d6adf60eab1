//! redrive
pub mod checkpoint;
pub mod dead_letter;
mod failure;
pub mod observer;
mod processor;
mod record;
mod settled;
pub use failure::{BoxError, Class, Failure, MarkFailure, Scope, Verdict};
pub use processor::{
    Attempt, BoxProcessor, ProcessorFn, ProcessorWith, RecordProcessor, processor_fn, processor_with,
};
pub use record::{InvalidSequenceNumber, KeyHash, Position, Record, RecordBuilder, SequenceNumber, ShardId};
pub use settled::{Halt, InvalidLetterId, LetterId, Settled, Unsettled};
